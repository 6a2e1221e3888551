"""The list of runs as a table, as sentences and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyzer.analysis.findings import findings, health
from analyzer.analysis.numerals import age_text
from analyzer.cli.terminal import json_text, number, printable, signs, table_box
from analyzer.errors import AnalyzerError
from analyzer.storage.catalog import RunSummary
from analyzer.storage.run import Run, open_run

__all__ = ["as_json", "completed", "print_runs", "verdict_of"]


def completed(run: RunSummary) -> RunSummary:
    """Return the summary with what its manifest does not say read from the tables.

    A run that is running or crashed has no counts in its manifest. What cannot be read stays None.
    """
    if run.problem is not None or None not in (run.steps, run.layers, run.joins, run.loss):
        return run
    try:
        opened = open_run(run.path)
    except AnalyzerError as error:
        return replace(run, status="broken", problem=str(error))
    return replace(
        run,
        steps=len(opened.recorded_steps()) if run.steps is None else run.steps,
        layers=len(opened.layers) if run.layers is None else run.layers,
        joins=len(opened.joins) if run.joins is None else run.joins,
        loss=_last_loss(opened) if run.loss is None else run.loss,
    )


def _last_loss(run: Run) -> float | None:
    """Loss of the last recorded step; None where it has none."""
    recorded = run.recorded_steps()
    if not len(recorded):
        return None
    loss: float | None = run.read("steps", "loss", steps=int(recorded[-1]))["loss"][0].as_py()
    return loss


def verdict_of(run: RunSummary) -> str | None:
    """Return the state of a run in a word: ``healthy``, or the code of its worst finding.

    Returns:
        None for a run that cannot be read or holds no layer.
    """
    if run.problem is not None or not run.layers:
        return None
    try:
        return health(findings(open_run(run.path)))
    except (AnalyzerError, OSError):
        return None


Verdicts = Mapping[Path, str | None]


def print_runs(
    folder: Path, runs: Sequence[RunSummary], verdicts: Verdicts, console: Console
) -> None:
    """Print the table of runs, then the reason of each that cannot be read."""
    if not runs:
        console.print(_none_found(folder), soft_wrap=True)
        return
    marks = signs()
    table = Table(box=table_box(), pad_edge=False, show_edge=False)
    # The only one that gives way where a terminal is narrow.
    table.add_column("name", overflow="ellipsis")
    table.add_column("status", no_wrap=True)
    for name in ("steps", "layers", "joins", "loss", "verdict", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        counts = (run.steps, run.layers, run.joins)
        cells = [
            printable(run.name, 40),
            run.status,
            *(marks.missing if count is None else f"{count:,}" for count in counts),
            number(run.loss, marks.missing),
            verdicts.get(run.path) or marks.missing,
            marks.missing if run.age is None else age_text(run.age),
        ]
        table.add_row(*map(Text, cells))
    console.print(table)
    for run in runs:
        if run.problem is not None:
            reason = f"{printable(run.name, 40)}: {printable(run.problem, 300)}"
            console.print(reason, soft_wrap=True)


def _none_found(folder: Path) -> str:
    """What was looked for, and how to make it."""
    seen = "holds no run" if folder.is_dir() else "does not exist"
    return (
        f"No runs: the folder '{printable(str(folder), 300)}' {seen}; looked for folders with a "
        "run.json in it. Make a run with: analyzer record train.py"
    )


def as_json(runs: Sequence[RunSummary], verdicts: Verdicts) -> str:
    """Return the list as JSON; NaN and infinities, which JSON lacks, are texts."""
    return json_text([_fields(run, verdicts.get(run.path)) for run in runs])


def _fields(run: RunSummary, verdict: str | None) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "status": run.status,
        "steps": run.steps,
        "layers": run.layers,
        "joins": run.joins,
        "loss": run.loss,
        "verdict": verdict,
        "created": run.created,
        "age_seconds": run.age,
        "problem": run.problem,
    }

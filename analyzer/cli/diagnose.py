"""``analyzer diagnose``: what is wrong with a run."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.cli import RunName, RunsDir
from analyzer.errors import AnalyzerError

if TYPE_CHECKING:
    from rich.console import Console

    from analyzer.analysis.findings import Finding
    from analyzer.storage.run import Run

__all__ = ["diagnose", "finding_lines", "findings_summary"]

_LONGEST = 1000


def diagnose(
    run: RunName,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            metavar="NAME=VALUE",
            help="Replace a threshold; may be given several times. See --thresholds.",
        ),
    ] = None,
    thresholds: Annotated[
        bool,
        typer.Option("--thresholds", help="List the thresholds with their reasons, and stop."),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON; a number that is not finite is a text.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> int:
    """List the findings of a run, the most severe first, each with its number and a remedy.

    Exit code 1 when a severe one is found, else 0. A healthy run has none.

    \b
    Example:
        analyzer diagnose latest
        analyzer diagnose runs/mine --json --threshold vanishing_decades=2
    """  # noqa: D301 -- click reads the control character
    from analyzer.analysis.findings import findings
    from analyzer.cli.json_text import json_text
    from analyzer.cli.terminal import console
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    limits = _overrides(threshold or [])
    if thresholds:
        _print_thresholds(limits, console())
        return 0
    opened = open_run(resolve_run(run, runs_dir))
    found = findings(opened, limits)
    if json:
        typer.echo(json_text(found))
    else:
        _print_diagnosis(opened, found, console())
    return int(any(finding.severity == "severe" for finding in found))


def _overrides(given: Sequence[str]) -> dict[str, float]:
    """The thresholds of ``--threshold NAME=VALUE`` options by name."""
    from analyzer.analysis.findings import THRESHOLDS, thresholds_with

    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            values[name.strip()] = float(value) if equals else float("nan")
            thresholds_with({name.strip(): values[name.strip()]})
        except ValueError:
            raise AnalyzerError(
                f"--threshold is {text!r}; expected NAME=VALUE with a number and a NAME of "
                f"{', '.join(THRESHOLDS)}. Write for example --threshold vanishing_decades=2"
            ) from None
    return values


def _print_thresholds(limits: Mapping[str, float], console: "Console") -> None:
    from analyzer.analysis.findings import THRESHOLDS, thresholds_with

    values = thresholds_with(limits)
    for name, threshold in THRESHOLDS.items():
        line = f"{name} = {values[name]:g}: {threshold.reason}."
        console.print(
            "\n".join(textwrap.wrap(line, console.width, subsequent_indent="    ")), soft_wrap=True
        )


def _print_diagnosis(run: "Run", found: Sequence["Finding"], console: "Console") -> None:
    from analyzer.cli.terminal import printable

    steps = len(run.recorded_steps())
    console.print(f"{printable(run.name)}: {steps:,} steps, {run.status}", soft_wrap=True)
    console.print(findings_summary(found), soft_wrap=True)
    for line in finding_lines(found):
        start, indent = ("    ", "    ") if line.startswith("    ") else ("", "  ")
        wrapped = textwrap.wrap(
            line.strip(),
            console.width,
            initial_indent=start,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        console.print("\n".join(wrapped), soft_wrap=True)


def finding_lines(found: Sequence["Finding"]) -> list[str]:
    """Return each finding in two lines: severity and sentence, then the remedy."""
    from analyzer.cli.terminal import printable

    lines = []
    for finding in found:
        sentence = printable(finding.sentence, _LONGEST)
        lines += [f"{finding.severity} | {finding.code}: {sentence}", f"    {finding.remedy}"]
    return lines


def findings_summary(found: Sequence["Finding"]) -> str:
    """Return how many findings of each severity there are."""
    if not found:
        return "Findings: none."
    severities = list(dict.fromkeys(finding.severity for finding in found))
    counts = [f"{sum(f.severity == word for f in found)} {word}" for word in severities]
    return f"Findings: {', '.join(counts)}."

"""``analyzer diagnose``, ``compare``, ``diverge``, ``explain``: what is wrong, what is other."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.cli import AsJson, RunName, RunsDir
from analyzer.errors import AnalyzerError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from analyzer.analysis.claims import Claim
    from analyzer.analysis.comparison import Comparison
    from analyzer.analysis.findings import Finding
    from analyzer.analysis.verdict import Verdict
    from analyzer.storage.run import Run

__all__ = [
    "compare",
    "diagnose",
    "diverge",
    "explain",
    "explain_text",
    "finding_lines",
    "findings_summary",
]

_LONGEST_FINDING, _LONGEST_CLAIM, _NAME = 1000, 4000, 40
# What stands beside each number of the two runs: its attribute, and its words.
_NUMBERS = (
    ("shortcut_share", "shortcut share, median"),
    ("gain", "gain per layer, last step"),
    ("decades_fallen", "decades fallen, last step"),
    ("first_loss", "first loss"),
    ("final_loss", "final loss"),
    ("best_loss", "best loss"),
    ("seconds", "seconds"),
)


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
    json: AsJson = False,
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
    from analyzer.cli.terminal import console, json_text

    limits = _overrides(threshold or [])
    if thresholds:
        _print_thresholds(limits, console())
        return 0
    opened = _open(run, runs_dir)
    found = findings(opened, limits)
    if json:
        typer.echo(json_text(found))
    else:
        _print_diagnosis(opened, found, console())
    return int(any(finding.severity == "severe" for finding in found))


def compare(
    left: RunName,
    right: Annotated[str, typer.Argument(metavar="RUN", help="The other run.")],
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Put two runs side by side, on a depth-relative axis from the first layer to the last.

    \b
    Example:
        analyzer compare runs/mine-plain runs/mine
        analyzer compare latest runs/before --json
    """  # noqa: D301 -- click reads the control character
    from analyzer.analysis.comparison import compare_runs
    from analyzer.cli.terminal import console, json_text

    compared = compare_runs(_open(left, runs_dir), _open(right, runs_dir))
    if json:
        typer.echo(json_text(compared))
    else:
        _print_comparison(compared, console())


def diverge(
    left: RunName,
    right: Annotated[str, typer.Argument(metavar="RUN", help="The other run.")],
    repeat: Annotated[
        str | None,
        typer.Option(
            "--repeat",
            metavar="RUN",
            help="The first program run once more: how much these two differ is the noise floor.",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0,
            metavar="X",
            help="Without --repeat: relative difference that counts as equal.",
        ),
    ] = 0.0,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Find the first step, layer and pass (forward, backward, update) at which two runs differ.

    \b
    Example:
        analyzer diverge runs/before runs/after
        analyzer diverge runs/before runs/after --repeat runs/before-again
        analyzer diverge runs/before runs/after --json
    """  # noqa: D301 -- click reads the control character
    from analyzer.analysis.divergence import first_divergence
    from analyzer.cli.terminal import console, json_text, printable

    names = [name for name in (left, right, repeat) if name is not None]
    runs = [_open(name, runs_dir) for name in names]
    found = first_divergence(*runs, tolerance=tolerance)
    if json:
        typer.echo(json_text(found.as_json()))
    else:
        console().print(printable(found.sentence, _LONGEST_FINDING), soft_wrap=True)


def explain(
    plain: Annotated[
        str,
        typer.Argument(
            metavar="PLAIN",
            help="The run without shortcuts; several seeds: A,B,C joined by commas. Alone: a "
            "residual run.",
        ),
    ],
    residual: Annotated[
        str | None,
        typer.Argument(metavar="RESIDUAL", help="The run with them, or as many, in one order."),
    ] = None,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Say which mechanism separates a plain and a residual run, question by question.

    Given a single residual run, say what its shortcuts do. The answer to a question is yes, no,
    unclear (with what would settle it), undefined or not measured; its numbers come from the query
    beside it.

    \b
    Example:
        analyzer explain runs/mine-plain runs/mine
        analyzer explain plain-0,plain-1 residual-0,residual-1 --json
        analyzer explain runs/mine
    """  # noqa: D301 -- click reads the control character
    from analyzer.analysis.verdict import verdict, verdict_on
    from analyzer.cli.terminal import console, json_text, printable
    from analyzer.storage.run_json import losses

    if residual is None:
        said = verdict_on(_open(plain, runs_dir))
    else:
        said = verdict(*_opened_pairs(plain, residual, runs_dir))
    # Known once everything was read: without a part of it an answer may be another one.
    for run in chain(*said.runs):
        for sentence in (*losses(run.manifest), *run.warnings):
            typer.echo(f"warning: {printable(f'{run.name}: {sentence}', 300)}", err=json)
    if json:
        typer.echo(json_text(said.as_json()))
        return
    screen = console()
    for line in explain_text(said, screen.width):
        screen.print(line, soft_wrap=True)


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
    from analyzer.storage.run_json import losses

    steps = len(run.recorded_steps())
    console.print(f"{printable(run.name)}: {steps:,} steps, {run.status}", soft_wrap=True)
    for sentence in (*losses(run.manifest), *run.warnings):
        console.print(f"warning: {printable(sentence, 300)}", soft_wrap=True)
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
        sentence = printable(finding.sentence, _LONGEST_FINDING)
        lines += [f"{finding.severity} | {finding.code}: {sentence}", f"    {finding.remedy}"]
    return lines


def findings_summary(found: Sequence["Finding"]) -> str:
    """Return how many findings of each severity there are."""
    if not found:
        return "Findings: none."
    severities = list(dict.fromkeys(finding.severity for finding in found))
    counts = [f"{sum(f.severity == word for f in found)} {word}" for word in severities]
    return f"Findings: {', '.join(counts)}."


def _print_comparison(compared: "Comparison", console: "Console") -> None:
    """Print the numbers of both runs, their profiles by relative depth, and what separates them."""
    from analyzer.cli.terminal import number, printable, signs

    marks, runs = signs(), (compared.left, compared.right)
    names = [printable(run.name, _NAME) for run in runs]
    rows = [
        ["status", *(run.status for run in runs)],
        *(
            [what, *(f"{getattr(run, what):,}" for run in runs)]
            for what in ("steps", "layers", "joins")
        ),
        *(
            [words, *(number(getattr(run, key), marks.missing) for run in runs)]
            for key, words in _NUMBERS
        ),
        ["findings", *(", ".join(run.findings) or "none" for run in runs)],
    ]
    console.print(_table(["", *names], rows))
    steps = " and ".join(str(run.step) for run in runs)
    console.print(
        f"output gradient norm {marks.norm} by relative depth (0 first layer, 1 last), "
        f"steps {steps}",
        soft_wrap=True,
    )
    places = [
        [f"{row.relative_depth:.1f}"]
        + [number(value, marks.missing) for value in (row.left, row.right, row.log10_ratio)]
        for row in compared.profile
    ]
    console.print(_table(["depth", *names, "decades apart"], places))
    for line in textwrap.wrap(printable(compared.sentence, 1000), console.width):
        console.print(line, soft_wrap=True)


def _table(headings: list[str], rows: list[list[str]]) -> "Table":
    """A table whose first column has words, the others numbers."""
    from rich.table import Table
    from rich.text import Text

    from analyzer.cli.terminal import table_box

    table = Table(box=table_box(), pad_edge=False, show_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def explain_text(verdict: "Verdict", width: int = 100, *, queries: bool = True) -> list[str]:
    """Return a verdict as lines: the sentence, then every question with its answer.

    Queries are never wrapped, so that they can be copied.
    """
    from analyzer.analysis.claims import STATUSES
    from analyzer.cli.terminal import printable

    lines = []
    for text in (verdict.sentence, verdict.note):
        lines += textwrap.wrap(printable(text, _LONGEST_CLAIM), width, break_on_hyphens=False)
    lines.append("")
    for status in STATUSES:
        for claim in verdict.claims:
            if claim.status == status:
                lines += _claim_lines(claim, width, queries)
    if queries:
        plain, residual = (
            printable(", ".join(run.name for run in side), _LONGEST_FINDING)
            for side in verdict.runs
        )
        names = f"plain is analyzer.open_run(...) of {plain}, residual of {residual}"
        if verdict.num_seeds > 1:
            names = (
                "plain and residual are lists of analyzer.open_run(...), one for each seed: "
                f"{plain}; {residual}"
            )
        if not plain:
            names = f"residual is analyzer.open_run(...) of {residual}"
        lines += ["", f"In the queries, {names}."]
    return lines


def _claim_lines(claim: "Claim", width: int, queries: bool) -> list[str]:
    from analyzer.cli.terminal import printable

    text = f"{claim.answer:<12}  {printable(f'{claim.question} {claim.finding}', _LONGEST_CLAIM)}"
    if queries:
        text += f" [{claim.reference}]"
    lines = textwrap.wrap(text, width, subsequent_indent=" " * 14, break_on_hyphens=False)
    if queries and claim.query:
        lines.append(f"{'':14}>>> {claim.query}")
    return lines


def _opened_pairs(plain: str, residual: str, runs_dir: Path) -> "tuple[list[Run], list[Run]]":
    """The runs of both sides, one pair for each seed."""
    left, right = (_opened(names, runs_dir) for names in (plain, residual))
    if len(left) != len(right):
        raise AnalyzerError(
            f"PLAIN names {len(left)} runs and RESIDUAL {len(right)}; expected as many on both "
            "sides, in the same order. Join the seeds by commas without spaces"
        )
    return left, right


def _opened(names: str, runs_dir: Path) -> "list[Run]":
    """The runs of one side."""
    from analyzer.storage.catalog import resolve_runs
    from analyzer.storage.run import open_run

    return [open_run(path) for path in resolve_runs(names, runs_dir)]


def _open(name: str, runs_dir: Path) -> "Run":
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    return open_run(resolve_run(name, runs_dir))

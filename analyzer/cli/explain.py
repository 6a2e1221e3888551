"""``analyzer explain``: which mechanism separates a plain run from a residual one."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.cli import RunsDir
from analyzer.errors import AnalyzerError, RunNotFoundError

if TYPE_CHECKING:
    from analyzer.analysis.claims import Claim
    from analyzer.analysis.verdict import Verdict
    from analyzer.storage.run import Run

__all__ = ["explain", "explain_text"]

_LONGEST = 2000


def explain(
    plain: Annotated[
        str,
        typer.Argument(
            metavar="PLAIN",
            help="The run without shortcuts; several seeds: A,B,C joined by commas.",
        ),
    ],
    residual: Annotated[
        str, typer.Argument(metavar="RESIDUAL", help="The run with them, or as many, in one order.")
    ],
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON; a number that is not finite is a text.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Say which mechanism separates a plain and a residual run, claim by claim.

    Each claim holds, fails or was not measured; its numbers come from the query beside it.

    \b
    Example:
        analyzer explain runs/mine-plain runs/mine
        analyzer explain plain-0,plain-1 residual-0,residual-1 --json
    """  # noqa: D301 -- click reads the control character
    from analyzer.analysis.verdict import verdict
    from analyzer.cli.json_text import json_text
    from analyzer.cli.terminal import console

    left, right = _pairs(plain, residual, runs_dir)
    said = verdict(left, right)
    if json:
        names = {"plain": [run.name for run in left], "residual": [run.name for run in right]}
        typer.echo(json_text(names | vars(said)))
        return
    screen = console()
    for line in explain_text(said, screen.width):
        screen.print(line, soft_wrap=True)


def explain_text(verdict: "Verdict", width: int = 100, *, queries: bool = True) -> list[str]:
    """Return a verdict as lines: the sentence, then every claim with its status.

    Args:
        verdict: What ``analyzer.analysis.verdict.verdict`` says.
        width: Columns to wrap at; queries are never wrapped, so that they can be copied.
        queries: Whether the query and the reference of each claim follow it.
    """
    from analyzer.analysis.claims import STATUSES

    lines = [*textwrap.wrap(verdict.sentence, width, break_on_hyphens=False)]
    if verdict.note:
        lines += textwrap.wrap(verdict.note, width)
    lines.append("")
    for status in STATUSES:
        for claim in verdict.claims:
            if claim.status == status:
                lines += _claim_lines(claim, width, queries)
    if queries:
        names = "plain and residual are analyzer.open_run(...) of the two runs"
        if verdict.num_seeds > 1:
            names = "plain and residual are lists of analyzer.open_run(...), one for each seed"
        lines += ["", f"In the queries, {names}."]
    return lines


def _claim_lines(claim: "Claim", width: int, queries: bool) -> list[str]:
    from analyzer.cli.terminal import printable

    text = f"{claim.status.upper():<12}  {printable(claim.text, _LONGEST)}"
    if queries:
        text += f" [{claim.reference}]"
    lines = textwrap.wrap(text, width, subsequent_indent=" " * 14, break_on_hyphens=False)
    if queries and claim.query:
        lines.append(f"{'':14}>>> {claim.query}")
    return lines


def _pairs(plain: str, residual: str, runs_dir: Path) -> "tuple[list[Run], list[Run]]":
    """Open the runs of both sides, one pair for each seed."""
    left, right = (_opened(names, runs_dir) for names in (plain, residual))
    if len(left) != len(right):
        raise AnalyzerError(
            f"PLAIN names {len(left)} runs and RESIDUAL {len(right)}; expected as many on both "
            "sides, in the same order. Join the seeds by commas without spaces"
        )
    return left, right


def _opened(names: str, runs_dir: Path) -> "list[Run]":
    """The runs of one side; a folder whose name holds a comma is one run."""
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    try:
        return [open_run(resolve_run(names, runs_dir))]
    except RunNotFoundError:
        if "," not in names:
            raise
    return [open_run(resolve_run(name, runs_dir)) for name in names.split(",") if name]

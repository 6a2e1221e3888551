"""``analyzer explain``: which mechanism separates a plain run from a residual one."""

from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir

__all__ = ["explain"]


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
    from analyzer.cli.pairs import opened_pairs
    from analyzer.cli.terminal import console
    from analyzer.cli.verdict_text import explain_text

    left, right = opened_pairs(plain, residual, runs_dir)
    said = verdict(left, right)
    if json:
        names = {"plain": [run.name for run in left], "residual": [run.name for run in right]}
        typer.echo(json_text(names | vars(said)))
        return
    screen = console()
    for line in explain_text(said, screen.width):
        screen.print(line, soft_wrap=True)

"""``analyzer compare``: two runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir

__all__ = ["compare"]


def compare(
    left: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, a name under --runs-dir, or latest.")
    ],
    right: Annotated[str, typer.Argument(metavar="RUN", help="The other run.")],
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON; a number that is not finite is a text.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Put two runs side by side, on a depth-relative axis from the first layer to the last.

    \b
    Example:
        analyzer compare runs/mine-plain runs/mine
        analyzer compare latest runs/before --json
    """  # noqa: D301 -- click reads the control character
    from analyzer.analysis.run_comparison import compare_runs
    from analyzer.cli.comparison_text import print_comparison
    from analyzer.cli.json_text import json_text
    from analyzer.cli.terminal import console
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    runs = [open_run(resolve_run(name, runs_dir)) for name in (left, right)]
    compared = compare_runs(*runs)
    if json:
        typer.echo(json_text(compared))
    else:
        print_comparison(compared, console())

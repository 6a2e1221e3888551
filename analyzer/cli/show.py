"""``analyzer show``: a run in the terminal."""

from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir

__all__ = ["show"]


def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, a name under --runs-dir, or latest.")
    ],
    step: Annotated[
        str, typer.Option("--step", metavar="N|first|last", help="The recorded step to draw.")
    ] = "last",
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="REGEX", help="Draw and list only layers it finds."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Show a run in the terminal: depth profile, gain, loss, joins, findings, layers.

    The chart runs from the input at the left to the output at the right on a logarithmic axis; the
    gain is the factor per layer by which the output gradient changes going backward.

    \b
    Example:
        analyzer show latest
        analyzer show runs/mine --step 100 --layers 'layer[12]'
    """  # noqa: D301 -- click reads the control character
    from analyzer.cli.run_view import print_run
    from analyzer.cli.terminal import console
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    print_run(open_run(resolve_run(run, runs_dir)), step, layers, console())

"""``analyzer runs``: the runs of a folder."""

import os
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["runs"]


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The folder that holds the runs. Default: $ANALYZER_RUNS or runs."
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON; a loss that is not finite is a text in it."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave the verdict out, for which tables are read.")
    ] = False,
) -> None:
    """List runs, the newest first: name, status, steps, layers, joins, loss, verdict, age.

    The loss is that of the last recorded step; the verdict is healthy, or the worst of the run's
    findings. A run that cannot be read is listed with the reason.

    \b
    Example:
        analyzer runs
        analyzer runs experiments --json
    """  # noqa: D301 -- click reads the control character
    from analyzer.cli.run_list import as_json, completed, print_runs, verdict_of
    from analyzer.cli.terminal import console
    from analyzer.storage.catalog import runs_in

    where = folder or Path(os.environ.get("ANALYZER_RUNS") or "runs")
    found = [completed(run) for run in runs_in(where)]
    verdicts = {} if quick else {run.path: verdict_of(run) for run in found}
    if json:
        typer.echo(as_json(found, verdicts))
    else:
        print_runs(where, found, verdicts, console())

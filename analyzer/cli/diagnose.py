"""``analyzer diagnose``: what is wrong with a run."""

from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir

__all__ = ["diagnose"]


def diagnose(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, a name under --runs-dir, or latest.")
    ],
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
    from analyzer.cli.diagnosis import overrides, print_diagnosis, print_thresholds
    from analyzer.cli.json_text import json_text
    from analyzer.cli.terminal import console
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    limits = overrides(threshold or [])
    if thresholds:
        print_thresholds(limits, console())
        return 0
    opened = open_run(resolve_run(run, runs_dir))
    found = findings(opened, limits)
    if json:
        typer.echo(json_text(found))
    else:
        print_diagnosis(opened, found, console())
    return int(any(finding.severity == "severe" for finding in found))

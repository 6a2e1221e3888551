"""``analyzer export``: the tables of a run as files that other programs read."""

from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir
from analyzer.cli.planned import not_built
from analyzer.errors import AnalyzerError

__all__ = ["export"]

_FORMATS = ("csv", "tensorboard")


def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, a name under --runs-dir, or latest.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="A new or empty folder.")
    ],
    format_: Annotated[
        str, typer.Option("--format", metavar="csv|tensorboard", help="What to write.")
    ] = "csv",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write the tables of a run: one CSV file each, every number in full precision.

    Missing values are empty cells; NaN, inf and -inf are written as such. Text that a spreadsheet
    would take for a formula gets an apostrophe in front.

    \b
    Example:
        analyzer export latest --format csv -o tables
    """  # noqa: D301 -- click reads the control character
    if format_ not in _FORMATS:
        raise AnalyzerError(
            f"--format is {format_!r}; expected one of {', '.join(_FORMATS)}. Try --format csv."
        )
    if format_ == "tensorboard":
        raise not_built("export --format tensorboard")

    from analyzer.cli.csv_export import export_csv
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    opened = open_run(resolve_run(run, runs_dir))
    _check_folder(output)
    for name, rows in export_csv(opened, output):
        typer.echo(f"{output / name}: {rows:,} rows")


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something already, or a file in its place."""
    if folder.exists() and not folder.is_dir():
        raise AnalyzerError(
            f"-o '{folder}' is a file; expected a new or empty folder. Name another one."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise AnalyzerError(
            f"-o '{folder}' holds files already; expected a new or empty folder, since nothing is "
            "overwritten. Name another one."
        )

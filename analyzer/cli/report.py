"""``analyzer report``: what a run, a pair or several seeds show, as a file that anyone can open."""

from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir
from analyzer.errors import AnalyzerError

__all__ = ["report"]


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders, names under --runs-dir, or latest."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.html", help="Default: <run>-report.html."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Write every figure for a paper."),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option("--tables", metavar="DIR", help="Write tables as LaTeX, Markdown and CSV."),
    ] = None,
    width: Annotated[
        str,
        typer.Option(
            "--width", metavar="VENUE", help="icml, neurips, cvpr, ieee, acl, or such as 3.25in."
        ),
    ] = "icml",
    format_: Annotated[
        str, typer.Option("--format", metavar="LIST", help="Some of pdf,svg,png.")
    ] = "pdf",
    style: Annotated[
        Path | None,
        typer.Option("--style", metavar="FILE", help="A matplotlib style file for the figures."),
    ] = None,
    anonymous: Annotated[
        bool,
        typer.Option("--anonymous", help="Leave out names, paths, commits, times and machines."),
    ] = False,
    template: Annotated[
        Path | None,
        typer.Option("--template", metavar="DIR", help="Files that replace wording, look, logo."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a report that opens anywhere without a network; figures and tables for a paper.

    One run, a plain and a residual run, or several seeds of them: runs that differ by their seed
    only are put together, with mean and spread.

    \b
    Example:
        analyzer report latest
        analyzer report runs/mine-plain runs/mine -o report.html
        analyzer report latest --figures figures --width icml --format pdf,svg --tables tables
    """  # noqa: D301 -- click reads the control character
    from analyzer.storage.catalog import resolve_run

    paths = [resolve_run(run, runs_dir) for run in runs]
    _check_file(output)
    inches, formats = _figure_options(width, format_, style)

    from analyzer.reports.html import write_report
    from analyzer.reports.paper import write_figures
    from analyzer.reports.story import story_of
    from analyzer.reports.tables import write_tables

    story = story_of(paths, anonymous=anonymous)
    target = output or Path(f"{paths[0].resolve().name}-report.html")
    if anonymous and output is None:
        target = Path("anonymous-report.html")
    write_report(story, target, template=template)
    size = target.stat().st_size / 2**20
    typer.echo(f"{target}: {_counted(len(list(story.figures)), 'figure')}, {size:.1f} MiB")
    if figures is not None:
        made = write_figures(story, figures, width=inches, formats=formats, style=style)
        typer.echo(f"{figures}: {_counted(len(made), 'figure')}, each with its CSV")
    if tables is not None:
        written = write_tables(story, tables)
        typer.echo(f"{tables}: {_counted(len(written) // 3, 'table')} as LaTeX, Markdown and CSV")
    _name_the_twin(paths)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _figure_options(width: str, formats: str, style: Path | None) -> tuple[float, tuple[str, ...]]:
    """The options of figures, refused before anything slow."""
    from analyzer.reports.paper import formats_in, paper_style, width_in_inches

    if style is not None:
        with paper_style(file=style):
            pass
    return width_in_inches(width), formats_in(formats)


def _check_file(output: Path | None) -> None:
    """Refuse a folder in the place of the report."""
    if output is not None and output.is_dir():
        raise AnalyzerError(
            f"-o '{output}' is a folder; expected a file to write. Try -o {output / 'report.html'}."
        )


def _name_the_twin(paths: list[Path]) -> None:
    """Say so where the plain twin of a single run lies beside it."""
    if len(paths) != 1:
        return
    name = paths[0].resolve().name
    twins = [f"{name}-plain"]
    if name.endswith("-residual"):
        twins.append(f"{name.removesuffix('-residual')}-plain")
    for twin in (paths[0].parent / twin for twin in twins):
        if (twin / "run.json").is_file():
            typer.echo(f"Its plain twin is beside it: analyzer report {twin} {paths[0]}")
            return

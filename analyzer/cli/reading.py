"""The commands that read runs and write for people and other programs; nothing here judges them."""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.cli import AsJson, RunName, RunsDir
from analyzer.errors import AnalyzerError

if TYPE_CHECKING:
    from analyzer.storage.catalog import RunSummary

__all__ = ["dashboard", "report", "runs", "show"]


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The folder that holds the runs. Default: $ANALYZER_RUNS or runs."
        ),
    ] = None,
    json: AsJson = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the verdict, for which tables are read.")
    ] = False,
) -> None:
    """List runs, the newest first: name, status, steps, layers, joins, loss, verdict, age.

    The loss is that of the last recorded step; the verdict is healthy, or the worst of the run's
    findings, or not judged where nothing was measured, it failed, files are damaged or lost, or it
    is so large that only analyzer diagnose judges it. A run that cannot be read is listed with the
    reason, and one of which steps or files were lost with what is missing.

    \b
    Example:
        analyzer runs
        analyzer runs experiments --json
    """  # noqa: D301 -- click reads the control character
    from analyzer.cli.terminal import json_text
    from analyzer.storage.catalog import runs_in
    from analyzer.storage.remote import local
    from analyzer.storage.run import open_run

    where = local(folder or os.environ.get("ANALYZER_RUNS") or "runs")
    try:
        listed = runs_in(where)
        if where.exists() and not where.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise AnalyzerError(
            f"'{where}' cannot be read ({error.strerror}); expected a folder of runs. Name another."
        ) from error
    found = [run.completed(open_run) for run in listed]
    verdicts = [None if quick else _verdict_of(run) for run in found]
    if json:
        fields = [_fields(run, word) for run, word in zip(found, verdicts, strict=True)]
        typer.echo(json_text(fields))
    else:
        _print_runs(where, found, verdicts)


def _verdict_of(run: "RunSummary") -> str:
    """``healthy``, or the code of the worst finding; ``not judged`` where it cannot be read."""
    from analyzer.analysis.findings import UNJUDGED, findings_in_list, health
    from analyzer.storage.run import open_run

    if run.problem is not None:
        return UNJUDGED
    try:
        found = findings_in_list(lambda: open_run(run.path))
        return UNJUDGED if found is None else health(found)
    except (AnalyzerError, OSError, ValueError, KeyError):
        return UNJUDGED


def _fields(run: "RunSummary", verdict: str | None) -> dict[str, object]:
    return {
        "name": run.name,
        "path": os.fsencode(run.path).decode(errors="backslashreplace"),
        "status": run.status,
        "steps": run.steps,
        "layers": run.layers,
        "joins": run.joins,
        "loss": run.loss,
        "verdict": verdict,
        "created": run.created,
        "age_seconds": run.age,
        "problem": run.problem,
        "incomplete": list(run.incomplete),
    }


def _print_runs(folder: Path, runs: Sequence["RunSummary"], verdicts: Sequence[str | None]) -> None:
    """Print the table of runs, then the reason of each that cannot be read."""
    from rich.table import Table
    from rich.text import Text

    from analyzer.analysis.numerals import age_text
    from analyzer.cli.terminal import console, number, printable, signs, table_box

    screen, marks = console(), signs()
    if not runs:
        seen = "holds no run" if folder.is_dir() else "does not exist"
        screen.print(
            f"No runs: the folder '{printable(str(folder), 300)}' {seen}; looked for folders with "
            "a run.json in it. Make a run with: analyzer record train.py",
            soft_wrap=True,
        )
        return
    table = Table(box=table_box(), pad_edge=False, show_edge=False)
    # The only one that gives way where a terminal is narrow.
    table.add_column("name", overflow="ellipsis")
    table.add_column("status", no_wrap=True)
    for name in ("steps", "layers", "joins", "loss", "verdict", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for run, verdict in zip(runs, verdicts, strict=True):
        counts = (run.steps, run.layers, run.joins)
        cells = [
            printable(run.name, 40),
            f"{run.status}, incomplete" if run.incomplete else run.status,
            *(marks.missing if count is None else f"{count:,}" for count in counts),
            number(run.loss, marks.missing),
            verdict or marks.missing,
            marks.missing if run.age is None else age_text(run.age),
        ]
        table.add_row(*map(Text, cells))
    screen.print(table)
    for run in runs:
        for reason in (*run.incomplete, *([] if run.problem is None else [run.problem])):
            text = f"{printable(run.name, 40)}: {printable(reason, 300)}"
            screen.print(text, soft_wrap=True)


def show(
    run: RunName,
    step: Annotated[
        str, typer.Option("--step", metavar="N|first|last", help="The recorded step to draw.")
    ] = "last",
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="REGEX", help="Draw and list only layers that match."),
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
    from analyzer.cli.run_text import print_run
    from analyzer.cli.terminal import console
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    print_run(open_run(resolve_run(run, runs_dir)), step, layers, console())


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Run folders, names under --runs-dir, or latest."),
    ] = None,
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
            "--width",
            metavar="VENUE",
            help="icml, neurips, cvpr, ieee, acl, or a length such as 3.25in.",
        ),
    ] = "icml",
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="LAYOUT",
            help="What the figures show: twin (a pair), seeds (mean and spread) or single (a run).",
        ),
    ] = None,
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
    lesson: Annotated[
        bool, typer.Option("--lesson", help="Write the lesson on shortcuts instead; needs no RUN.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a report that opens anywhere without a network; figures and tables for a paper.

    One run, a plain and a residual run, or several seeds of them: runs that differ only by their
    seed are put together, with mean and spread. Of a study: what it shows by depth, then its
    deepest networks.

    \b
    Example:
        analyzer report latest
        analyzer report runs/mine-plain runs/mine -o report.html
        analyzer report runs/study-0
        analyzer report latest --figures figures --width icml --format pdf,svg --tables tables
        analyzer report --lesson -o lesson.html
    """  # noqa: D301 -- click reads the control character
    from analyzer.cli.export import name_the_twin, write_the_lesson
    from analyzer.storage.catalog import resolve_runs
    from analyzer.storage.study import open_study, shown_points, study_named

    if lesson:
        return write_the_lesson(output, runs or [])
    if not runs:
        raise AnalyzerError("no RUN was named; expected one or more, latest, or --lesson.")
    studies = [*filter(None, (study_named(run, runs_dir) for run in runs))]
    if studies and len(runs) > 1:
        raise AnalyzerError(
            f"'{studies[0]}' is a study and {len(runs)} folders are given; expected it alone. "
            "Leave the others out."
        )
    if studies:
        paths = shown_points(open_study(studies[0]))
    else:
        paths = [path for run in runs for path in resolve_runs(run, runs_dir)]
    if output is not None and output.is_dir():
        raise AnalyzerError(
            f"-o '{output}' is a folder; expected a file to write. Try -o {output / 'report.html'}."
        )

    from analyzer.analysis.numerals import counted
    from analyzer.cli.terminal import writing
    from analyzer.reports.groups import LAYOUTS
    from analyzer.reports.html import write_report
    from analyzer.reports.paper import formats_in, paper_style, width_in_inches, write_figures
    from analyzer.reports.story import story_of
    from analyzer.reports.tables import write_tables
    from analyzer.texts import shown_name

    # Whatever is wrong with an option is said before anything slow.
    inches, formats = width_in_inches(width), formats_in(format_)
    with paper_style(file=style):
        pass
    if layout is not None and (layout not in LAYOUTS or figures is None):
        raise AnalyzerError(
            f"--layout is {layout!r}; expected {', '.join(LAYOUTS)}, together with --figures DIR. "
            "Leave it out to show one run of each program."
        )
    shown = studies[0] if studies else paths[0]
    name = "anonymous" if anonymous else shown_name(shown.resolve())
    option, target = ("-o", output) if output else ("the report", Path(f"{name}-report.html"))
    places = ((option, target, False), ("--figures", figures, True), ("--tables", tables, True))
    for named, place, is_folder in places:
        if place is not None:
            with writing(named, place, is_folder=is_folder):
                pass
    given = {"anonymous": anonymous, "of_study": bool(studies)}
    story = story_of(paths, **given)
    drawn = story_of(paths, layout=layout, **given) if layout else story
    with writing(option, target, is_folder=False):
        write_report(story, target, template=template)
    size = target.stat().st_size / 2**20
    typer.echo(f"{target}: {counted(len(list(story.figures)), 'figure')}, {size:.1f} MiB")
    if figures is not None:
        with writing("--figures", figures, is_folder=True):
            made = write_figures(drawn, figures, width=inches, formats=formats, style=style)
        typer.echo(f"{figures}: {counted(len(made), 'figure')}, each with its caption and CSV")
    if tables is not None:
        with writing("--tables", tables, is_folder=True):
            written = write_tables(story, tables)
        typer.echo(f"{tables}: {counted(len(written) // 3, 'table')} as LaTeX, Markdown and CSV")
    name_the_twin(paths)


def dashboard(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR|RUN...]",
            help="Folders of runs, runs, or a study. Default: $ANALYZER_RUNS or runs.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; beyond loopback a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="This port and no other. Default: the next free one from 8050.",
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address and open nothing.")
    ] = False,
    edit: Annotated[
        bool,
        typer.Option("--edit", help="Let its pages write notes.json: tags and notes."),
    ] = False,
) -> None:
    """Open the dashboard: where the gradient goes, live while a run is recorded.

    It reads run folders and changes nothing but, with --edit, tags and notes. Over SSH it prints
    the command that forwards the port.

    \b
    Example:
        analyzer dashboard
        analyzer dashboard runs/mine-plain runs/mine --port 8051
    """  # noqa: D301 -- click reads the control character
    _keep_memory_low()
    from analyzer.dashboard.app import create_app
    from analyzer.dashboard.library import source_named
    from analyzer.dashboard.security import is_loopback
    from analyzer.dashboard.server import leave, new_token, serve, ssh_line, take_port, warm_up

    folders = [source_named(name) for name in sources or ()]
    place, token = take_port(host, port), new_token(host)
    chosen = folders or [os.environ.get("ANALYZER_RUNS") or "runs"]
    app = create_app(chosen, port=place.port, token=token, edit=edit)
    server = serve(app.server, place)
    address = place.url(token)
    try:
        warm_up(app.server)
        if not is_loopback(host):
            typer.echo(_warning(host), err=True)
        typer.echo(f"dashboard at {address}  (Ctrl-C ends it)")
        forward = ssh_line(place.port)
        if forward is not None:
            typer.echo(f"from your own machine: {forward}")
        elif not no_browser:
            _open(address)
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("")
        leave()  # at once, whatever its threads do
    finally:
        server.server_close()


def _keep_memory_low() -> None:
    """Let freed memory go back to the system; call it before Arrow is loaded.

    A request runs in a thread of its own, and each thread's arena keeps what it once held: over
    runs of 1,000 layers that was 140 MiB.
    """
    import contextlib
    import ctypes

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    most_arenas = -8
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(most_arenas, 2)


def _warning(host: str) -> str:
    return (
        f"analyzer: WARNING: listening at '{host}', beyond this machine. Whoever can reach it and "
        "has the token in the address below can read these runs, and the connection is not "
        "encrypted. Leave --host out to listen to this machine alone."
    )


def _open(address: str) -> None:
    """Open a browser, where there is a screen for one; elsewhere a text browser would start."""
    import webbrowser

    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_screen or sys.platform in ("darwin", "win32"):
        webbrowser.open(address)

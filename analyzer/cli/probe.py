"""``analyzer probe``: heavier measurements on the checkpoints of a finished run."""

import contextlib
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyzer.cli import RunName, RunsDir
from analyzer.launch import launch_of_process
from analyzer.vocabulary.probes import PROBE_NAMES, PROBES, ProbeOption

if TYPE_CHECKING:
    from analyzer.replaying import ProbeOrder

__all__ = ["probe"]


def probe(
    run: RunName,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Probes: paths, landscape, ...")
    ],
    step: Annotated[
        str, typer.Option("--step", metavar="N|last|all", help="Which checkpoints.")
    ] = "last",
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Start the recorded program again, up to its first update."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --replay: start it without asking.")
    ] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Start it in this folder, not in a temporary one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Overwrite existing results.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="auto|ADDRESS", help="Let a Ray cluster help with landscapes."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, metavar="N", help="With --ray: tasks that help.")
    ] = 1,
    runs_dir: RunsDir = Path("runs"),
    **given: Any,
) -> None:
    """Run probes on the checkpoints of a finished run, on the first batch of its training.

    Built-in networks are built again. A training script or a model file is your program: it is
    started again only with --replay, after its command was shown and you agreed (or --yes); a
    script in a child process that ends before the first update, with the arguments after -- if
    there are any. Look at the program first where a run is not your own. A landscape that was
    stopped is resumed.

    Example:
        analyzer probe latest paths landscape --step last
        analyzer probe latest landscape --plane trajectory --mode exact --grid 31
        analyzer probe mine jacobian --step all --replay --yes -- --lr 0.1
        torchrun --nproc-per-node 2 -m analyzer probe mine landscape --mode exact
        analyzer probe mine landscape --mode exact --ray auto --workers 3
    """
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.remote import sent_back

    probes = [name for name in names if name in PROBE_NAMES]
    args = names[len(probes) :]
    if not probes or names[: len(probes)] != probes or (args and not replay):
        from analyzer.probes import probe_named

        probe_named(next((name for name in names if name not in PROBE_NAMES), ""))
    from analyzer.replaying import ProbeOrder

    options = {name: value for name, value in given.items() if value is not None}
    launch = launch_of_process()
    helps = launch is not None and launch.rank > 0
    order = ProbeOrder(tuple(probes), step, options, overwrite, helps)
    with sent_back(run) as copy:
        path = copy or resolve_run(run, runs_dir)
        _measure(path, order, args, (ray, workers), replay=replay, yes=yes, in_place=in_place)
    if not helps:
        _say(f"see it with: analyzer show {path if copy is None else run}")


def _measure(
    path: Path,
    order: "ProbeOrder",
    args: list[str],
    ray: tuple[str | None, int],
    *,
    replay: bool,
    yes: bool,
    in_place: bool,
) -> None:
    """Build or start the program of a run again, and measure."""
    from analyzer.errors import AnalyzerError
    from analyzer.replaying import Together, ranks_together
    from analyzer.replaying.programs import command_of, probe_run, replay_script
    from analyzer.storage.run import open_run

    opened = open_run(path)
    kind = opened.manifest.get("kind")
    if kind in _PROGRAMS:
        if not replay:
            raise AnalyzerError(
                f"run '{opened.name}' is of a {_PROGRAMS[kind]}; to probe it, that program has to "
                "run again, up to its first update: add --replay"
            )
        _agree(command_of(opened, args), yes=yes)
    elif replay:
        raise AnalyzerError(
            f"run '{opened.name}' is of no program that can be started again; leave --replay out"
        )
    is_shared = ray[0] is not None or launch_of_process() is not None
    if kind == "script" and is_shared:
        raise AnalyzerError(
            f"run '{opened.name}' is of a script, which one process alone can start again; "
            "expected a run of a built-in network or a model file with --ray and torchrun"
        )
    if kind == "script":
        replay_script(opened, order, args, in_place=in_place, say=_say)
        return
    with contextlib.ExitStack() as stack:
        together: Together = ranks_together
        if ray[0] is not None:
            from analyzer.studies.ray_cluster import landscape_helpers

            together = stack.enter_context(landscape_helpers(ray[0], order, ray[1]))
        probe_run(opened, order, _say, stack.enter_context(_progress()), together)


_PROGRAMS = {"script": "training script", "model file": "model file"}
"""The kinds of runs whose folder names code of the user."""


def _agree(command: list[str], *, yes: bool) -> None:
    """Show the command that a run names; go on only if the user wants it."""
    from analyzer.cli.terminal import printable
    from analyzer.errors import AnalyzerError

    words = [printable(shlex.quote(word), 1000) for word in command]
    _say(f"--replay runs, up to its first update: python {' '.join(words)}")
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise AnalyzerError(
            "nothing was run: there is no terminal to ask on; expected --yes, if it is to run"
        )
    print("analyzer: run it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AnalyzerError("nothing was run; expected y to go on")


def _parameter(option: ProbeOption) -> inspect.Parameter:
    """The parameter of the command for an option of a probe; None has the probe's default."""
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            option.type | None,
            typer.Option(option.flag, metavar=option.metavar, help=option.help),
        ],
    )


# The options of the command are those of the probes, so that a new one is declared once.
_written = inspect.signature(probe)
_options = {option.name: option for row in PROBES for option in row.options}
vars(probe)["__signature__"] = _written.replace(
    parameters=[
        *(one for one in _written.parameters.values() if one.kind is not one.VAR_KEYWORD),
        *map(_parameter, _options.values()),
    ]
)


def _say(sentence: str) -> None:
    print(f"analyzer: {sentence}", file=sys.stderr)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on a terminal; None elsewhere, where sentences say how far it is."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield advance

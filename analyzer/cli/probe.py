"""``analyzer probe``: heavier measurements on the checkpoints of a finished run."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyzer.cli import RunsDir

if TYPE_CHECKING:
    from analyzer.probes.landscape.planes import LandscapeRequest

__all__ = ["probe"]


def probe(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: folder, name or latest.")],
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Probes: paths, landscape, ...")
    ],
    step: Annotated[
        str, typer.Option("--step", metavar="N|last|all", help="Which checkpoints.")
    ] = "last",
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Start the recorded script again, up to its first update."),
    ] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Start it in this folder, not in a temporary one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Measure anew what the run holds already.")
    ] = False,
    plane: Annotated[
        str | None,
        typer.Option(
            "--plane",
            metavar="random|trajectory|N|N,M",
            help="Random directions; the principal plane of the checkpoints; the line to the "
            "checkpoint of step N; the plane through those of steps N and M.",
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="N|NxM",
            help="Points along the axes; Nx1 for a line.",
        ),
    ] = None,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW:HIGH[,LOW:HIGH]",
            help="Coordinates of both axes, or of each.",
        ),
    ] = None,
    normalization: Annotated[
        str | None,
        typer.Option(
            "--normalization",
            metavar="filter|layer|none",
            help="Of random directions.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--direction-seed", help="Of random directions."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="fast|exact",
            help="Evaluate as few points as the tolerance allows, or all.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Of the fast mode, over the range of the loss.",
        ),
    ] = None,
    batch_norm: Annotated[
        str | None,
        typer.Option(
            "--batch-norm",
            metavar="keep|recompute",
            help="Running statistics: the model's, or estimated at every point.",
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            metavar="L",
            help="Add L/2 times the squared norm of the weights to the loss.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="Evaluate no more after this time."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Run probes on the checkpoints of a finished run, on the first batch of its training.

    Model files and built-in networks are built again. A training script is started again only
    with --replay, in a child process that ends before the first update; its arguments can be
    given anew after --. A landscape that was stopped goes on with the points that are left.

    Example:
        analyzer probe latest paths landscape --step last
        analyzer probe latest landscape --plane trajectory --mode exact --grid 31
        analyzer probe mine jacobian --step all --replay -- --lr 0.1
    """
    from analyzer.errors import AnalyzerError
    from analyzer.probes.registry import PROBE_NAMES, probe_named
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    probes = [name for name in names if name in PROBE_NAMES]
    args = names[len(probes) :]
    if not probes or names[: len(probes)] != probes or (args and not replay):
        probe_named(next((name for name in names if name not in PROBE_NAMES), ""))
    request = _request(
        plane=plane,
        grid=grid,
        range=range_,
        normalization=normalization,
        seed=seed,
        mode=mode,
        tolerance=tolerance,
        batch_norm=batch_norm,
        weight_decay=weight_decay,
        seconds=seconds,
    )
    opened = open_run(resolve_run(run, runs_dir))

    from analyzer.replaying import ProbeOrder, probe_run, replay_script

    order = ProbeOrder(tuple(probes), step, request, overwrite)
    if not replay:
        with _progress() as progress:
            probe_run(opened, order, _say, progress)
    elif opened.manifest.get("kind") != "script":
        raise AnalyzerError(f"run '{opened.name}' is not of a training script; leave --replay out")
    else:
        replay_script(opened, order, args, in_place=in_place, say=_say)
    _say(f"see it with: analyzer show {opened.path}")


def _request(**options: Any) -> "LandscapeRequest":
    """The landscape that the given options describe."""
    from analyzer.errors import AnalyzerError
    from analyzer.probes.landscape.planes import LandscapeRequest

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return LandscapeRequest(**given)
    except ValueError as error:
        raise AnalyzerError(str(error)) from error


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

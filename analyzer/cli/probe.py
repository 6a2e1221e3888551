"""``analyzer probe``: heavier measurements on the checkpoints of a finished run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir

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
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Run probes on the checkpoints of a finished run, on the first batch of its training.

    Model files and built-in networks are built again. A training script is started again only
    with --replay, in a child process that ends before the first update; its arguments can be
    given anew after --.

    Example:
        analyzer probe latest paths landscape --step last
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
    opened = open_run(resolve_run(run, runs_dir))

    def say(sentence: str) -> None:
        print(f"analyzer: {sentence}", file=sys.stderr)

    from analyzer.replaying import probe_run, replay_script

    if not replay:
        probe_run(opened, probes, step, say)
    elif opened.manifest.get("kind") != "script":
        raise AnalyzerError(f"run '{opened.name}' is not of a training script; leave --replay out")
    else:
        replay_script(opened, probes, step, args, in_place=in_place, say=say)
    print(f"analyzer: see it with: analyzer show {opened.path}", file=sys.stderr)

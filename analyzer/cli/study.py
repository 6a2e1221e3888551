"""``analyzer study``: many recorded runs by one plan."""

import inspect
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyzer.cli import RunsDir
from analyzer.cli.record import parameter_of
from analyzer.errors import AnalyzerError
from analyzer.launch import url_of
from analyzer.options import (
    MODEL_FILE,
    RECORDER,
    ZOO,
    OptionError,
    RecordOptions,
    options_of,
    with_parameters,
)

if TYPE_CHECKING:
    from analyzer.storage.study import Study
    from analyzer.studies.plan import Plan

__all__ = ["study"]

# What the axes say, and what a study has to itself.
_NOT_OF_A_STUDY = ("skip_scale", "resume", "first_step", "lr")
_LISTS = {"depths": int, "widths": int, "lrs": float, "norms": str, "initializations": str}


def _text(metavar: str, help_: str) -> Any:
    return typer.Option(metavar=metavar, help=help_)


def study(
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGS...]", help="Arguments that all points of a script have."),
    ] = None,
    model: Annotated[
        str | None,
        _text(
            "zoo:FAMILY|FILE",
            "zoo:resnet (default), zoo:mlp, zoo:simple, or a file with build_model(**point).",
        ),
    ] = None,
    script: Annotated[str | None, _text("FILE", "A training script, with --grid.")] = None,
    study_: Annotated[
        Path | None,
        typer.Option(
            "--study",
            metavar="DIR",
            help="Folder of the study; one that exists is continued. Default: runs/study-<k>.",
        ),
    ] = None,
    depths: Annotated[str | None, _text("LIST", "As in 8,20,56.")] = None,
    shortcuts: Annotated[
        str | None,
        _text(
            "LIST",
            "Some of on, off and skip scales, as 0,0.5,1; or each: one join removed at a time. "
            "Default: on,off.",
        ),
    ] = None,
    norms: Annotated[str | None, _text("LIST", "Some of batch, layer, none.")] = None,
    initializations: Annotated[str | None, _text("LIST", "Some of he, default.")] = None,
    widths: Annotated[str | None, _text("LIST", "As in 16,64.")] = None,
    lrs: Annotated[str | None, _text("LIST", "Learning rates, as in 0.1,0.01.")] = None,
    seeds: Annotated[str, _text("N|LIST", "How many, from 0 on; or which, as in 3,5,7.")] = "1",
    grid: Annotated[
        list[str] | None,
        _text(
            '"--NAME LIST"',
            'An argument of the script or of build_model: "--lr 0.1,0.01"; repeatable.',
        ),
    ] = None,
    no_probes: Annotated[
        bool, typer.Option("--no-probes", help="Without probes: some claims stay open.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            help="Points at a time. Default: one for each processor.",
        ),
    ] = None,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="Run failed points again; what they left is kept in failed/."),
    ] = False,
    time_limit: Annotated[
        float | None,
        typer.Option(
            "--time-limit",
            min=1,
            metavar="SECONDS",
            help="End a point that takes longer; it has failed then. Default: none.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the points and, from a short trial, time and disk; run nothing.",
        ),
    ] = False,
    ray: Annotated[
        str | None,
        _text(
            "auto|ADDRESS", "Run the points on a Ray cluster; the study's folder must be shared."
        ),
    ] = None,
    cpus_per_point: Annotated[
        int, typer.Option("--cpus-per-point", min=1, metavar="N", help="With --ray.")
    ] = 1,
    gpus_per_point: Annotated[
        float, typer.Option("--gpus-per-point", min=0, metavar="X", help="With --ray.")
    ] = 0,
    coordinate_check: Annotated[
        bool,
        typer.Option(
            "--coordinate-check",
            help="Instead of runs: how activations, gradients and updates of the first steps grow "
            "with --widths, by layer of a --model file; exit code 1 where a layer differs, 3 "
            "where more --seeds are needed to tell.",
        ),
    ] = False,
    parametrization: Annotated[
        str,
        _text("standard|maximal-update", "What --coordinate-check expects."),
    ] = "standard",
    runs_dir: RunsDir = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    **given: Any,
) -> int:
    """Run every combination of depths, shortcuts, norms, widths, seeds and learning rates.

    Each point is a recorded run in the study's folder. The same command again continues a study
    that was stopped or killed: what has been run is not run twice. Exit code 1 when points failed.

    \b
    Example:
        analyzer study --depths 8,20,56 --seeds 3
        analyzer study --study mine --depths 8,20 --shortcuts on,off,0.5 --norms batch,none
        analyzer study --model model.py --depths 4,8 --widths 32,64 --steps 300
        analyzer study --script train.py --grid "--lr 0.1,0.01" --seeds 3 -- --epochs 2
        analyzer study --depths 8,20,56 --dry-run
        analyzer study --study runs/study-0 --retry
        analyzer study --coordinate-check --model model.py --widths 64,128,256,512
    """  # noqa: D301 -- click reads the control character
    if coordinate_check:
        from analyzer.cli.study_text import print_coordinate_check

        return print_coordinate_check(model, widths, depths, seeds, parametrization)
    if not hasattr(os, "fork"):
        raise AnalyzerError(
            "a study starts its points by fork, which this system lacks; use Linux or macOS"
        )
    if time_limit is not None and not math.isfinite(time_limit):
        raise AnalyzerError(
            f"--time-limit is {time_limit}; expected a number of seconds. Leave it out for none."
        )
    from analyzer.cli.study_text import print_dry_run, print_result
    from analyzer.storage.study import is_study
    from analyzer.studies.plan import PROBES

    lists = {
        "depths": depths,
        "widths": widths,
        "lrs": lrs,
        "norms": norms,
        "initializations": initializations,
    }
    probes = tuple(given.pop("probe") or (() if no_probes else PROBES))
    folder = study_ if study_ is not None else _free(runs_dir)
    plan = None
    is_asked = any(x is not None for x in (*lists.values(), model, script, shortcuts)) or grid
    try:
        options = RecordOptions(probe=probes, **given)
        if is_asked or not is_study(folder):
            plan = _planned(model, script, lists, shortcuts, seeds, grid or [], args or [], options)
    except OptionError as error:
        raise AnalyzerError(error.on_command_line) from error
    if dry_run:
        print_dry_run(plan, folder, workers)
        return 0
    done = _run(
        plan, folder, workers, retry, time_limit, (ray, cpus_per_point, gpus_per_point), quiet
    )
    return print_result(done)


vars(study)["__signature__"] = with_parameters(
    inspect.signature(study),
    (
        parameter_of(one)
        for scope in (RECORDER, MODEL_FILE)
        for one in options_of(scope)
        if one.name not in _NOT_OF_A_STUDY
    ),
)


def _free(runs_dir: Path) -> Path:
    from analyzer.storage.remote import local

    places = (runs_dir / f"study-{k}" for k in itertools.count())
    return next(one for one in places if not _holds_something(local(one, may_be_empty=True)))


def _holds_something(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _planned(
    model: str | None,
    script: str | None,
    lists: Mapping[str, str | None],
    shortcuts: str | None,
    seeds: str,
    grid: Sequence[str],
    args: Sequence[str],
    options: RecordOptions,
) -> "Plan":
    """The plan that the options of the command ask for."""
    from analyzer.cli.study_text import grid_axis, values
    from analyzer.studies.plan import plain_name, product

    if model is not None and script is not None:
        raise AnalyzerError(
            f"--model {model} is given with --script {script}; expected one. Leave one out."
        )
    target = script or model or f"{ZOO}resnet"
    if not target.startswith(ZOO) and not os.path.isfile(target):
        raise AnalyzerError(
            f"'{target}' is no file; expected a Python file or zoo:FAMILY. Check the path."
        )
    asked = {name: text for name, text in lists.items() if text is not None}
    if script is not None and asked:
        name = next(iter(asked))
        raise AnalyzerError(
            f"--{name} is given with --script {script}, whose arguments are its own; expected "
            f'--grid "--{name.removesuffix("s")} {asked[name]}"'
        )
    if args and script is None:
        raise AnalyzerError(f"'{' '.join(args)}' belongs to no --script; leave it out")
    if grid and target.startswith(ZOO):
        raise AnalyzerError(
            f"--grid {grid[0]!r} is given for {target}; expected it with --script or a --model file"
        )
    axes = {
        name.removesuffix("s"): values(text, f"--{name}", _LISTS[name])
        for name, text in asked.items()
    }
    pairs = [grid_axis(text, is_script=script is not None) for text in grid]
    more = dict(pairs)
    if len(set(map(plain_name, more))) < len(pairs):
        raise AnalyzerError(
            f"--grid names an argument twice in {', '.join(map(repr, grid))}; expected all of its "
            'values at once, as in "--lr 0.1,0.01"'
        )
    numbers = values(seeds, "--seeds", int)
    if min(numbers) < ("," not in seeds):
        raise AnalyzerError(
            f"--seeds is {seeds!r}; expected how many, from 1 up, or which, from 0 up, as in 3,5,7"
        )
    usual = "" if script is not None else "on,off"
    given = shortcuts if shortcuts is not None else usual
    made: dict[str, Any] = {
        **axes,
        "seed": range(numbers[0]) if "," not in seeds else numbers,
        "grid": more,
        "options": options,
        "args": args,
        "is_script": script is not None,
    }
    if given != "each":
        plan = product(target, shortcuts=values(given, "--shortcuts") if given else (), **made)
    else:
        from analyzer.studies.trial import joins_of

        plan = _one_join_at_a_time(product(target, shortcuts=("on",), **made), joins_of, made)
    return plan


def _one_join_at_a_time(whole: "Plan", joins_of: Any, made: dict[str, Any]) -> "Plan":
    """The plan of the whole networks, and of each with one of its joins removed."""
    from analyzer.studies.plan import Plan, plain_name, product

    names: dict[str, list[str]] = {}
    points: list[Any] = []
    for point in whole.points:
        network = {k: v for k, v in point.arguments.items() if k not in ("seed", "lr")}
        key = repr(network)
        if key not in names:
            names[key] = joins_of(point)
        one = {k: [point.arguments[k]] for k in made if k in point.arguments and k != "seed"}
        single = {**made, **one}
        single["grid"] = {k: [point.arguments[plain_name(k)]] for k in made["grid"]}
        if "seed" not in map(plain_name, made["grid"]):
            single["seed"] = [point.arguments["seed"]]
        removed = [f"without {name}" for name in names[key]]
        points += product(whole.target, shortcuts=("on", *removed), **single).points
    return Plan(whole.target, tuple(points), whole.is_script)


def _run(
    plan: "Plan | None",
    folder: Path,
    workers: int | None,
    retry: bool,
    limit: float | None,
    ray: Any,
    quiet: bool,
) -> "Study":
    from analyzer.cli.study_text import progress
    from analyzer.studies.running import run_study

    runner = None
    address, cpus, gpus = ray
    if address is not None:
        from analyzer.studies.ray_cluster import RayCluster

        cluster = RayCluster(address, cpus=cpus, gpus=gpus, url=url_of(folder), limit=limit)
        runner = lambda _: cluster  # noqa: E731
    try:
        with progress(quiet) as on_change:
            return run_study(
                plan,
                folder,
                workers=workers,
                retry=retry,
                limit=limit,
                runner=runner,
                on_change=on_change,
            )
    except OSError as error:
        raise AnalyzerError(
            f"study '{folder}' cannot go on ({error}); what has been run is kept. Mend what is "
            "named, and give the same command again"
        ) from error

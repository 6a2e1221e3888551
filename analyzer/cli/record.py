"""``analyzer record``: run a training script, or train a model file, under the recorder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir
from analyzer.cli.planned import not_built
from analyzer.cli.record_options import ZOO, RecordOptions, folders_of
from analyzer.errors import AnalyzerError, RunExistsError, ScriptError

__all__ = ["record"]

_MODEL = "Model files only"
_LATER = "Not built yet"


def record(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A script, a model file, or zoo:NAME.")
    ],
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="All that follows TARGET belongs to the script."),
    ] = None,
    as_module: Annotated[
        bool, typer.Option("-m", help="TARGET is a module, run as 'python -m' does.")
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Folder of the run, new. Default: the next free runs/<target>-<k>.",
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    every: Annotated[
        int, typer.Option("--every", metavar="N", help="Record layers at each N-th step.")
    ] = 1,
    columns: Annotated[
        str, typer.Option("--columns", metavar="all|norms", help="What is recorded of a tensor.")
    ] = "all",
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="REGEX", help="Record only layers with such a name."),
    ] = None,
    skip_layers: Annotated[
        str | None,
        typer.Option("--skip-layers", metavar="REGEX", help="Leave out layers with such a name."),
    ] = None,
    splits_every: Annotated[
        int,
        typer.Option(
            "--splits-every", metavar="N", help="Split gradients at each N-th recorded step."
        ),
    ] = 10,
    updates_every: Annotated[
        int,
        typer.Option(
            "--updates-every", metavar="N", help="Measure updates at each N-th recorded step."
        ),
    ] = 10,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            "--checkpoint-every",
            metavar="N",
            help="Save the weights each N steps. Default: first and last step.",
        ),
    ] = None,
    stop_after: Annotated[
        int | None,
        typer.Option(
            "--stop-after", metavar="N", help="End the training cleanly after N steps, exit 0."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            help="Default 0 for model files; a seed that the script sets wins.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Write nothing to stderr but what the script writes.")
    ] = False,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help=f"{_MODEL}: number of updates.")
    ] = 200,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="digits|synthetic|cifar10:DIR", help=f"{_MODEL}: what to train on."
        ),
    ] = "digits",
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", help=f"{_MODEL}: samples in a batch.")
    ] = 64,
    optimizer: Annotated[
        str, typer.Option("--optimizer", metavar="sgd|adam|adamw", help=f"{_MODEL}.")
    ] = "sgd",
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="X", help=f"{_MODEL}. Default: as usual for the optimizer."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help=f"{_MODEL}: auto, cpu, cuda, mps, ...")
    ] = "auto",
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume", metavar="RUN", help=f"{_LATER}: a training that goes on after a stop."
        ),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            metavar="NAME[:EVERY]",
            help="A heavier measurement at the first, each EVERY-th and the last step; repeatable.",
        ),
    ] = None,
    skip_scale: Annotated[
        float | None,
        typer.Option(
            "--skip-scale", metavar="A", help="Multiply every detected shortcut by A; 0 removes it."
        ),
    ] = None,
    twin: Annotated[
        bool,
        typer.Option("--twin", help="Record a twin without shortcuts first, into DIR-plain."),
    ] = False,
    rescale: Annotated[
        bool, typer.Option("--rescale", help="Give the twin's branches the original's scale.")
    ] = False,
    fail_on: Annotated[
        str | None,
        typer.Option("--fail-on", metavar="severe", help="Exit 1 when such a finding appears."),
    ] = None,
) -> Callable[[], int]:
    """Run a training script, or train a model file, under the recorder.

    The script runs as 'python TARGET ARGS...' would: same arguments, output, traceback, exit code
    and trained weights. A file that trains nothing and defines 'model' or 'build_model()' is
    trained with the built-in loop.

    Example:
        analyzer record train.py --lr 0.1
        analyzer record --every 10 --run runs/mine -m package.train --epochs 3
        analyzer record --steps 100 --data digits model.py
        analyzer record zoo:resnet20
        analyzer record --twin --probe paths:100 train.py
    """
    if resume is not None:
        raise not_built("record --resume")
    try:
        options = RecordOptions(
            target=target,
            args=tuple(args or ()),
            as_module=as_module,
            run=run,
            runs_dir=runs_dir,
            every=every,
            columns=columns,
            layers=layers,
            skip_layers=skip_layers,
            splits_every=splits_every,
            updates_every=updates_every,
            checkpoint_every=checkpoint_every,
            stop_after=stop_after,
            seed=seed,
            quiet=quiet,
            steps=steps,
            data=data,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            device=device,
            probe=tuple(probe or ()),
            skip_scale=skip_scale,
            twin=twin,
            rescale=rescale,
            fail_on=fail_on,
        )
    except ValueError as error:
        raise AnalyzerError(str(error)) from error
    _check_target(options)
    for folder in folders_of(options):
        _check_run(folder)
    return lambda: _record(options)


def _record(options: RecordOptions) -> int:
    """Record; called without the parser's frames, so that the script's stack is short."""
    from analyzer.cli import session

    return session.record(options)


def _check_target(options: RecordOptions) -> None:
    """Refuse a target that is not there, before a run folder is made for it."""
    target = options.target
    if target.startswith(ZOO) and not options.as_module:
        if options.args:
            raise ScriptError(
                f"'{target}' is followed by '{' '.join(options.args)}'; a built-in network "
                "takes no arguments. Put options of the recording before it."
            )
    elif not options.as_module and not os.path.exists(target):
        raise ScriptError(
            f"script '{target}' not found in the working folder; expected a Python file, -m "
            "MODULE or zoo:NAME. Check the path; options of the recording stand before it."
        )


def _check_run(run: Path) -> None:
    """Refuse to write into a folder that exists, unless another rank of this launch made it."""
    is_first = os.environ.get("RANK", "0") in ("", "0")
    if is_first and os.path.lexists(run):
        raise RunExistsError(
            f"run folder '{run}' exists; a recording needs a new one and never overwrites. Choose "
            "another --run, or leave it out for the next free name."
        )

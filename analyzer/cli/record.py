"""``analyzer record``: run a training script, or train a model file, under the recorder."""

import contextlib
import inspect
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, replace
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from analyzer.cli import RunsDir
from analyzer.cli.processes import (
    command_of,
    interpreter_flags,
    record_at_url,
    resumed_url,
    run_process,
)
from analyzer.cli.script_session import ScriptSession
from analyzer.cli.session import (
    beside,
    existing_run,
    new_folder,
    options_from,
    resumed_folder,
)
from analyzer.ending import Ending
from analyzer.errors import AnalyzerError, ScriptError
from analyzer.launch import launch_of_process, url_of
from analyzer.options import (
    MODEL_FILE,
    ZOO,
    OptionError,
    RecordOptions,
    flag,
    options_of,
    with_parameters,
)

__all__ = ["parameter_of", "record", "record_text"]

_LAST_LINES = 12


def record(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A script, a model file, or zoo:NAME.")
    ],
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="Everything after TARGET belongs to the script."),
    ] = None,
    as_module: Annotated[
        bool, typer.Option("-m", help="TARGET is a module, run as 'python -m' does.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    **given: Any,
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
        analyzer record --twin --seeds 3 train.py
        analyzer record --skip-scale 'layer1=0,layer2=0.5' train.py
        analyzer record --nproc-per-node 2 train.py

    Options may also stand in the variable ANALYZER_OPTIONS, as for
    'torchrun --nproc-per-node 2 -m analyzer record train.py'.
    """
    given["probe"] = tuple(given["probe"] or ())
    given["skip_scale"] = _scale_from(given["skip_scale"])
    try:
        options = RecordOptions(
            target=target, args=tuple(args or ()), as_module=as_module, runs_dir=runs_dir, **given
        )
    except OptionError as error:
        raise AnalyzerError(error.on_command_line) from error
    except ValueError as error:
        raise AnalyzerError(str(error)) from error
    _check_target(options)
    if options.run is not None:
        for folder in itertools.chain(*_folders(options, options.run)):
            _check_run(folder)
    if options.resume is not None:
        if options.target.startswith(ZOO):
            raise AnalyzerError(
                f"--resume {options.resume} is given with {options.target}; expected a script with "
                "a checkpoint of its own. The built-in loop keeps none: record it again."
            )
        if resumed_url(options) is None:
            resumed_folder(options)
    asked = resumed_url(options) if options.resume else url_of(options.run or options.runs_dir)
    return lambda: _record(options) if asked is None else record_at_url(options)


def parameter_of(field: "Field[Any]") -> inspect.Parameter:
    """Return the parameter of a command for one option of a recording."""
    option, is_several = field.metadata["option"], field.type == tuple[str, ...]
    type_ = str | None if field.name == "skip_scale" else field.type
    prefix = "Model files only: " if option.scope == MODEL_FILE else ""
    info = typer.Option(flag(field.name), metavar=option.metavar, help=prefix + option.help)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if is_several else field.default,
        annotation=Annotated[list[str] | None if is_several else type_, info],
    )


def _scale_from(text: str | None) -> Any:
    """One number, or numbers by join from ``layer1=0,layer2=0.5``; other text as it is."""
    try:
        return None if text is None else float(text)
    except ValueError:
        pairs = list(re.finditer(r"([^=]+)=([^=,]+)(?:,|$)", text or ""))
        if "".join(pair[0] for pair in pairs) != text:
            return text
        numbers = {pair[1].strip(): _scale_from(pair[2]) for pair in pairs}
        return numbers if len(numbers) == len(pairs) else text


vars(record)["__signature__"] = with_parameters(
    inspect.signature(record), map(parameter_of, options_of())
)


def _folders(options: RecordOptions, run: Path) -> tuple[list[Path], list[Path]]:
    """The folders of the runs that are asked for, one for each seed, and of their twins."""
    first, count = options.seed or 0, options.seeds
    ends = [()] if count is None else [(seed,) for seed in range(first, first + count)]
    twins = [beside(run, "plain", *end) for end in ends if options.twin]
    return [beside(run, *end) for end in ends], twins


def _record_seeds(options: RecordOptions) -> int:
    """Record once for each seed, in processes; return the first exit code that is not 0."""
    base = options.run or new_folder(options, lambda run: itertools.chain(*_folders(options, run)))
    if options.run is None:
        with contextlib.suppress(OSError):  # made to keep its name
            base.rmdir()
    first, codes, (folders, twins) = options.seed or 0, [], _folders(options, base)
    for k, folder in enumerate(folders):
        one = replace(options, seeds=None, seed=first + k, run=folder)
        one = _record_twin(one, folder, twins[k]) if twins else one
        codes.append(run_process(command_of(one)))
    if not options.quiet:
        for line in _words_on_seeds(folders, twins):
            print(f"analyzer: {line}", file=sys.stderr)
    return next((code for code in codes if code), 0)


def _words_on_seeds(folders: Sequence[Path], twins: Sequence[Path]) -> list[str]:
    """How to compare the runs; and that they are the same, where the script sets its own seed."""
    from analyzer.storage.run_json import read_manifest

    lines, last = [], []
    for folder in folders:
        with contextlib.suppress(AnalyzerError):
            manifest = read_manifest(folder)
            last.append((manifest.get("first_batch"), manifest.get("last_loss")))
    if len(last) > 1 and len(set(last)) == 1 and last[0][1] is not None:
        lines.append("the runs are the same: the script sets its own seed. Let it take another one")
    if twins:
        sides = (",".join(map(str, side)) for side in (twins, folders))
        lines.append(f"explain: analyzer explain {' '.join(sides)}")
    return lines


def _record(options: RecordOptions) -> int:
    """Record; called without the parser's frames, so that the script's stack is short."""
    if options.seeds is not None:
        return _record_seeds(options)
    if not options.twin:
        return _record_alone(options)
    run = new_folder(options, lambda run: _folders(options, run)[1])
    return _record_alone(_record_twin(options, run, beside(run, "plain")), run)


def _record_alone(options: RecordOptions, run: Path | None = None) -> int:
    """Record what the options name; return the exit code, or end the process as the script would.

    Nothing heavy is imported before the script imports torch, so that the environment variables
    that it sets at its top act as they would without the recorder.

    Raises:
        ScriptError: If the target is neither a training script nor a model file.
        RunExistsError: If the run folder exists.
    """
    if options.nproc_per_node is not None:
        return _record_ranks(options, run)
    if options.target.startswith(ZOO):
        from analyzer.cli.training import train_zoo

        return train_zoo(options, run=run)
    session = ScriptSession(options, run)
    try:
        ending = session.run_script()
        if not _is_left_to_us(session, ending):
            session.last_words += _unused(options)
            session.end_script(ending)
            ending.leave()
        calls = session.discard()
        from analyzer.cli.training import train_model_file

        try:
            return train_model_file(options, session.run, ending.namespace)
        except Exception as error:
            if not (calls and calls.steps) or any((session.folder / "steps").glob("*")):
                raise
            session.keep_calls(calls, f"{type(error).__name__}: {error}")
            ending.leave()
    except AnalyzerError:
        session.remove_empty_folder()
        raise


def _unused(options: RecordOptions) -> list[str]:
    """That options of the built-in loop were given for a program that trains by itself."""
    given = [
        flag(field.name)
        for field in options_of()
        if field.metadata["option"].scope == MODEL_FILE
        and getattr(options, field.name) != field.default
    ]
    return given and [
        f"{', '.join(given)}: only for model files, and not used; what {options.target} itself is "
        "to read stands behind its name"
    ]


def _is_left_to_us(session: ScriptSession, ending: Ending) -> bool:
    """Whether the built-in loop is to train: the file came to its end and trained nothing."""
    if session.trained or session.has_started_programs or ending.exception is not None:
        return False
    if session.options.resume is not None:
        return False
    names = ending.namespace
    defines_model = callable(names.get("build_model")) or hasattr(names.get("model"), "parameters")
    return defines_model or not session.has_called


def _record_ranks(options: RecordOptions, run: Path | None) -> int:
    """Run the program under torchrun, each rank under a recorder; return torchrun's exit code."""
    if run is not None:
        with contextlib.suppress(OSError):  # made to keep its name: the first rank makes it
            run.rmdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--no-python"]
    number = ["--nproc-per-node", str(options.nproc_per_node)]
    program = command_of(replace(options, run=run or options.run, nproc_per_node=None), "-u")
    return run_process([sys.executable, *interpreter_flags(), *launcher, *number, *program])


def record_text(text: str) -> int:
    """Record by the options in a text of `options_text`: all that a process of ours does."""
    options = options_from(text)
    is_several = options.twin or options.seeds is not None
    try:
        return (_record if is_several else _record_alone)(options)
    except AnalyzerError as error:
        print(f"analyzer: {error}", file=sys.stderr)
        return 2


def _record_twin(options: RecordOptions, run: Path, plain: Path) -> RecordOptions:
    """Record the twin into its folder, ``plain``; return the options of the run itself.

    The twin is the same program without shortcuts, with the same seed, in its own process. What it
    prints goes to stderr, each line after ``analyzer: twin:``, since stdout is the run's alone;
    where it fails, its last lines are repeated after the run.
    """
    import tempfile

    from analyzer.cli.terminal import lines_shown

    seed = 0 if options.seed is None else options.seed
    twin = replace(
        options,
        run=plain,
        seed=seed,
        twin=False,
        skip_scale=0.0,
        twin_of=run.name,
        quiet=False,
        fail_on=None,
    )
    with tempfile.TemporaryFile() as stderr:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": stderr}
        with lines_shown("analyzer: twin: ", options.quiet) as streams["stdout"]:
            code = run_process(command_of(twin), lambda: _stop_twin(run, stderr), **streams)
        words = _words(code, stderr)
    return replace(
        options,
        run=run,
        seed=seed,
        twin=False,
        rescale=False,
        twin_name=plain.name,
        twin_words=words,
    )


def _stop_twin(run: Path, stderr: IO[bytes]) -> None:
    """Leave no empty folder of the run itself; repeat what the twin said of what is on disk."""
    with contextlib.suppress(OSError):
        run.rmdir()
    for line in _lines(stderr):
        if line.startswith("analyzer: recorded"):
            print(line, file=sys.stderr, flush=True)


def _words(code: int, stderr: IO[bytes]) -> tuple[str, ...]:
    """Return what is to be said of a twin that failed: its exit code and its last lines."""
    if code == 0:
        return ()
    lines = _lines(stderr)
    first = f"the twin without shortcuts ended with exit code {code}; it said last:"
    return (first, *[line.removeprefix("analyzer: ") for line in lines[-_LAST_LINES:]])


def _lines(stderr: IO[bytes]) -> list[str]:
    stderr.seek(0)
    return stderr.read().decode("utf-8", "replace").splitlines()


def _check_target(options: RecordOptions) -> None:
    """Refuse a target that is not there, before a run folder is made for it."""
    target = options.target
    if target.startswith(ZOO) and not options.as_module:
        if options.nproc_per_node is not None:
            raise ScriptError(
                f"--nproc-per-node is given for '{target}'; expected a script: the built-in loop "
                "trains in one process. Leave the option out."
            )
        if options.args:
            raise ScriptError(
                f"'{target}' is followed by '{' '.join(options.args)}'; a built-in network "
                "takes no arguments. Put options of the recording before it."
            )
    elif not options.as_module and not os.path.exists(target):
        raise ScriptError(
            f"script '{target}' not found in the working folder; expected a Python file, -m "
            "MODULE or zoo:NAME. Check the path; options of the recording go before it."
        )


def _check_run(run: Path) -> None:
    """Refuse to write into a folder that exists, unless another rank of this launch made it."""
    if launch_of_process() is None and os.path.lexists(run):
        raise existing_run(run)

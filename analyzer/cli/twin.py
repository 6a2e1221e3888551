"""``record --twin``: the same program without shortcuts, recorded first, in its own process."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import analyzer
from analyzer.options import RecordOptions, plain_folder

__all__ = ["options_from", "options_text", "record_twin"]

_LAST_LINES = 12
_PATIENCE_SECONDS = 5.0
# The package's own folder takes the place that Python gives to the working folder: a file of the
# user's must not stand for a module of ours. What runs the script puts the script's folder there.
_PROGRAM = """
import sys
sys.path[: not sys.flags.safe_path] = [sys.argv[1]]
from analyzer.cli.record import record_text
sys.exit(record_text(sys.argv[2]))
"""
# A private function of the standard library, which multiprocessing uses too.
_interpreter_flags: Callable[[], list[str]] = vars(subprocess)["_args_from_interpreter_flags"]


def record_twin(options: RecordOptions) -> RecordOptions:
    """Record the twin into the folder beside the run's; return the options of the run itself.

    The twin is the same program with the same seed and every shortcut replaced by zeros. What it
    prints is dropped; where it fails, its last lines are repeated after the run.

    Args:
        options: Those of a recording with ``twin``, its folder chosen.

    Returns:
        The same without ``twin``, with the seed of both, and what is to be said of the twin.
    """
    if options.run is None:
        raise ValueError("the folder of the run is None; expected a path. Choose it first.")
    plain = plain_folder(options.run)
    seed = 0 if options.seed is None else options.seed
    twin = replace(
        options,
        run=plain,
        seed=seed,
        twin=False,
        skip_scale=0.0,
        twin_of=options.run.name,
        quiet=False,
        fail_on=None,
    )
    with tempfile.TemporaryFile() as stderr:
        code = _run(twin, stderr)
        words = _words(code, stderr)
    return replace(
        options, seed=seed, twin=False, rescale=False, twin_name=plain.name, twin_words=words
    )


def _run(options: RecordOptions, stderr: IO[bytes]) -> int:
    """Run the twin's process to its end; an interrupt of this one ends both."""
    root = str(Path(analyzer.__file__).resolve().parents[1])
    command = [sys.executable, *_interpreter_flags(), "-c", _PROGRAM, root, options_text(options)]
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=stderr)
    try:
        return process.wait()
    except KeyboardInterrupt:
        _end(process)
        # As Python ends at an interrupt that nobody catches: a shell loop around it stops too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process that got the interrupt too; else send it one."""
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


def _words(code: int, stderr: IO[bytes]) -> tuple[str, ...]:
    """Return what is to be said of a twin that failed: its exit code and its last lines."""
    if code == 0:
        return ()
    stderr.seek(0)
    lines = stderr.read().decode("utf-8", "replace").splitlines()
    first = f"the twin without shortcuts ended with exit code {code}; it said last:"
    return (first, *[line.removeprefix("analyzer: ") for line in lines[-_LAST_LINES:]])


def options_text(options: RecordOptions) -> str:
    """Return options as the text that the twin's process gets."""
    return json.dumps(asdict(options), default=str)


def options_from(text: str) -> RecordOptions:
    """Return the options in such a text."""
    fields: dict[str, Any] = json.loads(text)
    for name in ("args", "probe", "twin_words"):
        fields[name] = tuple(fields[name])
    for name in ("run", "runs_dir"):
        fields[name] = Path(fields[name])
    return RecordOptions(**fields)

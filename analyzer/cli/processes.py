"""Processes of ours that record: how they are started, and end with the one that started them."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analyzer.cli.session import PACKAGE_ROOT, options_text, stem_of
from analyzer.cli.signals import DeadlySignals
from analyzer.errors import AnalyzerError, RunExistsError
from analyzer.launch import launch_of_process, url_of
from analyzer.options import RecordOptions

if TYPE_CHECKING:
    from analyzer.storage.uploading import Upload

__all__ = [
    "PROGRAM",
    "command_of",
    "interpreter_flags",
    "record_at_url",
    "resumed_url",
    "run_process",
]

_PATIENCE_SECONDS = 5.0
# The package's own folder takes the place that Python gives to the working folder: a file of the
# user's must not stand for a module of ours. What runs the script puts the script's folder there.
PROGRAM = """
import sys
sys.path[: not sys.flags.safe_path] = [sys.argv[1]]
from analyzer.cli.record import record_text
sys.exit(record_text(sys.argv[2]))
"""
# A private function of the standard library, which multiprocessing uses too.
interpreter_flags: Callable[[], list[str]] = vars(subprocess)["_args_from_interpreter_flags"]
"""The flags of this Python, as another one gets them."""


def command_of(options: RecordOptions, *flags: str) -> list[str]:
    """The command line of a process that records by these options."""
    program = ["-c", PROGRAM, PACKAGE_ROOT, options_text(options)]
    return [sys.executable, *interpreter_flags(), *flags, *program]


def run_process(
    command: Sequence[str], at_signal: Callable[[], object] = lambda: None, **streams: Any
) -> int:
    """Run a process to its end; a signal that ends this one ends both."""
    process = subprocess.Popen(command, **streams)

    def end(number: int, _: object) -> None:
        _end_with(process.pid, number)
        at_signal()

    signals = DeadlySignals(end)
    signals.watch()
    try:
        return process.wait()
    except KeyboardInterrupt:
        _end(process)
        at_signal()
        # As Python ends at an interrupt that nobody catches: a shell loop around it stops too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    finally:
        signals.stop()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process that got the interrupt too; else send it one."""
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


def _end_with(process: int, number: int) -> None:
    """Send a signal on, and wait; not through `subprocess`, which is waiting already."""
    os.kill(process, number)
    os.waitpid(process, 0)


def record_at_url(options: RecordOptions) -> int:
    """Record in another process into the copy of a URL, while this one has it copied there.

    Raises:
        RunExistsError: If something is at the URL.
        RunNotFoundError: If there is no run to resume.
        AnalyzerError: If it cannot be read, or each rank of a launch would do so.
    """
    from analyzer.storage.uploading import Upload, resumed_at

    if (resumed := resumed_url(options)) is not None:
        upload = resumed_at(resumed)
        return _recorded(upload, replace(options, resume=str(upload.folder)))
    if launch_of_process() is not None:
        raise AnalyzerError(
            f"{url_of(options.run or options.runs_dir)} is given to each rank of a launch; "
            "expected it once. Start them with: analyzer record --nproc-per-node N --run URL"
        )
    for k in itertools.count():
        url = url_of(options.run or options.runs_dir / f"{stem_of(options)}-{k}")
        assert url is not None  # the caller has looked
        with contextlib.suppress(*([] if options.run else [RunExistsError])):
            upload = Upload(url)
            break
    return _recorded(upload, replace(options, run=upload.folder))


def resumed_url(options: RecordOptions) -> str | None:
    """Return the URL of the run that is to be resumed; None for a folder, or for none."""
    if options.resume is None or os.path.isdir(options.resume):
        return None
    runs = url_of(options.runs_dir)
    return url_of(options.resume) or (None if runs is None else f"{runs}/{options.resume}")


def _recorded(upload: "Upload", options: RecordOptions) -> int:
    """Record in another process into the folder that an upload copies."""
    kept, url = upload.start(), upload.mirror.url
    code = run_process(command_of(options), pass_fds=[kept])
    problem = upload.close()
    if problem is not None or not options.quiet:
        seen = f"it is at {url}; see it with: analyzer show {url}"
        print(f"analyzer: {problem or seen}", file=sys.stderr)
    return code

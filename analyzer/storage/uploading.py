"""Copies what is recorded to a URL, by a process that outlives the recorded one."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from analyzer.errors import AnalyzerError, RunExistsError, RunNotFoundError
from analyzer.launch import launch_of_process
from analyzer.storage.remote import Mirror, lock

__all__ = ["Upload", "begun_at", "continued_at", "ended_in", "keep_uploading", "resumed_at"]

_SECONDS, _PAUSE_SECONDS, _TRIES = 2.0, 1.0, 5
_PATIENCE_SECONDS, _POLL_SECONDS = 30.0, 0.1
_PROGRAM = """
import sys
sys.path[: not sys.flags.safe_path] = [sys.argv[1]]
from analyzer.storage.uploading import keep_uploading
sys.exit(keep_uploading(sys.argv[2], sys.argv[3]))
"""
_ROOT = str(Path(__file__).resolve().parents[2])


def keep_uploading(url: str, of: str) -> int:
    """Copy what is recorded to a URL until stdin closes or has a line; then all that is left.

    It says on stdout, as JSON, what went wrong; what is here then stays pending.
    """
    mirror = Mirror(url, of)
    pushed = mirror.was_there()
    with mirror.pending().open("rb") as file:
        lock(file, is_alone=False)
        is_over, tries, problem = False, 0, None
        while not is_over or (problem and tries < _TRIES):
            if is_over:
                tries += 1
                time.sleep(_PAUSE_SECONDS)
            is_over = is_over or bool(select.select([0], [], [], _SECONDS)[0])
            problem = None
            try:
                mirror.push(pushed)
                if is_over:
                    mirror.seal()
                    mirror.pending().unlink(missing_ok=True)
            except Exception as error:  # of any library, and of the network
                problem = f"{type(error).__name__}: {error}"
    print(json.dumps(problem), flush=True)
    return 0


class Upload:
    """Writes a run, or a study, to a URL while it is made.

    Args:
        url: Where to.
        continues: Whether what is there already is gone on with; else there may be nothing.
        with_checkpoints: Whether checkpoints are among what is gone on with.

    Attributes:
        folder: Where it is to be written here.

    Raises:
        RunExistsError: If something is there, or another process of this machine writes there.
        AnalyzerError: If the URL cannot be read.
    """

    def __init__(self, url: str, *, continues: bool = False, with_checkpoints: bool = True) -> None:
        # The ranks of a launch share a copy that nothing was in before.
        launch = launch_of_process()
        self._of = "" if launch is None else launch.key
        self.mirror = Mirror(url, self._of)
        self.folder = self.mirror.folder
        self._process: subprocess.Popen[bytes] | None = None
        self._was_there: dict[str, tuple[int, int]] = {}
        if continues:
            self._pull(with_checkpoints=with_checkpoints)
            self._was_there = self.mirror.files()
        elif launch is None:
            if self.mirror.pending().exists() or self.mirror.listing():
                raise RunExistsError(
                    f"there is something at '{url}' already; a recording needs a new place and "
                    "never overwrites. Choose another."
                )
            shutil.rmtree(self.mirror.base, ignore_errors=True)

    def _pull(self, *, with_checkpoints: bool) -> None:
        """Bring the copy up to date, once whoever wrote there from this machine has ended."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while (
            self.mirror.pull(with_checkpoints=with_checkpoints) and self.mirror.pending().exists()
        ):
            if time.monotonic() > until:
                raise RunExistsError(
                    f"what was written for '{self.mirror.url}' on this machine is not there yet: "
                    "its process still runs, or the URL cannot be written to. Wait for its end"
                )
            time.sleep(_POLL_SECONDS)

    def start(self) -> int:
        """Begin to copy; return a file that, kept open, says that there is more to come."""
        self.mirror.base.mkdir(parents=True, exist_ok=True)
        was_there = json.dumps(self._was_there)
        self.mirror.pending().write_text(was_there, encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, _ROOT, self.mirror.url, self._of],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt at the terminal ends the recording alone
        )
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def close(self) -> str | None:
        """Copy what is left; return what is to be said where that could not be done."""
        process, self._process = self._process, None
        if process is None:
            return None
        problem: Any = "its process was ended"
        with contextlib.suppress(OSError, ValueError):
            said, _ = process.communicate(b"\n")
            problem = json.loads(said)
        if problem is None:
            return None
        later = "" if self._of else ", and copied when that URL is next read on this machine"
        return (
            f"not all could be copied to {self.mirror.url} ({problem}); it is whole in "
            f"{self.folder}{later}"
        )


_begun: dict[tuple[int, Path], Upload] = {}


def begun_at(urls: Iterable[str]) -> Path:
    """Begin to copy to the first of some URLs where nothing is; return the folder to write to.

    Raises:
        RunExistsError: If there is something at each of them.
        AnalyzerError: If one cannot be read.
    """
    taken: RunExistsError | None = None
    for url in urls:
        try:
            upload = Upload(url)
        except RunExistsError as error:
            taken = error
            continue
        upload.start()
        _begun[os.getpid(), upload.folder] = upload
        return upload.folder
    raise taken or RunExistsError("no URL was given; expected one")


def resumed_at(url: str) -> Upload:
    """Return the upload of a resumed run to its URL, not started yet.

    Raises:
        RunNotFoundError: If there is no run.
        RunExistsError: If another process of this machine records it.
        AnalyzerError: If it cannot be read, or each rank of a launch would copy it.
    """
    if launch_of_process() is not None:
        raise AnalyzerError(
            f"{url} is to be resumed by each rank of a launch; expected it once. Start them with: "
            f"analyzer record --nproc-per-node N --resume {url}"
        )
    upload = Upload(url, continues=True, with_checkpoints=False)
    if not (upload.folder / "run.json").is_file():
        raise RunNotFoundError(f"no run to resume at '{url}': there is no run.json in it")
    return upload


def continued_at(url: str) -> Path:
    """Start the upload of a resumed run to its URL; return the folder to write to."""
    upload = resumed_at(url)
    upload.start()
    _begun[os.getpid(), upload.folder] = upload
    return upload.folder


def ended_in(folder: Path) -> str | None:
    """Copy what is left of a folder of `begun_at`; return what is to be said if that failed."""
    upload = _begun.pop((os.getpid(), folder), None)
    return None if upload is None else upload.close()

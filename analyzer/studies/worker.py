"""The process that has torch loaded and forks one for each point, and who asks it to.

A Python that imports torch takes seconds before it does anything; a fork of one that has does not.
A request is a line of JSON on stdin, the answer when its process has ended one on stdout. When
stdin closes, the study is gone, and so is everything that was started for it: no process outlives
the one that waits for it, whichever of them is killed.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyzer.cli.processes import PROGRAM
from analyzer.cli.record import record_text
from analyzer.cli.session import PACKAGE_ROOT

__all__ = ["LATE", "Ended", "Workers", "die_with_parent", "serve", "with_threads"]

_PROGRAM = """
import sys
sys.path[: not sys.flags.safe_path] = [sys.argv[1]]
from analyzer.studies.worker import serve
sys.exit(serve(sys.argv[1]))
"""
_LONGEST_WAIT = 3600.0
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


LATE = -signal.SIGALRM
"""The exit code of a point that was ended because it took too long."""

Ended = tuple[str, int | None]
"""A point and the exit code of its process; None where that was lost."""


class Workers:
    """Worker processes of this machine.

    Args:
        number: How many points are run at a time.
        threads: Threads of torch in each.
        kept: A file that they hold open as long as they live.
        limit: Seconds after which a point is ended; None for as long as it takes.
    """

    def __init__(self, number: int, threads: int, kept: int, limit: float | None = None) -> None:
        self.capacity = number
        self._limit = limit
        self._threads, self._kept = threads, kept
        self._process: subprocess.Popen[bytes] | None = None
        self._running: set[str] = set()
        self._read = b""

    def start(self, name: str, options: str, log: Path, *, is_script: bool) -> None:
        """Start a point in a process of its own."""
        if self._process is None:
            self._process = self._started()
        request = {"name": name, "options": options, "log": str(log), "is_script": is_script}
        request["limit"] = self._limit
        self._running.add(name)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `ended` says that it died
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _started(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, PACKAGE_ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=with_threads(self._threads),
            pass_fds=[self._kept],
        )

    def ended(self, seconds: float) -> list[Ended]:
        """Return which points have ended, those of a server that died among them."""
        if self._process is None or self._process.stdout is None:
            return []
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return []
        received = os.read(self._process.stdout.fileno(), 1 << 16)
        if not received:
            self.close()  # its forks end with it
            lost, self._running, self._read = self._running, set(), b""
            return [(name, None) for name in lost]
        *lines, self._read = (self._read + received).split(b"\n")
        answers = [json.loads(line) for line in lines]
        self._running -= {one["name"] for one in answers}
        return [(one["name"], one["code"]) for one in answers]

    def close(self) -> None:
        """Kill whatever runs: what it has not finished is run again another time."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None


def with_threads(threads: int) -> dict[str, str]:
    """Return the environment of a process whose torch has so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def die_with_parent(parent: int) -> None:
    """Let this process be killed when its parent ends (on Linux); at once if it has."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class _Running:
    """A point whose process runs, until when it may, and whether it was ended for that."""

    name: str
    until: float | None
    is_late: bool = False


def serve(root: str) -> int:
    """Answer requests until stdin closes; in a fork, record and return the exit code.

    Args:
        root: From where another process imports the same analyzer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study says when it ends
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    running: dict[int, _Running] = {}
    pending = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [], _end_late(running))
        if woken in ready:
            os.read(woken, 4096)
            _reap(running)
        if 0 not in ready:
            continue
        received = os.read(0, 1 << 16)
        if not received:
            for pid in running:
                _kill_group(pid)
            return 0
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if not request["is_script"]:
                _import_torch()
            parent, pid = os.getpid(), os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                for file in (woken, wake):
                    os.close(file)
                return _run(request, root, parent)
            limit = request["limit"]
            until = None if limit is None else time.monotonic() + limit
            running[pid] = _Running(request["name"], until)
            with contextlib.suppress(OSError):  # it does so itself, too
                os.setpgid(pid, pid)


def _import_torch() -> None:
    """Import, once for all forks, what a training in the built-in loop needs."""
    import torch._dynamo  # noqa: F401 -- the first optimizer of a process would

    with contextlib.suppress(ImportError):
        import sklearn.datasets  # noqa: F401 -- it has the digits

    import analyzer.networks.zoo
    import analyzer.recording.recorder  # noqa: F401


def _end_late(running: dict[int, _Running]) -> float | None:
    """Kill what has run for too long; return the seconds until that may be so of another one."""
    now, left = time.monotonic(), []
    for pid, one in running.items():
        if one.until is None or one.is_late:
            continue
        if one.until <= now:
            one.is_late = True
            _kill_group(pid)
        else:
            left.append(one.until - now)
    return min(*left, _LONGEST_WAIT) if left else None


def _reap(running: dict[int, _Running]) -> None:
    """Say which processes have ended, and end what they left behind."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        _kill_group(pid)
        if (one := running.pop(pid, None)) is not None:
            code = LATE if one.is_late else os.waitstatus_to_exitcode(status)
            answer = {"name": one.name, "code": code}
            os.write(1, json.dumps(answer).encode() + b"\n")


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _run(request: dict[str, Any], root: str, parent: int) -> int:
    """Record one point in this process; what it prints goes to its log."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    die_with_parent(parent)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for file, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(file, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["is_script"]:
        # A script may set what torch reads when it is imported.
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, root, request["options"]])
    return record_text(request["options"])

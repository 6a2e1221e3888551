"""The process that has torch loaded and forks a process for each point that a study asks for.

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
import sys
from typing import Any

from analyzer.cli.processes import PROGRAM
from analyzer.cli.record import record_text

__all__ = ["die_with_parent", "serve"]

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def die_with_parent(parent: int) -> None:
    """Let this process be killed when its parent ends (on Linux); at once if it has."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


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
    running: dict[int, str] = {}
    pending = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
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
            running[pid] = request["name"]
            with contextlib.suppress(OSError):  # it does so itself, too
                os.setpgid(pid, pid)


def _import_torch() -> None:
    """Import, once for all forks, what a training in the built-in loop needs."""
    import torch._dynamo  # noqa: F401 -- the first optimizer of a process would

    import analyzer.networks.zoo
    import analyzer.recording.recorder  # noqa: F401


def _reap(running: dict[int, str]) -> None:
    """Say which processes have ended, and end what they left behind."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        _kill_group(pid)
        if (name := running.pop(pid, None)) is not None:
            answer = {"name": name, "code": os.waitstatus_to_exitcode(status)}
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

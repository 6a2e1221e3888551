"""Programs that the tests start, ``analyzer`` above all, as a user does: in processes of their own.

A Python that imports torch and what its optimizers need takes three seconds of processor time
before it does anything. ``start`` and ``run`` fork a process that has done so once. Where the start
itself is what is tested, ``fresh`` starts an interpreter in which nothing is imported.
"""

import json
import os
import select
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["command", "run", "signalled", "start"]


@cache
def _server() -> socket.socket:
    """The way to the prepared interpreter of this test process; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _Started.server = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("prepared_interpreter.py")),
            str(theirs.fileno()),
        ],
        pass_fds=[theirs.fileno()],
        # Pipes, as the programs have: Python looks once whether it can seek in its files.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # No thread beside its own: a fork has none of the others, but their locks.
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
        },
    )
    theirs.close()
    return ours


class _Started(subprocess.Popen):
    """A process that the prepared interpreter forks; used as any other process is."""

    server: Any

    def _execute_child(self, args: list[str], *more: Any) -> None:
        # What Popen prepared: the folder, the environment, and this side's ends of the pipes.
        cwd, environment = more[4:6]
        theirs = more[9], more[12], more[14]
        self._answers, answers = socket.socketpair()
        standard = [number if file == -1 else file for number, file in enumerate(theirs)]
        request = {
            "words": [str(word) for word in args],
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if environment is None else environment),
        }
        socket.send_fds(_server(), [json.dumps(request).encode()], [*standard, answers.fileno()])
        answers.close()
        # Without a buffer, so that an answer that has not been read is still in the socket.
        self._lines = self._answers.makefile("rb", buffering=0)
        self.pid = int(self._lines.readline())
        self._child_created = True
        self._close_pipe_fds(*more[9:15])

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self._ended()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._ended()
        return self.returncode

    def _ended(self) -> None:
        self.returncode = int(self._lines.readline())
        self._lines.close()
        self._answers.close()


def start(
    folder: Path, *words: str, fresh: bool = False, **options: Any
) -> "subprocess.Popen[str]":
    """Start what ``python *words`` would run in a folder; options are those of ``Popen``."""
    if fresh:
        words = (sys.executable, *words)
    kind = subprocess.Popen if fresh else _Started
    return kind(list(words), cwd=folder, **{"text": True, **options})


def run(
    folder: Path, *words: str, timeout: float = 300, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run what ``python *words`` would run in a folder, to its end."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(folder, *words, **pipes, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)


def command(folder: Path, *words: str, code: int = 0) -> str:
    """Run a command in a folder; return what it wrote to stderr, once it ended with this code."""
    done = run(folder, "-m", "analyzer", *words)
    assert done.returncode == code, done.stderr
    return done.stderr


def signalled(
    folder: Path, source: str, number: int, *, after: float = 0.3
) -> "subprocess.CompletedProcess[str]":
    """Record ``script.py``, and send it a signal ``after`` seconds from when it says ``ready``.

    It has begun to sleep by then: of a signal in the microseconds before, Python learns when the
    sleep is over.
    """
    (folder / "script.py").write_text(source)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(folder, "-m", "analyzer", "record", "script.py", **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(after)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, out, err)

"""Runs ``analyzer`` as a user does, in a process of its own."""

import subprocess
import sys
import time
from pathlib import Path

__all__ = ["command", "signalled"]


def command(folder: Path, *words: str, code: int = 0) -> str:
    """Run a command in a folder; return what it wrote to stderr, once it ended with this code."""
    done = subprocess.run(
        [sys.executable, "-m", "analyzer", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def signalled(
    folder: Path, source: str, number: int, *, after: float = 0.0
) -> "subprocess.CompletedProcess[str]":
    """Record ``script.py``, and send it a signal ``after`` seconds from when it says ``ready``."""
    (folder / "script.py").write_text(source)
    process = subprocess.Popen(
        [sys.executable, "-m", "analyzer", "record", "script.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(after)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, out, err)

"""Runs ``analyzer`` as a user does, in a process of its own."""

import subprocess
import sys
from pathlib import Path

__all__ = ["command"]


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

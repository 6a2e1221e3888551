"""How far a training is: a bar on a terminal, plain lines elsewhere, both on stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

__all__ = ["training_progress"]

_PLAIN_LINES = 4


@contextlib.contextmanager
def training_progress(
    steps: int, quiet: bool, label: str = "training"
) -> Iterator[Callable[[int], None]]:
    """Give a function to call with each finished step; it never reads from a device.

    Args:
        steps: How many there will be.
        quiet: Show nothing.
        label: What goes on.
    """
    if quiet:
        yield lambda step: None
    elif sys.stderr.isatty():
        with _bar(steps, label) as advance:
            yield advance
    else:
        yield _plain(steps, label)


@contextlib.contextmanager
def _bar(steps: int, label: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=steps)
        yield lambda step: progress.update(task, completed=step + 1)


def _plain(steps: int, label: str) -> Callable[[int], None]:
    """A line at each quarter: enough for a log file."""
    started = time.perf_counter()
    marks = {max(1, steps * k // _PLAIN_LINES) for k in range(1, _PLAIN_LINES + 1)}

    def advance(step: int) -> None:
        if step + 1 in marks:
            seconds = time.perf_counter() - started
            sys.stderr.write(f"analyzer: {label}: step {step + 1} of {steps}, {seconds:.1f} s\n")
            sys.stderr.flush()

    return advance

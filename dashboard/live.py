"""What a page polls: whether its runs changed on disk, how they stand, and since when."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .library import Library, Listed, revision, shortened

__all__ = ["Pulse", "age_text", "pulse"]

_AGES = ((86_400, "d"), (3_600, "h"), (60, "min"))


@dataclass(frozen=True)
class Pulse:
    """The state of what a page shows.

    Args:
        mark: Changes whenever the figures would.
        text: One line for the head of the page.
        is_over: Whether nothing will change any more.
    """

    mark: str
    text: str
    is_over: bool


def pulse(library: Library, run_ids: Sequence[str]) -> Pulse:
    """Return the pulse of runs; of the whole listing where none is named."""
    listed = library.listing()
    chosen = [run for run in listed if run.id in run_ids]
    seen = [_mark(run) for run in chosen or listed]
    if not run_ids:
        # The words of the list are found one after the other; each changes what it shows.
        seen.append((len(library.verdicts),))
    mark = hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
    if not run_ids:
        running = sum(run.summary.status == "running" for run in listed)
        return Pulse(mark, f"{len(listed)} runs, {running} running", is_over=False)
    text = " · ".join(_line(run) for run in chosen)
    return Pulse(mark, text, all(run.summary.status != "running" for run in chosen))


def _mark(run: Listed) -> tuple[object, ...]:
    return (run.id, run.summary.status, revision(run.summary.path))


def _line(run: Listed) -> str:
    """How a run stands; the age of its last rows while it runs."""
    name, status = shortened(run.id, 24), run.summary.status
    if status != "running":
        return f"{name}: {status}"
    steps = f"{run.summary.steps:,} steps" if run.summary.steps is not None else "no step yet"
    return f"{name}: running, {steps}, updated {age_text(_age(run.summary.path))} ago"


def _age(path: Path) -> float:
    """Seconds since the last rows or the last heartbeat were written."""
    newest = 0.0
    for name in ("run.json", "steps"):
        try:
            newest = max(newest, (path / name).stat().st_mtime)
        except OSError:
            continue
    return max(0.0, time.time() - newest)


def age_text(seconds: float) -> str:
    """Return an age in its largest unit, rounded down: ``3 h``."""
    for size, unit in _AGES:
        if seconds >= size:
            return f"{int(seconds // size):,} {unit}"
    return f"{max(0, int(seconds))} s"

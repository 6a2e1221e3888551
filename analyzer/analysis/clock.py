"""Where steps stand on an axis of epochs or of time."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import Band
from analyzer.analysis.per_run import not_recorded, remembered
from analyzer.storage.arrays import as_floats, as_numpy
from analyzer.storage.run import Run

__all__ = ["epoch_places", "on_axis", "step_places", "time_places"]

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


def epoch_places(steps: Steps, epochs: Floats) -> Floats:
    """Return the epochs that had passed when each step began, ``[steps]``.

    ``e + (t − a) / (b − a)`` for a step t of epoch e, whose first step is a, that of the next b.
    The last epoch is taken to be as long as the one before, or as long as it is if that is longer.
    NaN where no epoch is known.
    """
    found = np.full(len(steps), np.nan)
    known = np.flatnonzero(np.isfinite(epochs))
    if not len(known):
        return found
    numbers, values = steps[known], epochs[known]
    begins = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    firsts = numbers[begins]
    last = int(numbers[-1] - firsts[-1]) + 1
    before = int(firsts[-1] - firsts[-2]) if len(firsts) > 1 else 0
    lengths = np.append(np.diff(firsts), max(last, before))
    counts = np.diff(np.append(begins, len(values)))
    offset = (numbers - np.repeat(firsts, counts)) / np.repeat(lengths, counts)
    found[known] = values + offset
    return found


def time_places(ends: Floats, seconds: Floats, attempts: NDArray[np.int64]) -> Floats:
    """Return the seconds of training until each step ended, ``[steps]``.

    Between two steps of one attempt what the clock says; the time between two attempts does not
    count, so that after a restart it is the seconds of the step itself.

    Args:
        ends: When each step ended, in seconds.
        seconds: How long each step took.
        attempts: The restart that each belongs to.
    """
    taken = np.diff(ends, prepend=np.nan)
    is_first = np.diff(attempts, prepend=-1) != 0
    return np.asarray(np.cumsum(np.where(is_first, np.nan_to_num(seconds), taken)), np.float64)


def on_axis(run: Run, over: str, band: Band) -> Band:
    """Return a band with the place of each bin on an axis: ``step``, ``epoch`` or ``time``.

    Raises:
        NotRecordedError: If the run does not say them.
    """
    return replace(band, x=step_places(run, over, band.steps))


def step_places(run: Run, over: str, steps: Steps) -> Floats | None:
    """Return the place of each step on such an axis; None on one of steps.

    Raises:
        NotRecordedError: If the run does not say them.
    """
    if over == "step":
        return None
    recorded, places = _places(run, over)
    # A probe of the final weights stands where the last step does.
    found: Floats = places[np.searchsorted(recorded, steps).clip(max=len(recorded) - 1)]
    return found


@remembered("steps")
def _places(run: Run, over: str) -> tuple[Steps, Floats]:
    columns = ["epoch"] if over == "epoch" else ["time", "seconds", "attempt"]
    rows = run.read("steps", columns)
    steps = as_numpy(rows.column("step"))
    if not len(steps) or rows.column(over).null_count == len(steps):
        what, remedy = {
            "epoch": ("epochs were", "let the loop say them: `recorder.log(epoch=k)`"),
            "time": ("times were", "record it again"),
        }[over]
        raise not_recorded(what, run, remedy)
    if over == "epoch":
        return steps, epoch_places(steps, as_floats(rows.column("epoch")))
    ends = as_floats(rows.column("time").cast("int64")) / 1e6
    attempts = as_numpy(rows.column("attempt")).astype(np.int64, copy=False)
    return steps, time_places(ends, as_floats(rows.column("seconds")), attempts)

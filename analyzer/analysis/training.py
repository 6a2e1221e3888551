"""How a training went: losses, steps and time."""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from analyzer.analysis.bands import Band, band, series_band
from analyzer.analysis.remembered import remembered
from analyzer.storage.run import Run

__all__ = ["TrainingSummary", "loss_band", "run_training", "smoothed_final", "training_summary"]

_FINAL_SHARE = 0.05
_LONG = 200_000


@dataclass(frozen=True, eq=False)
class TrainingSummary:
    """Losses, steps and time of one run.

    Args:
        num_steps: Recorded steps.
        losses: Loss of each step that has a scalar one, NaN and infinite ones included.
        first_loss: Loss of the first such step; NaN without one.
        last_loss: Loss of the last such step; NaN without one.
        final_loss: Median loss of the last 5 % of those steps; NaN when one of them is NaN.
        best_loss: Lowest finite loss; NaN without one.
        best_step: Step of the lowest finite loss; None without one.
        nonfinite_step: First step whose loss is NaN or infinite; None without one.
        num_skipped: Updates that a gradient scaler skipped.
        seconds: Wall time of the recorded steps, in seconds.
    """

    num_steps: int
    losses: NDArray[np.float64]
    first_loss: float
    last_loss: float
    final_loss: float
    best_loss: float
    best_step: int | None
    nonfinite_step: int | None
    num_skipped: int
    seconds: float

    @property
    def num_losses(self) -> int:
        """Steps with a scalar loss."""
        return len(self.losses)


def smoothed_final(losses: ArrayLike) -> float:
    """Return the median of the last 5 % of the values, at least of one.

    Returns:
        The median, in units of the values; NaN when a value among them is NaN, or without values.
    """
    values = np.asarray(losses, np.float64)
    if not len(values):
        return math.nan
    return float(np.median(values[-max(1, math.ceil(_FINAL_SHARE * len(values))) :]))


def training_summary(
    steps: ArrayLike, losses: ArrayLike, measured: ArrayLike, *, skipped: int = 0, seconds: float
) -> TrainingSummary:
    """Summarize the losses of a run.

    Args:
        steps: Step numbers, ascending, ``[steps]``.
        losses: Loss of each step, ``[steps]``; NaN where it is not measured.
        measured: Whether the step has a scalar loss at all, ``[steps]``: a loss that is NaN is
            measured, a null in the table is not.
        skipped: Updates that a gradient scaler skipped.
        seconds: Wall time of the steps.

    Returns:
        The summary; its losses are in the unit of the loss.
    """
    has_loss = np.asarray(measured, bool)
    numbers, values = np.asarray(steps, np.int64), np.asarray(losses, np.float64)
    # Copies of millions of losses take longer than what is asked of them.
    if not has_loss.all():
        numbers, values = numbers[has_loss], values[has_loss]
    finite = np.isfinite(values)
    ranked = values if finite.all() else np.where(finite, values, np.inf)
    lowest = int(np.argmin(ranked)) if finite.any() else None
    return TrainingSummary(
        num_steps=len(has_loss),
        losses=values,
        first_loss=float(values[0]) if len(values) else math.nan,
        last_loss=float(values[-1]) if len(values) else math.nan,
        final_loss=smoothed_final(values),
        best_loss=math.nan if lowest is None else float(values[lowest]),
        best_step=None if lowest is None else int(numbers[lowest]),
        nonfinite_step=None if finite.all() else int(numbers[np.argmin(finite)]),
        num_skipped=skipped,
        seconds=seconds,
    )


@remembered("steps")
def run_training(run: Run) -> TrainingSummary:
    """Summarize a recorded run, its ranks pooled.

    Returns:
        The summary; ``seconds`` is the sum over the recorded steps.
    """
    rows = run.read("steps", ["loss", "skipped", "seconds"])
    loss = rows.column("loss")
    return training_summary(
        rows.column("step").to_numpy(),
        loss.to_numpy(),
        loss.is_valid().to_numpy(),
        skipped=pc.sum(rows.column("skipped")).as_py() or 0,
        seconds=pc.sum(rows.column("seconds")).as_py() or 0.0,
    )


@remembered("steps")
def loss_band(run: Run, most: int, smooth: bool) -> Band:
    """Return the loss over the steps that have one, in at most so many bins.

    Its middle is the median of each bin; in a run of more than 200,000 steps the mean, since then
    the bins are those of the overview.

    Args:
        run: An opened run.
        most: Bins at the most.
        smooth: Whether the middle is smoothed too.
    """
    if run.ranks == [0] and (run.nearest_step(None) or 0) > _LONG:
        return series_band(run.series("loss", max_points=most), smooth=smooth)
    rows = run.read("steps", "loss")
    known = rows.column("loss").is_valid().to_numpy()
    steps, losses = rows.column("step").to_numpy()[known], rows.column("loss").to_numpy()[known]
    return band(steps, losses, most, smooth=smooth)

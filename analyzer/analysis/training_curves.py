"""Loss, learning rate and global gradient norm over the steps, and the gradient noise scale."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import Band, band
from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.remembered import remembered
from analyzer.analysis.sources import (
    for_each_run,
    joined_table,
    missing_clause,
    not_recorded,
    probe_rows,
)
from analyzer.analysis.training import loss_band, run_training
from analyzer.analysis.view import RunLabel, View
from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "StepCurve",
    "StepCurves",
    "gradient_norm_curves",
    "learning_rate_curves",
    "loss_curves",
    "noise_curves",
]

Floats = NDArray[np.float64]
_MOST_POINTS = 600


@dataclass(frozen=True, eq=False)
class StepCurve:
    """One number of one run over its steps.

    Args:
        label: Name and style of the run.
        name: What it is; empty where the run has only one.
        band: The number.
        is_behind: Whether it stands behind another of the same run.
    """

    label: RunLabel
    name: str
    band: Band
    is_behind: bool = False


@dataclass(frozen=True, eq=False)
class StepCurves:
    """One kind of number over the steps of all runs.

    Args:
        label: What the axis says.
        is_log: Whether the axis is logarithmic.
        curves: One or more per run.
        low: Smallest finite value that the axis can show; NaN without one.
        high: Largest one.
        caption: The finding with its number.
    """

    label: str
    is_log: bool
    curves: tuple[StepCurve, ...]
    low: float
    high: float
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run, curve and bin of steps."""
        return joined_table(
            {
                "run": curve.label.text,
                "quantity": curve.name or self.label,
                "step": curve.band.steps,
                "min": curve.band.low,
                "median": curve.band.middle,
                "max": curve.band.high,
                "num_nonfinite": curve.band.num_nonfinite,
            }
            for curve in self.curves
        )


# The curves of one run, and the sentence about it.
_Read = Callable[[View, Run, RunLabel], tuple[list[StepCurve], str]]


def loss_curves(view: View) -> StepCurves:
    """Read the loss of every run.

    Raises:
        NotRecordedError: If no run has a scalar loss.
    """
    return _curves(view, _loss, "loss", is_log=False)


def learning_rate_curves(view: View) -> StepCurves:
    """Read the learning rate of every run: first group of the first optimizer.

    Raises:
        NotRecordedError: If no run has one.
    """
    return _curves(view, _learning_rate, "learning rate", is_log=True)


def gradient_norm_curves(view: View) -> StepCurves:
    """Read the global gradient norm of every run, before clipping and as the optimizer received it.

    ``received = gradient_norm · clip_factor``.

    Raises:
        NotRecordedError: If no run has one.
    """
    return _curves(view, _gradient_norm, "global gradient norm", is_log=True)


def noise_curves(view: View) -> StepCurves:
    """Read the gradient noise scale of every run, in samples, at the steps of the probe.

    Raises:
        NotRecordedError: If no run has it.

    Reference:
        McCandlish et al. (2018), An empirical model of large-batch training.
    """
    return _curves(view, _noise, "gradient noise scale, in samples", is_log=True)


def _curves(view: View, read: _Read, label: str, *, is_log: bool) -> StepCurves:
    found, missing = for_each_run(view, lambda run, name: read(view, run, name))
    curves = tuple(curve for several, _ in found for curve in several)
    edges = np.concatenate([np.r_[c.band.low, c.band.high] for c in curves])
    shown = edges[np.isfinite(edges) & ((edges > 0) | (not is_log))]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (np.nan, np.nan)
    caption = " ".join(sentence for _, sentence in found) + missing_clause(missing)
    return StepCurves(label, is_log, curves, low, high, caption)


def _column(run: Run, name: str) -> tuple[NDArray[np.int64], Floats]:
    """Steps at which a column of ``steps`` is not null, and its values."""
    if not _is_measured(run, name):
        raise _without(name, run)
    rows = run.read("steps", name)
    known = rows.column(name).is_valid().to_numpy()
    return rows.column("step").to_numpy()[known], as_floats(rows.column(name))[known]


@remembered("steps")
def _is_measured(run: Run, name: str) -> bool:
    """Whether a column of ``steps`` has a value at any step."""
    column = run.read("steps", name).column(name)
    return bool(column.null_count < len(column))


def _without(name: str, run: Run) -> NotRecordedError:
    remedy = "the training showed none; wait for the first step, or see `analyzer show`"
    return not_recorded(f"{name} was", run, remedy)


def _loss(view: View, run: Run, label: RunLabel) -> tuple[list[StepCurve], str]:
    facts, curve = run_training(run), loss_band(run, _MOST_POINTS, view.smooth)
    if not facts.num_losses:
        raise _without("loss", run)
    text = f"{label.text}: loss {number(facts.first_loss)} at step {curve.steps[0]}"
    if facts.nonfinite_step is not None:
        text += f", NaN or infinite from step {facts.nonfinite_step} on."
    else:
        text += f", {number(facts.final_loss)} after {counted(facts.num_losses, 'step')}."
    return [StepCurve(label, "", curve)], text


def _learning_rate(_view: View, run: Run, label: RunLabel) -> tuple[list[StepCurve], str]:
    text, shown = _learning_rate_band(run)
    return [StepCurve(label, "", shown)], f"{label.text}: {text}."


@remembered("steps")
def _learning_rate_band(run: Run) -> tuple[str, Band]:
    steps, rates = _column(run, "learning_rate")
    text = f"learning rate {number(rates[0])}"
    if not np.all(rates == rates[0]):
        text += f" at step {steps[0]}, {number(rates[-1])} at step {steps[-1]}"
    return text, band(steps, rates, _MOST_POINTS)


def _gradient_norm(view: View, run: Run, label: RunLabel) -> tuple[list[StepCurve], str]:
    text, before, received = _gradient_norm_bands(run, view.smooth)
    text = f"{label.text}: global gradient norm {text}"
    if received is None:
        return [StepCurve(label, "before clipping", before)], text
    behind = StepCurve(label, "before clipping", before, is_behind=True)
    return [behind, StepCurve(label, "after clipping", received)], text


@remembered("steps")
def _gradient_norm_bands(run: Run, smooth: bool) -> tuple[str, Band, Band | None]:
    """What is said of the norm, the norm, and what is left of it where any is clipped."""
    steps, norms = _column(run, "gradient_norm")
    rows = run.read("steps", ["gradient_norm", "clip_factor"])
    known = rows.column("gradient_norm").is_valid().to_numpy()
    factors = as_floats(rows.column("clip_factor"))[known]
    before = band(steps, norms, _MOST_POINTS, smooth=smooth)
    finite = norms[np.isfinite(norms)]
    text = f"{number(float(np.median(finite))) if len(finite) else 'not finite'} (median)"
    clipped = factors < 1
    if not clipped.any():
        return f"{text}, never clipped.", before, None
    received = band(steps, norms * factors, _MOST_POINTS, smooth=smooth)
    share = percent(float(np.mean(clipped)))
    return f"{text}, clipped in {share} of {counted(len(steps), 'step')}.", before, received


def _noise(_view: View, run: Run, label: RunLabel) -> tuple[list[StepCurve], str]:
    rows = probe_rows(run, "noise").sort_values("step")
    steps = rows["step"].to_numpy(np.int64)
    scales = rows["gradient_noise_scale"].to_numpy(np.float64)
    text = (
        f"{label.text}: gradient noise scale {number(scales[0])} samples at step {steps[0]}, "
        f"{number(scales[-1])} at step {steps[-1]}."
    )
    return [StepCurve(label, "", band(steps, scales, _MOST_POINTS))], text

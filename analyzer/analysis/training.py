"""How a training went: losses, learning rate, gradient norm, noise scale and time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from analyzer.analysis.bands import Band, band, series_band
from analyzer.analysis.clock import on_axis
from analyzer.analysis.groups import StepCurve, StepCurves, grouped_curves
from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.per_run import (
    not_recorded,
    probe_rows,
    read_runs,
    remembered,
    shown_range,
)
from analyzer.analysis.view import RunLabel, View
from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats, is_number
from analyzer.storage.run import Run
from analyzer.storage.schema import is_logged

__all__ = [
    "CLIPPED",
    "TrainingSummary",
    "clipped_share",
    "final_losses",
    "gradient_norm_curves",
    "learning_rate_curves",
    "logged_curves",
    "loss_band",
    "loss_curves",
    "noise_curves",
    "nonfinite_loss_step",
    "run_training",
    "sharpness_curves",
    "training_summary",
]

CLIPPED = 0.1
"""Share of clipped steps above which a threshold of the sharpness is not theirs."""

Floats = NDArray[np.float64]
_FINAL_SHARE, _MOST_FINAL = 10, 100
_LONG = 200_000
_MOST_POINTS = 600
_MOST_LOGGED = 8
# A folder of anybody may have thousands.
_MOST_LOOKED_AT = 64


@dataclass(frozen=True, eq=False)
class TrainingSummary:
    """Losses, steps and time of one run.

    Args:
        losses: Loss of each step that has a scalar one, NaN and infinite ones included.
        first_loss: Loss of the first such step; NaN without one.
        last_loss: Loss of the last such step; NaN without one.
        final_loss: Mean loss of the last tenth of those steps, of at most 100 and at least one; NaN
            when one of them is NaN.
        final_error: Standard error of that mean: ``s / √n``; 0 for a single step.
        num_final: How many steps these are.
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
    final_error: float
    num_final: int
    best_loss: float
    best_step: int | None
    nonfinite_step: int | None
    num_skipped: int
    seconds: float

    @property
    def num_losses(self) -> int:
        """Steps with a scalar loss."""
        return len(self.losses)


def final_losses(losses: ArrayLike) -> Floats:
    """Return the last tenth of the values, at most 100 and at least one where there is any."""
    values = np.asarray(losses, np.float64)
    return values[len(values) - min(_MOST_FINAL, -(-len(values) // _FINAL_SHARE)) :]


def training_summary(
    steps: ArrayLike, losses: ArrayLike, measured: ArrayLike, *, skipped: int = 0, seconds: float
) -> TrainingSummary:
    """Summarize the losses of a run over its steps, ascending.

    ``measured`` tells which steps have a scalar loss at all: a loss that is NaN is measured, a null
    in the table is not. ``skipped`` counts updates that a gradient scaler skipped.
    """
    has_loss = np.asarray(measured, bool)
    numbers, values = np.asarray(steps, np.int64), np.asarray(losses, np.float64)
    # Copies of millions of losses take longer than what is asked of them.
    if not has_loss.all():
        numbers, values = numbers[has_loss], values[has_loss]
    finite = np.isfinite(values)
    ranked = values if finite.all() else np.where(finite, values, np.inf)
    lowest = int(np.argmin(ranked)) if finite.any() else None
    last = final_losses(values)
    with np.errstate(invalid="ignore"):  # of infinite ones
        error = float(last.std(ddof=1)) / len(last) ** 0.5 if len(last) > 1 else 0.0
    return TrainingSummary(
        num_steps=len(has_loss),
        losses=values,
        first_loss=float(values[0]) if len(values) else math.nan,
        last_loss=float(values[-1]) if len(values) else math.nan,
        final_loss=float(last.mean()) if len(last) else math.nan,
        final_error=error,
        num_final=len(last),
        best_loss=math.nan if lowest is None else float(values[lowest]),
        best_step=None if lowest is None else int(numbers[lowest]),
        nonfinite_step=None if finite.all() else int(numbers[np.argmin(finite)]),
        num_skipped=skipped,
        seconds=seconds,
    )


@remembered("steps")
def run_training(run: Run) -> TrainingSummary:
    """Summarize a recorded run, its ranks pooled; ``seconds`` is the sum over recorded steps."""
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
@remembered("steps")
def nonfinite_loss_step(run: Run) -> int | None:
    """Return the first step whose loss is NaN or infinite; None without one.

    The bins of the overview count them: the losses of a long run are read only where there are any.
    """
    if run.ranks == [0] and not run.series("loss", max_points=_MOST_POINTS).num_nonfinite.any():
        return None
    return run_training(run).nonfinite_step


def loss_band(run: Run, most: int, smooth: float) -> Band:
    """Return the loss over the steps that have one, in at most ``most`` bins.

    Its middle is the median of each bin; in a run of more than 200,000 steps the mean, since then
    the bins are those of the overview.
    """
    if run.ranks == [0] and (run.nearest_step(None) or 0) > _LONG:
        return series_band(run.series("loss", max_points=most), smooth=smooth)
    rows = run.read("steps", "loss")
    known = rows.column("loss").is_valid().to_numpy()
    steps, losses = rows.column("step").to_numpy()[known], rows.column("loss").to_numpy()[known]
    return band(steps, losses, most, smooth=smooth)


def loss_curves(view: View) -> StepCurves:
    """Read the loss of every run."""
    return _curves(view, _loss, "loss", is_log=False)


def learning_rate_curves(view: View) -> StepCurves:
    """Read the learning rate of every run: first group of the first optimizer."""
    return _curves(view, _learning_rate, "learning rate", is_log=True)


def gradient_norm_curves(view: View) -> StepCurves:
    """Read the global gradient norm of every run, before clipping and as the optimizer received it.

    ``received = gradient_norm · clip_factor``.
    """
    return _curves(view, _gradient_norm, "global gradient norm", is_log=True)


def logged_curves(view: View) -> StepCurves:
    """Read the numbers that the training of every run logged, by name; at most eight names.

    ``epoch``, ``global_step`` and the learning rates of further groups are not among them.
    """
    return _curves(view, _logged, "", is_log=False)


def noise_curves(view: View) -> StepCurves:
    """Read the gradient noise scale of every run, in samples, at the steps of the probe.

    Reference:
        McCandlish et al. (2018), An empirical model of large-batch training.
    """
    return _curves(view, _noise, "gradient noise scale, in samples", is_log=True)


def sharpness_curves(view: View) -> StepCurves:
    """Read the sharpness of every run at the steps of the probe, and where its steps are unstable.

    ``λ₁(P⁻¹H)`` where the optimizer has a preconditioner P, else ``λ₁(H)``.

    Reference:
        Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of
        stability; Cohen et al. (2022), Adaptive gradient methods at the edge of stability.
    """
    return _curves(view, _sharpness, "largest eigenvalue of the Hessian", is_log=True)


def _curves(
    view: View,
    read: Callable[[View, Run, RunLabel], list[StepCurve]],
    label: str,
    *,
    is_log: bool,
) -> StepCurves:
    def placed(view: View, run: Run, label: RunLabel) -> list[StepCurve]:
        curves = read(view, run, label)
        return [replace(one, band=on_axis(run, view.over, one.band)) for one in curves]

    found, missing = read_runs(view, placed)
    curves = tuple(curve for of_run in found for curve in of_run)
    if view.group:
        curves = grouped_curves(view, curves)
    is_log = view.is_log(is_log)
    edges = (edge for curve in curves for edge in (curve.band.low, curve.band.high))
    low, high = shown_range(edges, is_log=is_log)
    return StepCurves(
        curves, missing, label, is_log, low, high, over=view.over, is_log_x=view.log_x
    )


def _column(run: Run, name: str) -> tuple[NDArray[np.int64], Floats]:
    """Steps at which a column of ``steps`` is not null, and its values."""
    if not _is_measured(run, name):
        raise _without(name, run)
    rows = run.read("steps", name)
    known = rows.column(name).is_valid().to_numpy()
    return rows.column("step").to_numpy()[known], as_floats(rows.column(name))[known]


@remembered("steps")
def _is_measured(run: Run, name: str) -> bool:
    column = run.read("steps", name).column(name)
    return bool(column.null_count < len(column))


def _without(name: str, run: Run) -> NotRecordedError:
    remedy = "the training showed none; wait for the first step, or see `analyzer show`"
    return not_recorded(f"{name} was", run, remedy)


def _loss(view: View, run: Run, label: RunLabel) -> list[StepCurve]:
    facts, curve = run_training(run), loss_band(run, _MOST_POINTS, view.smooth)
    if not facts.num_losses:
        raise _without("loss", run)
    text = f"{label.text}: loss {number(facts.first_loss)} at step {curve.steps[0]}"
    if facts.nonfinite_step is not None:
        text += f", NaN or infinite from step {facts.nonfinite_step} on."
    else:
        text += f", {number(facts.final_loss)} after {counted(facts.num_losses, 'step')}."
    return [StepCurve(label, "loss", "", curve, text)]


def _learning_rate(_view: View, run: Run, label: RunLabel) -> list[StepCurve]:
    text, shown = _learning_rate_band(run)
    return [StepCurve(label, "learning rate", "", shown, f"{label.text}: {text}.")]


@remembered("steps")
def _learning_rate_band(run: Run) -> tuple[str, Band]:
    steps, rates = _column(run, "learning_rate")
    text = f"learning rate {number(rates[0])}"
    if not np.all(rates == rates[0]):
        text += f" at step {steps[0]}, {number(rates[-1])} at step {steps[-1]}"
    return text, band(steps, rates, _MOST_POINTS)


def _gradient_norm(view: View, run: Run, label: RunLabel) -> list[StepCurve]:
    what = "global gradient norm"
    text, before, received = _gradient_norm_bands(run, view.smooth)
    text = f"{label.text}: {what} {text}"
    if received is None:
        return [StepCurve(label, what, "before clipping", before, text)]
    behind = StepCurve(label, what, "before clipping", before, is_behind=True)
    return [behind, StepCurve(label, what, "after clipping", received, text)]


@remembered("steps")
def _gradient_norm_bands(run: Run, smooth: float) -> tuple[str, Band, Band | None]:
    """The sentence about the norm, the norm, and what is left of it where any is clipped."""
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


def clipped_share(run: Run) -> float:
    """Return the share of the last third of the steps whose gradient was clipped; 0 without one.

    Of them a step is smaller than the learning rate says.
    """
    factors = as_floats(run.read("steps", "clip_factor").column("clip_factor"))
    return float(np.mean(factors[-max(1, len(factors) // 3) :] < 1)) if len(factors) else 0.0


def _sharpness(_view: View, run: Run, label: RunLabel) -> list[StepCurve]:
    rows = probe_rows(run, "sharpness").sort_values("step")
    prefix = "preconditioned_" if rows["preconditioned_sharpness"].notna().any() else ""
    name, limit_name = f"{prefix}sharpness", f"{prefix}threshold"
    rows = rows[rows[name].notna()] if prefix else rows  # before its first update there is no P
    steps, words = rows["step"].to_numpy(np.int64), name.replace("_", " ")
    sharp = rows[name].to_numpy(np.float64, na_value=np.nan)
    limits = rows[limit_name].to_numpy(np.float64, na_value=np.nan)
    text = f"{label.text}: {words} {number(sharp[-1])} {label.at(int(steps[-1]))}"
    curves = []
    if np.isfinite(limits[-1]):
        share, limit = number(sharp[-1] / limits[-1]), number(limits[-1])
        text += f", {share} times the {limit} from which on a step is unstable"
        clipped = clipped_share(run)
        if clipped > CLIPPED:
            text += f" unless it is clipped, as {percent(clipped)} of the late steps are"
        shown = band(steps, limits, _MOST_POINTS)
        curves = [StepCurve(label, words, "threshold", shown, is_behind=True)]
    return [*curves, StepCurve(label, words, words, band(steps, sharp, _MOST_POINTS), f"{text}.")]


def _logged(view: View, run: Run, label: RunLabel) -> list[StepCurve]:
    bands, others = _logged_bands(run, view.smooth)
    if not bands:
        raise not_recorded(
            "numbers of its own were", run, "log them with `recorder.log(accuracy=0.93)`"
        )
    last = [f"{name} {number(shown.middle[-1])}" for name, shown in bands.items()]
    more = f", and {counted(others, 'more name')}" if others else ""
    texts = [f"{label.text}: at last {', '.join(last)}{more}.", *[""] * (len(last) - 1)]
    return [
        StepCurve(label, "logged", name, shown, text)
        for (name, shown), text in zip(bands.items(), texts, strict=True)
    ]


@remembered("steps")
def _logged_bands(run: Run, smooth: float) -> tuple[dict[str, Band], int]:
    """The first numbers that were logged, by name, and how many more there are."""
    logged = [*filter(is_logged, run.read("steps", steps=[]).column_names)]
    names = [
        name
        for name in logged[:_MOST_LOOKED_AT]
        if is_number(run.read("steps", name).schema.field(name).type) and _is_measured(run, name)
    ]
    shown = names[:_MOST_LOGGED]
    columns = {name: _column(run, name) for name in shown}
    bands = {n: band(*column, _MOST_POINTS, smooth=smooth) for n, column in columns.items()}
    return bands, len(names) - len(shown) + len(logged[_MOST_LOOKED_AT:])


def _noise(_view: View, run: Run, label: RunLabel) -> list[StepCurve]:
    rows = probe_rows(run, "noise").sort_values("step")
    steps = rows["step"].to_numpy(np.int64)
    scales = rows["gradient_noise_scale"].to_numpy(np.float64)
    text = (
        f"{label.text}: gradient noise scale {number(scales[0])} samples "
        f"{label.at(int(steps[0]))}, {number(scales[-1])} {label.at(int(steps[-1]))}."
    )
    curve = band(steps, scales, _MOST_POINTS)
    return [StepCurve(label, "gradient noise scale, in samples", "", curve, text)]

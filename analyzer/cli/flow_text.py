"""Sentences about the output gradient of a run: its gain, and what no fit can use."""

import math

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.comparison import Flow, RunFacts
from analyzer.analysis.evidence import NonFinite
from analyzer.analysis.gradient_flow import (
    DepthProfile,
    MedianGain,
    depth_profile,
    median_gain,
    profile_gain,
    span_decades,
)
from analyzer.analysis.training import TrainingSummary
from analyzer.cli.terminal import printable
from analyzer.storage.run import Run

__all__ = ["counted", "gain_lines", "gain_over_steps", "mark_lines", "nonfinite_line", "number"]

_MEDIAN_STEPS = 15
_NAMED_LAYERS = 4
_VERDICTS = {
    Flow.VANISHING: "which is vanishing",
    Flow.EXPLODING: "which is exploding",
    Flow.HEALTHY: "which is healthy",
    Flow.BETWEEN: "neither healthy nor severe",
}


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which gets an s except for 1."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def number(value: float | None, missing: str = "–") -> str:
    """Return three digits, ``NaN``, ``inf`` or, for None, the sign for what was not measured."""
    if value is None:
        return missing
    return "NaN" if math.isnan(value) else f"{value:.3g}"


def gain_over_steps(run: Run, steps: NDArray[np.int64]) -> MedianGain:
    """Return the median gain over at most 15 evenly spaced ones of these steps."""
    places = np.unique(np.linspace(0, len(steps) - 1, _MEDIAN_STEPS).round().astype(int))
    return median_gain([profile_gain(depth_profile(run, int(s))) for s in steps[places]])


def gain_lines(
    profile: DepthProfile, training: TrainingSummary, median: MedianGain, missing: str = "–"
) -> list[str]:
    """Say what the gain is, or why there is none."""
    facts = RunFacts(profile_gain(profile), span_decades(profile), training)
    fit = facts.gain
    if not fit.is_defined:
        return [_no_gain(profile)]
    fallen = fit.decades_fallen
    change = "falls" if fallen >= 0 else "grows"
    used = f"fitted over {counted(fit.num_layers, 'layer')} with parameters"
    if fit.num_zero or fit.num_nonfinite:
        used += (
            f", {fit.num_zero} with a zero and {fit.num_nonfinite} with a non-finite one left out"
        )
    lines = [
        f"Gain {number(fit.gain)} per layer going backward (1 is isometry): the output gradient "
        f"{change} {abs(fallen):.1f} decades from the last layer to the first, "
        f"{_VERDICTS[facts.flow]} ({used}).",
        _ends(profile),
    ]
    if median.num_steps > 1:
        lines.append(f"Median gain over {median.num_steps} steps: {number(median.gain, missing)}.")
    return lines


def _ends(profile: DepthProfile) -> str:
    """The absolute norms at both ends of the fit, and their ratio."""
    rows = np.flatnonzero(profile.has_parameters & profile.usable)
    rows = rows[np.argsort(profile.depths[rows], kind="stable")]
    first, last = profile.norms[rows[0]], profile.norms[rows[-1]]
    names = [printable(profile.names[rows[end]], 40) for end in (-1, 0)]
    return (
        f"Measured: {number(last)} at {names[0]}, {number(first)} at {names[1]}; "
        f"the first over the last is {number(first / last)}."
    )


def _no_gain(profile: DepthProfile) -> str:
    """The reason why a profile has no gain."""
    rows = profile.has_parameters
    if not profile.measured.any():
        return (
            f"No gradient was recorded at step {profile.step}: no backward pass reached a layer. "
            "Is the model frozen, or was torch.no_grad() active?"
        )
    usable = int((rows & profile.usable).sum())
    zero, nonfinite = int((rows & profile.is_zero).sum()), int((rows & profile.is_nonfinite).sum())
    seen = f"{counted(int(rows.sum()), 'layer')} with parameters"
    if nonfinite and not usable:
        return (
            f"No gain: of {seen}, {nonfinite} have a NaN or infinite gradient, {zero} a zero one."
        )
    if zero and not usable:
        return f"No gain: the gradient is exactly zero in {zero} of {seen}."
    return (
        f"No gain: it needs 2 layers of different depth with parameters and a gradient; "
        f"{usable} of {seen} can be used."
    )


def mark_lines(profile: DepthProfile, *, unicode: bool) -> list[str]:
    """Say which layers the chart marks or cannot show."""
    cross, empty = ("✕", "∅") if unicode else ("x", "0")
    rows = (
        (profile.is_nonfinite, f"{cross} NaN or infinite gradient"),
        (profile.is_zero, f"{empty} gradient exactly zero"),
        (~profile.measured, "not drawn, no gradient recorded"),
    )
    return [
        f"{what}: {counted(int(which.sum()), 'layer')} ({_names(profile, which)})"
        for which, what in rows
        if which.any()
    ]


def _names(profile: DepthProfile, which: NDArray[np.bool_]) -> str:
    """The first few of the chosen layers."""
    chosen = [name for name, yes in zip(profile.names, which, strict=True) if yes]
    shown = [printable(name, 40) for name in chosen[:_NAMED_LAYERS]]
    return ", ".join(shown + ["..."] * (len(chosen) > len(shown)))


def nonfinite_line(first: NonFinite, shown: int, steps: NDArray[np.int64]) -> str:
    """Say where the first NaN or infinite value appeared, and which step to look at before it."""
    where = f"the {first.what} of layer {printable(first.name, 60)}"
    line = f"First NaN or infinite value: step {first.step}, in {where}."
    before = steps[steps < first.step]
    return (
        f"{line} The step before: --step {before[-1]}."
        if len(before) and shown >= first.step
        else line
    )

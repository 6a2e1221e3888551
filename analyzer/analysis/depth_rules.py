"""Findings along depth and over time: vanishing, exploding, not finite, shrinking."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import Finding, short, stretch
from analyzer.analysis.gradient_flow import Gain, gain

__all__ = ["explosion", "nonfinite_values", "shrinkage", "vanishing"]

_LEAST_STEPS_OF_A_TREND = 10
_ENDS = 0.1


def _gains(evidence: Evidence) -> list[Gain]:
    """The gain at each judged step, over layers with parameters that a gradient reached."""
    history, rows = evidence.layer_history, evidence.has_parameters
    norms, present = (x["output_gradient_norm"][:, rows] for x in (history.values, history.present))
    depths = evidence.depths[rows]
    return [gain(depths[p], n[p]) for n, p in zip(norms, present, strict=True)]


def _along_depth(
    evidence: Evidence, limits: Mapping[str, float], sign: float, limit: float
) -> tuple[float, float, tuple[int, int]] | None:
    """Median decades of change and gain over the longest sick piece, and its ends."""
    gains = _gains(evidence)
    steps = evidence.layer_history.steps
    decades = sign * np.array([g.decades_fallen for g in gains])
    sick: NDArray[np.bool_] = decades >= limit
    ends = stretch(sick, steps, limits["sustained_share"])
    if ends is None:
        return None
    inside = (steps >= ends[0]) & (steps <= ends[1])
    per_layer = [g.gain for g, yes in zip(gains, inside, strict=True) if yes]
    return float(np.median(decades[inside])), float(np.median(per_layer)), ends


def _with_parameters(evidence: Evidence) -> tuple[str, ...]:
    """Names of the layers that own parameters."""
    pairs = zip(evidence.names, evidence.has_parameters, strict=True)
    return tuple(name for name, owns in pairs if owns)


def vanishing(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """The output gradient falls by decades from the last layer to the first."""
    limit = limits["vanishing_decades"]
    found = _along_depth(evidence, limits, 1.0, limit)
    if found is None:
        return []
    decades, per_layer, steps = found
    return [
        Finding(
            "vanishing",
            "severe",
            _with_parameters(evidence),
            steps,
            decades,
            limit,
            f"The gradient vanishes: it falls {short(decades)} decades from the last layer to the "
            f"first (gain {short(per_layer)} per layer, steps {steps[0]} to {steps[1]}).",
            "Add shortcuts or normalization, or initialize with He's weights: first layers get "
            "no signal.",
        )
    ]


def explosion(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """The output gradient grows by decades from the last layer to the first."""
    limit = limits["exploding_decades"]
    found = _along_depth(evidence, limits, -1.0, limit)
    if found is None:
        return []
    decades, per_layer, steps = found
    return [
        Finding(
            "exploding",
            "severe",
            _with_parameters(evidence),
            steps,
            decades,
            limit,
            f"The gradient explodes: it grows {short(decades)} decades from the last layer to the "
            f"first (gain {short(per_layer)} per layer, steps {steps[0]} to {steps[1]}).",
            "Normalize, scale the branches down (1/√depth, or from zero), or initialize smaller; "
            "clipping hides it from the optimizer only.",
        )
    ]


def nonfinite_values(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """A NaN or infinite value appeared, in a layer or in the loss alone."""
    first, loss_step = evidence.nonfinite, evidence.training.nonfinite_step
    if evidence.end is None:
        return []
    step = evidence.end
    last = max(int(step), int(evidence.run.recorded_steps()[-1]))
    in_layer = first is not None and first.step == step
    what = f"the {first.what} of layer {first.name}" if first and in_layer else "the loss"
    loss = f"; the loss is not finite from step {loss_step} on" if loss_step is not None else ""
    return [
        Finding(
            "nonfinite",
            "severe",
            (first.name,) if first and in_layer else (),
            (step, last),
            float(step),
            None,
            f"A NaN or infinite value appeared first at step {step} in {what}{loss}.",
            f"Look at step {max(0, step - 1)}; lower the learning rate, clip the gradient, or keep "
            "logarithms, divisions and roots away from zero.",
        )
    ]


def shrinkage(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Output gradients shrink over time, and not because the loss does."""
    history, rows = evidence.layer_history, evidence.has_parameters
    steps = history.steps
    loss_fall = _loss_decades(evidence, limits["shrinking_loss"])
    if len(steps) < _LEAST_STEPS_OF_A_TREND or loss_fall is None or not rows.any():
        return []
    norms = history.values["output_gradient_norm"][:, rows]
    width = max(3, math.ceil(_ENDS * len(steps)))
    with np.errstate(divide="ignore", invalid="ignore"):
        early, late = (np.log10(np.median(n, axis=0)) for n in (norms[:width], norms[-width:]))
        fallen = early - late
    limit = limits["shrinking_decades"] + 2 * loss_fall
    known = fallen[np.isfinite(fallen)]
    decades = float(np.median(known)) if len(known) else 0.0
    if decades < limit:
        return []
    shrunk = fallen >= limit
    names = [n for n, yes in zip(_with_parameters(evidence), shrunk, strict=True) if yes]
    first, final = evidence.training.first_loss, evidence.training.final_loss
    return [
        Finding(
            "shrinking",
            "warning",
            tuple(names),
            (int(steps[0]), int(steps[-1])),
            decades,
            limit,
            f"Gradients shrink over time: their norm falls {short(decades)} decades between steps "
            f"{steps[0]} and {steps[-1]}, while the loss goes from {short(first)} to "
            f"{short(final)}.",
            "Units saturate, or the training sits on a plateau: normalize, use ReLU-like units, "
            "or lower the learning rate. At a true minimum, stop.",
        )
    ]


def _loss_decades(evidence: Evidence, limit: float) -> float | None:
    """Decades that the loss fell; None where the training succeeds, 0 where nothing is known."""
    first, final = evidence.training.first_loss, evidence.training.final_loss
    if not (math.isfinite(first) and math.isfinite(final)) or first <= 0:
        return 0.0
    if final < limit * first:
        return None
    return max(0.0, math.log10(first / final))

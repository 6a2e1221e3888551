"""Rules about gradients along depth and over time: vanishing, exploding, not finite, shrinking."""

import math

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import SUSTAINED_SHARE, Limits, Rule, Seen, Threshold, stretch
from analyzer.analysis.gradient_flow import Gain, gain
from analyzer.analysis.numerals import decades, number

__all__ = ["EXPLODING", "NONFINITE", "SHRINKING", "VANISHING"]

_LEAST_STEPS_OF_A_TREND = 10
_ENDS = 0.1


def _gains(evidence: Evidence) -> list[Gain]:
    """The gain at each judged step, over layers with parameters that a gradient reached."""
    history, rows = evidence.layer_history, evidence.has_parameters
    norms, present = (x["output_gradient_norm"][:, rows] for x in (history.values, history.present))
    depths = evidence.depths[rows]
    return [gain(depths[p], n[p]) for n, p in zip(norms, present, strict=True)]


def _along_depth(evidence: Evidence, limits: Limits, sign: float, limit: float) -> Seen | None:
    """Median decades of change and gain over the longest piece beyond the limit."""
    gains = _gains(evidence)
    steps = evidence.layer_history.steps
    changes = sign * np.array([g.decades_fallen for g in gains])
    sick: NDArray[np.bool_] = changes >= limit
    ends = stretch(sick, steps, limits["sustained_share"])
    if ends is None:
        return None
    inside = (steps >= ends[0]) & (steps <= ends[1])
    per_layer = np.median([g.gain for g, yes in zip(gains, inside, strict=True) if yes])
    value = float(np.median(changes[inside]))
    words = {"value": decades(value), "gain": number(float(per_layer))}
    return Seen(value, evidence.owners, ends, words)


def _vanishing(evidence: Evidence, limits: Limits) -> Seen | None:
    return _along_depth(evidence, limits, 1.0, limits["vanishing_decades"])


def _exploding(evidence: Evidence, limits: Limits) -> Seen | None:
    return _along_depth(evidence, limits, -1.0, limits["exploding_decades"])


def _nonfinite(evidence: Evidence, limits: Limits) -> Seen | None:
    first, loss_step = evidence.nonfinite, evidence.training.nonfinite_step
    step = evidence.end
    if step is None:
        return None
    last = max(step, int(evidence.run.recorded_steps()[-1]))
    layer = first if first is not None and first.step == step else None
    words = {
        "what": f"the {layer.what} of layer {layer.name}" if layer else "the loss",
        "before": str(max(0, step - 1)),
        "loss": f"; the loss is not finite from step {loss_step} on"
        if loss_step is not None
        else "",
    }
    return Seen(float(step), (layer.name,) if layer else (), (step, last), words)


def _shrinking(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether gradients shrink over time, and not because the loss does."""
    steps = evidence.layer_history.steps
    loss_fall = _loss_decades(evidence, limits["shrinking_loss"])
    if len(steps) < _LEAST_STEPS_OF_A_TREND or loss_fall is None or not evidence.owners:
        return None
    norms = evidence.layer_history.values["output_gradient_norm"][:, evidence.has_parameters]
    width = max(3, math.ceil(_ENDS * len(steps)))
    with np.errstate(divide="ignore", invalid="ignore"):
        early, late = (np.log10(np.median(n, axis=0)) for n in (norms[:width], norms[-width:]))
        fallen = early - late
    limit = limits["shrinking_decades"] + 2 * loss_fall
    known = fallen[np.isfinite(fallen)]
    value = float(np.median(known)) if len(known) else 0.0
    if value < limit:
        return None
    names = tuple(n for n, yes in zip(evidence.owners, fallen >= limit, strict=True) if yes)
    training = evidence.training
    losses = {"start": number(training.first_loss), "end": number(training.final_loss)}
    words = {"value": decades(value), **losses}
    return Seen(value, names, (int(steps[0]), int(steps[-1])), words, limit)


def _loss_decades(evidence: Evidence, limit: float) -> float | None:
    """Decades that the loss fell; None where the training succeeds, 0 where nothing is known."""
    first, final = evidence.training.first_loss, evidence.training.final_loss
    if not (math.isfinite(first) and math.isfinite(final)) or first <= 0:
        return 0.0
    if final < limit * first:
        return None
    return max(0.0, math.log10(first / final))


VANISHING = Rule(
    code="vanishing",
    severity="severe",
    seen_when="the fitted output gradient falls by decades from the last layer to the first, "
    "sustained",
    value="decades",
    reads={"layers": ("output_gradient_norm",)},
    look=_vanishing,
    sentence="The gradient vanishes: it falls {value} from the last layer to the first "
    "(gain {gain} per layer, steps {first} to {last}).",
    remedy="Add shortcuts or normalization, or use He initialization: the first layers get no "
    "signal.",
    thresholds=(
        Threshold(
            "vanishing_decades",
            3.0,
            "decades that the fitted output gradient falls from the last layer to the first; one "
            "learning rate then serves layers whose gradients differ a thousandfold",
        ),
        SUSTAINED_SHARE,
    ),
    hides=("dead", "dead_units", "update_too_small", "shrinking"),
    hides_everywhere=True,
)

EXPLODING = Rule(
    code="exploding",
    severity="severe",
    seen_when="it grows by decades on that way, sustained",
    value="decades",
    reads={"layers": ("output_gradient_norm",)},
    look=_exploding,
    sentence="The gradient explodes: it grows {value} from the last layer to the first "
    "(gain {gain} per layer, steps {first} to {last}).",
    remedy="Normalize, scale the branches down (1/√depth, or from zero), or initialize smaller; "
    "clipping hides it from the optimizer only.",
    thresholds=(
        Threshold("exploding_decades", 3.0, "decades that it grows on that way; same reason"),
        SUSTAINED_SHARE,
    ),
    hides=("update_too_large",),
    hides_everywhere=True,
)

NONFINITE = Rule(
    code="nonfinite",
    severity="severe",
    seen_when="a NaN or infinite value appears; the first layer and step are named. Steps that a "
    "gradient scaler skipped do not count",
    value="step",
    reads={
        "nonfinite": ("activation_num_nonfinite", "output_gradient_num_nonfinite"),
        "steps": ("loss",),
    },
    look=_nonfinite,
    sentence="A NaN or infinite value appeared first at step {first} in {what}{loss}.",
    remedy="Look at step {before}; lower the learning rate, clip the gradient, or keep "
    "logarithms, divisions and roots away from zero.",
)

SHRINKING = Rule(
    code="shrinking",
    severity="warning",
    seen_when="gradients shrink over time while the loss does not",
    value="decades",
    reads={"layers": ("output_gradient_norm",), "steps": ("loss",)},
    look=_shrinking,
    sentence="Gradients shrink over time: their norm falls {value} between steps {first} "
    "and {last}, while the loss goes from {start} to {end}.",
    remedy="Units saturate, or the training is on a plateau: normalize, use ReLU-like units, or "
    "lower the learning rate. At a true minimum, stop.",
    thresholds=(
        Threshold(
            "shrinking_decades",
            2.0,
            "decades that the output gradients fall from the first tenth of the steps to the last, "
            "beyond two for each decade that the loss falls",
        ),
        Threshold(
            "shrinking_loss",
            0.5,
            "final loss over first loss; below it the gradients shrink because the training "
            "succeeds",
        ),
    ),
)

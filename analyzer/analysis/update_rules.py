"""Rules about updates: by how much they move the weights, and why they do not."""

import math

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.cause_rules import DEAD, EXPLODED, FLAT
from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import SUSTAINED_SHARE, Limits, Rule, Seen, Threshold, named, stretch
from analyzer.analysis.numerals import number
from analyzer.storage.arrays import as_floats

__all__ = [
    "UPDATE_TOO_LARGE",
    "UPDATE_TOO_SMALL",
    "WEIGHTS_DECAYED",
    "WEIGHTS_FIXED",
    "median_update_ratios",
]

Floats = NDArray[np.float64]

# Warm-up and the end of a decay say nothing about the updates that train.
_LEAST_RATE = 0.1


def median_update_ratios(evidence: Evidence) -> Floats:
    """Return the median over steps of ``‖Δθ‖ / ‖θ‖`` of each parameter, ``[parameters]``.

    Steps with a learning rate below a tenth of the largest are left out, and those at which the
    parameter was zero or received no gradient or one that is exactly zero. NaN where nothing is
    left, for parameters that are not trained, and for those with fewer than two axes: a bias or a
    gain that starts at zero moves by any ratio.
    """
    history = evidence.update_history
    norms, moved = history.values["norm"], history.values["update_norm"]
    counts = (norms > 0) & (history.values["gradient_norm"] > 0) & np.isfinite(moved)
    counts &= _at_full_rate(evidence, history.steps)[:, None]
    is_weight = np.array([len(shape) > 1 for shape in evidence.parameters["shape"]], bool)
    counts &= is_weight & evidence.parameters["trained"].to_numpy(bool)
    ratios = np.full(len(is_weight), np.nan)
    for place in np.flatnonzero(counts.any(axis=0)):
        some = counts[:, place]
        ratios[place] = np.median(moved[some, place] / norms[some, place])
    return ratios


def _at_full_rate(evidence: Evidence, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the learning rate of each step is at least a tenth of the largest."""
    if not len(steps):
        return np.zeros(0, bool)
    rows = evidence.run.read("steps", "learning_rate", steps=steps)
    place = np.searchsorted(steps, rows.column("step").to_numpy())
    rates = np.full(len(steps), np.nan)
    rates[place] = as_floats(rows.column("learning_rate"))
    if not np.isfinite(rates).any():
        return np.ones(len(steps), bool)
    # What moved the weights before an optimizer existed, such as their initialization, is no rate.
    full: NDArray[np.bool_] = rates >= _LEAST_RATE * np.nanmax(rates)
    return full


def _updates(
    evidence: Evidence, ratios: Floats, chosen: NDArray[np.bool_], worst: float
) -> Seen | None:
    """What is seen of the chosen weights; None where there are none."""
    if not chosen.any():
        return None
    weights = tuple(map(str, evidence.parameters["name"][chosen]))
    steps = evidence.update_history.steps
    words = {
        "count": str(int(chosen.sum())),
        "all": str(int(np.isfinite(ratios).sum())),
        "names": named(weights),
    }
    ends = int(steps[0]), int(steps[-1])
    return Seen(worst, evidence.layers_of(chosen) or weights, ends, words)


def _small_updates(evidence: Evidence, limits: Limits) -> Seen | None:
    ratios = median_update_ratios(evidence)
    if evidence.has_learned:
        return None  # there is little left to move for
    # A branch with a small scale gets a small gradient, which is its purpose.
    branches = evidence.layers["layer"].to_numpy()[evidence.has_parameters & ~evidence.trunk]
    in_branch = evidence.parameters["layer"].isin(branches).to_numpy(bool)
    chosen = (ratios < limits["update_ratio_low"]) & ~in_branch
    return _updates(evidence, ratios, chosen, float(ratios[chosen].min(initial=math.inf)))


def _large_updates(evidence: Evidence, limits: Limits) -> Seen | None:
    ratios = median_update_ratios(evidence)
    chosen = ratios > limits["update_ratio_high"]
    return _updates(evidence, ratios, chosen, float(ratios[chosen].max(initial=-math.inf)))


def _fixed(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether the norm of every weight stays exactly equal, though gradients arrive."""
    history, run = evidence.parameter_history, evidence.run
    if len(history.steps) < 2 or not run.manifest.get("optimizers"):
        return None
    norms, gradients = history.values["norm"], history.values["gradient_norm"]
    is_weight = np.array([len(shape) > 1 for shape in evidence.parameters["shape"]], bool)
    is_weight &= evidence.parameters["trained"].to_numpy(bool) & (gradients > 0).any(axis=0)
    if not is_weight.any():
        return None
    still = (np.diff(norms[:, is_weight], axis=0) == 0).all(axis=1)
    piece = stretch(still, history.steps[:-1], limits["sustained_share"])
    if piece is None:
        return None
    inside = (history.steps[:-1] >= piece[0]) & (history.steps[:-1] <= piece[1])
    rates = as_floats(
        run.read("steps", "learning_rate", steps=slice(piece[0], piece[1] + 1)).column(
            "learning_rate"
        )
    )
    rate = float(np.nanmax(rates)) if np.isfinite(rates).any() else math.nan
    why, remedy = (
        "the updates are smaller than what the weights can hold (learning rate {rate})",
        "Raise the learning rate, or hold the weights in float32",
    )
    if rate == 0:
        why = "the learning rate is 0"
        remedy = "Look at the schedule of the learning rate: give it a length that fits the run"
    elif math.isnan(rate):
        why = "no optimizer that makes a step holds them"
        remedy = (
            "Give the parameters of the model that is trained to the optimizer: after a copy, a "
            "move to another device or a replaced layer they are other ones"
        )
    words = {
        "why": why.format(rate=number(rate)),
        "remedy": remedy,
        "count": str(int(is_weight.sum())),
    }
    return Seen(float(inside.mean()), evidence.layers_of(is_weight), piece, words)


def _decayed(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether weight decay has taken most weights away, in a training that learns nothing."""
    optimizers = evidence.run.manifest.get("optimizers") or ()
    decay = max((float(one.get("weight_decay") or 0) for one in optimizers), default=0.0)
    history, training = evidence.parameter_history, evidence.training
    if not decay or len(history.steps) < 2 or not training.final_loss > 0.9 * training.first_loss:
        return None
    norms = history.values["norm"]
    is_weight = np.array([len(shape) > 1 for shape in evidence.parameters["shape"]], bool)
    is_weight &= evidence.parameters["trained"].to_numpy(bool) & (norms[0] > 0)
    left = np.where(is_weight, norms[-1] / np.where(norms[0] > 0, norms[0], 1.0), np.nan)
    chosen = left < limits["weights_left"]
    if not chosen.any() or chosen.sum() < 0.5 * is_weight.sum():
        return None
    words = {"count": str(int(chosen.sum())), "all": str(int(is_weight.sum()))}
    words |= {"decay": number(decay), "start": number(training.first_loss)}
    words["end"] = number(training.final_loss)
    ends = int(history.steps[0]), int(history.steps[-1])
    return Seen(float(np.median(left[chosen])), evidence.layers_of(chosen), ends, words)


_MEASURED_UPDATES = {"updates": ("gradient_norm", "norm", "update_norm")}

UPDATE_TOO_SMALL = Rule(
    code="update_too_small",
    severity="warning",
    seen_when="weights hardly move although a gradient reaches them",
    value="‖Δθ‖ / ‖θ‖",
    reads=_MEASURED_UPDATES,
    look=_small_updates,
    sentence="{count} of {all} weights hardly move ({names}): at worst the median update is "
    "{value} of the weight's norm.",
    remedy="Raise the learning rate of these weights; look for a second optimizer, a zero learning "
    "rate, or a loss that is scaled down.",
    thresholds=(
        Threshold(
            "update_ratio_low",
            1e-6,
            "median ‖Δθ‖ / ‖θ‖ of a weight; a million steps would then move it by its own size",
        ),
    ),
    panel="update_ratio",
)

UPDATE_TOO_LARGE = Rule(
    code="update_too_large",
    severity="warning",
    seen_when="a few updates replace the weights",
    value="‖Δθ‖ / ‖θ‖",
    reads=_MEASURED_UPDATES,
    look=_large_updates,
    sentence="{count} of {all} weights are replaced by their updates ({names}): at worst the "
    "median update is {value} of the weight's norm.",
    remedy="Lower the learning rate, warm it up, or clip.",
    thresholds=(
        Threshold(
            "update_ratio_high", 0.1, "median ‖Δθ‖ / ‖θ‖ of a weight; ten steps then replace it"
        ),
    ),
    hides=("dead_units", "shrinking"),
    hides_everywhere=True,
    panel="update_ratio",
)

WEIGHTS_DECAYED = Rule(
    code="weights_decayed",
    severity="severe",
    seen_when="weight decay takes most weights away, and the loss does not fall",
    value="share of the first norm",
    reads={"parameters": ("norm",), "steps": ("loss",)},
    look=_decayed,
    sentence="Weight decay takes the weights away: at step {last} {count} of {all} have {value} of "
    "their first norm (median), and the loss does not fall ({start} to {end}).",
    remedy="Divide the weight decay, {decay}, by 100 or more; gradients that vanish are its "
    "consequence.",
    thresholds=(
        Threshold(
            "weights_left",
            0.1,
            "norm of a weight over the one at the first step, for half of the weights or more",
        ),
    ),
    hides=("vanishing", "vanishes_at_first", *EXPLODED, *FLAT, *DEAD),
    hides_everywhere=True,
    panel="update_ratio",
)


WEIGHTS_FIXED = Rule(
    code="weights_fixed",
    severity="warning",
    seen_when="no weight changes though gradients arrive, sustained",
    value="share of the steps",
    reads={"parameters": ("norm", "gradient_norm")},
    look=_fixed,
    sentence="No weight changes from step {first} to {last}, though gradients arrive at {count}: "
    "{why}.",
    remedy="{remedy}.",
    thresholds=(SUSTAINED_SHARE,),
    hides=FLAT,
    hides_everywhere=True,
    panel="update_ratio",
)

"""Rules about the gradient along depth: its trend, at the first step, and where it jumps."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import SUSTAINED_SHARE, Limits, Rule, Seen, Threshold, stretch
from analyzer.analysis.numerals import decades, number

__all__ = ["CLIFF", "EXPLODES_AT_FIRST", "EXPLODING", "VANISHES_AT_FIRST", "VANISHING", "changes"]

Floats = NDArray[np.float64]
_SAME_RATE = 0.01
# Decades within which a gradient is healthy, as verdicts have it.
_RECOVERED = 1.5


def changes(evidence: Evidence, sign: float) -> Floats:
    """Return the decades that the fit falls (``sign`` 1) or grows (−1) at each judged step.

    From the last layer to the first, over layers with parameters on the trunk; NaN without two.
    """
    fallen: Floats = sign * np.array([g.decades_fallen for g in evidence.gains])
    return fallen


def _along_depth(sign: float, limit: str, evidence: Evidence, limits: Limits) -> Seen | None:
    """Median decades of change and gain over the longest piece beyond the limit."""
    steps, changed = evidence.layer_history.steps, changes(evidence, sign)
    ends = stretch(changed >= limits[limit], steps, limits["sustained_share"])
    if ends is None:
        return None
    return _changed(evidence, changed, ends)


def _changed(evidence: Evidence, changed: Floats, ends: tuple[int, int]) -> Seen:
    """The medians over some judged steps."""
    steps, gains = evidence.layer_history.steps, evidence.gains
    inside = (steps >= ends[0]) & (steps <= ends[1])
    per_layer = np.median([g.gain for g, yes in zip(gains, inside, strict=True) if yes])
    value = float(np.median(changed[inside]))
    words = {"value": decades(value), "gain": number(float(per_layer))}
    # Activations and norms are layers, too: of a net of three kinds in turn 1.21 becomes 1.07.
    weights = evidence.layers[evidence.has_parameters & (evidence.layers["role"] != "shortcut")]
    passed = int((~weights["kind"].astype(str).str.contains("Norm")).sum()) - 1
    falls = np.array([g.decades_fallen for g, yes in zip(gains, inside, strict=True) if yes])
    rate = 10.0 ** -(float(np.median(falls)) / passed) if passed > 0 else per_layer
    is_other = abs(rate - per_layer) > _SAME_RATE * per_layer
    words["rate"] = f", {number(rate)} per layer with weights" if is_other else ""
    return Seen(value, evidence.owners, ends, words)


def _at_first(sign: float, limit: str, evidence: Evidence, limits: Limits) -> Seen | None:
    """What the first step shows and a later one does not any more."""
    steps, changed = evidence.layer_history.steps, changes(evidence, sign)
    sick = changed >= limits[limit]
    if len(steps) < 2 or not sick[0] or sick.all():
        return None
    later = np.flatnonzero(changed < _RECOVERED)
    well = int(later[0]) if len(later) else len(steps) - 1
    first = int(steps[0])
    seen = _changed(evidence, changed, (first, first))
    jumps = [
        (abs(x[0]), name)
        for name, x, over in _jumps(evidence)
        if over[0] * sign >= limits["cliff_decades"]
    ]
    where = f", {decades(max(jumps)[0])} at {max(jumps)[1]} alone" if jumps else ""
    verb = "falls" if sign * changed[well] > 0 else "grows"
    then = f"{'recovers' if len(later) else 'is still on its way'}: at step {int(steps[well])} it "
    then += f"{verb} {decades(abs(float(changed[well])))}"
    return Seen(seen.value, seen.layers, seen.steps, {**seen.words, "then": then, "where": where})


def _cliff(evidence: Evidence, limits: Limits) -> Seen | None:
    """The layer at which the gradient changes most from one depth of the trunk to the next."""
    steps, share = evidence.layer_history.steps, limits["sustained_share"]
    best: tuple[float, str, tuple[int, int]] | None = None
    for name, falls, beyond in _jumps(evidence):
        ends = stretch(np.abs(beyond) >= limits["cliff_decades"], steps, share)
        if ends is None:
            continue
        inside = (steps >= ends[0]) & (steps <= ends[1])
        value = float(np.median(falls[inside]))
        if best is None or abs(value) > abs(best[0]):
            best = value, name, ends
    if best is None:
        return None
    value, name, ends = best
    words = {"value": decades(abs(value)), "how": "falls" if value > 0 else "grows", "name": name}
    return Seen(abs(value), (name,), ends, words)


def _jumps(evidence: Evidence) -> Iterator[tuple[str, Floats, Floats]]:
    """Each layer of the trunk, the decades that the gradient falls in it going backward, [steps].

    Then how much of it is beyond the median over layers.
    """
    history = evidence.layer_history
    logs = _logs(history.values["output_gradient_norm"])
    for places in _trunks(evidence) if len(history.steps) else ():
        # One layer a depth: the one with the largest gradient is on the main way.
        names, norms = [], []
        depths = evidence.layers["depth"].to_numpy()[places]
        for depth in np.unique(depths):
            here = places[depths == depth]
            largest = here[np.argmax(np.nan_to_num(logs[:, here], nan=-np.inf).mean(axis=0))]
            names.append(str(evidence.layers["name"].iloc[largest]))
            norms.append(logs[:, largest])
        if len(norms) > 2:
            falls = np.diff(np.stack(norms, axis=1), axis=1)
            yield from zip(names[1:], falls.T, (falls - _usual(falls)).T, strict=True)


def _usual(falls: Floats) -> Floats:
    """The median over layers at each step, ``[steps, 1]``; 0 where there are too few for one."""
    known = [row[np.isfinite(row)] for row in falls]
    return np.array([[np.median(row) if len(row) > 2 else 0.0] for row in known])


def _logs(norms: Floats) -> Floats:
    """Decimal logarithms; NaN where a norm is zero or not known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: Floats = np.where(norms > 0, np.log10(norms), np.nan)
    return logs


def _trunks(evidence: Evidence) -> list[NDArray[np.int64]]:
    """The places of the layers of each root model's trunk."""
    places = np.flatnonzero(evidence.trunk)
    if (evidence.conditions.get("roots") or 1) < 2:
        return [places]
    roots = np.array([str(evidence.layers["name"].iloc[p]).partition(".")[0] for p in places])
    return [places[roots == root] for root in np.unique(roots)]


VANISHING = Rule(
    code="vanishing",
    severity="severe",
    seen_when="the fitted output gradient falls by decades from the last layer to the first, "
    "sustained",
    value="decades",
    reads={"layers": ("output_gradient_norm",)},
    look=partial(_along_depth, 1.0, "vanishing_decades"),
    sentence="The gradient vanishes: it falls {value} from the last layer to the first "
    "(gain {gain} per layer{rate}, steps {first} to {last}).",
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
    hides=(
        "dead",
        "dead_units",
        "update_too_small",
        "shrinking",
        "step_too_small",
        "chance_level",
        "vanishes_at_first",
    ),
    hides_everywhere=True,
)

EXPLODING = Rule(
    code="exploding",
    severity="severe",
    seen_when="it grows by decades on that way, sustained",
    value="decades",
    reads={"layers": ("output_gradient_norm",)},
    look=partial(_along_depth, -1.0, "exploding_decades"),
    sentence="The gradient explodes: it grows {value} from the last layer to the first "
    "(gain {gain} per layer{rate}, steps {first} to {last}).",
    remedy="Normalize, scale the branches down (1/√depth, or from zero), or initialize smaller; "
    "clipping hides it from the optimizer only.",
    thresholds=(
        Threshold("exploding_decades", 3.0, "decades that it grows on that way; same reason"),
        SUSTAINED_SHARE,
    ),
    hides=("update_too_large", "stream_grows", "explodes_at_first"),
    hides_everywhere=True,
)


VANISHES_AT_FIRST = Rule(
    code="vanishes_at_first",
    severity="warning",
    seen_when="the gradient vanishes at the first step, and not in the training as a whole",
    value="decades",
    reads={"layers": ("output_gradient_norm",)},
    look=partial(_at_first, 1.0, "vanishing_decades"),
    sentence="At step {first} the gradient vanishes: it falls {value} from the last layer to the "
    "first (gain {gain} per layer{rate}){where}. It {then}.",
    remedy="Initialize larger (He, orthogonal), add shortcuts, or normalize; the first steps train "
    "the last layers alone.",
    thresholds=VANISHING.thresholds[:1],
)

EXPLODES_AT_FIRST = Rule(
    code="explodes_at_first",
    severity="warning",
    seen_when="the gradient explodes at the first step, and not in the training as a whole",
    value="decades",
    reads={"layers": ("output_gradient_norm",)},
    look=partial(_at_first, -1.0, "exploding_decades"),
    sentence="At step {first} the gradient explodes: it grows {value} from the last layer to the "
    "first (gain {gain} per layer{rate}){where}. It {then}.",
    remedy="Add shortcuts, initialize smaller, or warm up the learning rate: a deep network with "
    "batch norm and no shortcuts starts with a gain of 1.2 per layer.",
    thresholds=EXPLODING.thresholds[:1],
)

CLIFF = Rule(
    code="cliff",
    severity="severe",
    seen_when="the gradient changes by decades at one layer of the trunk, sustained",
    value="decades",
    reads={"layers": ("output_gradient_norm",)},
    look=_cliff,
    sentence="The gradient {how} by {value} at one layer, {name} (steps {first} to {last}).",
    remedy="Look at {name} and at what follows its inputs: the scale of its weights, of its "
    "initialization, or a factor in forward(). Initialize it like the other layers.",
    thresholds=(
        Threshold(
            "cliff_decades",
            2.5,
            "decades between the output gradients of a layer and of the next one of the trunk, "
            "beyond the median over layers; pooling 1,000 positions into one takes 1.5",
        ),
        SUSTAINED_SHARE,
    ),
    hides=("vanishing", "exploding", "vanishes_at_first", "explodes_at_first", "chance_level"),
    hides_everywhere=True,
)

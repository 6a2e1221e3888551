"""The exponent with which a size grows with width, beside what is expected of it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyzer.errors import AnalyzerError
from analyzer.studies.coordinate_sizes import COMMON, GRADIENTS, INPUT, SCATTERED, Key
from analyzer.studies.expected_growth import (
    Expected,
    Parts,
    expected_growth,
    roles_of,
    usual_gradient,
)
from analyzer.studies.published import interval_of, slope

__all__ = ["QUANTITIES", "Growth", "expect_same_names", "judged", "short"]

QUANTITIES = ("own activation", "activation", "gradient", "own update", "update")
# Right and wrong parametrizations differ by halves.
_HALF_WAY = 0.25
# Fewer have intervals too wide for that.
_FEWEST_SEEDS = 6


@dataclass(frozen=True)
class Growth:
    """How one quantity of one layer, or of one of its parameters, grows with width.

    Args:
        layer: Name of the layer, the same at all widths.
        parameter: Its name in the layer; empty for what is of the whole layer.
        role: ``input`` (its fan-in does not grow with width), ``hidden``, ``output`` (its output
            does not), ``fixed`` (neither does), ``vector`` (a bias or gain whose length grows) or
            ``scores`` (what the softmax of an attention is given).
        quantity: ``own activation``, ``activation``, ``gradient``, ``own update`` or ``update``.
        step: Updates that were made before: 0 for activation and gradient.
        exponent: The mean over seeds of the fitted exponent; NaN where a value is 0 or not finite.
        interval: 95 %, Student's t over seeds.
        expected: The largest that the parametrization allows; None where it says nothing.
        lowest: The smallest; None where less is right, too.
        verdict: ``as expected`` | ``differs`` | ``unclear`` | ``not judged``.
        reason: Why it is not judged.
        seeds: How many would probably settle what is unclear.
    """

    layer: str
    parameter: str
    role: str
    quantity: str
    step: int
    depth: int | None
    exponent: float
    interval: tuple[float, float] | None
    expected: float | None
    lowest: float | None
    verdict: str
    reason: str = ""
    seeds: int = 0

    def sentence(self) -> str:
        """Return what is found in words, as in ``layer fc2 grows as width^0.5, expected 0``."""
        what = "" if self.quantity == "activation" else f"{self.quantity} of "
        which = f" ({self.parameter})" if self.parameter else ""
        after = f" after step {self.step}" if self.step > 1 else ""
        at_depth = "" if self.depth is None else f" at depth {self.depth}"
        low, high = self.interval or (self.exponent, self.exponent)
        return (
            f"{what}layer {self.layer}{which}{at_depth}{after} grows as "
            f"width^{short(self.exponent)} ({short(low)} to {short(high)}), expected "
            f"{self.expectation()}"
        )

    def expectation(self) -> str:
        """Return what is expected in words; empty where nothing is."""
        if self.expected is None:
            return ""
        if self.lowest is None:
            return f"at most {short(self.expected)}"
        low = short(self.lowest)
        return low if low == short(self.expected) else f"{low} to {short(self.expected)}"


def judged(
    parametrization: str,
    rule: str,
    depth: int | None,
    values: Mapping[Key, Mapping[int, Sequence[float]]],
    parts: Mapping[int, Parts],
) -> list[Growth]:
    """Return the exponent of each quantity, with what is expected of it.

    Args:
        parametrization: One of `PARAMETRIZATIONS`.
        rule: That of the optimizer, as `rule_of` has it.
        depth: Noted with each.
        values: By quantity and seed, one for each width.
        parts: What is measured at each width.
    """
    widths = tuple(parts)
    first = parts[widths[0]]
    roles = roles_of(first, parts[widths[-1]], widths[-1] / widths[0])
    slopes = {
        key: [_slope(widths, curve) for curve in _coherent(key, values, roles)]
        for key in values
        if key[0] != SCATTERED
    }
    facts = _facts(first, roles, slopes)
    drifts = _drifts(first, roles, slopes)
    found: list[Growth] = []
    decided: set[tuple[str, str]] = set()
    for key, measured in slopes.items():
        quantity, step, layer, parameter = key
        if quantity in (COMMON, GRADIENTS, INPUT) or (
            quantity == "own update" and key[2:] in decided
        ):
            continue
        role, by_seed = roles[layer, parameter], measured
        usual = usual_gradient(parametrization, roles.get((layer, ""), ""))
        gradients = slopes.get((GRADIENTS, step, layer, ""), [usual] * len(by_seed))
        is_of_sgd = quantity == "own update" and rule == "SGD"
        if is_of_sgd:
            by_seed = _without(by_seed, [one - usual for one in gradients])
        if quantity.startswith("own") and first[layer, parameter].reads_input:
            by_seed = _without(by_seed, [(1 + is_of_sgd) * one for one in drifts[layer]])
        expected = expected_growth(parametrization, rule, quantity, role, **facts[layer, parameter])
        if quantity == "own update" and -math.inf in gradients:
            expected = Expected(reason="no gradient arrives at a width")
        fitted = statistics.fmean(by_seed), interval_of(by_seed)
        verdict, reason, seeds = _verdict(*fitted, by_seed, expected)
        if quantity == "own update" and verdict != "not judged":
            decided.add((layer, parameter))
        what = (layer, parameter, role, quantity, step, depth)
        bounds = (expected.highest, expected.lowest)
        found.append(Growth(*what, *fitted, *bounds, verdict, reason, seeds))
    return found


def _without(slopes: list[float], others: list[float]) -> list[float]:
    """Return exponents without those of something else, where these are known."""
    if not all(map(math.isfinite, others)):
        return slopes
    return [one - other for one, other in zip(slopes, others, strict=True)]


def _drifts(
    parts: Parts, roles: Mapping[tuple[str, str], str], slopes: Mapping[Key, list[float]]
) -> dict[str, list[float]]:
    """Return the exponent of each layer's input, by seed, that the layers before leave to it.

    What comes between them and the layer is no part of it: where the input has another exponent
    than the activation before, by halves, the network multiplies by a power of the width there, and
    does so on purpose.
    """
    found: dict[str, list[float]] = {}
    before: list[float] = []
    for layer in dict.fromkeys(layer for layer, _ in parts):
        inputs = slopes.get((INPUT, 0, layer, ""), [])
        known = before or [0.0] * len(inputs)
        if all(map(math.isfinite, (*inputs, *known))):
            between = statistics.fmean(inputs) - statistics.fmean(known) if inputs else 0.0
            found[layer] = [one - round(2 * between) / 2 for one in inputs]
        else:
            found[layer] = [0.0] * len(inputs)
        if roles[layer, ""] in ("input", "hidden", "vector"):
            before = slopes.get(("activation", 0, layer, ""), before)
    return found


def _facts(
    parts: Parts,
    roles: Mapping[tuple[str, str], str],
    slopes: Mapping[Key, list[float]],
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what `expected_growth` has to know of each layer and parameter."""
    place = {layer: k for k, layer in enumerate(dict.fromkeys(layer for layer, _ in parts))}
    growing = [place[layer] for (layer, _), role in roles.items() if role in ("input", "hidden")]
    inner = {
        (layer, parameter)
        for (layer, parameter), role in roles.items()
        if role == "output" and place[layer] < max(growing, default=-1)
    }
    first_inner = min((place[layer] for layer, _ in inner), default=len(place))
    tied = _tied(parts, roles)
    of_biases = [0.0] * len(place)
    common = dict.fromkeys(place, 0.0)
    for (quantity, _, layer, parameter), by_seed in slopes.items():
        exponent = statistics.fmean(by_seed)
        if quantity == COMMON and math.isfinite(exponent):
            common[layer] = min(0.0, exponent)
        is_bias = quantity == "own activation" and parts[layer, parameter].is_vector
        if is_bias and -math.inf < exponent < -_HALF_WAY:
            of_biases[place[layer]] = min(of_biases[place[layer]], exponent)
    so_far = list(itertools.accumulate(of_biases, min))
    return {
        (layer, parameter): {
            "is_affine": part.is_affine,
            "is_tied": (layer, parameter) in tied,
            "is_inner": (layer, parameter) in inner,
            "is_behind_inner": place[layer] >= first_inner,
            "of_biases": so_far[place[layer]],
            "of_alignment": 2 * common[layer] if part.reads_input else 0.0,
        }
        for (layer, parameter), part in parts.items()
    }


def _coherent(
    key: Key,
    values: Mapping[Key, Mapping[int, Sequence[float]]],
    roles: Mapping[tuple[str, str], str],
) -> list[Sequence[float]]:
    """Return what is measured, by seed; of an own update where a fan-in grows its coherent part.

    A sum over n inputs that act together grows as n, one of random signs as √n, and a sum of both
    has no clean exponent. The squares add up, so the second is subtracted. NaN where it is more.
    """
    quantity, step, layer, parameter = key
    measured = list(values[key].values())
    if quantity != "own update" or roles[layer, parameter] not in ("hidden", "output"):
        return measured
    random = values[SCATTERED, step, layer, parameter].values()
    return [
        [_difference(one, other) for one, other in zip(*pair, strict=True)]
        for pair in zip(measured, random, strict=True)
    ]


def _difference(whole: float, part: float) -> float:
    if whole == 0 or not math.isfinite(whole):
        return whole
    return math.sqrt(whole**2 - part**2) if part < whole else math.nan


def expect_same_names(parts: Mapping[int, Parts]) -> None:
    """Refuse layers that differ by width.

    Raises:
        AnalyzerError: If one is not at every width.
    """
    first, *others = map(set, parts.values())
    if missing := set().union(*(first ^ other for other in others)):
        names = sorted(".".join(filter(None, key)) for key in missing)
        raise AnalyzerError(
            f"the layers differ by width: {', '.join(names[:3])}; expected the same names at each. "
            "Let build_model change nothing but the width."
        )


def _tied(parts: Parts, roles: Mapping[tuple[str, str], str]) -> set[tuple[str, str]]:
    """Return the parameters that have another role in another layer, and these layers."""
    by_identity: dict[int, set[str]] = {}
    for key, part in parts.items():
        by_identity.setdefault(part.identity, set()).add(roles[key])
    names = {key for key, part in parts.items() if key[1] and len(by_identity[part.identity]) > 1}
    return names | {(layer, "") for layer, _ in names}


def _slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of ln(value) over ln(width); −∞ where a value is 0, NaN for no number."""
    if not all(map(math.isfinite, values)):
        return math.nan
    if 0 in values:
        return -math.inf
    return slope((math.log(x), math.log(y)) for x, y in zip(widths, values, strict=True))


def _verdict(
    exponent: float,
    interval: tuple[float, float] | None,
    by_seed: Sequence[float],
    expected: Expected,
) -> tuple[str, str, int]:
    """Return the verdict, the reason for none, and how many seeds would decide."""
    if expected.highest is None:
        return "not judged", expected.reason, 0
    if exponent == -math.inf:
        return "not judged", "0 or rounding at a width", 0
    if interval is None:
        return "unclear", "not finite, or lost in noise, at a width", 0
    low, high = interval
    most = expected.highest + _HALF_WAY
    least = -math.inf if expected.lowest is None else expected.lowest - _HALF_WAY
    if least <= low and high <= most:
        return "as expected", "", 0
    if low > most or high < least:
        return "differs", "", 0
    distance = min(abs(exponent - most), abs(exponent - least))
    if low <= most - _HALF_WAY and high >= least + _HALF_WAY:
        # What is expected is in the interval: the mean may lie nearer to it with more seeds.
        distance = max(distance, _HALF_WAY / 2)
    # Student's t of a few seeds, about.
    needed = (2.6 * statistics.stdev(by_seed) / max(distance, 1e-3)) ** 2
    return "unclear", "", max(len(by_seed) + 1, _FEWEST_SEEDS, math.ceil(needed))


def short(value: float | None) -> str:
    """Return an exponent with two digits behind the point, and none that say nothing."""
    if value is None or not math.isfinite(value):
        return "?"
    return f"{round(value, 2) + 0.0:g}".replace("-", "−")

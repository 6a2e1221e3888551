"""When the answers of a verdict are yes: amounts, and the limits that they must exceed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analyzer.analysis.claim_numbers import Measured
from analyzer.analysis.finding import markdown_table
from analyzer.analysis.numerals import number

__all__ = [
    "BEYOND_THE_EDGE",
    "LIMITS",
    "Amounts",
    "Conditions",
    "Limit",
    "cliff",
    "collapsed",
    "conditioned",
    "edge",
    "exploding",
    "lesion",
    "limits_table",
    "lower_loss",
    "nearer",
    "own_effect",
    "ratio",
    "shattered",
    "vanishing",
]

Amounts = Sequence[tuple[float, str]]
"""Numbers, each with the name of the limit that it must exceed."""
Conditions = Callable[[Measured, Measured], Amounts]


@dataclass(frozen=True)
class Limit:
    """What an effect must exceed, and by how much it differs between seeds of one network.

    Args:
        noise: An effect within this of the limit is unclear; from pairs of one architecture and
            other seeds (``benchmarks/verdict_null.py``).
    """

    name: str
    value: float
    noise: float
    reason: str


LIMITS: dict[str, Limit] = {
    one.name: one
    for one in (
        Limit("unhealthy", 2.5, 0.25, "decades along depth that a net falls or grows"),
        Limit("separating", 1.5, 0.25, "decades by which both must differ along depth"),
        Limit("cliff", 2.0, 0.25, "decades lost at one layer beyond what the fit has for it"),
        Limit("cliffs_apart", 1.0, 0.25, "decades by which both must differ at it"),
        Limit("healthy", -1.5, 0.25, "minus decades within which a single net is healthy"),
        Limit("moments", 1.0, 0.0, "decades by which moments must differ to be told apart"),
        Limit("nearer", 0.75, 0.25, "decades over the whole depth that shortcuts take away"),
        Limit("half", 0.0, 0.1, "decades: half of the change without shortcuts, or less"),
        Limit("larger", 1.0, 0.3, "decades: ten times"),
        Limit("own_effect", 1.0, 0.3, "decades that the same weights lose, or gain, without"),
        Limit("most", 0.5, 0.05, "share of the gradient: more than the branches carry"),
        Limit("identity", 0.99, 1e-4, "share; a branch that starts at zero gives exactly 1"),
        Limit("stream", -0.5, 0.05, "minus what a block adds over what it is added to"),
        Limit("short", 0.9, 0.03, "share that the shorter half of the lengths carries"),
        Limit("small", -0.1, 0.02, "minus the correlation without shortcuts"),
        Limit("apart", 0.03, 0.01, "difference of correlations, above that of random inputs"),
        Limit("thrice", math.log10(3), 0.15, "decades: three times"),
        Limit("collapsed", 0.9, 0.02, "correlation of activations without shortcuts"),
        Limit("conditioned", math.log10(3), 0.3, "decades of condition number"),
        Limit("needed", -0.05, 0.02, "minus the accuracy, or share of the first loss, it costs"),
        Limit("loss", math.log10(1.4), 0.14, "decades between final losses"),
        Limit("edge", 0.9, 0.02, "sharpness over the one at which a step becomes unstable"),
    )
}
"""What claims are judged by."""


BEYOND_THE_EDGE = 1.5
"""Sharpness over threshold above which it does not hover about 1 any more."""


def _log(x: float) -> float:
    if math.isnan(x) or x < 0:
        return math.nan
    return math.log10(x) if x > 0 else -math.inf


def ratio(larger: float, smaller: float) -> float:
    """Decades between two numbers; equal ones, also infinite or zero, are none apart."""
    if larger == smaller:
        return 0.0
    return _log(larger) - _log(smaller)


def _plus(a: float, b: float) -> float:
    """Return a − b, 0 for equal infinite ones."""
    return 0.0 if a == b else a - b


def vanishing(p: Measured, r: Measured) -> Amounts:
    """The plain net falls far, and farther than the residual one."""
    return (p.value, "unhealthy"), (_plus(p.value, r.value), "separating")


def exploding(p: Measured, r: Measured) -> Amounts:
    """One of the two grows far, and not the other."""
    apart = abs(_plus(p.value, r.value))
    return (max(p.value, r.value), "unhealthy"), (apart, "separating")


def cliff(p: Measured, r: Measured) -> Amounts:
    """One of the two falls far at a single place, and not the other."""
    return (max(p.value, r.value), "cliff"), (abs(_plus(p.value, r.value)), "cliffs_apart")


def nearer(p: Measured, r: Measured) -> Amounts:
    """The gain with shortcuts is nearer to 1, over the whole depth."""
    left, right = abs(_log(p.value)), abs(_log(r.value))
    reach = max(p.scale, r.scale)
    return ((0.5 * left - right) * reach, "half"), ((left - right) * reach, "nearer")


def shattered(p: Measured, r: Measured) -> Amounts:
    """Gradients of inputs are unrelated without shortcuts, less so with them."""
    floor = LIMITS["apart"].noise
    times = ratio(max(r.value, floor), max(p.value, floor))
    if math.isnan(p.value + r.value):
        times = math.nan
    return (-p.value, "small"), (r.value - p.value, "apart"), (times, "thrice")


def collapsed(p: Measured, r: Measured) -> Amounts:
    """Activations of inputs are alike without shortcuts, less so with them."""
    # Nearer to 1 it makes no difference any more how near.
    left, right = (max(1 - one.value, _COLLAPSED) for one in (p, r))
    times = math.nan if math.isnan(p.value + r.value) else ratio(right, left)
    return (p.value, "collapsed"), (times, "thrice")


def conditioned(p: Measured, r: Measured) -> Amounts:
    """The condition number is smaller with shortcuts."""
    samples = min(p.count, r.count)
    apart = ratio(p.value, r.value)
    # One net has condition numbers from 697 to 19,300 over a dozen samples: 1.44 decades.
    return (
        (apart if samples >= _SAMPLES else min(apart, LIMITS["conditioned"].value), "conditioned"),
    )


_SAMPLES, _COLLAPSED = 16, 0.003


def lower_loss(p: Measured, r: Measured) -> Amounts:
    """The final loss is lower with shortcuts."""
    # Below a hundredth of the first loss both have fitted their data.
    floor = 0.01 * min(p.scale, r.scale)
    if not math.isfinite(p.value + r.value):
        return ((math.nan, "loss"),)
    return ((ratio(max(p.value, floor), max(r.value, floor)), "loss"),)


def lesion(_: Measured, r: Measured) -> Amounts:
    """No single branch costs much."""
    return ((-r.value / (r.scale or 1.0), "needed"),)


def own_effect(_: Measured, r: Measured) -> Amounts:
    """The same weights carry the gradient otherwise without the shortcuts."""
    return ((abs(_plus(math.nan if r.other is None else r.other, r.value)), "own_effect"),)


def edge(p: Measured, r: Measured) -> Amounts:
    """A step of one of the two is at the border of stability, or beyond it."""
    limit = LIMITS["edge"].value
    # A single probe may meet a sharpness that passes through: at the edge it stays.
    known = [x.value if x.count > 1 else min(x.value, limit) for x in (p, r)]
    return ((max((x for x in known if not math.isnan(x)), default=math.nan), "edge"),)


def limits_table() -> str:
    """Return the limits of claims as a table for the documentation."""
    rows = (
        (f"`{one.name}`", number(one.value), number(one.noise), one.reason)
        for one in LIMITS.values()
    )
    return markdown_table(("limit", "value", "noise between seeds", "what it is"), rows)

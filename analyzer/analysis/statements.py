"""The questions of a verdict: what each is about, when the answer is yes, and by which limits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analyzer.analysis.claim_numbers import Measured
from analyzer.analysis.finding import markdown_table
from analyzer.analysis.numerals import Spread, decades_fallen, decades_grown, number, with_range

__all__ = ["LIMITS", "STATEMENTS", "Limit", "Statement", "limits_table"]


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
        Limit("loss", math.log10(1.25), 0.05, "decades between final losses"),
    )
}
"""What claims are judged by."""

Conditions = Callable[[Measured, Measured], Sequence[tuple[float, str]]]


@dataclass(frozen=True)
class Statement:
    """A question before anything is measured.

    Args:
        said: The numbers as a clause; ``{plain}``, ``{residual}``, ``{where}`` stand for them.
        short: The same in a few words; ``brief``: in fewer, of another moment.
        conditions: Amounts with the names of their limits, all to be exceeded; the last is the
            effect, in decades where claims are ranked by it.
        compared: When the answer is yes, with the numbers.
        needs: What must have been recorded.
        settle: What settles an unclear answer.
        number: What is measured, by moment; elsewhere the key of the claim.
        uses_spread: Whether the ends within a run are those of an error.
        is_of_residual: Whether it is about the residual run alone.
        is_alone: Whether it is asked of a single run only.
    """

    key: str
    question: str
    said: str
    short: str
    conditions: Conditions
    compared: str
    reference: str
    panel: str
    needs: str = "layer statistics"
    brief: str = ""
    settle: str = "Three seeds would settle it: analyzer record --twin --seeds 3"
    number: str = ""
    uses_spread: bool = False
    is_of_residual: bool = False
    is_alone: bool = False
    say: Callable[[float | None, Spread], str] = with_range

    @property
    def by_moment(self) -> bool:
        """Whether it is asked of the first step, the median and the last."""
        return bool(self.number)


def _log(x: float) -> float:
    if math.isnan(x) or x < 0:
        return math.nan
    return math.log10(x) if x > 0 else -math.inf


def _ratio(larger: float, smaller: float) -> float:
    """Decades between two numbers; equal ones, also infinite or zero, are none apart."""
    if larger == smaller:
        return 0.0
    return _log(larger) - _log(smaller)


def _plus(a: float, b: float) -> float:
    """Return a − b, 0 for equal infinite ones."""
    return 0.0 if a == b else a - b


def _vanishing(p: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    return (p.value, "unhealthy"), (_plus(p.value, r.value), "separating")


def _exploding(p: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    apart = abs(_plus(p.value, r.value))
    return (max(p.value, r.value), "unhealthy"), (apart, "separating")


def _cliff(p: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    return (max(p.value, r.value), "cliff"), (abs(_plus(p.value, r.value)), "cliffs_apart")


def _nearer(p: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    left, right = abs(_log(p.value)), abs(_log(r.value))
    reach = max(p.scale, r.scale)
    return ((0.5 * left - right) * reach, "half"), ((left - right) * reach, "nearer")


def _shattered(p: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    floor = LIMITS["apart"].noise
    times = _ratio(max(r.value, floor), max(p.value, floor))
    if math.isnan(p.value + r.value):
        times = math.nan
    return (-p.value, "small"), (r.value - p.value, "apart"), (times, "thrice")


def _collapsed(p: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    return (p.value, "collapsed"), (_ratio(1 - r.value, 1 - p.value), "thrice")


def _conditioned(p: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    samples = min(p.count, r.count)
    apart = _ratio(p.value, r.value)
    # One net has condition numbers from 697 to 19,300 over a dozen samples: 1.44 decades.
    return (
        (apart if samples >= _SAMPLES else min(apart, LIMITS["conditioned"].value), "conditioned"),
    )


_SAMPLES = 16


def _loss(p: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    # Below a hundredth of the first loss both have fitted their data.
    floor = 0.01 * min(p.scale, r.scale)
    if not math.isfinite(p.value + r.value):
        return ((math.nan, "loss"),)
    return ((_ratio(max(p.value, floor), max(r.value, floor)), "loss"),)


def _lesion(_: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    return ((-r.value / (r.scale or 1.0), "needed"),)


def _own_effect(_: Measured, r: Measured) -> Sequence[tuple[float, str]]:
    without = [x for x in (r.low, r.high) if x is not None] or [r.other or 0.0]
    effects = [_plus(x, r.value) for x in without]
    alike = all(x > 0 for x in effects) or all(x < 0 for x in effects)
    return ((min(map(abs, effects)) if alike else 0.0, "own_effect"),)


_HE_2016 = "He et al. 2016, Identity mappings in deep residual networks, eq. 5"

STATEMENTS = (
    Statement(
        "vanishing",
        "Does the gradient vanish without shortcuts, and not with them?",
        "from the last layer to the first it {plain} without them ({plain_rate} a layer) and "
        "{residual} with them ({rate} a layer)",
        "without shortcuts the gradient {plain} from the last layer to the first ({plain_rate} a "
        "layer), with them it {residual} ({rate} a layer)",
        _vanishing,
        "yes from 2.5 decades on that are 1.5 more than with shortcuts",
        "He et al. 2015, §4.1 (with batch norm it does not)",
        "depth_profile",
        number="fallen",
        brief="it {plain} without and {residual} with them",
        say=decades_fallen,
    ),
    Statement(
        "exploding",
        "Does the gradient explode in one of the nets, and not in the other?",
        "from the last layer to the first it {plain} without shortcuts ({plain_rate} a layer) and "
        "{residual} with them ({rate} a layer)",
        "without shortcuts the gradient {plain} from the last layer to the first ({plain_rate} a "
        "layer), with them it {residual} ({rate} a layer)",
        _exploding,
        "yes from 2.5 decades on, 1.5 apart from the other",
        "Yang et al. 2019, A mean field theory of batch normalization",
        "depth_profile",
        number="grown",
        brief="it {plain} without and {residual} with them",
        say=decades_grown,
    ),
    Statement(
        "cliff",
        "Is the gradient lost at a single layer of one of the nets?",
        "the largest fall beyond the fit is {plain} decades without shortcuts (at {plain_where}) "
        "and {residual} with them (at {where})",
        "at one layer {plain} decades are lost without shortcuts (at {plain_where}), {residual} with "
        "them (at {where})",
        _cliff,
        "yes from 2 decades on at one layer, 1 more than in the other",
        "definitions: the largest single drop; a line fit outvotes it",
        "depth_profile",
    ),
    Statement(
        "gain",
        "Do shortcuts bring the gain per layer nearer to 1?",
        "it is {plain} without them and {residual} with them",
        "gain per layer {plain} against {residual}",
        _nearer,
        "yes where ln(gain) is at most half of that without, and 0.75 decades less over the depth",
        _HE_2016,
        "depth_profile",
    ),
    Statement(
        "relative_gradient",
        "Does more of the gradient at the output arrive at the first layer with shortcuts?",
        "‖∂L/∂y_first‖ / ‖∂L/∂output‖ is {plain} without them, {residual} with them",
        "‖∂L/∂y_first‖ / ‖∂L/∂output‖ {plain} against {residual}",
        lambda p, r: ((_ratio(r.value, p.value), "larger"),),
        "yes from ten times on",
        _HE_2016,
        "depth_profile",
    ),
    Statement(
        "shattering",
        "Are the gradients of different inputs unrelated without shortcuts, and not with them?",
        "at the first layer they correlate by {plain} without them, {residual} with them",
        "shattered gradients (correlation {plain} against {residual})",
        _shattered,
        "yes below 0.1 and at least three times less than with shortcuts",
        "Balduzzi et al. 2017",
        "shattering",
        "probe `shattering`, first step",
        settle="More inputs, or three seeds, would settle it: analyzer record --twin --seeds 3 "
        "--probe shattering",
        uses_spread=True,
    ),
    Statement(
        "conditioning",
        "Is the Jacobian of the network better conditioned with shortcuts?",
        "its condition number is {plain} without them, {residual} with them (median of {count} "
        "samples)",
        "conditioning (condition number {plain} against {residual})",
        _conditioned,
        "yes from three times on, over 16 samples or more",
        "Saxe et al. 2013; Pennington et al. 2017",
        "jacobian",
        "probe `jacobian`, first step",
        settle="Sixteen samples or more, or three seeds, would settle it: analyzer record --twin "
        "--seeds 3 --probe jacobian",
        uses_spread=True,
    ),
    Statement(
        "forward_collapse",
        "Do different inputs become alike inside of the plain net, not with shortcuts?",
        "before the output their activations correlate by {plain} without shortcuts, {residual} "
        "with them",
        "forward collapse (activations of different inputs correlate by {plain} against "
        "{residual})",
        _collapsed,
        "yes from 0.9 on and three times nearer to 1 than with shortcuts",
        "Schoenholz et al. 2017, Deep information propagation",
        "forward_correlation",
        "probe `forward_correlation`, first step",
        uses_spread=True,
    ),
    Statement(
        "depth",
        "Does the gradient keep its size along the trunk?",
        "from the last layer to the first it {residual} ({rate} a layer)",
        "from the last layer to the first the gradient {residual} ({rate} a layer)",
        lambda _, r: ((-abs(r.value), "healthy"),),
        "yes within 1.5 decades",
        _HE_2016,
        "depth_profile",
        number="fallen",
        brief="it {residual}",
        is_of_residual=True,
        is_alone=True,
        say=decades_fallen,
    ),
    Statement(
        "counterfactual",
        "Do the shortcuts themselves keep the gradient, at the same weights?",
        "from the last layer to the first it falls {residual} decades as the network is and "
        "{plain} with every shortcut multiplied by 0",
        "at the same weights the gradient of the residual net falls {residual} decades, and "
        "{plain} with its shortcuts taken out",
        _own_effect,
        "yes from 1 decade on, with the branches as they are and rescaled",
        "He et al. 2016; intervention on one network",
        "counterfactual",
        "probe `counterfactual`",
        is_of_residual=True,
    ),
    Statement(
        "shortcut_share",
        "Do the shortcuts carry most of the gradient?",
        "their share at the joins is {residual}, median over joins and steps",
        "shortcuts carry {residual} of the gradient",
        lambda _, r: ((r.value, "most"),),
        "yes above 0.5",
        _HE_2016,
        "splits_over_time",
        "splits",
        is_of_residual=True,
    ),
    Statement(
        "identity_start",
        "Does the residual net start as an identity?",
        "at the first split its identity shortcuts carry {residual} of the gradient or more",
        "it starts as an identity: its shortcuts carry {residual} of the gradient or more at first",
        lambda _, r: ((r.value, "identity"),),
        "yes from 0.99 on, at each identity shortcut",
        "Bachlechner et al. 2020, ReZero; De and Smith 2020",
        "splits_over_time",
        "splits",
        is_of_residual=True,
    ),
    Statement(
        "stream",
        "Does each block add little to the residual stream at the start?",
        "‖branch‖ / ‖shortcut‖ is {residual}, median over joins",
        "each block adds {residual} of what it is added to",
        lambda _, r: ((-r.value, "stream"),),
        "yes below 0.5; 1/√l at the l-th block with batch norm",
        "De and Smith 2020",
        "residual_stream",
        "splits with forward norms",
        is_of_residual=True,
    ),
    Statement(
        "path_length",
        "Do short paths carry the gradient?",
        "the effective path length is {residual} branches, where every path of a plain net crosses "
        "{plain}; the shorter half of the lengths carries {scale} of it",
        "paths of {residual} branches on average, of {plain} in a plain net",
        lambda _, r: ((r.scale, "short"),),
        "yes where the shorter half carries 0.9 or more",
        "Veit et al. 2016",
        "path_spectrum",
        "probe `paths`, last step",
        is_of_residual=True,
    ),
    Statement(
        "lesion",
        "Does the network do without any single branch?",
        "without its most needed branch, that of {where}, it loses {residual} of its {over}",
        "without the branch of {where} the net loses {residual} of its {over}",
        _lesion,
        "yes where no branch costs more than 0.05 of the accuracy, or of the first loss",
        "Veit et al. 2016, §4.1",
        "lesion",
        "probe `lesion`, last step",
        settle="A larger batch would settle it",
        is_of_residual=True,
    ),
    Statement(
        "first_update",
        "Does the first layer learn at least ten times faster with shortcuts?",
        "its update ratio ‖Δθ‖ / ‖θ‖ is {plain} without them, {residual} with them",
        "the first layer's update ratio ({plain} against {residual})",
        lambda p, r: ((_ratio(r.value, p.value), "larger"),),
        "yes from ten times on",
        "definitions: update ratio ‖Δθ‖ / ‖θ‖",
        "update_ratio",
        "updates",
    ),
    Statement(
        "training_loss",
        "Does training end at a lower loss with shortcuts?",
        "it is {plain} without them, {residual} with them",
        "{plain} without them, {residual} with",
        _loss,
        "yes from 1.25 times lower on; below a hundredth of the first loss both count as fitted",
        "He et al. 2015, §4.1 (degradation)",
        "loss",
        "a scalar loss",
        uses_spread=True,
    ),
)
"""Every question, in the order in which a verdict lists them."""


def limits_table() -> str:
    """Return the limits of claims as a table for the documentation."""
    rows = (
        (f"`{one.name}`", number(one.value), number(one.noise), one.reason)
        for one in LIMITS.values()
    )
    return markdown_table(("limit", "value", "noise between seeds", "what it is"), rows)

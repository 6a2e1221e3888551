"""The questions of a verdict: what each is about, when the answer is yes, and by which limits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analyzer.analysis import limits
from analyzer.analysis.finding import markdown_table
from analyzer.analysis.limits import Conditions, ratio
from analyzer.analysis.numerals import Spread, decades_fallen, decades_grown, with_range

__all__ = ["STATEMENTS", "Statement", "statements_table"]


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
        alone: The clause of a single run, for a question about either of two; then nothing that
            tells the two apart can explain the answer.
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
    alone: str = ""
    say: Callable[[float | None, Spread, Sequence[float]], str] = with_range

    @property
    def by_moment(self) -> bool:
        """Whether it is asked of the first step, the median and the last."""
        return bool(self.number)


_HE_2016 = "He et al. 2016, Identity mappings in deep residual networks, eq. 5"

STATEMENTS = (
    Statement(
        "vanishing",
        "Does the gradient vanish without shortcuts, and not with them?",
        "from the last layer to the first it {plain} without them ({plain_rate} a layer) and "
        "{residual} with them ({rate} a layer)",
        "without shortcuts the gradient {plain} from the last layer to the first ({plain_rate} a "
        "layer), with them it {residual} ({rate} a layer)",
        limits.vanishing,
        "yes if it falls 2.5 decades or more without shortcuts, and 1.5 less with them",
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
        limits.exploding,
        "yes if it grows 2.5 decades or more in one, and 1.5 less in the other",
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
        "at one layer {plain} decades are lost without shortcuts (at {plain_where}), {residual} "
        "with them (at {where})",
        limits.cliff,
        "yes if 2 decades or more are lost at one layer, and 1 less in the other",
        "definitions: the largest single drop; a line fit outvotes it",
        "depth_profile",
    ),
    Statement(
        "gain",
        "Do shortcuts bring the gain per layer nearer to 1?",
        "it is {plain} without them and {residual} with them",
        "gain per layer {plain} against {residual}",
        limits.nearer,
        "yes if ln(gain) is at most half of that without, and 0.75 decades less over the depth",
        _HE_2016,
        "depth_profile",
    ),
    Statement(
        "relative_gradient",
        "Does more of the gradient at the output arrive at the first layer with shortcuts?",
        "‖∂L/∂y_first‖ / ‖∂L/∂output‖ is {plain} without them, {residual} with them",
        "‖∂L/∂y_first‖ / ‖∂L/∂output‖ {plain} against {residual}",
        lambda p, r: ((ratio(r.value, p.value), "larger"),),
        "yes if it is ten times as much or more",
        _HE_2016,
        "depth_profile",
    ),
    Statement(
        "shattering",
        "Are the gradients of different inputs unrelated without shortcuts, and not with them?",
        "at the first layer they correlate by {plain} without them, {residual} with them",
        "shattered gradients (correlation {plain} against {residual})",
        limits.shattered,
        "yes if it is below 0.1 and at least three times less than with shortcuts",
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
        "its condition number is {plain}{plain_where} without them, {residual}{where} with them "
        "(median of {count} samples)",
        "conditioning (condition number {plain}{plain_where} against {residual}{where})",
        limits.conditioned,
        "yes if it is a third or less with shortcuts, over 16 samples or more",
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
        limits.collapsed,
        "yes if it is 0.9 or more, and three times nearer to 1 than with shortcuts",
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
        "yes if it changes by 1.5 decades at most",
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
        "from the last layer to the first it {residual} as the network is, and "
        "{plain} with every shortcut multiplied by 0 (it {rescaled} where branches are rescaled "
        "as well)",
        "from the last layer to the first, at the same weights, the gradient of the residual net "
        "{residual}, and {plain} with its shortcuts taken out (it {rescaled} where branches are "
        "rescaled as well)",
        limits.own_effect,
        "yes if the two are 1 decade apart or more",
        "He et al. 2016; intervention on one network",
        "counterfactual",
        "probe `counterfactual`",
        is_of_residual=True,
        say=decades_fallen,
    ),
    Statement(
        "shortcut_share",
        "Do the shortcuts carry most of the gradient?",
        "their share at the joins is {residual}, median over joins and steps",
        "shortcuts carry {residual} of the gradient, median over joins",
        lambda _, r: ((r.value, "most"),),
        "yes if it is above 0.5",
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
        "yes if it is 0.99 or more at each identity shortcut",
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
        "yes if it is below 0.5; with batch norm it is about 1/√l at block l",
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
        "yes if the shorter half carries 0.9 or more",
        "Veit et al. 2016",
        "path_spectrum",
        "probe `paths`, last step",
        is_of_residual=True,
    ),
    Statement(
        "lesion",
        "Does the network do without any single branch?",
        "without its most needed branch, that of {where}, its {over} is {residual} worse",
        "without the branch of {where} the {over} of the net is {residual} worse",
        limits.lesion,
        "yes if no branch costs more than 0.05 of the accuracy, or of the first loss",
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
        lambda p, r: ((ratio(r.value, p.value), "larger"),),
        "yes if it is ten times as much or more",
        "definitions: update ratio ‖Δθ‖ / ‖θ‖",
        "update_ratio",
        "updates",
    ),
    Statement(
        "edge_of_stability",
        "Is a training at the edge of stability?",
        "the sharpness is {plain} times the {plain_scale} from which on a step is unstable without "
        "shortcuts, {residual} times the {scale} with them",
        "the sharpness is {plain} times what a step bears without shortcuts, {residual} times with "
        "them",
        limits.edge,
        "yes if it is 0.9 times or more in one of the two, at each of two late probes or more; the "
        "Hessian is that of the held batch, in a training by small batches larger than that of the "
        "whole loss",
        "Cohen et al. 2021; 2022 for Adam",
        "sharpness",
        "probe `sharpness`, last third of its steps",
        settle="More probes would settle it: analyzer record --probe sharpness:20",
        uses_spread=True,
        alone="the sharpness is {residual} times the {scale} from which on a step is unstable",
    ),
    Statement(
        "training_loss",
        "Does training end at a lower loss with shortcuts?",
        "it is {plain} without them, {residual} with them",
        "{plain} without them, {residual} with",
        limits.lower_loss,
        "yes if it is 1.4 times lower or more; below a hundredth of the first loss both count as "
        "fitted",
        "He et al. 2015, §4.1 (degradation)",
        "loss",
        "a scalar loss",
        uses_spread=True,
    ),
)
"""Every question, in the order in which a verdict lists them."""


def statements_table() -> str:
    """Return every claim as a Markdown table: key, question, when it holds, what it needs."""
    rows = ((f"`{s.key}`", s.question, s.compared, s.needs) for s in STATEMENTS)
    return markdown_table(("key", "question", "yes", "needs"), rows)

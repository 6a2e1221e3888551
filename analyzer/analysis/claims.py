"""What a verdict claims: statements, their numbers, and the queries that give them."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from analyzer.analysis import claim_numbers as numbers
from analyzer.analysis.claim_numbers import Measured
from analyzer.analysis.finding import markdown_table
from analyzer.analysis.numerals import Spread, decades_fallen, decades_grown, with_range
from analyzer.analysis.sentences import ends_lower, limit
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run

__all__ = ["STATEMENTS", "STATUSES", "Claim", "Statement", "claims"]

STATUSES = ("holds", "fails", "not measured")


@dataclass(frozen=True)
class Claim:
    """One statement about a pair of runs, and whether it holds.

    Args:
        text: The statement with its numbers, or what to record to have them.
        status: ``holds``, ``fails`` or ``not measured``.
        plain: The number of the run without shortcuts; None where it has none.
        residual: The number of the run with them; None where it has none.
        query: A Python expression on ``plain`` and ``residual``, both from ``analyzer.open_run``
            (lists of them over several seeds), that gives the number, or both as a tuple.
        panel: Key of the panel that shows it.
        plain_spread: Smallest and largest over seeds; None for a single pair.
        residual_spread: As ``plain_spread``.
        num_holding: Pairs in which the statement holds.
    """

    key: str
    text: str
    status: str
    plain: float | None
    residual: float | None
    reference: str
    query: str
    panel: str
    plain_spread: Spread = None
    residual_spread: Spread = None
    num_holding: int = 0


@dataclass(frozen=True)
class Statement:
    """A claim before it is measured.

    Args:
        text: The statement; ``{plain}`` and ``{residual}`` stand for its numbers.
        holds_when: When it holds, as a clause.
        holds: Whether it holds, given the number of the plain and of the residual run.
        needs: What must have been recorded.
        is_of_residual: Whether it is about the residual run alone.
        keeps_nan: Whether NaN is a result; elsewhere such a number was not measured.
        say: Writes a number with its range over seeds.
    """

    key: str
    text: str
    holds_when: str
    measure: Callable[[Run], Measured]
    holds: Callable[[Measured, Measured], bool]
    reference: str
    panel: str
    needs: str = "layer statistics"
    remedy: str = "record both runs with layer statistics"
    is_of_residual: bool = False
    keeps_nan: bool = False
    say: Callable[[float | None, Spread], str] = with_range


def _is_nearer_to_isometry(plain: Measured, residual: Measured) -> bool:
    slopes = abs(math.log(residual.value)), abs(math.log(plain.value))
    return slopes[0] <= limit("nearer_to_isometry") * slopes[1]


def _is_times_larger(plain: Measured, residual: Measured) -> bool:
    return residual.value > 0 and residual.value >= limit("times_larger") * plain.value


def _is_better_conditioned(plain: Measured, residual: Measured) -> bool:
    limited = limit("better_conditioned") * plain.value
    return residual.value < math.inf and residual.value <= limited


_HE_2016 = "He et al. 2016, Identity mappings in deep residual networks, eq. 5"
_SPLITS = "record the residual run with --splits-every"

STATEMENTS = (
    Statement(
        "vanishing",
        "Without shortcuts the gradient vanishes along depth: from the last layer to the first it "
        "{plain} without and {residual} with them.",
        "the gradient of the plain net falls by 3 decades or more along depth",
        numbers.decades_fallen,
        lambda plain, residual: plain.value >= limit("unhealthy_decades"),
        "He et al. 2015, §4.1 (with batch norm it does not)",
        "depth_profile",
        say=decades_fallen,
    ),
    Statement(
        "exploding",
        "In one of the nets the gradient explodes along depth: from the last layer to the first it "
        "{plain} without shortcuts and {residual} with them.",
        "that of one of the nets grows by 3 decades or more",
        numbers.decades_grown,
        lambda plain, residual: max(plain.value, residual.value) >= limit("unhealthy_decades"),
        "Yang et al. 2019, A mean field theory of batch normalization",
        "depth_profile",
        say=decades_grown,
    ),
    Statement(
        "gain",
        "Shortcuts bring the gain per layer nearer to 1: it is {plain} without them and "
        "{residual} with them.",
        "ln(gain) with shortcuts is at most half of that without: nearer to isometry",
        numbers.gain_per_layer,
        _is_nearer_to_isometry,
        _HE_2016,
        "depth_profile",
    ),
    Statement(
        "relative_gradient",
        "Over ‖∂L/∂output‖, the gradient of the first layer is at least ten times larger with "
        "shortcuts: {plain} without them, {residual} with them.",
        "‖∂L/∂y_first‖ / ‖∂L/∂output‖ is ten times larger with shortcuts",
        numbers.relative_gradient,
        _is_times_larger,
        _HE_2016,
        "depth_profile",
    ),
    Statement(
        "shortcut_share",
        "The shortcuts carry most of the gradient: their share at the joins is {residual}, median "
        "over joins and steps.",
        "the shortcuts carry more than half of the gradient (median)",
        numbers.shortcut_share,
        lambda _, residual: residual.value > limit("most"),
        _HE_2016,
        "splits_over_time",
        "splits",
        _SPLITS,
        is_of_residual=True,
    ),
    Statement(
        "identity_start",
        "The residual net starts as an identity: at the first split the shortcuts carry "
        "{residual} of the gradient.",
        "their share is 0.99 or more at the first step that was split",
        numbers.first_share,
        lambda _, residual: residual.value >= limit("identity"),
        "Bachlechner et al. 2020, ReZero; De and Smith 2020",
        "splits_over_time",
        "splits",
        _SPLITS,
        is_of_residual=True,
    ),
    Statement(
        "path_length",
        "Short paths carry the gradient: the effective path length is {residual} branches, to be "
        "compared with half of the joins.",
        "the effective path length is less than half of the joins",
        numbers.path_length,
        lambda _, residual: residual.value < limit("short_paths") * residual.scale,
        "Veit et al. 2016",
        "path_spectrum",
        "probe `paths`, last step",
        "record the residual run with --probe paths",
        is_of_residual=True,
    ),
    Statement(
        "shattering",
        "Without shortcuts gradients are shattered: at the first layer those of two inputs "
        "correlate by {plain}, against {residual} with shortcuts.",
        "gradients correlate by 0.1 more with shortcuts, at the first layer",
        numbers.input_correlation,
        lambda plain, residual: residual.value - plain.value >= limit("shattered"),
        "Balduzzi et al. 2017",
        "shattering",
        "probe `shattering`, first step",
        "record both runs with --probe shattering",
        keeps_nan=True,
    ),
    Statement(
        "conditioning",
        "Shortcuts improve the conditioning of the input-output Jacobian: largest over smallest "
        "singular value is {plain} without them and {residual} with them.",
        "the condition number with shortcuts is at most half of that without",
        numbers.condition_number,
        _is_better_conditioned,
        "Saxe et al. 2013; Pennington et al. 2017",
        "jacobian",
        "probe `jacobian`, first step",
        "record both runs with --probe jacobian",
    ),
    Statement(
        "lesion",
        "No single branch is needed: without one of them the loss changes by {residual}, median "
        "over joins.",
        "losing one branch adds at most a tenth of the first loss (median)",
        numbers.lesion_change,
        lambda _, residual: residual.value <= limit("loss_difference") * residual.scale,
        "Veit et al. 2016, §4.1",
        "lesion",
        "probe `lesion`, last step",
        "record the residual run with --probe lesion",
        is_of_residual=True,
        keeps_nan=True,
    ),
    Statement(
        "first_update",
        "Without shortcuts the first layer learns at least ten times more slowly: its update ratio "
        "is {plain}, against {residual} with them.",
        "the first layer's update ratio is ten times larger with shortcuts",
        numbers.first_update,
        _is_times_larger,
        "definitions: update ratio ‖Δθ‖ / ‖θ‖",
        "update_ratio",
        "updates",
        "record both runs with --updates-every",
    ),
    Statement(
        "training_loss",
        "Training ends at a lower loss with shortcuts: {plain} without them, {residual} with them.",
        "the final loss is lower with shortcuts by a tenth of the smaller first loss",
        numbers.final_loss,
        lambda p, r: ends_lower(p.value, r.value, min(p.scale, r.scale)),
        "He et al. 2015, §4.1 (degradation)",
        "loss",
        "a scalar loss",
        "record both runs with a scalar loss",
        keeps_nan=True,
    ),
)
"""Every claim, in the order in which a verdict lists them."""


def statements_table() -> str:
    """Return every claim as a Markdown table: key, when it holds, and what it needs."""
    rows = ((f"`{one.key}`", one.holds_when, one.needs) for one in STATEMENTS)
    return markdown_table(("key", "holds when", "needs"), rows)


def claims(plain: Sequence[Run], residual: Sequence[Run]) -> tuple[Claim, ...]:
    """Return every claim about pairs of runs, on each side one run for each seed, in one order."""
    return tuple(_claim(statement, plain, residual) for statement in STATEMENTS)


Pair = tuple[Measured, Measured]


def _claim(statement: Statement, plain: Sequence[Run], residual: Sequence[Run]) -> Claim:
    pairs = [_measured(statement, p, r) for p, r in zip(plain, residual, strict=True)]
    found = [pair for pair in pairs if pair is not None]
    made = partial(Claim, key=statement.key, reference=statement.reference, panel=statement.panel)
    # A median over some of the seeds would be of other runs than the next claim's.
    if len(found) < len(pairs):
        text = f"{_bare(statement.text)}: not measured; {statement.remedy}."
        return made(text=text, status="not measured", plain=None, residual=None, query="")
    sides = [_side([pair[k].value for pair in found]) for k in (0, 1)]
    if statement.is_of_residual:
        sides[0] = None, None
    num_holding = sum(statement.holds(*pair) for pair in found)
    said = {"plain": statement.say(*sides[0]), "residual": statement.say(*sides[1])}
    # In how many seeds it holds, where there are several.
    seeds = f" It holds in {num_holding} of {len(found)} seeds." if len(found) > 1 else ""
    return made(
        text=statement.text.format(**said) + seeds,
        status="holds" if num_holding == len(found) else "fails",
        plain=sides[0][0],
        residual=sides[1][0],
        query=_query([_pair_query(pair, statement.is_of_residual) for pair in found]),
        plain_spread=sides[0][1],
        residual_spread=sides[1][1],
        num_holding=num_holding,
    )


def _measured(statement: Statement, plain: Run, residual: Run) -> Pair | None:
    """The numbers of one pair; None where something was not recorded, or is not a number."""
    try:
        right = statement.measure(residual)
        left = right if statement.is_of_residual else statement.measure(plain)
    except NotRecordedError:
        return None
    if not statement.keeps_nan and (math.isnan(left.value) or math.isnan(right.value)):
        return None
    return left, right


def _bare(text: str) -> str:
    return text.partition(":")[0] if ":" in text else text.partition("{")[0].rstrip(" .")


def _side(values: list[float]) -> tuple[float | None, Spread]:
    if len(values) == 1:
        return values[0], None
    if any(math.isnan(v) for v in values):
        return math.nan, (min(values), max(values))
    return statistics.median(values), (min(values), max(values))


def _pair_query(pair: Pair, is_of_residual: bool) -> str:
    plain = pair[0].query.replace("RUN", "plain")
    residual = pair[1].query.replace("RUN", "residual")
    return residual if is_of_residual else f"({plain}, {residual})"


def _query(queries: list[str]) -> str:
    """One expression for all pairs; each pair has its own, since steps and layers may differ."""
    if len(queries) == 1:
        return queries[0]
    if len(set(queries)) == 1:
        return f"[{queries[0]} for plain, residual in zip(plain, residual)]"
    each = [
        f"(lambda plain, residual: {q})(plain[{k}], residual[{k}])" for k, q in enumerate(queries)
    ]
    return f"[{', '.join(each)}]"

"""What a verdict claims: statements, their numbers, and the queries that give them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analyzer.analysis.claim_numbers import (
    Numbers,
    decades_of_both,
    exploding_decades,
    final_losses,
    first_layer_updates,
    first_share,
    gains,
    relative_gradients,
    share,
)
from analyzer.analysis.claim_words import decades_fallen, decades_grown, with_range
from analyzer.analysis.probe_numbers import conditioning, lesion, path_length, shattering
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run

__all__ = ["STATUSES", "Claim", "claims"]

STATUSES = ("holds", "fails", "not measured")


@dataclass(frozen=True)
class Claim:
    """One statement about a pair of runs, and whether it holds.

    Args:
        key: Its name, for programs.
        text: The statement with its numbers, or what to record to have them.
        status: ``holds``, ``fails`` or ``not measured``.
        plain: The number of the run without shortcuts; None where it has none.
        residual: The number of the run with them; None where it has none.
        reference: Where the statement comes from.
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
    plain_spread: tuple[float, float] | None = None
    residual_spread: tuple[float, float] | None = None
    num_holding: int = 0


@dataclass(frozen=True)
class _Statement:
    """A claim before it is measured; ``{plain}`` and ``{residual}`` stand for its numbers."""

    key: str
    text: str
    numbers: Callable[[Run, Run], Numbers | None]
    reference: str
    panel: str
    remedy: str = "record both runs with layer statistics"
    say: Callable[[float | None, tuple[float, float] | None], str] = with_range


_STATEMENTS = (
    _Statement(
        "vanishing",
        "Without shortcuts the gradient vanishes along depth: from the last layer to the first it "
        "{plain} without and {residual} with them.",
        decades_of_both,
        "He et al. 2015, §4.1 (with batch norm it does not)",
        "depth_profile",
        say=decades_fallen,
    ),
    _Statement(
        "exploding",
        "In one of the nets the gradient explodes along depth: from the last layer to the first it "
        "{plain} without shortcuts and {residual} with them.",
        exploding_decades,
        "Yang et al. 2019, A mean field theory of batch normalization",
        "depth_profile",
        say=decades_grown,
    ),
    _Statement(
        "gain",
        "Shortcuts bring the gain per layer nearer to 1: it is {plain} without them and "
        "{residual} with them.",
        gains,
        "He et al. 2016, Identity mappings in deep residual networks, eq. 5",
        "depth_profile",
    ),
    _Statement(
        "relative_gradient",
        "Over ‖∂L/∂output‖, the gradient of the first layer is at least ten times larger with "
        "shortcuts: {plain} without them, {residual} with them.",
        relative_gradients,
        "He et al. 2016, Identity mappings in deep residual networks, eq. 5",
        "depth_profile",
    ),
    _Statement(
        "shortcut_share",
        "The shortcuts carry most of the gradient: their share at the joins is {residual}, median "
        "over joins and steps.",
        share,
        "He et al. 2016, Identity mappings in deep residual networks, eq. 5",
        "splits_over_time",
        "record the residual run with --splits-every",
    ),
    _Statement(
        "identity_start",
        "The residual net starts as an identity: at the first split the shortcuts carry "
        "{residual} of the gradient.",
        first_share,
        "Bachlechner et al. 2020, ReZero; De and Smith 2020",
        "splits_over_time",
        "record the residual run with --splits-every",
    ),
    _Statement(
        "path_length",
        "Short paths carry the gradient: the effective path length is {residual} branches, to be "
        "compared with half of the joins.",
        path_length,
        "Veit et al. 2016",
        "path_spectrum",
        "record the residual run with --probe paths",
    ),
    _Statement(
        "shattering",
        "Without shortcuts gradients are shattered: at the first layer those of two inputs "
        "correlate by {plain}, against {residual} with shortcuts.",
        shattering,
        "Balduzzi et al. 2017",
        "shattering",
        "record both runs with --probe shattering",
    ),
    _Statement(
        "conditioning",
        "Shortcuts improve the conditioning of the input-output Jacobian: largest over smallest "
        "singular value is {plain} without them and {residual} with them.",
        conditioning,
        "Saxe et al. 2013; Pennington et al. 2017",
        "jacobian",
        "record both runs with --probe jacobian",
    ),
    _Statement(
        "lesion",
        "No single branch is needed: without one of them the loss changes by {residual}, median "
        "over joins.",
        lesion,
        "Veit et al. 2016, §4.1",
        "lesion",
        "record the residual run with --probe lesion",
    ),
    _Statement(
        "first_update",
        "Without shortcuts the first layer learns at least ten times more slowly: its update ratio "
        "is {plain}, against {residual} with them.",
        first_layer_updates,
        "definitions: update ratio ‖Δθ‖ / ‖θ‖",
        "update_ratio",
        "record both runs with --updates-every",
    ),
    _Statement(
        "training_loss",
        "Training ends at a lower loss with shortcuts: {plain} without them, {residual} with them.",
        final_losses,
        "He et al. 2015, §4.1 (degradation)",
        "loss",
        "record both runs with a scalar loss",
    ),
)


def claims(plain: Sequence[Run], residual: Sequence[Run]) -> tuple[Claim, ...]:
    """Return every claim about pairs of runs.

    Args:
        plain: Runs without shortcuts, one for each seed.
        residual: Those with them, in the same order.
    """
    return tuple(_claim(statement, plain, residual) for statement in _STATEMENTS)


def _claim(statement: _Statement, plain: Sequence[Run], residual: Sequence[Run]) -> Claim:
    """Measure a statement on every pair."""
    numbers = [_measured(statement, p, r) for p, r in zip(plain, residual, strict=True)]
    found = [n for n in numbers if n is not None]
    if not found or len(found) < len(numbers):
        return Claim(
            key=statement.key,
            text=_bare(statement.text) + f": not measured; {statement.remedy}.",
            status="not measured",
            plain=None,
            residual=None,
            reference=statement.reference,
            query="",
            panel=statement.panel,
        )
    sides = _side([n.plain for n in found]), _side([n.residual for n in found])
    num_holding = sum(n.holds for n in found)
    words = {"plain": statement.say(*sides[0]), "residual": statement.say(*sides[1])}
    return Claim(
        key=statement.key,
        text=statement.text.format(**words) + _seeds(num_holding, len(found)),
        status="holds" if num_holding == len(found) else "fails",
        plain=sides[0][0],
        residual=sides[1][0],
        reference=statement.reference,
        query=_query([n.query for n in found]),
        panel=statement.panel,
        plain_spread=sides[0][1],
        residual_spread=sides[1][1],
        num_holding=num_holding,
    )


def _measured(statement: _Statement, plain: Run, residual: Run) -> Numbers | None:
    """The numbers of one pair; None where something was not recorded."""
    try:
        return statement.numbers(plain, residual)
    except NotRecordedError:
        return None


def _bare(text: str) -> str:
    """The statement before its numbers."""
    return text.partition(":")[0] if ":" in text else text.partition("{")[0].rstrip(" .")


Side = tuple[float | None, tuple[float, float] | None]


def _side(values: list[float | None]) -> Side:
    """Median and range over seeds."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None, None
    if len(known) == 1:
        return known[0], None
    if any(math.isnan(v) for v in known):
        return math.nan, (min(known), max(known))
    ordered = sorted(known)
    half = len(ordered) // 2
    middle = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return middle, (ordered[0], ordered[-1])


def _seeds(num_holding: int, count: int) -> str:
    """In how many seeds a statement holds, where there are several."""
    return f" It holds in {num_holding} of {count} seeds." if count > 1 else ""


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

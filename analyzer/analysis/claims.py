"""What a verdict claims: questions, their answers with numbers, and the queries that give them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from analyzer.analysis.claim_numbers import MOMENTS, NUMBERS, Measured
from analyzer.analysis.comparability import Difference
from analyzer.analysis.evidence import became_nan
from analyzer.analysis.limits import LIMITS
from analyzer.analysis.numerals import counted, decades_fallen, number
from analyzer.analysis.statements import STATEMENTS, Statement
from analyzer.analysis.view import final_step
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run

__all__ = [
    "ANSWERS",
    "STATUSES",
    "Claim",
    "Numbers",
    "claims",
    "judged",
    "measured",
]

ANSWERS = {
    "holds": "yes",
    "fails": "no",
    "unclear": "unclear",
    "undefined": "undefined",
    "not measured": "not measured",
}
"""The answer to the question of a claim, by its status."""
STATUSES = tuple(ANSWERS)
# Of one pair an effect must exceed its limit by the noise between seeds; of three by nothing.
_NEEDED = {1: 1.0, 2: 0.7}

Numbers = Mapping[str, Measured | str]
"""What was measured of a run by the key of a claim; a text says why it was not."""
Pair = tuple[Measured, Measured]


@dataclass(frozen=True)
class Claim:
    """One question about a pair of runs, or about a residual one, and its answer.

    Args:
        text: Question, answer and numbers, with what they are compared with; or what to record.
        status: ``holds``, ``fails``, ``unclear`` (within the spread, too near to the limit, or
            something else can explain it), ``undefined`` (not a number) or ``not measured``.
        plain: The number of the run without shortcuts; None where there is none.
        residual: The number of the run with them.
        spread: Ends of both, ``over`` what they are and how many that are; None for single numbers.
        steps: At which it was measured, that of the figure first.
        query: A Python expression on ``plain`` and ``residual``, both from ``analyzer.open_run``
            (lists of them over several seeds), that gives the number, or both.
        panel: Key of the panel that shows it.
        effect: How far the two are apart, in decades; 0 where it does not hold.
        short: The numbers in a few words.
        brief: The same in fewer, of another moment; ``when``: its steps in words.
        compared: When the answer is yes, with the numbers.
    """

    key: str
    text: str
    status: str
    plain: float | None
    residual: float | None
    spread: Mapping[str, Any] | None
    steps: tuple[int, ...]
    reference: str
    query: str
    panel: str
    effect: float = field(default=0.0, compare=False)
    short: str = field(default="", compare=False)
    brief: str = field(default="", compare=False)
    when: str = field(default="", compare=False)
    compared: str = field(default="", compare=False)

    @property
    def question(self) -> str:
        """The question."""
        return self.text.partition("? ")[0] + "?"

    @property
    def answer(self) -> str:
        """The answer, as in ``yes``."""
        return ANSWERS[self.status]

    @property
    def finding(self) -> str:
        """The numbers behind the answer."""
        return self.text.partition("? ")[2].partition(": ")[2]


def measured(run: Run) -> dict[str, Measured | str]:
    """Measure what every claim needs of one run; a text where it was not recorded."""
    found: dict[str, Measured | str] = {}
    end = final_step(run)
    for key, measure in NUMBERS.items():
        try:
            found[key] = replace(measure(run), final=end)
        except NotRecordedError as error:
            found[key] = str(error)
    return found


def claims(
    plain: Sequence[Run],
    residual: Sequence[Run],
    found: Sequence[Difference] = (),
    *,
    is_alone: bool = False,
) -> tuple[Claim, ...]:
    """Return every claim about pairs of runs, on each side one run for each seed, in one order.

    With ``is_alone`` those about the residual runs alone.
    """
    numbers = [tuple(map(measured, pair)) for pair in zip(plain, residual, strict=True)]
    made = judged([p for p, _ in numbers], [r for _, r in numbers], found, is_alone=is_alone)
    runs = [*plain, *residual]
    more = {"undefined": became_nan(runs), "unclear": _duration(runs)}
    return tuple(
        replace(one, text=f"{one.text} {more[one.status]}".rstrip()) if one.status in more else one
        for one in made
    )


def _duration(runs: Sequence[Run]) -> str:
    """How long three seeds take, as long as these took."""
    seconds = [run.manifest.get("seconds") for run in runs]
    known = [float(x) for x in seconds if isinstance(x, int | float) and x > 0]
    pair = sum(known) / max(1, len(known)) * 2
    return f"Three seeds of both take about {number(3 * pair)} s." if known else ""


def judged(
    plain: Sequence[Numbers],
    residual: Sequence[Numbers],
    found: Sequence[Difference] = (),
    *,
    is_alone: bool = False,
) -> tuple[Claim, ...]:
    """Return every claim about numbers that were measured of pairs of runs."""
    made = []
    for statement in STATEMENTS:
        if is_alone and statement.alone:
            said = statement.alone
            statement = replace(statement, said=said, short=said, is_of_residual=True)
        if (is_alone and not statement.is_of_residual) or (statement.is_alone and not is_alone):
            continue
        if not statement.by_moment:
            made.append(_claim(statement, statement.key, plain, residual, found))
            continue
        each = [
            (name, _claim(statement, f"{statement.number}_{name}", plain, residual, found))
            for name in MOMENTS
        ]
        chosen = each[0][1]
        for _, claim in each[1:]:
            # Of moments that are about as bad the earliest is told.
            if _worst(claim) > _worst(chosen) + LIMITS["moments"].value:
                chosen = claim
        made.append(chosen)
        made += [
            replace(claim, key=f"{claim.key}_{name}")
            for name, claim in each
            if claim is not chosen and _differs(chosen, claim)
        ]
    return tuple(made)


def _worst(claim: Claim) -> float:
    """How far the worse of the two goes; of moments that are as bad the earliest is told."""
    known = [x for x in (claim.plain, claim.residual) if x is not None and not math.isnan(x)]
    rank = {"holds": 1e3, "unclear": 1e2}.get(claim.status, 0.0)
    return rank + min(max(known, default=-99.0), 99.0)


def _differs(first: Claim, other: Claim) -> bool:
    """Whether the number of another moment is one that must be told apart."""
    if other.status == "not measured" or other.steps == first.steps:
        return False
    pairs = ((first.plain, other.plain), (first.residual, other.residual))
    apart = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return other.status != first.status or any(not x < LIMITS["moments"].value for x in apart)


def _claim(
    statement: Statement,
    key: str,
    plain: Sequence[Numbers],
    residual: Sequence[Numbers],
    found: Sequence[Difference],
) -> Claim:
    right = [one[key] for one in residual]
    left = right if statement.is_of_residual else [one[key] for one in plain]
    texts = [one for one in (*left, *right) if isinstance(one, str)]
    known = [
        (p, r)
        for p, r in zip(left, right, strict=True)
        if isinstance(p, Measured) and isinstance(r, Measured)
    ]
    # A median over some of the seeds would be of other runs than the next claim's.
    if texts:
        text = f"{statement.question} Not measured: {texts[0]}."
        about = statement.reference, "", statement.panel
        return Claim(statement.key, text, "not measured", None, None, None, (), *about)
    status, why = _status(statement, known, found)
    values = [_values(statement, pair) for pair in known]
    sides = [_middle([v[k] for v in values]) for k in (0, 1)]
    spread = _spread(statement, known, values)
    ends = [None if spread is None else spread[side] for side in ("plain", "residual")]
    first, second = known[0]
    apart = [abs(LIMITS[name].value) for _, name in statement.conditions(first, second)]
    words = {
        "where": second.where,
        "plain_where": first.where,
        "scale": number(second.scale, apart),
        "plain_scale": number(first.scale, apart),
        "count": str(second.count),
        "over": second.over,
        "rescaled": decades_fallen(second.scale),
        "rate": _rate(key, second),
        "plain_rate": _rate(key, first),
    }
    said, briefly = (
        words
        | {
            side: statement.say(sides[k], ends[k] if is_whole or len(known) > 1 else None, apart)
            for k, side in enumerate(("plain", "residual"))
        }
        for is_whole in (True, False)
    )
    when = f"{'median over ' * key.endswith('_median')}{_when(known)}"
    text = (
        f"{statement.question} {ANSWERS[status].capitalize()}: {statement.said.format(**said)} "
        f"({when}; {statement.compared}).{why}"
    )
    return Claim(
        key=statement.key,
        text=text,
        status=status,
        plain=sides[0],
        residual=sides[1],
        spread=spread,
        steps=tuple(dict.fromkeys(step for pair in known for one in pair for step in one.steps)),
        reference=statement.reference,
        query=_query([_pair_query(statement, pair) for pair in known]),
        panel=statement.panel,
        effect=_effect(statement, known) if status == "holds" else 0.0,
        short=statement.short.format(**briefly),
        brief=statement.brief.format(**briefly),
        when=when,
        compared=statement.compared,
    )


def _values(statement: Statement, pair: Pair) -> tuple[float | None, float]:
    plain = pair[1].other if statement.is_of_residual else pair[0].value
    return plain, pair[1].value


def _middle(values: Sequence[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    if len(known) < len(values):
        return None
    return math.nan if any(math.isnan(x) for x in known) else statistics.median(known)


def _spread(
    statement: Statement, pairs: Sequence[Pair], values: Sequence[tuple[float | None, float]]
) -> dict[str, Any] | None:
    """Over seeds where there are several, else within the runs."""
    if len(pairs) > 1:
        known = [[x for v in values if (x := v[k]) is not None] for k in (0, 1)]
        plain, residual = ([min(some), max(some)] if some else None for some in known)
        return {"plain": plain, "residual": residual, "over": "seeds", "count": len(pairs)}
    left, right = pairs[0]
    if right.low is None and left.low is None:
        return None
    both = [None if one.low is None else [one.low, one.high] for one in (left, right)]
    if statement.is_of_residual:
        both[0] = None
    return {
        "plain": both[0],
        "residual": both[1],
        "over": right.over or left.over,
        "count": min(left.count, right.count),
    }


def _rate(key: str, one: Measured) -> str:
    """The factor a layer with weights that decades along depth are."""
    decades = -one.value if key.startswith("fallen") else one.value
    return number(10 ** (decades / one.scale) if abs(decades) < 300 and one.scale else math.nan)


def _when(pairs: Sequence[Pair]) -> str:
    """The steps in words, and how many seeds."""
    steps = [step for one in pairs[0] for step in one.steps]
    words = dict.fromkeys(word for one in pairs[0] for word in one.moments)
    where = " and ".join(words).replace(" and step ", " and ") or "no step"
    if any(len(one.steps) > 1 for one in pairs[0]):
        where = f"steps {min(steps)} to {max(steps)}"
    return f"{where}, {counted(len(pairs), 'seed')}" if len(pairs) > 1 else where


def _status(
    statement: Statement, pairs: Sequence[Pair], found: Sequence[Difference]
) -> tuple[str, str]:
    """The status, and what would settle an unclear one."""
    scores = [_scores(statement, *pair) for pair in pairs]
    if any(math.isnan(point) for point, _, _ in scores):
        return "undefined", ""
    needed = _NEEDED.get(len(pairs), 0.0)
    points, lows, highs = zip(*scores, strict=True)
    if min(points) >= needed and min(lows) >= 0 and min(points) > 0:
        explained = [one for one in found if _explains(one, statement, pairs)]
        if not explained:
            return "holds", ""
        words = "; ".join(one.words for one in explained)
        return (
            "unclear",
            f" Something else can explain it: {words}. Make that equal, and record again.",
        )
    if max(points) <= -needed and max(highs) <= 0:
        return "fails", ""
    is_near = max(map(abs, points)) < needed
    why = "Too near to the limit" if is_near else "The spread reaches across the limit"
    return "unclear", f" {why}. {statement.settle}."


def _explains(one: Difference, statement: Statement, pairs: Sequence[Pair]) -> bool:
    if statement.is_of_residual or statement.alone:
        return False
    is_first = all(side.steps[:1] == side.steps and side.steps[0] == 0 for p in pairs for side in p)
    return one.explains == "network" or (one.explains == "training" and not is_first)


def _scores(
    statement: Statement, plain: Measured, residual: Measured
) -> tuple[float, float, float]:
    """How far the conditions are met, in units of their noise; less and more its error.

    The errors of the two runs are independent: they add by their squares.
    """
    point = _score(statement, plain, residual)
    if not statement.uses_spread or not math.isfinite(point):
        return point, point, point
    less = more = 0.0
    for pairs in (
        [(end, residual) for end in _ends(plain)],
        [(plain, end) for end in _ends(residual)],
    ):
        known = [x for p, r in pairs if not math.isnan(x := _score(statement, p, r))]
        less = math.hypot(less, point - min([point, *known]))
        more = math.hypot(more, max([point, *known]) - point)
    return point, point - less, point + more


def _ends(one: Measured) -> list[Measured]:
    return [replace(one, value=end) for end in (one.low, one.high) if end is not None]


def _score(statement: Statement, plain: Measured, residual: Measured) -> float:
    scores = [
        (amount - LIMITS[name].value) / LIMITS[name].noise
        for amount, name in statement.conditions(plain, residual)
    ]
    return math.nan if any(map(math.isnan, scores)) else min(scores)


def _effect(statement: Statement, pairs: Sequence[Pair]) -> float:
    """Decades between the two, median over pairs: what the last condition compares."""
    amounts = [statement.conditions(*pair)[-1][0] for pair in pairs]
    return float(statistics.median(amounts))


def _pair_query(statement: Statement, pair: Pair) -> str:
    residual = pair[1].query.replace("RUN", "residual")
    if statement.is_of_residual:
        return residual
    return f"({pair[0].query.replace('RUN', 'plain')}, {residual})"


def _query(queries: Sequence[str]) -> str:
    """One expression for all pairs; each pair has its own, since steps and layers may differ."""
    if len(queries) == 1:
        return queries[0]
    if len(set(queries)) == 1:
        return f"[{queries[0]} for plain, residual in zip(plain, residual)]"
    each = [
        f"(lambda plain, residual: {q})(plain[{k}], residual[{k}])" for k, q in enumerate(queries)
    ]
    return f"[{', '.join(each)}]"

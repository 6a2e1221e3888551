"""What a paper says, what was measured here, and whether the two agree: one table.

An experiment is one object: its source, its claims with the rule by which each is compared, its
settings at three scales, and the function that measures one part of it. This module computes and
writes tables from measured numbers; it loads no torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analyzer.analysis.numerals import number
from analyzer.texts import escaped

__all__ = [
    "COLUMNS",
    "RULE",
    "SCALES",
    "Claim",
    "Experiment",
    "Numbers",
    "Outcome",
    "as_json",
    "markdown",
    "outcomes",
    "slope",
]

SCALES = ("tiny", "laptop", "full")
"""``tiny`` shows in seconds that the code runs, ``full`` is the setting of the paper."""

COLUMNS = {"part": "string", "seed": "int32", "quantity": "string", "x": "float64"} | {
    "value": "float64"
}
"""Columns of a table of measured numbers; ``x`` is null for what is one number a seed."""

RULE = (
    "Each claim has its bounds before it is measured. It agrees where the 95 % interval of the "
    "mean over seeds (Student's t) lies within the bounds, or holds the published number and is "
    "no wider than they are. It disagrees where the interval lies outside. It is not comparable "
    "where the interval reaches across a bound, where a number is missing or not finite, and "
    "where this scale differs from the paper in what decides. With one seed the interval is a "
    "point."
)


@dataclass(frozen=True)
class Numbers:
    """The numbers of one seed.

    Args:
        single: Those that stand alone, by quantity.
        curves: Those along an axis: quantity to the pairs (x, value), x rising.
    """

    single: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]]

    def __getitem__(self, quantity: str) -> float:
        """Return one number; KeyError where it was not measured."""
        return self.single[quantity]

    def at(self, quantity: str, x: float) -> float:
        """Return the value of a curve at x; KeyError where it was not measured there."""
        return dict(self.curves[quantity])[x]

    def curve(
        self, quantity: str, low: float = -math.inf, high: float = math.inf
    ) -> list[tuple[float, float]]:
        """Return the pairs (x, value) of a curve with x between two bounds, both included."""
        return [pair for pair in self.curves[quantity] if low <= pair[0] <= high]


@dataclass(frozen=True)
class Claim:
    """One quantity of a paper with its number, and how ours is compared with it.

    Args:
        key: Its name; where ``value`` is not given, the quantity that is measured.
        quantity: What it is, in words.
        published: What the paper says, as text.
        low: The interval of the measured number must lie between ``low`` and ``high``.
        why: Why the bounds are where they are.
        value: Computes the number from those of one seed.
        number: The published number, if there is one.
        only_full: Why nothing but the full scale can be compared; empty where others can.
    """

    key: str
    quantity: str
    published: str
    low: float
    high: float
    why: str
    value: Callable[[Numbers], float] | None = None
    number: float | None = None
    only_full: str = ""

    def of(self, numbers: Numbers) -> float | None:
        """Return the number of one seed; None where a part that it needs was not measured."""
        try:
            return numbers[self.key] if self.value is None else self.value(numbers)
        except KeyError:
            return None


@dataclass(frozen=True)
class Experiment:
    """A published experiment.

    Args:
        name: As on the command line.
        title: What it shows, in a sentence without a verb.
        source: Authors, year, title, where.
        claims: What is compared.
        method: How it is measured.
        settings: What each scale takes: ``seeds``, and what ``measure`` reads.
        changed: By scale what differs from the paper.
        measure: ``measure(case)`` yields ``(quantity, x or None, value)`` for one part and seed.
        parts: By scale the parts that are measured one by one for each seed.
        needs_data: Whether it trains on data, CIFAR-10 at the full scale.
        discussion: What a reader must know, above all of a disagreement; ``{key}`` stands for the
            mean of that claim.
    """

    name: str
    title: str
    source: str
    claims: tuple[Claim, ...]
    method: str
    settings: Mapping[str, Mapping[str, Any]]
    changed: Mapping[str, str]
    measure: Callable[[Any], Iterable[tuple[str, float | None, float]]]
    parts: Callable[[Mapping[str, Any]], Sequence[str]] = field(default=lambda settings: ("all",))
    needs_data: bool = False
    discussion: str = ""


@dataclass(frozen=True)
class Outcome:
    """A claim beside what was measured here.

    Args:
        verdict: ``agrees`` | ``disagrees`` | ``not comparable``.
        reason: Why it is not comparable; empty elsewhere.
        values: One a seed.
        mean: Of the values; NaN without one.
        interval: The 95 % interval of the mean; None for fewer than two values.
    """

    claim: Claim
    verdict: str
    reason: str
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None

    @property
    def here(self) -> str:
        """The measured number with its spread, as text."""
        if not self.values:
            return "not measured"
        seeds = f"{len(self.values)} seed{'s' * (len(self.values) > 1)}"
        if self.interval is None:
            return f"{number(self.mean)} ({seeds})"
        low, high = map(number, self.interval)
        return f"{number(self.mean)} ({low} to {high}, {seeds})"


def seeds_of(table: pd.DataFrame) -> dict[int, Numbers]:
    """Return the numbers of each seed from a table with `COLUMNS`."""
    found: dict[int, Numbers] = {}
    for seed, rows in table.groupby("seed", sort=True):
        single = rows[rows["x"].isna()]
        along = rows[rows["x"].notna()].sort_values("x", kind="stable")
        curves = {
            str(quantity): list(zip(curve["x"].tolist(), curve["value"].tolist(), strict=True))
            for quantity, curve in along.groupby("quantity", sort=False)
        }
        names = single["quantity"].astype(str)
        found[int(str(seed))] = Numbers(dict(zip(names, single["value"], strict=True)), curves)
    return found


def outcomes(experiment: Experiment, table: pd.DataFrame, scale: str) -> list[Outcome]:
    """Return each claim of an experiment beside what a table of measured numbers says of it."""
    seeds = seeds_of(table).values()
    found = []
    for claim in experiment.claims:
        values = tuple(value for one in seeds if (value := claim.of(one)) is not None)
        mean = statistics.fmean(values) if values else math.nan
        interval = interval_of(values)
        verdict, reason = _judged(claim, values, mean, interval, scale)
        found.append(Outcome(claim, verdict, reason, values, mean, interval))
    return found


def _judged(
    claim: Claim,
    values: Sequence[float],
    mean: float,
    interval: tuple[float, float] | None,
    scale: str,
) -> tuple[str, str]:
    """Return the verdict by `RULE`, and why it is not comparable."""
    if scale == "tiny":
        return "not comparable", "this scale shows only that the code runs"
    if claim.only_full and scale != "full":
        return "not comparable", claim.only_full
    if not values:
        return "not comparable", "nothing was measured"
    if wrong := sum(not math.isfinite(value) for value in values):
        return "not comparable", f"{wrong} of {len(values)} seeds gave no finite number"
    low, high = interval or (mean, mean)
    is_told = claim.number is not None and low <= claim.number <= high
    is_within = claim.low <= low and high <= claim.high
    if is_within or (is_told and high - low <= claim.high - claim.low):
        return "agrees", ""
    if high < claim.low or low > claim.high:
        return "disagrees", ""
    return "not comparable", "the interval reaches across a bound; more seeds would settle it"


def interval_of(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean (Student's t); None for fewer than two numbers."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    # Here, not above: scipy takes long to import.
    from scipy.special import stdtrit

    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    margin = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return mean - margin, mean + margin


def slope(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the least-squares slope of y over x; NaN for fewer than two points."""
    points = list(pairs)
    if len(points) < 2:
        return math.nan
    return statistics.linear_regression(*zip(*points, strict=True)).slope


HEAD = ("quantity", "published", "agrees within", "here", "verdict")


def bounds_text(claim: Claim) -> str:
    """Return the bounds of a claim, as in ``4.25 to 5.75``."""
    if claim.high == math.inf:
        return f"at least {number(claim.low)}"
    if claim.low == -math.inf:
        return f"at most {number(claim.high)}"
    return f"{number(claim.low)} to {number(claim.high)}"


def rows(found: Iterable[Outcome]) -> list[tuple[str, ...]]:
    """Return the cells of the table under `HEAD`."""
    return [
        (
            one.claim.quantity,
            one.claim.published,
            bounds_text(one.claim),
            one.here,
            one.verdict + (f": {one.reason}" if one.reason else ""),
        )
        for one in found
    ]


def notes(experiment: Experiment, found: Iterable[Outcome], scale: str) -> list[str]:
    """Return what is said below the table: method, changes, bounds, discussion."""
    means = {one.claim.key: number(one.mean) for one in found}
    lines = [f"How: {experiment.method}"]
    if changed := experiment.changed.get(scale, ""):
        lines.append(f"Changed for this scale: {changed}")
    reasons: dict[str, list[str]] = {}
    for place, claim in enumerate(experiment.claims, 1):
        reasons.setdefault(claim.why, []).append(str(place))
    bounds = (f"{', '.join(places)}: {why}" for why, places in reasons.items())
    lines.append(f"Why these bounds, by row: {'; '.join(bounds)}.")
    if experiment.discussion:
        lines.append(experiment.discussion.format_map(means))
    return lines


def markdown(experiment: Experiment, table: pd.DataFrame, about: Mapping[str, str]) -> str:
    """Return an experiment as a section of Markdown: title, table, how, bounds, discussion.

    ``about`` says ``scale``, ``command`` and ``seconds`` of the measurement.
    """
    found = outcomes(experiment, table, about["scale"])
    lines = [HEAD, ("---",) * len(HEAD), *rows(found)]
    written = "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)
    measured = f"`{about['command']}`, {float(about['seconds']):.0f} s of processor time."
    blocks = [f"## {experiment.name}", f"{experiment.title}. {experiment.source}", written]
    return "\n\n".join([*blocks, *notes(experiment, found, about["scale"]), measured]) + "\n"


def _cell(text: str) -> str:
    # Bars of a norm are one sign here, so that no cell needs more than this.
    return text.replace("|", "\\|")


def as_json(
    experiment: Experiment, table: pd.DataFrame, about: Mapping[str, str]
) -> dict[str, Any]:
    """Return an experiment with its outcomes as plain data."""
    found = outcomes(experiment, table, about["scale"])
    return {
        "name": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "scale": about["scale"],
        "command": about["command"],
        "rule": RULE,
        "changed": experiment.changed.get(about["scale"], ""),
        "claims": [
            {
                "key": one.claim.key,
                "quantity": one.claim.quantity,
                "published": one.claim.published,
                "published_number": one.claim.number,
                "bounds": [one.claim.low, one.claim.high],
                "why": one.claim.why,
                "here": one.mean if one.values else None,
                "interval": one.interval,
                "values": one.values,
                "seeds": len(one.values),
                "verdict": one.verdict,
                "reason": one.reason,
            }
            for one in found
        ],
        "notes": [escaped(line, "page") for line in notes(experiment, found, about["scale"])],
    }

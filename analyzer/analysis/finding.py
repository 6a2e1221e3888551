"""What a finding is, what a rule that finds it is, and the words and tests that rules share."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import HISTORIES, Evidence
from analyzer.analysis.numerals import number
from analyzer.vocabulary import quantity

__all__ = [
    "SEVERITIES",
    "SUSTAINED_SHARE",
    "Finding",
    "Limits",
    "Rule",
    "Seen",
    "Threshold",
    "checked_rules",
    "markdown_table",
    "named",
    "stretch",
    "threshold_table",
]

SEVERITIES = ("severe", "warning", "note")
"""From the worst to the mildest."""

_NAMED = 3

Limits = Mapping[str, float]
"""Values of thresholds by name."""


@dataclass(frozen=True)
class Finding:
    """One sentence about a run with its number, its threshold and a remedy.

    Args:
        code: What it is, for programs: the code of its rule.
        severity: ``severe``, ``warning`` or ``note``.
        layers: Names of the layers (of parameters, where they belong to no layer) in call order.
        steps: First and last step of the evidence.
        value: The measured number, in the unit of ``threshold``.
        threshold: What the value was compared with; None where the state itself is the finding.
    """

    code: str
    severity: str
    layers: tuple[str, ...]
    steps: tuple[int, int]
    value: float
    threshold: float | None
    sentence: str
    remedy: str


@dataclass(frozen=True)
class Threshold:
    """A number that a measured one is compared with, and why it is this number and not another.

    Users may override it by its name.
    """

    name: str
    value: float
    reason: str


@dataclass(frozen=True)
class Seen:
    """What a rule saw in a run.

    Args:
        layers: Names of the layers (or parameters) concerned, in call order.
        steps: First and last step of the evidence.
        words: Texts for the places in the sentence of the rule.
        threshold: What the value was compared with, where that is not the rule's first threshold.
        severity: That of the finding, where it is milder than the rule's.
    """

    value: float
    layers: tuple[str, ...]
    steps: tuple[int, int]
    words: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    severity: str = ""


@dataclass(frozen=True)
class Rule:
    """One kind of finding: the only place that knows when it is found and what is said of it.

    Args:
        seen_when: When it is found, as a clause.
        value: What the number of such a finding is.
        reads: Columns of each history that it looks at; see ``Evidence``.
        look: Looks at the evidence, given the thresholds by name; None where nothing is found.
        sentence: What is said: a format string with the words of ``Seen``, ``value``, and the
            ``first`` and ``last`` step.
        remedy: What to do: a format string with the same words.
        thresholds: What it compares with, the threshold of ``value`` first; empty where the state
            itself is the finding.
        hides: Codes of findings that are left out in the layers of this one, as its consequences.
        hides_everywhere: Whether they are left out in all layers, whatever layers this one names.
        panel: Key of the panel that shows the evidence.
    """

    code: str
    severity: str
    seen_when: str
    value: str
    reads: Mapping[str, tuple[str, ...]]
    look: Callable[[Evidence, Limits], Seen | None]
    sentence: str
    remedy: str
    thresholds: tuple[Threshold, ...] = ()
    hides: tuple[str, ...] = ()
    hides_everywhere: bool = False
    panel: str = "gradient_heatmap"

    def judged(self, evidence: Evidence, limits: Limits) -> Finding | None:
        """Return what is found in a run; None where there is nothing."""
        seen = self.look(evidence, limits)
        if seen is None:
            return None
        threshold = seen.threshold
        if threshold is None and self.thresholds:
            threshold = limits[self.thresholds[0].name]
        first, last = seen.steps
        apart = () if threshold is None else (threshold,)
        words = {"value": number(seen.value, apart), "first": first, "last": last, **seen.words}
        return Finding(
            self.code,
            seen.severity or self.severity,
            seen.layers,
            seen.steps,
            seen.value,
            threshold,
            self.sentence.format(**words),
            self.remedy.format(**words),
        )


def checked_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return rules that are whole and fit together; ValueError names what is wrong with one.

    A rule may not lack a field, share a code, hide an unknown code or read an unknown column; a
    threshold needs a reason and one value wherever it stands.
    """
    codes = [rule.code for rule in rules]
    by_name: dict[str, Threshold] = {}
    for rule in rules:
        wrong = _complaint(rule, codes)
        for threshold in rule.thresholds:
            known = by_name.setdefault(threshold.name, threshold)
            if known != threshold:
                wrong = f"threshold {threshold.name!r} has a second value or reason"
            if not (math.isfinite(threshold.value) and len(threshold.reason) > 15):
                wrong = f"threshold {threshold.name!r} has no finite value or no reason"
        if wrong:
            raise ValueError(f"rule {rule.code!r}: {wrong}; see analyzer.analysis.finding.Rule")
    return tuple(rules)


def _complaint(rule: Rule, codes: Sequence[str]) -> str:
    """What is wrong with a rule as a clause; empty for a rule without fault."""
    texts = {name: getattr(rule, name) for name in ("code", "seen_when", "value", "panel")}
    missing = [name for name, text in texts.items() if not text]
    missing += [name for name in ("sentence", "remedy") if not getattr(rule, name).endswith(".")]
    if missing:
        return f"no {' and no '.join(missing)}"
    if codes.count(rule.code) > 1:
        return "another rule has this code"
    if rule.severity not in SEVERITIES:
        return f"severity {rule.severity!r} is not one of {', '.join(SEVERITIES)}"
    unknown = [code for code in rule.hides if code not in codes or code == rule.code]
    if unknown:
        return f"hides {unknown[0]!r}, which is not the code of another rule"
    if any(not name and name is not None for _, name, _, _ in Formatter().parse(rule.sentence)):
        return "a place in its sentence has no name"
    for history, columns in rule.reads.items():
        for column in columns:
            try:
                quantity(column, HISTORIES[history])
            except KeyError:
                return f"reads {history}.{column}, which is not recorded"
    return "" if rule.reads else "it reads nothing"


SUSTAINED_SHARE = Threshold(
    "sustained_share",
    0.25,
    "share of the judged steps, in one piece, that a state must last; a spike is not a finding",
)


def stretch(
    sick: NDArray[np.bool_], steps: NDArray[np.int64], share: float
) -> tuple[int, int] | None:
    """Return the first and last step of the longest piece in which a state lasted, ``[steps]``.

    Of several the latest; None where it fills less than ``share`` of the steps, or less than 3 of
    them (or all, where there are fewer).
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], sick, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        return None
    # Turned round, so that of several longest pieces the latest is found first.
    longest = len(starts) - 1 - int(np.argmax((stops - starts)[::-1]))
    least = max(math.ceil(share * len(steps)), min(3, len(steps)))
    if stops[longest] - starts[longest] < least:
        return None
    return int(steps[starts[longest]]), int(steps[stops[longest] - 1])


def named(names: Sequence[str], most: int = _NAMED) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    more = len(names) - most
    return f"{shown} and {more:,} more" if more > 0 else shown


def markdown_table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table for the documentation."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def threshold_table(thresholds: Iterable[Threshold]) -> str:
    """Return thresholds as a table for the documentation: name, value, meaning and reason."""
    rows = ((f"`{one.name}`", f"{one.value:g}", one.reason) for one in thresholds)
    return markdown_table(("name", "value", "meaning and reason"), rows)

"""The findings of a run: every rule, the worst first, consequences under their cause."""

import math
from collections.abc import Callable, Mapping, Sequence

from analyzer.analysis import (
    cause_rules,
    depth_rules,
    layer_rules,
    loss_rules,
    ratio_rules,
    update_rules,
)
from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import (
    SEVERITIES,
    Finding,
    Rule,
    Threshold,
    checked_rules,
    markdown_table,
    threshold_table,
)
from analyzer.errors import TooMuchError
from analyzer.storage.limits import LISTED, stricter
from analyzer.storage.run import Run

__all__ = [
    "RULES",
    "THRESHOLDS",
    "UNJUDGED",
    "Finding",
    "findings",
    "findings_in_list",
    "health",
    "rules_table",
    "thresholds_table",
    "thresholds_with",
]

# A rule counts by standing in its module: there is no second list to keep.
RULES: tuple[Rule, ...] = checked_rules(
    [
        rule
        for module in (
            depth_rules,
            layer_rules,
            cause_rules,
            loss_rules,
            update_rules,
            ratio_rules,
        )
        for rule in vars(module).values()
        if isinstance(rule, Rule)
    ]
)
"""Every kind of finding."""

# Layers of a run that a list judges: some values of each are read.
_MOST_NAMES = 5_000
UNJUDGED = cause_rules.NOT_JUDGED.code
"""The state of a run that is neither healthy nor ill, for too little is known of it."""

THRESHOLDS: dict[str, Threshold] = {
    threshold.name: threshold for rule in RULES for threshold in rule.thresholds
}
"""Every threshold by its name."""


def thresholds_with(overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the values of the thresholds, some of them replaced by name.

    ValueError is raised for an unknown name or a value that is NaN.
    """
    values = {name: threshold.value for name, threshold in THRESHOLDS.items()}
    if not isinstance(overrides or {}, Mapping):
        raise TypeError(f"thresholds is {overrides!r}; expected a dict of numbers by name")
    for name, value in (overrides or {}).items():
        if name not in values:
            raise ValueError(f"there is no threshold {name!r}; expected one of {', '.join(values)}")
        if not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"threshold {name!r} is {value!r}; expected a number")
        values[name] = float(value)
    return values


def findings(run: Run, thresholds: Mapping[str, float] | None = None) -> list[Finding]:
    """Return what is wrong with a run, finished or running, the most severe first.

    Within a severity findings stand in the order of the steps at which they began. What another
    finding causes in the same layers is left out; a healthy run has none, and one that cannot be
    judged says why. ``thresholds`` replace values of ``THRESHOLDS`` by name, and ValueError is
    raised where there is none of a name.
    """
    limits = thresholds_with(thresholds)
    evidence = Evidence(run, [rule.reads for rule in RULES])
    # Last what cannot be read: only reading tells.
    order = sorted(RULES, key=lambda rule: rule is cause_rules.NOT_JUDGED)
    rules = order if len(run.layers) else order[-1:]
    judged = [(rule, rule.judged(evidence, limits)) for rule in rules]
    found = [(rule, finding) for rule, finding in judged if finding is not None]
    kept = [finding for _, finding in found if not _is_explained(finding, found)]
    return sorted(kept, key=lambda f: (SEVERITIES.index(f.severity), f.steps[0], f.code))


def _is_explained(finding: Finding, found: Sequence[tuple[Rule, Finding]]) -> bool:
    """Whether causes that were found cover the layers of a finding."""
    causes = [(rule, cause) for rule, cause in found if finding.code in rule.hides]
    if any(rule.hides_everywhere for rule, _ in causes):
        return True
    covered = {name for _, cause in causes for name in cause.layers}
    return bool(causes) and set(finding.layers) <= covered


def health(found: Sequence[Finding]) -> str:
    """Return the code of a run's worst finding that is not a note; ``healthy`` without one."""
    return next((f.code for f in found if f.severity != "note"), "healthy")


def findings_in_list(
    open_run: Callable[[], Run], most_rows: float = math.inf
) -> list[Finding] | None:
    """Return the findings of one run among many; None where that would take too much.

    Args:
        open_run: Opens the run, within the limits of a list.
        most_rows: Rows of layers beyond which it is not judged.
    """
    try:
        with stricter(**LISTED, names=_MOST_NAMES):
            run = open_run()
            layers = run.static_rows("layers").num_rows
            is_long = len(run.recorded_steps("layer_stats")) * layers > most_rows
            return None if is_long else findings(run)
    except TooMuchError:
        return None


def rules_table() -> str:
    """Return every rule as a Markdown table: code, severity, when it is found, and its number."""
    rows = (
        (f"`{r.code}`", r.severity, r.seen_when, r.value, ", ".join(f"`{c}`" for c in r.hides))
        for r in RULES
    )
    return markdown_table(("code", "severity", "found when", "value", "hides"), rows)


def thresholds_table() -> str:
    """Return every threshold as a Markdown table: name, value, meaning and reason."""
    return threshold_table(THRESHOLDS.values())

"""The findings of a run: every rule, the worst first, consequences under their cause."""

from collections.abc import Callable, Mapping

from analyzer.analysis.depth_rules import explosion, nonfinite_values, shrinkage, vanishing
from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import SEVERITIES, THRESHOLDS, Finding, thresholds_with
from analyzer.analysis.silence_rules import (
    dead_layers,
    dead_unit_layers,
    detached,
    frozen,
    unused,
)
from analyzer.analysis.split_rules import cancellation, sleeping_branches
from analyzer.analysis.update_rules import large_updates, small_updates
from analyzer.storage.run import Run

__all__ = ["SEVERITIES", "THRESHOLDS", "Finding", "findings", "health"]

Rule = Callable[[Evidence, Mapping[str, float]], list[Finding]]

_RULES: tuple[Rule, ...] = (
    nonfinite_values,
    vanishing,
    explosion,
    dead_layers,
    detached,
    unused,
    frozen,
    dead_unit_layers,
    small_updates,
    large_updates,
    shrinkage,
    cancellation,
    sleeping_branches,
)

# A finding is left out where causes that are found too cover all of its layers; what a net does
# along its whole depth, and updates that throw it about, cover every layer.
_CAUSES: dict[str, tuple[str, ...]] = {
    "dead": ("vanishing", "sleeping_branch"),
    "dead_units": ("vanishing", "dead", "sleeping_branch", "update_too_large"),
    "update_too_small": ("vanishing", "sleeping_branch"),
    "update_too_large": ("exploding",),
    "shrinking": ("vanishing", "dead", "update_too_large"),
}
_EVERYWHERE = ("vanishing", "exploding", "update_too_large")


def findings(run: Run, thresholds: Mapping[str, float] | None = None) -> list[Finding]:
    """Return what is wrong with a run, the most severe first; nothing for a healthy one.

    Args:
        run: An opened run, finished or still running.
        thresholds: Values that replace those of ``THRESHOLDS``, by name.

    Returns:
        Findings by severity, within one in the order of the steps at which they began. What
        another finding causes in the same layers is left out.

    Raises:
        ValueError: If there is no threshold of a name.
    """
    limits = thresholds_with(thresholds)
    if not len(run.layers):
        return []
    evidence = Evidence(run)
    found = [finding for rule in _RULES for finding in rule(evidence, limits)]
    kept = [finding for finding in found if not _is_explained(finding, found)]
    return sorted(kept, key=lambda f: (SEVERITIES.index(f.severity), f.steps[0], f.code))


def _is_explained(finding: Finding, found: list[Finding]) -> bool:
    """Whether causes that were found cover the layers of a finding."""
    causes = [f for f in found if f.code in _CAUSES.get(finding.code, ())]
    if any(cause.code in _EVERYWHERE for cause in causes):
        return True
    covered = {name for cause in causes for name in cause.layers}
    return bool(causes) and set(finding.layers) <= covered


def health(found: list[Finding]) -> str:
    """Return a run's state in a word: the code of its worst finding that is no note.

    Returns:
        ``healthy`` where there is none.
    """
    return next((f.code for f in found if f.severity != "note"), "healthy")

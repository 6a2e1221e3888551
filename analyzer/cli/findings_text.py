"""Findings as lines for the terminal."""

from collections.abc import Sequence

from analyzer.analysis.finding import Finding
from analyzer.cli.terminal import printable

__all__ = ["finding_lines", "findings_summary"]

_LONGEST = 1000


def finding_lines(found: Sequence[Finding]) -> list[str]:
    """Return each finding in two lines: severity and sentence, then the remedy."""
    lines = []
    for finding in found:
        lines.append(f"{finding.severity} | {finding.code}: {_harmless(finding.sentence)}")
        lines.append(f"    {finding.remedy}")
    return lines


def findings_summary(found: Sequence[Finding]) -> str:
    """Return how many findings of each severity there are."""
    if not found:
        return "Findings: none."
    severities = list(dict.fromkeys(finding.severity for finding in found))
    counts = [f"{sum(f.severity == word for f in found)} {word}" for word in severities]
    return f"Findings: {', '.join(counts)}."


def _harmless(sentence: str) -> str:
    """The sentence with the names in it made harmless."""
    return printable(sentence, _LONGEST)

"""The verdict on a pair of runs as lines for the terminal."""

import textwrap

from analyzer.analysis.claims import STATUSES, Claim
from analyzer.analysis.verdict import Verdict
from analyzer.cli.terminal import printable

__all__ = ["explain_text"]

_LONGEST = 2000


def explain_text(verdict: Verdict, width: int = 100, *, queries: bool = True) -> list[str]:
    """Return a verdict as lines: the sentence, then every claim with its status.

    Args:
        verdict: What ``analyzer.analysis.verdict.verdict`` says.
        width: Columns to wrap at; queries are never wrapped, so that they can be copied.
        queries: Whether the query and the reference of each claim follow it.
    """
    lines = [*textwrap.wrap(verdict.sentence, width, break_on_hyphens=False)]
    if verdict.note:
        lines += textwrap.wrap(verdict.note, width)
    lines.append("")
    for status in STATUSES:
        for claim in verdict.claims:
            if claim.status == status:
                lines += _claim_lines(claim, width, queries)
    if queries:
        names = "plain and residual are analyzer.open_run(...) of the two runs"
        if verdict.num_seeds > 1:
            names = "plain and residual are lists of analyzer.open_run(...), one for each seed"
        lines += ["", f"In the queries, {names}."]
    return lines


def _claim_lines(claim: Claim, width: int, queries: bool) -> list[str]:
    """One claim."""
    text = f"{claim.status.upper():<12}  {printable(claim.text, _LONGEST)}"
    if queries:
        text += f" [{claim.reference}]"
    lines = textwrap.wrap(text, width, subsequent_indent=" " * 14, break_on_hyphens=False)
    if queries and claim.query:
        lines.append(f"{'':14}>>> {claim.query}")
    return lines

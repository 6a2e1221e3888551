"""The verdict: which mechanism separates plain runs from residual ones, claim by claim."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analyzer.analysis.claims import Claim, claims
from analyzer.analysis.gradient_flow import ROUTE
from analyzer.analysis.numerals import decades_fallen, with_range
from analyzer.analysis.sentences import Trend, headline, outcome, trend_of
from analyzer.storage.run import Run

__all__ = ["Verdict", "verdict"]

Claims = Mapping[str, Claim]
_INSTEAD = (
    ("shattering", "shattered gradients (correlation {plain} against {residual})"),
    ("conditioning", "conditioning (condition number {plain} against {residual})"),
    ("first_update", "the first layer's update ratio ({plain} against {residual})"),
)


@dataclass(frozen=True)
class Verdict:
    """What separates a plain and a residual run.

    Args:
        sentence: Two to five sentences, each with its numbers: the mechanism first.
        note: How the plain run was made, as far as its manifest says.
        num_seeds: Pairs of runs that it is about.
    """

    sentence: str
    claims: tuple[Claim, ...]
    note: str = ""
    num_seeds: int = 1


def verdict(plain: Run | Sequence[Run], residual: Run | Sequence[Run]) -> Verdict:
    """Say what separates plain runs from residual ones, each one run or one for each seed.

    Vanishing gradients are claimed only where the fitted norm falls by 3 decades or more from the
    last layer to the first; elsewhere the sentence says so and names what differs instead. Over
    several seeds numbers are medians with their range, and a claim holds where it holds in all.

    Reference:
        He et al. (2015), Deep residual learning for image recognition, §4.1.
    """
    left = [plain] if isinstance(plain, Run) else list(plain)
    right = [residual] if isinstance(residual, Run) else list(residual)
    if len(left) != len(right) or not left:
        raise ValueError(
            f"got {len(left)} plain and {len(right)} residual runs; expected pairs. "
            "Give one plain run for each residual run"
        )
    found = claims(left, right)
    by_key = {claim.key: claim for claim in found}
    sentence = " ".join(filter(None, (part(by_key) for part in _PARTS)))
    return Verdict(_seeds(by_key, len(left)) + sentence, found, _twin_note(left[0]), len(left))


def _seeds(found: Claims, count: int) -> str:
    """Over how many seeds the medians are, and whether the seeds agree."""
    if count == 1:
        return ""
    vanish = found["vanishing"].num_holding
    split = f"; they disagree, gradients vanish in {vanish}" if 0 < vanish < count else ""
    return f"Over {count} seeds (medians, with ranges{split}): "


def _trends(claim: Claim) -> tuple[Trend, Trend]:
    """The norms of both along depth in a word, from the decades that they fall."""
    plain, residual = (math.nan if x is None else x for x in (claim.plain, claim.residual))
    return trend_of(plain), trend_of(residual)


def _plain(claim: Claim) -> str:
    return with_range(claim.plain, claim.plain_spread)


def _residual(claim: Claim) -> str:
    return with_range(claim.residual, claim.residual_spread)


def _mechanism(found: Claims) -> str:
    relative, claim = found["relative_gradient"], found["vanishing"]
    if relative.plain == 0 and relative.residual:
        return (
            "Without shortcuts no gradient reaches the first layer: its norm is exactly 0 of that "
            f"at the output; with them it is {_residual(relative)} of it."
        )
    trends = _trends(claim)
    if Trend.UNKNOWN in trends:
        return f"{headline(*trends)}."
    without = decades_fallen(claim.plain, claim.plain_spread)
    within = decades_fallen(claim.residual, claim.residual_spread)
    return (
        f"{headline(*trends)}: without shortcuts the gradient {without} {ROUTE}, with them it "
        f"{within}."
    )


def _instead(found: Claims) -> str:
    """What differs where the norms do not separate them, or that it was not measured."""
    explained = (Trend.VANISHING, Trend.EXPLODING)
    if _trends(found["vanishing"])[0] in explained or found["relative_gradient"].plain == 0:
        return ""
    differing = [
        words.format(plain=_plain(c), residual=_residual(c))
        for key, words in _INSTEAD
        if (c := found[key]).status == "holds"
    ]
    missing = [k for k in ("shattering", "conditioning") if found[k].status == "not measured"]
    parts = []
    if differing:
        parts.append(f"What differs instead: {', '.join(differing)}.")
    elif not missing:
        parts.append("Neither shattering nor conditioning separates them.")
    if missing:
        parts.append(f"{' and '.join(missing).capitalize()} not measured.")
    return " ".join(parts)


def _shortcuts(found: Claims) -> str:
    start, share, paths = (found[k] for k in ("identity_start", "shortcut_share", "path_length"))
    parts = []
    if start.status == "holds" and start.residual is not None:
        parts.append(
            "The residual net starts as an identity: its shortcuts carry "
            f"{_residual(start)} of the gradient at first."
        )
    if share.residual is not None:
        over = f", over paths of {_residual(paths)} branches" if paths.residual is not None else ""
        parts.append(f"Shortcuts carry {_residual(share)} of the gradient{over}.")
    return " ".join(parts)


def _outcome(found: Claims) -> str:
    loss = found["training_loss"]
    if loss.plain is None or loss.residual is None:
        return ""
    spreads = (loss.plain_spread, loss.residual_spread)
    return outcome(loss.plain, loss.residual, loss.status == "holds", spreads)


_PARTS = (_mechanism, _instead, _shortcuts, _outcome)


def _twin_note(plain: Run) -> str:
    """How the plain run was made, as far as its manifest says."""
    scale = plain.manifest.get("skip_scale")
    if scale is None:
        return ""
    rescaled = plain.manifest.get("rescale") or plain.manifest.get("rescaled")
    branches = (
        "its branches were initialized again so that activation variances match"
        if rescaled
        else "its branches kept their scale, so activations have another scale than the original's"
    )
    return f"The plain run is a twin with every shortcut multiplied by {scale:g}; {branches}."

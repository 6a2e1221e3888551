"""Findings at joins: shortcut and branch that cancel, and a branch that never wakes up."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import Finding, named, short, stretch

__all__ = ["cancellation", "remaining_share", "sleeping_branches"]

Floats = NDArray[np.float64]

_GROWTH = 3.0


def remaining_share(shortcut: Floats, branch: Floats, cosine: Floats) -> Floats:
    """Return what is left where two gradients add: ``‖g_s + g_b‖ / (‖g_s‖ + ‖g_b‖)``.

    Args:
        shortcut: ``‖g_s‖``, any shape.
        branch: ``‖g_b‖``, the same shape.
        cosine: Their cosine, the same shape.

    Returns:
        From 0 (they cancel) to 1 (they agree, or one of them is zero); NaN where both are zero or
        one is not finite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        total = shortcut + branch
        s, b = shortcut / total, branch / total
        square = s * s + b * b + 2 * s * b * np.where((s == 0) | (b == 0), 0.0, cosine)
    left: Floats = np.sqrt(np.maximum(square, 0.0))
    return left


def cancellation(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Joins at which the two gradients cancel, sustained over steps."""
    history, limit = evidence.split_history, limits["cancellation_ratio"]
    left = remaining_share(
        history.values["shortcut_gradient_norm"],
        history.values["branch_gradient_norm"],
        history.values["cosine"],
    )
    pieces = [stretch(x < limit, history.steps, limits["sustained_share"]) for x in left.T]
    chosen = [place for place, piece in enumerate(pieces) if piece is not None]
    if not chosen:
        return []
    ends = [piece for piece in pieces if piece is not None]
    # All-NaN columns belong to joins without a split, and those are not chosen.
    worst = min(float(np.nanmedian(left[:, place])) for place in chosen)
    names = [str(evidence.joins["name"].iloc[place]) for place in chosen]
    return [
        Finding(
            "cancellation",
            "warning",
            _layers(evidence, chosen, "branch_layers"),
            (min(e[0] for e in ends), max(e[1] for e in ends)),
            worst,
            limit,
            f"Shortcut and branch gradients cancel at {len(chosen)} of {len(left.T)} joins "
            f"({named(names)}): {short(worst)} of their norms is left.",
            "The branch learns to undo the shortcut: check the sign and the scale of the branch, "
            "or use a projection shortcut there.",
        )
    ]


def sleeping_branches(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Joins whose branch gradient stays next to nothing from the first step to the last."""
    history, limit = evidence.split_history, limits["sleeping_ratio"]
    if len(history.steps) < 2 or history.steps[-1] - history.steps[0] < limits["sleeping_steps"]:
        return []
    shortcut, branch = (history.values[f"{side}_gradient_norm"] for side in ("shortcut", "branch"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(shortcut > 0, branch / shortcut, np.nan)
    largest = np.where(np.isnan(ratio), -math.inf, ratio).max(axis=0)
    asleep = (largest < limit) & np.isfinite(largest) & ~_is_growing(ratio)
    chosen = np.flatnonzero(asleep).tolist()
    if not chosen:
        return []
    worst = float(largest[chosen].max())
    names = [str(evidence.joins["name"].iloc[place]) for place in chosen]
    return [
        Finding(
            "sleeping_branch",
            "warning",
            _layers(evidence, chosen, "branch_layers"),
            (int(history.steps[0]), int(history.steps[-1])),
            worst,
            limit,
            f"The branch never wakes up at {len(chosen)} of {len(largest)} joins "
            f"({named(names)}): its gradient stays at or below {short(worst)} of the "
            f"shortcut's to step {history.steps[-1]}.",
            "Let the scale of the branch be trained (with a larger learning rate), and start only "
            "one factor of the branch at zero: two zeros get no gradient.",
        )
    ]


def _is_growing(ratio: Floats) -> NDArray[np.bool_]:
    """Whether each branch grows, ``[joins]``: a young one that starts at zero is only slow."""
    early, last = ratio[len(ratio) // 4], ratio[-1]
    growing: NDArray[np.bool_] = (last > 0) & (last >= _GROWTH * early)
    return growing


def _layers(evidence: Evidence, joins: list[int], column: str) -> tuple[str, ...]:
    """Layers of the chosen joins, each once, in order."""
    lists = (evidence.joins[column].iloc[place] for place in joins)
    return tuple(dict.fromkeys(str(name) for names in lists for name in names))

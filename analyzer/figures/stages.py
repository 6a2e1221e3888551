"""Names of stages under the axis of depth, as many as fit beside each other."""

from collections.abc import Sequence
from typing import Any

from analyzer.figures.theme import labeled

__all__ = ["stage_ticks"]

_MOST_NAME = 18
# Pixels of a figure that panes share, and of half a letter.
_WIDTH, _HALF_LETTER, _GAP = 1000, 4.2, 6


def stage_ticks(
    stages: Sequence[tuple[float, str]], depth: tuple[float, float], panes: int = 1
) -> dict[str, Any]:
    """Return ticks at the borders of stages; where names would overlap, the longest stages stay.

    Args:
        stages: Depth and name at which each stage begins, ascending.
        depth: First and last place of the axis.
        panes: Panes side by side.
    """
    ends = [at for at, _ in stages[1:]] + [depth[1] + 1]
    unit = (depth[1] - depth[0] + 2) / (_WIDTH / panes)
    by_length = sorted(zip(stages, ends, strict=True), key=lambda one: one[0][0] - one[1])
    kept: list[tuple[float, str]] = []
    for (at, name), _ in by_length:
        if all(abs(at - x) > unit * (_half(name) + _half(n) + _GAP) for x, n in kept):
            kept.append((at, name))
    shown = sorted(kept)
    return {
        "tickvals": [at for at, _ in shown],
        "ticktext": [labeled(name, _MOST_NAME) for _, name in shown],
        "tickangle": 0,
    }


def _half(name: str) -> float:
    """Half the width of a name in pixels."""
    return _HALF_LETTER * min(len(name), _MOST_NAME)

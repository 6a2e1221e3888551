"""Names under an axis, as many as fit beside each other: of stages along depth, of joins."""

from collections.abc import Sequence
from typing import Any

from analyzer.figures.theme import labeled

__all__ = ["name_ticks", "stage_ticks"]

_MOST_NAME, _MOST_JOIN = 18, 16
_MOST_LEVEL = 6
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


def name_ticks(names: Sequence[str], most: int) -> dict[str, Any]:
    """Return ticks of names at 0, 1, 2, …: all of them where they fit, else every second, third, ….

    Args:
        names: The names in their order.
        most: Ticks at the most.
    """
    places = list(range(0, len(names), max(1, -(-len(names) // max(2, most)))))
    return {
        "tickvals": places,
        "ticktext": [labeled(names[place], _MOST_JOIN) for place in places],
        "tickangle": -40 if len(places) > _MOST_LEVEL else 0,
    }


def _half(name: str) -> float:
    """Half the width of a name in pixels."""
    return _HALF_LETTER * min(len(name), _MOST_NAME)

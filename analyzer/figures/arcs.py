"""Arcs over the axis of depth: one per skip, width and color by the share of its shortcut."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyzer.analysis.numerals import percent
from analyzer.analysis.shortcuts import SHARE_LEVELS, JoinArcs, share_level
from analyzer.figures.sketch import Trace, scatter
from analyzer.figures.theme import Theme, labeled

__all__ = ["LEVEL_NAMES", "arc_traces", "arc_words", "broken_lines", "outline"]

LEVEL_NAMES = ("0 to 20 %", "20 to 40 %", "40 to 60 %", "60 to 80 %", "80 % and more")
_WIDTHS = (1.25, 2.0, 3.0, 4.0, 5.0)
_POINTS, _MANY = 25, 24
# A dash, so that a projection is told from an identity without color.
_IDENTITY, _OTHER = "solid", "dot"


def outline(arcs: JoinArcs, highest: int) -> list[tuple[list[float], list[float]]]:
    """Return the points of each arc; a box where an arc stands for several joins.

    Args:
        arcs: Joins along depth.
        highest: Level of the highest arc of all runs, which reaches 1.

    Returns:
        Places along depth and heights from 0 to 1, per arc.
    """
    angles = np.linspace(np.pi, 0, _POINTS)
    shapes = []
    for start, end, level in zip(arcs.starts, arcs.ends, arcs.levels, strict=True):
        if arcs.size > 1:
            shapes.append(([start, start, end, end, start], [0.12, 0.62, 0.62, 0.12, 0.12]))
            continue
        x = (start + end) / 2 + (end - start) / 2 * np.cos(angles)
        y = (0.35 + 0.65 * level / highest if highest > 1 else 0.8) * np.sin(angles)
        shapes.append((np.round(x, 3).tolist(), np.round(y, 3).tolist()))
    return shapes


def arc_words(arcs: JoinArcs) -> list[str]:
    """Return what each arc is called on hover, without its share."""
    many = f", {arcs.size} joins, median" if arcs.size > 1 else ""
    return [
        f"{labeled(name)} ({shortcut}{many})"
        for name, shortcut in zip(arcs.names, arcs.shortcuts, strict=True)
    ]


def broken_lines(
    shapes: Sequence[tuple[list[float], list[float]]], words: Sequence[str]
) -> dict[str, list[Any]]:
    """Return several lines as one trace: their points one after another, gaps between."""
    # A trace without a point would be missing in the legend.
    x: list[Any] = [None]
    y: list[Any] = [None]
    text: list[Any] = [None]
    for (xs, ys), word in zip(shapes, words, strict=True):
        x += [*xs, None]
        y += [*ys, None]
        text += [word] * len(xs) + [None]
    return {"x": x, "y": y, "text": text}


def arc_traces(
    arcs: JoinArcs, theme: Theme, highest: int, axes: dict[str, str], *, in_legend: bool
) -> list[Trace]:
    """Return the arcs of one run: a trace per level of share, first of identities, then of others.

    Args:
        arcs: Joins along depth.
        theme: Colors.
        highest: Level of the highest arc of all runs.
        axes: ``xaxis`` and ``yaxis`` of the traces.
        in_legend: Whether the levels are named in the legend.

    Returns:
        Eleven traces whatever is recorded: five levels twice, then joins of unknown share.
    """
    shapes, words = outline(arcs, highest), arc_words(arcs)
    levels = share_level(arcs.shares)
    said = [
        f"{word}<br>shortcut share {percent(s)}" for word, s in zip(words, arcs.shares, strict=True)
    ]
    scale = 1.0 if len(shapes) <= _MANY else 0.6
    is_identity = np.array([kind == "identity" for kind in arcs.shortcuts], bool)
    traces = []
    for identity in (True, False):
        for level in range(len(SHARE_LEVELS)):
            chosen = np.flatnonzero((levels == level) & (is_identity == identity))
            trace = _trace(arcs, theme.arcs[level], scale * _WIDTHS[level], identity, axes)
            trace.update(_picked(shapes, said, chosen))
            trace.update(
                name=LEVEL_NAMES[level],
                showlegend=in_legend and identity,
                legendgroup=f"share-{level}",
            )
            traces.append(trace)
    unknown = _trace(arcs, theme.faint, 1.5, True, axes)
    chosen = np.flatnonzero(levels < 0)
    unknown.update(_picked(shapes, [f"{word}<br>share not recorded" for word in words], chosen))
    unknown.update(name="share not recorded", showlegend=in_legend and len(chosen) > 0)
    return [*traces, unknown]


def _picked(shapes: list[Any], words: list[str], chosen: Any) -> dict[str, list[Any]]:
    return broken_lines([shapes[k] for k in chosen], [words[k] for k in chosen])


def _trace(
    arcs: JoinArcs, color: str, width: float, is_identity: bool, axes: dict[str, str]
) -> Trace:
    dash = _IDENTITY if is_identity else _OTHER
    trace = scatter(
        {"mode": "lines", "hovertemplate": "%{text}<extra></extra>"},
        axes,
        line={"color": color, "width": 0.5 if arcs.size > 1 else width, "dash": dash},
    )
    if arcs.size > 1:
        trace.update(fill="toself", fillcolor=color, hoveron="points")
    return trace

"""Panes, axes and ticks: values as powers of ten, layers and stages by as many names as fit."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyzer.figures.sketch import Layout
from analyzer.figures.theme import Theme, decade_step, labeled, log_ticks

__all__ = [
    "DEPTH",
    "STEP",
    "axis_edges",
    "layout_name",
    "log_range",
    "name_gap",
    "name_ticks",
    "pane_axes",
    "pane_layout",
    "panes",
    "row_ticks",
    "stage_ticks",
    "value_axis",
]

DEPTH: dict[str, Any] = {"title": {"text": "depth: input → output", "standoff": 6}}
STEP: dict[str, Any] = {"title": {"text": "step", "standoff": 4}}
_MOST_NAMES, _MOST_NAME = 22, 28
_MOST_STAGE, _MOST_JOIN = 18, 16
_MOST_LEVEL = 6
# Pixels of a figure that panes share, and of half a letter.
_WIDTH, _HALF_LETTER, _GAP = 1000, 4.2, 6


def panes(titles: list[str], theme: Theme, *, height: int, gap: float = 0.0) -> go.Figure:
    """Return a figure of panes side by side, one per run, each with its title.

    The ``gap`` left of each pane is room for names, as a part of the width; 0 for one shared axis.
    """
    figure = go.Figure(_blank_panes(len(titles), theme, height, gap))
    for note, title in zip(figure.layout.annotations, titles, strict=True):
        note.text = labeled(title, 48)
    return figure


def pane_layout(titles: list[str], theme: Theme, *, height: int, gap: float = 0.0) -> Layout:
    """Return the layout of ``panes``, for a sketch."""
    layout = _panes_layout(len(titles), theme, height, gap)
    shown = [labeled(title, 48) for title in titles]
    notes = [note | {"text": text} for note, text in zip(layout["annotations"], shown, strict=True)]
    return layout | {"annotations": notes}


def pane_axes(place: int) -> dict[str, str]:
    """Return the axes of a trace in a pane, counted from 1."""
    number = "" if place == 1 else str(place)
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}


def layout_name(axis: str) -> str:
    """Return the name of an axis in the layout: ``xaxis2`` for ``x2``."""
    return f"{axis[0]}axis{axis[1:]}"


@lru_cache(64)
def _panes_layout(count: int, theme: Theme, height: int, gap: float) -> Layout:
    layout: Layout = _blank_panes(count, theme, height, gap).to_dict()["layout"]
    return layout


# Plotly takes 20 ms to build panes, and one to copy them.
@lru_cache(64)
def _blank_panes(count: int, theme: Theme, height: int, gap: float) -> go.Figure:
    figure = make_subplots(
        1,
        count,
        shared_yaxes=not gap,
        horizontal_spacing=gap or 0.04,
        subplot_titles=[str(place) for place in range(count)],
    )
    theme.apply(figure, height)
    figure.update_annotations(font={"size": 14, "color": theme.text})
    figure.update_layout(legend={"x": 0, "y": -0.2, "yanchor": "top"}, margin={"b": 84})
    return figure


def log_range(low: float, high: float, pad: float = 0.06) -> list[float]:
    """Return the range of a logarithmic axis, in decimal logarithms, with room at its ends.

    The room at each end is ``pad`` of the whole, and at least 0.15.
    """
    room = max(0.15, pad * (high - low))
    return [low - room, high + room]


def value_axis(
    label: str, *, is_log: bool, low: float, high: float, least_decades: float = 0.0
) -> dict[str, Any]:
    """Return an axis of values; a logarithmic one has powers of ten as ticks.

    Between the smallest and the largest finite value shown, above 0 where ``is_log``; NaN leaves
    the range to plotly.
    """
    axis: dict[str, Any] = {"title": {"text": label, "standoff": 8}}
    if is_log:
        axis |= {"type": "log", "exponentformat": "power", "tickfont": {"size": 11}, "nticks": 6}
        if math.isfinite(low) and math.isfinite(high):
            short = max(0.0, least_decades - math.log10(high / low)) / 2
            axis["range"] = log_range(math.log10(low) - short, math.log10(high) + short)
            decades = axis["range"][1] - axis["range"][0]
            # Plotly labels every digit between powers otherwise; below, it counts evenly.
            if decades > 2.2:
                axis["dtick"] = decade_step(decades, 8)
            elif decades > 0.8:
                places, texts = log_ticks(*axis["range"])
                values = [float(f"{10.0**place:.1g}") for place in places]
                axis |= {"tickmode": "array", "tickvals": values, "ticktext": texts}
    elif math.isfinite(low) and math.isfinite(high):
        room = 0.06 * (high - low or abs(high) or 1.0)
        axis["range"] = [low - room, high + room]
    return axis


def axis_edges(axis: dict[str, Any], *, is_log: bool) -> tuple[float, float]:
    """Return the ends of an axis in values, where marks stand; those of a blank one are 0.1 and 1.

    The axis is one of ``value_axis``.
    """
    low, high = axis.get("range", [-1.0, 0.0] if is_log else [0.1, 1.0])
    # A norm beyond a float's range is infinite, or zero, and is marked there.
    with np.errstate(over="ignore", under="ignore"):
        ends = np.power(10.0, [low, high]) if is_log else (low, high)
    return float(ends[0]), float(ends[1])


def row_ticks(
    names: Sequence[str], most: int = _MOST_NAMES, longest: int = _MOST_NAME
) -> dict[str, Any]:
    """Return ticks of names at 0, 1, 2, …: all of them where they fit, else every second, third, ….

    There are at most ``most`` ticks of at most ``longest`` characters.
    """
    places = list(range(0, len(names), max(1, math.ceil(len(names) / max(2, most)))))
    texts = [labeled(names[place].partition(" … ")[0], longest) for place in places]
    return {"tickmode": "array", "tickvals": places, "ticktext": texts}


def name_ticks(names: Sequence[str], most: int) -> dict[str, Any]:
    """Return ``row_ticks`` of joins or blocks side by side: slanted where there are many."""
    ticks = row_ticks(names, most, _MOST_JOIN)
    return ticks | {"tickangle": -40 if len(ticks["tickvals"]) > _MOST_LEVEL else 0}


def name_gap(names: list[tuple[str, ...]]) -> float:
    """Return the room that the longest name takes beside a pane; 0 where all have equal names."""
    if len(set(names)) < 2:
        return 0.0
    longest = max((min(len(name), _MOST_NAME) for one in names for name in one), default=0)
    return min(0.03 + 0.0088 * longest, 0.9 / len(names))


def stage_ticks(
    stages: Sequence[tuple[float, str]], depth: tuple[float, float], panes: int = 1
) -> dict[str, Any]:
    """Return ticks at the borders of stages; where names would overlap, the longest stages stay.

    Args:
        stages: Depth and name at which each stage begins, ascending.
        depth: First and last place of the axis.
        panes: How many stand side by side and share the width.
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
        "ticktext": [labeled(name, _MOST_STAGE) for _, name in shown],
        "tickangle": 0,
    }


def _half(name: str) -> float:
    """Half the width of a name in pixels."""
    return _HALF_LETTER * min(len(name), _MOST_STAGE)

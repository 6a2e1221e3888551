"""Panes, axes and ticks: values as powers of ten, layers and stages by as many names as fit."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from analyzer.analysis.view import RunLabel
from analyzer.figures.sketch import Layout, Sketch, merged, part_of
from analyzer.figures.theme import Theme, decade_step, labeled, log_ticks, told_apart

__all__ = [
    "DEPTH",
    "STEP",
    "along_axis",
    "along_steps",
    "depth_ticks",
    "hover_names",
    "layout_name",
    "log_range",
    "many_entries",
    "name_ticks",
    "pane_axes",
    "pane_layout",
    "panes",
    "row_ticks",
    "stage_ticks",
    "value_axis",
]

DEPTH: dict[str, Any] = {"title": {"text": "depth: input → output", "standoff": 6}}
# Plotly writes 12k for 12,345 otherwise.
STEP: dict[str, Any] = {"title": {"text": "step", "standoff": 4}, "hoverformat": ",d"}
_MOST_NAMES, _MOST_NAME = 22, 28
_MOST_STAGE, _MOST_JOIN = 18, 16
_MOST_COLUMNS = 40
_MOST_LEVEL = 6
_MOST_ABOVE = 3
# Pixels of a figure that panes share, and of half a letter.
_WIDTH, _HALF_LETTER, _GAP = 1000, 4.2, 6


def panes(
    titles: Sequence[str | RunLabel], theme: Theme, *, height: int, gap: float = 0.0
) -> go.Figure:
    """Return a figure of panes side by side, one per run, each with its title, in its color.

    The ``gap`` left of each pane is room for names, as a part of the width; 0 for one shared axis.
    """
    figure = go.Figure(_blank_panes(len(titles), theme, height, gap))
    for note, title in zip(figure.layout.annotations, titles, strict=True):
        note.update(_title(title, theme))
    return figure


def pane_layout(
    titles: Sequence[str | RunLabel], theme: Theme, *, height: int, gap: float = 0.0
) -> Layout:
    """Return the layout of ``panes``, for a sketch."""
    layout = _panes_layout(len(titles), theme, height, gap)
    shown = zip(layout["annotations"], titles, strict=True)
    notes = [merged(note, _title(title, theme)) for note, title in shown]
    return layout | {"annotations": notes}


def _title(title: str | RunLabel, theme: Theme) -> dict[str, Any]:
    # Above the rug of values that have no place in the pane.
    if isinstance(title, str):
        return {"text": labeled(title, 48), "yshift": 6}
    color = theme.style(title.style).color
    return {"text": labeled(title.text, 48), "yshift": 6, "font": {"color": color}}


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


def along_axis(over: str, *, is_log: bool) -> dict[str, Any]:
    """Return the axis that runs over steps: as ``step``, ``epoch`` or ``time``.

    A logarithmic one is completed by `along_steps`.
    """
    text = {"step": "step", "epoch": "epoch", "time": "seconds of training"}[over]
    look = {"type": "log", "tickfont": {"size": 11}}
    axis = STEP if over == "step" else {"hoverformat": ".4g"}
    named = f"{text}, logarithmic" if is_log else text
    return axis | {"title": {"text": named, "standoff": 4}} | (look if is_log else {})


def along_steps(made: "go.Figure | Sketch", over: str, *, is_log: bool) -> "go.Figure | Sketch":
    """Return a figure whose axes along steps show step 0 too, and know where each step is.

    A logarithmic one has no place for 0: all moves by 1, of epochs and time by the least above 0;
    ticks and hover say what it was. For a browser, ``meta.steps`` of the layout has the places as
    they are drawn and the steps there, by axis, and ``meta.shift`` how far they were moved.
    """
    if over == "step" and not is_log:
        return made
    traces = made.traces if isinstance(made, Sketch) else list(made.data)
    letter = "y" if any(part_of(trace, "type") == "heatmap" for trace in traces) else "x"
    values = [np.array(part_of(trace, letter), np.float64) for trace in traces]
    known = np.concatenate([one[np.isfinite(one)] for one in values])
    if not len(known):
        return made
    shift = _shift(known, over) if is_log else 0.0
    axes: Layout = {}
    places: dict[str, dict[str, list[float]]] = {}
    for trace, at in zip(traces, values, strict=True):
        axis = str(part_of(trace, f"{letter}axis") or letter)
        if np.isfinite(at).any():
            trace[letter] = at + shift
        if letter == "y":
            trace["hovertemplate"] = trace["hovertemplate"].replace("%{y:,d}", "%{y}")
        steps = _steps_of(trace, at, over)
        if axis in places or steps is None:
            continue
        there, steps = at[np.isfinite(at)], steps[np.isfinite(at)]
        places[axis] = {"at": (there + shift).tolist(), "step": steps.tolist()}
        said = {
            f"{one + shift:.6f}": f"{step:,.0f}" + f" ({over} {one:.4g})" * (over != "step")
            for one, step in zip(there.tolist(), steps.tolist(), strict=True)
        }
        axes[layout_name(axis)] = {"hoverformat": ".6f", "labelalias": said}
    if is_log:
        ticks = _log_ticks(float(known.min()), float(known.max()), shift)
        for axis in (letter, *places):
            axes[layout_name(axis)] = axes.get(layout_name(axis), {}) | ticks
    axes["meta"] = {"steps": places, "shift": shift}
    if isinstance(made, Sketch):
        return Sketch(traces, merged(made.layout, axes))
    return made.update_layout(axes)


def _steps_of(trace: Any, at: NDArray[np.float64], over: str) -> NDArray[np.float64] | None:
    """The steps of the points of a line, or of the bins of a heatmap; None of another trace."""
    if part_of(trace, "type") == "heatmap":
        steps = (part_of(trace, "meta") or {}).get("steps")
    elif part_of(trace, "fill") is not None or "lines" not in (part_of(trace, "mode") or ""):
        return None
    else:
        steps = part_of(trace, "customdata")
    if steps is None and over == "step":
        return at
    return None if steps is None else np.array(steps, np.float64)


def _shift(values: NDArray[np.float64], over: str) -> float:
    """How far places move so that all of them have a logarithm."""
    if values.min() > 0:
        return 0.0
    above = values[values > 0]
    return 1.0 if over == "step" or not len(above) else float(above.min())


def _log_ticks(low: float, high: float, shift: float) -> Layout:
    """Range and ticks of a logarithmic axis whose places were moved; 0 is one of them."""
    ends = [math.log10(end + shift) for end in (low, max(high, low * 1.01))]
    room = 0.02 * (ends[1] - ends[0] or 1.0)
    top = math.log10(high) if high > 0 else 0.0
    powers = range(math.floor(math.log10(shift or low)), math.floor(top) + 1)
    digits = (1,) if len(powers) > 2 else (1, 2, 5)
    shown = [digit * 10.0**power for power in powers for digit in digits]
    shown = [0.0] * (low <= 0) + [one for one in shown if max(low, shift) <= one <= high]
    texts = [f"{one:,.0f}" if one >= 1 or one == 0 else f"{one:g}" for one in shown]
    ticks = {"tickmode": "array", "tickvals": [one + shift for one in shown], "ticktext": texts}
    return {"type": "log", "range": [ends[0] - room, ends[1] + room], "tickformat": ""} | ticks


def many_entries(count: int, height: int) -> dict[str, Any]:
    """Return what a layout of this height needs for a legend of many entries: room below the plot.

    More than three would grow from above into a plot that has half the width of a page.
    """
    if count <= _MOST_ABOVE:
        return {}
    room = 24 * -(-count // _MOST_ABOVE)
    place = {"yref": "container", "y": 0.0, "yanchor": "bottom"}
    return {"height": height + room, "margin": {"t": 16, "b": 56 + room}, "legend": place}


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


def depth_ticks(
    names: Sequence[str], positions: Sequence[float] | NDArray[np.float64], panes: int = 1
) -> dict[str, Any]:
    """Return an axis of depth with the layers as text: names at ticks, and at every place on hover.

    A name is never a place on the axis: those of ``nn.Sequential`` are numbers.

    Args:
        names: Layers or parameters, by depth.
        positions: Place of each along the axis.
        panes: How many stand side by side and share the width.
    """
    apart = (positions[-1] - positions[0] + 1) / (_MOST_COLUMNS // panes) if len(positions) else 1
    kept: list[int] = []
    for place, at in enumerate(positions):
        if not kept or at - positions[kept[-1]] >= apart:
            kept.append(place)
    shown = told_apart(labeled(name.partition(" … ")[0], _MOST_STAGE + 4) for name in names)
    texts = [shown[place] for place in kept]
    widest = max(map(len, texts), default=0) * len(texts) * 2 * _HALF_LETTER
    return {
        "tickmode": "array",
        "tickvals": _beside(positions)[kept].tolist(),
        "ticktext": texts,
        "tickangle": -40 if widest > _WIDTH / panes else 0,
        **hover_names(names, positions),
    }


def hover_names(
    names: Sequence[str], positions: Sequence[float] | NDArray[np.float64]
) -> dict[str, Any]:
    """Return what makes the hover of an axis say the name of the layer at each place."""
    # A heatmap has no text but one for each cell, which would be a hundred times as much.
    keys = (f"{at:.3f}".replace("-", "−") for at in positions)
    return {"hoverformat": ".3f", "labelalias": dict(zip(keys, _hovered(names), strict=True))}


def _hovered(names: Sequence[str]) -> list[str]:
    return told_apart(labeled(name) for name in names)


def _beside(positions: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Places of ticks, a fifth of a pixel off: at a tick itself plotly's hover says its text."""
    places = np.asarray(positions, np.float64)
    span = float(places[-1] - places[0]) + 2.0 if len(places) else 1.0
    return places + 3e-4 * span


def stage_ticks(
    stages: Sequence[tuple[float, str]],
    depth: tuple[float, float],
    panes: int = 1,
    ends: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Return ticks at the borders of stages; where names would overlap, the longest stages stay.

    Args:
        stages: Depth and name at which each stage begins, ascending.
        depth: First and last place of the axis.
        panes: How many stand side by side and share the width.
        ends: Names of the first and the last layer, which stay in any case.
    """
    reach = [at for at, _ in stages[1:]] + [depth[1] + 1]
    unit = (depth[1] - depth[0] + 2) / (_WIDTH / panes)
    by_length = sorted(zip(stages, reach, strict=True), key=lambda one: one[0][0] - one[1])
    kept = [] if ends is None else list(zip(depth, ends, strict=True))
    for (at, name), _ in by_length:
        if all(abs(at - x) > unit * (_half(name) + _half(n) + _GAP) for x, n in kept):
            kept.append((at, name))
    shown = sorted(kept)
    return {
        "tickvals": [at + unit / 5 for at, _ in shown],
        "ticktext": [labeled(name, _MOST_STAGE) for _, name in shown],
        "tickangle": 0,
    }


def _half(name: str) -> float:
    """Half the width of a name in pixels."""
    return _HALF_LETTER * min(len(name), _MOST_STAGE)

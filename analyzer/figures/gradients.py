"""Draws a quantity over layers and steps: grid, profile along depth, series, difference."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from analyzer.analysis.flow_grid import FlowGrid, GridDifference
from analyzer.analysis.profiles import LayerSeries, ProfileCurves
from analyzer.figures.marks import (
    band_traces,
    color_bar,
    edge_marks,
    grid_traces,
    log_range,
    mark_legend,
    run_line,
)
from analyzer.figures.sketch import Layout, Sketch, Trace, axes_of, merged
from analyzer.figures.theme import Theme, decade_step, labeled, log_ticks

__all__ = [
    "depth_colors",
    "difference_figure",
    "difference_sketch",
    "grid_figure",
    "grid_sketch",
    "name_gap",
    "panes",
    "profile_figure",
    "profile_sketch",
    "row_ticks",
    "series_figure",
    "series_sketch",
    "value_axis",
]

_MOST_NAMES, _MOST_NAME = 22, 28
# An axis that a healthy net fills would make it look like a vanishing one.
_LEAST_DECADES = 3.0


def panes(titles: list[str], theme: Theme, *, height: int, gap: float = 0.0) -> go.Figure:
    """Return a figure of panes side by side, one per run, each with its title.

    Args:
        titles: Names of the runs.
        theme: Colors and fonts.
        height: Height in pixels.
        gap: Room for names left of each pane, as a part of the width; 0 for one shared axis.
    """
    figure = go.Figure(_blank_panes(len(titles), theme, height, gap))
    for note, title in zip(figure.layout.annotations, titles, strict=True):
        note.text = labeled(title, 48)
    return figure


def _panes(titles: list[str], theme: Theme, *, height: int, gap: float = 0.0) -> Layout:
    """The layout of ``panes``."""
    layout = _panes_layout(len(titles), theme, height, gap)
    shown = [labeled(title, 48) for title in titles]
    notes = [note | {"text": text} for note, text in zip(layout["annotations"], shown, strict=True)]
    return layout | {"annotations": notes}


def _pane(place: int) -> dict[str, str]:
    """The axes of a trace in a pane, counted from 1."""
    number = "" if place == 1 else str(place)
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}


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


def value_axis(
    label: str, *, is_log: bool, low: float, high: float, least_decades: float = 0.0
) -> dict[str, Any]:
    """Return an axis of values; a logarithmic one has powers of ten as ticks.

    Args:
        label: Title of the axis.
        is_log: Whether it is logarithmic.
        low: Smallest finite value shown, above 0 where ``is_log``; NaN for a range by plotly.
        high: Largest one.
        least_decades: Decades that a logarithmic axis shows at least.
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


def row_ticks(names: tuple[str, ...]) -> dict[str, Any]:
    """Return ticks of a category axis of layers: all where they fit, else evenly chosen ones."""
    chosen = list(range(0, len(names), max(1, math.ceil(len(names) / _MOST_NAMES))))
    texts = [labeled(names[place].partition(" … ")[0], _MOST_NAME) for place in chosen]
    return {"tickmode": "array", "tickvals": chosen, "ticktext": texts}


def name_gap(names: list[tuple[str, ...]]) -> float:
    """Return the room that the longest name takes beside a pane; 0 where all have equal names."""
    if len(set(names)) < 2:
        return 0.0
    longest = max((min(len(name), _MOST_NAME) for one in names for name in one), default=0)
    return min(0.03 + 0.0088 * longest, 0.9 / len(names))


def grid_figure(info: FlowGrid, theme: Theme) -> go.Figure:
    """Draw layer × step, the input at the bottom, in one color range for all runs."""
    return grid_sketch(info, theme).figure()


def grid_sketch(info: FlowGrid, theme: Theme) -> Sketch:
    """Return the traces and the layout of ``grid_figure``."""
    columns = info.runs
    rows = max(len(column.names) for column in columns)
    gap = name_gap([column.names for column in columns])
    height = int(np.clip(160 + 16 * rows, 340, 620))
    layout = _panes([column.label.text for column in columns], theme, height=height, gap=gap)
    layout = axes_of(layout, "x", {"title": {"text": "step", "standoff": 4}, "showgrid": False})
    layout = axes_of(layout, "y", {"showgrid": False, "type": "category"})
    traces: list[Trace] = []
    for place, column in enumerate(columns, start=1):
        axes = _pane(place) | {"coloraxis": "coloraxis"}
        traces += grid_traces(column, theme, is_log=info.is_log, along_depth=False, axes=axes)
        axis = "yaxis" if place == 1 else f"yaxis{place}"
        layout = merged(layout, {axis: row_ticks(column.names)})
    entries = mark_legend(columns, theme, is_log=info.is_log)
    below = height - layout["margin"]["t"] - layout["margin"]["b"]
    words = {"legend": {"y": -56 / below}, "margin": {"b": 84 if entries else 52}}
    bar = color_bar(info.label, info.low, info.high, is_log=info.is_log)
    colors = {"colorscale": theme.colorscale, "cmin": info.low, "cmax": info.high, "colorbar": bar}
    return Sketch([*traces, *entries], merged(layout, words | {"coloraxis": colors}))


def profile_figure(info: ProfileCurves, theme: Theme) -> go.Figure:
    """Draw the profiles of all runs over depth."""
    return profile_sketch(info, theme).figure()


def profile_sketch(info: ProfileCurves, theme: Theme) -> Sketch:
    """Return the traces and the layout of ``profile_figure``."""
    values = np.concatenate([curve.values for curve in info.runs])
    shown = values[np.isfinite(values) & ((values > 0) | (not info.is_log))]
    # Where nothing has a place, the marks of NaN and of zero still need edges to stand at.
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.1, 1.0)
    axis = value_axis(
        info.label, is_log=info.is_log, low=low, high=high, least_decades=_LEAST_DECADES
    )
    traces: list[Trace] = []
    for curve in info.runs:
        names = [labeled(name) for name in curve.names]
        line = {"x": curve.positions, "y": curve.values, "text": names}
        hover = {"hovertemplate": "%{text}: %{y:.3e}"}
        traces.append(run_line(curve.label, theme, **line, **hover))
        if "range" in axis:
            edges = axis["range"]
            bounds = (10.0 ** edges[0], 10.0 ** edges[1]) if info.is_log else (edges[0], edges[1])
            traces.append(
                edge_marks(curve.positions, curve.values, bounds, theme, is_log=info.is_log)
            )
    along = (
        "relative depth: first layer → last layer"
        if info.is_relative_depth
        else "depth: input → output"
    )
    axes = {"xaxis": {"title": {"text": along, "standoff": 6}}, "yaxis": axis}
    return Sketch(traces, merged(theme.layout(400), axes | {"showlegend": True}))


def depth_colors(count: int, theme: Theme) -> list[str]:
    """Return colors from input to output."""
    first, last = theme.lines
    places = [first + (last - first) * k / max(1, count - 1) for k in range(count)]
    parts = sample_colorscale(theme.scale, places, colortype="tuple")
    return ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in parts]


def series_figure(info: LayerSeries, theme: Theme) -> go.Figure:
    """Draw the series of chosen layers, a pane per run; colors run from input to output."""
    return series_sketch(info, theme).figure()


def series_sketch(info: LayerSeries, theme: Theme) -> Sketch:
    """Return the traces and the layout of ``series_figure``."""
    layout = _panes([run.label.text for run in info.runs], theme, height=460)
    axis = value_axis(
        info.label, is_log=info.is_log, low=info.low, high=info.high, least_decades=_LEAST_DECADES
    )
    title = {"title": axis.pop("title")}
    layout = axes_of(layout, "x", {"title": {"text": "step", "standoff": 4}})
    layout = merged(axes_of(layout, "y", axis), {"yaxis": title, "margin": {"b": 170}})
    traces: list[Trace] = []
    for place, run in enumerate(info.runs, start=1):
        number = "" if place == 1 else str(place)
        look = _pane(place) | {"legend": f"legend{number}"}
        colors = depth_colors(len(run.names), theme)
        for name, band, color in zip(run.names, run.bands, colors, strict=True):
            traces += band_traces(
                band, run.label, theme, name=name, color=color, top=info.high, **look
            )
        left = layout[f"xaxis{number}"]["domain"][0]
        place_of = {"orientation": "v", "x": left, "y": -0.2, "yanchor": "top", "xanchor": "left"}
        layout = layout | {f"legend{number}": place_of}
    return Sketch(traces, layout)


def difference_figure(info: GridDifference, theme: Theme) -> go.Figure:
    """Draw where the second run has more than the first, and where less."""
    return difference_sketch(info, theme).figure()


def difference_sketch(info: GridDifference, theme: Theme) -> Sketch:
    """Return the traces and the layout of ``difference_figure``."""
    shown = "10<sup>%{z:.2f}</sup>" if info.is_log else "%{z:.4g}"
    heat = {
        "type": "heatmap",
        "x": info.steps,
        "y": info.positions,
        "z": info.values.astype(np.float32),
        "coloraxis": "coloraxis",
        "hovertemplate": f"relative depth %{{y:.2f}}<br>step %{{x}}: {shown}<extra></extra>",
    }
    second, first = labeled(info.runs[1].text, 24), labeled(info.runs[0].text, 24)
    title = f"{second} / {first}" if info.is_log else f"{second} − {first}"
    bar = color_bar(title, -info.reach, info.reach, is_log=info.is_log)
    colors = {"cmin": -info.reach, "cmax": info.reach, "colorbar": bar}
    depth = "relative depth: 0 input, 1 output"
    more = {
        "coloraxis": {"colorscale": [[*stop] for stop in theme.diverging]} | colors,
        "xaxis": {"title": {"text": "step", "standoff": 4}, "showgrid": False},
        "yaxis": {"title": {"text": depth}, "showgrid": False},
    }
    return Sketch([heat], merged(theme.layout(400), more))

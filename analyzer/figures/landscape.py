"""The loss landscape: contours first, the surface in 3-D, the optimizer's path."""

import math
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyzer.analysis.network_probes import Landscape, Landscapes, landscapes, trajectories
from analyzer.analysis.numerals import number
from analyzer.figures.axes import panes
from analyzer.figures.marks import color_bar, run_line
from analyzer.figures.panels import Panel
from analyzer.figures.theme import Theme, labeled

__all__ = ["CONTOUR", "SURFACE", "TRAJECTORY", "contour_levels", "trajectory_figure"]

_LEVELS = 18
_SHADE = "rgba(20,30,40,0.55)"
_EYE = {"x": 1.55, "y": -1.75, "z": 1.0}


def _contour_figure(info: Landscapes, theme: Theme) -> go.Figure:
    """Draw the loss on the plane of each run in one color range; a line where there is no plane."""
    if all(not len(run.betas) for run in info.runs):
        return _line_figure(info, theme)
    figure = panes([_title(run) for run in info.runs], theme, height=470, gap=0.08)
    for place, run in enumerate(info.runs, start=1):
        if len(run.betas):
            figure.add_trace(_contour(info, run), row=1, col=place)
        figure.add_trace(_unplaced(run, theme), row=1, col=place)
        figure.add_trace(_center(theme), row=1, col=place)
        axis = "x" if place == 1 else f"x{place}"
        # A circle must look like one: the directions have comparable lengths.
        figure.update_yaxes(scaleanchor=axis, constrain="domain", row=1, col=place)
    along = {"text": "α, first direction", "standoff": 4}
    figure.update_xaxes(title=along, constrain="domain", showgrid=False)
    figure.update_yaxes(showgrid=False)
    figure.update_yaxes(title={"text": "β, second direction"}, row=1, col=1)
    figure.update_layout(coloraxis=_colors(info, theme), showlegend=False, margin={"b": 60})
    return figure


def trajectory_figure(info: Landscapes, theme: Theme) -> go.Figure:
    """Draw the path of the checkpoints over the contours of the plane they lie in."""
    figure = _contour_figure(info, theme)
    for place, run in enumerate(info.runs, start=1):
        if run.trajectory is None:
            continue
        path = go.Scatter(
            x=run.trajectory.alphas,
            y=run.trajectory.betas,
            mode="lines+markers",
            line={"color": "#ffffff", "width": 2},
            marker={"color": "#ffffff", "size": 7, "line": {"color": "#22303f", "width": 1}},
            text=[f"step {step:,}" for step in run.trajectory.steps],
            hovertemplate="%{text}<br>α %{x:.3f}, β %{y:.3f}<extra></extra>",
        )
        figure.add_trace(path, row=1, col=place)
        axis = "" if place == 1 else str(place)
        start = {"x": run.trajectory.alphas[0], "y": run.trajectory.betas[0], "yshift": 12}
        font = {"size": 12, "color": "#ffffff"}
        # White on any color of the scale.
        where = {"xref": f"x{axis}", "yref": f"y{axis}", "font": font, "bgcolor": _SHADE}
        theme.note(figure, f"step {run.trajectory.steps[0]:,}", **start, **where)
    return figure


def _surface_figure(info: Landscapes, theme: Theme) -> go.Figure:
    """Draw the loss as a surface, all runs on one scale of height and color."""
    count = len(info.runs)
    figure = make_subplots(
        1,
        count,
        specs=[[{"type": "scene"}] * count],
        horizontal_spacing=0.02,
        subplot_titles=[labeled(_title(run), 48) for run in info.runs],
    )
    theme.apply(figure, 520)
    figure.update_annotations(font={"size": 14, "color": theme.text})
    for place, run in enumerate(info.runs, start=1):
        if len(run.betas) > 1:
            surface = go.Surface(
                x=run.alphas,
                y=run.betas,
                z=info.shown(run).astype(np.float32),
                coloraxis="coloraxis",
                contours={"z": {"show": True, "width": 1, "color": "rgba(255,255,255,0.35)"}},
                hovertemplate=_point(info),
            )
            figure.add_trace(surface, row=1, col=place)
    line = {
        "gridcolor": theme.grid,
        "color": theme.text,
        "showbackground": False,
        "zeroline": False,
        "nticks": 5,
        "tickfont": {"size": 11},
    }
    figure.update_scenes(
        aspectmode="cube",
        camera={"eye": _EYE, "center": {"x": 0, "y": 0, "z": -0.12}},
        xaxis=line | {"title": {"text": "α"}},
        yaxis=line | {"title": {"text": "β"}},
        zaxis=line | {"title": {"text": "loss"}, "range": [info.low, info.high]} | _ticks(info),
    )
    figure.update_layout(coloraxis=_colors(info, theme), margin={"l": 8, "r": 8, "t": 44, "b": 8})
    return figure


def _line_figure(info: Landscapes, theme: Theme) -> go.Figure:
    """The loss along one direction."""
    figure = theme.figure(height=400)
    for run in info.runs:
        hover = {"hovertemplate": f"α %{{x:.3f}}: {_hover(info, 'y')}"}
        values = info.shown(run)[0]
        figure.add_trace(run_line(run.label, theme, x=run.alphas, y=values, **hover))
    figure.update_xaxes(title={"text": "α, the direction"})
    figure.update_yaxes(title={"text": "loss"}, **_ticks(info))
    figure.update_layout(showlegend=True)
    return figure


def _title(run: Landscape) -> str:
    center = f", loss {number(run.center)}" if math.isfinite(run.center) else ""
    return f"{run.where}{center}"


def _contour(info: Landscapes, run: Landscape) -> go.Contour:
    start, size = contour_levels(info.low, info.high)
    return go.Contour(
        x=run.alphas,
        y=run.betas,
        z=info.shown(run).astype(np.float32),
        coloraxis="coloraxis",
        contours={"start": start, "end": info.high, "size": size, "coloring": "fill"},
        line={"width": 0.75, "color": "rgba(255,255,255,0.45)"},
        hovertemplate=_point(info),
    )


def contour_levels(low: float, high: float) -> tuple[float, float]:
    """Return the first contour line and the distance of two, both round, at most 18 lines."""
    least = (high - low) / _LEVELS
    whole = 10.0 ** math.floor(math.log10(least))
    size = next(whole * part for part in (1, 2, 5, 10) if whole * part >= least)
    return math.ceil(low / size) * size, size


def _point(info: Landscapes) -> str:
    return f"α %{{x:.2f}}, β %{{y:.2f}}<br>loss {_hover(info, 'z')}<extra></extra>"


def _hover(info: Landscapes, name: str) -> str:
    return f"10<sup>%{{{name}:.2f}}</sup>" if info.is_log else f"%{{{name}:.4g}}"


def _unplaced(run: Landscape, theme: Theme) -> go.Scatter:
    """Marks where the loss is NaN or infinite, or where nothing was evaluated."""
    rows, columns = np.nonzero(~np.isfinite(run.losses))
    betas = run.betas if len(run.betas) else np.zeros(1)
    words = [
        ("infinite" if np.isinf(run.losses[r, c]) else "NaN")
        if run.evaluated[r, c]
        else "not evaluated"
        for r, c in zip(rows, columns, strict=True)
    ]
    return go.Scatter(
        x=run.alphas[columns] if len(rows) else [None],
        y=betas[rows] if len(rows) else [None],
        text=words,
        mode="markers",
        marker={"color": theme.mark, "symbol": "x", "size": 6},
        hovertemplate="α %{x:.2f}, β %{y:.2f}<br>%{text}<extra></extra>",
    )


def _center(theme: Theme) -> go.Scatter:
    return go.Scatter(
        x=[0],
        y=[0],
        mode="markers",
        marker={"symbol": "cross-thin-open", "size": 12, "color": "#ffffff", "line": {"width": 2}},
        hovertemplate="the weights<extra></extra>",
    )


def _ticks(info: Landscapes) -> dict[str, Any]:
    bar = color_bar("loss", info.low, info.high, is_log=info.is_log)
    return {key: value for key, value in bar.items() if key.startswith("tick")}


def _colors(info: Landscapes, theme: Theme) -> dict[str, Any]:
    bar = color_bar("loss", info.low, info.high, is_log=info.is_log)
    return {"colorscale": theme.scale, "cmin": info.low, "cmax": info.high, "colorbar": bar}


_panel = partial(Panel, needs=("landscape",), reads=("step",))
CONTOUR = _panel(
    key="landscape_contour",
    title="Loss landscape",
    how_to_read="The loss around the trained weights, along two random directions; all runs share "
    "one color range. Wide, round contours are easy to train, jagged ones are not.",
    info=landscapes,
    drawing=_contour_figure,
    height=560,
)
SURFACE = _panel(
    key="landscape_surface",
    title="Loss surface",
    how_to_read="The same losses as a surface, one height for all runs. Turn it; read numbers off "
    "the contours.",
    info=landscapes,
    drawing=_surface_figure,
    height=640,
)
TRAJECTORY = _panel(
    key="trajectory",
    title="Trajectory",
    how_to_read="The checkpoints of the training in the plane; the last one is at the center.",
    info=trajectories,
    drawing=trajectory_figure,
)

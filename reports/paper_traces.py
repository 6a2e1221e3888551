"""Draws the traces of a plotly figure with matplotlib: the same numbers, as vectors."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .paper_bars import draw_bars, draw_histogram
from .paper_fields import draw_contour, draw_heatmap, draw_scatter3d, draw_surface
from .paper_values import (
    Drawn,
    Floats,
    colormap,
    dashes_of,
    limits_of,
    marker_of,
    values_of,
)
from .paper_words import matplotlib_color, plain_text

__all__ = ["DRAWERS"]

# Markers that are all edge.
_STROKES = "x+|_"
_STEPS = {"hv": "steps-post", "vh": "steps-pre", "hvh": "steps-mid"}
# Plotly's sizes are pixels of a screen-wide figure; a column is narrower.
_POINTS_PER_PIXEL = 0.5


def _line(trace: Any) -> dict[str, Any]:
    """Color, dashes and width of a line."""
    line = trace.line
    return {
        "color": matplotlib_color(line.color),
        "linestyle": dashes_of(line.dash),
        "linewidth": max((2.0 if line.width is None else line.width) * _POINTS_PER_PIXEL, 0.3),
    }


def _scatter(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Lines, points, text, and bands between two lines."""
    mode = trace.mode or "lines"
    alpha = trace.opacity
    if trace.fill in ("toself", "tozeroy", "tonexty", "tozerox"):
        _fill(axes, trace, x, y)
    # What a band reaches to may be a line that is not drawn itself.
    axes.before = (x, y)
    if "lines" in mode and (trace.line.width is None or trace.line.width > 0):
        style = _STEPS.get(trace.line.shape, "default")
        axes.plot(x, y, drawstyle=style, alpha=alpha, **_line(trace))
    if trace.error_y.array is not None:
        spread = values_of(trace.error_y.array)
        color = matplotlib_color(trace.line.color or trace.marker.color)
        axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=color, elinewidth=0.8, capsize=2)
    if "text" in mode:
        for a, b, words in zip(x, y, _texts(trace, len(x)), strict=True):
            axes.annotate(plain_text(words), (a, b), (2, 2), textcoords="offset points", size=6)
    return _points(axes, trace, x, y) if "markers" in mode else None


def _texts(trace: Any, count: int) -> list[Any]:
    text = trace.text
    return [text] * count if isinstance(text, str) or text is None else list(text)


def _fill(axes: Any, trace: Any, x: Floats, y: Floats) -> None:
    """The band of a trace; one to the next trace reaches the line before it."""
    color = matplotlib_color(trace.fillcolor, default="#00000022")
    if trace.fill == "toself":
        axes.fill(x, y, color=color, linewidth=0)
    elif trace.fill == "tonexty" and axes.before is not None:
        other_x, other = axes.before
        if len(other) == len(y) and np.array_equal(other_x, x, equal_nan=True):
            axes.fill_between(x, other, y, color=color, linewidth=0)
        else:
            ring = np.concatenate([x, other_x[::-1]]), np.concatenate([y, other[::-1]])
            axes.fill(*ring, color=color, linewidth=0)
    elif trace.fill == "tozeroy":
        floor = 0.0 if axes.get_yscale() == "linear" else axes.get_ylim()[0]
        axes.fill_between(x, floor, y, color=color, linewidth=0)


def _points(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """The markers of a trace, those of each symbol at once."""
    marker = trace.marker
    size = np.asarray(6 if marker.size is None else marker.size, np.float64) * _POINTS_PER_PIXEL
    if marker.symbol is None or isinstance(marker.symbol, str):
        return _alike(axes, trace, x, y, marker.symbol or "circle", size, marker.color)
    symbols = np.asarray(marker.symbol, dtype=object)
    drawn = None
    for symbol in dict.fromkeys(symbols):
        here = np.flatnonzero(symbols == symbol)
        sizes, colors = (_picked(values, here) for values in (size, marker.color))
        drawn = _alike(axes, trace, x[here], y[here], symbol, sizes, colors)
    return drawn


def _picked(values: Any, here: Any) -> Any:
    """Some of the values, where each point has its own."""
    each = isinstance(values, list | tuple | np.ndarray) and np.ndim(values)
    return np.asarray(values)[here] if each else values


def _alike(
    axes: Any, trace: Any, x: Floats, y: Floats, symbol: str, size: Any, color: Any
) -> Drawn:
    """Markers of one symbol, with a color scale where their color is a number."""
    shape = marker_of(symbol)
    looks: dict[str, Any] = {"s": np.square(size), "marker": shape, "alpha": trace.opacity}
    looks["zorder"] = 3
    if isinstance(color, list | tuple | np.ndarray):
        colors = np.asarray(color)
        if colors.dtype.kind in "fiu":
            return _scaled_points(axes, trace, x, y, colors.astype(np.float64), looks)
        looks["c"] = [matplotlib_color(one) for one in colors.tolist()]
    else:
        looks |= _colors(matplotlib_color(color or trace.line.color), symbol)
    is_thin = symbol.endswith("-open") or shape in _STROKES
    axes.scatter(x, y, linewidths=0.8 if is_thin else 0, **looks)
    return None


def _colors(color: Any, symbol: str) -> dict[str, Any]:
    """The color of a marker: of its face, its edge, or of the stroke that it is."""
    if marker_of(symbol) in _STROKES:
        return {"color": color}
    face = "none" if symbol.endswith("-open") else color
    return {"facecolors": face, "edgecolors": color}


def _scaled_points(
    axes: Any, trace: Any, x: Floats, y: Floats, colors: Floats, looks: dict[str, Any]
) -> Drawn:
    marker = trace.marker
    scale = colormap(marker, axes.get_figure())
    limits = limits_of(marker.cmin, marker.cmax, colors, marker, axes.get_figure())
    drawn = axes.scatter(x, y, c=colors, cmap=scale, norm=limits, linewidths=0, **looks)
    return (drawn, marker) if marker.showscale or marker.coloraxis else None


DRAWERS: dict[str, Callable[[Any, Any, Floats, Floats], Drawn]] = {
    "bar": draw_bars,
    "contour": draw_contour,
    "heatmap": draw_heatmap,
    "histogram": draw_histogram,
    "scatter": _scatter,
    "scatter3d": draw_scatter3d,
    "surface": draw_surface,
}
"""How each kind of trace is drawn; those of the bundle, and no other."""

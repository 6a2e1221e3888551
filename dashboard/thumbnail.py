"""A figure as a small picture without words: lines, areas, bars and cells, as an SVG."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly.colors import sample_colorscale

from analyzer.figures.axes import layout_name

__all__ = ["SIZE", "thumbnail"]

SIZE = (240, 100)
"""Width and height in pixels."""
# More points or cells than these cannot be told apart.
_MOST_POINTS, _MOST_DOTS, _MOST_CELLS = 240, 40, (20, 48)
_LEVELS = 32
_GAP = 3.0

_Array = NDArray[np.float64]


def thumbnail(figure: Mapping[str, Any]) -> str:
    """Return what a browser is sent of a figure (``Shown.figure``) as a small SVG.

    Every plot of the figure keeps its place; words, legends, color bars and rugs are left out, and
    so is what is drawn in three dimensions. A figure without data is an empty picture.
    """
    layout, plots = figure["layout"], _plots(figure)
    ranges = _ranges(layout, plots)
    parts = [
        part
        for names, traces in plots.items()
        for part in _Plot(layout, names, ranges).drawn(traces)
    ]
    width, height = SIZE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
    return f"{head}{''.join(parts)}</svg>"


def _plots(figure: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The traces of each pair of axes, their arrays decoded and places by name counted."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    counted: dict[str, dict[str, float]] = {}
    for trace in figure["data"]:
        names = trace.get("xaxis") or "x", trace.get("yaxis") or "y"
        is_rug = isinstance(trace.get("meta"), dict) and "rug" in trace["meta"]
        if trace.get("type", "scatter") not in _DRAWERS or is_rug or "scene" in trace:
            continue
        values = {"x": trace.get("x"), "y": trace.get("y")}
        places = {
            key: _numbers(values[key], counted.setdefault(name, {}))
            for key, name in zip(values, names, strict=True)
        }
        if "z" in trace:
            places["z"] = _decoded(trace["z"])
        found.setdefault(names, []).append({**trace, **places})
    return found


def _decoded(value: Any) -> Any:
    """An array as it is sent to a browser, as numbers."""
    if not isinstance(value, Mapping) or "bdata" not in value:
        return np.asarray([] if value is None else value)
    array = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
    shape = value.get("shape")
    return array.reshape([int(n) for n in str(shape).split(",")]) if shape else array


def _numbers(value: Any, names: dict[str, float]) -> _Array:
    """Places along an axis; a name has the place in which it came."""
    array = _decoded(value)
    try:
        return np.asarray(array, np.float64)
    except (TypeError, ValueError):
        return np.array([names.setdefault(str(one), float(len(names))) for one in array])


def _ranges(layout: Mapping[str, Any], plots: Mapping[Any, Any]) -> dict[str, tuple[float, float]]:
    """Ends of each axis, of a logarithmic one as logarithms; axes that match share them."""
    ends: dict[str, list[float]] = {}
    for names, traces in plots.items():
        for key, name in zip(("x", "y"), names, strict=True):
            axis = _axis(layout, name)
            for trace in traces:
                known = _along(axis, trace[key])
                is_bar = trace.get("type") == "bar" and axis.get("type") != "log"
                ends.setdefault(axis.get("matches") or name, []).extend(
                    [*known[np.isfinite(known)], *([0.0] if is_bar else [])]
                )
    found = {}
    for name in dict.fromkeys(name for names in plots for name in names):
        axis = _axis(layout, name)
        held = axis.get("range") or ends[axis.get("matches") or name] or [0.0, 1.0]
        low, high = float(np.min(held)), float(np.max(held))
        found[name] = (low, high) if high > low else (low - 0.5, high + 0.5)
    return found


def _axis(layout: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return layout.get(layout_name(name)) or {}


def _along(axis: Mapping[str, Any], values: Any) -> _Array:
    if axis.get("type") != "log":
        return np.asarray(values, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log10(values), np.float64)


class _Plot:
    """One pair of axes in its place of the picture."""

    def __init__(
        self,
        layout: Mapping[str, Any],
        names: tuple[str, str],
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        self.axes = [_axis(layout, name) for name in names]
        self.ranges = [ranges[name] for name in names]
        width, height = SIZE
        (left, right), (low, high) = (axis.get("domain") or (0.0, 1.0) for axis in self.axes)
        self.left, self.right = left * width + _GAP, right * width - _GAP
        self.top, self.bottom = (1 - high) * height + _GAP, (1 - low) * height - _GAP
        self.scale = layout.get("coloraxis") or {}
        self.frame = _axis(layout, names[1]).get("gridcolor") or "#888"

    def at(self, x: Any, y: Any) -> tuple[_Array, _Array]:
        """Pixels of places; beyond the plot they are at its edge."""
        shares = [
            np.clip((_along(axis, values) - low) / (high - low), 0.0, 1.0)
            for axis, (low, high), values in zip(self.axes, self.ranges, (x, y), strict=True)
        ]
        return (
            self.left + shares[0] * (self.right - self.left),
            self.bottom - shares[1] * (self.bottom - self.top),
        )

    def drawn(self, traces: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Everything in it, what is drawn first below."""
        width, height = self.right - self.left, self.bottom - self.top
        yield _rect(self.left, self.top, width, height, f'none" stroke="{self.frame}')
        for trace in traces:
            yield from _DRAWERS[trace.get("type", "scatter")](self, trace)


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'
    )


def _scatter(plot: _Plot, trace: Mapping[str, Any]) -> Iterator[str]:
    size = min(len(trace["x"]), len(trace["y"]))
    thin = slice(0, size, max(1, -(-size // _MOST_POINTS)))
    x, y = plot.at(trace["x"][thin], trace["y"][thin])
    known = np.isfinite(x) & np.isfinite(y)
    mode, line = trace.get("mode", "lines"), trace.get("line") or {}
    if trace.get("fill") == "toself":
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[known], y[known], strict=True))
        yield f'<polygon points="{points}" fill="{_color_at(trace.get("fillcolor"), 0)}"/>'
        return
    if "lines" in mode and line.get("width") != 0:
        dash = ' stroke-dasharray="3,2"' if line.get("dash", "solid") != "solid" else ""
        path, pen = "", "M"
        for a, b, is_known in zip(x, y, known, strict=True):
            path += f"{pen}{a:.1f},{b:.1f}" if is_known else ""
            pen = "L" if is_known else "M"
        yield f'<path d="{path}" fill="none" stroke="{_color_at(line.get("color"), 0)}"{dash}/>'
    if "markers" in mode and known.sum() <= _MOST_DOTS:
        color = (trace.get("marker") or {}).get("color")
        for k in np.flatnonzero(known).tolist():
            yield f'<circle cx="{x[k]:.1f}" cy="{y[k]:.1f}" r="1.5" fill="{_color_at(color, k)}"/>'


def _bars(plot: _Plot, trace: Mapping[str, Any]) -> Iterator[str]:
    is_flat = trace.get("orientation") == "h"
    along, across = (trace["y"], trace["x"]) if is_flat else (trace["x"], trace["y"])
    room = 0.8 * min(np.diff(np.unique(along[np.isfinite(along)])), default=1.0)
    ends = [(np.zeros(len(across)), along - room / 2), (across, along + room / 2)]
    first, second = (plot.at(*(end if is_flat else end[::-1])) for end in ends)
    color = (trace.get("marker") or {}).get("color")
    for k, places in enumerate(zip(*first, *second, strict=True)):
        if all(map(math.isfinite, places)):
            a, b, c, d = places
            fill = f'{_color_at(color, k)}" opacity="0.75'
            yield _rect(min(a, c), min(b, d), abs(c - a), abs(d - b), fill)


def _cells(plot: _Plot, trace: Mapping[str, Any]) -> Iterator[str]:
    z = np.asarray(trace["z"], np.float64)
    known = z[np.isfinite(z)]
    if z.ndim != 2 or not known.size:
        return
    few = (
        np.linspace(0, count - 1, min(count, most)).round().astype(int)
        for count, most in zip(z.shape, _MOST_CELLS, strict=True)
    )
    z = z[np.ix_(*few)]
    shared = plot.scale if trace.get("coloraxis") else {}
    low = trace.get("zmin", shared.get("cmin", float(known.min())))
    high = trace.get("zmax", shared.get("cmax", float(known.max())))
    scale = trace.get("colorscale") or shared.get("colorscale") or "Cividis"
    colors = [_hex(one) for one in sample_colorscale(scale, _LEVELS, colortype="tuple")]
    shares = np.clip((z - low) / (high - low or 1.0), 0.0, 1.0) * (_LEVELS - 1)
    width, height = (plot.right - plot.left) / z.shape[1], (plot.bottom - plot.top) / z.shape[0]
    for row, levels in enumerate(np.where(np.isfinite(z), shares, -1.0).round().astype(int)):
        # Neighbors of one color are one rectangle.
        ends = [*(np.flatnonzero(np.diff(levels)) + 1), len(levels)]
        for first, last in zip([0, *ends], ends, strict=False):
            if levels[first] >= 0:
                x, y = plot.left + first * width, plot.bottom - (row + 1) * height
                yield _rect(x, y, (last - first) * width, height, colors[levels[first]])


def _hex(color: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)


def _color_at(color: Any, place: int) -> str:
    """The color of one mark as an attribute; a run cannot write anything else there."""
    one = color[place % len(color)] if isinstance(color, list | tuple) and color else color
    return escape(one) if isinstance(one, str) else "#888"


_DRAWERS = {"scatter": _scatter, "bar": _bars, "heatmap": _cells, "contour": _cells}

"""Draws the traces of a plotly figure with matplotlib: the same numbers, as vectors."""

import html
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from numpy.typing import NDArray

__all__ = [
    "DRAWERS",
    "dashes_of",
    "draw_rug",
    "marker_of",
    "matplotlib_color",
    "plain_text",
    "tick_words",
    "values_of",
]

Floats = NDArray[np.float64]
Drawn = Any | None
"""What a color bar describes; None where there is none to show."""

_DASHES = {
    "solid": "-",
    "dash": (0, (4, 1.6)),
    "dot": (0, (1, 1.4)),
    "dashdot": (0, (4, 1.4, 1, 1.4)),
    "longdash": (0, (7, 2)),
    "longdashdot": (0, (7, 1.6, 1, 1.6)),
}
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "x": "X",
    "triangle-up": "^",
    "triangle-down": "v",
    "pentagon": "p",
    "line-ew": "_",
    "cross-thin": "+",
}
_HATCHES = {"NaN or infinite": "xxxxxx", "exactly zero": "------"}
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:b|i|em|strong|span|sub|sup|u|s|a)(?:\s[^<>]*)?>", re.IGNORECASE)
_RGB = re.compile(r"rgba?\(([^)]*)\)")
# Markers that are all edge.
_STROKES = "+_"
# Plotly's sizes are pixels of a screen-wide figure; a column is narrower.
_POINTS_PER_PIXEL = 0.5


def dashes_of(dash: str | None) -> Any:
    """Return plotly's dash pattern as matplotlib draws it."""
    return _DASHES.get(dash or "solid", "-")


def marker_of(symbol: Any) -> str:
    """Return plotly's marker as matplotlib draws it."""
    known = symbol if isinstance(symbol, str) else "circle"
    return _MARKERS.get(known.removesuffix("-open"), "o")


def values_of(data: Any, categories: dict[str, int] | None = None) -> Floats:
    """Return the numbers of a coordinate; names get the place of their category.

    None and text that is no category are NaN, which no line crosses.
    """
    if data is None:
        return np.zeros(0)
    array = np.asarray(data)
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    known = categories or {}
    return np.array([_number(value, known) for value in array.ravel()]).reshape(array.shape)


def _number(value: Any, categories: dict[str, int]) -> float:
    if isinstance(value, str):
        return float(categories.get(value, np.nan))
    return np.nan if value is None else float(value)


def colors_of(trace: Any, figure: Any) -> tuple[Colormap, Normalize]:
    """Return the color scale of a trace and its range: its own, or those of its color axis."""
    axis = figure.color_axes.get(trace.coloraxis)
    low, high = (trace.zmin, trace.zmax) if axis is None else (axis.cmin, axis.cmax)
    scale = (trace if axis is None else axis).colorscale
    stops = [(float(place), matplotlib_color(color)) for place, color in scale]
    made = LinearSegmentedColormap.from_list("figure", stops).with_extremes(bad=(0, 0, 0, 0))
    return made, Normalize(low, high)


def plain_text(text: Any) -> str:
    """Return the text of a plotly title without its markup, and safe from mathtext.

    Only the tags that plotly itself reads are markup; anything else is text, layer names included.
    """
    words = _TAG.sub("", _BREAK.sub("\n", str(text or "")))
    # A lone dollar is text for matplotlib, two would begin a formula.
    return html.unescape(words).replace("$", r"\$")


def tick_words(settings: Any) -> list[str]:
    """Return the words at the ticks of an axis or a color bar, the values where it has none."""
    texts = settings.tickvals if settings.ticktext is None else settings.ticktext
    return [plain_text(text) for text in texts]


def matplotlib_color(color: Any) -> Any:
    """Return a CSS color as matplotlib reads it; black where a figure names none."""
    if color is None:
        return "#000000"
    found = _RGB.fullmatch(str(color).replace(" ", ""))
    if not found:
        return str(color)
    parts = [float(part) for part in found[1].split(",")]
    return (*(value / 255 for value in parts[:3]), *parts[3:4])


def draw_rug(axes: Any, trace: Any) -> None:
    """Draw ticks at the upper (1) and the lower edge (0) of axes, whatever their range."""
    for edge in (1.0, 0.0):
        places = [x for x, y in zip(trace.x, trace.y, strict=True) if y == edge and x is not None]
        if places:
            color = trace.meta["rug"]["nonfinite" if edge else "zero"]
            axes.plot(
                places,
                [edge] * len(places),
                linestyle="none",
                # Upward and downward, so that gray tells them apart as well.
                marker=7 if edge else 6,
                markersize=4,
                color=matplotlib_color(color),
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )


def _bars(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Upright bars, those of one trace in each pane."""
    steps = np.diff(np.unique(x[np.isfinite(x)]))
    width = 0.8 * (float(steps.min()) if len(steps) else 1.0)
    axes.bar(x, y, width, color=matplotlib_color(trace.marker.color))
    return None


def _edges(centers: Floats) -> Floats:
    """The borders of the cells whose centers these are."""
    if len(centers) == 1:
        return np.array([centers[0] - 0.5, centers[0] + 0.5])
    middle = (centers[1:] + centers[:-1]) / 2
    ends = [2 * centers[0] - middle[0]], middle, [2 * centers[-1] - middle[-1]]
    borders: Floats = np.concatenate(ends)
    return borders


def _heatmap(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Cells in color; cells without a number stay empty."""
    z = np.atleast_2d(values_of(trace.z))
    figure = axes.get_figure()
    scale, limits = colors_of(trace, figure)
    if hatch := _HATCHES.get(trace.name):
        _hatched(axes, hatch, _edges(x), _edges(y), z)
        return None
    cells = axes.pcolormesh(
        _edges(x),
        _edges(y),
        np.ma.masked_invalid(z),
        cmap=scale,
        norm=limits,
        # Tens of thousands of cells make a vector file that no viewer opens quickly.
        rasterized=z.size > figure.most_vectors,
        linewidth=0,
        edgecolor="none",
    )
    return cells if trace.coloraxis else None


def _hatched(axes: Any, hatch: str, x: Floats, y: Floats, z: Floats) -> None:
    """Cells without a place in the color scale: hatched, which gray shows as well."""
    from matplotlib.patches import Rectangle

    for row in range(len(z)):
        edges = np.flatnonzero(np.diff(np.isfinite(z[row]), prepend=False, append=False))
        for first, end in edges.reshape(-1, 2):
            size = x[end] - x[first], y[row + 1] - y[row]
            cell = Rectangle((x[first], y[row]), *size, hatch=hatch, linewidth=0)
            cell.set(facecolor="white", edgecolor="#555555")
            axes.add_patch(cell)


def _contour(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Filled levels."""
    z = np.ma.masked_invalid(np.atleast_2d(values_of(trace.z)))
    if z.count() < 4 or min(z.shape) < 2:
        return None
    scale, limits = colors_of(trace, axes.get_figure())
    asked = trace.contours
    count = max(round((asked.end - asked.start) / asked.size) + 1, 2)
    levels = np.linspace(asked.start, asked.end, min(count, 60))
    # Two passes: hairlines of the color below show between filled levels in some viewers of PDF.
    for _ in range(1 if z.size > axes.get_figure().most_vectors else 2):
        drawn = axes.contourf(x, y, z, levels, cmap=scale, norm=limits, extend="both")
    return drawn


def _surface(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """A surface of colored faces, as vectors."""
    z = np.atleast_2d(values_of(trace.z))
    figure = axes.get_figure()
    scale, limits = colors_of(trace, figure)
    step = max(1, int(np.ceil(max(z.shape) / 51)))
    colors = scale(limits(np.ma.masked_invalid(z)))
    faces = axes.plot_surface(
        *np.meshgrid(x, y),
        z,
        facecolors=colors,
        rstride=step,
        cstride=step,
        shade=False,
        rasterized=z.size > figure.most_vectors,
    )
    # Edges in the color of their face close the hairlines between them.
    corners = [range(0, length - 1, step) for length in z.shape]
    faces.set_edgecolor(colors[np.ix_(*corners)].reshape(-1, 4))
    faces.set_linewidth(0.3)
    return ScalarMappable(limits, scale)


def _scatter(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Lines, points, and areas."""
    mode, line = trace.mode or "lines", trace.line
    if trace.fill == "toself":
        axes.fill(x, y, color=matplotlib_color(trace.fillcolor), linewidth=0)
    if "lines" in mode and (line.width is None or line.width > 0):
        axes.plot(
            x,
            y,
            color=matplotlib_color(line.color),
            linestyle=dashes_of(line.dash),
            linewidth=max((2.0 if line.width is None else line.width) * _POINTS_PER_PIXEL, 0.3),
        )
    if "markers" in mode:
        _points(axes, trace, x, y)
    return None


def _points(axes: Any, trace: Any, x: Floats, y: Floats) -> None:
    """The markers of a trace, those of each symbol at once."""
    marker = trace.marker
    color = matplotlib_color(marker.color or trace.line.color)
    size = np.asarray(6 if marker.size is None else marker.size, np.float64) * _POINTS_PER_PIXEL
    symbols = np.atleast_1d(np.asarray(marker.symbol or "circle", object))
    for symbol in dict.fromkeys(symbols):
        here = np.broadcast_to(symbols == symbol, x.shape)
        shape, is_open = marker_of(symbol), symbol.endswith("-open")
        looks: dict[str, Any] = {"s": np.square(size), "marker": shape, "zorder": 3}
        if shape in _STROKES:
            looks["color"] = color
        else:
            looks |= {"facecolors": "none" if is_open else color, "edgecolors": color}
        axes.scatter(
            x[here], y[here], linewidths=0.8 if is_open or shape in _STROKES else 0, **looks
        )


DRAWERS: dict[str, Callable[[Any, Any, Floats, Floats], Drawn]] = {
    "bar": _bars,
    "contour": _contour,
    "heatmap": _heatmap,
    "scatter": _scatter,
    "surface": _surface,
}
"""How each kind of trace that a figure has is drawn; the bundle knows all of them."""

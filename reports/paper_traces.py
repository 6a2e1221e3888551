"""Draws the traces of a plotly figure with matplotlib: the same numbers, as vectors."""

import html
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from numpy.typing import NDArray

__all__ = [
    "DRAWERS",
    "dashes_of",
    "marker_of",
    "matplotlib_color",
    "plain_text",
    "tick_words",
    "values_of",
]

Floats = NDArray[np.float64]
Drawn = tuple[Any, Any] | None
"""A mappable with the plotly color bar that describes it; None where there is none to show."""

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
    "cross": "P",
    "x": "X",
    "triangle-up": "^",
    "triangle-down": "v",
    "triangle-left": "<",
    "triangle-right": ">",
    "star": "*",
    "hexagram": "*",
    "pentagon": "p",
    "line-ns": "|",
    "line-ew": "_",
    "x-thin": "x",
    "cross-thin": "+",
}
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:b|i|em|strong|span|sub|sup|u|s|a)(?:\s[^<>]*)?>", re.IGNORECASE)
_RGB = re.compile(r"rgba?\(([^)]*)\)")
# Markers that are all edge.
_STROKES = "x+|_"
_STEPS = {"hv": "steps-post", "vh": "steps-pre", "hvh": "steps-mid"}
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
    if array.dtype.kind == "M":
        return array.astype("datetime64[ms]").astype(np.float64)
    known = categories or {}
    return np.array([_number(value, known) for value in array.ravel()]).reshape(array.shape)


def _number(value: Any, categories: dict[str, int]) -> float:
    if isinstance(value, str):
        return float(categories.get(value, np.nan))
    return np.nan if value is None else float(value)


def colormap(holder: Any, figure: Any) -> Colormap:
    """Return the color scale of a trace, its own or that of the axis that it shares."""
    shared = getattr(figure, "color_axes", {}).get(getattr(holder, "coloraxis", None))
    scale = (shared.colorscale if shared is not None else None) or holder.colorscale
    if scale is None:
        from plotly.colors import sequential

        names = sequential.Cividis
        scale = [(i / (len(names) - 1), name) for i, name in enumerate(names)]
    stops = [(float(place), matplotlib_color(color)) for place, color in scale]
    made = LinearSegmentedColormap.from_list("figure", stops)
    reverse = (shared if shared is not None else holder).reversescale
    made = made.reversed() if reverse else made
    return made.with_extremes(bad=(0, 0, 0, 0))


def limits_of(low: Any, high: Any, values: Floats, holder: Any, figure: Any) -> Normalize:
    """Return the range of a color scale: as the figure says, else that of the finite values."""
    shared = getattr(figure, "color_axes", {}).get(getattr(holder, "coloraxis", None))
    if shared is not None:
        low, high = shared.cmin, shared.cmax
    finite = values[np.isfinite(values)]
    if low is None:
        low = float(finite.min()) if len(finite) else 0.0
    if high is None:
        high = float(finite.max()) if len(finite) else 1.0
    return Normalize(low, high)


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


def matplotlib_color(color: Any, default: str = "#000000") -> Any:
    """Return a CSS color as matplotlib reads it."""
    if color is None:
        return default
    found = _RGB.fullmatch(str(color).replace(" ", ""))
    if not found:
        return "none" if str(color) == "transparent" else str(color)
    parts = [float(part) for part in found[1].split(",")]
    return (*(value / 255 for value in parts[:3]), *parts[3:4])


def _bars(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Bars, upright or lying; grouped ones stand beside each other."""
    lying = trace.orientation == "h"
    places, heights = (y, x) if lying else (x, y)
    width, shift, floor = _place_of_bars(axes, trace, places, heights)
    color = trace.marker.color
    if isinstance(color, list | tuple | np.ndarray):
        color = [matplotlib_color(one) for one in color]
    else:
        color = matplotlib_color(color, default="#555555")
    if lying:
        axes.barh(places + shift, heights, width, left=floor, color=color, alpha=trace.opacity)
    else:
        axes.bar(places + shift, heights, width, bottom=floor, color=color, alpha=trace.opacity)
    return None


def _place_of_bars(axes: Any, trace: Any, places: Floats, heights: Floats) -> tuple[Any, Any, Any]:
    """Width and shift of the bars of one trace, and what they stand on."""
    steps = np.diff(np.unique(places[np.isfinite(places)]))
    slot = 0.8 * (float(steps.min()) if len(steps) else 1.0)
    floor: Any = 0 if trace.base is None else values_of(trace.base)
    if trace.width is not None:
        shift = 0 if trace.offset is None else values_of(trace.offset) + trace.width / 2
        return values_of(trace.width), shift, floor
    layout = axes.bars_of
    if layout["mode"] in ("stack", "relative"):
        below = layout["below"].setdefault(str(trace.orientation), {})
        floor = np.array([below.get(place, 0.0) for place in places])
        below.update(zip(places, floor + heights, strict=True))
        return slot, 0, floor
    if layout["mode"] == "overlay":
        return slot, 0, floor
    width = slot / max(layout["count"], 1)
    layout["next"] += 1
    return width, (layout["next"] - 1 - (layout["count"] - 1) / 2) * width, floor


def _edges(centers: Floats, count: int, *, log: bool) -> Floats:
    """The borders of the cells whose centers these are; borders themselves stay as they are."""
    if len(centers) == count + 1:
        return centers
    if not len(centers):
        centers = np.arange(count, dtype=np.float64)
    if len(centers) == 1:
        return np.array([centers[0] - 0.5, centers[0] + 0.5])
    places = np.log(centers) if log else centers
    middle = (places[1:] + places[:-1]) / 2
    ends = [2 * places[0] - middle[0]], middle, [2 * places[-1] - middle[-1]]
    borders: Floats = np.concatenate(ends)
    return np.exp(borders) if log else borders


def _heatmap(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Cells in color; cells without a number stay empty."""
    z = np.atleast_2d(values_of(trace.z))
    figure = axes.get_figure()
    columns = _edges(x, z.shape[1], log=axes.get_xscale() == "log")
    rows = _edges(y, z.shape[0], log=axes.get_yscale() == "log")
    limits = limits_of(trace.zmin, trace.zmax, z, trace, figure)
    cells = axes.pcolormesh(
        columns,
        rows,
        np.ma.masked_invalid(z),
        cmap=colormap(trace, figure),
        norm=limits,
        # Tens of thousands of cells make a vector file that no viewer opens quickly.
        rasterized=z.size > figure.most_vectors,
        linewidth=0,
        edgecolor="none",
    )
    return (cells, trace) if trace.showscale is not False else None


def _places(x: Floats, y: Floats, z: Any) -> tuple[Floats, Floats]:
    """The coordinates of a grid; plotly counts where a trace has none."""
    rows, columns = (np.arange(length, dtype=np.float64) for length in z.shape)
    return x if len(x) else columns, y if len(y) else rows


def _contour(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Level lines, filled where the figure fills them."""
    z = np.ma.masked_invalid(np.atleast_2d(values_of(trace.z)))
    if z.count() < 4 or min(z.shape) < 2:
        return None
    x, y = _places(x, y, z)
    figure = axes.get_figure()
    limits = limits_of(trace.zmin, trace.zmax, np.asarray(z.compressed()), trace, figure)
    scale = colormap(trace, figure)
    levels = _levels(trace, z, limits)
    if trace.contours.coloring in ("lines", "none"):
        drawn = axes.contour(x, y, z, levels, cmap=scale, norm=limits, linewidths=0.7)
    else:
        # Two passes: hairlines of the color below show between filled levels in some viewers.
        axes.contourf(x, y, z, levels, cmap=scale, norm=limits, extend="both")
        drawn = axes.contourf(x, y, z, levels, cmap=scale, norm=limits, extend="both")
    return (drawn, trace) if trace.showscale is not False else None


def _levels(trace: Any, z: Any, limits: Normalize) -> Floats:
    asked = trace.contours
    if asked.start is not None and asked.end is not None and asked.size:
        count = max(round((asked.end - asked.start) / asked.size) + 1, 2)
        return np.linspace(asked.start, asked.end, min(count, 60))
    low, high = limits.vmin or 0.0, limits.vmax or 1.0
    return np.linspace(low, high if high > low else low + 1, (trace.ncontours or 15) + 1)


def _surface(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """A surface of colored faces, as vectors."""
    z = np.atleast_2d(values_of(trace.z))
    x, y = _places(x, y, z)
    across, along = (x, y) if x.ndim == 2 else np.meshgrid(x, y)
    figure = axes.get_figure()
    shade = z if trace.surfacecolor is None else values_of(trace.surfacecolor)
    limits = limits_of(trace.cmin, trace.cmax, shade, trace, figure)
    scale = colormap(trace, figure)
    step = max(1, int(np.ceil(max(z.shape) / 51)))
    colors = scale(limits(np.ma.masked_invalid(shade)))
    faces = axes.plot_surface(
        across,
        along,
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
    from matplotlib.cm import ScalarMappable

    return (ScalarMappable(limits, scale), trace) if trace.showscale is not False else None


def _line(trace: Any) -> dict[str, Any]:
    """Color, dashes and width of a line."""
    line = trace.line
    return {
        "color": matplotlib_color(line.color),
        "linestyle": dashes_of(line.dash),
        "linewidth": max((2.0 if line.width is None else line.width) * _POINTS_PER_PIXEL, 0.3),
    }


def _scatter(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Lines, points, and bands between two lines."""
    mode = trace.mode or "lines"
    alpha = trace.opacity
    if trace.fill in ("toself", "tonexty"):
        _fill(axes, trace, x, y)
    # What a band reaches to may be a line that is not drawn itself.
    axes.before = (x, y)
    if "lines" in mode and (trace.line.width is None or trace.line.width > 0):
        style = _STEPS.get(trace.line.shape, "default")
        axes.plot(x, y, drawstyle=style, alpha=alpha, **_line(trace))
    return _points(axes, trace, x, y) if "markers" in mode else None


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
    "bar": _bars,
    "contour": _contour,
    "heatmap": _heatmap,
    "scatter": _scatter,
    "surface": _surface,
}
"""How each kind of trace that a figure has is drawn; the bundle knows all of them."""

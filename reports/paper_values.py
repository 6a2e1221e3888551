"""Numbers, text, colors, dashes and markers of plotly as matplotlib takes them."""

import html
import re
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from numpy.typing import NDArray

__all__ = [
    "Drawn",
    "Floats",
    "colormap",
    "dashes_of",
    "limits_of",
    "marker_of",
    "matplotlib_color",
    "plain_text",
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


def matplotlib_color(color: Any, default: str = "#000000") -> Any:
    """Return a CSS color as matplotlib reads it."""
    if color is None:
        return default
    found = _RGB.fullmatch(str(color).replace(" ", ""))
    if not found:
        return "none" if str(color) == "transparent" else str(color)
    parts = [float(part) for part in found[1].split(",")]
    return (*(value / 255 for value in parts[:3]), *parts[3:4])

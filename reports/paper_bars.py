"""Draws bars and histograms of a plotly figure with matplotlib."""

from typing import Any

import numpy as np

from .paper_values import Drawn, Floats, colormap, limits_of, values_of
from .paper_words import matplotlib_color

__all__ = ["draw_bars", "draw_histogram"]


def draw_bars(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Bars, upright or lying; grouped ones stand beside each other."""
    lying = trace.orientation == "h"
    places, heights = (y, x) if lying else (x, y)
    width, shift, floor = _place_of_bars(axes, trace, places, heights)
    color = trace.marker.color
    if isinstance(color, list | tuple | np.ndarray):
        array = np.asarray(color)
        if array.dtype.kind in "fiu":
            scale = colormap(trace.marker, axes.get_figure())
            marker = trace.marker
            limits = limits_of(marker.cmin, marker.cmax, array, marker, axes.get_figure())
            color = scale(limits(array))
        else:
            color = [matplotlib_color(one) for one in array.tolist()]
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


def draw_histogram(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Counts of values in bins."""
    lying = not len(x)
    values = y if lying else x
    values = values[np.isfinite(values)]
    bins = trace.ybins if lying else trace.xbins
    if bins.start is not None and bins.end is not None and bins.size:
        borders: Any = np.arange(bins.start, bins.end + bins.size / 2, bins.size)
    else:
        borders = trace.nbinsx or trace.nbinsy or 30
    axes.hist(
        values,
        borders,
        color=matplotlib_color(trace.marker.color, default="#555555"),
        alpha=trace.opacity,
        density=trace.histnorm in ("probability density", "density"),
        orientation="horizontal" if lying else "vertical",
    )
    return None

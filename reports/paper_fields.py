"""Draws heatmaps, contours and surfaces of a plotly figure with matplotlib."""

from typing import Any

import numpy as np
from matplotlib.colors import Normalize

from .paper_values import Drawn, Floats, colormap, limits_of, values_of
from .paper_words import matplotlib_color

__all__ = ["draw_contour", "draw_heatmap", "draw_scatter3d", "draw_surface"]


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


def draw_heatmap(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
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


def draw_contour(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Level lines, filled where the figure fills them."""
    z = np.ma.masked_invalid(np.atleast_2d(values_of(trace.z)))
    if z.count() < 4 or min(z.shape) < 2:
        return None
    x = x if len(x) else np.arange(z.shape[1], dtype=np.float64)
    y = y if len(y) else np.arange(z.shape[0], dtype=np.float64)
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


def draw_surface(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """A surface of colored faces, as vectors."""
    z = np.atleast_2d(values_of(trace.z))
    x = x if len(x) else np.arange(z.shape[1], dtype=np.float64)
    y = y if len(y) else np.arange(z.shape[0], dtype=np.float64)
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


def draw_scatter3d(axes: Any, trace: Any, x: Floats, y: Floats) -> Drawn:
    """Lines and points in space."""
    z = values_of(trace.z)
    mode = trace.mode or "lines+markers"
    if "lines" in mode:
        color = trace.line.color if isinstance(trace.line.color, str) else None
        axes.plot(x, y, z, color=matplotlib_color(color), linewidth=1, zorder=5)
    if "markers" in mode:
        color = trace.marker.color if isinstance(trace.marker.color, str) else None
        axes.scatter(x, y, z, color=matplotlib_color(color), s=8, depthshade=False, zorder=6)
    return None

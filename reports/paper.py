"""The matplotlib twin of a figure, drawn from the figure itself."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .paper_axes import finish_axes
from .paper_keys import draw_color_bars, draw_legend
from .paper_marks import draw_annotations, draw_shapes
from .paper_panes import Panes, layout_axis, panes
from .paper_style import FORMATS, METADATA, paper_style
from .paper_traces import DRAWERS
from .paper_values import values_of

__all__ = ["drawn_figure", "figure_bytes"]

_PIXELS_WIDE = 900
_MOST_VECTORS = 10_000
_MOST_HIGH = 9.0


def figure_bytes(
    figure: Any,
    kind: str,
    width: float = 3.25,
    *,
    style: Path | None = None,
    extra: dict[str, Any] | None = None,
    most_vectors: int = _MOST_VECTORS,
) -> bytes:
    """Return the twin of a plotly figure as a file: the same numbers, as vectors.

    Nothing is read or computed again. Equal figures give equal bytes; fonts are embedded as
    TrueType; dashes and markers tell lines apart where there is no color.

    Args:
        figure: A plotly figure of the traces in ``paper_traces.DRAWERS``.
        kind: ``pdf``, ``svg`` or ``png``.
        width: Width in inches; the height follows from that of the figure.
        style: A matplotlib style file over the house style.
        extra: Settings between the two.
        most_vectors: Heatmaps and surfaces of more cells become an image within the file.

    Raises:
        ValueError: If the figure has another kind of trace, or ``kind`` is not one of those.
    """
    if kind not in FORMATS:
        raise ValueError(f"format is {kind!r}; expected one of {', '.join(FORMATS)}")
    buffer = io.BytesIO()
    with paper_style(extra, style), warnings.catch_warnings():
        # A letter that no font has is drawn as a box; the data beside the figure has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Two hundred panes in a column of a page do not fit; they are drawn nevertheless.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        drawn = drawn_figure(figure, width, most_vectors)
        drawn.savefig(buffer, format=kind, metadata=METADATA[kind])
    return buffer.getvalue()


def drawn_figure(
    figure: Any,
    width: float = 3.25,
    most_vectors: int = _MOST_VECTORS,
    most_high: float = _MOST_HIGH,
) -> Any:
    """Return the matplotlib figure of a plotly figure, in the style that is set.

    Args:
        figure: As in ``figure_bytes``.
        width: Width in inches.
        most_vectors: As in ``figure_bytes``.
        most_high: Height in inches at the most, where its rows do not need more.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas: Any = Figure(figsize=(width, _height(figure, width, most_high)))
    FigureCanvasAgg(canvas)
    canvas.most_vectors = most_vectors
    made = panes(figure, canvas)
    drawn = [bar for trace in figure.data for bar in _draw(trace, made)]
    finish_axes(figure, made)
    draw_shapes(figure, made)
    draw_annotations(figure, made)
    draw_color_bars(figure, made, drawn)
    draw_legend(figure, made)
    return canvas


def _height(figure: Any, width: float, most: float) -> float:
    """The height that keeps the proportions of a screen, at least as high as its rows need."""
    sides = {t.yaxis or "y" for t in figure.data if hasattr(t, "yaxis")}
    # Panes beside each other are one row; an axis over another one has no place of its own.
    rows = len({layout_axis(figure.layout, side).domain for side in sides})
    pixels = figure.layout.height or 450
    # A narrow column needs more height for its words than a screen of the same shape.
    share = max(pixels / _PIXELS_WIDE, 0.62 if width < 5 else 0.4)
    return float(max(min(width * share, most), min(0.9 * rows, 8.5)))


def _draw(trace: Any, made: Panes) -> list[tuple[Any, Any, Any]]:
    """Draw one trace; return its axes and what its color bar describes."""
    if trace.visible not in (None, True):
        return []
    if trace.type not in DRAWERS:
        raise ValueError(
            f"a figure has a trace of type {trace.type!r}; expected one of {', '.join(DRAWERS)}. "
            "Add a drawer to reports/paper_traces.py and the trace to reports/bundle/entry.js."
        )
    if hasattr(trace, "scene"):
        axes, x, y = made.scenes[trace.scene or "scene"], values_of(trace.x), values_of(trace.y)
    else:
        names = trace.xaxis or "x", trace.yaxis or "y"
        axes = made.flat[names]
        x = values_of(trace.x, made.categories.get(names[0]))
        y = values_of(trace.y, made.categories.get(names[1]))
        x, y = _counted(x, y, trace)
    drawn = DRAWERS[trace.type](axes, trace, x, y)
    return [] if drawn is None else [(axes, *drawn)]


def _counted(x: Any, y: Any, trace: Any) -> tuple[Any, Any]:
    """Coordinates where plotly counts from ``x0`` or ``y0``."""
    if trace.type in ("heatmap", "contour"):
        return x, y
    if not len(x) and len(y) and trace.type != "histogram":
        x = (trace.x0 or 0) + (trace.dx or 1) * np.arange(len(y))
    return x, y

"""Lines, bands, grids and the marks of values that a scale cannot show: zero, NaN, infinities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import Band
from analyzer.analysis.flow_grid import NONFINITE, ZERO, GridColumn
from analyzer.analysis.per_run import AlongDepth
from analyzer.analysis.view import RunLabel
from analyzer.figures.sketch import Trace, scatter
from analyzer.figures.theme import Theme, labeled, log_ticks

__all__ = [
    "band_traces",
    "color_bar",
    "depth_lines",
    "edge_marks",
    "filled",
    "grid_traces",
    "layer_dots",
    "mark_legend",
    "run_line",
    "translucent",
    "zero_marks",
]

Floats = NDArray[np.float64]
# More would be mud.
_MOST_MARKERS = 60
_MOST_DOTS = 120


def translucent(color: str, opacity: float) -> str:
    """Return a color like ``#0072B2`` with an opacity."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def run_line(label: RunLabel, theme: Theme, **more: Any) -> Trace:
    """Return the line of one run in its color, dash and marker; ``more`` has at least ``x``."""
    style = theme.style(label.style)
    has_markers = len(more["x"]) <= _MOST_MARKERS
    return scatter(
        {
            "mode": "lines+markers" if has_markers else "lines",
            "line": {"color": style.color, "dash": style.dash, "width": 2},
            "marker": {"color": style.color, "symbol": style.marker, "size": 6},
            "name": labeled(label.text),
            "legendgroup": f"run-{label.style}",
        },
        more,
    )


def depth_lines(
    curve: AlongDepth,
    key: str,
    edges: tuple[float, float],
    theme: Theme,
    *,
    is_log: bool,
    hovertemplate: str = "%{text}: %{y:.3e}",
) -> list[Trace]:
    """Return one number of a run along depth: its line, and marks where it has no place."""
    values = curve.values[key]
    names = [labeled(name) for name in curve.names]
    words = {"text": names, "hovertemplate": hovertemplate}
    line = run_line(curve.label, theme, x=curve.positions, y=values, **words)
    return [line, edge_marks(curve.positions, values, edges, theme, is_log=is_log)]


def filled(x: Any, low: Any, high: Any, color: str, opacity: float, **more: Any) -> Trace:
    """Return the area between two lines; places without a finite number are left out.

    A polygon there and back cannot have gaps.
    """
    known = np.isfinite(low) & np.isfinite(high)
    return scatter(
        x=np.concatenate([x[known], x[known][::-1]]),
        y=np.concatenate([high[known], low[known][::-1]]),
        mode="lines",
        fill="toself",
        fillcolor=translucent(color, opacity),
        line={"width": 0},
        hoverinfo="skip",
        **more,
    )


def edge_marks(
    x: Any, values: Floats, bounds: tuple[float, float], theme: Theme, *, is_log: bool, **more: Any
) -> Trace:
    """Return marks at the edge of a plot where a value has no place in it.

    NaN and infinity stand at the upper of the two ``bounds``, minus infinity and on a logarithmic
    axis zero and less at the lower. Null and NaN look alike here.
    """
    low = np.isneginf(values) | ((values <= 0) & is_log)
    bad = ~np.isfinite(values) | low
    places: list[Any] = [p for p, is_bad in zip(x, bad, strict=True) if is_bad]
    # A power of ten that is rounded outward would lie beyond the edge, where nothing is drawn.
    inward = 1 + 1e-9 if is_log else 1.0
    heights: list[Any] = [bounds[0] * inward if at else bounds[1] / inward for at in low[bad]]
    symbols = ["triangle-down-open" if at else "x" for at in low[bad]]
    words: list[Any] = ["NaN" if np.isnan(v) else str(v) for v in values[bad]]
    return scatter(
        {
            "x": places or [None],
            "y": heights or [None],
            "mode": "markers",
            "marker": {"color": theme.mark, "symbol": symbols or "x", "size": 8},
            "text": words or [None],
            "hovertemplate": "%{x}: %{text}<extra></extra>",
            "name": "not finite, or zero",
            "showlegend": False,
            "cliponaxis": False,
        },
        more,
    )


def zero_marks(places: Any, names: Any, theme: Theme) -> Trace:
    """Return marks on the zero line for layers or joins whose value is not finite."""
    return scatter(
        x=places if len(places) else [None],
        y=np.zeros(len(places)) if len(places) else [None],
        text=names,
        mode="markers",
        marker={"color": theme.mark, "symbol": "x", "size": 9},
        hovertemplate="%{text}: NaN or infinite<extra></extra>",
        showlegend=False,
    )


def layer_dots(positions: Floats, names: Sequence[str], color: str, theme: Theme) -> Trace:
    """Return the network as a dot per layer along depth; a band where dots would be mud."""
    few = len(positions) <= _MOST_DOTS
    return scatter(
        x=positions,
        y=np.zeros(len(positions)),
        mode="lines+markers" if few else "lines",
        line={"color": theme.faint if few else color, "width": 1.5 if few else 4},
        marker={"color": color, "size": 7 if len(positions) <= _MOST_MARKERS else 4},
        text=[labeled(name) for name in names],
        hovertemplate="%{text}<br>depth %{x:.0f}<extra></extra>",
        showlegend=False,
    )


def band_traces(
    band: Band,
    label: RunLabel,
    theme: Theme,
    *,
    name: str = "",
    color: str = "",
    top: float | None = None,
    **more: Any,
) -> list[Trace]:
    """Return a series: its min–max band, the raw line faint where there is a smooth one, the line.

    Name and color are those of the run where empty. Marks for NaN and infinite values stand at
    ``top``; there are none where it is None.
    """
    shade = color or theme.style(label.style).color
    traces = []
    if band.width > 1 and len(band.steps):
        area = filled(band.steps, band.low, band.high, shade, 0.18)
        traces.append(area | {"showlegend": False} | more)
    line = {"line": {"color": shade, "dash": theme.style(label.style).dash, "width": 2}}
    named = {
        "name": labeled(name or label.text),
        "hovertemplate": "step %{x}: %{y:.4g}",
        "showlegend": True,
    }
    if band.smooth is not None:
        raw = {"line": {"color": translucent(shade, 0.35), "width": 1}, "showlegend": False}
        traces.append(scatter({"x": band.steps, "y": band.middle, "mode": "lines"}, raw, more))
    drawn = band.middle if band.smooth is None else band.smooth
    mode = {"x": band.steps, "y": drawn, "mode": "lines" if len(drawn) > 1 else "markers"}
    traces.append(scatter(mode, line, named, more))
    broken = band.steps[band.num_nonfinite > 0]
    if top is not None and len(broken):
        marks = edge_marks(broken, np.full(len(broken), np.nan), (top, top), theme, is_log=False)
        traces.append(marks | {"hovertemplate": "step %{x}: NaN or infinite"} | more)
    return traces


def mark_legend(columns: Sequence[GridColumn], theme: Theme, *, is_log: bool) -> list[Trace]:
    """Return legend entries for cells that are zero or not finite, where there are any."""
    return [
        scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": "square", "size": 11, "color": color},
            name=word,
            showlegend=True,
        )
        for kind, color, word in _unplaced(theme, is_log=is_log)
        if any((column.marks == kind).any() for column in columns)
    ]


def _unplaced(theme: Theme, *, is_log: bool) -> list[tuple[int, str, str]]:
    """Kinds of cells without a place in the scale, with color and name; a linear scale has zero."""
    kinds = [(NONFINITE, theme.mark, "NaN or infinite"), (ZERO, theme.zero, "exactly zero")]
    return kinds if is_log else kinds[:1]


def color_bar(title: str, low: float, high: float, *, is_log: bool, **more: Any) -> dict[str, Any]:
    """Return a color bar with our own ticks, since plotly has no logarithmic color scale."""
    bar: dict[str, Any] = {
        "title": {"text": title, "side": "right"},
        "thickness": 14,
        "outlinewidth": 0,
    }
    if is_log:
        places, texts = log_ticks(low, high)
        bar |= {"tickmode": "array", "tickvals": places, "ticktext": texts}
    return bar | more


def grid_traces(
    column: GridColumn, theme: Theme, *, is_log: bool, along_depth: bool, axes: dict[str, Any]
) -> list[Trace]:
    """Return the heatmap of one run, and over it the cells that are exactly zero or not finite.

    Depth runs along x, with steps along y, where ``along_depth``; else layers are rows. The
    ``axes`` are ``xaxis``, ``yaxis`` and ``coloraxis``.
    """
    cells = (column.log10 if is_log else column.values).astype(np.float32)
    place, hover = _place(column, axes, along_depth=along_depth)
    shown = "10<sup>%{z:.2f}</sup>" if is_log else "%{z:.4g}"
    look = {"name": labeled(column.label.text), "hovertemplate": f"{hover}: {shown}"}
    heat = {"type": "heatmap"} | place
    traces: list[Trace] = [heat | look | {"z": cells.T if along_depth else cells}]
    for kind, color, word in _unplaced(theme, is_log=is_log):
        marked = np.where(column.marks == kind, np.float32(0), np.float32(np.nan))
        if np.isfinite(marked).any():
            plane = {key: value for key, value in heat.items() if key != "coloraxis"}
            one = {"colorscale": [[0, color], [1, color]], "zmin": 0, "zmax": 1, "showscale": False}
            said = {"name": word, "hovertemplate": f"{hover}: {word}<extra></extra>"}
            z = {"z": marked.T if along_depth else marked}
            traces.append(plane | one | said | z)
    return traces


def _place(
    column: GridColumn, axes: dict[str, Any], *, along_depth: bool
) -> tuple[dict[str, Any], str]:
    """Places of the cells, and what their hover begins with."""
    if along_depth:
        places = {"x": column.positions, "y": column.steps}
        return places | axes, "depth %{x:.0f}, step %{y}"
    return {"x": column.steps, "y": [labeled(n) for n in column.names]} | axes, "%{y}<br>step %{x}"

"""Lines, bands, grids, and the rugs of values that a scale cannot show: zero, NaN, infinities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from analyzer.analysis.bands import Band
from analyzer.analysis.flow_grid import NONFINITE, ZERO, GridColumn
from analyzer.analysis.per_run import AlongDepth
from analyzer.analysis.view import RunLabel
from analyzer.figures.axes import layout_name
from analyzer.figures.sketch import Layout, Sketch, Trace, merged, part_of, scatter
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
    "mark_planes",
    "placed",
    "run_line",
    "step_range",
    "translucent",
    "with_rugs",
]

Floats = NDArray[np.float64]
_BROKEN, _ZERO = "NaN or infinite", "exactly zero"
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
    theme: Theme,
    *,
    is_log: bool,
    hovertemplate: str = "%{text}: %{y:.3e}",
) -> list[Trace]:
    """Return one number of a run along depth: its line, and marks where it has no place."""
    values = curve.values[key]
    names = [labeled(name) for name in curve.names]
    words = {"text": names, "hovertemplate": hovertemplate}
    line = run_line(curve.label, theme, x=curve.positions, y=placed(values, is_log), **words)
    return [line, edge_marks(curve.positions, values, theme, is_log=is_log, names=names)]


def placed(values: Floats, is_log: bool) -> Floats:
    """Return the values that have a height on an axis; NaN, a gap in a line, for others."""
    return np.where((values > 0) | (not is_log), values, np.nan)


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
    x: Any, values: Floats, theme: Theme, *, is_log: bool, names: Any = None, **more: Any
) -> Trace:
    """Return the rug of a plot: a tick at its edge for each value that has no height in it.

    NaN and infinity stand at the upper edge; minus infinity and, on a logarithmic axis, zero and
    less at the lower. The trace is for ``with_rugs``, which gives it an axis of its own. Null and
    NaN look alike here. The ``names`` of the places are said on hover.
    """
    low = np.isneginf(values) | ((values <= 0) & is_log)
    bad = ~np.isfinite(values) | low
    words = [_BROKEN if np.isnan(v) else f"{v:g}".replace("inf", "∞") for v in values[bad]]
    if names is not None:
        words = [f"{names[at]}: {w}" for at, w in zip(np.flatnonzero(bad), words, strict=True)]
    return scatter(
        {
            "x": np.asarray(x)[bad].tolist() or [None],
            "y": np.where(low[bad], 0.0, 1.0).tolist() or [None],
            "mode": "markers",
            "marker": {
                "color": [theme.zero if at else theme.mark for at in low[bad]] or theme.mark,
                "symbol": "line-ns-open",
                "size": 10,
                "line": {"width": 2},
            },
            "text": words or [None],
            "hovertemplate": "%{text}<extra></extra>",
            "name": _BROKEN,
            "showlegend": bool(bad.any()),
            "cliponaxis": False,
            # For a browser that draws another step by itself.
            "meta": {"rug": {"nonfinite": theme.mark, "zero": theme.zero}},
        },
        more,
    )


def with_rugs(made: "go.Figure | Sketch") -> "go.Figure | Sketch":
    """Return a figure whose rugs lie at the edges of their plots, wherever the reader zooms to.

    Each gets an axis over that of its plot. One entry in the legend says what its ticks are.
    """
    layout, traces = (
        (made.layout, made.traces)
        if isinstance(made, Sketch)
        else (made.layout.to_plotly_json(), made.data)
    )
    rugs = [trace for trace in traces if _is_rug(trace)]
    if not rugs:
        return made
    more: Layout = {}
    entries = _rug_entries(traces, rugs)
    for trace in rugs:
        base = part_of(trace, "yaxis") or "y"
        own = f"y{base[1:] or 1}01"
        under = layout.get(layout_name(base)) or {}
        place = {key: under[key] for key in ("domain", "anchor") if key in under}
        look = {"range": [0, 1], "visible": False, "fixedrange": True}
        more[layout_name(own)] = {"overlaying": base, **look, **place}
        trace["yaxis"], trace["showlegend"] = own, False
    if layout.get("showlegend") is False and entries:
        more["showlegend"] = True
        for trace in traces:
            trace["showlegend"] = False
    if isinstance(made, Sketch):
        return Sketch([*made.traces, *entries], merged(made.layout, more))
    made.add_traces(entries)
    return made.update_layout(more)


def _rug_entries(traces: Any, rugs: Sequence[Any]) -> list[Trace]:
    """What the ticks of rugs say in the legend, each once, unless it stands there already."""
    named = [trace for trace in rugs if part_of(trace, "showlegend")]
    said = {part_of(t, "name") for t in traces if part_of(t, "showlegend") and not _is_rug(t)}
    found = []
    for edge, key, word in ((1.0, "nonfinite", _BROKEN), (0.0, "zero", _ZERO)):
        here = [trace for trace in named if edge in list(part_of(trace, "y"))]
        if here and word not in said:
            color = part_of(here[0], "meta")["rug"][key]
            look = {"symbol": "line-ns-open", "size": 10, "color": color, "line": {"width": 2}}
            entry = scatter(x=[None], y=[None], mode="markers", marker=look, name=word)
            found.append(entry | {"showlegend": True})
    return found


def _is_rug(trace: Any) -> bool:
    note = part_of(trace, "meta")
    return isinstance(note, dict) and "rug" in note


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
    is_log: bool = False,
    **more: Any,
) -> list[Trace]:
    """Return a series: its min–max band, the raw line faint where there is a smooth one, the line.

    Name and color are those of the run where empty. Steps with a value that is not finite, or has
    no logarithm, are a rug.
    """
    shade = color or theme.style(label.style).color
    traces = []
    xs = band.steps if band.x is None else band.x
    if band.width > 1 and len(xs):
        area = filled(xs, placed(band.low, is_log), placed(band.high, is_log), shade, 0.18)
        traces.append(area | {"showlegend": False} | more)
    line = {"line": {"color": shade, "dash": theme.style(label.style).dash, "width": 2}}
    named = {
        "name": labeled(name or label.text),
        "hovertemplate": "step %{x}: %{y:.4g}",
        "showlegend": True,
    }
    if band.x is not None:
        named |= {"customdata": band.steps, "hovertemplate": "step %{customdata}: %{y:.4g}"}
    if band.smooth is not None:
        raw = {"line": {"color": translucent(shade, 0.35), "width": 1}, "showlegend": False}
        behind = placed(band.middle, is_log)
        traces.append(scatter({"x": xs, "y": behind, "mode": "lines"}, raw, more))
    drawn = placed(band.middle if band.smooth is None else band.smooth, is_log)
    mode = {"x": xs, "y": drawn, "mode": "lines" if len(drawn) > 1 else "markers"}
    traces.append(scatter(mode, line, named, more))
    zero = (band.middle <= 0) & is_log
    bad = (band.num_nonfinite > 0) | zero
    if bad.any():
        names = [f"step {step:,}" for step in band.steps[bad]]
        lost = np.where(zero & (band.num_nonfinite == 0), 0.0, np.nan)[bad]
        marks = edge_marks(xs[bad], lost, theme, is_log=is_log, names=names)
        traces.append(marks | {key: more[key] for key in more if "axis" in key})
    return traces


def mark_legend(marks: Sequence[NDArray[np.uint8]], theme: Theme, *, is_log: bool) -> list[Trace]:
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
        if any((one == kind).any() for one in marks)
    ]


def _unplaced(theme: Theme, *, is_log: bool) -> list[tuple[int, str, str]]:
    """Kinds of cells without a place in the scale, with color and name; a linear scale has zero."""
    kinds = [(NONFINITE, theme.mark, _BROKEN), (ZERO, theme.zero, _ZERO)]
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
    column: GridColumn, theme: Theme, *, is_log: bool, axes: dict[str, Any]
) -> list[Trace]:
    """Return the heatmap of one run, and over it the cells that are exactly zero or not finite.

    Depth runs along x, the input at the left, steps upward. The hover says layer, step and number;
    the axis knows the names of the layers (``depth_ticks``). The ``axes`` are ``xaxis``, ``yaxis``
    and ``coloraxis``.
    """
    rows = column.steps if column.at is None else column.at
    heat = {"type": "heatmap", "x": column.positions, "y": rows} | axes
    heat |= {} if column.at is None else {"meta": {"steps": column.steps.tolist()}}
    heat |= {"hoverongaps": False}
    hover = "%{x}<br>step %{y:,d}"
    cells = (column.log10 if is_log else column.values).T.astype(np.float32)
    # A color is that of a logarithm; what is read is the number itself.
    plain = {"customdata": _plain(column.values.T)} if is_log else {}
    shown = "%{customdata:.3g}" if is_log else "%{z:.4g}"
    look = {"name": labeled(column.label.text), "hovertemplate": f"{hover}: {shown}"}
    planes = mark_planes(column.marks, heat, theme, is_log=is_log, hover=hover)
    return [heat | look | plain | {"z": cells}, *planes]


def _plain(values: Floats) -> NDArray[Any]:
    """Numbers in four bytes each; in eight where one would become zero or infinite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        small = values.astype(np.float32)
    same = (small == 0) == (values == 0), np.isinf(small) == np.isinf(values)
    return small if all(each.all() for each in same) else values


def mark_planes(
    marks: NDArray[np.uint8], heat: Trace, theme: Theme, *, is_log: bool, hover: str
) -> list[Trace]:
    """Return the cells of a heatmap that its colors cannot show, ``[rows, bins]``, each kind."""
    plane = {key: value for key, value in heat.items() if key != "coloraxis"}
    traces = []
    for kind, color, word in _unplaced(theme, is_log=is_log):
        if (marks == kind).any():
            z = np.where(marks == kind, np.float32(0), np.float32(np.nan)).T
            one = {"colorscale": [[0, color], [1, color]], "zmin": 0, "zmax": 1, "showscale": False}
            said = {"name": word, "hovertemplate": f"{hover}: {word}<extra></extra>", "z": z}
            traces.append(plane | one | said | {"hoverongaps": False})
    return traces


def step_range(columns: Sequence[GridColumn]) -> list[float]:
    """Return the first and the last step of all runs (or epoch, or time), with some room."""
    places = [column.at for column in columns if column.at is not None]
    first = min(float(column.steps[0]) for column in columns)
    last = max(float(column.steps[-1] + column.width - 1) for column in columns)
    if places:
        first, last = (float(end(np.concatenate(places))) for end in (np.nanmin, np.nanmax))
        return [first - 0.004 * (last - first), last + 0.004 * (last - first)]
    room = max(0.5, 0.004 * (last - first))
    return [first - room, last + room]

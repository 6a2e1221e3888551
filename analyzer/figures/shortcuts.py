"""What the shortcuts do: an arc over the network for each, wide and dark by its share; shares."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyzer.analysis.numerals import percent
from analyzer.analysis.per_run import PerRun, shown_range
from analyzer.analysis.profiles import (
    ResidualStream,
    StreamCurves,
    residual_stream,
    stream_series,
)
from analyzer.analysis.shortcuts import (
    SHARE_LEVELS,
    JoinArcs,
    ShortcutStrip,
    SplitCurves,
    share_level,
    shortcut_strip,
    split_series,
)
from analyzer.figures.axes import DEPTH, along_axis, stage_ticks, value_axis
from analyzer.figures.marks import edge_marks, filled, layer_dots, run_line, translucent
from analyzer.figures.panels import Panel
from analyzer.figures.sketch import Trace, scatter
from analyzer.figures.theme import Theme, labeled
from analyzer.vocabulary.methods import Method

__all__ = [
    "SHARES",
    "STREAM",
    "STREAM_SERIES",
    "STRIP",
    "arc_traces",
    "arc_words",
    "highest_level",
    "outline",
]

_LEVELS = ("0 to 20 %", "20 to 40 %", "40 to 60 %", "60 to 80 %", "80 % and more")
_WIDTHS = (1.25, 2.0, 3.0, 4.0, 5.0)
_POINTS, _MANY = 25, 24
# A dash, so that a projection is told from an identity without color.
_IDENTITY, _OTHER = "solid", "dot"


def highest_level(runs: Iterable[Any]) -> int:
    """Return the level of the highest arc of all runs; 1 where there are none."""
    return max((int(level) for run in runs for level in run.arcs.levels), default=1)


def outline(arcs: JoinArcs, highest: int) -> list[tuple[list[float], list[float]]]:
    """Return places along depth and heights from 0 to 1 of each arc, of several joins a box.

    An arc at ``highest``, the highest level of all runs, reaches 1.
    """
    angles = np.linspace(np.pi, 0, _POINTS)
    shapes = []
    for start, end, level in zip(arcs.starts, arcs.ends, arcs.levels, strict=True):
        if arcs.size > 1:
            shapes.append(([start, start, end, end, start], [0.12, 0.62, 0.62, 0.12, 0.12]))
            continue
        x = (start + end) / 2 + (end - start) / 2 * np.cos(angles)
        y = (0.35 + 0.65 * level / highest if highest > 1 else 0.8) * np.sin(angles)
        shapes.append((np.round(x, 3).tolist(), np.round(y, 3).tolist()))
    return shapes


def arc_words(arcs: JoinArcs) -> list[str]:
    """Return what each arc is called on hover, without its share."""
    many = f", {arcs.size} joins, median" if arcs.size > 1 else ""
    return [
        f"{labeled(name)} ({shortcut}{many})"
        for name, shortcut in zip(arcs.names, arcs.shortcuts, strict=True)
    ]


def arc_traces(
    arcs: JoinArcs, theme: Theme, highest: int, axes: dict[str, str], *, in_legend: bool
) -> list[Trace]:
    """Return the arcs of one run: a trace per level of share, first of identities, then of others.

    Eleven traces whatever is recorded: five levels twice, then joins of unknown share. The levels
    are named in the legend where ``in_legend``.
    """
    shapes, words = outline(arcs, highest), arc_words(arcs)
    levels = share_level(arcs.shares)
    said = [
        f"{word}<br>shortcut share {percent(s)}" for word, s in zip(words, arcs.shares, strict=True)
    ]
    scale = 1.0 if len(shapes) <= _MANY else 0.6
    is_identity = np.array([kind == "identity" for kind in arcs.shortcuts], bool)
    traces = []
    for identity in (True, False):
        for level in range(len(SHARE_LEVELS)):
            chosen = np.flatnonzero((levels == level) & (is_identity == identity))
            trace = _trace(arcs, theme.arcs[level], scale * _WIDTHS[level], identity, axes)
            trace |= _broken_lines(shapes, said, chosen) | {
                "name": _LEVELS[level],
                "showlegend": in_legend and identity,
                "legendgroup": f"share-{level}",
            }
            traces.append(trace)
    unknown = _trace(arcs, theme.faint, 1.5, True, axes)
    chosen = np.flatnonzero(levels < 0)
    said = [f"{word}<br>share not recorded" for word in words]
    named = {"name": "share not recorded", "showlegend": in_legend and len(chosen) > 0}
    return [*traces, unknown | _broken_lines(shapes, said, chosen) | named]


def _broken_lines(shapes: list[Any], words: list[str], chosen: Any) -> dict[str, list[Any]]:
    """The chosen lines as one trace: their points one after another, gaps between."""
    # A trace without a point would be missing in the legend.
    x: list[Any] = [None]
    y: list[Any] = [None]
    text: list[Any] = [None]
    for k in chosen:
        xs, ys = shapes[k]
        x += [*xs, None]
        y += [*ys, None]
        text += [words[k]] * len(xs) + [None]
    return {"x": x, "y": y, "text": text}


def _trace(
    arcs: JoinArcs, color: str, width: float, is_identity: bool, axes: dict[str, str]
) -> Trace:
    dash = _IDENTITY if is_identity else _OTHER
    trace = scatter(
        {"mode": "lines", "hovertemplate": "%{text}<extra></extra>"},
        axes,
        line={"color": color, "width": 0.5 if arcs.size > 1 else width, "dash": dash},
    )
    if arcs.size > 1:
        trace.update(fill="toself", fillcolor=color, hoveron="points")
    return trace


def _strip_figure(info: PerRun[ShortcutStrip], theme: Theme) -> go.Figure:
    """Draw the network of each run as a strip with one arc per join."""
    count = len(info.runs)
    figure = make_subplots(
        count,
        1,
        vertical_spacing=0.32 / count,
        subplot_titles=[labeled(row.label.text, 48) for row in info.runs],
    )
    theme.apply(figure, 110 + 220 * count)
    figure.update_annotations(font={"size": 14, "color": theme.text})
    highest = highest_level(info.runs)
    for place, row in enumerate(info.runs, start=1):
        arcs = arc_traces(row.arcs, theme, highest, {}, in_legend=place == 1)
        dots = layer_dots(row.positions, row.names, theme.style(row.label.style).color, theme)
        for trace in (*arcs, dots):
            figure.add_trace(trace, row=place, col=1)
        ends = (row.positions[0], row.positions[-1]) if len(row.positions) else (0.0, 1.0)
        figure.update_xaxes(row=place, col=1, **stage_ticks(row.stages, ends))
    figure.update_yaxes(visible=False, range=[-0.15, 1.1])
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(row=count, col=1, **DEPTH)
    legend = {"title": {"text": "shortcut share  ", "side": "left"}, "entrywidth": 112}
    figure.update_layout(legend=legend | {"x": 0, "y": -0.3 / count, "yanchor": "top"})
    figure.update_layout(margin={"b": 96})
    return figure


def _split_figure(info: PerRun[SplitCurves], theme: Theme) -> go.Figure:
    """Draw the shortcut shares over the steps: the median, and all joins around it."""
    figure = theme.figure(height=400)
    for run in info.runs:
        figure.add_traces(_split_traces(run, theme))
    figure.add_hline(y=0.5, line={"color": theme.faint, "width": 1, "dash": "dot"})
    figure.update_xaxes(**along_axis(info.over, is_log=info.is_log_x))
    figure.update_yaxes(title={"text": "shortcut share"}, tickformat=".0%")
    figure.update_layout(showlegend=True)
    return figure


def _split_traces(run: SplitCurves, theme: Theme) -> list[Trace]:
    color = theme.style(run.label.style).color
    text = labeled(run.label.text)
    place = _along(run)
    around = filled(place["x"], run.low, run.high, color, 0.15, name=f"{text}: all joins")
    said = f"step {place.pop('said')}: %{{y:.0%}}"
    single = [
        scatter(
            place,
            y=shares,
            mode="lines",
            line={"color": translucent(color, 0.4), "width": 1},
            name=labeled(name),
            hovertemplate=said,
            showlegend=False,
        )
        for name, shares in zip(run.names, run.shares.T, strict=True)
    ]
    middle = run.median if run.smooth is None else run.smooth
    words = {"name": f"{text}: median", "hovertemplate": said}
    return [around, *single, run_line(run.label, theme, **place, y=middle, **words)]


def _along(run: SplitCurves | StreamCurves) -> Trace:
    """Where the points of a line stand, with their steps; ``said`` is how the hover says these."""
    if run.at is None:
        return {"x": run.steps, "said": "%{x}"}
    return {"x": run.at, "customdata": run.steps, "said": "%{customdata}"}


def _stream_figure(info: PerRun[ResidualStream], theme: Theme) -> go.Figure:
    """Draw the norm of the stream along depth, what each block writes, and the last norm marked."""
    figure = theme.figure(height=400)
    norms = [values for run in info.runs for values in (run.after, run.written)]
    low, high = shown_range(norms, is_log=True)
    axis = value_axis("norm (unit of z)", is_log=True, low=low, high=high)
    for run in info.runs:
        color, text = theme.style(run.label.style).color, labeled(run.label.text)
        words = [labeled(name) for name in run.names]
        line = {"name": f"{text}: stream ‖s + b‖", "text": words}
        hover = {"hovertemplate": "%{text}: %{y:.3e}"}
        place = {"x": run.positions, "y": run.after}
        figure.add_trace(run_line(run.label, theme, **place, **line, **hover))
        figure.add_trace(
            scatter(
                x=run.positions,
                y=run.written,
                mode="markers",
                marker={"color": color, "symbol": "line-ew-open", "size": 10, "line": {"width": 2}},
                text=words,
                name=f"{text}: written ‖b‖",
                **hover,
            )
        )
        last = int(np.flatnonzero(np.isfinite(run.after))[-1])
        figure.add_trace(
            scatter(
                x=[run.positions[last]],
                y=[run.after[last]],
                mode="markers",
                marker={"color": theme.mark, "symbol": "star", "size": 12},
                name=run.last_word,
                text=[f"{text}, {run.last_word}"],
                showlegend=run is info.runs[0],
                **hover,
            )
        )
        for values in (run.after, run.written):
            figure.add_trace(edge_marks(run.positions, values, theme, is_log=True, names=words))
    figure.update_xaxes(**DEPTH)
    figure.update_yaxes(**axis)
    figure.update_layout(showlegend=True)
    return figure


def _stream_series_figure(info: PerRun[StreamCurves], theme: Theme) -> go.Figure:
    """Draw the stream after the last join over the steps, all joins around it, and the writes."""
    figure = theme.figure(height=400)
    norms = [values for run in info.runs for values in (run.low, run.high, run.written)]
    low, high = shown_range(norms, is_log=True)
    for run in info.runs:
        color, text = theme.style(run.label.style).color, labeled(run.label.text)
        place = _along(run)
        hover = {"hovertemplate": f"step {place.pop('said')}: %{{y:.3e}}"}
        around = filled(place["x"], run.low, run.high, color, 0.15, name=f"{text}: all joins")
        last = run.last if run.smooth is None else run.smooth
        words = {"name": f"{text}: after the last join"}
        line = {"color": color, "width": 1.5, "dash": "dot"}
        written = scatter(place, y=run.written, mode="lines", line=line, **hover)
        written["name"] = f"{text}: written ‖b‖, median"
        figure.add_traces(
            [around, run_line(run.label, theme, **place, y=last, **words, **hover), written]
        )
    figure.update_xaxes(**along_axis(info.over, is_log=info.is_log_x))
    figure.update_yaxes(**value_axis("norm (unit of z)", is_log=True, low=low, high=high))
    figure.update_layout(showlegend=True)
    return figure


STRIP = Panel(
    key="shortcut_strip",
    title="Shortcuts",
    how_to_read="One arc per join, from fork to join, wide and dark where the shortcut carries "
    "most of the gradient; dotted arcs have parameters on their shortcut. A band of boxes stands "
    "for many joins, each box for the median of neighbors.",
    method=Method(
        title="Split of the gradient at a fork",
        formula="share = (ss + sb) / (ss + 2 sb + bb),  ss = ⟨g_s, g_s⟩, sb = ⟨g_s, g_b⟩, "
        "bb = ⟨g_b, g_b⟩",
        text="At a join z = s + b of a shortcut s and a residual branch b that left the same "
        "tensor x, ∂L/∂x is taken apart exactly: g_s arrives through the shortcut, g_b through the "
        "branch. Shares of the two add to 1; one can exceed 1 where they cancel.",
        sources=("he2016identity",),
    ),
    needs=("joins",),
    info=shortcut_strip,
    drawing=_strip_figure,
    reads=("step",),
    height=420,
)
SHARES = Panel(
    key="splits_over_time",
    title="Splits over time",
    how_to_read="The shortcut share of each split: above 50 % more gradient arrives through the "
    "shortcut than through the branch; "
    "above 100 % the two cancel in part.",
    needs=("shortcut_share",),
    info=split_series,
    drawing=_split_figure,
    reads=("smooth", "over", "log_x"),
    has_controls=True,
)
STREAM = Panel(
    key="residual_stream",
    title="Residual stream",
    how_to_read="The line is the norm of the stream after each join, the dashes are what each "
    "block writes to it; the marked point is what the final norm reads. Writes of one size that do "
    "not agree let the stream grow by the root of their number; dashes far below the line are "
    "blocks that hardly count.",
    method=Method(
        title="Residual stream",
        formula="z = s + b:  ‖s‖₂, ‖b‖₂, ‖s + b‖₂ and cos(s, b)",
        text="Norms over all elements of what the shortcut s and the residual branch b add at a "
        "join, pooled over the step. With batch normalization at initialization the l-th block "
        "writes ‖b‖ / ‖s‖ = 1/√l.",
        sources=("desmith2020",),
    ),
    needs=("join_output_norm",),
    info=residual_stream,
    drawing=_stream_figure,
    reads=("step",),
)
STREAM_SERIES = Panel(
    key="stream_over_time",
    title="Residual stream over time",
    how_to_read="The norm of the stream after the last join, over the steps; the band reaches from "
    "the smallest to the largest of all joins. Dotted: what a block writes, the median.",
    needs=("join_output_norm",),
    info=stream_series,
    drawing=_stream_series_figure,
    reads=("smooth", "over", "log_x"),
    has_controls=True,
)

"""Draws what the skips do: arcs over the network, shares over time, path lengths, lesions."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyzer.analysis.block_probes import Lesions, PathSpectrum
from analyzer.analysis.numerals import number
from analyzer.analysis.per_run import PerRun
from analyzer.analysis.shortcuts import ShortcutStrip, SplitCurves
from analyzer.figures.arcs import arc_traces
from analyzer.figures.gradients import panes
from analyzer.figures.marks import run_line, translucent
from analyzer.figures.stages import name_ticks, stage_ticks
from analyzer.figures.theme import Theme, labeled

__all__ = ["lesion_figure", "path_figure", "split_figure", "strip_figure"]

_MOST_DOTS, _MOST_NAMES = 150, 24


def strip_figure(info: PerRun[ShortcutStrip], theme: Theme) -> go.Figure:
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
    highest = max([int(level) for row in info.runs for level in row.arcs.levels], default=1)
    for place, row in enumerate(info.runs, start=1):
        _strip(figure, row, place, theme, highest)
    figure.update_yaxes(visible=False, range=[-0.15, 1.1])
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(title={"text": "depth: input → output", "standoff": 6}, row=count, col=1)
    legend = {"title": {"text": "shortcut share  ", "side": "left"}, "entrywidth": 112}
    figure.update_layout(legend=legend | {"x": 0, "y": -0.3 / count, "yanchor": "top"})
    figure.update_layout(margin={"b": 96})
    return figure


def _strip(figure: go.Figure, row: ShortcutStrip, place: int, theme: Theme, highest: int) -> None:
    for trace in arc_traces(row.arcs, theme, highest, {}, in_legend=place == 1):
        figure.add_trace(trace, row=place, col=1)
    color, few = theme.style(row.label.style).color, len(row.positions) <= _MOST_DOTS
    dots = go.Scatter(
        x=row.positions,
        y=np.zeros(len(row.positions)),
        mode="lines+markers" if few else "lines",
        line={"color": theme.faint if few else color, "width": 1.5 if few else 4},
        marker={"color": color, "size": 7},
        text=[labeled(name) for name in row.names],
        hovertemplate="%{text}<br>depth %{x:.0f}<extra></extra>",
        showlegend=False,
    )
    figure.add_trace(dots, row=place, col=1)
    ends = (float(row.positions[0]), float(row.positions[-1])) if len(row.positions) else (0.0, 1.0)
    figure.update_xaxes(row=place, col=1, **stage_ticks(row.stages, ends))


def split_figure(info: PerRun[SplitCurves], theme: Theme) -> go.Figure:
    """Draw the shortcut shares over the steps: the median, and all joins around it."""
    figure = theme.figure(height=400)
    for run in info.runs:
        figure.add_traces(_split_traces(run, theme))
    figure.add_hline(y=0.5, line={"color": theme.faint, "width": 1, "dash": "dot"})
    figure.update_xaxes(title={"text": "step", "standoff": 4})
    figure.update_yaxes(title={"text": "shortcut share"}, tickformat=".0%")
    figure.update_layout(showlegend=True)
    return figure


def _split_traces(run: SplitCurves, theme: Theme) -> list[go.Scatter]:
    color = theme.style(run.label.style).color
    known = np.isfinite(run.low) & np.isfinite(run.high)
    steps = run.steps[known]
    around = go.Scatter(
        x=np.concatenate([steps, steps[::-1]]),
        y=np.concatenate([run.high[known], run.low[known][::-1]]),
        mode="lines",
        fill="toself",
        fillcolor=translucent(color, 0.15),
        line={"width": 0},
        hoverinfo="skip",
        name=f"{labeled(run.label.text)}: all joins",
    )
    single = [
        go.Scatter(
            x=run.steps,
            y=shares,
            mode="lines",
            line={"color": translucent(color, 0.4), "width": 1},
            name=labeled(name),
            hovertemplate="step %{x}: %{y:.0%}",
            showlegend=False,
        )
        for name, shares in zip(run.names, run.shares.T, strict=True)
    ]
    middle = run.median if run.smooth is None else run.smooth
    name = {"name": f"{labeled(run.label.text)}: median"}
    hover = {"hovertemplate": "step %{x}: %{y:.0%}"}
    return [around, *single, run_line(run.label, theme, x=run.steps, y=middle, **name, **hover)]


def path_figure(info: PerRun[PathSpectrum], theme: Theme) -> go.Figure:
    """Draw the share of the gradient by path length, with the share of the paths behind it."""
    figure = panes([run.label.text for run in info.runs], theme, height=420)
    empty: list[int] = []
    in_legend = next((k for k, run in enumerate(info.runs, start=1) if len(run.lengths) > 1), 1)
    for place, run in enumerate(info.runs, start=1):
        axis = "" if place == 1 else str(place)
        where = {"xref": f"x{axis} domain", "yref": f"y{axis} domain"}
        if len(run.lengths) < 2:
            # One bar of 100 % would say nothing, and take the place of those that do.
            figure.add_traces(_path_traces(run, theme), rows=[1, 1], cols=[place, place])
            figure.update_traces(visible=False, row=1, col=place)
            figure.update_xaxes(visible=False, row=1, col=place)
            empty.append(place)
            theme.note(figure, "no joins: a single path carries all of the gradient", **where)
            continue
        for trace in _path_traces(run, theme):
            figure.add_trace(trace.update(showlegend=place == in_legend), row=1, col=place)
        total = number(float(run.num_paths.sum()))
        text = f"effective length {number(run.effective_length)}<br>{total} paths"
        if np.isfinite(run.effective_length):
            line = {"color": theme.mark, "width": 1.5, "dash": "dash"}
            figure.add_vline(x=run.effective_length, line=line, row=1, col=place)
        corner = {"x": 0.98, "y": 0.96, "xanchor": "right", "yanchor": "top", "align": "right"}
        theme.note(figure, text, **where, **corner)
    figure.update_xaxes(title={"text": "length: branches that a path crosses", "standoff": 6})
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", showticklabels=True)
    # By itself the axis would also make room for the bar that is not drawn.
    drawn = [np.append(r.norm_shares, r.path_shares) for r in info.runs if len(r.lengths) > 1]
    shares = np.concatenate(drawn or [np.zeros(0)])
    top = float(shares[np.isfinite(shares)].max(initial=0.0))
    if top > 0:
        figure.update_yaxes(range=[0, 1.08 * top])
    figure.update_yaxes(title={"text": "share"}, row=1, col=in_legend)
    for place in empty:
        figure.update_yaxes(visible=False, row=1, col=place)
    return figure


def _path_traces(run: PathSpectrum, theme: Theme) -> list[Any]:
    """The bars of the gradient and the line of the paths."""
    bars = go.Bar(
        x=run.lengths,
        y=run.norm_shares,
        marker={"color": theme.style(run.label.style).color},
        customdata=np.column_stack([run.norms, run.num_paths]),
        hovertemplate="length %{x}: %{y:.2%} of the gradient"
        "<br>‖G‖ = %{customdata[0]:.3e}, %{customdata[1]:.3e} paths<extra></extra>",
        name="gradient ‖G_k‖",
    )
    paths = go.Scatter(
        x=run.lengths,
        y=run.path_shares,
        mode="lines",
        line={"color": theme.text, "width": 1.5, "dash": "dot"},
        hovertemplate="length %{x}: %{y:.2%} of the paths<extra></extra>",
        name="paths",
    )
    return [bars, paths]


def lesion_figure(info: PerRun[Lesions], theme: Theme) -> go.Figure:
    """Draw how the loss changes without each branch."""
    figure = panes([run.label.text for run in info.runs], theme, height=400)
    for place, run in enumerate(info.runs, start=1):
        finite = np.isfinite(run.changes)
        places = np.arange(len(run.names))
        words = np.array([labeled(name) for name in run.names], object)
        bars = go.Bar(
            x=places[finite],
            y=run.changes[finite],
            text=words[finite],
            textposition="none",
            customdata=run.accuracies[finite],
            marker={"color": theme.style(run.label.style).color},
            hovertemplate="%{text}: %{y:+.4g}<br>accuracy %{customdata:.1%}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(bars, row=1, col=place)
        figure.add_trace(_broken(places[~finite], words[~finite], theme), row=1, col=place)
        figure.update_xaxes(
            row=1, col=place, **name_ticks(run.names, _MOST_NAMES // len(info.runs))
        )
    figure.update_xaxes(title={"text": "join without its branch, input → output", "standoff": 6})
    figure.update_yaxes(title={"text": "change of the loss"}, row=1, col=1)
    return figure


def _broken(places: Any, words: Any, theme: Theme) -> go.Scatter:
    """Marks on the axis for joins without which the loss is not finite."""
    return go.Scatter(
        x=places if len(places) else [None],
        y=np.zeros(len(places)) if len(places) else [None],
        text=words,
        mode="markers",
        marker={"color": theme.mark, "symbol": "x", "size": 9},
        hovertemplate="%{text}: NaN or infinite<extra></extra>",
        showlegend=False,
    )

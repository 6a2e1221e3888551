"""Draws Jacobian spectra per block, and the correlation of gradients against its references."""

import math

import plotly.graph_objects as go

from analyzer.analysis.block_probes import BlockSpectra, Shattering
from analyzer.analysis.per_run import PerRun
from analyzer.figures.gradients import panes, value_axis
from analyzer.figures.marks import edge_marks, run_line
from analyzer.figures.stages import name_ticks
from analyzer.figures.theme import Theme, labeled

__all__ = ["jacobian_figure", "shattering_figure"]

_MOST_NAMES = 20
_REFERENCE_DASHES = ("solid", "dash", "dot")


def jacobian_figure(info: BlockSpectra, theme: Theme) -> go.Figure:
    """Draw every singular value of every block; 1 is a block that passes gradients unchanged."""
    figure = panes([run.label.text for run in info.runs], theme, height=420)
    axis = value_axis("singular value", is_log=True, low=info.low, high=info.high)
    edges = axis.get("range", [-1.0, 1.0])
    bounds = (10.0 ** edges[0], 10.0 ** edges[1])
    for place, run in enumerate(info.runs, start=1):
        style = theme.style(run.label.style)
        points = go.Scatter(
            x=run.blocks,
            y=run.values,
            mode="markers",
            marker={
                "color": style.color,
                "symbol": "line-ew-open",
                "size": 13,
                "line": {"width": 2},
            },
            text=[labeled(run.names[block]) for block in run.blocks],
            customdata=run.orders,
            hovertemplate="%{text}, value %{customdata}: %{y:.3e}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(points, row=1, col=place)
        marks = edge_marks(run.blocks, run.values, bounds, theme, is_log=True)
        figure.add_trace(marks, row=1, col=place)
        ticks = name_ticks(run.names, _MOST_NAMES // len(info.runs))
        figure.update_xaxes(row=1, col=place, **ticks)
    figure.add_hline(y=1, line={"color": theme.text, "width": 1, "dash": "dot"})
    figure.update_yaxes(**{key: value for key, value in axis.items() if key != "title"})
    figure.update_yaxes(title=axis["title"], row=1, col=1)
    figure.update_layout(margin={"b": 110})
    return figure


def shattering_figure(info: PerRun[Shattering], theme: Theme) -> go.Figure:
    """Draw the correlation along depth, a pane per run, with the curves of theory behind it."""
    figure = panes([curve.label.text for curve in info.runs], theme, height=420)
    for place, curve in enumerate(info.runs, start=1):
        for dash, (name, values) in zip(_REFERENCE_DASHES, curve.references.items(), strict=False):
            reference = go.Scatter(
                x=curve.positions,
                y=values,
                mode="lines",
                line={"color": theme.faint, "width": 1.5, "dash": dash},
                name=name,
                legendgroup=name,
                showlegend=place == 1,
                hovertemplate="%{y:.3f}",
            )
            figure.add_trace(reference, row=1, col=place)
        names = [labeled(name) for name in curve.names]
        hover = {"text": names, "hovertemplate": "%{text}: %{y:.3f}<extra></extra>"}
        line = run_line(curve.label, theme, x=curve.positions, y=curve.correlations, **hover)
        figure.add_trace(line, row=1, col=place)
        top = edge_marks(curve.positions, curve.correlations, (0.0, 1.0), theme, is_log=False)
        figure.add_trace(top, row=1, col=place)
    figure.update_xaxes(title={"text": "depth: input → output", "standoff": 6})
    low = min([0.0, *[float(v) for c in info.runs for v in c.correlations if math.isfinite(v)]])
    figure.update_yaxes(range=[low - 0.05, 1.05])
    figure.update_yaxes(title={"text": "correlation (mean cosine)"}, row=1, col=1)
    return figure

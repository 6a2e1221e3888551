"""Draws activations along depth, dead units, and the attribution of layers."""

import numpy as np
import plotly.graph_objects as go

from analyzer.analysis.activations import ActivationProfile, AttributionShares, DeadUnitProfile
from analyzer.analysis.per_run import PerRun
from analyzer.figures.gradients import depth_colors, panes, row_ticks
from analyzer.figures.marks import run_line, translucent
from analyzer.figures.theme import Theme, labeled

__all__ = ["activation_figure", "attribution_figure", "dead_unit_figure"]

_DASHES = ("dot", "dash", "dashdot", "longdash", "longdashdot", "solid")


def activation_figure(info: PerRun[ActivationProfile], theme: Theme) -> go.Figure:
    """Draw the mean of the activations with one standard deviation around it, a pane per run."""
    figure = panes([profile.label.text for profile in info.runs], theme, height=400)
    for place, profile in enumerate(info.runs, start=1):
        color = theme.style(profile.label.style).color
        known = np.isfinite(profile.means) & np.isfinite(profile.stds)
        x, mean, std = (a[known] for a in (profile.positions, profile.means, profile.stds))
        around = go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([mean + std, (mean - std)[::-1]]),
            mode="lines",
            fill="toself",
            fillcolor=translucent(color, 0.2),
            line={"width": 0},
            hoverinfo="skip",
            name="± one standard deviation",
            showlegend=False,
        )
        names = [labeled(name) for name in profile.names]
        hover = {
            "text": names,
            "customdata": profile.stds,
            "hovertemplate": "%{text}: %{y:.4g} ± %{customdata:.4g}<extra></extra>",
        }
        line = run_line(profile.label, theme, x=profile.positions, y=profile.means, **hover)
        figure.add_traces([around, line], rows=[1, 1], cols=[place, place])
        broken = profile.positions[~known]
        figure.add_trace(_marks(broken, np.array(names, object)[~known], theme), row=1, col=place)
    figure.update_xaxes(title={"text": "depth: input → output", "standoff": 6})
    figure.update_yaxes(title={"text": "activation, mean ± std"}, row=1, col=1)
    figure.update_layout(showlegend=False)
    return figure


def _marks(places: np.ndarray, names: np.ndarray, theme: Theme) -> go.Scatter:
    """Marks at zero for layers whose activation is not finite, or not known."""
    return go.Scatter(
        x=places if len(places) else [None],
        y=np.zeros(len(places)) if len(places) else [None],
        text=names,
        mode="markers",
        marker={"color": theme.mark, "symbol": "x", "size": 9},
        hovertemplate="%{text}: not finite<extra></extra>",
    )


def dead_unit_figure(info: PerRun[DeadUnitProfile], theme: Theme) -> go.Figure:
    """Draw the share of dead units along depth."""
    figure = theme.figure(height=360)
    for profile in info.runs:
        hover = {
            "text": [labeled(name) for name in profile.names],
            "customdata": profile.counts,
            "hovertemplate": "%{text}: %{y:.1%} (%{customdata} units)",
        }
        line = {"x": profile.positions, "y": profile.shares}
        figure.add_trace(run_line(profile.label, theme, **line, **hover))
    figure.update_xaxes(title={"text": "depth: input → output", "standoff": 6})
    figure.update_yaxes(title={"text": "dead units"}, tickformat=".0%", range=[-0.02, 1.02])
    figure.update_layout(showlegend=True)
    return figure


def attribution_figure(info: PerRun[AttributionShares], theme: Theme) -> go.Figure:
    """Draw the share of each layer, a line per checkpoint, a pane per run."""
    figure = panes([run.label.text for run in info.runs], theme, height=440)
    for place, run in enumerate(info.runs, start=1):
        colors = depth_colors(len(run.steps), theme)
        names = [labeled(name) for name in run.names]
        for k, step in enumerate(run.steps):
            line = go.Scatter(
                x=np.arange(len(names)),
                y=run.shares[k],
                mode="lines+markers" if len(names) <= 60 else "lines",
                line={"color": colors[k], "dash": _DASHES[-len(run.steps) :][k], "width": 2},
                text=names,
                name=f"step {step}",
                legendgroup=f"step {step}",
                showlegend=place == 1,
                hovertemplate="%{text}: %{y:.1%}",
            )
            figure.add_trace(line, row=1, col=place)
        figure.update_xaxes(row=1, col=place, tickangle=-40, **row_ticks(run.names))
    figure.update_yaxes(title={"text": "share of the attribution"}, row=1, col=1)
    figure.update_yaxes(tickformat=".1~%")
    figure.update_layout(margin={"b": 150}, legend={"y": 1.1, "yanchor": "bottom"})
    return figure

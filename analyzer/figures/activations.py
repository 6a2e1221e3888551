"""Activations along depth, and dead units."""

from functools import partial

import numpy as np
import plotly.graph_objects as go

from analyzer.analysis.per_run import AlongDepth, PerRun
from analyzer.analysis.profiles import (
    activation_profiles,
    dead_unit_profiles,
)
from analyzer.figures.axes import DEPTH, panes
from analyzer.figures.marks import run_line, translucent, zero_marks
from analyzer.figures.panels import Panel
from analyzer.figures.theme import Theme, labeled
from analyzer.vocabulary.methods import Method

__all__ = ["DEAD_UNITS", "PROFILE", "activation_figure", "dead_unit_figure"]


def activation_figure(info: PerRun[AlongDepth], theme: Theme) -> go.Figure:
    """Draw the mean of the activations with one standard deviation around it, a pane per run."""
    figure = panes([profile.label.text for profile in info.runs], theme, height=400)
    for place, profile in enumerate(info.runs, start=1):
        color = theme.style(profile.label.style).color
        means, stds = (profile.values[f"activation_{what}"] for what in ("mean", "std"))
        known = np.isfinite(means) & np.isfinite(stds)
        x, mean, std = (a[known] for a in (profile.positions, means, stds))
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
            "customdata": stds,
            "hovertemplate": "%{text}: %{y:.4g} ± %{customdata:.4g}<extra></extra>",
        }
        line = run_line(profile.label, theme, x=profile.positions, y=means, **hover)
        figure.add_traces([around, line], rows=[1, 1], cols=[place, place])
        broken = profile.positions[~known]
        figure.add_trace(
            zero_marks(broken, np.array(names, object)[~known], theme), row=1, col=place
        )
    figure.update_xaxes(**DEPTH)
    figure.update_yaxes(title={"text": "activation, mean ± std"}, row=1, col=1)
    figure.update_layout(showlegend=False)
    return figure


def dead_unit_figure(info: PerRun[AlongDepth], theme: Theme) -> go.Figure:
    """Draw the share of dead units along depth."""
    figure = theme.figure(height=360)
    for profile in info.runs:
        hover = {
            "text": [labeled(name) for name in profile.names],
            "customdata": profile.values["num_dead"],
            "hovertemplate": "%{text}: %{y:.1%} (%{customdata} units)",
        }
        line = {"x": profile.positions, "y": profile.values["dead_share"]}
        figure.add_trace(run_line(profile.label, theme, **line, **hover))
    figure.update_xaxes(**DEPTH)
    figure.update_yaxes(title={"text": "dead units"}, tickformat=".0%", range=[-0.02, 1.02])
    figure.update_layout(showlegend=True)
    return figure


_panel = partial(Panel, reads=("step", "layers"), has_controls=True)
PROFILE = _panel(
    key="activation_profile",
    title="Activations along depth",
    how_to_read="Mean with one standard deviation around it. A spread that shrinks to nothing or "
    "grows without end along depth is an initialization that does not fit the net.",
    needs=("activation_mean", "activation_std"),
    info=activation_profiles,
    drawing=activation_figure,
)
DEAD_UNITS = _panel(
    key="dead_units",
    title="Dead units",
    how_to_read="Units that are zero for every sample of the step. They get no gradient and rarely "
    "recover.",
    method=Method(
        title="Dead units",
        text="Units (channels of a convolution, features of a linear layer) whose activation is "
        "exactly zero for every sample of the step.",
    ),
    needs=("activation_num_dead",),
    info=dead_unit_profiles,
    drawing=dead_unit_figure,
)

"""Probes of blocks, joins and layers: paths, lesions, Jacobian spectra, shattering, attribution."""

import math
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analyzer.analysis.layer_probes import (
    COUNTERFACTUALS,
    AttributionShares,
    BlockSpectra,
    attribution_shares,
    block_spectra,
    counterfactual_curves,
    forward_correlations,
    probe_by_layer,
    shattering_curves,
)
from analyzer.analysis.network_probes import PathSpectrum, join_lesions, path_lengths
from analyzer.analysis.numerals import number
from analyzer.analysis.per_run import AlongDepth, PerRun, shown_range
from analyzer.figures.axes import DEPTH, name_ticks, panes, row_ticks, value_axis
from analyzer.figures.marks import depth_lines, edge_marks, filled
from analyzer.figures.panels import Panel
from analyzer.figures.sketch import Sketch, merged
from analyzer.figures.theme import Theme, labeled
from analyzer.vocabulary import Quantity
from analyzer.vocabulary.probes import Probe

__all__ = [
    "ATTRIBUTION",
    "COUNTERFACTUAL",
    "FORWARD_CORRELATION",
    "JACOBIAN",
    "LESION",
    "PATHS",
    "SHATTERING",
    "layer_panels",
    "path_figure",
]

_MOST_JOINS, _MOST_BLOCKS = 24, 20
_EFFECTIVE = "effective length"
_DASHES = ("dot", "dash", "dashdot", "longdash", "longdashdot", "solid")
_REFERENCE_DASHES = ("solid", "dash", "dot")


def path_figure(info: PerRun[PathSpectrum], theme: Theme) -> go.Figure:
    """Draw the share of the gradient by path length, with the share of the paths behind it."""
    runs = [run for run in info.runs if len(run.lengths) > 1] or info.runs
    figure = panes([run.label for run in runs], theme, height=420)
    top = 0.0
    for place, run in enumerate(runs, start=1):
        for trace in _path_traces(run, theme):
            figure.add_trace(trace.update(showlegend=place == 1), row=1, col=place)
        if len(run.lengths) < 2:
            # One bar of 100 % would say nothing.
            axis = "" if place == 1 else str(place)
            where = {"xref": f"x{axis} domain", "yref": f"y{axis} domain"}
            figure.update_traces(visible=False, row=1, col=place)
            figure.update_xaxes(visible=False, row=1, col=place)
            theme.note(figure, "no joins: a single path carries all of the gradient", **where)
            continue
        shares = np.append(run.norm_shares, run.path_shares)
        top = max(top, float(shares[np.isfinite(shares)].max(initial=0.0)))
    figure.update_xaxes(title={"text": "length: branches that a path crosses", "standoff": 6})
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", showticklabels=True, visible=top > 0)
    if top > 0:
        # The lines of the effective lengths are as high as the panes.
        figure.update_yaxes(range=[0, 1.08 * top])
        figure.update_traces(y=[0, 1.08 * top], selector={"name": _EFFECTIVE})
    figure.update_yaxes(title={"text": "share"}, row=1, col=1)
    return figure


def _path_traces(run: PathSpectrum, theme: Theme) -> list[Any]:
    """The bars of the gradient, the line of the paths and that of the effective length."""
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
    if not np.isfinite(run.effective_length):
        return [bars, paths]
    length = number(run.effective_length)
    effective = go.Scatter(
        x=[run.effective_length] * 2,
        y=[0, 0],
        mode="lines",
        line={"color": theme.mark, "width": 1.5, "dash": "dash"},
        hovertemplate=f"effective length {length}<extra></extra>",
        name=_EFFECTIVE,
    )
    return [bars, paths, effective]


def _lesion_figure(info: PerRun[AlongDepth], theme: Theme) -> go.Figure:
    """Draw how the loss changes without each branch."""
    figure = panes([run.label for run in info.runs], theme, height=400)
    for place, run in enumerate(info.runs, start=1):
        changes = run.values["loss_change"]
        finite = np.isfinite(changes)
        places = np.arange(len(run.names))
        words = np.array([labeled(name) for name in run.names], object)
        bars = go.Bar(
            x=places[finite],
            y=changes[finite],
            text=words[finite],
            textposition="none",
            customdata=np.column_stack(
                [run.values[key][finite] for key in ("accuracy", "shortcut_loss_change")]
            ),
            marker={"color": theme.style(run.label.style).color},
            hovertemplate="%{text}: %{y:+.4g}<br>accuracy %{customdata[0]:.1%}"
            "<br>without its shortcut instead %{customdata[1]:+.4g}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(bars, row=1, col=place)
        marks = edge_marks(places, changes, theme, is_log=False, names=words)
        figure.add_trace(marks, row=1, col=place)
        figure.update_xaxes(
            row=1, col=place, **name_ticks(run.names, _MOST_JOINS // len(info.runs))
        )
    figure.update_xaxes(title={"text": "join without its branch, input → output", "standoff": 6})
    figure.update_yaxes(title={"text": "change of the loss"}, row=1, col=1)
    return figure


def _jacobian_figure(info: BlockSpectra, theme: Theme) -> go.Figure:
    """Draw every singular value of every block; 1 is a block that passes gradients unchanged."""
    figure = panes([run.label for run in info.runs], theme, height=420)
    axis = value_axis("singular value", is_log=True, low=info.low, high=info.high)
    dashes = {"symbol": "line-ew-open", "size": 13, "line": {"width": 2}}
    for place, run in enumerate(info.runs, start=1):
        points = go.Scatter(
            x=run.blocks,
            y=run.values,
            mode="markers",
            marker=dashes | {"color": theme.style(run.label.style).color},
            text=[labeled(run.names[block]) for block in run.blocks],
            customdata=np.column_stack([run.orders, run.lows, run.highs]),
            error_y={
                "array": np.nan_to_num(run.highs - run.values),
                "arrayminus": np.nan_to_num(run.values - run.lows),
                "symmetric": False,
                "thickness": 1,
                "width": 0,
            },
            hovertemplate="%{text}, value %{customdata[0]}: %{y:.3e}"
            "<br>quartiles %{customdata[1]:.3e} to %{customdata[2]:.3e}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(points, row=1, col=place)
        names = [labeled(run.names[block]) for block in run.blocks]
        marks = edge_marks(run.blocks, run.values, theme, is_log=True, names=names)
        figure.add_trace(marks, row=1, col=place)
        ticks = name_ticks(run.names, _MOST_BLOCKS // len(info.runs))
        figure.update_xaxes(row=1, col=place, **ticks)
    figure.add_hline(y=1, line={"color": theme.text, "width": 1, "dash": "dot"})
    figure.update_yaxes(**{key: value for key, value in axis.items() if key != "title"})
    figure.update_yaxes(title=axis["title"], row=1, col=1)
    figure.update_layout(margin={"b": 110})
    return figure


def _correlation_figure(info: PerRun[AlongDepth], theme: Theme) -> go.Figure:
    """Draw a correlation and its interval along depth, a pane per run, before curves of theory."""
    figure = panes([curve.label for curve in info.runs], theme, height=420)
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
        hover = {"hovertemplate": "%{text}: %{y:.3f}<extra></extra>"}
        line = depth_lines(curve, "correlation", theme, is_log=False, **hover)
        low, high = (curve.values[f"correlation_{end}"] for end in ("low", "high"))
        color = theme.style(curve.label.style).color
        band = filled(curve.positions, low, high, color, 0.2, showlegend=False)
        figure.add_traces([band, *line], rows=[1] * 3, cols=[place] * 3)
    figure.update_xaxes(**DEPTH)
    lowest, _ = shown_range((c.values["correlation"] for c in info.runs), is_log=False)
    bottom = min(0.0, lowest) if math.isfinite(lowest) else 0.0
    figure.update_yaxes(range=[bottom - 0.05, 1.05])
    figure.update_yaxes(title={"text": "correlation (mean cosine)"}, row=1, col=1)
    return figure


def _counterfactual_figure(info: PerRun[AlongDepth], theme: Theme) -> go.Figure:
    """Draw the gradient along depth with the shortcuts scaled, a pane per run."""
    figure = panes([run.label for run in info.runs], theme, height=420)
    low, high = shown_range((v for run in info.runs for v in run.values.values()), is_log=True)
    axis = value_axis("output gradient norm (loss / unit of y)", is_log=True, low=low, high=high)
    colors = theme.depth_colors(len(COUNTERFACTUALS))
    for place, run in enumerate(info.runs, start=1):
        for color, dash, (word, norms) in zip(
            colors, ("solid", *_DASHES), run.values.items(), strict=False
        ):
            line = go.Scatter(
                x=run.positions,
                y=norms,
                mode="lines",
                line={"color": color, "width": 2, "dash": dash},
                text=[labeled(name) for name in run.names],
                name=word,
                legendgroup=word,
                showlegend=place == 1,
                hovertemplate="%{text}: %{y:.3e}",
            )
            marks = edge_marks(run.positions, norms, theme, is_log=True, names=line.text)
            figure.add_traces([line, go.Scatter(marks)], rows=[1, 1], cols=[place, place])
    figure.update_xaxes(**DEPTH)
    figure.update_yaxes(**{key: value for key, value in axis.items() if key != "title"})
    figure.update_yaxes(title=axis["title"], row=1, col=1)
    return figure


def _attribution_figure(info: PerRun[AttributionShares], theme: Theme) -> go.Figure:
    """Draw the share of each layer, a line per checkpoint, a pane per run."""
    figure = panes([run.label for run in info.runs], theme, height=440)
    for place, run in enumerate(info.runs, start=1):
        colors = theme.depth_colors(len(run.steps))
        names = [labeled(name) for name in run.names]
        for k, step in enumerate(run.steps):
            line = go.Scatter(
                x=np.arange(len(names)),
                y=run.shares[k],
                mode="lines+markers" if len(names) <= 60 else "lines",
                line={"color": colors[k], "dash": _DASHES[-len(run.steps) :][k], "width": 2},
                text=names,
                name=run.label.moment(int(step)),
                legendgroup=run.label.moment(int(step)),
                showlegend=place == 1,
                hovertemplate="%{text}: %{y:.1%}",
            )
            figure.add_trace(line, row=1, col=place)
        figure.update_xaxes(row=1, col=place, tickangle=-40, **row_ticks(run.names))
    figure.update_yaxes(title={"text": "share of the attribution"}, row=1, col=1)
    figure.update_yaxes(tickformat=".1~%")
    figure.update_layout(margin={"b": 150}, legend={"y": 1.1, "yanchor": "bottom"})
    return figure


PATHS = Panel(
    key="path_spectrum",
    title="Path lengths",
    how_to_read="Bars: the share of the gradient on paths that cross that many branches; dotted: "
    "the share of the paths themselves. Bars far left of the dots say that short paths train "
    "the net.",
    needs=("paths",),
    info=path_lengths,
    drawing=path_figure,
    reads=("step",),
)
LESION = Panel(
    key="lesion",
    title="Lesions",
    how_to_read="The change of the loss when one branch is removed. Small bars say that no single "
    "branch matters; a tall one is a block that the net depends on.",
    needs=("lesion",),
    info=join_lesions,
    drawing=_lesion_figure,
    reads=("step",),
)
COUNTERFACTUAL = Panel(
    key="counterfactual",
    title="Without its shortcuts",
    how_to_read="The gradient of one network at the same weights: as it is, with every shortcut "
    "halved, and without shortcuts. What lies between the lines is the shortcuts' doing. Rescaled: "
    "each branch has the scale of its sum, so that activations do not shrink with the shortcuts.",
    needs=("counterfactual",),
    info=counterfactual_curves,
    drawing=_counterfactual_figure,
    reads=("step", "layers"),
)
JACOBIAN = Panel(
    key="jacobian",
    title="Jacobian spectrum",
    how_to_read="Singular values of each block, output over input: median over samples, thin lines "
    "from quartile to quartile. At 1 a block passes gradients on unchanged; a wide spread of the "
    "values is bad conditioning.",
    needs=("jacobian",),
    info=block_spectra,
    drawing=_jacobian_figure,
    reads=("step",),
)
SHATTERING = Panel(
    key="shattering",
    title="Shattering",
    how_to_read="How much the gradients of different inputs agree. A fall toward the input is a "
    "shattered gradient, close to white noise; the gray curves are the theory for idealized nets. "
    "The band is the 95 % interval over the inputs.",
    needs=("shattering",),
    info=shattering_curves,
    drawing=_correlation_figure,
    reads=("step", "layers"),
)
FORWARD_CORRELATION = Panel(
    key="forward_correlation",
    title="Forward correlation",
    how_to_read="How much the activations of different inputs agree. Near 1 deep inside, the net "
    "maps all inputs to one direction: it tells them apart no more, and the agreement of their "
    "gradients means nothing. The gray curve is a plain ReLU net of infinite width.",
    needs=("forward_correlation",),
    info=forward_correlations,
    drawing=_correlation_figure,
    reads=("step", "layers"),
)
ATTRIBUTION = Panel(
    key="attribution_shares",
    title="Attribution by layer",
    how_to_read="How much of the output goes through each layer, a line per checkpoint. Lines that "
    "move show where the net began to use a layer.",
    needs=("attribution",),
    info=attribution_shares,
    drawing=_attribution_figure,
    reads=("layers",),
)


def _layer_figure(info: PerRun[AlongDepth], theme: Theme, row: Quantity) -> Sketch:
    """Draw one number of every layer or block along depth, a line per run."""
    is_log = row.scale == "log"
    low, high = shown_range((run.values[row.key] for run in info.runs), is_log=is_log)
    title = row.label if row.unit in ("", "1") else f"{row.label} ({row.unit})"
    axis = value_axis(title, is_log=is_log, low=low, high=high)
    hover = {"hovertemplate": "%{text}: %{y:.4g}"}
    traces = [
        trace
        for run in info.runs
        for trace in depth_lines(run, row.key, theme, is_log=is_log, **hover)
    ]
    more = {"xaxis": DEPTH, "yaxis": axis, "showlegend": True}
    return Sketch(traces, merged(theme.layout(400), more))


def layer_panels(probes: Iterable[Probe], drawn: Collection[str]) -> tuple[Panel, ...]:
    """Return a panel for each probe with one number a layer, or a block, that is not ``drawn``."""
    panels = []
    for probe in probes:
        numbers = [row for row in probe.columns if row.type.startswith("float")]
        places = {row.key for row in probe.columns} - {row.key for row in numbers}
        if probe.name in drawn or len(numbers) != 1 or not places <= {"layer", "name"}:
            continue
        panels.append(
            Panel(
                key=probe.name,
                title=probe.name.replace("_", " ").capitalize(),
                how_to_read=f"{probe.sentence} {numbers[0].description}",
                needs=(probe.name,),
                info=probe_by_layer(probe.name, numbers[0].key),
                drawing=partial(_layer_figure, row=numbers[0]),
                reads=("step", "layers"),
                has_controls=True,
            )
        )
    return tuple(panels)

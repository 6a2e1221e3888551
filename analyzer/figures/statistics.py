"""What is recorded of every step: by layer, along depth, over the steps, and as differences."""

import math
from functools import partial

import numpy as np
import plotly.graph_objects as go

from analyzer.analysis.flow_grid import (
    FlowGrid,
    GridDifference,
    flow_grid,
    grid_difference,
    update_grid,
)
from analyzer.analysis.per_run import AlongDepth, PerRun, shown_range
from analyzer.analysis.profiles import (
    LayerSeries,
    ProfileCurves,
    activation_profiles,
    dead_unit_profiles,
    layer_series,
    profile_curves,
    profile_overlay,
)
from analyzer.figures.axes import (
    DEPTH,
    STEP,
    along_axis,
    depth_ticks,
    layout_name,
    many_entries,
    pane_axes,
    pane_layout,
    panes,
    value_axis,
)
from analyzer.figures.marks import (
    band_traces,
    color_bar,
    depth_lines,
    edge_marks,
    filled,
    grid_traces,
    mark_legend,
    mark_planes,
    placed,
    run_line,
    step_range,
)
from analyzer.figures.panels import MANY_RUNS, Panel
from analyzer.figures.sketch import Layout, Sketch, Trace, axes_of, merged, scatter
from analyzer.figures.theme import Theme, labeled
from analyzer.vocabulary.methods import Method

__all__ = [
    "ACTIVATIONS",
    "DEAD_UNITS",
    "DIFFERENCE",
    "HEATMAP",
    "OVERLAY",
    "PROFILE",
    "SERIES",
    "UPDATES",
    "grid_sketch",
]

# An axis that a healthy net fills would make it look like a vanishing one.
_LEAST_DECADES = 3.0
_GRID_HEIGHT = 460
_STEPS = {"tickformat": ",d"}


def grid_sketch(info: FlowGrid, theme: Theme) -> Sketch:
    """Draw layer × step, input at the left, steps upward, in one color range for all runs."""
    columns = info.runs
    layout = pane_layout([c.label for c in columns], theme, height=_GRID_HEIGHT)
    layout = axes_of(layout, "x", DEPTH | {"showgrid": False})
    # Matched axes that find their own range find a wrong one over heatmaps (plotly.js 4.1).
    layout = axes_of(layout, "y", {"showgrid": False, "range": step_range(columns)} | _STEPS)
    traces: list[Trace] = []
    for place, column in enumerate(columns, start=1):
        axes = pane_axes(place)
        colored = axes | {"coloraxis": "coloraxis"}
        traces += grid_traces(column, theme, is_log=info.is_log, axes=colored)
        ticks = depth_ticks(column.names, column.positions, len(columns))
        layout = merged(layout, {layout_name(axes["xaxis"]): ticks})
    layout = merged(layout, {"yaxis": along_axis(info.over, is_log=info.is_log_x)})
    entries = mark_legend([column.marks for column in columns], theme, is_log=info.is_log)
    bar = color_bar(info.label, info.low, info.high, is_log=info.is_log)
    colors = {"colorscale": theme.colorscale, "cmin": info.low, "cmax": info.high, "colorbar": bar}
    slanted = any(layout[name].get("tickangle") for name in layout if name.startswith("xaxis"))
    more = _legend_below(entries, 100 if slanted else 56) | {"coloraxis": colors}
    return Sketch([*traces, *entries], merged(layout, more))


def _legend_below(entries: list[Trace], room: int) -> Layout:
    """The legend of cells that have no color, below the names of the layers with their ``room``."""
    if not entries:
        return {"margin": {"b": room}}
    place = {"yref": "container", "y": 0.0, "yanchor": "bottom"}
    return {"legend": place, "showlegend": True, "margin": {"b": room + 36}}


def _profile_sketch(info: ProfileCurves, theme: Theme) -> Sketch:
    """Draw the profiles of all runs over depth."""
    every = (curve.values[name] for curve in info.runs for name in curve.values)
    low, high = shown_range(every, is_log=info.is_log)
    if math.isnan(low):
        # Where nothing has a place, the rugs of NaN and of zero still need a plot.
        low, high = 0.1, 1.0
    axis = value_axis(
        info.label, is_log=info.is_log, low=low, high=high, least_decades=_LEAST_DECADES
    )
    traces: list[Trace] = []
    for curve in info.runs:
        if "min" in curve.values:
            least, most = (placed(curve.values[name], info.is_log) for name in ("min", "max"))
            color = theme.style(curve.label.style).color
            area = filled(curve.positions, least, most, color, 0.18, showlegend=False)
            traces.append(area)
        traces += depth_lines(curve, info.quantity, theme, is_log=info.is_log)
        if "fit" in curve.references:
            look = {"color": theme.style(curve.label.style).color, "width": 1, "dash": "dash"}
            said = {"name": f"{labeled(curve.label.text)}: fit", "hovertemplate": "%{y:.3e}"}
            more = {"mode": "lines", "line": look, "showlegend": False}
            place = {"x": curve.positions, "y": placed(curve.references["fit"], info.is_log)}
            traces.append(scatter(place, said, more))
    relative = {"title": {"text": "relative depth: first layer → last layer", "standoff": 6}}
    axes = {"xaxis": relative if info.is_relative_depth else DEPTH, "yaxis": axis}
    more = {"showlegend": True} | many_entries(len(info.runs), 400)
    return Sketch(traces, merged(theme.layout(400), axes | more))


def _series_sketch(info: LayerSeries, theme: Theme) -> Sketch:
    """Draw the series of chosen layers, a pane per run; colors run from input to output."""
    layout = pane_layout([run.label for run in info.runs], theme, height=460)
    axis = value_axis(
        info.label, is_log=info.is_log, low=info.low, high=info.high, least_decades=_LEAST_DECADES
    )
    title = {"title": axis.pop("title")}
    layout = axes_of(layout, "x", along_axis(info.over, is_log=info.is_log_x))
    layout = merged(axes_of(layout, "y", axis), {"yaxis": title, "margin": {"b": 170}})
    traces: list[Trace] = []
    for place, run in enumerate(info.runs, start=1):
        number = "" if place == 1 else str(place)
        look: Layout = pane_axes(place) | {"legend": f"legend{number}"}
        colors = theme.depth_colors(len(run.names))
        for name, band, color in zip(run.names, run.bands, colors, strict=True):
            traces += band_traces(
                band, run.label, theme, name=name, color=color, is_log=info.is_log, **look
            )
        left = layout[f"xaxis{number}"]["domain"][0]
        place_of = {"orientation": "v", "x": left, "y": -0.2, "yanchor": "top", "xanchor": "left"}
        layout = layout | {f"legend{number}": place_of}
    return Sketch(traces, layout)


def _difference_sketch(info: GridDifference, theme: Theme) -> Sketch:
    """Draw where a run has more than the other, in the color of that run."""
    shown = "%{customdata:.3g} times" if info.is_log else "%{z:.4g}"
    place = {"type": "heatmap", "x": info.positions, "y": info.steps, "hoverongaps": False}
    hover = "relative depth %{x:.2f}<br>step %{y:,d}"
    heat = place | {
        "z": info.values.T.astype(np.float32),
        "coloraxis": "coloraxis",
        "hovertemplate": f"{hover}: {shown}<extra></extra>",
    }
    if info.is_log:
        with np.errstate(over="ignore", under="ignore"):
            heat["customdata"] = np.power(10.0, info.values.T)
    first, second = info.runs
    ends = [labeled(label.text, 24) for label in (second, first)]
    title = f"{ends[0]} / {ends[1]}" if info.is_log else f"{ends[0]} − {ends[1]}"
    bar = color_bar(title, -info.reach, info.reach, is_log=info.is_log)
    colors = {"cmin": -info.reach, "cmax": info.reach, "colorbar": bar}
    scale = theme.between(first.style, second.style)
    entries = mark_legend([info.marks], theme, is_log=info.is_log)
    depth = "relative depth: input 0 → output 1"
    more = _legend_below(entries, 56) | {
        "coloraxis": {"colorscale": scale} | colors,
        "xaxis": {"title": {"text": depth, "standoff": 6}, "showgrid": False},
        "yaxis": STEP | _STEPS | {"showgrid": False},
    }
    planes = mark_planes(info.marks, place, theme, is_log=info.is_log, hover=hover)
    return Sketch([heat, *planes, *entries], merged(theme.layout(400), more))


def _activation_figure(info: PerRun[AlongDepth], theme: Theme) -> go.Figure:
    """Draw the mean of the activations with one standard deviation around it, a pane per run."""
    figure = panes([profile.label for profile in info.runs], theme, height=400)
    for place, profile in enumerate(info.runs, start=1):
        color = theme.style(profile.label.style).color
        means, stds = (profile.values[f"activation_{what}"] for what in ("mean", "std"))
        words = {"name": "± one standard deviation", "showlegend": False}
        around = filled(profile.positions, means - stds, means + stds, color, 0.2, **words)
        names = np.array([labeled(name) for name in profile.names], object)
        line = run_line(
            profile.label,
            theme,
            x=profile.positions,
            y=means,
            text=names.tolist(),
            customdata=stds,
            hovertemplate="%{text}: %{y:.4g} ± %{customdata:.4g}<extra></extra>",
        )
        broken = ~(np.isfinite(means) & np.isfinite(stds))
        lost = np.where(broken, np.nan, 0.0)
        marks = edge_marks(profile.positions, lost, theme, is_log=False, names=names)
        figure.add_traces([around, line, marks], rows=[1] * 3, cols=[place] * 3)
    figure.update_xaxes(**DEPTH)
    figure.update_yaxes(title={"text": "activation, mean ± std"}, row=1, col=1)
    figure.update_layout(showlegend=False)
    return figure


def _dead_unit_figure(info: PerRun[AlongDepth], theme: Theme) -> go.Figure:
    """Draw the share of dead units along depth."""
    figure = theme.figure(height=360)
    for profile in info.runs:
        line = run_line(
            profile.label,
            theme,
            x=profile.positions,
            y=profile.values["dead_share"],
            text=[labeled(name) for name in profile.names],
            customdata=profile.values["num_dead"],
            hovertemplate="%{text}: %{y:.1%} (%{customdata} units)",
        )
        figure.add_trace(line)
    figure.update_xaxes(**DEPTH)
    figure.update_yaxes(title={"text": "dead units"}, tickformat=".0%", range=[-0.02, 1.02])
    figure.update_layout(showlegend=True)
    return figure


_by_layer = partial(Panel, needs=("output_gradient_norm",), has_controls=True)
HEATMAP = _by_layer(
    key="gradient_heatmap",
    title="Layer × step",
    how_to_read="Each column is a layer, input at the left; steps go up; all runs share one color "
    "range, of six decades at least. A steady fade toward the input is a vanishing gradient, a "
    "horizontal edge is an event in the training.",
    method=Method(
        title="Output gradient",
        formula="‖∂L/∂y‖₂ = √(Σ (∂L/∂yᵢ)²)",
        text="Gradient of the loss, as the training script computes it, with respect to the output "
        "y of a layer; its L2 norm over all elements of the pooled step, accumulated so that "
        "nothing under- or overflows. Non-finite values are kept and shown.",
    ),
    info=flow_grid,
    drawing=grid_sketch,
    reads=("quantity", "layers", "aggregate", "relative", "over", "log_x"),
)
PROFILE = _by_layer(
    key="depth_profile",
    title="Depth profile",
    how_to_read="One step along depth. A flat line passes the gradient on; a slope is a gain per "
    "layer, below 1 where it falls toward the input. Thin and dashed: the fit that the gain is of.",
    method=Method(
        title="Gain",
        formula="gain = exp(−slope of ln ‖∂L/∂y‖ against depth)",
        text="Factor per layer by which the output gradient changes going backward, fitted by the "
        "Theil–Sen slope over layers with parameters. 1 is isometry, below 1 vanishes, above 1 "
        "explodes. Layers whose gradient is zero or not finite are left out of the fit and "
        "counted. Total gain is the fitted ratio from the last layer to the first.",
        sources=("sen1968", "theil1950"),
    ),
    info=profile_curves,
    drawing=_profile_sketch,
    reads=("step", "quantity", "layers", "relative", "scale", "group"),
    most_runs=MANY_RUNS,
)
SERIES = _by_layer(
    key="layer_series",
    title="Layers over time",
    how_to_read="Layers from input (dark) to output (bright). Lines that stay apart by decades are "
    "trained at different speeds by one learning rate; the band spans smallest to largest of a "
    "bin.",
    info=layer_series,
    drawing=_series_sketch,
    reads=("quantity", "layers", "smooth", "over", "log_x", "scale"),
    follows_click=True,
)
UPDATES = Panel(
    key="update_ratio",
    title="Update ratio",
    how_to_read="The size of an update over the size of the weights. About 10⁻³ is usual when "
    "training from scratch; far less hardly learns, far more is unstable.",
    method=Method(
        title="Update ratio",
        formula="‖Δθ‖₂ / ‖θ‖₂",
        text="Size of one update relative to the parameter that it moved, measured from the "
        "weights before and after the step, whatever the optimizer.",
    ),
    needs=("update_norm", "norm"),
    info=update_grid,
    drawing=grid_sketch,
    reads=("layers", "aggregate", "over", "log_x"),
    has_controls=True,
)
OVERLAY = _by_layer(
    key="profile_overlay",
    title="Profiles on a relative depth",
    how_to_read="First layer at 0, last at 1, so that nets of any depth compare. Where the lines "
    "part is where the runs differ.",
    info=profile_overlay,
    drawing=_profile_sketch,
    reads=("step", "quantity", "layers", "relative", "scale", "group"),
    most_runs=MANY_RUNS,
)
DIFFERENCE = _by_layer(
    key="heatmap_difference",
    title="Difference",
    how_to_read="The second run over the first, in the color of the one that has more: 10³ is a "
    "thousand times the value. Color toward the input only is an effect that builds up with depth.",
    info=grid_difference,
    drawing=_difference_sketch,
    reads=("quantity", "layers", "aggregate", "relative"),
)
ACTIVATIONS = Panel(
    key="activation_profile",
    title="Activations along depth",
    how_to_read="Mean with one standard deviation around it. A spread that shrinks to nothing or "
    "grows without end along depth is an initialization that does not fit the net.",
    needs=("activation_mean", "activation_std"),
    info=activation_profiles,
    reads=("step", "layers"),
    has_controls=True,
    drawing=_activation_figure,
)
DEAD_UNITS = Panel(
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
    reads=("step", "layers"),
    has_controls=True,
    drawing=_dead_unit_figure,
)

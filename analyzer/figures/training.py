"""How a training went: loss, learning rate, gradient norm, noise, and what it logged."""

from dataclasses import replace
from functools import partial

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyzer.analysis.groups import StepCurve, StepCurves
from analyzer.analysis.per_run import shown_range
from analyzer.analysis.training import (
    gradient_norm_curves,
    learning_rate_curves,
    logged_curves,
    loss_curves,
    noise_curves,
    sharpness_curves,
)
from analyzer.figures.axes import along_axis, many_entries, value_axis
from analyzer.figures.marks import band_traces, translucent
from analyzer.figures.panels import MANY_RUNS, Panel
from analyzer.figures.sketch import Trace
from analyzer.figures.theme import Theme, labeled

__all__ = ["GRADIENT_NORM", "LEARNING_RATE", "LOGGED", "LOSS", "NOISE_SCALE", "SHARPNESS"]


def _step_curve_figure(info: StepCurves, theme: Theme) -> go.Figure:
    """Draw one number over the steps of all runs; what stands behind is faint."""
    figure = theme.figure(height=380)
    for curve in info.runs:
        figure.add_traces(_traces(curve, theme, is_log=info.is_log))
    figure.update_xaxes(**along_axis(info.over, is_log=info.is_log_x))
    figure.update_yaxes(**value_axis(info.label, is_log=info.is_log, low=info.low, high=info.high))
    figure.update_layout(showlegend=True, **many_entries(len(info.runs), 380))
    return figure


def _traces(curve: StepCurve, theme: Theme, *, is_log: bool) -> list[Trace]:
    run = labeled(curve.label.text)
    name = f"{run}, {curve.name}" if curve.name else run
    traces = band_traces(curve.band, curve.label, theme, name=name, is_log=is_log)
    if len(curve.band.steps) <= 40:
        style = theme.style(curve.label.style)
        marker = {"symbol": style.marker, "color": style.color, "size": 7}
        for trace in traces:
            if trace.get("name") == name:
                trace.update(mode="lines+markers", marker=marker)
    if curve.is_behind:
        faint = translucent(theme.style(curve.label.style).color, 0.4)
        for trace in traces:
            if trace.get("line", {}).get("width"):
                trace["line"] = trace["line"] | {"color": faint, "width": 1.25}
    return traces


def _logged_figure(info: StepCurves, theme: Theme) -> go.Figure:
    """Draw what the training logged: a pane for each name, all runs in it."""
    names = list(dict.fromkeys(curve.name for curve in info.runs))
    rows, columns = -(-len(names) // 2), min(2, len(names))
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[labeled(name, 48) for name in names],
        horizontal_spacing=0.09,
        vertical_spacing=0.28 / rows,
    )
    theme.apply(figure, 130 + 210 * rows)
    figure.update_annotations(font={"size": 14, "color": theme.text})
    named: set[str] = set()
    for place, name in enumerate(names):
        where = {"row": place // 2 + 1, "col": place % 2 + 1}
        curves = [curve for curve in info.runs if curve.name == name]
        edges = (edge for curve in curves for edge in (curve.band.low, curve.band.high))
        low, high = shown_range(edges, is_log=info.is_log)
        for curve in curves:
            for trace in _traces(replace(curve, name=""), theme, is_log=info.is_log):
                if trace.get("showlegend") is not False:
                    trace["showlegend"] = curve.label.text not in named
                    named.add(curve.label.text)
                figure.add_trace(trace, **where)
        figure.update_xaxes(**along_axis(info.over, is_log=info.is_log_x), **where)
        figure.update_yaxes(**value_axis("", is_log=info.is_log, low=low, high=high), **where)
    legend = {"x": 0, "y": -0.26 / rows, "yanchor": "top"}
    figure.update_layout(showlegend=True, legend=legend, margin={"b": 84})
    return figure


_AXES = ("over", "log_x", "scale", "group")
_over_steps = partial(
    Panel,
    drawing=_step_curve_figure,
    is_wide=False,
    reads=_AXES,
    has_controls=True,
    most_runs=MANY_RUNS,
)
LOSS = _over_steps(
    key="loss",
    title="Loss",
    how_to_read="The loss that the training computed, per step; the band spans smallest to largest "
    "of a bin, crosses are NaN or infinite.",
    needs=("loss",),
    info=loss_curves,
    reads=("smooth", *_AXES),
)
SHARPNESS = _over_steps(
    key="sharpness",
    title="Sharpness against the step",
    how_to_read="Largest eigenvalue of the Hessian on the held batch; faint: where a step of this "
    "optimizer at its learning rate is unstable. Full-batch training often rises to that line and "
    "hovers there, at the edge of stability; far above it the loss grows.",
    needs=("sharpness",),
    info=sharpness_curves,
)
LEARNING_RATE = _over_steps(
    key="learning_rate",
    title="Learning rate",
    how_to_read="First group of the first optimizer. Compare its steps with edges in the other "
    "figures.",
    needs=("learning_rate",),
    info=learning_rate_curves,
)
GRADIENT_NORM = _over_steps(
    key="gradient_norm",
    title="Global gradient norm",
    how_to_read="Over all parameters; faint before clipping, strong as the optimizer received it. "
    "Lines that part are steps that were clipped.",
    needs=("gradient_norm",),
    info=gradient_norm_curves,
    reads=("smooth", *_AXES),
)
NOISE_SCALE = _over_steps(
    key="noise_scale",
    title="Gradient noise scale",
    how_to_read="Roughly the batch size up to which larger batches pay off; it grows while the "
    "loss falls.",
    needs=("noise",),
    info=noise_curves,
)
LOGGED = Panel(
    key="logged",
    title="Logged by the training",
    how_to_read="What the training logged itself, by `recorder.log` or through a callback: a pane "
    "for each number, at the steps at which it was logged.",
    needs=("logged",),
    info=logged_curves,
    drawing=_logged_figure,
    reads=("smooth", *_AXES),
    has_controls=True,
    most_runs=MANY_RUNS,
    height=340,
)

"""Loss, learning rate, global gradient norm and noise scale over the steps."""

from typing import Any

import plotly.graph_objects as go

from analyzer.analysis.training import (
    StepCurve,
    StepCurves,
    gradient_norm_curves,
    learning_rate_curves,
    loss_curves,
    noise_curves,
)
from analyzer.figures.axes import STEP, value_axis
from analyzer.figures.marks import band_traces, translucent
from analyzer.figures.panels import Panel
from analyzer.figures.sketch import Trace
from analyzer.figures.theme import Theme, labeled

__all__ = ["GRADIENT_NORM", "LEARNING_RATE", "LOSS", "NOISE_SCALE", "step_curve_figure"]


def step_curve_figure(info: StepCurves, theme: Theme) -> go.Figure:
    """Draw one number over the steps of all runs; what stands behind is faint."""
    figure = theme.figure(height=380)
    for curve in info.runs:
        figure.add_traces(_traces(info, curve, theme))
    figure.update_xaxes(**STEP)
    figure.update_yaxes(**value_axis(info.label, is_log=info.is_log, low=info.low, high=info.high))
    figure.update_layout(showlegend=True)
    return figure


def _traces(info: StepCurves, curve: StepCurve, theme: Theme) -> list[Trace]:
    run = labeled(curve.label.text)
    name = f"{run}, {curve.name}" if curve.name else run
    top = info.high if info.high == info.high else 1.0
    traces = band_traces(curve.band, curve.label, theme, name=name, top=top)
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


def _panel(key: str, title: str, how_to_read: str, needs: str, info: Any, *reads: str) -> Panel:
    """A panel of curves over the steps, two of which stand side by side."""
    return Panel(
        key=key,
        title=title,
        how_to_read=how_to_read,
        needs=(needs,),
        info=info,
        drawing=step_curve_figure,
        reads=reads,
        has_controls=bool(reads),
        is_wide=False,
    )


LOSS = _panel(
    "loss",
    "Loss",
    "The loss that the training computed, per step; the band spans smallest to largest of a bin, "
    "crosses are NaN or infinite.",
    "loss",
    loss_curves,
    "smooth",
)
LEARNING_RATE = _panel(
    "learning_rate",
    "Learning rate",
    "First group of the first optimizer. Compare its steps with edges in the other figures.",
    "learning_rate",
    learning_rate_curves,
)
GRADIENT_NORM = _panel(
    "gradient_norm",
    "Global gradient norm",
    "Over all parameters; faint before clipping, strong as the optimizer received it. Lines that "
    "part are steps that were clipped.",
    "gradient_norm",
    gradient_norm_curves,
    "smooth",
)
NOISE_SCALE = _panel(
    "noise_scale",
    "Gradient noise scale",
    "Roughly the batch size up to which larger batches pay off; it grows while the loss falls.",
    "noise",
    noise_curves,
)

"""Draws loss, learning rate, global gradient norm and noise scale over the steps."""

import plotly.graph_objects as go

from analyzer.analysis.training import StepCurve, StepCurves
from analyzer.figures.gradients import value_axis
from analyzer.figures.marks import band_traces, translucent
from analyzer.figures.sketch import Trace
from analyzer.figures.theme import Theme, labeled

__all__ = ["step_curve_figure"]


def step_curve_figure(info: StepCurves, theme: Theme) -> go.Figure:
    """Draw one number over the steps of all runs; what stands behind is faint."""
    figure = theme.figure(height=380)
    for curve in info.runs:
        figure.add_traces(_traces(info, curve, theme))
    figure.update_xaxes(title={"text": "step", "standoff": 4})
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

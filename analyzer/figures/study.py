"""The figures of a study: numbers over depth, with and without shortcuts, and their spread.

They are no panels of a page of runs: what they show is the study of which a run is a point.
"""

import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyzer.analysis.study_curves import (
    ClaimCurves,
    DepthCurve,
    DepthCurves,
    claims_by_depth,
    degradation,
    gain_by_depth,
    path_length_by_depth,
)
from analyzer.figures.axes import value_axis
from analyzer.figures.marks import filled, placed
from analyzer.figures.panels import Panel
from analyzer.figures.theme import Theme, labeled

__all__ = ["STUDY_PANELS"]

_MOST_COLUMNS, _ROW_PIXELS = 3, 230


def _curves_figure(info: DepthCurves, theme: Theme) -> go.Figure:
    """Draw each number over depth in a pane: the median over seeds, their range as a band."""
    count = len(info.panes)
    titles = [labeled(label, 48) for label, _, _ in info.panes]
    if isinstance(info, ClaimCurves):
        titles = [
            f"{title}<br>{_statuses(one)}" for title, one in zip(titles, info.statuses, strict=True)
        ]
    columns = min(count, _MOST_COLUMNS if count > 2 else 2)
    rows = math.ceil(count / columns)
    gap = min(0.3, 0.34 / rows) if rows > 1 else 0.0
    figure = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.09, vertical_spacing=gap
    )
    theme.apply(figure, 150 + (_ROW_PIXELS + 40 if rows == 1 else _ROW_PIXELS * rows))
    figure.update_annotations(font={"size": 12, "color": theme.text})
    named: set[str] = set()
    for place, (label, is_log, curves) in enumerate(info.panes):
        where = {"row": place // columns + 1, "col": place % columns + 1}
        taken = {True: 0, False: 0}
        for curve in curves:
            style = 2 * taken[curve.has_shortcuts] + (0 if curve.has_shortcuts else 1)
            taken[curve.has_shortcuts] += 1
            _draw(figure, curve, theme, style, is_log, curve.name not in named, where)
            named.add(curve.name)
        ends = [np.concatenate([curve.low, curve.high]) for curve in curves]
        values = np.concatenate(ends)
        shown = values[np.isfinite(values) & ((values > 0) | (not is_log))]
        if len(shown):
            axis = value_axis("", is_log=is_log, low=float(shown.min()), high=float(shown.max()))
            figure.update_yaxes(**{k: v for k, v in axis.items() if k != "title"}, **where)
        if count <= 2:
            figure.update_yaxes(title={"text": label}, **where)
        depths = sorted({float(at) for curve in curves for at in curve.depths})
        figure.update_xaxes(tickvals=depths, ticktext=[f"{at:g}" for at in depths], **where)
        if place // columns == rows - 1 or place + columns >= count:
            figure.update_xaxes(title={"text": "depth of the network", "standoff": 6}, **where)
    figure.update_layout(showlegend=True)
    return figure


def _draw(
    figure: go.Figure,
    curve: DepthCurve,
    theme: Theme,
    style: int,
    is_log: bool,
    is_new: bool,
    where: dict[str, int],
) -> None:
    look = theme.style(style)
    name = labeled(curve.name)
    low, high = placed(curve.low, is_log), placed(curve.high, is_log)
    band = filled(curve.depths, low, high, look.color, 0.22, showlegend=False)
    figure.add_trace(go.Scatter(band), **where)
    figure.add_scatter(
        x=curve.depths,
        y=placed(curve.middle, is_log),
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=is_new,
        line={"color": look.color, "dash": look.dash},
        marker={"color": look.color, "symbol": look.marker},
        customdata=np.column_stack([curve.low, curve.high, curve.seeds, curve.nonfinite]),
        hovertemplate=f"{name}, depth %{{x}}: %{{y:.4g}}<br>%{{customdata[0]:.4g}} to "
        "%{customdata[1]:.4g} over %{customdata[2]} seeds, %{customdata[3]} not finite"
        "<extra></extra>",
        **where,
    )


def _statuses(found: Mapping[float, tuple[str, int, int]]) -> str:
    """What is said of a claim at each depth, depths of one status together."""
    by_status: dict[str, list[str]] = {}
    for depth, (status, _, _) in found.items():
        by_status.setdefault(status, []).append(f"{depth:g}")
    return " · ".join(f"{status}: {', '.join(at)}" for status, at in by_status.items())


STUDY_PANELS = (
    Panel(
        key="study_degradation",
        title="Loss and error by depth",
        how_to_read="Each line joins the medians over seeds of networks that differ in depth "
        "alone; the band is their range. Degradation is a line that rises with depth: a deeper "
        "network could copy a shallower one, and trains worse all the same.",
        needs=(),
        info=degradation,
        drawing=_curves_figure,
    ),
    Panel(
        key="study_gain",
        title="Gradient gain by depth",
        how_to_read="The factor by which the output gradient changes per layer on its way from "
        "output to input, median over steps: 1 keeps it, below 1 it vanishes. Beside it what that "
        "makes of the whole way, in powers of ten.",
        needs=(),
        info=gain_by_depth,
        drawing=_curves_figure,
    ),
    Panel(
        key="study_paths",
        title="Effective path length by depth",
        how_to_read="How many residual branches the paths cross that carry the gradient, on "
        "average, at the final weights. Paths much shorter than the network carry most of it.",
        needs=(),
        info=path_length_by_depth,
        drawing=_curves_figure,
    ),
    Panel(
        key="study_claims",
        title="Every claim by depth",
        how_to_read="The numbers behind each question of the verdict, plain and residual, with "
        "their range over seeds; above each what it answers over all seeds at which depth. The "
        "gain here is along the trunk; that of the figure by depth is over all layers with "
        "parameters, those inside of branches too.",
        needs=(),
        info=claims_by_depth,
        drawing=_curves_figure,
        height=900,
    ),
)
"""The figures of a study, each of the study of the first run of a view."""

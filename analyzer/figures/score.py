"""Draws the score: depth along x in every row, one column per run, all ranges shared."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analyzer.analysis.overview import Overview as Score
from analyzer.analysis.overview import OverviewColumn as ScoreColumn
from analyzer.figures.arcs import arc_traces
from analyzer.figures.marks import (
    band_traces,
    color_bar,
    edge_marks,
    grid_traces,
    mark_legend,
    run_line,
)
from analyzer.figures.score_axes import ROWS, axes_of_column, axis_names, profile_bounds
from analyzer.figures.sketch import Sketch, Trace, merged, scatter
from analyzer.figures.theme import Theme, labeled

__all__ = [
    "SCORE_HEIGHT",
    "drawn_parts",
    "note_places",
    "score_figure",
    "score_sketch",
    "step_shapes",
]

SCORE_HEIGHT = 920
_MOST_DOTS = 120


def score_figure(info: Score, theme: Theme) -> go.Figure:
    """Draw the score of one to three runs.

    Args:
        info: The record; see ``analyzer.analysis.overview``.
        theme: Colors and fonts.
    """
    return score_sketch(info, theme).figure()


def score_sketch(info: Score, theme: Theme) -> Sketch:
    """Return the traces and the layout of ``score_figure``."""
    has_joins = any(len(column.arcs.joins) for column in info.runs)
    bar = {"len": 0.38, "x": 1.03, "y": ROWS["grid"][1], "yanchor": "top"}
    layout = merged(
        theme.layout(SCORE_HEIGHT),
        {
            "shapes": step_shapes(info, theme),
            "annotations": [
                note
                for place, column in enumerate(info.runs)
                for note in _words(column, place, theme)
            ],
            "coloraxis": {
                "colorscale": theme.colorscale,
                "cmin": info.low,
                "cmax": info.high,
                "colorbar": color_bar("‖δ‖₂", info.low, info.high, is_log=True, **bar),
            },
            "legend": {
                "orientation": "h",
                "title": {"text": "shortcut share  " if has_joins else "", "side": "left"},
                "x": 0,
                "y": -0.075,
                "yanchor": "top",
                "itemsizing": "trace",
                "entrywidth": 112,
            },
            "margin": {"l": 84, "r": 24, "t": 48, "b": 96},
        },
    )
    for place, column in enumerate(info.runs):
        layout = layout | axes_of_column(info, column, place, theme)
    return Sketch([trace for _, _, trace in drawn_parts(info, theme)], layout)


def drawn_parts(info: Score, theme: Theme) -> Iterator[tuple[int, str, Trace]]:
    """Yield the traces in their order, each with its run and what it is.

    Yields:
        Place of the run, ``arcs``, ``dots``, ``behind``, ``profile``, ``marks``, ``grid``, ``loss``
        or ``legend``, and the trace. Another step changes arcs, behind, profile and marks.
    """
    highest = max([int(level) for c in info.runs for level in c.arcs.levels], default=1)
    legend = next((k for k, c in enumerate(info.runs) if len(c.arcs.joins)), None)
    bounds = profile_bounds(info)
    for place, column in enumerate(info.runs):
        top, grid, below = (axis_names(place, row) for row in ("network", "grid", "loss"))
        for arc in arc_traces(column.arcs, theme, highest, top, in_legend=place == legend):
            yield place, "arcs", arc
        yield place, "dots", _dots(column, theme, top)
        middle = axis_names(place, "profile")
        for other, behind in enumerate(info.runs):
            if other != place:
                yield other, "behind", _behind(behind, theme, middle)
        yield place, "profile", _profile(column, theme, middle)
        marks = edge_marks(
            column.grid.positions, column.profile, bounds, theme, is_log=True, **middle
        )
        yield place, "marks", marks
        color = grid | {"coloraxis": "coloraxis"}
        for trace in grid_traces(column.grid, theme, is_log=True, along_depth=True, axes=color):
            yield place, "grid", trace
        edge = info.loss_range[1]
        loss = band_traces(column.loss, column.label, theme, top=edge, showlegend=False, **below)
        for line in loss:
            yield place, "loss", line
    for entry in mark_legend([column.grid for column in info.runs], theme, is_log=True):
        yield 0, "legend", entry


def note_places(info: Score) -> list[int]:
    """Return the place of each run's note among the annotations: each run has its title before."""
    places, at = [], 0
    for column in info.runs:
        places.append(at + 1)
        at += 2 + (not len(column.arcs.joins))
    return places


def step_shapes(info: Score, theme: Theme) -> list[dict[str, Any]]:
    """Return the lines that mark the step: for each run one in row 3, then one in row 4."""
    shapes = []
    for place, column in enumerate(info.runs):
        grid, loss = axis_names(place, "grid"), axis_names(place, "loss")
        line = {"type": "line", "x0": 0, "x1": 1, "y0": column.step, "y1": column.step}
        look = {"line": {"color": "#ffffff", "width": 2, "dash": "dot"}}
        shapes.append(line | look | {"xref": f"{grid['xaxis']} domain", "yref": grid["yaxis"]})
        line = {"type": "line", "x0": column.step, "x1": column.step, "y0": 0, "y1": 1}
        look = {"line": {"color": theme.text, "width": 1, "dash": "dot"}}
        shapes.append(line | look | {"xref": loss["xaxis"], "yref": f"{loss['yaxis']} domain"})
    return shapes


def _dots(column: ScoreColumn, theme: Theme, axes: dict[str, str]) -> Trace:
    color = theme.style(column.label.style).color
    grid = column.grid
    few = len(grid.positions) <= _MOST_DOTS
    return scatter(
        x=grid.positions,
        y=np.zeros(len(grid.positions)),
        mode="lines+markers" if few else "lines",
        line={"color": theme.faint if few else color, "width": 1.5 if few else 4},
        marker={"color": color, "size": 7 if len(grid.positions) <= 60 else 4},
        text=[labeled(name) for name in grid.names],
        hovertemplate="%{text}<br>depth %{x:.0f}<extra></extra>",
        showlegend=False,
        **axes,
    )


def _profile(column: ScoreColumn, theme: Theme, axes: dict[str, str]) -> Trace:
    return run_line(
        column.label,
        theme,
        x=column.grid.positions,
        y=column.profile,
        text=[labeled(name) for name in column.grid.names],
        hovertemplate="%{text}: %{y:.3e}<extra></extra>",
        showlegend=False,
        **axes,
    )


def _behind(column: ScoreColumn, theme: Theme, axes: dict[str, str]) -> Trace:
    return scatter(
        x=column.grid.positions,
        y=column.profile,
        mode="lines",
        line={"color": theme.faint, "width": 1.25, "dash": theme.style(column.label.style).dash},
        hovertemplate=f"{labeled(column.label.text)}: %{{y:.3e}}<extra></extra>",
        showlegend=False,
        **axes,
    )


def _words(column: ScoreColumn, place: int, theme: Theme) -> list[dict[str, Any]]:
    """The outcome over the column, the numbers over the rows that they are of."""
    axis = axis_names(place, "profile")["xaxis"]
    at = {"xref": f"{axis} domain", "yref": "paper", "showarrow": False}
    color = theme.style(column.label.style).color
    title = f"<b>{labeled(column.label.text, 40)}</b>  {column.title}"
    font = {"size": 15, "color": color}
    words = [at | {"text": title, "x": 0.5, "y": 1.0, "yanchor": "bottom", "font": font}]
    note = column.note.replace("; ", "<br>")
    left = {"x": 0, "xanchor": "left", "align": "left", "yanchor": "bottom"}
    y = ROWS["profile"][1] + 0.004
    font = {"size": 12, "color": theme.text}
    words.append(at | left | {"text": note, "y": y, "font": font})
    if not len(column.arcs.joins):
        low, high = ROWS["network"]
        text = "no joins" + ("" if column.label.has_shortcuts else ": no shortcut carries gradient")
        middle = {"text": text, "x": 0.5, "y": (low + high) / 2 + 0.01}
        words.append(at | middle | {"font": {"size": 12, "color": theme.text}})
    return words

"""The first figure of a paper: rows on one axis of depth, the runs in one plot if possible."""

from typing import Any

from analyzer.analysis.overview import Overview
from analyzer.figures.axes import STEP, layout_name, log_range, stage_ticks, value_axis
from analyzer.figures.marks import (
    band_traces,
    color_bar,
    edge_marks,
    grid_traces,
    layer_dots,
    mark_legend,
    placed,
    run_line,
    step_range,
    with_rugs,
)
from analyzer.figures.shortcuts import arc_traces, highest_level
from analyzer.figures.sketch import Layout, Sketch, Trace, merged
from analyzer.figures.theme import Theme, labeled

__all__ = ["overview_rows"]

# Heights of the rows from top to bottom, in parts, and of the gap below each.
_NETWORK, _PROFILE, _GRID, _LOSS = (0.6, 0.1), (1.2, 0.3), (0.8, 0.3), (0.8, 0.0)
# Below the last heatmap stand the names of stages and the title of the axis.
_BELOW = 0.55


def overview_rows(info: Overview, theme: Theme) -> Any:
    """Draw one to three runs as rows, all but the last on one axis of depth, input at the left.

    From top to bottom: the network of the first run with shortcuts, an arc for each, wider where it
    carries more; the output gradient along depth of all runs at the step; it again for every step,
    a heatmap for each run; the loss. There is no sentence in it: the caption says what it shows.
    """
    shown = next((column for column in info.runs if len(column.arcs.joins)), None)
    rows = ([_NETWORK] if shown else []) + [_PROFILE]
    rows += [_GRID] * (len(info.runs) - 1) + [(_GRID[0], _BELOW), _LOSS]
    domains = _domains(rows)
    grids = domains[len(domains) - 1 - len(info.runs) : -1]
    traces: list[Trace] = []
    layout = merged(theme.layout(round(280 * sum(map(sum, rows)))), {"showlegend": True})
    axes: dict[str, Layout] = {
        f"y{k + 1}": {"domain": list(domain)} for k, domain in enumerate(domains)
    }
    names = list(axes)
    if shown:
        at = {"xaxis": "x", "yaxis": names[0]}
        traces += arc_traces(shown.arcs, theme, highest_level([shown]), at, in_legend=False)
        color = theme.style(shown.label.style).color
        traces.append(layer_dots(shown.grid.positions, shown.grid.names, color, theme) | at)
        axes[names[0]] |= {"visible": False, "range": [-0.18, 1.12]}
    at = {"xaxis": "x", "yaxis": names[1 if shown else 0]}
    low, high = (10.0**end for end in log_range(info.low, info.high))
    axes[at["yaxis"]] |= value_axis("‖∂L/∂y‖₂", is_log=True, low=low, high=high)
    for column in info.runs:
        places, norms = column.grid.positions, column.profile
        traces.append(run_line(column.label, theme, x=places, y=placed(norms, True), **at))
        traces.append(edge_marks(places, norms, theme, is_log=True, **at))
    notes = []
    for column, name, domain in zip(info.runs, names[-1 - len(info.runs) : -1], grids, strict=True):
        on = {"xaxis": "x", "yaxis": name, "coloraxis": "coloraxis"}
        traces += grid_traces(column.grid, theme, is_log=True, axes=on)
        axes[name] |= {"range": step_range([c.grid for c in info.runs]), "nticks": 4}
        axes[name] |= {"title": {"text": "step"}, "showgrid": False}
        if len(info.runs) > 1:
            place = {"xref": "x domain", "x": 0.0, "yref": "paper", "y": domain[1]}
            note = {"text": labeled(column.label.text, 40), "xanchor": "left", "showarrow": False}
            notes.append(place | note | {"yanchor": "bottom"})
    below: Trace = {"xaxis": "x2", "yaxis": names[-1], "showlegend": False}
    for column in info.runs:
        traces += band_traces(column.loss, column.label, theme, **below)
    axes[names[-1]] |= value_axis(
        "loss", is_log=False, low=info.loss_range[0], high=info.loss_range[1]
    )
    axes[names[-1]] |= {"anchor": "x2"}
    depth = {"range": [info.depth[0] - 1, info.depth[1] + 1], "anchor": names[-2]}
    words = {"title": {"text": "depth: input → output"}, "showgrid": False}
    axes["x"] = depth | words | stage_ticks((shown or info.runs[0]).stages, info.depth, 2)
    axes["x2"] = STEP | {"anchor": names[-1], "range": step_range([c.grid for c in info.runs])}
    entries = mark_legend([column.grid.marks for column in info.runs], theme, is_log=True)
    ends = {"cmin": info.lowest_color, "cmax": info.high}
    bar = color_bar("‖∂L/∂y‖₂", info.lowest_color, info.high, is_log=True)
    colors = ends | {"colorscale": theme.colorscale, "colorbar": bar}
    more: Layout = {"annotations": notes, "coloraxis": colors}
    more |= {layout_name("y" if name == "y1" else name): axis for name, axis in axes.items()}
    for trace in traces:
        trace["yaxis"] = "y" if trace["yaxis"] == "y1" else trace["yaxis"]
    made = with_rugs(Sketch([*traces, *entries], merged(layout, more)))
    return made.figure() if isinstance(made, Sketch) else made


def _domains(rows: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Lower and upper edge of each row on the paper."""
    total = sum(map(sum, rows))
    found, top = [], 1.0
    for height, gap in rows:
        found.append((max(0.0, top - height / total), top))
        top -= (height + gap) / total
    return found

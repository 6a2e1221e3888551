"""The overview: depth along x in every row, one column per run, all ranges shared."""

from collections.abc import Iterator
from typing import Any

from analyzer.analysis.overview import Overview, OverviewColumn, overview
from analyzer.figures.axes import axis_edges, log_range, stage_ticks
from analyzer.figures.marks import (
    band_traces,
    color_bar,
    edge_marks,
    grid_traces,
    layer_dots,
    mark_legend,
    run_line,
)
from analyzer.figures.panels import Panel
from analyzer.figures.shortcuts import arc_traces
from analyzer.figures.sketch import Layout, Sketch, Trace, merged, scatter
from analyzer.figures.theme import Theme, decade_step, labeled
from analyzer.vocabulary.methods import Method

__all__ = [
    "OVERVIEW",
    "axis_names",
    "drawn_parts",
    "layout_name",
    "note_places",
    "overview_sketch",
]

_HEIGHT = 920
# Lower and upper edge of the rows, from the bottom: loss, grid, profile, network.
_ROWS = {
    "loss": (0.0, 0.12),
    "grid": (0.21, 0.57),
    "profile": (0.63, 0.82),
    "network": (0.88, 0.97),
}
_GAP = 0.05
_SHARED = 4


def overview_sketch(info: Overview, theme: Theme) -> Sketch:
    """Draw one to three runs."""
    has_joins = any(len(column.arcs.joins) for column in info.runs)
    bar = {"len": 0.38, "x": 1.03, "y": _ROWS["grid"][1], "yanchor": "top"}
    layout = merged(
        theme.layout(_HEIGHT),
        {
            "shapes": _step_shapes(info, theme),
            "annotations": [
                note
                for place, column in enumerate(info.runs)
                for note in _words(column, place, theme)
            ],
            "coloraxis": {
                "colorscale": theme.colorscale,
                "cmin": info.low,
                "cmax": info.high,
                "colorbar": color_bar("‖∂L/∂y‖₂", info.low, info.high, is_log=True, **bar),
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
        layout = layout | _axes_of_column(info, column, place, theme)
    return Sketch([trace for _, _, trace in drawn_parts(info, theme)], layout)


def drawn_parts(info: Overview, theme: Theme) -> Iterator[tuple[int, str, Trace]]:
    """Yield the traces in their order, each with its run and what it is.

    Yields:
        Place of the run, ``arcs``, ``dots``, ``behind``, ``profile``, ``marks``, ``grid``, ``loss``
        or ``legend``, and the trace. Another step changes arcs, behind, profile and marks.
    """
    highest = max([int(level) for c in info.runs for level in c.arcs.levels], default=1)
    legend = next((k for k, c in enumerate(info.runs) if len(c.arcs.joins)), None)
    bounds = axis_edges({"range": log_range(info.low, info.high)}, is_log=True)
    for place, column in enumerate(info.runs):
        top, grid, below = (axis_names(place, row) for row in ("network", "grid", "loss"))
        for arc in arc_traces(column.arcs, theme, highest, top, in_legend=place == legend):
            yield place, "arcs", arc
        color = theme.style(column.label.style).color
        dots = layer_dots(column.grid.positions, column.grid.names, color, theme)
        yield place, "dots", dots | top
        middle = axis_names(place, "profile")
        for other, behind in enumerate(info.runs):
            if other != place:
                yield other, "behind", _behind(behind, theme, middle)
        yield place, "profile", _profile(column, theme, middle)
        marks = edge_marks(
            column.grid.positions, column.profile, bounds, theme, is_log=True, **middle
        )
        yield place, "marks", marks
        on = grid | {"coloraxis": "coloraxis"}
        for trace in grid_traces(column.grid, theme, is_log=True, along_depth=True, axes=on):
            yield place, "grid", trace
        edge = info.loss_range[1]
        loss = band_traces(column.loss, column.label, theme, top=edge, showlegend=False, **below)
        for line in loss:
            yield place, "loss", line
    for entry in mark_legend([column.grid for column in info.runs], theme, is_log=True):
        yield 0, "legend", entry


def note_places(info: Overview) -> list[int]:
    """Return the place of each run's note among the annotations: each run has its title before."""
    places, at = [], 0
    for column in info.runs:
        places.append(at + 1)
        at += 2 + (not len(column.arcs.joins))
    return places


def _step_shapes(info: Overview, theme: Theme) -> list[dict[str, Any]]:
    """Lines that mark the step: for each run one in row 3, then one in row 4."""
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


def _profile(column: OverviewColumn, theme: Theme, axes: dict[str, str]) -> Trace:
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


def _behind(column: OverviewColumn, theme: Theme, axes: dict[str, str]) -> Trace:
    return scatter(
        x=column.grid.positions,
        y=column.profile,
        mode="lines",
        line={"color": theme.faint, "width": 1.25, "dash": theme.style(column.label.style).dash},
        hovertemplate=f"{labeled(column.label.text)}: %{{y:.3e}}<extra></extra>",
        showlegend=False,
        **axes,
    )


def _words(column: OverviewColumn, place: int, theme: Theme) -> list[dict[str, Any]]:
    """The outcome over the column, the numbers over the rows that they are of."""
    axis = axis_names(place, "profile")["xaxis"]
    at = {"xref": f"{axis} domain", "yref": "paper", "showarrow": False}
    color = theme.style(column.label.style).color
    title = f"<b>{labeled(column.label.text, 40)}</b>  {column.title}"
    font = {"size": 15, "color": color}
    words = [at | {"text": title, "x": 0.5, "y": 1.0, "yanchor": "bottom", "font": font}]
    note = column.note.replace("; ", "<br>")
    left = {"x": 0, "xanchor": "left", "align": "left", "yanchor": "bottom"}
    y = _ROWS["profile"][1] + 0.004
    font = {"size": 12, "color": theme.text}
    words.append(at | left | {"text": note, "y": y, "font": font})
    if not len(column.arcs.joins):
        low, high = _ROWS["network"]
        text = "no joins" + ("" if column.label.has_shortcuts else ": no shortcut carries gradient")
        middle = {"text": text, "x": 0.5, "y": (low + high) / 2 + 0.01}
        words.append(at | middle | {"font": {"size": 12, "color": theme.text}})
    return words


def axis_names(place: int, row: str) -> dict[str, str]:
    """Return the axes of a row of a column: rows 1 to 3 share the axis of depth.

    Args:
        place: Place of the run from the left.
        row: ``network``, ``profile``, ``grid`` or ``loss``.

    Returns:
        ``xaxis`` and ``yaxis`` as traces name them.
    """
    order = ("network", "profile", "grid", "loss")
    x = 2 * place + (2 if row == "loss" else 1)
    y = _SHARED * place + order.index(row) + 1
    return {"xaxis": "x" if x == 1 else f"x{x}", "yaxis": "y" if y == 1 else f"y{y}"}


def _axes_of_column(info: Overview, column: OverviewColumn, place: int, theme: Theme) -> Layout:
    """The axes of one column by their names in the layout; only the first one is labeled."""
    count = len(info.runs)
    width = (1 - _GAP * (count - 1)) / count
    across = [place * (width + _GAP), place * (width + _GAP) + width]
    names = {row: axis_names(place, row) for row in _ROWS}
    titles, ranges = _titles(info), _ranges(info)
    axes: Layout = {}
    for row, domain in _ROWS.items():
        axes[layout_name(names[row]["yaxis"])] = {
            "domain": list(domain),
            "anchor": names[row]["xaxis"],
            "title": {"text": "" if place else titles[row], "standoff": 8},
            "type": "log" if row == "profile" else "linear",
            "exponentformat": "power",
            # Plotly writes powers larger than other ticks.
            "tickfont": {"size": 11 if row == "profile" else 12},
            # All digits between powers would be labeled otherwise.
            **({"dtick": _decades_per_tick(info)} if row == "profile" else {"nticks": 5}),
            "visible": row != "network",
            "showticklabels": not place,
            "ticks": "",
            "gridcolor": theme.grid,
            "zeroline": False,
            "range": ranges[row],
            **({"matches": axis_names(0, row)["yaxis"]} if place else {}),
        }
    stages = stage_ticks(column.stages, info.depth, count)
    axes[layout_name(names["grid"]["xaxis"])] = {
        "domain": across,
        "anchor": names["grid"]["yaxis"],
        "range": [info.depth[0] - 1.2, info.depth[1] + 0.8],
        "title": {"text": "depth: input → output", "standoff": 4},
        "ticks": "",
        "gridcolor": theme.grid,
        "zeroline": False,
        **stages,
    }
    axes[layout_name(names["loss"]["xaxis"])] = {
        "domain": across,
        "anchor": names["loss"]["yaxis"],
        "title": {"text": "step", "standoff": 4},
        "gridcolor": theme.grid,
        "zeroline": False,
        "range": _step_range(info),
        **({"matches": axis_names(0, "loss")["xaxis"]} if place else {}),
    }
    return axes


def _decades_per_tick(info: Overview) -> int:
    low, high = log_range(info.low, info.high)
    return decade_step(high - low)


def _titles(info: Overview) -> dict[str, str]:
    """Titles of the rows, at the left of the first column."""
    steps = {column.step for column in info.runs}
    when = f"at step {steps.pop()}" if len(steps) == 1 else "at the step"
    return {"network": "", "profile": f"‖∂L/∂y‖₂ {when}", "grid": "step", "loss": "loss"}


def _ranges(info: Overview) -> dict[str, list[float]]:
    """What each row shows in every column."""
    low, high = info.loss_range
    room = 0.05 * (high - low or 1.0)
    return {
        "network": [-0.18, 1.12],
        "profile": log_range(info.low, info.high),
        "loss": [low - room, high + room],
        # Matched axes that find their own range find a wrong one over heatmaps (plotly.js 4.1).
        "grid": _step_range(info),
    }


def _step_range(info: Overview) -> list[float]:
    """First and last step of all runs, with half a bin at each end."""
    first = min(float(column.grid.steps[0]) for column in info.runs)
    last = max(float(column.grid.steps[-1] + column.grid.width - 1) for column in info.runs)
    room = max(0.5, 0.004 * (last - first))
    return [first - room, last + room]


def layout_name(axis: str) -> str:
    """Return the name of an axis in the layout: ``xaxis2`` for ``x2``."""
    return f"{axis[0]}axis{axis[1:]}"


OVERVIEW = Panel(
    key="overview",
    title="Overview",
    how_to_read="Depth is the x axis of every row, so go straight down from a shortcut to what it "
    "does: the network with an arc per shortcut, the gradient along depth at the chosen step, the "
    "same over the whole training, and the loss.",
    method=Method(
        title="Depth",
        text="Number of layers on the longest path from the input of the network; parallel "
        "branches share depth.",
    ),
    needs=("output_gradient_norm",),
    info=overview,
    drawing=overview_sketch,
    reads=("step", "layers", "aggregate", "smooth", "relative"),
    height=860,
)

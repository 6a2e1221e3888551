"""The overview: depth along x in every row, one column per run, all ranges shared; its frames."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np

from analyzer.analysis.flow_grid import NONFINITE, ZERO, GridColumn
from analyzer.analysis.overview import Overview, OverviewColumn, overview
from analyzer.analysis.shortcuts import SHARE_LEVELS
from analyzer.figures.axes import STEP, hover_names, layout_name, log_range, stage_ticks
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
)
from analyzer.figures.panels import Panel
from analyzer.figures.shortcuts import arc_traces, arc_words, highest_level, outline
from analyzer.figures.sketch import Layout, Sketch, Trace, merged, scatter
from analyzer.figures.theme import LIGHT, Theme, decade_step, labeled
from analyzer.vocabulary.methods import Method

__all__ = ["OVERVIEW", "overview_frames", "overview_sketch"]

_HEIGHT = 920
# Lower and upper edge of the rows, from the bottom: loss, grid, profile, network.
_ROWS = {
    "loss": (0.0, 0.12),
    "grid": (0.21, 0.57),
    "profile": (0.63, 0.82),
    "network": (0.88, 0.97),
}
_GAP = 0.05
_NO_VALUE, _IS_ZERO, _IS_NONFINITE = -32768, 32766, 32767


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
    return Sketch([trace for _, _, trace in _drawn_parts(info, theme)], layout)


def _drawn_parts(info: Overview, theme: Theme) -> Iterator[tuple[int, str, Trace]]:
    """Every trace in its order, with the place of its run and what it is.

    Another step changes arcs, behind, profile and marks.
    """
    highest = highest_level(info.runs)
    legend = next((k for k, c in enumerate(info.runs) if len(c.arcs.joins)), None)
    for place, column in enumerate(info.runs):
        top, grid, below = (_axis_names(place, row) for row in ("network", "grid", "loss"))
        for arc in arc_traces(column.arcs, theme, highest, top, in_legend=place == legend):
            yield place, "arcs", arc
        color = theme.style(column.label.style).color
        dots = layer_dots(column.grid.positions, column.grid.names, color, theme)
        yield place, "dots", dots | top
        middle = _axis_names(place, "profile")
        for other, behind in enumerate(info.runs):
            if other != place:
                yield other, "behind", _behind(behind, theme, middle)
        yield place, "profile", _profile(column, theme, middle)
        names = [labeled(name) for name in column.grid.names]
        at = column.grid.positions
        # The legend of the cells below says it already.
        marks = edge_marks(at, column.profile, theme, is_log=True, names=names, **middle)
        yield place, "marks", marks | {"showlegend": False}
        on = grid | {"coloraxis": "coloraxis"}
        for trace in grid_traces(column.grid, theme, is_log=True, axes=on):
            yield place, "grid", trace
        unnamed: Trace = below | {"showlegend": False}
        for line in band_traces(column.loss, column.label, theme, **unnamed):
            yield place, "loss", line
    for entry in mark_legend([column.grid.marks for column in info.runs], theme, is_log=True):
        yield 0, "legend", entry


def _step_shapes(info: Overview, theme: Theme) -> list[dict[str, Any]]:
    """Lines that mark the step: for each run one in row 3, then one in row 4."""
    shapes = []
    for place, column in enumerate(info.runs):
        grid, loss = _axis_names(place, "grid"), _axis_names(place, "loss")
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
        y=placed(column.profile, True),
        text=[labeled(name) for name in column.grid.names],
        hovertemplate="%{text}: %{y:.3e}<extra></extra>",
        showlegend=False,
        **axes,
    )


def _behind(column: OverviewColumn, theme: Theme, axes: dict[str, str]) -> Trace:
    return scatter(
        x=column.grid.positions,
        y=placed(column.profile, True),
        mode="lines",
        line={"color": theme.faint, "width": 1.25, "dash": theme.style(column.label.style).dash},
        hovertemplate=f"{labeled(column.label.text)}: %{{y:.3e}}<extra></extra>",
        showlegend=False,
        **axes,
    )


def _words(column: OverviewColumn, place: int, theme: Theme) -> list[dict[str, Any]]:
    """The outcome over the column, the numbers over the rows that they are of."""
    axis = _axis_names(place, "profile")["xaxis"]
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


def _axis_names(place: int, row: str) -> dict[str, str]:
    """The axes of a row of a column, as traces name them; rows 1 to 3 share the axis of depth."""
    order = ("network", "profile", "grid", "loss")
    x = 2 * place + (2 if row == "loss" else 1)
    y = len(order) * place + order.index(row) + 1
    return {"xaxis": "x" if x == 1 else f"x{x}", "yaxis": "y" if y == 1 else f"y{y}"}


def _axes_of_column(info: Overview, column: OverviewColumn, place: int, theme: Theme) -> Layout:
    """The axes of one column by their names in the layout; only the first one is labeled."""
    count = len(info.runs)
    width = (1 - _GAP * (count - 1)) / count
    across = [place * (width + _GAP), place * (width + _GAP) + width]
    names = {row: _axis_names(place, row) for row in _ROWS}
    steps = {column.step for column in info.runs}
    when = f"at step {steps.pop()}" if len(steps) == 1 else "at the step"
    titles = {"network": "", "profile": f"‖∂L/∂y‖₂ {when}", "grid": "step", "loss": "loss"}
    low, high = log_range(info.low, info.high)
    lowest, highest = info.loss_range
    room = 0.05 * (highest - lowest or 1.0)
    ranges = {
        "network": [-0.18, 1.12],
        "profile": [low, high],
        # Matched axes that find their own range find a wrong one over heatmaps (plotly.js 4.1).
        "grid": step_range([column.grid for column in info.runs]),
        "loss": [lowest - room, highest + room],
    }
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
            **({"dtick": decade_step(high - low)} if row == "profile" else {"nticks": 5}),
            "visible": row != "network",
            "showticklabels": not place,
            "ticks": "",
            "gridcolor": theme.grid,
            "zeroline": False,
            "range": ranges[row],
            **({"tickformat": ",d"} if row == "grid" else {}),
            **({"matches": _axis_names(0, row)["yaxis"]} if place else {}),
        }
    axes[layout_name(names["grid"]["xaxis"])] = {
        "domain": across,
        "anchor": names["grid"]["yaxis"],
        "range": [info.depth[0] - 1.2, info.depth[1] + 0.8],
        "title": {"text": "depth: input → output", "standoff": 4},
        "ticks": "",
        "gridcolor": theme.grid,
        "zeroline": False,
        **hover_names(column.grid.names, column.grid.positions),
        **stage_ticks(column.stages, info.depth, count),
    }
    axes[layout_name(names["loss"]["xaxis"])] = STEP | {
        "domain": across,
        "anchor": names["loss"]["yaxis"],
        "gridcolor": theme.grid,
        "zeroline": False,
        "range": step_range([column.grid for column in info.runs]),
        **({"matches": _axis_names(0, "loss")["xaxis"]} if place else {}),
    }
    return axes


def overview_frames(info: Overview) -> dict[str, Any]:
    """Return the profiles and shares of every shown step, as JSON can hold them.

    Norms are decimal logarithms in 16-bit integers, ``log10 ‖∂L/∂y‖ = offset + scale · n``;
    ``no_value`` stands for null, ``zero`` for exactly zero, ``nonfinite`` for NaN and infinities.
    Arcs are outlines: a browser puts that of each arc into the trace of its level, gaps between.

    Returns:
        ``levels`` (upper bounds of the first four), ``no_value``, ``zero``, ``nonfinite``, ``low``
        and ``high``; and for each run in ``runs``: ``name``, ``steps``, ``norms`` (``bdata`` in
        base64, ``shape`` [steps, rows], ``offset``, ``scale``), ``positions``, ``layers``,
        ``gains`` (per layer, one a step), ``share_steps``, ``shares`` [splits][arcs],
        ``arcs`` (``x``, ``y``, ``text``, ``is_identity``), and the places of the traces in the
        figure: ``profile_trace``, ``mark_trace``, ``behind_traces``, ``arc_traces`` (five of
        identities, five of others, one of unknown share), ``step_shapes`` (in rows 3
        and 4), ``note_annotation`` (the numbers over row 2), ``profile_axis`` (whose title names
        the step).
    """
    order = [(place, part) for place, part, _ in _drawn_parts(info, LIGHT)]
    highest = highest_level(info.runs)
    runs = []
    # Among the annotations each run has its title, its note and, without joins, a word on that.
    note = 1
    for place, column in enumerate(info.runs):
        at = {
            part: [k for k, one in enumerate(order) if one == (place, part)]
            for part in ("arcs", "behind", "profile", "marks")
        }
        run = _run_frames(info, column, highest) | {
            "profile_trace": at["profile"][0],
            "mark_trace": at["marks"][0],
            "behind_traces": at["behind"],
            "arc_traces": at["arcs"],
            "step_shapes": [2 * place, 2 * place + 1],
            "note_annotation": note,
            "profile_axis": layout_name(_axis_names(0, "profile")["yaxis"]),
        }
        note += 2 + (not len(column.arcs.joins))
        runs.append(run)
    return {
        "levels": list(SHARE_LEVELS[:-1]),
        "no_value": _NO_VALUE,
        "zero": _IS_ZERO,
        "nonfinite": _IS_NONFINITE,
        "low": info.low,
        "high": info.high,
        "runs": runs,
    }


def _run_frames(info: Overview, column: OverviewColumn, highest: int) -> dict[str, Any]:
    grid, arcs = column.grid, column.arcs
    shapes = zip(outline(arcs, highest), arc_words(arcs), arcs.shortcuts, strict=True)
    shares = np.round(column.shares.astype(np.float64), 4)
    return {
        "name": column.label.text,
        "step": column.step,
        "steps": grid.steps.tolist(),
        "norms": _packed(grid, info.low, info.high),
        "gains": [round(g, 4) if np.isfinite(g) else None for g in column.gains.tolist()],
        "positions": np.round(grid.positions, 3).tolist(),
        "layers": list(grid.names),
        "share_steps": column.share_steps.tolist(),
        "shares": [[s if np.isfinite(s) else None for s in row] for row in shares.tolist()],
        "arcs": [
            {"x": x, "y": y, "text": word, "is_identity": kind == "identity"}
            for (x, y), word, kind in shapes
        ],
    }


def _packed(grid: GridColumn, low: float, high: float) -> dict[str, Any]:
    """Logarithms from ``low`` to ``high``, ``[steps, rows]``, as 16-bit integers in base64.

    NaN is no value. A number is off by half of ``scale`` at most; bytes are little-endian.
    """
    log10, marks = grid.log10.T, grid.marks.T
    scale = (high - low) / 65_000
    offset = (low + high) / 2
    known = np.isfinite(log10)
    whole = np.where(known, np.round((np.where(known, log10, offset) - offset) / scale), _NO_VALUE)
    whole[marks == ZERO] = _IS_ZERO
    whole[marks == NONFINITE] = _IS_NONFINITE
    data = base64.b64encode(whole.astype("<i2").tobytes()).decode("ascii")
    return {"bdata": data, "shape": list(log10.shape), "offset": offset, "scale": scale}


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

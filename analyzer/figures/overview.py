"""The overview: rows on one axis of depth, all runs in one range."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from analyzer.analysis.flow_grid import NONFINITE
from analyzer.analysis.numerals import number
from analyzer.analysis.overview import Overview, OverviewColumn, overview
from analyzer.figures.axes import STEP, hover_names, layout_name, log_range, stage_ticks
from analyzer.figures.marks import (
    band_traces,
    color_bar,
    edge_marks,
    grid_traces,
    layer_dots,
    placed,
    run_line,
    step_range,
)
from analyzer.figures.overview_words import row_words
from analyzer.figures.panels import Panel
from analyzer.figures.shortcuts import arc_traces, highest_level
from analyzer.figures.sketch import Layout, Sketch, Trace, merged, scatter
from analyzer.figures.theme import Theme, decade_step, labeled
from analyzer.vocabulary.methods import Method

__all__ = ["OVERVIEW", "drawn_parts", "overview_sketch", "rows_of"]

# Heights in pixels, from top to bottom, of each row by how many runs there are, and of what stands
# over it: its words, and the axis of the row before.
_NETWORK, _PROFILE, _LOSS = 42, 132, 70
_GRIDS = {1: 150, 2: 74, 3: 54}
_WORDS, _AXIS, _FOOT = 21, 40, 44
# Of a narrow page: a further line of words, and the color bar below the heatmaps.
_LINE, _BAR = 16, 56

Row = tuple[str, int]
"""A row: ``network``, ``profile``, ``grid`` or ``loss``, and the place of its run, or -1."""


def overview_sketch(info: Overview, theme: Theme, *, is_narrow: bool = False) -> Sketch:
    """Draw one to three runs as rows, all but the last on one axis of depth, input at the left.

    From top to bottom: an arc for each shortcut of each run that has some; the gradient along depth
    of all runs at the step, and without shortcuts where that was measured; the gradient at every
    step, a heatmap for each run; the loss. On a narrow page words over a row have several lines.
    """
    rows = rows_of(info)
    words = list(row_words(info, rows, theme))
    lines = [len(parts) if is_narrow else 1 for parts in words]
    domains, height = _domains(rows, lines, len(info.runs), _BAR if is_narrow else 0)
    grids = [domain for (kind, _), domain in zip(rows, domains, strict=True) if kind == "grid"]
    bar = {"len": grids[0][1] - grids[-1][0], "x": 1.025, "y": grids[0][1], "yanchor": "top"}
    if is_narrow:
        bar = {"orientation": "h", "x": 0.5, "xanchor": "center", "len": 0.8, "thickness": 10}
        inside = height - _FOOT - _WORDS - _LINE * (lines[0] - 1)
        bar |= {"y": grids[-1][0] - _AXIS / inside, "yanchor": "top"}
    color = color_bar("‖∂L/∂y‖₂", info.lowest_color, info.high, is_log=True, **bar)
    color["title"] |= {"side": "top" if is_narrow else "right"}
    layout = merged(
        theme.layout(height),
        {
            "shapes": _step_shapes(info, rows, theme),
            "annotations": list(
                _notes(
                    rows,
                    domains,
                    words,
                    theme,
                    between="<br>" if is_narrow else " ",
                    has_rug=any((one.grid.marks == NONFINITE).any() for one in info.runs),
                )
            ),
            "coloraxis": {
                "colorscale": theme.colorscale,
                "cmin": info.lowest_color,
                "cmax": info.high,
                "colorbar": color,
            },
            "margin": {
                "l": 54 if is_narrow else 62,
                "r": 16 if is_narrow else 84,
                "t": _WORDS + _LINE * (lines[0] - 1),
                "b": _FOOT,
            },
        },
    )
    layout["height"] = height
    axes = _axes(info, rows, domains, theme, 3 if is_narrow else 1)
    return Sketch([trace for _, _, trace in drawn_parts(info, theme)], layout | axes)


def rows_of(info: Overview) -> list[Row]:
    """The rows from top to bottom."""
    places = range(len(info.runs))
    joined = [("network", k) for k in places if len(info.runs[k].arcs.joins)]
    return [*joined, ("profile", -1), *(("grid", k) for k in places), ("loss", -1)]


def _domains(
    rows: Sequence[Row], lines: Sequence[int], count: int, bar: int
) -> tuple[list[tuple[float, float]], int]:
    """Lower and upper edge of each row on the paper, and the height of the figure.

    A color bar of some height stands over the loss.
    """
    sizes = {"network": _NETWORK, "profile": _PROFILE, "grid": _GRIDS[count], "loss": _LOSS}
    edges, at = [], 0
    for place, (kind, _) in enumerate(rows):
        over = _WORDS + _LINE * (lines[place] - 1)
        at += (over if place else 0) + (_AXIS + bar if kind == "loss" else 0)
        edges.append((at, at + sizes[kind]))
        at += sizes[kind]
    return [(max(0.0, 1 - low / at), 1 - high / at) for high, low in edges], (
        at + _WORDS + _LINE * (lines[0] - 1) + _FOOT
    )


def _axis_names(rows: Sequence[Row], row: Row) -> dict[str, str]:
    """The axes of a row, as traces name them: all but the loss share the axis of depth."""
    at = rows.index(row) + 1
    return {"xaxis": "x2" if row[0] == "loss" else "x", "yaxis": "y" if at == 1 else f"y{at}"}


def drawn_parts(info: Overview, theme: Theme) -> Iterator[tuple[int, str, Trace]]:
    """Every trace in its order, with the place of its run and what it is.

    Another step changes arcs, profile, marks and handle.
    """
    rows = rows_of(info)
    highest = highest_level(info.runs)
    middle = _axis_names(rows, ("profile", -1))
    last = step_range([column.grid for column in info.runs])
    for place, column in enumerate(info.runs):
        color = theme.style(column.label.style).color
        names = [labeled(name) for name in column.grid.names]
        at = column.grid.positions
        if ("network", place) in rows:
            top = _axis_names(rows, ("network", place))
            for arc in arc_traces(column.arcs, theme, highest, top, in_legend=False):
                yield place, "arcs", arc
            yield place, "dots", layer_dots(at, column.grid.names, color, theme) | top
        for part, line in _behind(column, theme):
            yield place, part, line | middle
        yield place, "profile", _profile(column, theme, middle)
        marks = edge_marks(at, column.profile, theme, is_log=True, names=names, **middle)
        yield place, "marks", marks | {"showlegend": False}
        on = _axis_names(rows, ("grid", place)) | {"coloraxis": "coloraxis"}
        for trace in grid_traces(column.grid, theme, is_log=True, axes=on):
            yield place, "grid", trace
        if column.broke is not None:
            across, ring = _broke(column, info, theme)
            yield place, "broke", across | middle
            yield place, "broke", ring | _axis_names(rows, ("grid", place))
        yield place, "handle", _handle(column, info, theme) | _axis_names(rows, ("grid", place))
        unnamed: Trace = _axis_names(rows, ("loss", -1)) | {"showlegend": False}
        for line in band_traces(column.loss, column.label, theme, **unnamed):
            yield place, "loss", line | unnamed
        if np.isfinite(column.guess) and place == 0:
            line = {"color": theme.text, "width": 1, "dash": "dot"}
            said = f"guessing by the classes' shares: {number(column.guess)}<extra></extra>"
            yield (
                place,
                "guess",
                scatter(unnamed, x=last, y=[column.guess] * 2, mode="lines", line=line)
                | {"hovertemplate": said},
            )


def _broke(column: OverviewColumn, info: Overview, theme: Theme) -> tuple[Trace, Trace]:
    """Where the run was not finite first: a line across the profile, a ring in its heatmap."""
    first = column.broke
    assert first is not None  # asked before
    said = f"first NaN or infinite: {first.what} of {labeled(first.name)}, step {first.step:,}"
    more: Trace = {"hovertemplate": f"{said}<extra></extra>", "showlegend": False}
    ends = [10.0**end for end in log_range(info.low, info.high)]
    across: Trace = {"x": [column.broke_at] * 2, "y": ends, "mode": "lines"}
    across["line"] = {"color": theme.mark, "width": 1.5, "dash": "dashdot"}
    ring: Trace = {"x": [column.broke_at], "y": [first.step], "mode": "markers"}
    look = {"symbol": "circle-open", "size": 13, "color": theme.text, "line": {"width": 2}}
    return scatter(across, more), scatter(ring, more, marker=look)


def _handle(column: OverviewColumn, info: Overview, theme: Theme) -> Trace:
    """What the step is dragged by, at the right end of its line."""
    marker = {"symbol": "triangle-left", "size": 13, "color": theme.text}
    place = {"x": [info.depth[1] + 0.8], "y": [column.step], "mode": "markers"}
    return scatter(place, marker=marker, cliponaxis=False, hoverinfo="skip", showlegend=False)


def _step_shapes(info: Overview, rows: Sequence[Row], theme: Theme) -> list[dict[str, Any]]:
    """Lines that mark the step, for each run two in its heatmap, dark on light, one in the loss."""
    shapes = []
    for place, column in enumerate(info.runs):
        grid = _axis_names(rows, ("grid", place))
        loss = _axis_names(rows, ("loss", -1))
        line = {"type": "line", "x0": 0, "x1": 1, "y0": column.step, "y1": column.step}
        at = {"xref": f"{grid['xaxis']} domain", "yref": grid["yaxis"]}
        shapes += [
            line | at | {"line": {"color": color, "width": width}}
            for color, width in (("#ffffff", 4), ("#111111", 1.5))
        ]
        line = {"type": "line", "x0": column.step, "x1": column.step, "y0": 0, "y1": 1}
        look = {"line": {"color": theme.text, "width": 1.5}}
        shapes.append(line | look | {"xref": loss["xaxis"], "yref": f"{loss['yaxis']} domain"})
    return shapes


def _profile(column: OverviewColumn, theme: Theme, axes: dict[str, str]) -> Trace:
    return run_line(
        column.label,
        theme,
        x=column.grid.positions,
        y=placed(column.profile, True),
        text=[labeled(name) for name in column.grid.names],
        hovertemplate="%{text}: %{y:.3e}",
        showlegend=False,
        **axes,
    )


def _behind(column: OverviewColumn, theme: Theme) -> Iterator[tuple[str, Trace]]:
    """The gradient of the same weights with every shortcut taken out; the line that is fitted."""
    color, name = theme.style(column.label.style).color, labeled(column.label.text)
    more: Trace = {"mode": "lines", "showlegend": False}
    if len(column.without):
        more["name"] = f"{name} without its shortcuts, step {column.without_step:,}"
        words = {"text": [labeled(one) for one in column.grid.names]}
        place: Trace = {"x": column.grid.positions, "y": placed(column.without, True)}
        line = {"color": color, "width": 1.75, "dash": "dot"}
        yield "without", scatter(place, words, more, line=line, hovertemplate="%{text}: %{y:.3e}")
    if column.fit:
        place = {"x": list(column.fit[0]), "y": list(column.fit[1])}
        more |= {"name": f"{name}: fit along depth", "hovertemplate": "%{y:.3e}"}
        yield "fit", scatter(place, more, line={"color": color, "width": 1, "dash": "dash"})


def _notes(
    rows: Sequence[Row],
    domains: Sequence[tuple[float, float]],
    words: Sequence[Sequence[str]],
    theme: Theme,
    *,
    between: str,
    has_rug: bool,
) -> Iterator[dict[str, Any]]:
    """The words of each row over it; last, which way the backward pass runs along depth."""
    place: dict[str, Any] = {"xref": "paper", "yref": "paper", "showarrow": False}
    place |= {"yanchor": "bottom", "font": {"size": 12.5, "color": theme.text}}
    left = {"x": 0.0, "xanchor": "left", "align": "left"}
    for (kind, _), parts, (_, top) in zip(rows, words, domains, strict=True):
        # Over the rug of what is not finite.
        above = {"yshift": 6} if has_rug and kind in ("profile", "loss") else {}
        yield place | left | {"text": between.join(parts), "y": top} | above
    low, _ = domains[rows.index(("profile", -1))]
    yield place | {"x": 1.0, "xanchor": "right", "text": "← backward pass", "y": low}


def _axes(
    info: Overview,
    rows: Sequence[Row],
    domains: Sequence[tuple[float, float]],
    theme: Theme,
    parts: int,
) -> Layout:
    """All axes by their names in the layout; ``parts`` as the ``panes`` of `stage_ticks`."""
    low, high = log_range(info.low, info.high)
    lowest, highest = info.loss_range
    room = 0.05 * (highest - lowest or 1.0)
    # Matched axes that find their own range find a wrong one over heatmaps (plotly.js 4.1).
    steps = step_range([column.grid for column in info.runs])
    ranges = {"network": [-0.18, 1.12], "profile": [low, high], "grid": steps}
    ranges["loss"] = [lowest - room, highest + room]
    titles = {"network": "", "profile": "‖∂L/∂y‖₂", "grid": "step", "loss": "loss"}
    first = _axis_names(rows, ("grid", 0))["yaxis"]
    common = {"ticks": "", "gridcolor": theme.grid, "zeroline": False, "tickfont": {"size": 11}}
    axes: Layout = {}
    for row, domain in zip(rows, domains, strict=True):
        kind, names = row[0], _axis_names(rows, row)
        axes[layout_name(names["yaxis"])] = common | {
            "domain": list(domain),
            "anchor": names["xaxis"],
            "title": {"text": titles[kind], "standoff": 6, "font": {"size": 12}},
            "type": "log" if kind == "profile" else "linear",
            "exponentformat": "power",
            # All digits between powers would be labeled otherwise.
            **({"dtick": decade_step(high - low, 5)} if kind == "profile" else {"nticks": 4}),
            "visible": kind != "network",
            "range": ranges[kind],
            **({"tickformat": ",d"} if kind == "grid" else {}),
            **({"matches": first} if kind == "grid" and row[1] else {}),
        }
    longest = max(info.runs, key=lambda column: len(column.grid.names))
    axes["xaxis"] = common | {
        "domain": [0.0, 1.0],
        "anchor": _axis_names(rows, rows[-2])["yaxis"],
        "range": [info.depth[0] - 1.2, info.depth[1] + 0.8],
        "title": {"text": "depth: input → output", "standoff": 2, "font": {"size": 12}},
        **hover_names(longest.grid.names, longest.grid.positions),
        **stage_ticks(
            longest.stages, info.depth, parts, (longest.grid.names[0], longest.grid.names[-1])
        ),
    }
    axes["xaxis2"] = merged(
        STEP | common,
        {
            "domain": [0.0, 1.0],
            "anchor": _axis_names(rows, rows[-1])["yaxis"],
            "range": steps,
            "title": {"font": {"size": 12}},
        },
    )
    return axes


OVERVIEW = Panel(
    key="overview",
    title="Overview",
    how_to_read="Depth runs along x in every row but the last, so go straight down from a shortcut "
    "to what it does: an arc for each shortcut, the gradient along depth at the chosen step "
    "(dotted: at the same weights, with the shortcuts taken out; thin and dashed, of a network "
    "without shortcuts: the fit along depth), the same at all recorded steps, and the loss. A ring "
    "marks the layer that was not finite first.",
    method=Method(
        title="Depth",
        text="Number of layers on the longest path from the input of the network; parallel "
        "branches share depth.",
    ),
    needs=("output_gradient_norm",),
    info=overview,
    drawing=overview_sketch,
    narrow=lambda info, theme: overview_sketch(info, theme, is_narrow=True),
    reads=("step", "layers", "aggregate", "smooth", "relative"),
    height=620,
)

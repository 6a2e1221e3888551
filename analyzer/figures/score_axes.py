"""Where the rows and columns of the score stand, and the ranges that they share."""

import numpy as np

from analyzer.analysis.overview import Overview as Score
from analyzer.analysis.overview import OverviewColumn as ScoreColumn
from analyzer.figures.marks import log_range
from analyzer.figures.sketch import Layout
from analyzer.figures.stages import stage_ticks
from analyzer.figures.theme import Theme, decade_step

__all__ = ["ROWS", "axes_of_column", "axis_names", "layout_name", "profile_bounds"]

# Lower and upper edge of the rows, from the bottom: loss, grid, profile, network.
ROWS = {
    "loss": (0.0, 0.12),
    "grid": (0.21, 0.57),
    "profile": (0.63, 0.82),
    "network": (0.88, 0.97),
}
_GAP = 0.05
_SHARED = 4


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


def profile_bounds(info: Score) -> tuple[float, float]:
    """Return the edges of row 2 in values, where marks stand."""
    low, high = log_range(info.low, info.high)
    with np.errstate(over="ignore", under="ignore"):
        return float(np.power(10.0, low)), float(np.power(10.0, high))


def axes_of_column(info: Score, column: ScoreColumn, place: int, theme: Theme) -> Layout:
    """Return the axes of one column by their names in the layout; only the first one is labeled.

    Args:
        info: All runs, for the ranges that they share.
        column: The run.
        place: Its place from the left.
        theme: Colors.
    """
    count = len(info.runs)
    width = (1 - _GAP * (count - 1)) / count
    across = [place * (width + _GAP), place * (width + _GAP) + width]
    names = {row: axis_names(place, row) for row in ROWS}
    titles, ranges = _titles(info), _ranges(info)
    axes: Layout = {}
    for row, domain in ROWS.items():
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


def _decades_per_tick(info: Score) -> int:
    low, high = log_range(info.low, info.high)
    return decade_step(high - low)


def _titles(info: Score) -> dict[str, str]:
    """Titles of the rows, at the left of the first column."""
    steps = {column.step for column in info.runs}
    when = f"at step {steps.pop()}" if len(steps) == 1 else "at the step"
    return {"network": "", "profile": f"‖δ‖₂ {when}", "grid": "step", "loss": "loss"}


def _ranges(info: Score) -> dict[str, list[float]]:
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


def _step_range(info: Score) -> list[float]:
    """First and last step of all runs, with half a bin at each end."""
    first = min(float(column.grid.steps[0]) for column in info.runs)
    last = max(float(column.grid.steps[-1] + column.grid.width - 1) for column in info.runs)
    room = max(0.5, 0.004 * (last - first))
    return [first - room, last + room]


def layout_name(axis: str) -> str:
    """Return the name of an axis in the layout: ``xaxis2`` for ``x2``."""
    return f"{axis[0]}axis{axis[1:]}"

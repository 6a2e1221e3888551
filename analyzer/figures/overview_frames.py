"""What a browser needs to draw another step of the overview by itself."""

import base64
from typing import Any

import numpy as np

from analyzer.analysis.flow_grid import NONFINITE, ZERO, GridColumn
from analyzer.analysis.overview import Overview, OverviewColumn
from analyzer.analysis.shortcuts import SHARE_LEVELS
from analyzer.figures.overview import drawn_parts, rows_of
from analyzer.figures.shortcuts import arc_words, highest_level, outline
from analyzer.figures.theme import LIGHT

__all__ = ["overview_frames"]

_NO_VALUE, _IS_ZERO, _IS_NONFINITE = -32768, 32766, 32767


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
        figure: ``profile_trace``, ``mark_trace``, ``handle_trace``, ``arc_traces`` (five of
        identities, five of others, one of unknown share; none without joins), ``step_shapes`` (two
        in the heatmap, one in the loss), ``step_words`` (the annotation that names the step).
    """
    order = [(place, part) for place, part, _ in drawn_parts(info, LIGHT)]
    highest = highest_level(info.runs)
    rows = rows_of(info)
    # Each row has its words, and that of the profile says twice what it shows.
    words = rows.index(("profile", -1))
    runs = []
    for place, column in enumerate(info.runs):
        at = {
            part: [k for k, one in enumerate(order) if one == (place, part)]
            for part in ("arcs", "profile", "marks", "handle")
        }
        run = _run_frames(info, column, highest) | {
            "profile_trace": at["profile"][0],
            "mark_trace": at["marks"][0],
            "handle_trace": at["handle"][0],
            "arc_traces": at["arcs"],
            "step_shapes": [3 * place + k for k in range(3)],
            "step_words": words,
        }
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

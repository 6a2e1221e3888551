"""What a browser needs to show rows 1 and 2 of the overview at another step without the server."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.flow_grid import NONFINITE
from analyzer.analysis.overview import Overview, OverviewColumn
from analyzer.analysis.shortcuts import SHARE_LEVELS
from analyzer.figures.overview import axis_names, drawn_parts, layout_name, note_places
from analyzer.figures.shortcuts import arc_words, outline
from analyzer.figures.theme import LIGHT

__all__ = ["NO_VALUE", "overview_frames", "packed"]

NO_VALUE, IS_NONFINITE = -32768, 32767


def overview_frames(info: Overview) -> dict[str, Any]:
    """Return the profiles and shares of every shown step, as JSON can hold them.

    Norms are decimal logarithms in 16-bit integers, ``log10 ‖∂L/∂y‖ = offset + scale · n``;
    ``no_value`` stands for null and for zero, ``nonfinite`` for NaN and infinities. Arcs are
    outlines: a browser puts the outline of each arc into the trace of its level, gaps between.

    Args:
        info: The record that was drawn.

    Returns:
        ``levels`` (upper bounds of the first four), ``no_value``, ``nonfinite``, ``low`` and
        ``high``; and for each run in ``runs``: ``name``, ``steps``, ``norms`` (``bdata`` in base64,
        ``shape`` [steps, rows], ``offset``, ``scale``), ``positions``, ``layers``,
        ``gains`` (per layer, one a step), ``share_steps``, ``shares`` [splits][arcs],
        ``arcs`` (``x``, ``y``, ``text``, ``is_identity``), and the places of the traces in the
        figure: ``profile_trace``, ``mark_trace``, ``behind_traces``, ``arc_traces`` (five of
        identities, five of others, one of unknown share), ``step_shapes`` (in rows 3
        and 4), ``note_annotation`` (the numbers over row 2), ``profile_axis`` (whose title names
        the step).
    """
    order = [(place, part) for place, part, _ in drawn_parts(info, LIGHT)]
    highest = max([int(level) for c in info.runs for level in c.arcs.levels], default=1)
    notes = note_places(info)
    runs = [_run(info, column, highest) for column in info.runs]
    for place, run in enumerate(runs):
        at = {
            part: [k for k, one in enumerate(order) if one == (place, part)]
            for part in ("arcs", "behind", "profile", "marks")
        }
        run |= {
            "profile_trace": at["profile"][0],
            "mark_trace": at["marks"][0],
            "behind_traces": at["behind"],
            "arc_traces": at["arcs"],
            "step_shapes": [2 * place, 2 * place + 1],
            "note_annotation": notes[place],
            "profile_axis": layout_name(axis_names(0, "profile")["yaxis"]),
        }
    return {
        "levels": list(SHARE_LEVELS[:-1]),
        "no_value": NO_VALUE,
        "nonfinite": IS_NONFINITE,
        "low": info.low,
        "high": info.high,
        "runs": runs,
    }


def _run(info: Overview, column: OverviewColumn, highest: int) -> dict[str, Any]:
    grid, arcs = column.grid, column.arcs
    shapes = zip(outline(arcs, highest), arc_words(arcs), arcs.shortcuts, strict=True)
    shares = np.round(column.shares.astype(np.float64), 4)
    return {
        "name": column.label.text,
        "step": column.step,
        "steps": grid.steps.tolist(),
        "norms": packed(grid.log10.T, (grid.marks == NONFINITE).T, info.low, info.high),
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


def packed(
    log10: NDArray[np.float64], is_nonfinite: NDArray[np.bool_], low: float, high: float
) -> dict[str, Any]:
    """Return numbers between two bounds as 16-bit integers in base64, little-endian.

    Args:
        log10: ``[steps, rows]``; NaN for no value.
        is_nonfinite: Where the recorded value is NaN or infinite.
        low: Smallest number.
        high: Largest number.

    Returns:
        ``bdata``, ``shape``, ``offset``, ``scale``; a number is off by half of ``scale`` at most.
    """
    scale = (high - low) / 65_000
    offset = (low + high) / 2
    known = np.isfinite(log10)
    whole = np.where(known, np.round((np.where(known, log10, offset) - offset) / scale), NO_VALUE)
    whole[is_nonfinite] = IS_NONFINITE
    data = base64.b64encode(whole.astype("<i2").tobytes()).decode("ascii")
    return {"bdata": data, "shape": list(log10.shape), "offset": offset, "scale": scale}

"""The network as a strip in depth order, one arc per join, with its shortcut share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.join_arcs import JoinArcs, join_arcs
from analyzer.analysis.numerals import counted, percent
from analyzer.analysis.sources import for_each_run, joined_table, missing_clause, not_recorded
from analyzer.analysis.stages import stage_borders
from analyzer.analysis.view import RunLabel, View, row_set
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SkipRow", "SkipStrip", "skip_strip"]

Floats = NDArray[np.float64]
_MOST_ARCS = 110


@dataclass(frozen=True, eq=False)
class SkipRow:
    """The network of one run as a strip.

    Args:
        label: Name and style of the run.
        positions: Place of each layer along depth.
        names: Their names.
        arcs: The joins; a band of groups where there are many.
        stages: Depth and name at which a stage begins.
        num_joins: Joins of the run.
    """

    label: RunLabel
    positions: Floats
    names: tuple[str, ...]
    arcs: JoinArcs
    stages: tuple[tuple[float, str], ...]
    num_joins: int


@dataclass(frozen=True, eq=False)
class SkipStrip:
    """Strips of all runs with joins.

    Args:
        rows: One per run.
        caption: The finding with its number.
    """

    rows: tuple[SkipRow, ...]
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run and join, or group of joins."""
        return joined_table(
            {
                "run": row.label.text,
                "step": row.arcs.step,
                "join": row.arcs.joins,
                "name": row.arcs.names,
                "shortcut": row.arcs.shortcuts,
                "fork_depth": row.arcs.starts,
                "join_depth": row.arcs.ends,
                "shortcut_share": row.arcs.shares,
            }
            for row in self.rows
        )


def skip_strip(view: View) -> SkipStrip:
    """Read the joins of every run with their shares at the step of the view.

    Raises:
        NotRecordedError: If no run has joins.
    """
    rows, missing = for_each_run(view, lambda run, label: _row(view, run, label))
    return SkipStrip(rows, " ".join(map(_sentence, rows)) + missing_clause(missing))


def _row(view: View, run: Run, label: RunLabel) -> SkipRow:
    arcs = join_arcs(run, view.step)
    if not len(arcs.joins):
        reason = "its net has no join that the recorder sees; the manifest names hidden ones"
        raise not_recorded("joins were", run, reason)
    layers = row_set(run, "output_gradient_norm")
    stages = stage_borders(layers.names, layers.positions)
    drawn = arcs.thinned(_MOST_ARCS)
    return SkipRow(label, layers.positions, layers.names, drawn, stages, len(run.joins))


def _sentence(row: SkipRow) -> str:
    joins = counted(row.num_joins, "join")
    if row.arcs.step is None or not np.isfinite(row.arcs.median_share):
        return f"{row.label.text}: {joins}; shares were not recorded (add `--splits-every 10`)."
    shares = row.arcs.shares
    low, high = (int(pick(shares)) for pick in (np.nanargmin, np.nanargmax))
    least, most = (f"{row.arcs.names[k]} ({percent(shares[k])})" for k in (low, high))
    return (
        f"{row.label.text}: at step {row.arcs.step}, {joins} carry "
        f"{percent(row.arcs.median_share)} of the gradient through their shortcuts (median), "
        f"least at {least}, most at {most}."
    )

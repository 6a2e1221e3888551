"""The update ratio ``‖Δθ‖ / ‖θ‖`` of every parameter over the steps at which it was measured."""

from dataclasses import replace

import numpy as np

from analyzer.analysis.flow_grid import FlowGrid, GridColumn, grid_column, value_range
from analyzer.analysis.numerals import number
from analyzer.analysis.sources import for_each_run, missing_clause, not_recorded
from analyzer.analysis.view import RunLabel, View
from analyzer.storage.run import Run

__all__ = ["update_grid"]

_RATIO = "update_ratio"


def update_grid(view: View) -> FlowGrid:
    """Read the update ratio of every run, parameter × step.

    ``‖θ_after − θ_before‖₂ / ‖θ_before‖₂``; about 1e-3 is usual when training from scratch. In bins
    of several steps it is the ratio of the two summarized norms.

    Returns:
        The grid; steps at which no update was measured are left out, and a parameter that is all
        zeros has no number.

    Raises:
        NotRecordedError: If no run measured updates.
        AnalyzerError: If the pattern for parameters is refused or matches nothing.
    """
    columns, missing = for_each_run(view, lambda run, label: _column(view, run, label))
    low, high = value_range(columns, is_log=True)
    caption = " ".join(map(_sentence, columns)) + missing_clause(missing)
    label = "update ratio ‖Δθ‖ / ‖θ‖"
    return FlowGrid(_RATIO, label, True, view.aggregate, columns, low, high, caption)


def _column(view: View, run: Run, label: RunLabel) -> GridColumn:
    asked = replace(view, relative=False)
    update = grid_column(replace(asked, quantity="update_norm"), run, label)
    norm = grid_column(replace(asked, quantity="norm"), run, label)
    shared, ours, theirs = np.intersect1d(update.steps, norm.steps, return_indices=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = update.values[:, ours] / norm.values[:, theirs]
    # A bias of zeros gives x / 0, which is no number to compare.
    ratio = np.where(norm.values[:, theirs] == 0, np.nan, ratio)
    marks = update.marks[:, ours]
    measured = np.isfinite(ratio).any(axis=0) | (marks > 0).any(axis=0)
    if not measured.any():
        remedy = "add `--updates-every 10`; the manifest says where memory did not allow it"
        raise not_recorded("updates were", run, remedy)
    return replace(
        update, steps=shared[measured], values=ratio[:, measured], marks=marks[:, measured]
    )


def _sentence(column: GridColumn) -> str:
    """The median ratio of the last step, and where it is smallest and largest."""
    last = column.values[:, -1]
    known = np.flatnonzero(np.isfinite(last))
    start = f"{column.label.text}, step {column.steps[-1]}:"
    if not len(known):
        return f"{start} no update ratio is finite."
    low, high = (int(known[pick(last[known])]) for pick in (np.argmin, np.argmax))
    return (
        f"{start} the update ratio is {number(float(np.median(last[known])))} (median), from "
        f"{number(last[low])} ({column.names[low]}) to {number(last[high])} ({column.names[high]})."
    )

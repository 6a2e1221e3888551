"""Singular values of the Jacobian of each block and of the whole network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import number
from analyzer.analysis.sources import (
    for_each_run,
    joined_table,
    missing_clause,
    not_recorded,
    probe_rows_at,
)
from analyzer.analysis.view import RunLabel, View
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BlockSpectra", "RunSpectra", "block_spectra"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RunSpectra:
    """The spectra of one run at one step.

    Args:
        label: Name and style of the run.
        step: Step of the probe.
        names: Blocks in forward order, then the whole network.
        blocks: Place in ``names`` of each singular value, ``[values]``.
        orders: Place of each value from the largest of its block, ``[values]``.
        values: Singular values, in unit of y / unit of x, ``[values]``.
    """

    label: RunLabel
    step: int
    names: tuple[str, ...]
    blocks: NDArray[np.int64]
    orders: NDArray[np.int64]
    values: Floats

    def span(self, block: int) -> tuple[float, float]:
        """Return the largest and the smallest value of a block; NaN where one is NaN."""
        mine = self.values[self.blocks == block]
        return float(mine.max()), float(mine.min())


@dataclass(frozen=True, eq=False)
class BlockSpectra:
    """Spectra of all runs with the probe.

    Args:
        runs: One per run.
        low: Smallest value above 0, of all runs; NaN without one.
        high: Largest finite value.
        caption: The finding with its number.
    """

    runs: tuple[RunSpectra, ...]
    low: float
    high: float
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run, block and singular value."""
        return joined_table(
            {
                "run": run.label.text,
                "step": run.step,
                "name": [run.names[block] for block in run.blocks],
                "rank_order": run.orders,
                "singular_value": run.values,
            }
            for run in self.runs
        )


def block_spectra(view: View) -> BlockSpectra:
    """Read the Jacobian spectra of every run at the probe nearest to the step.

    Raises:
        NotRecordedError: If no run has them.

    Reference:
        Saxe et al. (2013); Pennington et al. (2017), Resurrecting the sigmoid.
    """
    runs, missing = for_each_run(view, lambda run, label: _spectra(view, run, label))
    values = np.concatenate([run.values for run in runs])
    shown = values[np.isfinite(values) & (values > 0)]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (np.nan, np.nan)
    return BlockSpectra(runs, low, high, " ".join(map(_sentence, runs)) + missing_clause(missing))


def _spectra(view: View, run: Run, label: RunLabel) -> RunSpectra:
    step, rows = probe_rows_at(run, "jacobian", view.step)
    if not len(rows):
        raise not_recorded("probe jacobian has no value:", run, "add `--probe jacobian`")
    names = tuple(dict.fromkeys(rows["name"].astype(str)))
    place = {name: at for at, name in enumerate(names)}
    blocks = np.array([place[str(name)] for name in rows["name"]], np.int64)
    orders = rows["rank_order"].to_numpy(np.int64)
    return RunSpectra(label, step, names, blocks, orders, rows["singular_value"].to_numpy(float))


def _sentence(run: RunSpectra) -> str:
    """What the last spectrum, that of the whole network, spans."""
    top, bottom = run.span(len(run.names) - 1)
    start = f"{run.label.text}, step {run.step}: singular values of {run.names[-1]}"
    if not (np.isfinite(top) and np.isfinite(bottom)):
        return f"{start} are not all finite."
    ratio = f", a condition number of {number(top / bottom)}" if bottom > 0 else ""
    return f"{start} reach from {number(bottom)} to {number(top)}{ratio}."

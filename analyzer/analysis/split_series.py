"""Shortcut shares over the steps: the median over joins, and how far they lie apart."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import grouped, smoothed
from analyzer.analysis.join_arcs import join_arcs, share_grid
from analyzer.analysis.numerals import percent
from analyzer.analysis.sources import for_each_run, joined_table, missing_clause, not_recorded
from analyzer.analysis.view import RunLabel, View
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SplitCurves", "SplitSeries", "split_series"]

Floats = NDArray[np.float64]
_MOST_POINTS, _MOST_LINES = 300, 12


@dataclass(frozen=True, eq=False)
class SplitCurves:
    """Shares of one run.

    Args:
        label: Name and style of the run.
        steps: First step of each bin, ``[points]``.
        median: Median over joins, ``[points]``.
        low: Smallest over joins.
        high: Largest over joins.
        names: Joins drawn one by one; none where there are more than twelve.
        shares: Their shares, ``[points, names]``.
        smooth: The median smoothed; None where that was not asked for.
    """

    label: RunLabel
    steps: NDArray[np.int64]
    median: Floats
    low: Floats
    high: Floats
    names: tuple[str, ...]
    shares: Floats
    smooth: Floats | None


@dataclass(frozen=True, eq=False)
class SplitSeries:
    """Shares of all runs with joins.

    Args:
        runs: One per run.
        caption: The finding with its number.
    """

    runs: tuple[SplitCurves, ...]
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run and step."""
        return joined_table(
            {
                "run": run.label.text,
                "step": run.steps,
                "min_shortcut_share": run.low,
                "median_shortcut_share": run.median,
                "max_shortcut_share": run.high,
                **dict(zip(run.names, run.shares.T, strict=True)),
            }
            for run in self.runs
        )


def split_series(view: View) -> SplitSeries:
    """Read the shortcut shares of every run over its steps.

    Raises:
        NotRecordedError: If no run has splits.
    """
    runs, missing = for_each_run(view, lambda run, label: _curves(view, run, label))
    return SplitSeries(runs, " ".join(map(_sentence, runs)) + missing_clause(missing))


def _curves(view: View, run: Run, label: RunLabel) -> SplitCurves:
    arcs = join_arcs(run, view.step)
    steps, shares = share_grid(run, arcs, _MOST_POINTS)
    if not len(steps):
        remedy = "a net without joins has none; else add `--splits-every 10`"
        raise not_recorded("splits were", run, remedy)
    count = shares.shape[1]
    low, median, high = (grouped(shares, count, how)[:, 0] for how in ("min", "median", "max"))
    few = count <= _MOST_LINES
    names = arcs.names if few else ()
    smooth = smoothed(median) if view.smooth else None
    lines = shares if few else shares[:, :0]
    return SplitCurves(label, steps, median, low, high, names, lines, smooth)


def _sentence(run: SplitCurves) -> str:
    known = np.flatnonzero(np.isfinite(run.median))
    if not len(known):
        return f"{run.label.text}: no shortcut share is finite."
    first, last = int(known[0]), int(known[-1])
    if first == last:
        share = percent(run.median[first])
        return f"{run.label.text}: the median shortcut share is {share} at step {run.steps[first]}."
    return (
        f"{run.label.text}: the median shortcut share goes from {percent(run.median[first])} at "
        f"step {run.steps[first]} to {percent(run.median[last])} at step {run.steps[last]}."
    )

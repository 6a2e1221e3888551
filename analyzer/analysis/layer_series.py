"""A quantity of chosen layers over the steps, with its min–max band."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analyzer.analysis.bands import Band, series_band
from analyzer.analysis.numerals import number
from analyzer.analysis.sources import for_each_run, joined_table, missing_clause, not_recorded
from analyzer.analysis.view import RunLabel, View, row_set
from analyzer.storage.run import Run
from analyzer.vocabulary import quantity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LayerSeries", "RunSeries", "layer_series"]

_MOST_LAYERS, _MOST_POINTS = 5, 500


@dataclass(frozen=True, eq=False)
class RunSeries:
    """Series of one run.

    Args:
        label: Name and style of the run.
        names: Layers or parameters, by depth; five at the most.
        bands: The series of each.
        num_matching: Layers or parameters that were asked for.
    """

    label: RunLabel
    names: tuple[str, ...]
    bands: tuple[Band, ...]
    num_matching: int


@dataclass(frozen=True, eq=False)
class LayerSeries:
    """Series of the same quantity in every run.

    Args:
        quantity: Its key.
        label: What the axis says.
        is_log: Whether the axis is logarithmic.
        runs: One per run that has the quantity.
        low: Smallest finite value that the axis can show, of all runs; NaN without one.
        high: Largest one.
        caption: The finding with its number.
    """

    quantity: str
    label: str
    is_log: bool
    runs: tuple[RunSeries, ...]
    low: float
    high: float
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run, layer and bin of steps."""
        return joined_table(
            {
                "run": run.label.text,
                "layer": name,
                "step": band.steps,
                "min": band.low,
                self.quantity: band.middle,
                "max": band.high,
                "num_nonfinite": band.num_nonfinite,
            }
            for run in self.runs
            for name, band in zip(run.names, run.bands, strict=True)
        )


def layer_series(view: View) -> LayerSeries:
    """Read the series of the layers that the view picks, or of five from the first to the last.

    Raises:
        NotRecordedError: If no run has the quantity.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    runs, missing = for_each_run(view, lambda run, label: _series(view, run, label))
    row = quantity(view.quantity)
    is_log = row.scale == "log"
    edges = np.concatenate([np.r_[b.low, b.high] for run in runs for b in run.bands])
    shown = edges[np.isfinite(edges) & ((edges > 0) | (not is_log))]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (np.nan, np.nan)
    caption = " ".join(_sentence(run, row.label) for run in runs) + missing_clause(missing)
    return LayerSeries(view.quantity, row.label, is_log, runs, low, high, caption)


def _series(view: View, run: Run, label: RunLabel) -> RunSeries:
    rows = row_set(run, view.quantity, view.layers)
    if not len(rows.ids):
        raise not_recorded("layers were", run, "wait for the first step, or record it again")
    places = np.linspace(0, len(rows.ids) - 1, min(_MOST_LAYERS, len(rows.ids))).round()
    chosen = np.unique(places.astype(int))
    bands = tuple(
        series_band(
            run.series(view.quantity, int(rows.ids[k]), _MOST_POINTS, table=rows.table),
            smooth=view.smooth,
        )
        for k in chosen
    )
    if not any(len(band.steps) for band in bands):
        raise not_recorded(f"{view.quantity} was", run, "record with `--columns all`")
    return RunSeries(label, tuple(rows.names[k] for k in chosen), bands, len(rows.ids))


def _sentence(run: RunSeries, what: str) -> str:
    """Where the first of the layers began and where it ended."""
    band = run.bands[0]
    known = np.flatnonzero(np.isfinite(band.middle))
    if not len(known):
        return f"{run.label.text}: {what} of {run.names[0]} is nowhere finite."
    first, last = int(known[0]), int(known[-1])
    start, end = number(band.middle[first]), number(band.middle[last])
    return (
        f"{run.label.text}: {what} of {run.names[0]} goes from {start} at step {band.steps[first]} "
        f"to {end} at step {band.steps[last]}."
    )

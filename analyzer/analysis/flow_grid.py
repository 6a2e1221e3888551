"""A quantity of all layers over all steps, small enough for a screen, one range for all runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import grouped
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.sources import for_each_run, joined_table, missing_clause, not_recorded
from analyzer.analysis.view import RowSet, RunLabel, View, row_set
from analyzer.storage.run import Run
from analyzer.storage.views import NumberName
from analyzer.vocabulary import quantity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NONFINITE", "ZERO", "FlowGrid", "GridColumn", "flow_grid", "grid_column", "value_range"]

Floats = NDArray[np.float64]
ZERO, NONFINITE = 1, 2
# A reply of the dashboard stays below 400 KB: a cell is 4 bytes, and a third more as text.
_MOST_CELLS, _MOST_ROWS, _MOST_BINS, _FEWEST_BINS = 48_000, 240, 480, 60
_FINE_BINS = 1024
_LEAST_DECADES = 3.0
# Of the finest bins that are there; median and mean are those of their means.
_NUMBERS: dict[str, NumberName] = {"min": "min", "max": "max"}


@dataclass(frozen=True, eq=False)
class GridColumn:
    """The grid of one run.

    Args:
        label: Name and style of the run.
        ids: Layer or parameter of each row, the first of a group of neighbors, ``[rows]``.
        names: Name of each row; ``first … last`` of a group.
        positions: Place along depth, ascending, ``[rows]``.
        steps: First step of each bin, ``[bins]``.
        values: Recorded values, ``[rows, bins]``; NaN where there is no finite number.
        marks: ``ZERO`` where the value is exactly zero, ``NONFINITE`` where the bin holds NaN or an
            infinite value, else 0, ``[rows, bins]``.
        width: Steps per bin.
        num_rows: Layers or parameters before neighbors were put together.
    """

    label: RunLabel
    ids: NDArray[np.int32]
    names: tuple[str, ...]
    positions: Floats
    steps: NDArray[np.int64]
    values: Floats
    marks: NDArray[np.uint8]
    width: int
    num_rows: int

    @property
    def log10(self) -> Floats:
        """Decimal logarithms of the values; NaN where there is none."""
        positive = np.where(self.values > 0, self.values, np.nan)
        return np.log10(positive)


@dataclass(frozen=True, eq=False)
class FlowGrid:
    """Layer × step, one grid per run.

    Args:
        quantity: Its key.
        label: What the color bar says.
        is_log: Whether colors show the decimal logarithm.
        aggregate: What a bin of several steps shows.
        columns: One per run that has the quantity.
        low: Smallest value shown, of all runs; a logarithm where ``is_log``.
        high: Largest value shown, of all runs.
        caption: The finding with its number.
    """

    quantity: str
    label: str
    is_log: bool
    aggregate: str
    columns: tuple[GridColumn, ...]
    low: float
    high: float
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run, row and bin."""
        parts = []
        for column in self.columns:
            shape = column.values.shape
            cells = {
                "run": column.label.text,
                "layer": np.repeat(np.array(column.names, object), shape[1]),
                "step": np.tile(column.steps, shape[0]),
                self.quantity: column.values.ravel(),
                "has_nonfinite": (column.marks == NONFINITE).ravel(),
            }
            parts.append(cells)
        return joined_table(parts)


def flow_grid(view: View) -> FlowGrid:
    """Read the grid of every run.

    Raises:
        NotRecordedError: If no run has the quantity.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    columns, missing = for_each_run(view, lambda run, label: grid_column(view, run, label))
    row = quantity(view.quantity)
    is_log = row.scale == "log"
    low, high = value_range(columns, is_log)
    name = f"{row.label}, relative to the deepest layer" if view.relative else row.label
    caption = _caption(columns, is_log, row.label) + missing_clause(missing)
    return FlowGrid(view.quantity, name, is_log, view.aggregate, columns, low, high, caption)


def grid_column(
    view: View, run: Run, label: RunLabel, *, most_cells: int = _MOST_CELLS, every: bool = False
) -> GridColumn:
    """Read the grid of one run, in bins of steps and groups of rows that a screen can show.

    A bin shows the median (or what the view asks for) of the finest bins that the overview holds:
    up to 1024 recorded steps that is of the recorded values, above it of means of a few steps.

    Raises:
        NotRecordedError: If the run has no value of the quantity.
    """
    rows = row_set(run, view.quantity, view.layers, every=every)
    number = _NUMBERS.get(view.aggregate, "mean")
    found = run.grid(view.quantity, number, _FINE_BINS, table=rows.table)
    kept = np.flatnonzero(np.isin(rows.ids, found.ids))
    if not len(kept) or not len(found.steps):
        raise not_recorded(
            f"{view.quantity} was", run, "record with `--columns all`, or wait for the first step"
        )
    at = np.searchsorted(found.ids, rows.ids[kept])
    source = found.values[at]
    if view.relative:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            source = source / source[-1]
        # A deepest layer of exactly zero has no ratio to it.
        source[~np.isfinite(source)] = np.nan
    share = most_cells // max(1, len(view.runs))
    bins = int(np.clip(share // min(len(kept), _MOST_ROWS), _FEWEST_BINS, _MOST_BINS))
    size = -(-len(found.steps) // bins)
    values = grouped(source, size, view.aggregate)
    bad = _summed(found.num_nonfinite[at], size)
    return _thinned(label, rows, kept, found.steps[::size], values, bad, found.width * size)


def _summed(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    if size <= 1 or not counts.shape[1]:
        return counts
    total: NDArray[np.int64] = np.add.reduceat(counts, np.arange(0, counts.shape[1], size), axis=1)
    return total


def _thinned(
    label: RunLabel,
    rows: RowSet,
    kept: NDArray[np.int64],
    steps: NDArray[np.int64],
    values: Floats,
    bad: NDArray[np.int64],
    width: int,
) -> GridColumn:
    """Put neighbors together where there are more rows than a screen has lines for."""
    size = -(-len(kept) // _MOST_ROWS)
    firsts = np.arange(0, len(kept), size)
    lasts = np.minimum(firsts + size, len(kept)) - 1
    middle = (rows.positions[kept[firsts]] + rows.positions[kept[lasts]]) / 2
    names = tuple(
        rows.names[kept[a]] if a == b else f"{rows.names[kept[a]]} … {rows.names[kept[b]]}"
        for a, b in zip(firsts, lasts, strict=True)
    )
    values = grouped(values.T, size, "median").T
    marks = np.where(values == 0, ZERO, 0).astype(np.uint8)
    marks[_summed(bad.T, size).T > 0] = NONFINITE
    return GridColumn(
        label, rows.ids[kept[firsts]], names, middle, steps, values, marks, width, len(kept)
    )


def value_range(columns: tuple[GridColumn, ...], is_log: bool) -> tuple[float, float]:
    """Return the smallest and the largest value of all runs, logarithms where ``is_log``.

    Returns:
        The range, at least 3 decades or a tenth wide, so that the colors of a healthy net stay
        close to each other; from 0 to 1 where nothing is finite.
    """
    cells = np.concatenate([(c.log10 if is_log else c.values).ravel() for c in columns])
    finite = cells[np.isfinite(cells)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    short = max(0.0, (_LEAST_DECADES if is_log else 0.1) - (high - low))
    return low - short / 2, high + short / 2


def _caption(columns: tuple[GridColumn, ...], is_log: bool, what: str) -> str:
    """How far the values of each run reach, and where they are not finite."""
    parts = []
    for column in columns:
        cells = column.log10 if is_log else column.values
        finite = cells[np.isfinite(cells)]
        if not len(finite):
            parts.append(f"no finite value in {column.label.text}")
            continue
        reach = float(finite.max() - finite.min())
        span = f"{number(reach)} decades" if is_log else number(reach)
        parts.append(f"{span} in {column.label.text}{_broken(column)}")
    return f"Over layers and steps, {what} spans {'; '.join(parts)}."


def _broken(column: GridColumn) -> str:
    """The first bin with a value that is not finite, as a clause; empty without one."""
    steps = np.flatnonzero((column.marks == NONFINITE).any(axis=0))
    if not len(steps):
        return ""
    at = int(steps[0])
    layers = int(np.count_nonzero(column.marks[:, at] == NONFINITE))
    return f" (NaN or infinite from step {column.steps[at]} on, first in {counted(layers, 'row')})"

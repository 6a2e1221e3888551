"""A quantity of all layers over all steps, small enough for a screen, one range for all runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import grouped
from analyzer.analysis.clock import step_places
from analyzer.analysis.gradient_flow import relative_depth
from analyzer.analysis.numerals import counted, number, times_ten_to
from analyzer.analysis.per_run import InOneRange, RunRecord, not_recorded, read_runs
from analyzer.analysis.profiles import over_deepest
from analyzer.analysis.view import RunLabel, View, row_set
from analyzer.errors import NotRecordedError
from analyzer.storage.bin_reader import NumberName
from analyzer.storage.run import Run
from analyzer.vocabulary import quantity

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "NONFINITE",
    "ZERO",
    "FlowGrid",
    "GridColumn",
    "GridDifference",
    "flow_grid",
    "grid_column",
    "grid_difference",
    "update_grid",
    "value_range",
]

Floats = NDArray[np.float64]
ZERO, NONFINITE = 1, 2
# A reply of the dashboard stays below 400 KB: a cell is 8 bytes, its color and its number, and a
# third more as text.
_MOST_CELLS, _MOST_ROWS, _MOST_BINS, _FEWEST_BINS = 30_000, 240, 240, 40
_FINE_BINS = 1024
_LEAST_DECADES = 6.0
_MOST_COMPARED_ROWS = 100
# Of the finest bins that are there; median and mean are those of their means.
_NUMBERS: dict[str, NumberName] = {"min": "min", "max": "max"}


@dataclass(frozen=True, eq=False)
class GridColumn(RunRecord):
    """The grid of one run.

    Args:
        ids: Layer or parameter of each row, the first of a group of neighbors, ``[rows]``.
        names: Name of each row; ``first … last`` of a group.
        positions: Place along depth, ascending, ``[rows]``.
        values: Recorded values, ``[rows, bins]``; NaN where there is no finite number.
        marks: ``ZERO`` where the value is exactly zero, ``NONFINITE`` where the bin holds NaN or an
            infinite value, else 0, ``[rows, bins]``.
        width: Steps per bin.
        at: Place of each bin on an axis of epochs or of time, ``[bins]``; None on one of steps.
    """

    quantity: str
    ids: NDArray[np.int32]
    names: tuple[str, ...]
    positions: Floats
    steps: NDArray[np.int64]
    values: Floats
    marks: NDArray[np.uint8]
    width: int
    at: Floats | None = None

    @property
    def log10(self) -> Floats:
        """Decimal logarithms of the values; NaN where there is none."""
        positive = np.where(self.values > 0, self.values, np.nan)
        return np.log10(positive)

    def sentence(self) -> str:
        """Return how far the values reach, and where they are not finite."""
        row = quantity(self.quantity)
        cells = self.log10 if row.scale == "log" else self.values
        finite = cells[np.isfinite(cells)]
        if not len(finite):
            return f"{self.label.text}: {row.label} is nowhere finite."
        reach = number(float(finite.max() - finite.min()))
        span = f"{reach} decades" if row.scale == "log" else reach
        text = f"{self.label.text}: {row.label} spans {span} over layers and steps"
        text += f" (in bins of {self.width:,} steps)" if self.width > 1 else ""
        return f"{text}{self._broken()}."

    def _broken(self) -> str:
        """The first bin with a value that is not finite, as a clause; empty without one."""
        steps = np.flatnonzero((self.marks == NONFINITE).any(axis=0))
        if not len(steps):
            return ""
        at = int(steps[0])
        rows = counted(int(np.count_nonzero(self.marks[:, at] == NONFINITE)), "row")
        return f" (NaN or infinite from step {self.steps[at]} on, first in {rows})"

    def cells(self) -> Mapping[str, Any]:
        """Return one row per row and bin."""
        rows, bins = self.values.shape
        return {
            "layer": np.repeat(np.array(self.names, object), bins),
            "step": np.tile(self.steps, rows),
            self.quantity: self.values.ravel(),
            "has_nonfinite": (self.marks == NONFINITE).ravel(),
        }


@dataclass(frozen=True, eq=False)
class UpdateColumn(GridColumn):
    """The update ratios of one run."""

    def sentence(self) -> str:
        """Return the median ratio of the last step, and where it is smallest and largest."""
        last = self.values[:, -1]
        known = np.flatnonzero(np.isfinite(last))
        start = f"{self.label.text}, step {self.steps[-1]}:"
        if not len(known):
            return f"{start} no update ratio is finite."
        low, high = (
            f"{number(last[at])} ({self.names[at]})"
            for at in (known[np.argmin(last[known])], known[np.argmax(last[known])])
        )
        middle = number(float(np.median(last[known])))
        return f"{start} the update ratio is {middle} (median), from {low} to {high}."


FlowGrid = InOneRange[GridColumn]
"""Layer × step, one grid per run, in one range of colors."""


def flow_grid(view: View) -> FlowGrid:
    """Read the grid of every run."""
    columns, missing = read_runs(view, grid_column)
    row = quantity(view.quantity)
    is_log = row.scale == "log"
    name = f"{row.label}, relative to the deepest layer" if view.relative else row.label
    ends = value_range(columns, is_log)
    axis: dict[str, Any] = {"over": view.over, "is_log_x": view.log_x}
    return FlowGrid(columns, missing, name, is_log, *ends, **axis)


def update_grid(view: View) -> FlowGrid:
    """Read the update ratio of every run, parameter × step.

    ``‖θ_after − θ_before‖₂ / ‖θ_before‖₂``; about 1e-3 is usual when training from scratch. In bins
    of several steps it is the ratio of the two summarized norms. Steps at which no update was
    measured are left out, and a parameter that is all zeros has no number.
    """
    columns, missing = read_runs(view, _update_column)
    label = "update ratio ‖Δθ‖ / ‖θ‖"
    ends = value_range(columns, is_log=True)
    return FlowGrid(columns, missing, label, True, *ends, over=view.over, is_log_x=view.log_x)


def grid_column(
    view: View, run: Run, label: RunLabel, *, most_cells: int = _MOST_CELLS, every: bool = False
) -> GridColumn:
    """Read the grid of one run, in bins of steps and groups of rows that a screen can show.

    A bin shows the median (or what the view asks for) of the finest bins that the overview holds:
    up to 1024 recorded steps that is of the recorded values, above it of means of a few steps.
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
    source = found.values
    if not np.array_equal(at, np.arange(len(found.ids))):
        # By bins, as they lie in memory.
        source = np.take(source.T, at, axis=1).T
    if view.relative:
        source = over_deepest(source)
        # A deepest layer of exactly zero has no ratio to it.
        source[~np.isfinite(source)] = np.nan
    share = most_cells // max(1, len(view.runs))
    bins = int(np.clip(share // min(len(kept), _MOST_ROWS), _FEWEST_BINS, _MOST_BINS))
    size = -(-len(found.steps) // bins)
    # Neighbors stand together where there are more rows than a screen has lines for.
    high = -(-len(kept) // _MOST_ROWS)
    firsts = kept[::high]
    lasts = kept[np.minimum(np.arange(0, len(kept), high) + high, len(kept)) - 1]
    values = grouped(grouped(source, size, view.aggregate).T, high, "median").T
    bad = _summed(_summed(found.num_nonfinite[at], size).T, high).T
    marks = np.where(values == 0, ZERO, 0).astype(np.uint8)
    marks[bad > 0] = NONFINITE
    return GridColumn(
        label,
        view.quantity,
        rows.ids[firsts],
        tuple(
            rows.names[a] if a == b else f"{rows.names[a]} … {rows.names[b]}"
            for a, b in zip(firsts, lasts, strict=True)
        ),
        (rows.positions[firsts] + rows.positions[lasts]) / 2,
        found.steps[::size],
        values,
        marks,
        found.width * size,
        step_places(run, view.over, found.steps[::size]),
    )


def _summed(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    if size <= 1 or not counts.shape[1]:
        return counts
    total: NDArray[np.int64] = np.add.reduceat(counts, np.arange(0, counts.shape[1], size), axis=1)
    return total


def value_range(
    columns: tuple[GridColumn, ...], is_log: bool, more: Sequence[Floats] = ()
) -> tuple[float, float]:
    """Return the smallest and the largest value of all runs, logarithms where ``is_log``.

    Of ``more`` values too.

    Logarithms end at whole decades, at least 6 below the top, so that the colors of a healthy net
    stay close to each other, and are the same beside another run; other values are at least a tenth
    apart. From 0 to 1 where nothing is finite.
    """
    values = np.concatenate([*(column.values.ravel() for column in columns), *more])
    cells = np.log10(values[values > 0]) if is_log else values
    finite = cells[np.isfinite(cells)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if is_log:
        top = math.ceil(high)
        return float(min(math.floor(low), top - _LEAST_DECADES)), float(top)
    short = max(0.0, 0.1 - (high - low))
    return low - short / 2, high + short / 2


def _update_column(view: View, run: Run, label: RunLabel) -> UpdateColumn:
    asked = replace(view, relative=False)
    update = grid_column(replace(asked, quantity="update_norm"), run, label)
    norm = grid_column(replace(asked, quantity="norm"), run, label)
    shared, ours, theirs = np.intersect1d(update.steps, norm.steps, return_indices=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = update.values[:, ours] / norm.values[:, theirs]
    # A bias of zeros gives x / 0, which cannot be compared.
    ratio = np.where(norm.values[:, theirs] == 0, np.nan, ratio)
    marks = update.marks[:, ours]
    measured = np.isfinite(ratio).any(axis=0) | (marks > 0).any(axis=0)
    if not measured.any():
        remedy = "add `--updates-every 10`; the manifest says where memory did not allow it"
        raise not_recorded("updates were", run, remedy)
    steps = shared[measured]
    kept = {"steps": steps, "values": ratio[:, measured], "marks": marks[:, measured]}
    kept["at"] = step_places(run, view.over, steps)
    return UpdateColumn(**vars(update) | kept | {"quantity": "update_ratio"})


@dataclass(frozen=True, eq=False)
class GridDifference:
    """Second run over first, or minus it where the quantity is not shown by its logarithm.

    Args:
        positions: Relative depth, 0 for the first layer and 1 for the last, ``[rows]``.
        steps: First step of each bin that both runs have, ``[bins]``.
        values: Second minus first, ``[rows, bins]``; NaN where one has no finite number.
        marks: ``ZERO`` and ``NONFINITE`` where either run has it, else 0, ``[rows, bins]``.
        reach: The color range goes from minus to plus that: the largest absolute difference, three
            decades or a tenth at least.
    """

    is_log: bool
    runs: tuple[RunLabel, RunLabel]
    positions: Floats
    steps: NDArray[np.int64]
    values: Floats
    marks: NDArray[np.uint8]
    reach: float
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per relative depth and step."""
        import pandas as pd

        rows, bins = self.values.shape
        return pd.DataFrame(
            {
                "relative_depth": np.repeat(self.positions, bins),
                "step": np.tile(self.steps, rows),
                "log10_ratio" if self.is_log else "difference": self.values.ravel(),
            }
        )


def grid_difference(view: View) -> GridDifference:
    """Compare the second run of a view with the first.

    Rows are the nearest layers on the relative axis, bins the nearest in steps, over the steps that
    both runs reached. NotRecordedError is raised without two runs or a step in common.
    """
    if len(view.runs) < 2:
        raise NotRecordedError(
            f"a difference of {len(view.runs)} run; expected 2. Choose a second run"
        )
    first, second = (
        grid_column(view, run, label)
        for run, label in zip(view.runs[:2], view.labels[:2], strict=True)
    )
    is_log = quantity(view.quantity).scale == "log"
    steps = _common_steps(first, second)
    if not len(steps):
        raise NotRecordedError(
            f"runs '{first.label.text}' and '{second.label.text}' have no step in common; "
            "expected overlapping steps. Choose runs of one training length"
        )
    count = min(_MOST_COMPARED_ROWS, max(len(first.positions), len(second.positions)))
    positions = np.linspace(0.0, 1.0, count)
    here = [_places(column, positions, steps) for column in (first, second)]
    left, right = (
        (c.log10 if is_log else c.values)[at] for c, at in zip((first, second), here, strict=True)
    )
    values = right - left
    marks = np.maximum(first.marks[here[0]], second.marks[here[1]])
    finite = np.abs(values[np.isfinite(values)])
    reach = float(finite.max()) if len(finite) else 1.0
    names = (first.label, second.label)
    caption = _largest_difference(values, positions, names, steps, is_log)
    reach = max(reach, _LEAST_DECADES / 2 if is_log else 0.1)
    return GridDifference(is_log, names, positions, steps, values, marks, reach, caption)


def _common_steps(first: GridColumn, second: GridColumn) -> NDArray[np.int64]:
    coarse = max((first, second), key=lambda column: column.width).steps
    last = min(column.steps[-1] + column.width - 1 for column in (first, second))
    shared = (coarse >= max(first.steps[0], second.steps[0])) & (coarse <= last)
    return np.asarray(coarse[shared], np.int64)


def _places(column: GridColumn, positions: Floats, steps: NDArray[np.int64]) -> Any:
    """The nearest row of each place, the bin of each step: what cells of the grid to take."""
    own = relative_depth(column.positions)
    rows = np.abs(own[None, :] - positions[:, None]).argmin(axis=1)
    bins = np.maximum(np.searchsorted(column.steps, steps, side="right") - 1, 0)
    return np.ix_(rows, bins)


def _largest_difference(
    values: Floats,
    positions: Floats,
    runs: tuple[RunLabel, RunLabel],
    steps: NDArray[np.int64],
    is_log: bool,
) -> str:
    """What separates the runs most, in the median over the steps."""
    first, second = (label.text for label in runs)
    known = np.isfinite(values)
    if not known.any():
        return f"{first} and {second} have no finite value to compare."
    middle = np.array(
        [np.median(r[k]) if k.any() else 0.0 for r, k in zip(values, known, strict=True)]
    )
    at = int(np.abs(middle).argmax())
    over = f"step {steps[0]:,}"
    if len(steps) > 1:
        over = f"median over steps {steps[0]:,} to {steps[-1]:,}"
        wide = int(steps[1] - steps[0])
        over += f", in bins of {wide:,}" if wide > 1 else ""
    where = f"at relative depth {number(positions[at])} (0 is the first layer; {over})"
    if is_log:
        factor = times_ten_to(float(middle[at]))
        return f"The runs differ most {where}: {second} has {factor} times the value of {first}."
    return f"The runs differ most {where}: {second} minus {first} is {number(middle[at])}."

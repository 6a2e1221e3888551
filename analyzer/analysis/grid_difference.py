"""How two runs differ over depth and steps, on an axis from the first layer to the last."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.depth_profile import relative_depth
from analyzer.analysis.flow_grid import GridColumn, grid_column
from analyzer.analysis.numerals import number, times_ten_to
from analyzer.analysis.view import RunLabel, View, run_labels
from analyzer.errors import NotRecordedError
from analyzer.vocabulary import quantity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GridDifference", "grid_difference"]

Floats = NDArray[np.float64]
_MOST_ROWS = 100


@dataclass(frozen=True, eq=False)
class GridDifference:
    """Second run over first, or minus it where the quantity is not shown by its logarithm.

    Args:
        quantity: Its key.
        label: What the color bar says.
        is_log: Whether differences are of decimal logarithms.
        runs: Labels of the first and the second run.
        positions: Relative depth, 0 for the first layer and 1 for the last, ``[rows]``.
        steps: First step of each bin that both runs have, ``[bins]``.
        values: Second minus first, ``[rows, bins]``; NaN where one has no finite number.
        reach: Largest absolute difference; the color range goes from minus to plus that.
        caption: The finding with its number.
    """

    quantity: str
    label: str
    is_log: bool
    runs: tuple[RunLabel, RunLabel]
    positions: Floats
    steps: NDArray[np.int64]
    values: Floats
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
    both runs reached.

    Raises:
        NotRecordedError: If there are not two runs with the quantity, or no step in common.
    """
    if len(view.runs) < 2:
        raise NotRecordedError(
            f"a difference was asked of {len(view.runs)} run; expected 2. Choose a second run"
        )
    first, second = (
        grid_column(view, run, label)
        for run, label in zip(view.runs[:2], run_labels(view.runs)[:2], strict=True)
    )
    row = quantity(view.quantity)
    is_log = row.scale == "log"
    steps = _common_steps(first, second)
    if not len(steps):
        raise NotRecordedError(
            f"runs '{first.label.text}' and '{second.label.text}' have no step in common; "
            "expected overlapping steps. Choose runs of one training length"
        )
    count = min(_MOST_ROWS, max(len(first.positions), len(second.positions)))
    positions = np.linspace(0.0, 1.0, count)
    left, right = (_resampled(c, positions, steps, is_log=is_log) for c in (first, second))
    values = right - left
    finite = np.abs(values[np.isfinite(values)])
    reach = float(finite.max()) if len(finite) else 1.0
    names = (first.label, second.label)
    label = f"{row.label}: {second.label.text} {'over' if is_log else 'minus'} {first.label.text}"
    caption = _caption(values, positions, names, is_log)
    return GridDifference(
        view.quantity, label, is_log, names, positions, steps, values, max(reach, 0.1), caption
    )


def _common_steps(first: GridColumn, second: GridColumn) -> NDArray[np.int64]:
    """Bins of the coarser run within the steps of both."""
    coarse = max((first, second), key=lambda column: column.width).steps
    last = min(column.steps[-1] + column.width - 1 for column in (first, second))
    shared = (coarse >= max(first.steps[0], second.steps[0])) & (coarse <= last)
    return np.asarray(coarse[shared], np.int64)


def _resampled(
    column: GridColumn, positions: Floats, steps: NDArray[np.int64], *, is_log: bool
) -> Floats:
    """The nearest row of each place, the bin of each step."""
    own = relative_depth(column.positions)
    rows = np.abs(own[None, :] - positions[:, None]).argmin(axis=1)
    bins = np.maximum(np.searchsorted(column.steps, steps, side="right") - 1, 0)
    cells = column.log10 if is_log else column.values
    return np.asarray(cells[np.ix_(rows, bins)], np.float64)


def _caption(
    values: Floats, positions: Floats, runs: tuple[RunLabel, RunLabel], is_log: bool
) -> str:
    """What separates the runs most, over all steps."""
    first, second = (label.text for label in runs)
    known = np.isfinite(values)
    if not known.any():
        return f"{first} and {second} have no finite value to compare."
    middle = np.array(
        [np.median(r[k]) if k.any() else 0.0 for r, k in zip(values, known, strict=True)]
    )
    at = int(np.abs(middle).argmax())
    where = f"at relative depth {number(positions[at])} (0 is the first layer)"
    if is_log:
        factor = times_ten_to(float(middle[at]))
        return f"The runs differ most {where}: {second} has {factor} times the value of {first}."
    return f"The runs differ most {where}: {second} minus {first} is {number(middle[at])}."

"""What the rules of findings look at: recorded values at some steps, as arrays."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.analysis.nonfinite import NonFinite, first_nonfinite
from analyzer.analysis.training import TrainingSummary, run_training
from analyzer.storage.run import Run

__all__ = ["Evidence", "Grid"]

_MOST_STEPS = 40

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """Columns of one table at some steps, as ``[steps, ids]``.

    Args:
        steps: Step numbers, ascending.
        values: Values by column; NaN also where nothing was recorded.
        present: By column, whether a value was recorded: False for a null.
    """

    steps: NDArray[np.int64]
    values: dict[str, Floats]
    present: dict[str, NDArray[np.bool_]]


class Evidence:
    """Recorded values of one run, read when a rule first asks.

    Only finite history is judged: steps before the first NaN or infinite value, without those that
    a gradient scaler skipped, and at most 40 of them, evenly spaced.

    Args:
        run: An opened run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def layers(self) -> pd.DataFrame:
        """The table of layers."""
        return self.run.layers

    @cached_property
    def names(self) -> list[str]:
        """Names of the layers, in call order."""
        return [str(name) for name in self.layers["name"]]

    @cached_property
    def depths(self) -> Floats:
        """Depth of each layer."""
        return self.layers["depth"].to_numpy(np.float64)

    @cached_property
    def has_parameters(self) -> NDArray[np.bool_]:
        """Whether each layer owns parameters."""
        owns: NDArray[np.bool_] = self.layers["num_parameters"].to_numpy() > 0
        return owns

    @cached_property
    def parameters(self) -> pd.DataFrame:
        """The table of parameters."""
        return self.run.parameters

    @cached_property
    def joins(self) -> pd.DataFrame:
        """The table of joins."""
        return self.run.joins

    @cached_property
    def training(self) -> TrainingSummary:
        """Losses and steps."""
        return run_training(self.run)

    @cached_property
    def skipped(self) -> NDArray[np.int64]:
        """Steps whose update a gradient scaler skipped: what is not finite there is its search."""
        rows = self.run.read("steps", "skipped")
        is_skipped = rows.column("skipped").fill_null(False).to_numpy(zero_copy_only=False)
        steps: NDArray[np.int64] = rows.column("step").to_numpy()[is_skipped.astype(bool)]
        return steps

    @cached_property
    def nonfinite(self) -> NonFinite | None:
        """The first NaN or infinite tensor of a layer."""
        return first_nonfinite(self.run, self.skipped)

    @cached_property
    def end(self) -> int | None:
        """The first step that is not judged, since a value or the loss is not finite there."""
        first = [self.nonfinite.step] if self.nonfinite else []
        loss = self.training.nonfinite_step
        return min([*first, *([] if loss is None else [loss])], default=None)

    def judged(self, recorded: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the recorded steps that are judged."""
        steps = recorded[~np.isin(recorded, self.skipped)]
        steps = steps if self.end is None else steps[steps < self.end]
        places = np.linspace(0, len(steps) - 1, min(_MOST_STEPS, len(steps))).round()
        return steps[np.unique(places.astype(np.int64))]

    @cached_property
    def layer_grid(self) -> Grid:
        """Output gradients and dead units of layers."""
        columns = ("output_gradient_norm", "activation_num_dead")
        return self._grid("layer_stats", columns, self.judged(self.run.layer_steps()), self.layers)

    @cached_property
    def parameter_grid(self) -> Grid:
        """Gradients of parameters at the judged steps of layers."""
        steps = self.judged(self.run.recorded_steps("parameter_stats"))
        return self._grid("parameter_stats", ("gradient_norm",), steps, self.parameters)

    @cached_property
    def update_grid(self) -> Grid:
        """Gradients, norms and updates of parameters at steps where updates were measured."""
        recorded = self.run.recorded_steps("parameter_stats")
        schedule = self.run.manifest.get("schedule") or {}
        every, updates = schedule.get("every") or 1, schedule.get("updates_every") or 1
        steps = self.judged(recorded[(recorded // every) % updates == 0])
        columns = ("gradient_norm", "norm", "update_norm")
        return self._grid("parameter_stats", columns, steps, self.parameters)

    @cached_property
    def split_grid(self) -> Grid:
        """The splits at joins."""
        columns = ("shortcut_gradient_norm", "branch_gradient_norm", "cosine")
        return self._grid(
            "splits", columns, self.judged(self.run.recorded_steps("splits")), self.joins
        )

    def _grid(
        self, table: str, columns: tuple[str, ...], steps: NDArray[np.int64], static: pd.DataFrame
    ) -> Grid:
        """Rows of some steps as arrays; ids are the places in the static table."""
        shape = (len(steps), len(static))
        values = {name: np.full(shape, np.nan) for name in columns}
        present = {name: np.zeros(shape, bool) for name in columns}
        if not len(steps) or not len(static):
            return Grid(steps, values, present)
        rows = self.run.read(table, columns, steps=steps)
        key = static.columns[0]
        known = static[key].to_numpy(np.int64)
        found = np.isin(rows.column(key).to_numpy(), known)
        row = np.searchsorted(steps, rows.column("step").to_numpy()[found])
        place = np.searchsorted(known, rows.column(key).to_numpy()[found])
        for name in columns:
            column = rows.column(name)
            present[name][row, place] = column.is_valid().to_numpy()[found]
            values[name][row, place] = _floats(column)[found]
        return Grid(steps, values, present)


def _floats(column: pa.ChunkedArray) -> Floats:
    """A column as float64; null as NaN."""
    floats: Floats = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return floats

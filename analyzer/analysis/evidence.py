"""What the rules of findings read: recorded values at some steps, and the first not finite."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.analysis.bands import spaced_places
from analyzer.analysis.gradient_flow import Gain, gain
from analyzer.analysis.per_run import remembered
from analyzer.analysis.training import TrainingSummary, nonfinite_loss_step, run_training
from analyzer.storage.arrays import as_floats, is_present
from analyzer.storage.run import Run

__all__ = [
    "HISTORIES",
    "Evidence",
    "History",
    "NonFinite",
    "became_nan",
    "broke_first",
    "first_nonfinite",
    "last_finite_step",
    "opening_step",
]

_MOST_STEPS = 40
_NONFINITE_COUNTS = ("activation_num_nonfinite", "output_gradient_num_nonfinite")
_BATCH_ROWS = 500_000
_MOST_BINS = 1024
_LEARNED = 0.9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NonFinite:
    """The first place where a tensor of a layer was not finite.

    ``layer`` is a row of the table of layers, ``what`` its ``activation`` or ``output gradient``.
    """

    step: int
    layer: int
    name: str
    what: str


def first_nonfinite(run: Run, ignored: NDArray[np.int64] | None = None) -> NonFinite | None:
    """Find the first layer with NaN or infinite values, in the order in which they are computed.

    Within its step that is the first activation in call order; where all activations are finite,
    the output gradient of the last layer in call order, since backward runs from there. Steps in
    ``ignored`` do not count, such as those that a gradient scaler skipped.
    """
    for first, last in _suspects(run):
        rows = run.read("layer_stats", _NONFINITE_COUNTS, steps=slice(first, last + 1))
        activation, gradient = (
            rows.column(name).fill_null(0).to_numpy() > 0 for name in _NONFINITE_COUNTS
        )
        counts = activation | gradient
        if ignored is not None:
            counts &= ~np.isin(rows.column("step").to_numpy(), ignored)
        bad = np.flatnonzero(counts)
        if len(bad):
            return _earliest(run, rows, activation, gradient, bad)
    return None


@remembered("layer_stats")
def broke_first(run: Run) -> NonFinite | None:
    """Return the first NaN or infinite tensor of a layer, steps that were skipped left out."""
    # Few runs hold any: what else there is to read is read for these alone.
    if next(_suspects(run), None) is None:
        return None
    return first_nonfinite(run, Evidence(run, ()).skipped)


def broke_at(run: Run) -> int | None:
    """Return the first step at which a tensor of a layer or the loss is not finite, if any."""
    first, loss = broke_first(run), nonfinite_loss_step(run)
    return min([*([first.step] if first else []), *([] if loss is None else [loss])], default=None)


@remembered("layer_stats")
def last_finite_step(run: Run) -> int | None:
    """Return the last recorded step before the first that is not finite: what to look at.

    None where all are finite, and where none was recorded before.
    """
    end = broke_at(run)
    if end is None:
        return None
    before = run.layer_steps()
    before = before[before < end]
    return int(before[-1]) if len(before) else None


def opening_step(runs: Sequence[Run]) -> int | None:
    """Return the step at which runs are shown: the last before one broke; None for their last."""
    found = map(last_finite_step, runs)
    return min((step for step in found if step is not None), default=None)


def _suspects(run: Run) -> Iterator[tuple[int, int]]:
    """First and last step of stretches that hold whatever is not finite, in order."""
    if run.ranks == [0]:
        # The overview has the largest count of each bin: the rows of the others are all finite.
        grids = [
            run.grid(name, "max", _MOST_BINS, table="layer_stats") for name in _NONFINITE_COUNTS
        ]
        bad = {int(step) for grid in grids for step in grid.steps[(grid.values > 0).any(axis=0)]}
        yield from ((step, step + grids[0].width - 1) for step in sorted(bad))
        return
    steps = run.layer_steps()
    chunk = max(1, _BATCH_ROWS // max(1, len(run.layers)))
    for start in range(0, len(steps), chunk):
        some = steps[start : start + chunk]
        yield int(some[0]), int(some[-1])


def _earliest(
    run: Run,
    rows: pa.Table,
    activation: NDArray[np.bool_],
    gradient: NDArray[np.bool_],
    bad: NDArray[np.int64],
) -> NonFinite:
    """The first tensor of the first step that holds one."""
    steps, layers = rows.column("step").to_numpy(), rows.column("layer").to_numpy()
    step = int(steps[bad].min())
    here = steps == step
    forward = layers[here & activation]
    layer = int(forward.min()) if len(forward) else int(layers[here & gradient].max())
    names = dict(zip(run.layers["layer"], run.layers["name"], strict=True))
    what = "activation" if len(forward) else "output gradient"
    return NonFinite(step, layer, str(names.get(layer, layer)), what)


def became_nan(runs: Sequence[Run]) -> str:
    """Return which run is not finite, from which step on and in which layer first; else nothing."""
    said = []
    for run in runs:
        first, step = first_nonfinite(run), nonfinite_loss_step(run)
        if first is not None:
            said.append(
                f"{run.name} is not finite from step {first.step} on, first the {first.what} of "
                f"{first.name}"
            )
        elif step is not None:
            said.append(f"{run.name}: its loss is not finite from step {step} on")
    return f"{'; '.join(dict.fromkeys(said))}." if said else ""


@dataclass(frozen=True, eq=False)
class History:
    """Columns of one table at some steps, as ``[steps, ids]``.

    Args:
        steps: Step numbers, ascending.
        values: Values by column; NaN also where nothing was recorded.
        present: By column, whether a value was recorded: False for a null.
        has_rows: Whether each id has any row.
    """

    steps: NDArray[np.int64]
    values: dict[str, Floats]
    present: dict[str, NDArray[np.bool_]]
    has_rows: NDArray[np.bool_]


HISTORIES = {
    "layers": "layer_stats",
    "parameters": "parameter_stats",
    "updates": "parameter_stats",
    "splits": "splits",
    "nonfinite": "layer_stats",
    "steps": "steps",
}
"""The table of each history: ``updates`` has only the steps at which updates were measured, and
``nonfinite`` is searched for its first step, not read."""


class Evidence:
    """Recorded values of one run, read when a rule first asks.

    Only finite history is judged: steps before the first NaN or infinite value, without those that
    a gradient scaler skipped, and at most 40 of them, evenly spaced.

    ``reads`` holds columns by history that the rules look at; each history is read once, with all.
    """

    def __init__(self, run: Run, reads: Iterable[Mapping[str, tuple[str, ...]]]) -> None:
        self.run = run
        self._columns: dict[str, dict[str, None]] = {name: {} for name in HISTORIES}
        for one in reads:
            for history, columns in one.items():
                self._columns[history] |= dict.fromkeys(columns)
        self.layers, self.parameters, self.joins = run.layers, run.parameters, run.joins
        self._names = [str(name) for name in self.layers["name"]]
        self.has_parameters: NDArray[np.bool_] = self.layers["num_parameters"].to_numpy() > 0
        self.owners = self.chosen(self.has_parameters)

    def chosen(self, which: NDArray[np.bool_]) -> tuple[str, ...]:
        """Return the names of the chosen layers, in call order."""
        return tuple(compress(self._names, which))

    def layers_of(self, parameters: NDArray[np.bool_]) -> tuple[str, ...]:
        """Return the names of the layers of the chosen parameters, in call order."""
        ids = set(self.parameters["layer"][parameters].dropna().astype(int))
        return self.chosen(np.array([layer in ids for layer in self.layers["layer"]], bool))

    @cached_property
    def training(self) -> TrainingSummary:
        """How the training went as a whole."""
        return run_training(self.run)

    @cached_property
    def conditions(self) -> Mapping[str, Any]:
        """What ``run.json`` says of how the training ran; empty in a run of an older recorder."""
        found = self.run.manifest.get("conditions")
        return found if isinstance(found, dict) else {}

    @cached_property
    def ends(self) -> tuple[int, int]:
        """The first and the last recorded step; zeros without one."""
        steps = self.run.recorded_steps()
        return (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)

    @property
    def _schedule(self) -> Mapping[str, Any]:
        """The options of the recording."""
        return self.run.manifest.get("schedule") or {}

    @property
    def is_choosy(self) -> bool:
        """Whether the options of the recording left layers out."""
        return bool(self._schedule.get("layers") or self._schedule.get("skip_layers"))

    @property
    def batch_size(self) -> int | None:
        """Length of the first axis of the first input; None where it is not known."""
        shapes = (one["shape"] for one in self.conditions.get("inputs") or ())
        return next((int(shape[0]) for shape in shapes if shape), None)

    @property
    def has_learned(self) -> bool:
        """Whether the final loss is well below the entropy of the classes, where that is known."""
        entropy = (self.conditions.get("loss") or {}).get("class_entropy")
        return bool(entropy and self.training.final_loss < _LEARNED * entropy)

    @cached_property
    def skipped(self) -> NDArray[np.int64]:
        """Steps whose update a gradient scaler skipped: what is not finite there is its search."""
        rows = self.run.read("steps", "skipped")
        is_skipped = rows.column("skipped").fill_null(False).to_numpy(zero_copy_only=False)
        steps: NDArray[np.int64] = rows.column("step").to_numpy()[is_skipped.astype(bool)]
        return steps

    @property
    def nonfinite(self) -> NonFinite | None:
        """The first NaN or infinite tensor of a layer."""
        return broke_first(self.run)

    @cached_property
    def end(self) -> int | None:
        """The first step that is not judged, since a value or the loss is not finite there."""
        return broke_at(self.run)

    def judged(self, recorded: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the recorded steps that are judged."""
        steps = recorded[~np.isin(recorded, self.skipped)]
        steps = steps if self.end is None else steps[steps < self.end]
        return steps[spaced_places(len(steps), _MOST_STEPS)]

    @cached_property
    def layer_history(self) -> History:
        """What was recorded of layers, over the judged steps."""
        return self._history("layers", self.judged(self.run.layer_steps()), self.layers)

    @cached_property
    def trunk(self) -> NDArray[np.bool_]:
        """Layers with parameters that stand in no branch; all of them where less than two do.

        Layers of a branch see what its scale leaves them, which says nothing about depth.
        """
        trunk = self.has_parameters & (self.layers["role"] != "branch").fillna(True).to_numpy(bool)
        found: NDArray[np.bool_] = trunk if trunk.sum() > 1 else self.has_parameters
        return found

    @cached_property
    def gains(self) -> list[Gain]:
        """The gain at each judged step, over layers of the trunk that a gradient reached."""
        history = self.layer_history
        norms, present = (
            x["output_gradient_norm"][:, self.trunk] for x in (history.values, history.present)
        )
        depths = self.layers["depth"].to_numpy(np.float64)[self.trunk]
        return [gain(depths[p], n[p]) for n, p in zip(norms, present, strict=True)]

    @cached_property
    def parameter_history(self) -> History:
        """What was recorded of parameters, over the judged steps."""
        steps = self.judged(self.run.recorded_steps("parameter_stats"))
        return self._history("parameters", steps, self.parameters)

    @cached_property
    def update_history(self) -> History:
        """What was recorded of parameters, over steps at which updates were measured."""
        recorded = self.run.recorded_steps("parameter_stats")
        schedule = self._schedule
        every, updates = schedule.get("every") or 1, schedule.get("updates_every") or 1
        steps = self.judged(recorded[(recorded // every) % updates == 0])
        return self._history("updates", steps, self.parameters)

    @cached_property
    def split_history(self) -> History:
        """The splits at joins, over the judged steps."""
        return self._history("splits", self.judged(self.run.recorded_steps("splits")), self.joins)

    def _history(self, name: str, steps: NDArray[np.int64], static: pd.DataFrame) -> History:
        """Rows of some steps as arrays; ids are the places in the static table."""
        columns = tuple(self._columns[name])
        shape = (len(steps), len(static))
        values = {column: np.full(shape, np.nan) for column in columns}
        present = {column: np.zeros(shape, bool) for column in columns}
        if not len(steps) or not len(static):
            return History(steps, values, present, np.zeros(len(static), bool))
        rows = self.run.read(HISTORIES[name], columns, steps=steps)
        key = static.columns[0]
        known = static[key].to_numpy(np.int64)
        found = np.isin(rows.column(key).to_numpy(), known)
        row = np.searchsorted(steps, rows.column("step").to_numpy()[found])
        place = np.searchsorted(known, rows.column(key).to_numpy()[found])
        for column in columns:
            present[column][row, place] = is_present(rows.column(column))[found]
            values[column][row, place] = as_floats(rows.column(column))[found]
        return History(steps, values, present, np.isin(np.arange(len(static)), place))

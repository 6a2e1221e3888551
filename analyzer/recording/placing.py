"""At which step of a run a training continues: its weights and its loss were recorded there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from analyzer.options import RecordOptions
from analyzer.recording.models import Models
from analyzer.recording.parameters import ParameterRow
from analyzer.recording.part import loss_of
from analyzer.recording.scaling import scale_of
from analyzer.storage.arrays import as_floats, as_numpy, is_present
from analyzer.storage.run import Run

__all__ = ["Places", "loss_of_roots"]

# Rows that are compared with the present weights at a time, and steps after one that matches.
_ROWS_AT_ONCE = 1_000_000
_STEPS_AFTER = 64
# The norms of the same weights differ by less, and those of weights after an update by more.
_SAME = 1e-12
# Steps in which the last measured update is looked for, as multiples of the interval.
_TURNS = 16


def loss_of_roots(roots: Sequence[Any]) -> float | None:
    """Return the loss of a backward pass, unscaled; None where it has no single one."""
    found = [loss_of(root, scale_of(roots)) for root in roots]
    if len(found) != 1 or found[0] is None:
        return None
    value, scale = found[0]
    return float(value) if scale is None else float(value) / float(scale)


class Places:
    """The steps of a run, by the weights with which they began and by their losses.

    Args:
        run: The run.
        known: Returns the id of a row of parameters in the run; None for an unknown one.
    """

    def __init__(self, run: Run, known: Callable[[Mapping[str, Any]], int | None]) -> None:
        self._run, self._known = run, known

    def following(self) -> int:
        """Return the step after the last recorded one."""
        recorded = self._run.recorded_steps()
        return int(recorded[-1]) + 1 if len(recorded) else 0

    def by_weights(self, models: Models, loss: float | None) -> int | None:
        """Return the recorded step that began with the present weights; None where none did.

        Of several that did, the one with this loss, else the last. A step of which no weights were
        recorded is found by the loss alone, if no other has it.
        """
        steps = self._run.read("steps", ["loss", "skipped", "learning_rate"])
        numbers, losses = as_numpy(steps.column("step")), as_floats(steps.column("loss"))
        candidates = self._steps_with(self._norms(models))
        if not candidates:
            return self.by_loss(loss)
        alike = set(numbers[losses == loss].tolist()) if loss is not None else set()
        found = max(alike & candidates or candidates)
        at = np.flatnonzero(numbers == found)
        if len(at) and found not in alike:
            skipped, rate = (steps.column(c)[at[0]].as_py() for c in ("skipped", "learning_rate"))
            found += bool(skipped) or rate == 0  # the weights of the next step are the same
        return found

    def by_loss(self, loss: float | None) -> int | None:
        """Return the one step with this loss of which no weights were recorded; None for more."""
        if loss is None:
            return None
        steps = self._run.read("steps", "loss")
        alike = as_numpy(steps.column("step"))[as_floats(steps.column("loss")) == loss]
        found = set(alike.tolist()) - set(self._run.recorded_steps("parameter_stats").tolist())
        return found.pop() if len(found) == 1 else None

    def _norms(self, models: Models) -> dict[int, float]:
        """The norms of the parameters as they are now, by their ids in the run."""
        rows: dict[int, ParameterRow] = {}
        models.parameters.read(models.parameters.trainable(), rows)
        found = {
            self._known(row): rows[row["parameter"]].norm
            for row in models.parameters.rows(models.layers)
            if row["parameter"] in rows
        }
        return {id_: float(x) for id_, x in found.items() if id_ is not None and x is not None}

    def _steps_with(self, norms: Mapping[int, float]) -> set[int]:
        """The recorded steps that began with weights of these norms, the latest that there are."""
        recorded = self._run.recorded_steps("parameter_stats")
        num_rows = self._run.static_rows("parameters").num_rows
        span = max(_STEPS_AFTER, _ROWS_AT_ONCE // max(1, num_rows))
        for end in range(len(recorded), 0, -span):
            some = recorded[max(0, end - span) : end]
            after = recorded[min(end + _STEPS_AFTER, len(recorded)) - 1]
            found = self._matching(norms, int(some[0]), int(some[-1]), int(after))
            if found:
                return found
        return set()

    def _matching(self, norms: Mapping[int, float], first: int, last: int, after: int) -> set[int]:
        rows = self._run.read("parameter_stats", "norm", steps=slice(first, after + 1))
        steps, ids = (as_numpy(rows.column(name)) for name in ("step", "parameter"))
        wanted = np.array([norms.get(id_, np.nan) for id_ in ids.tolist()])
        is_same = np.abs(as_floats(rows.column("norm")) - wanted) <= _SAME * np.abs(wanted)
        is_same |= ~is_present(rows.column("norm"))
        firsts = np.flatnonzero(np.append(True, steps[1:] != steps[:-1]))[: len(steps)]
        every = np.logical_and.reduceat(is_same, firsts) if len(steps) else np.zeros(0, bool)
        found = set()
        for at in firsts[every]:
            # Of others, which another optimizer holds, the next rows are those of now, too.
            upcoming = ids[at : np.searchsorted(steps, steps[at] + _STEPS_AFTER)]
            _, next_rows = np.unique(upcoming, return_index=True)
            if steps[at] <= last and is_same[at + next_rows].all():
                found.add(int(steps[at]))
        return found

    def turns(self, models: Models, options: RecordOptions, first: int) -> dict[int, int]:
        """Return how many of its updates each parameter is past the last one that was measured.

        Args:
            models: The models, by whose numbers of parameters the answer is.
            options: How often updates are measured.
            first: The step that is about to be recorded.
        """
        steps = slice(max(0, first - _TURNS * options.updates_every * options.every), first)
        rows = self._run.read("parameter_stats", "update_norm", steps=steps)
        skipped = self._run.read("steps", "skipped", steps=steps)
        left_out = as_numpy(skipped.column("step"))[as_floats(skipped.column("skipped")) > 0]
        numbers, ids = (as_numpy(rows.column(name)) for name in ("step", "parameter"))
        is_measured, counted = is_present(rows.column("update_norm")), ~np.isin(numbers, left_out)
        found: dict[int, int] = {}
        for row in models.parameters.rows(models.layers):
            mine = ids == self._known(row)
            measured = numbers[mine & is_measured]
            if len(measured):
                found[row["parameter"]] = int(np.sum(mine & counted & (numbers > measured[-1])))
        return found

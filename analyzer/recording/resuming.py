"""A run that is continued: under which numbers, with which ids and options.

Nothing that was recorded is altered: the rows of the new attempt stand beside those of the earlier
ones, and a layer, a parameter or a join that is known by its name keeps its id.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from analyzer.errors import AnalyzerError
from analyzer.options import OptionError, RecordOptions, flag
from analyzer.recording.models import Models
from analyzer.recording.names import clean_path, unwrapped
from analyzer.recording.parameters import ParameterRow
from analyzer.recording.part import loss_of
from analyzer.recording.scaling import scale_of
from analyzer.recording.training import Training
from analyzer.storage.arrays import as_floats, as_numpy, is_present
from analyzer.storage.rows import StepRecord
from analyzer.storage.run import open_run
from analyzer.storage.schema import STATIC_TABLES, STEP_TABLES

__all__ = ["NotResumableError", "Resumed"]

# Rows that are compared with the present weights at a time, and steps after one that matches.
_ROWS_AT_ONCE = 1_000_000
_STEPS_AFTER = 64
# The norms of the same weights differ by less, and those of weights after an update by more.
_SAME = 1e-12
# Steps in which the last measured update is looked for, as multiples of the interval.
_TURNS = 16
_KINDS = {"zoo": "a built-in network", "model file": "a model file"}
_REFERENCES = {"parameters": ("layer", "layers"), "layers": ("join", "joins")}
_ID = {"layers": "layer", "parameters": "parameter", "joins": "join"}
_TABLE_OF = {"layer_stats": "layers", "parameter_stats": "parameters", "splits": "joins"}


class NotResumableError(SystemExit):
    """Ends a program, with exit code 2, whose model is not that of the run it was to continue."""

    def __init__(self) -> None:
        super().__init__(2)


class Resumed:
    """The earlier attempts of a run that is to be continued.

    Args:
        path: Folder of the run.

    Attributes:
        attempt: Number of the new attempt.
        attempts: What ``run.json`` says of each attempt.
        manifest: What ``run.json`` said before.
        problems: What was not recorded before.
        first: The step that the new attempt began with; None before that is known.

    Raises:
        RunNotFoundError: If the folder holds no run.
        SchemaError: If the run is of a newer version.
        AnalyzerError: If it was trained by the built-in loop.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._run = path, open_run(path)
        self.manifest: dict[str, Any] = dict(self._run.manifest)
        self.problems = list(self.manifest.get("not_recorded") or ())
        self.first: int | None = None
        kind = self.manifest.get("kind")
        if kind in _KINDS:
            raise AnalyzerError(
                f"run '{path}' is that of {_KINDS[kind]}: the built-in loop keeps no state to "
                "continue from; record it again with more --steps"
            )
        written = {part.attempt for table in STEP_TABLES for part in self._run.written(table)}
        self.attempts = self._earlier_attempts()
        self.attempt = max(written | {len(self.attempts) - 1}) + 1
        self._rows = {name: self._run.static_rows(name).to_pylist() for name in STATIC_TABLES}
        self._own: dict[str, list[int]] = {name: [] for name in STATIC_TABLES}
        self._arrays = {name: np.zeros(0, np.int32) for name in STATIC_TABLES}
        self._keys = {
            name: {key: row[_ID[name]] for row in reversed(rows) for key in _keys(name, row)}
            for name, rows in self._rows.items()
        }

    def _earlier_attempts(self) -> list[dict[str, Any]]:
        """What is said of each attempt; of the last it is what the manifest says."""
        names = ("created", "status", "error", "storage_error", "lost_steps", "seconds", "steps")
        known = {name: self.manifest[name] for name in names if self.manifest.get(name) is not None}
        before = self.manifest.get("attempts")
        if not isinstance(before, list) or not before:
            crashed = {"status": "crashed"} if known.get("status") == "running" else {}
            return [{"first_step": 0, **known, **crashed}]
        return [*before[:-1], {"status": "crashed", **before[-1]}]

    def begun(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of ``run.json`` that are new, of all that is said of a new run."""
        names = ("created", "argv", "versions", "git")
        said = {name: about[name] for name in names if name in about}
        self.attempts = [*self.attempts, said]
        return {"attempts": self.attempts, "lost_steps": None}

    def ended(self, about: Mapping[str, Any], status: str, error: str | None) -> dict[str, Any]:
        """Return the fields of ``run.json`` at the end, over all attempts."""
        said = {"status": status, "error": error, "steps": about["steps"]}
        said |= {name: value for name, value in about.items() if name.endswith("seconds")}
        self.attempts = [*self.attempts[:-1], {**self.attempts[-1], **said}]
        before = self.manifest
        whole = {
            name: value + float(before.get(name) or 0)
            for name, value in about.items()
            if name.endswith("seconds")
        }
        steps = max(about["steps"], int(before.get("steps") or 0))
        return {"attempts": self.attempts, "steps": steps, **whole}

    def options(self, given: RecordOptions) -> RecordOptions:
        """Return the options of the run, with those of the command that it does not store.

        Raises:
            AnalyzerError: If an option was given that is another than the run's.
        """
        schedule = self.manifest.get("schedule")
        stored = dict(schedule) if isinstance(schedule, dict) else {}
        stored.pop("stop_after", None)
        stored["skip_scale"] = self.manifest.get("skip_scale")
        stored["rescale"] = bool(self.manifest.get("rescaled"))
        stored["seed"] = self.manifest.get("seed")
        probes = stored.pop("probes", [])
        defaults, kept = RecordOptions(), {}
        try:
            plans = [(plan["name"], plan["every"]) for plan in probes]
            stored["probe"] = tuple(f"{name}:{n}" if n else name for name, n in plans)
            for name, value in stored.items():
                if not hasattr(given, name):
                    continue
                asked = getattr(given, name)
                if asked not in (value, getattr(defaults, name)):
                    raise AnalyzerError(
                        f"{flag(name)} is {asked!r}, and run '{self.path}' was recorded with "
                        f"{value!r}; a run keeps its options. Leave it out, or record a new run."
                    )
                kept[name] = value
            return replace(given, **kept)
        except (OptionError, KeyError, TypeError) as error:
            raise AnalyzerError(
                f"run '{self.path}' cannot be resumed: its options cannot be read ({error}); "
                "record a new run"
            ) from error

    def begin(self, training: Training, warn: Callable[[str], object], roots: Sequence[Any]) -> int:
        """Return the number of the first step of a training, at its first backward pass.

        Raises:
            NotResumableError: If its model is not that of the run.
        """
        models, options = training.models, training.options
        if (refusal := self.refusal(models)) is not None:
            warn(refusal)
            raise NotResumableError
        first = self.place(models, roots, options.first_step)
        training.updates.turns = self.turns(models, options)
        return first

    # --- whose model it is -------------------------------------------------------------------

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that is not the run's.

        Raises:
            AnalyzerError: With the first parameter in which they differ.
        """
        named = unwrapped(model).named_parameters()
        own = {clean_path(name): list(parameter.shape) for name, parameter in named}
        if (difference := self._difference([own])) is not None:
            raise AnalyzerError(difference)

    def refusal(self, models: Models) -> str | None:
        """Return why the models of a training are not those of the run; None where they are."""
        rows = models.parameters.rows(models.layers)
        prefixes = models.layers.prefixes()
        roots: list[dict[str, list[int]]] = [{} for _ in prefixes]
        for row in rows:
            for prefix, own in zip(prefixes, roots, strict=True):
                if row["name"].startswith(prefix):
                    own[row["name"].removeprefix(prefix)] = row["shape"]
                    break
        return self._difference([own for own in roots if own])

    def _difference(self, roots: Sequence[Mapping[str, Sequence[int]]]) -> str | None:
        rows = self._rows["parameters"]
        if not rows or not roots:
            return None
        # Tensors that an optimizer holds and no model are not known before its first update.
        held = [row for row in rows if row["layer"] is not None or "." in row["name"]]
        prefixes = {"", *(f"{row['name'].partition('.')[0]}." for row in rows)}
        parts = [
            {row["name"].removeprefix(p): row["shape"] for row in some if row["name"].startswith(p)}
            for p in sorted(prefixes)
            for some in (rows, held)
        ]
        if any(own == part for own in roots for part in parts):
            return None
        own = max(roots, key=len)
        theirs = max(parts, key=lambda part: len(part.keys() & own.keys()))
        for name in [*own, *theirs]:
            if own.get(name) != theirs.get(name):
                sides = [
                    f"has {list(side[name])}" if name in side else "has none"
                    for side in (theirs, own)
                ]
                break
        return (
            f"run '{self.path}' cannot be resumed by this program, whose model has other "
            f"parameters: for {name} the run {sides[0]}, the program {sides[1]}; the run is as it "
            "was. Resume it with the program that it records, or record a new run."
        )

    # --- where its numbers continue ----------------------------------------------------------

    def place(self, models: Models, roots: Sequence[Any], asked: int | None) -> int:
        """Return the number of the first step.

        That is the recorded step that began with the present weights: as far as is known at the
        first backward pass, their norms are the recorded ones. Where none did, the loss may be that
        of a step of which no weights were recorded. Else the steps follow the last recorded one.

        Args:
            models: The models of the training, which were not updated yet.
            roots: Where its first backward pass starts.
            asked: The number that the user gave; None to find it.
        """
        recorded = self._run.recorded_steps()
        following = int(recorded[-1]) + 1 if len(recorded) else 0
        found = self._found(models, _loss(roots)) if asked is None else asked
        self.first = following if found is None else found
        self.attempts = [*self.attempts[:-1], {**self.attempts[-1], "first_step": self.first}]
        return self.first

    def _found(self, models: Models, loss: float | None) -> int | None:
        steps = self._run.read("steps", ["loss", "skipped", "learning_rate"])
        numbers = as_numpy(steps.column("step"))
        losses = as_floats(steps.column("loss"))
        candidates = self._steps_with(self._norms(models))
        alike = set(numbers[losses == loss].tolist()) if loss is not None else set()
        if candidates:
            found = max(alike & candidates or candidates)
            (at,) = np.flatnonzero(numbers == found) if found in numbers else [None]
            if at is not None and found not in alike:
                skipped, rate = (steps.column(c)[at].as_py() for c in ("skipped", "learning_rate"))
                found += bool(skipped) or rate == 0  # the weights of the next step are the same
            return found
        alike -= set(self._run.recorded_steps("parameter_stats").tolist())
        return alike.pop() if len(alike) == 1 else None

    def _norms(self, models: Models) -> dict[int, float]:
        """The norms of the parameters as they are now, by their ids in the run."""
        rows: dict[int, ParameterRow] = {}
        models.parameters.read(models.parameters.trainable(), rows)
        names = {row["parameter"]: row for row in models.parameters.rows(models.layers)}
        found = {self._known("parameters", names[n]): n for n in rows}
        norms = ((id_, rows[n].norm) for id_, n in found.items() if id_ is not None)
        return {id_: float(norm) for id_, norm in norms if norm is not None}

    def _steps_with(self, norms: Mapping[int, float]) -> set[int]:
        """The recorded steps that began with weights of these norms, the latest that there are."""
        recorded = self._run.recorded_steps("parameter_stats")
        span = max(_STEPS_AFTER, _ROWS_AT_ONCE // max(1, len(self._rows["parameters"])))
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
        known = is_present(rows.column("norm"))
        wanted = np.array([norms.get(id_, np.nan) for id_ in ids.tolist()])
        is_same = np.abs(as_floats(rows.column("norm")) - wanted) <= _SAME * np.abs(wanted)
        is_same |= ~known
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

    def turns(self, models: Models, options: RecordOptions) -> dict[int, int]:
        """Return how many of its updates each parameter is past the last one that was measured."""
        assert self.first is not None
        span = _TURNS * options.updates_every * options.every
        steps = slice(max(0, self.first - span), self.first)
        rows = self._run.read("parameter_stats", "update_norm", steps=steps)
        skipped = self._run.read("steps", "skipped", steps=steps)
        left_out = as_numpy(skipped.column("step"))[as_floats(skipped.column("skipped")) > 0]
        numbers, ids = (as_numpy(rows.column(name)) for name in ("step", "parameter"))
        is_measured, counted = is_present(rows.column("update_norm")), ~np.isin(numbers, left_out)
        found: dict[int, int] = {}
        for own, id_ in enumerate(self._numbered(models)):
            mine = ids == id_
            measured = numbers[mine & is_measured]
            if len(measured):
                found[own] = int(np.sum(mine & counted & (numbers > measured[-1])))
        return found

    def _numbered(self, models: Models) -> Iterator[int | None]:
        for row in models.parameters.rows(models.layers):
            yield self._known("parameters", row)

    # --- its ids -----------------------------------------------------------------------------

    def tables(self, own: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        """Return the static tables of the run with the rows of this attempt, in its ids."""
        for name in STATIC_TABLES:
            self._renumber(name, own.get(name, []))
        for name in STATIC_TABLES:
            rows, ids = self._rows[name], self._own[name]
            column, table = _REFERENCES.get(name, ("", ""))
            for id_, row in zip(ids, own.get(name, []), strict=False):
                changed = {**row, _ID[name]: id_}
                if column and row.get(column) is not None:
                    changed[column] = self._own[table][row[column]]
                rows[id_] = changed
        return {name: list(self._rows[name]) for name in STATIC_TABLES}

    def _renumber(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Give the rows that are new in this attempt their ids: known ones, or the next."""
        ids, every = self._own[name], self._rows[name]
        taken = set(ids)
        for row in rows[len(ids) :]:
            id_ = self._known(name, row)
            if id_ is None or id_ in taken:
                id_ = len(every)
                every.append(dict(row))
            ids.append(id_)
            taken.add(id_)

    def _known(self, name: str, row: Mapping[str, Any]) -> int | None:
        """The id of a row of this attempt that an earlier one has."""
        found = (self._keys[name].get(key) for key in _keys(name, row))
        return next((id_ for id_ in found if id_ is not None), None)

    def record(self, make: Callable[[], StepRecord]) -> StepRecord:
        """Return the rows of a step with the ids of the run."""
        record = make()
        blocks = [
            replace(block, ids=self._ids(_TABLE_OF[block.table])[block.ids])
            for block in record.blocks
        ]
        return StepRecord(record.step, blocks)

    def _ids(self, name: str) -> NDArray[np.int32]:
        if len(self._arrays[name]) != len(self._own[name]):
            self._arrays[name] = np.array(self._own[name], dtype=np.int32)
        return self._arrays[name]

    def columns(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a probe with the ids of the run."""
        changed = dict(columns)
        for name, column in _ID.items():
            if column in changed and column != "parameter":
                own = self._own[name]
                changed[column] = [own[id_] if _is_id(id_, own) else id_ for id_ in changed[column]]
        return changed


def _is_id(value: Any, own: Sequence[int]) -> bool:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_whole and 0 <= value < len(own)


def _keys(table: str, row: Mapping[str, Any]) -> list[Any]:
    """By what a row is known again: its name; a join rather by its layers, if they are the same."""
    if table != "joins":
        return [row["name"]]
    layers = tuple(row["branch_layers"]), tuple(row["shortcut_layers"])
    return [(row["name"].partition("#")[0], row["operation"], *layers), row["name"]]


def _loss(roots: Sequence[Any]) -> float | None:
    """The loss of a backward pass, unscaled; None where it has no single one."""
    found = [loss_of(root, scale_of(roots)) for root in roots]
    if len(found) != 1 or found[0] is None:
        return None
    value, scale = found[0]
    return float(value) if scale is None else float(value) / float(scale)

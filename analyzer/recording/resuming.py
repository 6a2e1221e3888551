"""A run that is continued: under which numbers, with which ids and options.

Nothing that was recorded is altered: the rows of the new attempt stand beside those of the earlier
ones, and a layer, a parameter or a join that is known by its name keeps its id.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from analyzer.errors import AnalyzerError, RunExistsError
from analyzer.launch import Rank, rank_in
from analyzer.options import OptionError, RecordOptions, flag
from analyzer.recording.models import Models
from analyzer.recording.names import clean_path, unwrapped
from analyzer.recording.provenance import Places, loss_of_roots
from analyzer.recording.step import OpenStep
from analyzer.recording.training import Training
from analyzer.storage.rows import StepRecord
from analyzer.storage.run import open_run
from analyzer.storage.run_json import status_of
from analyzer.storage.schema import EDGES, STATIC_TABLES, STEP_TABLES

__all__ = ["NotResumableError", "Resumed"]

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
        attempt: Number of the new attempt; ``rank``: what this process is in it.
        attempts: What ``run.json`` says of each attempt.
        manifest: What ``run.json`` said before.
        problems: What was not recorded before.
        first: The step that the new attempt began with; None before that is known.
        is_found: Whether something says that it is that step.

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
        self.is_found = False
        kind = self.manifest.get("kind")
        if kind in _KINDS:
            raise AnalyzerError(
                f"run '{path}' is that of {_KINDS[kind]}: the built-in loop keeps no state to "
                "continue from; record it again with more --steps"
            )
        written = {part.attempt for table in STEP_TABLES for part in self._run.written(table)}
        self.attempts = self._earlier_attempts()
        self.attempt = max(written | {len(self.attempts) - 1}) + 1
        self.rank = rank_in(path)
        if self.rank.is_one_of_many:
            self.attempt = self.rank.attempt
            self._check_others()
        else:
            self.rank = Rank(Path(os.path.abspath(path)), 0, self.attempt)
        self._rows = {name: self._run.static_rows(name).to_pylist() for name in STATIC_TABLES}
        edges = self._run.static_rows(EDGES)
        self._edges = set(zip(*(column.to_pylist() for column in edges.columns), strict=True))
        self._own: dict[str, list[int]] = {name: [] for name in STATIC_TABLES}
        self._arrays = {name: np.zeros(0, np.int32) for name in STATIC_TABLES}
        self._keys = {
            name: {key: row[_ID[name]] for row in reversed(rows) for key in _keys(name, row)}
            for name, rows in self._rows.items()
        }
        self._places = Places(self._run, partial(self._known, "parameters"), self.rank)

    def _check_others(self) -> None:
        """Refuse a run that another launch still records, as its heartbeat says."""
        is_ours = self.manifest.get("attempt", 0) == self.attempt or self.rank.is_restart
        if status_of(self.manifest) == "running" and not is_ours:
            raise RunExistsError(f"run '{self.path}' is still being recorded; wait for its end")

    def _earlier_attempts(self) -> list[dict[str, Any]]:
        """What is said of each attempt; of the last it is what the manifest says."""
        names = ("created", "status", "error", "storage_error", "lost_steps", "seconds", "steps")
        known = {name: self.manifest[name] for name in names if self.manifest.get(name) is not None}
        before = self.manifest.get("attempts")
        if not isinstance(before, list) or not before:
            crashed = {"status": "crashed"} if known.get("status") == "running" else {}
            return [{"first_step": 0, **known, **crashed}]
        return [*before[:-1], {"status": "crashed", **before[-1]}]

    @property
    def said(self) -> list[dict[str, Any]]:
        """The attempts, with the first step of this one."""
        return [*self.attempts[:-1], {**self.attempts[-1], "first_step": self.first}]

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
        self.attempts = [*self.said[:-1], {**self.said[-1], **said}]
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

    def begin(
        self,
        training: Training,
        warn: Callable[[str], object],
        roots: Sequence[Any] | None,
    ) -> int | None:
        """Return the number of the first step, as far as its weights and its first loss tell.

        Args:
            training: It was not updated yet.
            warn: Receives the sentence about another model.
            roots: Where its first backward pass starts; None before it: it may not be known then.

        Raises:
            NotResumableError: If its model is not that of the run.
        """
        models, found = training.models, training.options.first_step
        if (refusal := self.refusal(models)) is not None:
            warn(refusal)
            raise NotResumableError
        if found is None:
            found = self.rank.first_step()
        if found is None:
            found = self._places.by_weights(models, loss_of_roots(roots or ()))
        if found is None and roots is None and not self.rank.is_one_of_many:
            return None
        # What all ranks have agreed on stands, since each knows its own loss alone.
        self.is_found = found is not None or self.rank.is_one_of_many
        first = self._places.following() if found is None else found
        self.rank.note_first_step(first)
        self._continue_at(training, first)
        return self.first

    def settle(self, training: Training, step: OpenStep) -> int | None:
        """Return another number for the first step, as its whole loss tells; None to keep its own.

        Args:
            training: It was updated once.
            step: The first step, which is about to end.
        """
        if self.is_found:
            return None
        self.is_found = True
        if (found := self._places.by_loss(step.loss())) is not None:
            self._continue_at(training, found)
            step.index = found
            training.splits.wait_for_turn()
            training.await_next_step()
        return found

    def _continue_at(self, training: Training, first: int) -> None:
        self.first = first
        turns = self._places.turns(training.models, training.options, first)
        training.updates.continue_after(turns)

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
                if name == "parameters":  # it may have been frozen meanwhile
                    changed["trained"] = row["trained"] or rows[id_]["trained"]
                rows[id_] = changed
        layers = {-1: -1, **dict(enumerate(self._own["layers"]))}
        for edge in own.get(EDGES, []):
            self._edges.add((layers[edge["source"]], layers[edge["target"]]))
        edges = [{"source": source, "target": target} for source, target in sorted(self._edges)]
        return {name: list(self._rows[name]) for name in STATIC_TABLES} | {EDGES: edges}

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

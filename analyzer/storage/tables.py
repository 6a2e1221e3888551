"""Reads only the columns, steps and ids that were asked for from the parts of one table."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.storage.arrays import (
    as_array,
    as_numpy,
    conform,
    is_number,
    side_by_side,
    unified,
)
from analyzer.storage.bins import Numbers
from analyzer.storage.finding import PartFinder
from analyzer.storage.limits import Total
from analyzer.storage.open_part import OpenPart, open_part
from analyzer.storage.parts import READ_FAILURES, Part
from analyzer.storage.schema import CONSTANT_COLUMNS, TABLES, key_column
from analyzer.storage.selection import Steps, by_step, has_twins, kept

__all__ = ["StepTable"]

_Answer = TypeVar("_Answer")
_Ids = Sequence[int] | None
_MOST_TRIES = 10
# Above this many rows a second core pays for its start.
_MANY_ROWS = 500_000
# Rows whose steps are looked at together.
_SCANNED_ROWS = 2_000_000
_GROUPS_AT_ONCE = 8
_STEPS_AT_ONCE = 256


class _LeftOutError(Exception):
    """A part was found damaged: those that were merged into it may still be there."""


class StepTable:
    """One table of a run that has rows for steps.

    Args:
        run: Folder of the run.
        name: Name of the table.
        warn: Receives a sentence for each part that is damaged, missing or another's.
        promised: Returns how many flushes were written, by ``<rank>.<attempt>``.
        ids: Returns what the ids of a rank and attempt are in the run; None where they are alike.
    """

    def __init__(
        self,
        run: Path,
        name: str,
        warn: Callable[[str], None],
        promised: Callable[[], Mapping[str, int]] = dict,
        ids: Callable[[int, int], NDArray[np.int32] | None] = lambda rank, attempt: None,
    ) -> None:
        self._ids = ids
        self.name, self.key = name, key_column(name)
        self._folder = run / name
        self._finder = PartFinder(self._folder, warn, promised)
        self._names: dict[Part, str] = {}
        self._parts: list[Part] | None = None
        self._steps: NDArray[np.int64] | None = None

    def refresh(self) -> None:
        """Look for new parts at the next question."""
        self._finder.forget()
        self._look_again()

    def _look_again(self) -> None:
        self._parts = self._steps = None

    @property
    def parts(self) -> list[Part]:
        """The parts that hold the rows, by attempt, rank and flush."""
        if self._parts is None:
            names = self._again(self._finder.find)
            self._names, self._parts = names, list(names)
        return self._parts

    @property
    def ranks(self) -> list[int]:
        """Ranks that wrote rows."""
        return sorted({part.rank for part in self.parts})

    def bounds(self) -> tuple[int, int] | None:
        """First and last step; None while there are no rows."""
        parts = self.parts
        return (min(p.first for p in parts), max(p.last for p in parts)) if parts else None

    def schema(self) -> pa.Schema:
        """The columns: those of this version, then what was logged."""
        return _full_schema(self.name, [part.schema for part in self._readable()])

    def steps(self) -> NDArray[np.int64]:
        """Return the steps that have rows, in order, each once."""
        if self._steps is None:
            self._steps = self._every_step()
        return self._steps

    def _every_step(self) -> NDArray[np.int64]:
        """All steps, from so few rows at a time that a long run fits into memory."""
        bounds, found = self.bounds(), [np.zeros(0, np.int64)]
        if bounds is not None:
            first, last = bounds
            parts = self._readable()
            num_rows = sum(part.num_rows for part in parts)
            Total(f"the steps of {self.name}").check(8 * num_rows)
            if self.key is None and (gapless := _together(parts)) is not None:
                return gapless
            span = max(1, _SCANNED_ROWS * (last - first + 1) // max(1, num_rows))
            for start in range(first, last + 1, span):
                found.append(self._between(start, start + span - 1))
        return np.concatenate(found)

    def _readable(self) -> list[OpenPart]:
        """All parts that can be opened."""
        return self._again(lambda: self._each(self.parts, self._open))

    def num_rows(self, rank: int) -> int:
        """Return how many rows a rank has in all attempts."""
        opened_ = self._readable()
        return sum(
            o.num_rows for part, o in zip(self.parts, opened_, strict=True) if part.rank == rank
        )

    def _between(self, first: int, last: int) -> NDArray[np.int64]:
        """The steps from one to another that have rows, in order, each once."""
        rows = self.read(["step"], Steps(first, last), all_attempts=True)
        # Rows come in the order of their steps.
        steps = as_numpy(rows.column("step"))
        is_new = np.ones(len(steps), bool)
        is_new[1:] = steps[1:] != steps[:-1]
        return steps[is_new].astype(np.int64, copy=False)

    def nearest(self, step: int | None) -> int | None:
        """Return the step with rows that is nearest to one, the earlier of two; the last for None.

        Only rows near it are read. None where there are no rows.
        """
        bounds = self.bounds()
        if not (step is None or isinstance(step, int | np.integer)):
            raise TypeError(f"step is {step!r}; expected a whole number, or None for the last")
        if bounds is None:
            return None
        if self._steps is not None or step is None:
            found, at = self.latest(1) if step is None else self.steps(), step
            return None if not len(found) else _nearest(found, at)
        at, reach = min(max(step, bounds[0]), bounds[1]), 0
        while True:
            found = self._between(max(0, at - reach), at + reach)
            if len(found):
                return _nearest(found, step)
            if at - reach <= bounds[0] and at + reach >= bounds[1]:
                return None
            reach = max(1, 16 * reach)

    def latest(self, count: int) -> NDArray[np.int64]:
        """Return the last steps that have rows, in order: ``count``, or all if there are fewer."""
        bounds, span = self.bounds(), 4 * count
        while self._steps is None and bounds is not None and bounds[1] - span > bounds[0]:
            found = self._between(bounds[1] - span, bounds[1])
            if len(found) >= count:
                return found[-count:]
            span *= 8
        return self.steps()[-count:]

    def read(
        self,
        columns: Sequence[str],
        steps: Steps,
        ids: _Ids = None,
        *,
        ranks: Sequence[int] | None = None,
        all_attempts: bool = False,
    ) -> pa.Table:
        """Return exactly these columns, null where unknown, of rows in the order of their steps.

        Of several attempts the newest has the step, unless the rows of all are asked for.
        """

        def rows() -> pa.Table:
            parts = [p for p in self.parts if ranks is None or p.rank in ranks]
            is_mixed = not all_attempts and len({part.attempt for part in parts}) > 1
            keys = [self.key] if self.key is not None and ids is not None else []
            needed = list(dict.fromkeys(["step", *columns, *keys]))
            total = Total(f"the rows of {self.name} that are asked for")
            found = self._each(parts, lambda p: self._piece(p, needed, steps, ids, total))
            pieces = []
            for part, piece in zip(parts, found, strict=True):
                if piece is not None:
                    attempt = np.full(piece.num_rows, part.attempt, dtype=np.int16)
                    pieces.append(piece.append_column("_attempt", as_array(attempt)))
            schema = _full_schema(self.name, [piece.schema for piece in pieces])
            schema = pa.schema(
                [_field(schema, name) for name in needed] + [("_attempt", pa.int16())]
            )
            whole = pa.concat_tables([conform(p, schema) for p in pieces] or [schema.empty_table()])
            if is_mixed:
                whole = self._newest(whole, parts)
            return by_step(whole).select(list(columns))

        return self._again(rows)

    def numbers(self, first: int, last: int, rank: int) -> Iterator[Numbers]:
        """Yield the numeric columns of a rank's rows, as an overview takes them."""
        names = [f.name for f in self.schema() if is_number(f.type)]
        values = [n for n in names if n not in (*CONSTANT_COLUMNS, self.key)]
        keys = ["step"] if self.key is None else ["step", self.key]
        recorded = self.steps()
        recorded = recorded[(recorded >= first) & (recorded <= last)]
        for start in range(0, len(recorded), _STEPS_AT_ONCE):
            some = recorded[start : start + _STEPS_AT_ONCE]
            steps = Steps(int(some[0]), int(some[-1]))
            rows = self.read([*keys, *values], steps, ranks=[rank])
            if rows.num_rows:
                ids = as_numpy(rows.column(self.key)) if self.key else np.zeros(rows.num_rows)
                keyed = tuple(values), as_numpy(rows.column("step")), ids.astype(np.int32)
                yield Numbers(*keyed, *side_by_side(rows, values))

    def _again(self, question: Callable[[], _Answer]) -> _Answer:
        """Ask again when a merge took parts away meanwhile, or a part turned out damaged."""
        tries = 0
        while True:
            try:
                return question()
            except FileNotFoundError:
                tries += 1
                if tries > _MOST_TRIES:
                    raise
            except _LeftOutError:
                pass
            self._look_again()

    def _each(self, parts: Iterable[Part], ask: Callable[[Part], _Answer]) -> list[_Answer]:
        """An answer of each part; all that turn out damaged are found before one asks again."""
        answers, damaged = [], None
        for part in parts:
            try:
                answers.append(ask(part))
            except _LeftOutError as error:
                damaged = error
        if damaged is not None:
            raise damaged
        return answers

    def _piece(
        self, part: Part, needed: Sequence[str], steps: Steps, ids: _Ids, total: Total
    ) -> pa.Table | None:
        """The rows of one part; None where it has none, or cannot be read."""
        if not steps.touches(part.first, part.last):
            return None
        try:
            found = self._opened(part)
            groups = np.flatnonzero(steps.touching(*found.bounds)).tolist()
            if not groups:
                return None
            known = {*found.schema.names}
            names = [name for name in needed if name in known]
            schema = _full_schema(self.name, [found.schema], {*names})
            # Most rows are dropped then: not all of a long run are held at a time.
            many = len(groups) if ids is None and steps.only is None else _GROUPS_AT_ONCE
            pieces = []
            for start in range(0, len(groups), many):
                some, threads = groups[start : start + many], found.num_rows > _MANY_ROWS
                total.check(found.file.memory_of(some, names))
                rows = found.file.read_row_groups(some, columns=names, use_threads=threads)
                rows = self._renumbered(_checked(conform(rows, schema), part, self.key), part)
                pieces.append(total.kept(kept(rows, steps, self.key, ids)))
            return pa.concat_tables(pieces)
        except FileNotFoundError:
            raise
        except READ_FAILURES as error:
            raise self._left_out(part, error) from error

    def _renumbered(self, rows: pa.Table, part: Part) -> pa.Table:
        """Rows with the ids of the run in place of those of the process that wrote them."""
        if self.key not in rows.schema.names:
            return rows
        known = self._ids(part.rank, part.attempt)
        if known is None or not len(known):
            return rows
        place = rows.schema.get_field_index(self.key)
        own = as_numpy(rows.column(place))
        found = np.where(own < len(known), known[np.minimum(own, len(known) - 1)], own)
        field = rows.schema.field(place)
        return rows.set_column(place, field, as_array(found.astype(np.int32)))

    def _path(self, part: Part) -> Path:
        return self._folder / self._names.get(part, part.name)

    def _opened(self, part: Part) -> OpenPart:
        found = open_part(self._path(part))
        if found.place not in (None, f"{self.name}/{part.name}"):
            raise FileNotFoundError(f"{part.name} has another name by now")
        if self.key is not None and self.key not in found.schema.names:
            raise ValueError(f"it has no column {self.key!r}")
        return found

    def _left_out(self, part: Part, error: Exception) -> _LeftOutError:
        name = self._path(part).name
        self._finder.leave_out(name, error)
        return _LeftOutError(name)

    def _open(self, part: Part) -> OpenPart:
        try:
            return self._opened(part)
        except FileNotFoundError:
            raise
        except READ_FAILURES as error:
            raise self._left_out(part, error) from error

    def _newest(self, whole: pa.Table, parts: Sequence[Part]) -> pa.Table:
        """Leave out the rows of attempts that a newer one went over again."""
        steps = as_numpy(whole.column("step"))
        attempts = as_numpy(whole.column("_attempt"))
        if not len(steps):
            return whole
        order = np.lexsort((attempts, steps))
        last = np.append(np.flatnonzero(np.diff(steps[order])), len(order) - 1)
        newest = attempts[order][last][np.searchsorted(steps[order][last], steps)]
        return whole.filter(as_array(attempts == newest))


def _nearest(steps: NDArray[np.int64], step: int | None) -> int:
    """The one of some steps that is nearest to another, the earlier of two; the last for None."""
    return int(steps[-1] if step is None else steps[np.argmin(np.abs(steps - step))])


def _together(parts: Sequence[OpenPart]) -> NDArray[np.int64] | None:
    """The steps of all parts, each once, where their footers say them all; else None.

    A training that records each step leaves no gap: millions of numbers need not be read. An
    attempt has one row of a step in a table without ids, so that as many rows as steps are all.
    """
    found = [part.spans() for part in parts]
    joined: list[list[int]] = []
    for low, high in sorted(itertools.chain.from_iterable(spans or () for spans in found)):
        if joined and low <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], high)
        else:
            joined.append([low, high])
    if None in found or not joined:
        return None
    pieces = [np.arange(low, high + 1, dtype=np.int64) for low, high in joined]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _field(schema: pa.Schema, name: str) -> pa.Field:
    at = schema.get_field_index(name)
    return schema.field(at) if at >= 0 else pa.field(name, pa.null())


def _full_schema(
    table: str, found: Sequence[pa.Schema], names: Collection[str] | None = None
) -> pa.Schema:
    """The schema's types for its columns, the widest found for what was logged."""
    known = TABLES[table]
    own = {*known.names}
    logged = unified(pa.schema([f for f in schema if f.name not in own]) for schema in found)
    fields = [*known, *logged]
    if names is not None:
        fields = [field for field in fields if field.name in names]
    # A foreign file may lack a column that is never null here; it is read all the same.
    return pa.schema([field.with_nullable(True) for field in fields])


def _checked(rows: pa.Table, part: Part, key: str | None) -> pa.Table:
    """The rows, if each is of a step that the part's name says, and of an id."""
    steps = as_numpy(rows.column("step"))
    keys = [name for name in ("step", key) if name and name in rows.column_names]
    if any(rows.column(name).null_count for name in keys):
        raise ValueError(f"it has rows without {' or '.join(keys)}")
    if len(steps) and not part.first <= steps.min() <= steps.max() <= part.last:
        raise ValueError(f"it has rows of steps {steps.min()} to {steps.max()}")
    if key in rows.column_names:
        ids = as_numpy(rows.column(key))
        # In the order in which they are written that is seen at a glance.
        is_next = (np.diff(steps) > 0) | ((np.diff(steps) == 0) & (np.diff(ids) > 0))
        if not is_next.all() and has_twins(steps, ids):
            raise ValueError(f"it has several rows of one step and {key}")
    return rows

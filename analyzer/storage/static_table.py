"""The static tables of a run: written whole, and put together from those of ranks and attempts."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.errors import TooLargeError
from analyzer.launch import RANKS
from analyzer.storage.arrays import as_array, as_numpy, conform
from analyzer.storage.limits import LIMITS
from analyzer.storage.parts import READ_FAILURES, listing, reason_of
from analyzer.storage.schema import EDGES, TABLES
from analyzer.storage.sealed import open_file

__all__ = ["StaticTable", "static_tables"]

# Tables that hold ids of another one.
_REFERENCES = (("joins", "", ""), ("layers", "join", "joins"), ("parameters", "layer", "layers"))

# The tables of all ranks together have as many times the rows of one.
_MOST_RANKS = 16
_OWN_TABLE = re.compile(r"a(\d{1,5})\.r(\d{1,5})\.(\w+)\.parquet")


class StaticTable:
    """``layers``, ``parameters`` or ``joins``, written whole; warns where it cannot be read.

    What other ranks or attempts have besides comes after the rows of the table at the top.

    Args:
        run: Folder of the run.
        name: Name of the table.
        warn: Receives a sentence about a file that cannot be read.
        promised: Returns how many rows ``run.json`` says it has.
        refers: A column that holds ids of another table, and that table.
    """

    def __init__(
        self,
        run: Path,
        name: str,
        warn: Callable[[str], None],
        promised: Callable[[], object] = lambda: None,
        refers: "tuple[str, StaticTable] | None" = None,
    ) -> None:
        self._run, self._name, self._warn = run, name, warn
        self._promised, self._refers = promised, refers
        self._table: pa.Table | None = None
        self._ids: dict[tuple[int, int], NDArray[np.int32]] = {}

    def refresh(self) -> None:
        """Read the file again at the next question."""
        self._table = None

    def read(self) -> pa.Table:
        """Return the rows; none where the file is missing or damaged."""
        if self._table is None:
            self._ids = {}
            self._table = self._with_others(self.at_the_top())
        return self._table

    def ids(self, rank: int, attempt: int) -> NDArray[np.int32] | None:
        """Return the ids here by those in the rows of a writer; None where they are alike."""
        self.read()
        return self._ids.get((rank, attempt))

    def names(self) -> dict[int, str]:
        """Return the name of each id."""
        rows = self.read()
        return dict(zip(rows.column(0).to_pylist(), rows.column("name").to_pylist(), strict=True))

    def at_the_top(self) -> pa.Table:
        """Return the rows of the table that stands beside ``run.json``."""
        path = self._run / f"{self._name}.parquet"
        if not path.is_file() and self._promised():
            self._warn(f"{path.name} is missing")
        return self._of_file(path)

    def _with_others(self, whole: pa.Table) -> pa.Table:
        """Add what stands only in the tables of other ranks and attempts, and note their ids."""
        known = dict(zip(_told_apart(whole), whole.column(0).to_pylist(), strict=True))
        for attempt, rank, rows in self._of_others():
            keys, free = _told_apart(rows), max(known.values(), default=-1) + 1
            new = [place for place, key in enumerate(keys) if key not in known]
            known |= {keys[place]: free + count for count, place in enumerate(new)}
            ids = np.array([known[key] for key in keys], dtype=np.int32)
            if not np.array_equal(ids, as_numpy(rows.column(0))):
                self._ids[rank, attempt] = ids
            if new:
                whole = pa.concat_tables([whole, self._added(rows, ids, new, (rank, attempt))])
        return whole

    def _of_others(self) -> Iterator[tuple[int, int, pa.Table]]:
        """The attempts and ranks with tables of their own, and those."""
        found = ((_OWN_TABLE.fullmatch(name), name) for name in listing(self._run / RANKS))
        own = [(int(m[1]), int(m[2]), name) for m, name in found if m and m[3] == self._name]
        num_read = 0
        for attempt, rank, name in sorted(own):
            rows = self._of_file(self._run / RANKS / name)
            num_read += rows.num_rows
            try:
                what = f"a sixteenth of what its ranks have of {self._name} numbers"
                LIMITS.check("names", num_read / _MOST_RANKS, what)
            except TooLargeError as error:
                self._warn(str(error))
                return
            yield attempt, rank, rows

    def _added(
        self, rows: pa.Table, ids: NDArray[np.int32], new: Sequence[int], writer: tuple[int, int]
    ) -> pa.Table:
        rows = rows.set_column(0, rows.schema.field(0), as_array(ids)).take(pa.array(new))
        if self._refers is not None:
            name, other = self._refers
            known, column = other.ids(*writer), rows.column(name)
            if known is not None:
                place = rows.schema.get_field_index(name)
                there = [None if id_ is None else int(known[id_]) for id_ in column.to_pylist()]
                rows = rows.set_column(
                    place, rows.schema.field(place), pa.array(there, column.type)
                )
        return rows

    def _of_file(self, path: Path) -> pa.Table:
        # An empty table has no values that could be null.
        fields = [field.with_nullable(True) for field in TABLES[self._name]]
        schema = pa.schema(fields, metadata=TABLES[self._name].metadata)
        if path.is_symlink() or not path.is_file():
            return schema.empty_table()
        try:
            with open_file(path) as file:
                LIMITS.check("names", file.metadata.num_rows, "its rows number")
                known = [name for name in file.schema_arrow.names if name in schema.names]
                rows = conform(file.read(known), schema)
            for field in TABLES[self._name]:
                if not field.nullable and rows.column(field.name).null_count:
                    raise ValueError(f"it has rows without {field.name!r}")
            self._check(rows)
            return rows
        except READ_FAILURES as error:
            self._warn(f"{path.name} cannot be read and is left out ({reason_of(error)})")
            return schema.empty_table()

    def _check(self, rows: pa.Table) -> None:
        ids = as_numpy(rows.column(0))
        if len(ids) and (ids.min() < 0 or len(np.unique(ids)) < len(ids)):
            raise ValueError("its rows have numbers below 0 or the same number")


class _EdgeTable(StaticTable):
    """The data flow between layers: pairs of their ids, each once, by target and source."""

    def _with_others(self, whole: pa.Table) -> pa.Table:
        layers, tables = self._refers[1] if self._refers else self, [whole]
        for attempt, rank, rows in self._of_others():
            ids = layers.ids(rank, attempt)
            columns = [as_numpy(column) for column in rows.columns]
            if ids is not None and len(ids):
                columns = [np.where(one < 0, -1, ids[np.clip(one, 0, None)]) for one in columns]
            tables.append(pa.table([as_array(one) for one in columns], schema=whole.schema))
        rows = pa.concat_tables(tables)
        known = layers.read().column(0)
        both = {*zip(*(column.to_pylist() for column in rows.columns), strict=True)}
        there = {-1, *known.to_pylist()}
        pairs = sorted((t, s) for s, t in both if s in there and t in there and t >= 0)
        columns = [np.array([pair[at] for pair in pairs], dtype=np.int32) for at in (1, 0)]
        return pa.table([as_array(one) for one in columns], schema=whole.schema)

    def _check(self, rows: pa.Table) -> None:
        """Ids that no layer has are left out where the layers are known."""


def _told_apart(rows: pa.Table) -> list[tuple[str, int]]:
    """The names in a static table, each with how often it stood there before."""
    seen: dict[str, int] = {}
    keys = []
    for name in rows.column("name").to_pylist():
        keys.append((name, seen.get(name, 0)))
        seen[name] = seen.get(name, 0) + 1
    return keys


def static_tables(
    run: Path, promised: Callable[[str], object], warn: Callable[[str], None]
) -> dict[str, StaticTable]:
    """Return the static tables of a run by name; ``promised`` as that of a table, by its name."""
    found: dict[str, StaticTable] = {}
    for name, column, other in _REFERENCES:
        refers = (column, found[other]) if column else None
        found[name] = StaticTable(run, name, warn, partial(promised, name), refers)
    found[EDGES] = _EdgeTable(run, EDGES, warn, partial(promised, EDGES), ("", found["layers"]))
    return found

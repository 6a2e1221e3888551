"""Rows of a run for columns, ids, steps and ranks as a user names them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.errors import NotRecordedError
from analyzer.pooling import Column, Groups, Pool, needed_columns
from analyzer.storage.arrays import (
    as_array,
    as_column,
    as_floats,
    as_numpy,
    conform,
    is_present,
    unified,
)
from analyzer.storage.parts import READ_FAILURES, listing, reason_of
from analyzer.storage.schema import STAT_COLUMNS, STEP_TABLES, TABLES
from analyzer.storage.sealed import open_file
from analyzer.storage.selection import StepsLike, nearest, selected_ids, selected_steps
from analyzer.storage.tables import StepTable
from analyzer.vocabulary import quantities_of

__all__ = [
    "Columns",
    "Ids",
    "Ranks",
    "RunRows",
    "StaticTable",
    "pooled",
    "probe_files",
    "probe_notes",
    "probe_rows",
]

# Their rows are gradients of a rank's own loss; those of parameters were averaged by the training.
_OF_OWN_LOSS = ("layer_stats", "splits")
Columns = str | Sequence[str] | None
Ids = int | str | Iterable[int | str] | None
Ranks = Literal["pooled", "all"]
_NAMES_OF = {"layer_stats": "layers", "parameter_stats": "parameters", "splits": "joins"}
_PROBE_FILE = re.compile(r"step-(\d{12,18})\.parquet")
_WRITER = re.compile(r"\d{1,5}\.\d{1,5}")
_FORMAT_KEYS = (b"schema_version", b"ARROW:schema", b"place")


class StaticTable:
    """``layers``, ``parameters`` or ``joins``, written whole; warns where it cannot be read.

    ``promised`` returns how many rows ``run.json`` says it has.
    """

    def __init__(
        self,
        run: Path,
        name: str,
        warn: Callable[[str], None],
        promised: Callable[[], object] = lambda: None,
    ) -> None:
        self._path, self._name, self._warn = run / f"{name}.parquet", name, warn
        self._promised = promised
        self._table: pa.Table | None = None

    def refresh(self) -> None:
        """Read the file again at the next question."""
        self._table = None

    def read(self) -> pa.Table:
        """Return the rows; none where the file is missing or damaged."""
        if self._table is None:
            self._table = self._read()
        return self._table

    def names(self) -> dict[int, str]:
        """Return the name of each id."""
        rows = self.read()
        return dict(zip(rows.column(0).to_pylist(), rows.column("name").to_pylist(), strict=True))

    def _read(self) -> pa.Table:
        # A file of an earlier or foreign version may lack a column that is never null here.
        fields = [field.with_nullable(True) for field in TABLES[self._name]]
        schema = pa.schema(fields, metadata=TABLES[self._name].metadata)
        if self._path.is_symlink() or not self._path.is_file():
            if self._promised():
                self._warn(f"{self._path.name} is missing")
            return schema.empty_table()
        try:
            with open_file(self._path) as file:
                return conform(file.read(), schema)
        except READ_FAILURES as error:
            self._warn(f"{self._path.name} cannot be read and is left out ({reason_of(error)})")
            return schema.empty_table()


def probe_files(folder: Path) -> dict[int, Path]:
    """Return the files of one probe by step."""
    found = ((_PROBE_FILE.fullmatch(name), name) for name in sorted(listing(folder)))
    return {int(match[1]): folder / name for match, name in found if match}


def probe_rows(folder: Path, warn: Callable[[str], None]) -> pa.Table:
    """Return what a probe measured at all steps, with a ``step`` column in front."""
    tables = []
    for step, path in probe_files(folder).items():
        try:
            with open_file(path) as file:
                rows = file.read().replace_schema_metadata(None)
        except READ_FAILURES as error:
            name = f"probes/{folder.name}/{path.name}"
            warn(f"{name} cannot be read and is left out ({reason_of(error)})")
            continue
        if "step" in rows.column_names:
            rows = rows.drop_columns(["step"])
        steps = as_array(np.full(rows.num_rows, step, dtype=np.int64))
        tables.append(rows.add_column(0, "step", steps))
    if not tables:
        return pa.table({"step": pa.nulls(0, pa.int64())})
    schema = unified(table.schema for table in tables)
    return pa.concat_tables([conform(table, schema) for table in tables])


def probe_notes(folder: Path) -> dict[int, dict[str, str]]:
    """Return what a probe noted beside its tables, by step."""
    notes = {}
    for step, path in probe_files(folder).items():
        try:
            with open_file(path) as file:
                raw = file.schema_arrow.metadata or {}
        except READ_FAILURES:
            continue  # `probe_rows` warns of it
        ours = {key: value for key, value in raw.items() if key not in _FORMAT_KEYS}
        notes[step] = {key.decode(): value.decode() for key, value in ours.items()}
    return notes


def pooled(
    table: str,
    rows: pa.Table,
    key: str | None,
    num_ranks: int,
    sharded: Sequence[int] = (),
) -> pa.Table:
    """Return one row per step and id, without ``rank``; null where no rank has a value.

    ``activation_num_dead`` is the smallest of the ranks' counts: a unit is dead where it is dead on
    all of them, and which units were dead is not recorded. Of ``sharded`` parameters each rank
    holds a part.
    """
    if not rows.num_rows:
        return rows.drop_columns(["rank"])
    names = ["rank", *([key] if key else []), "step"]
    rows = rows.take(as_array(np.lexsort([as_numpy(rows.column(name)) for name in names])))
    keys = [as_numpy(rows.column(name)) for name in ("step", key) if name is not None]
    groups = Groups.of(*keys)
    whole = _Ranks(table, rows, groups, num_ranks)
    if len(sharded):
        whole.is_shard = np.isin(keys[1][groups.firsts], sharded)
    fields = [field for field in rows.schema if field.name != "rank"]
    arrays = [whole.column(field) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


class _Ranks:
    """The rows of several ranks, by step and id, and how their columns become one."""

    def __init__(self, table: str, rows: pa.Table, groups: Groups, num_ranks: int) -> None:
        self._rows, self._groups, self._num_ranks = rows, groups, num_ranks
        self._known = {row.key: row for row in quantities_of(table)}
        self._over_ranks = Pool(table, "ranks", groups, self._read)
        self._over_shards = Pool(table, "shards", groups, self._read)
        self._divides = table in _OF_OWN_LOSS
        self.is_shard: NDArray[np.bool_] | None = None

    def _read(self, name: str) -> Column:
        column = self._rows.column(name)
        return as_floats(column), is_present(column)

    def column(self, field: pa.Field) -> pa.Array:
        """Return a column of the wholes."""
        row = self._known.get(field.name)
        if row is None and not pa.types.is_floating(field.type):
            return self._first(field.name)
        if row is None:  # logged by the training
            values, present = self._read(field.name)
            known = np.logical_or.reduceat(present, self._groups.firsts)
            return as_column(self._groups.mean(values, present), known, field.type)
        values, known = self._over_ranks.column(row.key)
        if self.is_shard is not None:
            values = np.where(self.is_shard, self._over_shards.column(row.key)[0], values)
        if row.scales_with_loss and self._divides:
            values = values / self._num_ranks
        if pa.types.is_boolean(field.type):
            return as_array(values > 0, null=~known)
        return as_column(values, known, field.type)

    def _first(self, name: str) -> pa.Array:
        """The lowest rank's value that is not null, for keys, texts and what else is counted."""
        column = self._rows.column(name)
        rows = self._groups.first(np.arange(len(column)), is_present(column))
        return column.take(as_array(rows)).combine_chunks()


class RunRows:
    """The tables of a run that have rows for steps; ``manifest`` returns what is in run.json."""

    def __init__(
        self,
        run: Path,
        manifest: Callable[[], Mapping[str, Any]],
        static: Mapping[str, StaticTable],
        warn: Callable[[str], None],
    ) -> None:
        self.tables = {
            name: StepTable(run, name, warn, partial(self._promised, name)) for name in STEP_TABLES
        }
        self._name, self._manifest, self._static = run.name, manifest, static

    def _promised(self, table: str) -> dict[str, int]:
        """How many flushes of a table each writer says to have written."""
        flushes = self._manifest().get("flushes")
        found = flushes.get(table) if isinstance(flushes, dict) else None
        counts = found.items() if isinstance(found, dict) else ()
        return {w: n for w, n in counts if type(n) is int and _WRITER.fullmatch(w)}

    def read(
        self,
        table: str,
        columns: Columns = None,
        ids: Ids = None,
        steps: StepsLike = None,
        ranks: Ranks = "pooled",
    ) -> pa.Table:
        """Return rows as `Run.read` does."""
        if ranks not in ("pooled", "all"):
            raise ValueError(f"ranks is {ranks!r}; expected 'pooled' or 'all'")
        source = self.tables[table]
        names = self.columns(source, columns)
        chosen = selected_ids(ids, self._names(table), source.key) if source.key else None
        wanted = selected_steps(steps, source.latest)
        keys = ["step", "rank", *([source.key] if source.key else [])]
        if ranks == "all":
            return source.read([*keys, *names], wanted, chosen, all_attempts=table == "steps")
        if len(source.ranks) < 2:
            keys.remove("rank")
            return source.read([*keys, *names], wanted, chosen)
        rows = source.read([*keys, *needed_columns(table, names)], wanted, chosen)
        sharded = self._sharded() if table == "parameter_stats" else []
        whole = pooled(table, rows, source.key, self._num_ranks(source), sharded)
        keys.remove("rank")
        return whole.select([*keys, *names])

    def columns(self, source: StepTable, asked: Columns) -> list[str]:
        """Return the columns that were asked for, without keys; refuse others."""
        keys = ("step", "rank", source.key)
        known = [name for name in source.schema().names if name not in keys]
        if asked is None:
            return known
        names = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
        for name in names:
            if name not in known and name not in keys:
                raise NotRecordedError(
                    f"column {name!r} is not in {source.name} of run '{self._name}'; "
                    f"{nearest(name, known)}"
                )
        return [name for name in names if name not in keys]

    def table_of(self, column: str, table: str | None) -> str:
        """Return the table of a statistic; refuse one that no table has."""
        for name in [table] if table else STAT_COLUMNS:
            if column in STAT_COLUMNS[name]:
                return name
        known = [name for columns in STAT_COLUMNS.values() for name in columns]
        raise NotRecordedError(
            f"column {column!r} is not a statistic of a layer, parameter or join; "
            f"{nearest(column, known)}"
        )

    def id_of(self, table: str, asked: int | str) -> int:
        """Return the id of a layer, parameter or join; refuse one that is not in the run."""
        (id_,) = selected_ids([asked], self._names(table), str(self.tables[table].key)) or [0]
        return id_

    def _names(self, table: str) -> dict[int, str]:
        return self._static[_NAMES_OF[table]].names() if table in _NAMES_OF else {}

    def _num_ranks(self, source: StepTable) -> int:
        """Data-parallel ranks: as the manifest says, else as many as wrote rows."""
        manifest = self._manifest()
        stated = manifest.get("data_parallel_ranks") or manifest.get("world_size")
        return stated if isinstance(stated, int) and stated > 0 else len(source.ranks)

    def _sharded(self) -> list[int]:
        rows = self._static["parameters"].read()
        placements = rows.column("placement").to_pylist()
        ids = rows.column("parameter").to_pylist()
        return [i for i, placement in zip(ids, placements, strict=True) if placement == "sharded"]

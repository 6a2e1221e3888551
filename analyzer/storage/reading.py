"""Rows of a run for columns, ids, steps and ranks as a user names them."""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.errors import NotRecordedError
from analyzer.pooling import Groups, needed_columns
from analyzer.storage.arrays import as_array, as_numpy, conform, unified
from analyzer.storage.limits import LIMITS, Total
from analyzer.storage.parts import READ_FAILURES, listing, reason_of
from analyzer.storage.rank_pooling import RankFacts, pooled
from analyzer.storage.schema import PROBES, SHARE, STAT_COLUMNS, STEP_TABLES
from analyzer.storage.sealed import open_file
from analyzer.storage.selection import (
    Steps,
    StepsLike,
    nearest,
    one_of,
    selected_ids,
    selected_steps,
)
from analyzer.storage.static_table import StaticTable
from analyzer.storage.tables import StepTable

__all__ = [
    "Columns",
    "Ids",
    "Ranks",
    "RunRows",
    "noted",
    "noted_numbers",
    "probe_files",
    "probe_names",
    "probe_notes",
    "probe_rows",
]

Columns = str | Sequence[str] | None
Ids = int | str | Iterable[int | str] | None
Ranks = Literal["pooled", "all"]
_NAMES_OF = {"layer_stats": "layers", "parameter_stats": "parameters", "splits": "joins"}
_PROBE_FILE = re.compile(r"step-(\d{12,18})\.parquet")
_PROBE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_WRITER = re.compile(r"\d{1,5}\.\d{1,5}")
_FORMAT_KEYS = (b"schema_version", b"ARROW:schema", b"place")


def probe_names(folder: Path) -> list[str]:
    """Return the names of the probes of which a folder has tables."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = list(itertools.islice(entries, LIMITS.files + 1))
    LIMITS.check("files", len(found), "folder 'probes' has folders:")
    named = [entry for entry in found if _PROBE_NAME.fullmatch(entry.name)]
    return sorted(e.name for e in named if not e.is_symlink() and listing(Path(e.path)))


def probe_files(folder: Path) -> dict[int, Path]:
    """Return the files of one probe by step."""
    found = ((_PROBE_FILE.fullmatch(name), name) for name in sorted(listing(folder)))
    return {int(match[1]): folder / name for match, name in found if match}


def probe_rows(folder: Path, warn: Callable[[str], None]) -> pa.Table:
    """Return what a probe measured at all steps, with a ``step`` column in front."""
    tables, total = [], Total(f"the rows of probe {folder.name}")
    for step, path in probe_files(folder).items():
        try:
            with open_file(path) as file:
                total.check(file.memory_of(range(file.num_row_groups)))
                rows = _of_probe(folder.name, file.read().replace_schema_metadata(None))
        except READ_FAILURES as error:
            name = f"probes/{folder.name}/{path.name}"
            warn(f"{name} cannot be read and is left out ({reason_of(error)})")
            continue
        if "step" in rows.column_names:
            rows = rows.drop_columns(["step"])
        steps = as_array(np.full(rows.num_rows, step, dtype=np.int64))
        tables.append(total.kept(rows.add_column(0, "step", steps)))
    if not tables:
        return pa.table({"step": pa.nulls(0, pa.int64())})
    schema = unified(table.schema for table in tables)
    return pa.concat_tables([conform(table, schema) for table in tables])


def _of_probe(name: str, rows: pa.Table) -> pa.Table:
    """The rows with the columns and types that a probe has; others are kept as they are."""
    known = PROBES.get(name, pa.schema([]))
    for id_ in ("layer", "parameter", "join"):
        if id_ in rows.column_names and not pa.types.is_integer(rows.schema.field(id_).type):
            raise ValueError(f"its column {id_!r} holds no numbers of rows")
    if known.names and not set(known.names) & set(rows.column_names):
        raise ValueError(f"it has none of the columns of {name}")
    others = [field for field in rows.schema if field.name not in known.names]
    return conform(rows, pa.schema([*(field.with_nullable(True) for field in known), *others]))


def probe_notes(folder: Path) -> dict[int, dict[str, str]]:
    """Return what a probe noted beside its tables, by step."""
    notes, total, length = {}, Total(f"the notes of probe {folder.name}"), 0
    for step, path in probe_files(folder).items():
        try:
            with open_file(path) as file:
                raw = file.schema_arrow.metadata or {}
        except READ_FAILURES:
            continue  # `probe_rows` warns of it
        ours = {key: value for key, value in raw.items() if key not in _FORMAT_KEYS}
        length += sum(map(len, raw.values()))
        total.check(length)
        notes[step] = {
            key.decode(errors="replace"): value.decode(errors="replace")
            for key, value in ours.items()
        }
    return notes


def noted(notes: Mapping[str, str], name: str) -> Any:
    """Return what a probe noted as JSON under a name; None for nothing, or anything else."""
    try:
        return json.loads(notes[name])
    except (KeyError, ValueError, RecursionError):
        return None


def noted_numbers(value: Any) -> NDArray[np.float64]:
    """Return the numbers in what a probe noted, in an array of their shape; NaN for nothing else.

    A folder of anybody may hold text, objects, lists of several lengths or numbers of any size.
    """
    try:
        return np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        return np.array(np.nan)


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
            name: StepTable(run, name, warn, partial(self._promised, name), *ids)
            for name in STEP_TABLES
            for ids in [[static[_NAMES_OF[name]].ids] if name in _NAMES_OF else []]
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
        source = self.table(table)
        names = self.columns(source, columns)
        chosen = selected_ids(ids, self._names(table), source.key) if source.key else None
        wanted = selected_steps(steps, source.latest)
        keys = ["step", "rank", *([source.key] if source.key else [])]
        if ranks == "all":
            return source.read([*keys, *names], wanted, chosen, all_attempts=table == "steps")
        members = self._members()
        if len(source.ranks) < 2 and all(len(ranks) < 2 for ranks in members.values()):
            keys.remove("rank")
            return source.read([*keys, *names], wanted, chosen)
        needed = needed_columns(table, names)
        if "gradient_norm" in needed and SHARE not in needed and SHARE in source.schema().names:
            needed.append(SHARE)
        rows = source.read([*keys, *needed], wanted, chosen)
        whole = pooled(table, rows, source.key, self._facts(table, wanted, members))
        keys.remove("rank")
        return whole.select([*keys, *(name for name in names if name != SHARE or columns)])

    def table(self, name: str) -> StepTable:
        """Return a table by its name; refuse another one."""
        return one_of(self.tables, name, "a table of steps")

    def columns(self, source: StepTable, asked: Columns) -> list[str]:
        """Return the columns that were asked for, without keys; refuse others."""
        keys = ("step", "rank", source.key)
        known = [name for name in source.schema().names if name not in keys]
        if asked is None:
            return known
        several = [asked] if isinstance(asked, str) else asked
        if not isinstance(several, Iterable) or isinstance(several, bytes):
            raise TypeError(f"columns is {asked!r}; expected the name of a column, or several")
        names = list(dict.fromkeys(several))
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
            if column in one_of(STAT_COLUMNS, name, "a table of statistics"):
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

    def _members(self) -> dict[int, set[int]]:
        """The ranks that train, by attempt; none in a run without files of ranks."""
        found: dict[int, set[int]] = {}
        ranks = self._manifest().get("ranks") or ()
        parts = self.tables["steps"].parts if ranks else ()
        has_rows = {(part.attempt, part.rank) for part in parts}
        for rank in ranks:
            attempt, number = rank["attempt"], rank["rank"]
            # One that ended well without a step is none of those that train.
            if (attempt, number) in has_rows or rank.get("status") != "finished":
                found.setdefault(attempt, set()).add(number)
        return found

    def _facts(self, table: str, steps: Steps, members: Mapping[int, set[int]]) -> RankFacts:
        """What the manifest and the ranks' own files say, and which rows there are."""
        manifest = self._manifest()
        num_ranks = len(members.get(max(members, default=0), ()))
        num_ranks = num_ranks or len(self.tables[table].ranks)
        stated = manifest.get("data_parallel_ranks")
        data_parallel = stated if isinstance(stated, int) and stated > 0 else num_ranks
        ids = {name: id_ for id_, name in self._names(table).items()}
        parts, elements = self._parts(table), dict[tuple[int, int], int]()
        for rank in manifest.get("ranks") or ():
            here = rank.get("elements") if table == "parameter_stats" else None
            for name, count in here.items() if isinstance(here, dict) else ():
                elements[rank["rank"], ids.get(name, -1)] = count
        return RankFacts(
            num_ranks, data_parallel, parts, elements, self._incomplete(members, steps)
        )

    def _parts(self, table: str) -> dict[int, int]:
        """In how many parts the ranks hold what the ids of a table stand for."""
        if table not in ("layer_stats", "parameter_stats"):
            return {}
        rows = self._static[_NAMES_OF[table]].read()
        stated = self._manifest().get("parts")
        stated = stated.get(_NAMES_OF[table]) if isinstance(stated, dict) else None
        stated = stated if isinstance(stated, dict) else {}
        if table == "layer_stats":
            found = zip(rows.column(0).to_pylist(), rows.column("module").to_pylist(), strict=True)
            return {id_: stated[name] for id_, name in found if name in stated}
        columns = (rows.column(name).to_pylist() for name in ("parameter", "name", "placement"))
        most = len(self.tables[table].ranks)
        return {
            id_: stated.get(name, most)
            for id_, name, placement in zip(*columns, strict=True)
            if placement == "sharded"
        }

    def _incomplete(self, members: Mapping[int, set[int]], steps: Steps) -> NDArray[np.int64]:
        """The steps of which a rank has no row: not yet, or it died before it was written."""
        if not any(members.values()):
            return np.zeros(0, np.int64)
        rows = self.tables["steps"].read(["step", "attempt"], steps)
        groups = Groups.of(as_numpy(rows.column("step")))
        attempts = as_numpy(rows.column("attempt"))[groups.firsts]
        wanted = np.array([len(members.get(int(attempt), ())) for attempt in attempts])
        return as_numpy(rows.column("step"))[groups.firsts][groups.sizes < wanted]

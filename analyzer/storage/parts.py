"""Part files of a table: their names, how they are written, merged and found again.

A part's name says which steps it may hold: ``<first>-<last>.r<rank>.a<attempt>.parquet``. A merged
part has a wider range and supersedes those inside it, so that a reader sees each row exactly once
at every moment of a merge.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["ROW_GROUP", "Part", "merge", "parts_in", "replace_file", "write_part", "write_table"]

ROW_GROUP = 120_000
# A part of this many rows is never merged again, so that merging stays cheap in a long run.
_FULL_ROWS = 10 * ROW_GROUP
_NAME = re.compile(r"(\d{12})-(\d{12})\.r(\d+)\.a(\d+)\.parquet")


@dataclass(frozen=True, order=True)
class Part:
    """One file of a table.

    Args:
        first: Smallest step that it may hold.
        last: Largest step that it may hold.
        rank: Process that wrote it.
        attempt: Restart in which it was written.
        path: The file.
    """

    first: int
    last: int
    rank: int
    attempt: int
    path: Path

    def supersedes(self, other: "Part") -> bool:
        """Whether every row of the other part is in this one."""
        return (
            (self.rank, self.attempt) == (other.rank, other.attempt)
            and self.first <= other.first
            and other.last <= self.last
            and (self.first, self.last) != (other.first, other.last)
        )


def part_path(folder: Path, first: int, last: int, rank: int, attempt: int) -> Path:
    """Return the path of a part."""
    return folder / f"{first:012d}-{last:012d}.r{rank}.a{attempt}.parquet"


def parts_in(folder: Path) -> list[Part]:
    """Return the parts of a table that hold its rows, by first step; foreign files are left out."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_symlink())
    except OSError:
        return []
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            first, last, rank, attempt = map(int, match.groups())
            found.append(Part(first, last, rank, attempt, folder / name))
    found.sort(key=lambda part: (part.first, -part.last))
    kept: dict[tuple[int, int], Part] = {}
    result = []
    for part in found:  # the widest of those that begin at one step comes first
        widest = kept.get((part.rank, part.attempt))
        if widest is None or not widest.supersedes(part):
            kept[part.rank, part.attempt] = part
            result.append(part)
    return result


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a name that readers ignore, then give it its name in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        write(hidden)
        os.replace(hidden, path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def _options(schema: pa.Schema) -> dict[str, object]:
    """Encodings that were measured best: a dictionary for ids only, split bytes for floats."""
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    ids = [name for name in ("layer", "parameter", "join", "id") if name in schema.names]
    return {
        "compression": "zstd",
        "use_dictionary": ids or False,
        "use_byte_stream_split": floats or False,
        "write_statistics": True,
    }


def write_table(path: Path, table: pa.Table) -> None:
    """Write a whole table atomically."""
    replace_file(
        path,
        lambda hidden: pq.write_table(
            table, hidden, row_group_size=ROW_GROUP, **_options(table.schema)
        ),
    )


def write_part(
    folder: Path, table: pa.Table, first: int, last: int, rank: int, attempt: int
) -> Path:
    """Write the rows of some steps as a new part; return its path."""
    path = part_path(folder, first, last, rank, attempt)
    write_table(path, table)
    return path


def _runs_of_small_parts(parts: Iterable[Part]) -> list[list[Part]]:
    """Neighbors that are worth merging."""
    runs: list[list[Part]] = [[]]
    for part in sorted(parts):
        if pq.read_metadata(part.path).num_rows < _FULL_ROWS:
            runs[-1].append(part)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def merge(folder: Path, rank: int, attempt: int) -> None:
    """Merge neighboring small parts of one rank and attempt; safe to be killed at any moment."""
    own = [part for part in parts_in(folder) if (part.rank, part.attempt) == (rank, attempt)]
    for run in _runs_of_small_parts(own):
        target = part_path(folder, run[0].first, run[-1].last, rank, attempt)
        schema = pa.unify_schemas(
            [pq.read_schema(part.path) for part in run], promote_options="permissive"
        )
        replace_file(target, lambda hidden, run=run, schema=schema: _copy(run, schema, hidden))  # type: ignore[misc]
        for part in run:
            if part.path != target:
                part.path.unlink(missing_ok=True)


def _copy(parts: Sequence[Part], schema: pa.Schema, target: Path) -> None:
    """Copy rows in row groups of the right size, in bounded memory."""
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(target, schema, **_options(schema)) as writer:
        for part in parts:
            with pq.ParquetFile(part.path) as file:
                for group in range(file.num_row_groups):
                    waiting.append(conform(file.read_row_group(group), schema))
                    if sum(table.num_rows for table in waiting) >= ROW_GROUP:
                        writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP)
                        waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with the columns of a schema; those that it lacks are null."""
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)

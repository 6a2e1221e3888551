"""Merges many small part files into few large ones, a piece at a time, kill-safe throughout."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.storage.columns import conform, unified
from analyzer.storage.parts import ROW_GROUP, Part, encoding, write_table

__all__ = ["FAN_IN", "PartSeries"]

FAN_IN = 50
# Parts of this many rows are merged no further, so that the cost of the end does not grow
# with the length of the run.
_FULL_ROWS = 8_000_000
# Merged parts stay this long: a reader that has just listed them has time to read them.
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class _Own:
    """A part that this process wrote, and how often its rows were merged."""

    part: Part
    rows: int
    level: int
    schema: pa.Schema


class PartSeries:
    """The parts of one table that one process writes in one attempt.

    Args:
        folder: Folder of the table.
        rank: Number of this process.
        attempt: Number of this restart.
    """

    def __init__(self, folder: Path, rank: int, attempt: int) -> None:
        self.folder = folder
        self._rank, self._attempt = rank, attempt
        self._parts: list[_Own] = []
        self._num_flushes = 0
        self._merge: Iterator[None] | None = None
        self._merged_away: list[tuple[float, Part]] = []

    def append(self, rows: pa.Table, first: int, last: int) -> None:
        """Write the rows of one flush, which hold steps ``first`` to ``last``.

        Raises:
            OSError: If the disk refuses.
        """
        flush = self._num_flushes
        part = Part(self._attempt, self._rank, flush, flush, first, last)
        write_table(self.folder / part.name, rows)
        self._num_flushes += 1
        self._parts.append(_Own(part, rows.num_rows, 0, rows.schema))

    def advance(self) -> None:
        """Do a piece of the merge that is under way, or begin one where it is due."""
        self._remove_older_than(_GRACE_SECONDS)
        if self._merge is None:
            tail = self._parts[-FAN_IN:]
            same_level = len({own.level for own in tail}) == 1
            if len(tail) < FAN_IN or not same_level or sum(o.rows for o in tail) > _FULL_ROWS:
                return
            self._merge = self._merged(tail)
        if next(self._merge, StopIteration) is StopIteration:
            self._merge = None

    def finish(self) -> None:
        """Merge everything that is not full yet.

        Raises:
            OSError: If the disk refuses; the parts are then as they were.
        """
        while self._merge is not None:
            self.advance()
        for group in _neighbors(self._parts):
            for _ in self._merged(group):
                pass
        self._remove_older_than(0.0)

    def _remove_older_than(self, seconds: float) -> None:
        """Remove parts that were merged at least so long ago."""
        while self._merged_away and time.monotonic() - self._merged_away[0][0] >= seconds:
            _, part = self._merged_away.pop(0)
            (self.folder / part.name).unlink(missing_ok=True)

    def _merged(self, group: Sequence[_Own]) -> Iterator[None]:
        """Merge neighboring parts, a part at a time."""
        part = group[0].part.joined(group[-1].part)
        schema = unified(own.schema for own in group)
        yield from _copied(
            [self.folder / own.part.name for own in group], schema, self.folder / part.name
        )
        self._merged_away += [(time.monotonic(), own.part) for own in group]
        place = self._parts.index(group[0])
        level = max(own.level for own in group) + 1
        rows = sum(own.rows for own in group)
        self._parts[place : place + len(group)] = [_Own(part, rows, level, schema)]


def _neighbors(parts: Sequence[_Own]) -> list[list[_Own]]:
    """Runs of parts that are worth merging, each of at most a full part's rows."""
    runs: list[list[_Own]] = [[]]
    for own in parts:
        if runs[-1] and sum(o.rows for o in runs[-1]) + own.rows > _FULL_ROWS:
            runs.append([])
        runs[-1].append(own)
    return [run for run in runs if len(run) > 1]


def _copied(sources: Sequence[Path], schema: pa.Schema, target: Path) -> Iterator[None]:
    """Copy rows into one file with row groups of the right size, in bounded memory."""
    hidden = target.parent / f".{target.name}.tmp"
    try:
        with pq.ParquetWriter(hidden, schema, **encoding(schema)) as writer:
            waiting: list[pa.Table] = []
            for source in sources:
                with pq.ParquetFile(source) as file:
                    for group in range(file.num_row_groups):
                        waiting.append(conform(file.read_row_group(group), schema))
                        waiting = _written(writer, waiting, ROW_GROUP)
                yield
            _written(writer, waiting, 1)
        os.replace(hidden, target)
    finally:
        hidden.unlink(missing_ok=True)


def _written(writer: pq.ParquetWriter, waiting: list[pa.Table], least: int) -> list[pa.Table]:
    """Write row groups while there are at least so many rows; return what still waits."""
    if sum(table.num_rows for table in waiting) < least:
        return waiting
    whole = pa.concat_tables(waiting)
    # One row group is never much larger than the others: what is over goes into the next.
    while whole.num_rows >= least:
        writer.write_table(whole.slice(0, ROW_GROUP), row_group_size=ROW_GROUP)
        whole = whole.slice(ROW_GROUP)
    return [whole] if whole.num_rows else []

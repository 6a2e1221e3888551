"""Part files: what their names say, how they appear, and which of them hold a table's rows.

A part is named ``<first step>-<last step>.r<rank>.a<attempt>.p<first flush>-<last flush>.parquet``.
Merging parts gives one whose flushes contain theirs, and a part whose flushes lie inside another's
is not read: so every row is seen exactly once at each moment of a merge, and after a kill.
"""

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.storage.arrays import conform, unified

__all__ = [
    "FAN_IN",
    "READ_FAILURES",
    "ROW_GROUP",
    "Part",
    "PartSeries",
    "current_parts",
    "encoding",
    "listing",
    "reason_of",
    "replace_file",
    "write_table",
]

FAN_IN = 50
# Parts of this many rows are merged no further, so that the cost of the end does not grow
# with the length of the run.
_FULL_ROWS = 8_000_000
# Merged parts stay this long: a reader that has just listed them has time to read them.
_GRACE_SECONDS = 5.0
ROW_GROUP = 120_000
_NAME = re.compile(
    r"(\d{12,18})-(\d{12,18})\.r(\d{1,5})\.a(\d{1,5})\.p(\d{1,12})-(\d{1,12})\.parquet"
)
_MOST_LISTINGS = 20
_serial = itertools.count()


@dataclass(frozen=True, order=True)
class Part:
    """One part file of a table, as its name describes it.

    It holds the rows of steps ``first`` to ``last`` from the flushes ``first_flush`` to
    ``last_flush`` of one rank in one attempt.
    """

    attempt: int
    rank: int
    first_flush: int
    last_flush: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """The file name."""
        return (
            f"{self.first:012d}-{self.last:012d}.r{self.rank}.a{self.attempt}"
            f".p{self.first_flush}-{self.last_flush}.parquet"
        )

    @classmethod
    def from_name(cls, name: str) -> "Part | None":
        """Return what a file name says; None for any other file."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        first, last, rank, attempt, first_flush, last_flush = map(int, match.groups())
        return cls(attempt, rank, first_flush, last_flush, first, last)

    def joined(self, last: "Part") -> "Part":
        """Return the part that holds this one, the last one and those between."""
        first, last_step = min(self.first, last.first), max(self.last, last.last)
        flushes = (self.first_flush, last.last_flush)
        return Part(self.attempt, self.rank, *flushes, first, last_step)


def listing(folder: Path) -> frozenset[str]:
    """Return the names of the plain files of a folder as they stood at one moment.

    A merge puts the new file first and takes the old ones away after it. A scan that runs
    meanwhile may miss both; the next scan then differs, so two equal ones in a row are whole.
    """
    names = _scan(folder)
    for _ in range(_MOST_LISTINGS):
        before, names = names, _scan(folder)
        if names == before:
            break
    return names


def _scan(folder: Path) -> frozenset[str]:
    """Names of plain files; links are never followed, since they may lead out of the run."""
    if folder.is_symlink():
        return frozenset()
    try:
        with os.scandir(folder) as entries:
            return frozenset(e.name for e in entries if e.is_file(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def current_parts(folder: Path) -> list[Part]:
    """Return the parts that hold a table's rows, by attempt, rank and flush."""
    found = filter(None, map(Part.from_name, listing(folder)))
    by_writer = sorted(found, key=lambda p: (p.attempt, p.rank, p.first_flush, -p.last_flush))
    kept: list[Part] = []
    for part in by_writer:
        last = kept[-1] if kept else None
        same_writer = last and (last.attempt, last.rank) == (part.attempt, part.rank)
        if last is None or not same_writer or part.last_flush > last.last_flush:
            kept.append(part)
    return kept


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a name that readers ignore, then give it its name in one move.

    Nothing is left behind when the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.parent / f".{os.getpid()}-{next(_serial)}.tmp"
    try:
        write(hidden)
        os.replace(hidden, path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def encoding(
    schema: pa.Schema, ids: Sequence[str] = ("layer", "parameter", "join")
) -> dict[str, object]:
    """Return the options that measured best: a dictionary for ids alone, floats split by byte.

    Only ``step`` and ``start`` get statistics: they are all that a reader skips row groups by.
    """
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [name for name in ids if name in schema.names] or False,
        "use_byte_stream_split": floats or False,
        "write_statistics": [name for name in ("step", "start") if name in schema.names] or False,
    }


READ_FAILURES = (OSError, pa.ArrowException, ValueError, KeyError)
"""What reading a damaged or foreign file raises."""


def reason_of(error: Exception) -> str:
    """Return why a file cannot be read, in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def write_table(path: Path, table: pa.Table) -> None:
    """Write a whole table as one file, atomically."""
    options = encoding(table.schema)
    replace_file(
        path, lambda hidden: pq.write_table(table, hidden, row_group_size=ROW_GROUP, **options)
    )


@dataclass(frozen=True)
class _Own:
    """A part that this process wrote, and how often its rows were merged."""

    part: Part
    rows: int
    level: int
    schema: pa.Schema


class PartSeries:
    """The parts of one table that one process writes in one attempt."""

    def __init__(self, folder: Path, rank: int, attempt: int) -> None:
        self.folder = folder
        self._rank, self._attempt = rank, attempt
        self._parts: list[_Own] = []
        self._num_flushes = 0
        self._merge: Iterator[None] | None = None
        self._merged_away: list[tuple[float, Part]] = []

    def append(self, rows: pa.Table, first: int, last: int) -> None:
        """Write the rows of one flush, which hold steps ``first`` to ``last``."""
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
        """Merge everything that is not full yet; parts stay as they were if the disk refuses."""
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
    """Write row groups while at least ``least`` rows wait; return what still waits."""
    if sum(table.num_rows for table in waiting) < least:
        return waiting
    whole = pa.concat_tables(waiting)
    # One row group is never much larger than the others: what is over goes into the next.
    while whole.num_rows >= least:
        writer.write_table(whole.slice(0, ROW_GROUP), row_group_size=ROW_GROUP)
        whole = whole.slice(ROW_GROUP)
    return [whole] if whole.num_rows else []

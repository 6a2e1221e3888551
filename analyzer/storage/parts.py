"""Part files: what their names say, how they appear, and which of them hold a table's rows.

A part is named ``<first step>-<last step>.r<rank>.a<attempt>.p<first flush>-<last flush>.parquet``.
Merging parts gives one whose flushes contain theirs, and a part whose flushes lie inside another's
is not read: so every row is seen exactly once at each moment of a merge, and after a kill.
A part that is damaged is never merged and never removed.
"""

import errno
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.storage.arrays import conform, unified
from analyzer.storage.limits import LIMITS
from analyzer.storage.sealed import encoding, open_file, place_of, placed, seal
from analyzer.texts import shown_name

__all__ = [
    "FAN_IN",
    "READ_FAILURES",
    "ROW_GROUP",
    "Part",
    "PartSeries",
    "current_parts",
    "listing",
    "reason_of",
    "replace_file",
    "visible",
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
        found = cls(attempt, rank, first_flush, last_flush, first, last)
        return found if found.name == name else None  # others would be looked for in vain

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
            some = list(itertools.islice(entries, LIMITS.files + 1))
            LIMITS.check("files", len(some), f"folder '{shown_name(folder)}' has files:")
            return frozenset(e.name for e in some if e.is_file(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def current_parts(folder: Path) -> list[Part]:
    """Return the parts that hold a table's rows, by attempt, rank and flush."""
    return visible(filter(None, map(Part.from_name, listing(folder))))


def visible(parts: Iterable[Part]) -> list[Part]:
    """Return the parts that do not lie inside another, by attempt, rank and flush."""
    by_writer = sorted(parts, key=lambda p: (p.attempt, p.rank, p.first_flush, -p.last_flush))
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
        hidden.unlink(missing_ok=True)  # a link that a folder brought would be written through
        write(hidden)
        os.replace(hidden, path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


READ_FAILURES = (OSError, pa.ArrowException, ValueError, KeyError)
"""What reading a damaged or foreign file raises."""


def reason_of(error: Exception) -> str:
    """Return why a file cannot be read, in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def write_table(path: Path, table: pa.Table, place: str | None = None) -> None:
    """Write a whole table as one sealed file, atomically; ``place`` is where it lies in the run."""
    schema = placed(table.schema, place or path.name)
    whole, options = table.replace_schema_metadata(schema.metadata), encoding(schema)

    def write(hidden: Path) -> None:
        pq.write_table(whole, hidden, row_group_size=ROW_GROUP, **options)
        seal(hidden)

    replace_file(path, write)


@dataclass(frozen=True)
class _Own:
    """A part that this process wrote, and how often its rows were merged; -1 is left as it is."""

    part: Part
    rows: int
    level: int
    schema: pa.Schema


@dataclass(frozen=True)
class _Merged:
    """A part into which others were merged, and when; they lie beside it for a while."""

    moment: float
    whole: _Own
    sources: Sequence[_Own]

    @property
    def left(self) -> list[_Own]:
        """The others, which stay where they are since the one is damaged."""
        return [replace(own, level=-1) for own in self.sources]


class _DamagedError(Exception):
    def __init__(self, own: _Own, reason: str) -> None:
        super().__init__(reason)
        self.own, self.reason = own, reason


class PartSeries:
    """The parts of one table that one process writes in one attempt.

    Args:
        folder: Folder of the table.
        rank: Number of the process.
        attempt: Number of its restart.

    Attributes:
        num_flushes: Parts that were written, before any merge.
        damaged: Why a part could not be merged, by its place in the run.
    """

    def __init__(self, folder: Path, rank: int, attempt: int) -> None:
        self.folder = folder
        self.num_flushes = 0
        self.damaged: dict[str, str] = {}
        self._rank, self._attempt = rank, attempt
        self._parts: list[_Own] = []
        self._merge: Iterator[None] | None = None
        self._next_merge = 0.0
        self._merged_away: list[_Merged] = []

    def append(self, rows: pa.Table, first: int, last: int) -> None:
        """Write the rows of one flush, which hold steps ``first`` to ``last``."""
        flush = self.num_flushes
        part = Part(self._attempt, self._rank, flush, flush, first, last)
        write_table(self.folder / part.name, rows, self._place(part))
        self.num_flushes += 1
        self._parts.append(_Own(part, rows.num_rows, 0, rows.schema))

    def _place(self, part: Part) -> str:
        return f"{self.folder.name}/{part.name}"

    def advance(self) -> None:
        """Do a piece of the merge that is under way, or begin one where it is due.

        A disk that refuses costs nothing: the parts stay as they are, and are merged later.
        """
        try:
            self._remove_older_than(_GRACE_SECONDS)
            if self._merge is None:
                self._merge = self._due()
            if self._merge is not None and next(self._merge, StopIteration) is StopIteration:
                self._merge = None
        except Exception as error:
            self._merge, self._next_merge = None, monotonic() + _GRACE_SECONDS
            if not isinstance(error, OSError):
                raise

    def _due(self) -> Iterator[None] | None:
        tail = self._parts[-FAN_IN:]
        levels = {own.level for own in tail}
        is_even = len(tail) == FAN_IN and len(levels) == 1 and levels != {-1}
        if not is_even or sum(own.rows for own in tail) > _FULL_ROWS:
            return None
        return self._merged(tail) if monotonic() >= self._next_merge else None

    def finish(self, after_each: Callable[[], object] = lambda: None) -> None:
        """Merge everything that is not full yet; ``after_each`` is called after each part.

        Raises:
            OSError: If the disk refuses; every row then lies in a part all the same.
        """
        merge, self._merge = self._merge, None
        for _ in merge or ():
            after_each()
        for group in _neighbors(self._parts):
            for _ in self._merged(group):
                after_each()
        self._remove_older_than(0.0)

    def _remove_older_than(self, seconds: float) -> None:
        """Remove parts that were merged at least so long ago into one that is still whole."""
        while self._merged_away and monotonic() - self._merged_away[0].moment >= seconds:
            merged = self._merged_away.pop(0)
            reason = self._problem(merged.whole)
            if reason is None:
                for own in merged.sources:
                    self._remove(own)
                continue
            self.damaged[self._place(merged.whole.part)] = reason
            self._parts = [
                one
                for own in self._parts
                for one in (merged.left if own.part == merged.whole.part else [own])
            ]

    def _remove(self, own: _Own) -> None:
        """Remove a part, unless there is another one under its name by now, or a damaged one."""
        path = self.folder / own.part.name
        hidden = path.with_name(f".{path.name}.tmp")
        try:
            path.rename(hidden)
            is_own = place_of(hidden) == self._place(own.part)
        except FileNotFoundError:
            return
        except READ_FAILURES:
            is_own = False
        if is_own:
            hidden.unlink()
        else:
            hidden.rename(path)

    def _problem(self, own: _Own) -> str | None:
        """Why a part cannot be read; None for a whole one."""
        try:
            open_file(self.folder / own.part.name).close()
        except READ_FAILURES as error:
            return reason_of(error)
        return None

    def _merged(self, group: Sequence[_Own]) -> Iterator[None]:
        """Merge neighboring parts, a part at a time; one that is damaged stays between them."""
        waiting = [list(group)]
        while waiting:
            some = waiting.pop(0)
            if len(some) < 2:
                continue
            try:
                yield from self._merge_whole(some)
            except _DamagedError as damaged:
                bad = damaged.own.part
                self.damaged[self._place(bad)] = damaged.reason
                self._parts = [replace(o, level=-1) if o.part == bad else o for o in self._parts]
                place = some.index(damaged.own)
                waiting[:0] = [some[:place], some[place + 1 :]]

    def _merge_whole(self, group: Sequence[_Own]) -> Iterator[None]:
        part = group[0].part.joined(group[-1].part)
        schema = unified(own.schema for own in group)
        yield from self._copied(group, schema, part)
        level, rows = max(own.level for own in group) + 1, sum(own.rows for own in group)
        whole = _Own(part, rows, level, schema)
        self._merged_away.append(_Merged(monotonic(), whole, group))
        before = [own for own in self._parts if own.part.last_flush < part.first_flush]
        after = [own for own in self._parts if own.part.first_flush > part.last_flush]
        self._parts = [*before, whole, *after]

    def _copied(self, group: Sequence[_Own], schema: pa.Schema, part: Part) -> Iterator[None]:
        """Copy rows into one file with row groups of the right size, in bounded memory."""
        hidden = self.folder / f".{part.name}.tmp"
        schema = placed(schema, self._place(part))
        try:
            with pq.ParquetWriter(hidden, schema, **encoding(schema)) as writer:
                waiting: list[pa.Table] = []
                for own in group:
                    for rows in self._groups(own):
                        waiting.append(conform(rows, schema))
                        waiting = _written(writer, waiting, ROW_GROUP)
                    yield
                _written(writer, waiting, 1)
            seal(hidden)
            os.replace(hidden, self.folder / part.name)
        finally:
            hidden.unlink(missing_ok=True)

    def _groups(self, own: _Own) -> Iterator[pa.Table]:
        """Read a part a row group at a time, every byte of it checked."""
        try:
            with open_file(self.folder / own.part.name) as file:
                if file.metadata.num_rows != own.rows:
                    raise ValueError(f"it has {file.metadata.num_rows} rows, not {own.rows}")
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group)
        except READ_FAILURES as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise  # the disk, not the file; it may be read later
            raise _DamagedError(own, reason_of(error)) from error


def _neighbors(parts: Sequence[_Own]) -> list[list[_Own]]:
    """Runs of parts that are worth merging, each of at most a full part's rows."""
    runs: list[list[_Own]] = [[]]
    for own in parts:
        if own.level < 0 or (runs[-1] and sum(o.rows for o in runs[-1]) + own.rows > _FULL_ROWS):
            runs.append([])
        if own.level >= 0:
            runs[-1].append(own)
    return [run for run in runs if len(run) > 1]


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

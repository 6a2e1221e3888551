"""Part files: what their names say, how they appear, and which of them hold a table's rows.

A part is named ``<first step>-<last step>.r<rank>.a<attempt>.p<first flush>-<last flush>.parquet``.
Merging parts gives one whose flushes contain theirs, and a part whose flushes lie inside another's
is not read: so every row is seen exactly once at each moment of a merge, and after a kill.
"""

import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = [
    "ROW_GROUP",
    "Part",
    "current_parts",
    "encoding",
    "listing",
    "replace_file",
    "write_table",
]

ROW_GROUP = 120_000
_NAME = re.compile(
    r"(\d{12,18})-(\d{12,18})\.r(\d{1,5})\.a(\d{1,5})\.p(\d{1,12})-(\d{1,12})\.parquet"
)
_MOST_LISTINGS = 20
_serial = itertools.count()


@dataclass(frozen=True, order=True)
class Part:
    """One part file of a table, as its name describes it.

    Args:
        attempt: Restart in which it was written.
        rank: Process that wrote it.
        first_flush: First flush of that process whose rows it holds.
        last_flush: Last flush whose rows it holds.
        first: Smallest step in it.
        last: Largest step in it.
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
        """Return what a file name says; None for a file that is no part."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        first, last, rank, attempt, first_flush, last_flush = map(int, match.groups())
        return cls(attempt, rank, first_flush, last_flush, first, last)

    def joined(self, last: "Part") -> "Part":
        """Return the part that holds this one, the last one and those between."""
        return Part(
            self.attempt,
            self.rank,
            self.first_flush,
            last.last_flush,
            min(self.first, last.first),
            max(self.last, last.last),
        )


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

    Raises:
        OSError: If the disk refuses; nothing is left behind then.
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


def write_table(path: Path, table: pa.Table) -> None:
    """Write a whole table as one file, atomically."""
    options = encoding(table.schema)
    replace_file(
        path, lambda hidden: pq.write_table(table, hidden, row_group_size=ROW_GROUP, **options)
    )

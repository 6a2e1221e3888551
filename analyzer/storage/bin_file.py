"""The files of bins: their names, their columns, and one of them as a reader asks it.

Of a file the keys are read once, a number of a column when it is asked for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from cachetools import LRUCache
from numpy.typing import NDArray

from analyzer.storage.arrays import as_array, as_numpy, is_present
from analyzer.storage.bins import Bins, ids_of_each_bin
from analyzer.storage.column_chunks import group_bounds
from analyzer.storage.parts import listing
from analyzer.storage.schema import TABLES, key_column
from analyzer.storage.sealed import open_with_footer

__all__ = ["COUNTS", "BinFile", "Chunk", "bins_from", "chunks_in", "opened", "table_from"]

# A number of a thousand layers is 5 MB; figures of two runs ask for four of each.
_MOST_BYTES = 80 << 20
_ROWS_AT_ONCE = 32_768
# Those of ten thousand layers.
_MOST_ROWS = 20_000_000
# Bins of a column that are kept whatever is asked of them.
_MANY_ROWS = 100_000
NUMBERS = ("min", "mean", "max", "num_finite", "num_nonfinite")
"""What a file holds of each column; its columns are ``<column>_<number>``."""
COUNTS = ("_num_finite", "_num_nonfinite")
"""How the columns of counts end. The file that holds all says between what each lies."""

_NAME = re.compile(r"(\d{12,18})-(\d{12,18})\.w(\d{1,18})\.parquet")


@dataclass(frozen=True, order=True)
class Chunk:
    """One file of bins: of the steps from ``start`` to before ``end``, ``width`` steps a bin."""

    start: int
    end: int
    width: int

    @property
    def name(self) -> str:
        """The file name."""
        return f"{self.start:012d}-{self.end:012d}.w{self.width}.parquet"


def chunks_in(folder: Path) -> list[Chunk]:
    """Return the files of bins, by first step; they do not overlap."""
    found = []
    # A link may lead out of the run: the folder of all bins must be a plain one, too.
    for name in () if folder.parent.is_symlink() else listing(folder):
        match = _NAME.fullmatch(name)
        chunk = Chunk(*map(int, match.groups())) if match else None
        # Others would be looked for under a name that they do not have.
        if chunk is not None and chunk.width > 0 and chunk.name == name:
            found.append(chunk)
    kept: list[Chunk] = []
    for chunk in sorted(found, key=lambda c: (c.start, -c.end, -c.width)):
        if not kept or chunk.end > kept[-1].end:
            kept.append(chunk)
    return kept


def table_from(table: str, bins: Bins) -> pa.Table:
    """Return the columns of a file: start, id, rows, then five for each column of the table."""
    schema, key = TABLES[table], key_column(table)
    arrays: dict[str, Any] = {"start": bins.start}
    if key is not None:
        arrays[key] = bins.ids
    arrays["num_rows"] = bins.num_rows
    for place, name in enumerate(bins.columns):
        single_precision = name in schema.names and schema.field(name).type == pa.float32()
        kinds = [np.float32 if single_precision else np.float64] * 3 + [np.int32] * 2
        sources = (bins.low, bins.mean, bins.high, bins.finite, bins.nonfinite)
        for suffix, source, kind in zip(NUMBERS, sources, kinds, strict=True):
            arrays[f"{name}_{suffix}"] = source[:, place].astype(kind)
    return pa.table({name: as_array(values) for name, values in arrays.items()})


def bins_from(table: pa.Table, key: str | None) -> Bins:
    """Return the bins of the rows of a file, whose ids stand in the column ``key``, if any."""
    ending = f"_{NUMBERS[-1]}"
    columns = [n.removesuffix(ending) for n in table.column_names if n.endswith(ending)]
    start = as_numpy(table.column("start")).astype(np.int64, copy=False)
    ids = np.zeros(len(start), dtype=np.int32)
    if key is not None:
        ids = as_numpy(table.column(key)).astype(np.int32, copy=False)
    shape = (len(start), len(columns))
    low, mean, high = (np.empty(shape) for _ in range(3))
    finite, nonfinite = (np.empty(shape, dtype=np.int64) for _ in range(2))
    for place, name in enumerate(columns):
        for target, suffix in zip((low, mean, high, finite, nonfinite), NUMBERS, strict=True):
            # Null in the rows of a file that was written before the column was first logged.
            column = table.column(f"{name}_{suffix}")
            target[:, place] = as_numpy(column)
            if column.null_count:
                target[~is_present(column), place] = np.nan if target.dtype == np.float64 else 0
    num_rows = as_numpy(table.column("num_rows")).astype(np.int64, copy=False)
    return Bins(tuple(columns), start, ids, num_rows, low, mean, high, finite, nonfinite)


@dataclass(frozen=True, eq=False)
class _GridKeys:
    """The keys of bins all of which hold the same ids, ascending: steps ``[bins]``, ids ``[ids]``.

    Of ``num_rows``, the recorded rows of an id in each bin, it is the most of all ids, ``[bins]``.
    """

    steps: NDArray[np.int64]
    ids: NDArray[np.int32]
    num_rows: NDArray[np.int64]


def _room(most_bytes: int) -> "LRUCache[tuple[object, ...], NDArray[Any]]":
    """Room for the arrays that were asked for last; one of any size has room alone."""
    return LRUCache(most_bytes, getsizeof=lambda array: min(_size(array), most_bytes))


_kept, _kept_lock = _room(_MOST_BYTES), Lock()


def _kept_at(place: tuple[object, ...]) -> NDArray[Any] | None:
    with _kept_lock:
        found: NDArray[Any] | None = _kept.get(place)
        return found


class BinFile:
    """A file of bins, which never changes under its name.

    It stays open, so that it can be read to its end when a writer has replaced it.

    Args:
        inode: Tells it from a later file of that name.
        width: Steps per bin.
        key: Its id column; None for ``steps``.

    Attributes:
        grid: Its keys, where all bins hold the same ids and each of them has rows; else None.
    """

    def __init__(self, path: Path, inode: int, width: int, key: str | None) -> None:
        self._place, self.width = (path, inode), width
        # Reading ahead takes five times as long where the file is in memory anyway.
        self._file, self._footer = open_with_footer(path, pre_buffer=False)
        self._lock = Lock()
        if self._file.metadata.num_rows > _MOST_ROWS:
            raise ValueError(f"it has {self._file.metadata.num_rows:,} bins")
        self._columns = frozenset(self._file.schema_arrow.names)
        start = self._numbers("start", is_count=True).astype(np.int64, copy=False)
        ids = np.zeros(len(start), dtype=np.int32)
        if key is not None:
            ids = self._numbers(key, is_count=True).astype(np.int32, copy=False)
        num_rows = self._numbers("num_rows", is_count=True)
        count = ids_of_each_bin(start, ids) if num_rows.all() and not (start % width).any() else 0
        self.grid = _grid_keys(start, ids, num_rows, count) if count else None
        self._keys = None if count else (start, ids)
        self._num_rows, self._length = _small(num_rows), len(start)

    def part(self, column: str, number: str) -> NDArray[Any]:
        """Return one of `NUMBERS` of a column, ``[rows]``; NaN or 0 where there is none."""
        if f"{column}_{NUMBERS[-1]}" not in self._columns:
            nothing = 0 if number in NUMBERS[3:] else np.nan
            return np.broadcast_to(nothing, (self._length,))
        place = (*self._place, column, number)
        found = _kept_at(place)
        if found is None:
            with self._lock:  # several figures ask at once for the same
                found = _kept_at(place)
                if found is None:
                    found = self._read(f"{column}_{number}", is_count=number in NUMBERS[3:])
                    with _kept_lock:
                        _kept[place] = found
        return found

    def cells(self, column: str, number: str) -> NDArray[Any]:
        """Return one number of a column of a grid, ``[bins, ids]``."""
        assert self.grid is not None
        return self.part(column, number).reshape(-1, len(self.grid.ids))

    def _read(self, name: str, *, is_count: bool) -> NDArray[Any]:
        if is_count and (same := self._same(name)) is not None:
            return np.broadcast_to(np.int64(same), (self._length,))
        values = self._numbers(name, is_count=is_count)
        values = _small(values) if is_count else values
        values.flags.writeable = False
        return values

    def _same(self, name: str) -> int | None:
        """The one number that all rows of a column of counts hold; None where they differ.

        So it is in most files, and the footer says so.
        """
        bounds = group_bounds(self._footer, name, self._file.num_row_groups)
        ends = {end for pair in bounds for end in pair or (0, 1)}
        return ends.pop() if len(ends) == 1 else None

    def _numbers(self, name: str, *, is_count: bool) -> NDArray[Any]:
        """The numbers of a column; NaN or 0 for null.

        Null are the rows of a file that was written before the column was first logged. A few rows
        at a time go into one array: read at once, new memory now and then takes four times as long
        as the reading.
        """
        found = np.zeros(0, np.int64 if is_count else np.float64)
        for at, some in self._batches(name, is_count=is_count):
            if not at:
                has_kind = is_count or some.dtype.kind == "f"
                dtype = some.dtype if has_kind else found.dtype
                found = np.empty(self._file.metadata.num_rows, dtype)
            found[at : at + len(some)] = some
        return found

    def _batches(self, name: str, *, is_count: bool) -> Iterator[tuple[int, NDArray[Any]]]:
        """The numbers of a column a few rows at a time, and where each piece begins."""
        at = 0
        for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=[name], use_threads=False):
            column = batch.column(0)
            some = as_numpy(column)
            if column.null_count:
                some = np.where(is_present(column), some, 0 if is_count else np.nan)
            yield at, some
            at += len(some)

    def _some(self, column: str, number: str, places: NDArray[np.int64]) -> NDArray[Any]:
        """One number of a column of a grid at some places, ascending, ``[bins, places]``.

        What is not asked for is not kept: of a thousand ids new memory takes as long as to read it.
        The mean is: a heatmap beside the series shows it of all ids.
        """
        assert self.grid is not None
        is_there = f"{column}_{NUMBERS[-1]}" in self._columns
        is_kept = _kept_at((*self._place, column, number)) is not None
        is_kept |= number in ("mean", *NUMBERS[3:]) or self._length < _MANY_ROWS
        if is_kept or not is_there:
            return self.cells(column, number)[:, places]
        bins, count = len(self.grid.steps), len(self.grid.ids)
        rows = (np.arange(bins)[:, None] * count + places).ravel()
        found = np.full(len(rows), np.nan)
        with self._lock:  # Arrow's reader of a file is not made for several at once
            for at, some in self._batches(f"{column}_{number}", is_count=False):
                first, last = np.searchsorted(rows, (at, at + len(some)))
                found[first:last] = some[rows[first:last] - at]
        return found.reshape(bins, len(places))

    def bins(self, column: str) -> Bins:
        """Return one column as bins."""
        start, ids = self._keys or self._grid_rows()
        low, mean, high = (
            self.part(column, name).astype(np.float64, copy=False)[:, None] for name in NUMBERS[:3]
        )
        finite, odd = (self.part(column, name).astype(np.int64)[:, None] for name in NUMBERS[3:])
        num_rows = self._num_rows.astype(np.int64)
        return Bins((column,), start, ids, num_rows, low, mean, high, finite, odd)

    def beside(self, column: str, places: slice | NDArray[np.int64]) -> Bins:
        """Return one column of a grid as bins with a column for each of the ids at some places.

        The numbers are kept for the next question, but where few places are named.
        """
        assert self.grid is not None
        if isinstance(places, slice):
            parts = [self.cells(column, name)[:, places] for name in NUMBERS]
        else:
            parts = [self._some(column, name, places) for name in NUMBERS]
        low, mean, high = (part.astype(np.float64) for part in parts[:3])
        finite, odd = (part.astype(np.int64) for part in parts[3:])
        names = tuple(map(str, self.grid.ids[places]))
        no_ids = np.zeros(len(self.grid.steps), np.int32)
        keys = (self.grid.steps, no_ids, self.grid.num_rows)
        return Bins(names, *keys, low, mean, high, finite, odd)

    def _grid_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        assert self.grid is not None
        steps, ids = self.grid.steps, self.grid.ids
        return np.repeat(steps, len(ids)), np.tile(ids, len(steps))


@lru_cache(maxsize=64)
def _opened(path: Path, inode: int, width: int, key: str | None) -> BinFile:
    return BinFile(path, inode, width, key)


def opened(folder: Path, chunk: Chunk, key: str | None) -> BinFile:
    """Return a file of bins; the last ones stay open."""
    path = folder / chunk.name
    return _opened(path, path.stat().st_ino, chunk.width, key)


def _size(array: NDArray[Any]) -> int:
    """Bytes that an array takes; one of equal values is a single number."""
    return array.nbytes if any(array.strides) else array.itemsize


def _small(counts: NDArray[Any]) -> NDArray[Any]:
    """Counts in as few bytes as hold them: in most files nearly all are the same."""
    if not len(counts):
        return counts
    most = int(counts.max())
    if most == int(counts.min()):
        return np.broadcast_to(counts[0], counts.shape)
    return counts.astype(np.min_scalar_type(most)) if counts.min() >= 0 else counts


def _grid_keys(
    start: NDArray[np.int64], ids: NDArray[np.int32], num_rows: NDArray[Any], count: int
) -> _GridKeys:
    # Copies, so that they do not keep the arrays of all rows.
    most = num_rows.reshape(-1, count).max(axis=1).astype(np.int64)
    return _GridKeys(start[::count].copy(), ids[:count].copy(), most)

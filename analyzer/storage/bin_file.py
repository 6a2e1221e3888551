"""One file of bins: its keys are read once, a number of a column when it is asked for."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from cachetools import LRUCache
from numpy.typing import NDArray

from analyzer.storage.arrays import as_numpy, is_present
from analyzer.storage.bin_writer import NUMBERS, Chunk
from analyzer.storage.bins import Bins, ids_of_each_bin

__all__ = ["BinFile", "GridKeys", "opened"]

# A number of a thousand layers is 5 MB; figures of two runs ask for four of each.
_MOST_BYTES = 80 << 20
_ROWS_AT_ONCE = 32_768


@dataclass(frozen=True, eq=False)
class GridKeys:
    """The keys of bins all of which hold the same ids.

    Args:
        steps: First step of each bin, ascending, ``[bins]``.
        ids: Ids of each bin, ascending, ``[ids]``.
        num_rows: Recorded rows of an id in each bin, the most of all ids, ``[bins]``.
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
        path: The file.
        inode: Tells it from a later file of that name.
        width: Steps per bin.
        key: Its id column; None for ``steps``.

    Attributes:
        width: Steps per bin.
        grid: Its keys, where all bins hold the same ids and each of them has rows; else None.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it does not hold bins.
    """

    def __init__(self, path: Path, inode: int, width: int, key: str | None) -> None:
        self._place, self.width = (path, inode), width
        # Reading ahead takes five times as long where the file is in memory anyway.
        self._file, self._lock = pq.ParquetFile(path, pre_buffer=False), Lock()
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
        """Return one number of a column, ``[rows]``; NaN or 0 where there is none.

        Args:
            column: A column; one that the file does not hold has no value.
            number: ``min``, ``mean``, ``max``, ``num_finite`` or ``num_nonfinite``.
        """
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
        values = self._numbers(name, is_count=is_count)
        values = _small(values) if is_count else values
        values.flags.writeable = False
        return values

    def _numbers(self, name: str, *, is_count: bool) -> NDArray[Any]:
        """The numbers of a column; NaN or 0 for null.

        Null are the rows of a file that was written before the column was first logged. A few rows
        at a time go into one array: read at once, new memory now and then takes four times as long
        as the reading.
        """
        found, at = np.zeros(0, np.int64 if is_count else np.float64), 0
        for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=[name], use_threads=False):
            column = batch.column(0)
            some = as_numpy(column)
            if not at:
                has_kind = is_count or some.dtype.kind == "f"
                dtype = some.dtype if has_kind else found.dtype
                found = np.empty(self._file.metadata.num_rows, dtype)
            if column.null_count:
                some = np.where(is_present(column), some, 0 if is_count else np.nan)
            found[at : at + len(some)] = some
            at += len(some)
        return found

    def bins(self, column: str) -> Bins:
        """Return one column as bins."""
        start, ids = self._keys or self._grid_rows()
        low, mean, high = (
            self.part(column, name).astype(np.float64, copy=False)[:, None] for name in NUMBERS[:3]
        )
        finite, odd = (self.part(column, name).astype(np.int64)[:, None] for name in NUMBERS[3:])
        num_rows = self._num_rows.astype(np.int64)
        return Bins((column,), start, ids, num_rows, low, mean, high, finite, odd)

    def beside(self, column: str, places: slice) -> Bins:
        """Return one column of a grid as bins with a column for each of the ids at some places."""
        assert self.grid is not None
        parts = [self.cells(column, name)[:, places] for name in NUMBERS]
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
    """Return a file of bins; the last ones stay open.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it does not hold bins.
    """
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
) -> GridKeys:
    # Copies, so that they do not keep the arrays of all rows.
    most = num_rows.reshape(-1, count).max(axis=1).astype(np.int64)
    return GridKeys(start[::count].copy(), ids[:count].copy(), most)

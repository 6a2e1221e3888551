"""Questions of the size of a screen: their cost does not grow with the length of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analyzer.storage.arrays import as_floats, as_numpy, is_present
from analyzer.storage.bins import Bins, concatenated, rebinned, single
from analyzer.storage.overview import Chunk, bins_from, chunks_in
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.selection import Steps
from analyzer.storage.tables import StepTable

__all__ = ["Heatmap", "Series", "Views"]

Floats = NDArray[np.float64]
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_Number = TypeVar("_Number", bound=np.generic)
# Some 60 bytes each: of a thousand layers that is one or two columns.
_MOST_ROWS = 1_000_000
_FAILURES = (OSError, pa.ArrowException, ValueError, KeyError)


@dataclass(frozen=True)
class Series:
    """One column of one layer, parameter, join or of the steps, in bins of steps.

    Args:
        steps: First step of each bin, ``[bins]``.
        min: Smallest finite value; NaN where there is none.
        mean: Mean of the finite values.
        max: Largest finite value.
        num_nonfinite: Values that are NaN or infinite.
        width: Steps per bin; at 1 the three are the recorded value itself.
    """

    steps: NDArray[np.int64]
    min: Floats
    mean: Floats
    max: Floats
    num_nonfinite: NDArray[np.int64]
    width: int


@dataclass(frozen=True)
class Heatmap:
    """One column of all ids in bins of steps.

    Args:
        steps: First step of each bin, ``[bins]``.
        ids: Layers, parameters or joins, ``[ids]``.
        min: Smallest finite value, ``[ids, bins]``; NaN where there is none.
        mean: Mean of the finite values, in the same shape.
        max: Largest finite value, in the same shape.
        num_nonfinite: Values that are NaN or infinite, in the same shape.
        width: Steps per bin.
    """

    steps: NDArray[np.int64]
    ids: NDArray[np.int32]
    min: Floats
    mean: Floats
    max: Floats
    num_nonfinite: NDArray[np.int64]
    width: int


class Views:
    """The screen-sized questions about one table.

    Answers come from the overview; what it does not hold yet is read from the table. They show the
    rows of rank 0 as they were recorded.

    Args:
        run: Folder of the run.
        table: The table.
        warn: Receives a sentence for each file that cannot be read.
    """

    def __init__(self, run: Path, table: StepTable, warn: Callable[[str], None]) -> None:
        self._folder, self._table, self._warn = run / "overview" / table.name, table, warn
        self._bins: dict[str, tuple[Bins, int]] = {}

    def refresh(self) -> None:
        """Look for new rows at the next question."""
        self._bins = {}

    def series(self, column: str, id_: int, max_points: int) -> Series:
        """Return one column of one id in at most ``max_points`` bins."""
        bins, width = self._of(column)
        mine = _rows_of(bins, id_)
        mine, width = _coarse(mine, width, max_points)
        return Series(
            mine.start,
            mine.low[:, 0],
            mine.mean[:, 0],
            mine.high[:, 0],
            mine.nonfinite[:, 0],
            width,
        )

    def heatmap(self, column: str, max_bins: int) -> Heatmap:
        """Return one column of all ids in at most ``max_bins`` bins."""
        bins, width = _coarse(*self._of(column), max_bins)
        count = _ids_of_each_bin(bins)
        if count:
            low, mean, high = (_as_grid(part, count) for part in (bins.low, bins.mean, bins.high))
            nonfinite = _as_grid(bins.nonfinite, count)
            return Heatmap(
                _fixed(bins.start[::count]),
                _fixed(bins.ids[:count]),
                low,
                mean,
                high,
                nonfinite,
                width,
            )
        steps, places = np.unique(bins.start, return_inverse=True)
        ids, rows = np.unique(bins.ids, return_inverse=True)
        shape = (len(ids), len(steps))
        low, mean, high = (np.full(shape, np.nan) for _ in range(3))
        for target, source in ((low, bins.low), (mean, bins.mean), (high, bins.high)):
            target[rows, places] = source[:, 0]
        nonfinite = np.zeros(shape, dtype=np.int64)
        nonfinite[rows, places] = bins.nonfinite[:, 0]
        return Heatmap(steps, ids, low, mean, high, nonfinite, width)

    def holds_each_of(self, steps: NDArray[np.int64]) -> bool:
        """Return whether an id has a row at each of these steps, as far as the bins can show it.

        Args:
            steps: Steps in order; the table has rows at no others.
        """
        column = STAT_COLUMNS[self._table.name][0]
        bins, width = self._of(column)
        if not len(bins) or not len(steps):
            return False
        starts, firsts = np.unique(bins.start, return_index=True)
        most = np.maximum.reduceat(bins.num_rows, firsts)
        counts = np.diff(np.searchsorted(steps, np.append(starts, starts[-1] + width)))
        # No step may lie between bins either.
        return int(counts.sum()) == len(steps) and bool(np.array_equal(counts, most))

    def _of(self, column: str) -> tuple[Bins, int]:
        """All bins of a column, and their width."""
        known = self._bins.get(column)
        if known is not None:
            return known
        for _ in range(5):
            try:
                found = self._read(column)
                break
            except FileNotFoundError:
                continue
        else:
            found = self._read(column)
        # Others may ask at the same time: nobody looks into the dict twice, and it is put anew.
        self._bins = _newest(self._bins | {column: found}, lambda one: len(one[0]))
        return found

    def _read(self, column: str) -> tuple[Bins, int]:
        pieces, width, reached = [_nothing(column)], 1, 0
        for chunk in chunks_in(self._folder):
            found = self._chunk(chunk, column)
            if found is not None:
                pieces += [*self._rows(column, reached, chunk.start - 1), found]
                width, reached = max(width, chunk.width), chunk.end
        pieces += self._rows(column, reached, None)
        bins = rebinned(concatenated([p for p in pieces if len(p)] or pieces[:1]), width)
        # The arrays of a file are used as they are where nothing is to be changed in them.
        return (bins if bins.num_rows.all() else bins[bins.num_rows > 0]), width

    def _chunk(self, chunk: Chunk, column: str) -> Bins | None:
        try:
            path = self._folder / chunk.name
            return _chunk_bins(path, path.stat().st_ino, self._table.key, column)
        except FileNotFoundError:
            raise
        except _FAILURES as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            self._warn(
                f"overview/{self._table.name}/{chunk.name} cannot be read; the table itself is "
                f"read instead ({type(error).__name__}: {reason})"
            )
            return None

    def _rows(self, column: str, first: int, last: int | None) -> list[Bins]:
        """Rows that no file of the overview holds."""
        bounds = self._table.bounds()
        if bounds is None or bounds[1] < first or (last is not None and last < first):
            return []
        key = self._table.key
        names = ["step", column] if key is None else ["step", key, column]
        steps = Steps(first) if last is None else Steps(first, last)
        rows = self._table.read(names, steps, ranks=[0])
        values = rows.column(column)
        ids = as_numpy(rows.column(key)) if key else np.zeros(rows.num_rows, dtype=np.int32)
        known = is_present(values)
        number = as_numpy(rows.column("step"))
        return [single([column], number, ids, as_floats(values)[:, None], known[:, None])]


_kept: dict[tuple[Path, int, str], Bins] = {}


def _chunk_bins(path: Path, inode: int, key: str | None, column: str) -> Bins:
    """One column of a file, which never changes under its name; the last ones are kept."""
    global _kept
    place = (path, inode, column)
    found = _kept.get(place)
    if found is None:
        found = _chunk_column(path, key, column)
        _kept = _newest(_kept | {place: found}, len)
    return found


def _chunk_column(path: Path, key: str | None, column: str) -> Bins:
    file = pq.ParquetFile(path)
    known = f"{column}_num_nonfinite" in file.schema_arrow.names
    suffixes = ("min", "mean", "max", "num_finite", "num_nonfinite") if known else ()
    keys = [name for name in ("start", key, "num_rows") if name is not None]
    table = file.read([*keys, *(f"{column}_{suffix}" for suffix in suffixes)], use_threads=False)
    bins = bins_from(table, key, [column] if known else [])
    return bins if known else concatenated([_nothing(column), bins])


def _newest(kept: dict[_Key, _Value], rows: Callable[[_Value], int]) -> dict[_Key, _Value]:
    """The last entries of a dict that have so many rows together, at least one."""
    newest: dict[_Key, _Value] = {}
    left = _MOST_ROWS
    for key, value in reversed(kept.items()):
        left -= rows(value)
        if left < 0 and newest:
            break
        newest[key] = value
    return dict(reversed(newest.items()))


def _nothing(column: str) -> Bins:
    none = np.zeros(0, dtype=np.int64)
    return single([column], none, none.astype(np.int32), np.zeros((0, 1)), None)


def _fixed(array: NDArray[_Number]) -> NDArray[_Number]:
    """A view that nobody can write to: what it shows is kept for the next question."""
    view = array.view()
    view.flags.writeable = False
    return view


def _as_grid(values: NDArray[_Number], count: int) -> NDArray[_Number]:
    """Show a column of bins with so many ids each as ``[ids, bins]``."""
    return _fixed(values.reshape(-1, count).T)


def _rows_of(bins: Bins, id_: int) -> Bins:
    """Return the rows of one id."""
    count = _ids_of_each_bin(bins)
    if not count:
        return bins[bins.ids == id_]
    place = int(np.searchsorted(bins.ids[:count], id_))
    is_there = place < count and bins.ids[place] == id_
    return bins[np.arange(place, len(bins), count)] if is_there else bins[:0]


def _ids_of_each_bin(bins: Bins) -> int:
    """How many ids a bin has, where all have the same ones in the same order; else 0."""
    # In a sorted table the first bin ends where a start differs.
    count = int(np.searchsorted(bins.start, bins.start[0], side="right")) if len(bins) else 0
    if not count or len(bins) % count:
        return 0
    starts, ids = bins.start.reshape(-1, count), bins.ids.reshape(-1, count)
    is_grid = (starts[1:, 0] > starts[:-1, 0]).all() and (starts == starts[:, :1]).all()
    is_ordered = (ids[0, 1:] > ids[0, :-1]).all() and (ids == ids[0]).all()
    return count if is_grid and is_ordered else 0


def _coarse(bins: Bins, width: int, most: int) -> tuple[Bins, int]:
    """Widen bins until there are few enough."""
    if not len(bins):
        return bins, width
    # Bins are in the order of their steps, so that a bin ends where the next number differs.
    while np.count_nonzero(np.diff(bins.start // width)) >= max(1, most):
        width *= 2
    return rebinned(bins, width), width

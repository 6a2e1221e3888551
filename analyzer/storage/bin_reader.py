"""Questions of the size of a screen: their cost does not grow with the length of a run."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar, get_args

import numpy as np
import pyarrow as pa
from cachetools import LRUCache
from numpy.typing import NDArray

from analyzer.storage.arrays import as_floats, as_numpy, is_present
from analyzer.storage.bin_file import BinFile, Chunk, chunks_in, opened
from analyzer.storage.bins import Bins, Numbers, concatenated, ids_of_each_bin, rebinned, single
from analyzer.storage.limits import Total
from analyzer.storage.parts import READ_FAILURES, reason_of
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.selection import Steps
from analyzer.storage.tables import StepTable

__all__ = ["BinReader", "Grid", "Heatmap", "NumberName", "Series"]

Floats = NDArray[np.float64]
NumberName = Literal["min", "mean", "max"]
_Answer = TypeVar("_Answer")
_Scalar = TypeVar("_Scalar", bound=np.generic)
# Of a thousand layers that is one or two columns.
_BIN_BYTES = 60
_MOST_ROWS = 1_000_000
# Of the pooled rows of several ranks.
_MOST_BINS = 1024


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
class Heatmap(Series):
    """One column of all ids in bins of steps: the numbers of a `Series`, ``[ids, bins]`` each."""

    ids: NDArray[np.int32]


@dataclass(frozen=True)
class Grid:
    """One number of one column of all ids in bins of steps; values are as those of a `Heatmap`."""

    steps: NDArray[np.int64]
    ids: NDArray[np.int32]
    values: Floats
    num_nonfinite: NDArray[np.int64]
    width: int


class BinReader:
    """The screen-sized questions about one table.

    Answers come from the bins; what they do not hold yet is read from the table. The rows of
    several ranks have no bins: they are pooled first.

    Args:
        run: Folder of the run.
        table: The table.
        warn: Receives a sentence about a file that cannot be read.
        pooled: Returns a column at some steps, pooled over the ranks.
    """

    def __init__(
        self,
        run: Path,
        table: StepTable,
        warn: Callable[[str], None],
        pooled: Callable[[str, slice], pa.Table],
    ) -> None:
        self._folder, self._table, self._warn = run / "overview" / table.name, table, warn
        self._pooled = pooled
        self._lock, self._looking = Lock(), Lock()
        self.refresh()

    def refresh(self) -> None:
        """Look for new rows at the next question."""
        # The bins of a column are kept, of the last one however many there are.
        self._bins: LRUCache[str, tuple[Bins, int]] = LRUCache(
            _MOST_ROWS, getsizeof=lambda found: min(len(found[0]), _MOST_ROWS)
        )
        self._looked = False
        self._file: BinFile | None = None

    def series(self, column: str, id_: int, max_points: int) -> Series:
        """Return one column of one id in at most ``max_points`` bins."""
        found = self._from_file(column, lambda file: _one_id(file, column, id_))
        return _series(*(self._of_id(column, id_) if found is None else found), max_points)

    def several(self, column: str, ids: Sequence[int], max_points: int) -> list[Series]:
        """Return one column of some ids, each as `series`; what others have is not kept for it."""
        found = self._from_file(column, lambda file: _some_ids(file, column, ids))
        pieces = found or [self._of_id(column, id_) for id_ in ids]
        return [_series(bins, width, max_points) for bins, width in pieces]

    def _of_id(self, column: str, id_: int) -> tuple[Bins, int]:
        bins, width = self._of(column)
        return bins[bins.ids == id_], width

    def grid(self, column: str, number: NumberName, max_bins: int) -> Grid:
        """Return one number of one column of all ids in at most ``max_bins`` bins.

        Only that number is read, where it can be: a heatmap of a thousand layers is 20 MB.
        """
        (grid,) = self._grids(column, (number,), max_bins)
        return grid

    def heatmap(self, column: str, max_bins: int) -> Heatmap:
        """Return one column of all ids in at most ``max_bins`` bins."""
        low, mean, high = self._grids(column, get_args(NumberName), max_bins)
        numbers = (low.values, mean.values, high.values, low.num_nonfinite)
        return Heatmap(low.steps, *numbers, low.width, low.ids)

    def _grids(self, column: str, numbers: Sequence[NumberName], max_bins: int) -> list[Grid]:
        found = self._from_file(
            column, lambda file: [_grid(file, column, number, max_bins) for number in numbers]
        )
        if found is not None:
            return found
        bins, width = _coarse(*self._of(column), max_bins)
        count = ids_of_each_bin(bins.start, bins.ids)
        if count:
            steps, ids = _fixed(bins.start[::count]), _fixed(bins.ids[:count])
            odd = _as_grid(bins.nonfinite, count)
            values = [_as_grid(_number(bins, number), count) for number in numbers]
            return [Grid(steps, ids, shown, odd, width) for shown in values]
        steps, places = np.unique(bins.start, return_inverse=True)
        ids, rows = np.unique(bins.ids, return_inverse=True)
        odd = np.zeros((len(ids), len(steps)), dtype=np.int64)
        odd[rows, places] = bins.nonfinite[:, 0]
        grids = []
        for number in numbers:
            shown = np.full(odd.shape, np.nan)
            shown[rows, places] = _number(bins, number)[:, 0]
            grids.append(Grid(steps, ids, shown, odd, width))
        return grids

    def holds_each_of(self, known: StepTable) -> bool:
        """Return whether an id has a row at each step of a table, as far as the bins can show it.

        They hold some million times fewer rows than the table of a long run.
        """
        source = self._table
        writers = {(part.rank, part.attempt) for part in [*source.parts, *known.parts]}
        if source.bounds() != known.bounds() or len(writers) != 1:
            return False
        steps = known.steps()
        file = self._whole()
        if file is not None and file.grid is not None:
            starts, most, width = file.grid.steps, file.grid.num_rows, file.width
        else:
            bins, width = self._of(STAT_COLUMNS[self._table.name][0])
            starts, firsts = np.unique(bins.start, return_index=True)
            most = np.maximum.reduceat(bins.num_rows, firsts) if len(bins) else bins.num_rows
        if not len(starts) or not len(steps):
            return False
        counts = np.diff(np.searchsorted(steps, np.append(starts, starts[-1] + width)))
        # No step may lie between bins either.
        return int(counts.sum()) == len(steps) and bool(np.array_equal(counts, most))

    def _whole(self) -> BinFile | None:
        """The file of bins, where there is one that holds everything as a grid."""
        with self._looking:  # several figures ask at once
            if not self._looked:
                self._file, self._looked = self._find_whole(), True
            return self._file

    def _find_whole(self) -> BinFile | None:
        chunks, bounds = chunks_in(self._folder), self._table.bounds()
        if len(chunks) != 1 or bounds is None or self._has_ranks:
            return None
        (chunk,) = chunks
        if bounds[1] >= chunk.end or (chunk.start > 0 and bounds[0] < chunk.start):
            return None
        try:
            file = opened(self._folder, chunk, self._table.key)
        except READ_FAILURES:
            # Whoever reads the files one by one warns of it.
            return None
        return file if file.grid is not None else None

    def _from_file(self, column: str, answer: Callable[[BinFile], _Answer]) -> _Answer | None:
        """What the file says that holds all; None where there is none, or it cannot be read."""
        file = None if column in self._bins else self._whole()
        try:
            return None if file is None else answer(file)
        except READ_FAILURES:
            return None

    def _of(self, column: str) -> tuple[Bins, int]:
        """All bins of a column, and their width."""
        room = self._bins
        with self._lock:
            found: tuple[Bins, int] | None = room.get(column)
        for _ in range(5):
            if found is None:
                with contextlib.suppress(FileNotFoundError):
                    found = self._read(column)
        found = found or self._read(column)
        with self._lock:
            room[column] = found
        return found

    def _read(self, column: str) -> tuple[Bins, int]:
        if self._has_ranks:
            return self._read_pooled(column)
        pieces, width, reached = [_nothing(column)], 1, 0
        total = Total(f"the bins of {self._table.name}")
        for chunk in chunks_in(self._folder):
            found = self._chunk(chunk, column)
            if found is not None:
                total.check(_BIN_BYTES * (sum(map(len, pieces)) + len(found)))
                pieces += [*self._rows(column, reached, chunk.start - 1), found]
                width, reached = max(width, chunk.width), chunk.end
        pieces += self._rows(column, reached, None)
        bins = rebinned(concatenated([p for p in pieces if len(p)] or pieces[:1]), width)
        # The arrays of a file are used as they are where nothing is to be changed in them.
        return (bins if bins.num_rows.all() else bins[bins.num_rows > 0]), width

    @property
    def _has_ranks(self) -> bool:
        return self._table.ranks not in ([], [0])

    def _read_pooled(self, column: str) -> tuple[Bins, int]:
        """The pooled rows, a few steps at a time, in no more bins than a file has."""
        first, last = self._table.bounds() or (0, -1)
        width = 1
        while (last - first) // width >= _MOST_BINS:
            width *= 2
        pieces, span = [_nothing(column)], max(width, _MOST_BINS)
        for start in range(first // width * width, last + 1, span):
            rows = self._pooled(column, slice(start, start + span))
            pieces.append(rebinned(self._singles(rows, column), width))
        return concatenated(pieces), width

    def _chunk(self, chunk: Chunk, column: str) -> Bins | None:
        try:
            return opened(self._folder, chunk, self._table.key).bins(column)
        except FileNotFoundError:
            raise
        except READ_FAILURES as error:
            self._warn(
                f"overview/{self._table.name}/{chunk.name} cannot be read; the table itself is "
                f"read instead ({reason_of(error)})"
            )
            return None

    def _rows(self, column: str, first: int, last: int | None) -> list[Bins]:
        """Rows that no file of bins holds."""
        bounds = self._table.bounds()
        if bounds is None or bounds[1] < first or (last is not None and last < first):
            return []
        key = self._table.key
        names = ["step", column] if key is None else ["step", key, column]
        steps = Steps(first) if last is None else Steps(first, last)
        return [self._singles(self._table.read(names, steps, ranks=[0]), column)]

    def _singles(self, rows: pa.Table, column: str) -> Bins:
        key = self._table.key
        values = rows.column(column)
        ids = as_numpy(rows.column(key)) if key else np.zeros(rows.num_rows, dtype=np.int32)
        known = is_present(values)
        number = as_numpy(rows.column("step"))
        numbers = Numbers((column,), number, ids, as_floats(values)[:, None], known[:, None])
        return single(numbers)


def _nothing(column: str) -> Bins:
    none = np.zeros(0, dtype=np.int64)
    return single(Numbers((column,), none, none.astype(np.int32), np.zeros((0, 1)), None))


def _one_id(file: BinFile, column: str, id_: int) -> tuple[Bins, int]:
    """One column of one id of a grid."""
    assert file.grid is not None
    place = int(np.searchsorted(file.grid.ids, id_))
    is_there = place < len(file.grid.ids) and file.grid.ids[place] == id_
    bins = file.beside(column, slice(place, place + 1))
    return (bins, file.width) if is_there else (_nothing(column), file.width)


def _some_ids(file: BinFile, column: str, ids: Sequence[int]) -> list[tuple[Bins, int]]:
    """One column of some ids of a grid."""
    assert file.grid is not None
    places = np.flatnonzero(np.isin(file.grid.ids, ids))
    bins, found = file.beside(column, places), {}
    for at, id_ in enumerate(file.grid.ids[places].tolist()):
        own = (array[:, at : at + 1] for array in bins.arrays[3:])
        found[id_] = Bins(bins.columns[at : at + 1], *bins.arrays[:3], *own)
    return [(found.get(id_, _nothing(column)), file.width) for id_ in ids]


def _series(bins: Bins, width: int, most: int) -> Series:
    mine, wide = _coarse(bins, width, most)
    low, mean, high = mine.low[:, 0], mine.mean[:, 0], mine.high[:, 0]
    return Series(mine.start, low, mean, high, mine.nonfinite[:, 0], wide)


def _grid(file: BinFile, column: str, number: NumberName, max_bins: int) -> Grid:
    """One number of a column of a grid in few enough bins."""
    assert file.grid is not None
    steps, ids = file.grid.steps, file.grid.ids
    width = _width(steps, file.width, max_bins)
    if width > file.width:
        bins = rebinned(file.beside(column, slice(None)), width)
        return Grid(bins.start, ids, _number(bins, number).T, bins.nonfinite.T, width)
    shown = file.cells(column, number).astype(np.float64, copy=False)
    odd = file.cells(column, "num_nonfinite")
    # Of most columns all counts are 0: one number stands for all.
    counts = odd.astype(np.int64) if any(odd.strides) else np.broadcast_to(odd[0, 0], odd.shape)
    return Grid(_fixed(steps), _fixed(ids), shown.T, counts.T, width)


def _number(bins: Bins, number: NumberName) -> Floats:
    return {"min": bins.low, "mean": bins.mean, "max": bins.high}[number]


def _fixed(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """A view that nobody can write to: what it shows is kept for the next question."""
    view = array.view()
    view.flags.writeable = False
    return view


def _as_grid(values: NDArray[_Scalar], count: int) -> NDArray[_Scalar]:
    """Show a column of bins with ``count`` ids each as ``[ids, bins]``."""
    return _fixed(values.reshape(-1, count).T)


def _coarse(bins: Bins, width: int, most: int) -> tuple[Bins, int]:
    """Widen bins until there are few enough."""
    wide = _width(bins.start, width, most)
    return (bins, width) if wide == width else (rebinned(bins, wide), wide)


def _width(starts: NDArray[np.int64], width: int, most: int) -> int:
    """The width at which bins that begin at these steps, in their order, are few enough."""
    while len(starts) and np.count_nonzero(np.diff(starts // width)) >= max(1, most):
        width *= 2
    return width

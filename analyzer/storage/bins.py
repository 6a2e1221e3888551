"""Bins of consecutive steps, each with minimum, mean and maximum per id and column."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyzer.pooling import Groups

__all__ = ["Bins", "Numbers", "concatenated", "ids_of_each_bin", "rebinned", "single"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Numbers(NamedTuple):
    """The numeric columns of some rows of a table, ``[rows, columns]``.

    ``ids`` are zeros for ``steps``; ``present`` is False for null, None where nothing is null.
    """

    columns: tuple[str, ...]
    steps: Counts
    ids: NDArray[np.int32]
    values: Floats
    present: NDArray[np.bool_] | None

    def part(self, rows: slice) -> "Numbers":
        """Return some of the rows."""
        known = None if self.present is None else self.present[rows]
        return Numbers(self.columns, self.steps[rows], self.ids[rows], self.values[rows], known)


@dataclass(frozen=True)
class Bins:
    """Rows of bins; minimum, mean and maximum are those of the finite values.

    Args:
        columns: Names of the columns.
        start: First step of the bin of each row, ``[rows]``.
        ids: Layer, parameter or join of each row, ``[rows]``; zeros for ``steps``.
        num_rows: Recorded rows in the bin, ``[rows]``.
        low: Minimum, ``[rows, columns]``; NaN where there is no finite value.
        mean: Mean, in the same shape.
        high: Maximum, in the same shape.
        finite: Number of finite values.
        nonfinite: Number of values that are NaN or infinite; nulls are neither.
    """

    columns: tuple[str, ...]
    start: Counts
    ids: NDArray[np.int32]
    num_rows: Counts
    low: Floats
    mean: Floats
    high: Floats
    finite: Counts
    nonfinite: Counts

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows: slice | NDArray[np.generic]) -> "Bins":
        return Bins(self.columns, *(array[rows] for array in self.arrays))

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """Everything but the names of the columns, in the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)[1:]]


def single(rows: Numbers) -> Bins:
    """Return each row as a bin of its own."""
    finite = np.isfinite(rows.values)
    known = np.ones(finite.shape, dtype=bool) if rows.present is None else rows.present
    finite &= known
    shown = np.where(finite, rows.values, np.nan)
    ones = np.ones(len(rows.steps), dtype=np.int64)
    counts, odd = finite.astype(np.int64), (known & ~finite).astype(np.int64)
    return Bins(rows.columns, rows.steps, rows.ids, ones, shown, shown, shown, counts, odd)


def concatenated(pieces: Sequence[Bins]) -> Bins:
    """Return the rows of all pieces; a column that a piece lacks has no values there."""
    columns = tuple(dict.fromkeys(name for piece in pieces for name in piece.columns))
    aligned = [_aligned(piece, columns) for piece in pieces]
    if len(aligned) == 1:
        return aligned[0]
    together = zip(*(piece.arrays for piece in aligned), strict=True)
    return Bins(columns, *(np.concatenate(arrays) for arrays in together))


def _aligned(bins: Bins, columns: tuple[str, ...]) -> Bins:
    if bins.columns == columns:
        return bins
    places = [columns.index(name) for name in bins.columns]
    keys, numbers = bins.arrays[:3], []
    for old in bins.arrays[3:]:
        new = np.full((len(bins), len(columns)), np.nan if old.dtype.kind == "f" else 0, old.dtype)
        new[:, places] = old
        numbers.append(new)
    return Bins(columns, *keys, *numbers)


def rebinned(bins: Bins, width: int) -> Bins:
    """Return the same rows in bins that begin at multiples of ``width``, by start and id."""
    start, ids = bins.start // width * width, bins.ids
    if not _is_sorted(start, ids):
        # One key, since a stable sort of it profits from rows that are nearly in order.
        key = start // width * (int(ids.max()) + 1) + ids
        order = np.argsort(key, kind="stable")
        start, ids, bins = start[order], ids[order], bins[order]
    groups = Groups.of(start, ids)
    if len(groups.firsts) == len(start):
        if np.array_equal(start, bins.start):
            return bins
        return Bins(bins.columns, start, ids, *bins.arrays[2:])
    firsts = groups.firsts
    return Bins(bins.columns, start[firsts], ids[firsts], *_reduced(bins, groups))


def ids_of_each_bin(start: Counts, ids: NDArray[np.int32]) -> int:
    """Return how many ids a bin has, where all have the same ones in the same order; else 0."""
    # In a sorted table the first bin ends where a start differs.
    count = int(np.searchsorted(start, start[0], side="right")) if len(start) else 0
    if not count or len(start) % count:
        return 0
    starts, rows = start.reshape(-1, count), ids.reshape(-1, count)
    is_grid = (starts[1:, 0] > starts[:-1, 0]).all() and (starts == starts[:, :1]).all()
    is_ordered = (rows[0, 1:] > rows[0, :-1]).all() and (rows == rows[0]).all()
    return count if is_grid and is_ordered else 0


def _is_sorted(start: Counts, ids: NDArray[np.int32]) -> bool:
    later = start[1:] > start[:-1]
    return bool(np.all(later | ((start[1:] == start[:-1]) & (ids[1:] >= ids[:-1]))))


def _reduced(bins: Bins, groups: Groups) -> list[NDArray[Any]]:
    firsts = groups.firsts
    finite = np.add.reduceat(bins.finite, firsts)
    # Weights before the sum, not a division after it: a sum of values near 1e308 overflows.
    weight = bins.finite / groups.spread(np.maximum(finite, 1))
    mean = np.add.reduceat(np.where(bins.finite > 0, bins.mean * weight, 0.0), firsts)
    return [
        np.add.reduceat(bins.num_rows, firsts),
        np.fmin.reduceat(bins.low, firsts),
        np.where(finite > 0, mean, np.nan),
        np.fmax.reduceat(bins.high, firsts),
        finite,
        np.add.reduceat(bins.nonfinite, firsts),
    ]

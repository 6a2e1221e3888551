"""Series of the width of a screen: a middle line with its smallest and largest values."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyzer.storage.bin_reader import Series

__all__ = ["Band", "band", "grouped", "series_band", "smoothed", "spaced_places"]

Floats = NDArray[np.float64]
_Cells = Floats | Sequence[Floats]
# Of larger groups a sort is as quick.
_MOST_SWAPPED = 16


@dataclass(frozen=True, eq=False)
class Band:
    """One number over steps, a point per bin of steps.

    Args:
        steps: First step of each bin, ``[points]``.
        low: Smallest finite value; NaN where there is none.
        middle: Median or mean of the finite values.
        num_nonfinite: Values of the bin that are NaN or infinite.
        width: Recorded steps per bin; at 1 the three are the recorded value.
        smooth: The middle smoothed; None where that was not asked for.
        x: Where each bin stands along an axis of epochs or of time; None for one of steps.
    """

    steps: NDArray[np.int64]
    low: Floats
    middle: Floats
    high: Floats
    num_nonfinite: NDArray[np.int64]
    width: int
    smooth: Floats | None = None
    x: Floats | None = None

    def cells(self, middle: str) -> dict[str, Any]:
        """Return one row per bin as cells by column; ``middle`` names the column of the middle."""
        return {
            "step": self.steps,
            **({} if self.x is None else {"x": self.x}),
            "min": self.low,
            middle: self.middle,
            "max": self.high,
            "num_nonfinite": self.num_nonfinite,
        }


def spaced_places(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of ``count`` places, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def smoothed(values: ArrayLike, keep: float) -> Floats:
    """Return an exponential moving average, divided by the sum of its weights, ``[points]``.

    ``s_t = Σ_i keep^(t−i) x_i / Σ_i keep^(t−i)``, so that a constant stays that constant from the
    first value on. Non-finite values have no weight and stay NaN.
    """
    x = np.asarray(values, np.float64)
    result = np.full(len(x), np.nan)
    total = weight = 0.0
    for place in np.flatnonzero(np.isfinite(x)):
        total, weight = keep * total + x[place], keep * weight + 1
        result[place] = total / weight
    return result


def grouped(values: Floats, size: int, how: str) -> Floats:
    """Reduce groups of ``size`` neighbors along the last axis, ``[..., ceil(n / size)]``.

    By ``median``, ``mean``, ``min`` or ``max``. NaN is left out, and stays where a group has no
    number; the last group may be shorter.
    """
    if size <= 1 or not values.shape[-1]:
        return values
    return _picked(_sorted_groups(values, size), how)


def _sorted_groups(values: Floats, size: int) -> _Cells:
    """Groups of neighbors, each sorted, ``[size, groups, ...]``; NaN last."""
    along = np.moveaxis(values, -1, 0)
    count = -(-len(along) // size)
    if size > _MOST_SWAPPED:
        padded = np.full((count * size, *along.shape[1:]), np.nan)
        padded[: len(along)] = along
        ordered = np.sort(padded.reshape(count, size, *along.shape[1:]), axis=1)
        return np.moveaxis(ordered, 1, 0)
    cells = np.empty((size, count, *along.shape[1:]))
    # Where the last group is short.
    cells[:, -1] = np.nan
    for start in range(size):
        some = along[start::size]
        cells[start, : len(some)] = some
    return _sorted_by_swaps(cells)


def _sorted_by_swaps(cells: Floats) -> list[Floats]:
    """Sort short groups along the first axis, NaN last; ``cells`` are overwritten.

    A network of Batcher, whole arrays at a time: 40 % of the time of a sort, of eleven each.

    Reference:
        Knuth, The Art of Computer Programming 3, §5.2.2, algorithm M.
    """
    rows, spare = list(cells), np.empty(cells.shape[1:])
    for low, high in _network(len(rows)):
        np.fmin(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return rows


@cache
def _network(count: int) -> list[tuple[int, int]]:
    """The pairs of positions to compare and exchange, in this order, to sort ``count`` values."""
    pairs = []
    top = 1 << max(0, (count - 1).bit_length() - 1)
    step = top if count > 1 else 0
    while step:
        reach, bit, distance = top, 0, step
        while True:
            pairs += [(i, i + distance) for i in range(count - distance) if i & step == bit]
            if reach == step:
                break
            distance, reach, bit = reach - step, reach // 2, step
        step //= 2
    return pairs


def _picked(cells: _Cells, how: str) -> Floats:
    """One number of each sorted group, ``[..., groups]``; NaN where it has none."""
    known = np.full(cells[0].shape, len(cells))
    # NaN is last, so that the numbers of a group are its first cells.
    if (lacking := np.isnan(cells[-1])).any():
        known[lacking] = sum(~np.isnan(cell[lacking]) for cell in cells)
    last = np.maximum(known - 1, 0)
    found: Floats
    if how == "mean":
        total = reduce(np.add, cells)
        total[lacking] = sum(np.where(np.isnan(x), 0.0, x) for x in (c[lacking] for c in cells))
        found = np.where(known > 0, total / np.maximum(known, 1), np.nan)
    elif how in ("min", "max"):
        found = cells[0].copy() if how == "min" else _chosen(cells, last)
    else:
        first, second = _chosen(cells, last // 2), _chosen(cells, (last + 1) // 2)
        # Halves before the sum: a sum of two numbers near 1e308 overflows.
        found = np.where(first == second, first, first / 2 + second / 2)
    return np.asarray(np.moveaxis(found, 0, -1), np.float64)


def _chosen(cells: _Cells, places: NDArray[np.int64]) -> Floats:
    """The cell of each group at a place of its own."""
    if len(cells) > _MOST_SWAPPED:
        apart: Floats = np.take_along_axis(np.asarray(cells), places[None], axis=0)[0]
        return apart
    # Few groups have other places than most: those with NaN, and a short one at the end.
    usual = int(places.max(initial=0))
    chosen: Floats = cells[usual].copy()
    others = places != usual
    for place in np.unique(places[others]).tolist():
        np.copyto(chosen, cells[place], where=places == place)
    return chosen


def band(steps: ArrayLike, values: ArrayLike, most: int, *, smooth: float = 0.0) -> Band:
    """Return recorded values, ``[steps]``, in at most ``most`` bins with their medians.

    Values that are NaN or infinite are counted. ``smooth`` is the strength, 0 for none.
    """
    numbers, x = np.asarray(steps, np.int64), np.asarray(values, np.float64)
    size = max(1, -(-len(x) // max(1, most)))
    finite = np.where(np.isfinite(x), x, np.nan)
    low = middle = high = finite
    if size > 1:
        cells = _sorted_groups(finite, size)
        low, middle, high = (_picked(cells, how) for how in ("min", "median", "max"))
    firsts = np.arange(0, len(x), size)
    bad = np.add.reduceat(~np.isfinite(x), firsts).astype(np.int64) if len(x) else firsts
    line = smoothed(middle, smooth) if smooth else None
    return Band(numbers[::size], low, middle, high, bad, size, line)


def series_band(series: Series, *, smooth: float = 0.0) -> Band:
    """Return a series of the overview as a band; its middle is the mean of each bin."""
    return Band(
        series.steps,
        series.min,
        series.mean,
        series.max,
        series.num_nonfinite,
        series.width,
        smoothed(series.mean, smooth) if smooth else None,
    )

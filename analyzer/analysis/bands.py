"""Series of the width of a screen: a middle line with its smallest and largest values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyzer.storage.views import Series

__all__ = ["Band", "band", "grouped", "series_band", "smoothed"]

Floats = NDArray[np.float64]
_SMOOTHING = 0.9


@dataclass(frozen=True, eq=False)
class Band:
    """One number over steps, a point per bin of steps.

    Args:
        steps: First step of each bin, ``[points]``.
        low: Smallest finite value; NaN where there is none.
        middle: Median or mean of the finite values.
        high: Largest finite value.
        num_nonfinite: Values of the bin that are NaN or infinite.
        width: Recorded steps per bin; at 1 the three are the recorded value.
        smooth: The middle smoothed; None where that was not asked for.
    """

    steps: NDArray[np.int64]
    low: Floats
    middle: Floats
    high: Floats
    num_nonfinite: NDArray[np.int64]
    width: int
    smooth: Floats | None = None


def smoothed(values: ArrayLike, keep: float = _SMOOTHING) -> Floats:
    """Return an exponential moving average, divided by the sum of its weights.

    ``s_t = Σ_i keep^(t−i) x_i / Σ_i keep^(t−i)``, so that a constant stays that constant from the
    first value on. Non-finite values have no weight and stay NaN.

    Args:
        values: Values in order, ``[points]``.
        keep: Weight of the past, from 0 to below 1.
    """
    x = np.asarray(values, np.float64)
    result = np.full(len(x), np.nan)
    total = weight = 0.0
    for place in np.flatnonzero(np.isfinite(x)):
        total, weight = keep * total + x[place], keep * weight + 1
        result[place] = total / weight
    return result


def grouped(values: Floats, size: int, how: str) -> Floats:
    """Reduce neighbors along the last axis, so many at a time; NaN is left out.

    Args:
        values: ``[..., n]``.
        size: Neighbors per group; the last group may have fewer.
        how: ``median``, ``mean``, ``min`` or ``max``.

    Returns:
        ``[..., ceil(n / size)]``; NaN where a group has no number.
    """
    if size <= 1 or not values.shape[-1]:
        return values
    return _picked(_sorted_groups(values, size), how)


def _sorted_groups(values: Floats, size: int) -> Floats:
    """Groups of neighbors, each sorted, ``[..., groups, size]``; NaN last."""
    count = -(-values.shape[-1] // size)
    padded = np.full((*values.shape[:-1], count * size), np.nan)
    padded[..., : values.shape[-1]] = values
    return np.sort(padded.reshape(*values.shape[:-1], count, size), axis=-1)


def _picked(cells: Floats, how: str) -> Floats:
    """One number of each sorted group; NaN where it has none."""
    known = np.sum(~np.isnan(cells), axis=-1)
    if how == "mean":
        total = np.nansum(cells, axis=-1)
        return np.where(known > 0, total / np.maximum(known, 1), np.nan)
    # NaN is last, so that the numbers of a group are its first cells.
    last = np.maximum(known - 1, 0)
    places = {"min": (0 * last, 0 * last), "max": (last, last)}.get(
        how, (last // 2, (last + 1) // 2)
    )
    first, second = (np.take_along_axis(cells, p[..., None], axis=-1)[..., 0] for p in places)
    # Halves before the sum: a sum of two numbers near 1e308 overflows.
    return np.where(first == second, first, first / 2 + second / 2)


def band(steps: ArrayLike, values: ArrayLike, most: int, *, smooth: bool = False) -> Band:
    """Return recorded values in at most so many bins, the median of each in the middle.

    Args:
        steps: Recorded steps, ascending, ``[steps]``.
        values: Their values, ``[steps]``; NaN and infinite ones are counted.
        most: Bins at the most.
        smooth: Whether the middle is smoothed too.
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
    line = smoothed(middle) if smooth else None
    return Band(numbers[::size], low, middle, high, bad, size, line)


def series_band(series: Series, *, smooth: bool = False) -> Band:
    """Return a series of the overview as a band; its middle is the mean of each bin."""
    return Band(
        series.steps,
        series.min,
        series.mean,
        series.max,
        series.num_nonfinite,
        series.width,
        smoothed(series.mean) if smooth else None,
    )

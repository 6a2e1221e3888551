"""Statistics of tensors in host memory: one pass a cache-sized block, numbers at once.

A tensor in host memory can be read without waiting for a device, so a cheap kernel may run first
and a careful one only where its result shows that it is needed (an underflow, a NaN). BLAS and
numpy kernels are used because torch's reductions of float32 on the CPU are up to 50 times slower
than the memory allows (``vector_norm`` of order 1 and infinity, ``count_nonzero``, ``var_mean``).
"""

import math
import threading
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas
from torch import Tensor

__all__ = ["activation_numbers", "gradient_numbers", "norm"]

# Elements a block: it stays in the L2 cache while five kernels read it, and a float32 sum over half
# of one errs by less than 3e-6.
_BLOCK = 65536
_HALF = _BLOCK // 2
# Below this mean square, squares of float32 elements may have vanished (they do below 1e-19).
_SMALLEST_MEAN_SQUARE = {np.dtype(np.float32): 1e-31, np.dtype(np.float64): 1e-290}
_ASUM = {np.dtype(np.float32): blas.sasum, np.dtype(np.float64): blas.dasum}

Array = NDArray[np.floating]


class _Scratch(threading.local):
    """A block of truth values a thread: numpy lets other threads run while it writes."""

    def __init__(self) -> None:
        self.mask = np.empty(_BLOCK, dtype=bool)


_scratch = _Scratch()


def dense(x: Tensor) -> Tensor:
    """Return x, or a copy, such that its elements lie in memory without gaps, in any order."""
    if x.is_contiguous():
        return x
    strides = sorted(
        (stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1
    )
    expected = 1
    for stride, size in strides:
        if stride != expected:
            return x.contiguous()
        expected *= size
    return x


def _flat(x: Tensor) -> Array:
    """All elements of x as a one-dimensional array of float32 or float64, in any order."""
    if x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float32 if x.is_floating_point() else torch.float64)
    x = dense(x)
    array: Array = torch.as_strided(x, (x.numel(),), (1,)).numpy()
    return array


class _Scan(NamedTuple):
    """What one pass over the elements gives; the sums are right only for finite elements."""

    sum_of_squares: float
    absolute_sum: float
    smallest: float
    largest: float
    zeros: int


def _scan(flat: Array, *, count_zeros: bool = True) -> _Scan:
    """Read each block once from memory, and let every kernel see it while it is in the cache."""
    dot, asum, mask = np.dot, _ASUM[flat.dtype], _scratch.mask
    squares, absolutes, lows, highs, zeros = [], [], [], [], 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        for half in (block[:_HALF], block[_HALF:]) if block.size > _HALF else (block,):
            squares.append(dot(half, half))
            absolutes.append(asum(half))
        low, high = block.min(), block.max()
        lows.append(low)
        highs.append(high)
        if count_zeros and not (low > 0 or high < 0):
            zero = mask[: block.size]
            np.equal(block, 0, out=zero)
            zeros += int(np.count_nonzero(zero))
    if len(lows) > 1:  # numpy's min and max keep NaN, Python's do not
        lows, highs = [np.min(lows)], [np.max(highs)]
    return _Scan(float(sum(squares)), float(sum(absolutes)), float(lows[0]), float(highs[0]), zeros)


def _sum_of_squares(flat: Array) -> float:
    return float(
        sum(
            np.dot(half, half) for half in (flat[i : i + _HALF] for i in range(0, flat.size, _HALF))
        )
    )


def _careful_norm(flat: Array) -> float:
    """``max|x|·‖x / max|x|‖`` in float64: nothing under- or overflows."""
    wide = flat.astype(np.float64)
    largest = float(np.abs(wide).max())
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    wide /= largest
    return largest * math.sqrt(np.dot(wide, wide))


def _norm(flat: Array, sum_of_squares: float) -> float:
    """The norm from the sum of squares where that is safe, else by the careful way."""
    if (
        sum_of_squares >= _SMALLEST_MEAN_SQUARE[flat.dtype] * flat.size
        and sum_of_squares < math.inf
    ):
        return math.sqrt(sum_of_squares)
    return _careful_norm(flat)


def _num_nonfinite(flat: Array) -> float:
    return float(flat.size - np.count_nonzero(np.isfinite(flat)))


def norm(x: Tensor) -> float:
    """Return ``‖x‖₂`` over all elements; NaN for an empty tensor."""
    if x.numel() == 0:
        return math.nan
    flat = _flat(x)
    return _norm(flat, _sum_of_squares(flat))


def gradient_numbers(
    x: Tensor, *, count_zeros: bool = True
) -> tuple[float, float, float, float, float]:
    """Return norm, mean_abs, max_abs, number of zeros and number of non-finite elements of x.

    Without ``count_zeros`` the fourth number is meaningless, and the call is faster.
    """
    if x.numel() == 0:
        return (math.nan, math.nan, math.nan, math.nan, 0.0)
    flat = _flat(x)
    scan = _scan(flat, count_zeros=count_zeros)
    length = _norm(flat, scan.sum_of_squares)
    if not math.isfinite(length):
        magnitude = np.abs(flat)
        mean = float(magnitude.mean(dtype=np.float64))
        return (length, mean, float(magnitude.max()), scan.zeros, _num_nonfinite(flat))
    mean = scan.absolute_sum / flat.size
    if math.isinf(mean):  # finite elements near the largest float
        mean = float(np.abs(flat.astype(np.float64) / flat.size).sum())
    return (length, mean, max(-scan.smallest, scan.largest), scan.zeros, 0.0)


def _std(flat: Array, length: float, mean: float) -> float:
    """The population standard deviation, from the norm where that does not cancel."""
    root_mean_square = length / math.sqrt(flat.size)
    if not math.isfinite(root_mean_square):
        return math.nan
    distance = max(0.0, root_mean_square - abs(mean)) * (root_mean_square + abs(mean))
    if distance > 0.02 * root_mean_square * root_mean_square > 0:
        return math.sqrt(distance)
    centered = flat.astype(np.float64) - mean
    return _careful_norm(centered) / math.sqrt(flat.size)


def activation_numbers(
    x: Tensor, unit_axis: int | None
) -> tuple[tuple[float, float, float, float, float, float, float], NDArray[np.bool_] | None]:
    """Return the seven activation statistics of x, and which units are zero in all of x.

    Args:
        x: Any real tensor in host memory.
        unit_axis: The axis of channels or features; None where there is none.

    Returns:
        ``(norm, mean, std, min, max, number of zeros, number of non-finite elements)`` and an array
        of truth values ``[units]``, True for a unit that is zero everywhere.
    """
    if x.numel() == 0:
        return (math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, 0.0), None
    flat = _flat(x)
    scan = _scan(flat)
    length = _norm(flat, scan.sum_of_squares)
    if math.isfinite(length):
        nonfinite = 0.0
        mean = _mean(x, flat, scan)
        std = _std(flat, length, mean)
    else:
        nonfinite = _num_nonfinite(flat)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = float(flat.mean(dtype=np.float64))
        std = math.nan
    dead = _dead_units(x, unit_axis, scan)
    return (length, mean, std, scan.smallest, scan.largest, scan.zeros, nonfinite), dead


def _mean(x: Tensor, flat: Array, scan: _Scan) -> float:
    """The mean of finite elements, by the cheapest sum that is exact enough."""
    if scan.smallest >= 0:
        mean = scan.absolute_sum / flat.size
    elif x.dtype in (torch.float32, torch.float64):
        mean = float(torch.sum(x).numpy()) / flat.size
    else:
        mean = float(flat.mean(dtype=np.float64))
    if math.isfinite(mean):
        return mean
    return float((flat.astype(np.float64) / flat.size).sum())  # the plain sum overflowed


def _dead_units(x: Tensor, unit_axis: int | None, scan: _Scan) -> NDArray[np.bool_] | None:
    """Which units are zero in all of x; None without a unit axis."""
    if unit_axis is None:
        return None
    units = x.shape[unit_axis]
    if scan.zeros < x.numel() // units:  # too few zeros for even one dead unit
        return np.zeros(units, dtype=bool)
    axis = unit_axis % x.dim()
    others = [i for i in range(x.dim()) if i != axis]
    if not others:
        return (x == 0).numpy()
    dead: NDArray[np.bool_] = torch.amax(x, dim=others).eq(0).numpy()
    if not scan.smallest >= 0:
        dead = dead & torch.amin(x, dim=others).eq(0).numpy()
    return dead

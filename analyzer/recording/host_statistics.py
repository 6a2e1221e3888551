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

# Elements a block: it stays in the L2 cache while five kernels read it, and a float32 sum over one
# errs by less than 3e-6.
_BLOCK = 32768
# Blocks whose largest magnitude lies in between are squared as they are; below, squares would
# vanish (and denormal ones are slow), above, they would overflow.
_SAFE = {np.dtype(np.float32): (1e-12, 1e16), np.dtype(np.float64): (1e-120, 1e150)}
_LARGEST_EXPONENT = {np.dtype(np.float32): 120, np.dtype(np.float64): 1000}
# scipy's, since numpy's dot warns where it overflows.
_DOT = {np.dtype(np.float32): blas.sdot, np.dtype(np.float64): blas.ddot}
_ASUM = {np.dtype(np.float32): blas.sasum, np.dtype(np.float64): blas.dasum}

Array = NDArray[np.floating]


class _Scratch(threading.local):
    """A block of truth values a thread: numpy lets other threads run while it writes."""

    def __init__(self) -> None:
        self.mask = np.empty(_BLOCK, dtype=bool)


_scratch = _Scratch()
_minimum, _maximum = np.minimum.reduce, np.maximum.reduce


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
    """What one pass over the elements gives."""

    norm: float
    absolute_sum: float
    smallest: float
    largest: float
    zeros: int


def _block_sums(block: Array, largest: float) -> tuple[float, float]:
    """Norm and absolute sum of one block, by ``‖x‖ = ‖2ᵏ x‖ / 2ᵏ`` where squares are not safe.

    k is the exponent of max|x|, or near it: 2⁻ᵏ itself must not overflow for denormal numbers.
    """
    dtype = block.dtype
    low, high = _SAFE[dtype]
    if low <= largest <= high:
        return math.sqrt(_DOT[dtype](block, block)), _ASUM[dtype](block)
    if largest == 0.0 or not math.isfinite(largest):
        return largest, largest
    scale = math.ldexp(1.0, min(-math.frexp(largest)[1], _LARGEST_EXPONENT[dtype]))
    block = block * dtype.type(scale)
    return math.sqrt(_DOT[dtype](block, block)) / scale, _ASUM[dtype](block) / scale


def _scan(flat: Array, *, count_zeros: bool = True) -> _Scan:
    """Read each block once from memory, and let every kernel see it while it is in the cache."""
    if flat.size > _BLOCK:
        blocks = [
            _scan(flat[start : start + _BLOCK], count_zeros=count_zeros)
            for start in range(0, flat.size, _BLOCK)
        ]
        norms, sums, lows, highs, zeros = zip(*blocks, strict=True)
        # numpy's min and max keep NaN, Python's do not.
        smallest, largest = float(np.min(lows)), float(np.max(highs))
        total = math.nan if math.isnan(smallest) else math.hypot(*norms)
        return _Scan(total, math.fsum(sums), smallest, largest, sum(zeros))
    smallest, largest = float(_minimum(flat)), float(_maximum(flat))
    norm, absolute_sum = _block_sums(flat, -smallest if -smallest > largest else largest)
    num_zeros = 0
    if count_zeros and not (smallest > 0 or largest < 0):
        mask = _scratch.mask[: flat.size]
        np.equal(flat, 0, out=mask)
        num_zeros = int(np.count_nonzero(mask))
    return _Scan(norm, absolute_sum, smallest, largest, num_zeros)


def _num_nonfinite(flat: Array) -> float:
    return float(flat.size - np.count_nonzero(np.isfinite(flat)))


def norm(x: Tensor) -> float:
    """Return ``‖x‖₂`` over all elements; NaN for an empty tensor."""
    if x.numel() == 0:
        return math.nan
    return _norm(_flat(x))


def _norm(flat: Array) -> float:
    if flat.size > _BLOCK:
        norms = [_norm(flat[i : i + _BLOCK]) for i in range(0, flat.size, _BLOCK)]
        return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)
    low, high = _SAFE[flat.dtype]
    square: float = _DOT[flat.dtype](flat, flat)
    # A mean square within the safe range has no element that vanishes or overflows beside it.
    if low * low * flat.size <= square <= high * high:
        return math.sqrt(square)
    return _block_sums(flat, float(np.max(np.abs(flat))))[0]


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
    if not math.isfinite(scan.norm):
        magnitude = np.abs(flat)
        mean = float(magnitude.mean(dtype=np.float64))
        return (scan.norm, mean, float(magnitude.max()), scan.zeros, _num_nonfinite(flat))
    largest = -scan.smallest if -scan.smallest > scan.largest else scan.largest
    return (scan.norm, scan.absolute_sum / flat.size, largest, scan.zeros, 0.0)


def _std(flat: Array, length: float, mean: float) -> float:
    """The population standard deviation, from the norm where that does not cancel."""
    root_mean_square = length / math.sqrt(flat.size)
    if not math.isfinite(root_mean_square):
        return math.nan
    distance = max(0.0, root_mean_square - abs(mean)) * (root_mean_square + abs(mean))
    if distance > 0.02 * root_mean_square * root_mean_square > 0:
        return math.sqrt(distance)
    centered = flat.astype(np.float64)
    centered -= centered.mean()
    return _norm(centered) / math.sqrt(flat.size)


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
    if math.isfinite(scan.norm):
        nonfinite = 0.0
        mean = _mean(x, flat, scan)
        std = _std(flat, scan.norm, mean)
    else:
        nonfinite = _num_nonfinite(flat)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = float(flat.mean(dtype=np.float64))
        std = math.nan
    dead = _dead_units(x, unit_axis, scan)
    return (scan.norm, mean, std, scan.smallest, scan.largest, scan.zeros, nonfinite), dead


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

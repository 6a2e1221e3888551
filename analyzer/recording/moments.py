"""The moments of a tensor, by name; on the host without compiled code (`device` has the others).

The compiled ``_scan`` computes the same moments in one pass; one that is added here is added there.
In host memory a cheap kernel may run first and a careful one only where its result shows that it is
needed (an underflow, a NaN). BLAS and numpy kernels are used because torch's reductions of float32
on the CPU are up to 50 times slower than the memory allows (``vector_norm`` of order 1 and
infinity, ``count_nonzero``, ``var_mean``).
"""

import math
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas
from torch import Tensor

from analyzer.pooling import total_norm

__all__ = [
    "Activation",
    "Gradient",
    "dense",
    "host_activation",
    "host_gradient",
    "host_norm",
    "none_dead",
]


class Activation(NamedTuple):
    """Moments of an activation: numbers of one tensor, or arrays of those of many."""

    norm: Any
    mean: Any
    std: Any
    min: Any
    max: Any
    zeros: Any
    num_nonfinite: Any


class Gradient(NamedTuple):
    """Moments of a gradient; ``zeros`` is 0 where they are not counted."""

    norm: Any
    mean_abs: Any
    max_abs: Any
    zeros: Any
    num_nonfinite: Any


# Elements a block: several kernels read it while it is in the L2 cache, and a float32 sum over one
# errs by less than 1e-5, its root by half of that.
_BLOCK = 65536
_HALF = _BLOCK // 2
# Of two float32 sums whose difference is a smaller part than this, too few digits would be left.
_CANCELS = 0.25

Array = NDArray[np.floating]


class _Kernels(NamedTuple):
    """BLAS for one dtype; scipy's, since numpy's dot warns where it overflows.

    Blocks whose largest magnitude lies between ``low`` and ``high`` are squared as they are: with a
    mean square of at least ``low²`` the squares that vanish add up to less than a millionth. Below,
    squares would vanish (and denormal ones are slow); above, they would overflow.
    """

    dot: Any
    asum: Any
    iamax: Any
    low: float
    high: float
    largest_exponent: int


_SINGLE = _Kernels(blas.sdot, blas.sasum, blas.isamax, 1e-16, 1e16, 120)
_DOUBLE = _Kernels(blas.ddot, blas.dasum, blas.idamax, 1e-140, 1e150, 1000)
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_ONES = {dtype: np.ones(_BLOCK, dtype) for dtype in _FLOATS}
_ZEROS = {dtype: np.zeros((), dtype) for dtype in _FLOATS}
_minimum, _maximum = np.minimum.reduce, np.maximum.reduce


class _Scratch(threading.local):
    """Room for one block a thread: numpy lets other threads run while it writes."""

    def __init__(self) -> None:
        self.mask = np.empty(_BLOCK, dtype=bool)
        self.scaled = {dtype: np.empty(_BLOCK, dtype) for dtype in _FLOATS}


_scratch = _Scratch()


def _kernels(flat: Array) -> _Kernels:
    return _SINGLE if flat.itemsize == 4 else _DOUBLE


def dense(x: Tensor) -> Tensor:
    """Return x, or a copy, such that its elements lie in memory without gaps, in any order."""
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
    if x.dtype is not torch.float32 and x.dtype is not torch.float64:
        x = x.to(torch.float32 if x.is_floating_point() else torch.float64)
    if x.is_contiguous():
        return x.numpy().reshape(-1)
    x = dense(x)
    return torch.as_strided(x, (x.numel(),), (1,)).numpy()


def _blocks(flat: Array) -> list[Array]:
    if flat.size <= _BLOCK:
        return [flat]
    return [flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK)]


def _block_norm(block: Array, largest: float, kernels: _Kernels) -> float:
    """Norm by ``‖x‖ = ‖2ᵏ x‖ / 2ᵏ`` where squares are not safe; ``largest`` is max|x|.

    k is near the exponent of max|x|: 2⁻ᵏ itself must not overflow for denormal numbers.
    """
    if kernels.low <= largest <= kernels.high:
        square: float = kernels.dot(block, block)
        if square >= kernels.low * kernels.low * block.size:
            return math.sqrt(square)
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scale = math.ldexp(1.0, min(-math.frexp(largest)[1], kernels.largest_exponent))
    scaled = _scratch.scaled[block.dtype][: block.size]
    np.multiply(block, block.dtype.type(scale), scaled)
    return math.sqrt(kernels.dot(scaled, scaled)) / scale


def _num_zeros(block: Array) -> int:
    mask = _scratch.mask[: block.size]
    np.equal(block, _ZEROS[block.dtype], mask)
    return int(np.count_nonzero(mask))


def _num_nonfinite(flat: Array) -> float:
    return float(flat.size - np.count_nonzero(np.isfinite(flat)))


def host_norm(x: Tensor) -> float:
    """Return ``‖x‖₂`` over all elements; NaN for an empty tensor."""
    return _norm(_flat(x)) if x.numel() else math.nan


def _norm(flat: Array) -> float:
    kernels = _kernels(flat)
    norms = []
    for block in _blocks(flat):
        square: float = kernels.dot(block, block)
        # In a safe mean square no element vanishes or overflows beside the others.
        if kernels.low * kernels.low * block.size <= square <= kernels.high * kernels.high:
            norms.append(math.sqrt(square))
        else:
            norms.append(_block_norm(block, float(_maximum(np.abs(block))), kernels))
    return norms[0] if len(norms) == 1 else total_norm(norms)


def host_gradient(x: Tensor, *, count_zeros: bool = True) -> Gradient:
    """Return the moments of a gradient in host memory; faster without ``count_zeros``."""
    if x.numel() == 0:
        return Gradient(math.nan, math.nan, math.nan, math.nan, 0.0)
    flat = _flat(x)
    kernels = _kernels(flat)
    norms, absolute, largest, zeros = [], 0.0, 0.0, 0
    for block in _blocks(flat):
        if block.size < _HALF:  # BLAS is faster here; it may overlook a NaN, which the norm shows
            peak = abs(float(block[kernels.iamax(block)]))
        else:
            peak = max(float(_maximum(block)), -float(_minimum(block)))
        norms.append(_block_norm(block, peak, kernels))
        absolute += kernels.asum(block)
        if peak > largest:
            largest = peak
        if count_zeros:
            zeros += _num_zeros(block)
    length = norms[0] if len(norms) == 1 else total_norm(norms)
    if not math.isfinite(length):
        magnitude = np.abs(flat)
        mean = float(magnitude.mean(dtype=np.float64))
        return Gradient(_norm(flat), mean, float(magnitude.max()), zeros, _num_nonfinite(flat))
    return Gradient(length, absolute / flat.size, largest, zeros, 0.0)


def host_activation(
    x: Tensor, unit_axis: int | None
) -> tuple[Activation, NDArray[np.bool_] | None]:
    """Return the moments of an activation in host memory, and which units are zero in all of it.

    The units are those along the axis of channels or features: a mask ``[units]``, None without an
    axis.
    """
    if x.numel() == 0:
        return Activation(*(math.nan,) * 6, num_nonfinite=0.0), None
    x = x.detach()
    flat = _flat(x)
    kernels = _kernels(flat)
    norms, lows, highs, total, zeros = [], [], [], 0.0, 0
    for block in _blocks(flat):
        low, high = float(_minimum(block)), float(_maximum(block))
        norms.append(_block_norm(block, -low if -low > high else high, kernels))
        lows.append(low)
        highs.append(high)
        # Without negative elements the sum is the absolute one.
        if low >= 0:
            total += kernels.asum(block)
        else:
            total += kernels.dot(block, _ONES[block.dtype][: block.size])
        if low <= 0.0 <= high:
            zeros += _num_zeros(block)
    if len(norms) == 1:
        length, low, high = norms[0], lows[0], highs[0]
    else:  # numpy's min and max keep NaN, Python's do not
        length, low, high = total_norm(norms), float(_minimum(lows)), float(_maximum(highs))
    dead = None if unit_axis is None else _dead_units(x, unit_axis, zeros, low)
    if not math.isfinite(length):
        with np.errstate(invalid="ignore", over="ignore"):
            mean = float(flat.mean(dtype=np.float64))
        zeros = int(np.count_nonzero(flat == 0))
        return Activation(length, mean, math.nan, low, high, zeros, _num_nonfinite(flat)), dead
    mean = total / flat.size
    if not math.isfinite(mean):  # a sum of finite elements overflowed
        mean = float((flat.astype(np.float64) / flat.size).sum())
    return Activation(length, mean, _std(flat, length, mean), low, high, zeros, 0.0), dead


def _std(flat: Array, length: float, mean: float) -> float:
    """The population standard deviation, from the norm where that does not cancel."""
    root_mean_square = length / math.sqrt(flat.size)
    difference = root_mean_square - abs(mean)
    if difference > _CANCELS * root_mean_square > 0:
        return math.sqrt(difference) * math.sqrt(root_mean_square + abs(mean))
    centered = flat.astype(np.float64)
    centered -= centered.mean()
    return _norm(centered) / math.sqrt(flat.size)


@lru_cache(maxsize=64)
def none_dead(units: int) -> NDArray[np.bool_]:
    """Return the mask of units of which none is dead; read only."""
    return np.zeros(units, dtype=bool)


def _dead_units(x: Tensor, unit_axis: int, zeros: int, smallest: float) -> NDArray[np.bool_]:
    """Which units are zero in all of x."""
    units = x.shape[unit_axis]
    if zeros < x.numel() // units:  # too few zeros for even one dead unit
        return none_dead(units)
    if x.dim() == 1:
        return x.eq(0).numpy()
    axis = unit_axis % x.dim()
    if x.numel() <= _BLOCK and x.is_contiguous():  # the mask of zeros is still there
        before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        mask = _scratch.mask[: x.numel()].reshape(before, units, after)
        dead: NDArray[np.bool_] = np.logical_and.reduce(
            mask[:, :, 0] if after == 1 else np.logical_and.reduce(mask, axis=2), axis=0
        )
        return dead
    others = [i for i in range(x.dim()) if i != axis]
    dead = torch.amax(x, dim=others).eq(0).numpy()
    if not smallest >= 0:
        dead = dead & torch.amin(x, dim=others).eq(0).numpy()
    return dead

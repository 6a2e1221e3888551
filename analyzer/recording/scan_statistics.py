"""Statistics of tensors in host memory in one pass, by the compiled ``_scan``.

Where it finds no safe numbers, ``numpy_statistics`` decides.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyzer.recording import numpy_statistics
from analyzer.recording._scan import activation, gradient, squares, zero_units

__all__ = ["activation_numbers", "gradient_numbers", "norm"]


def _readable(x: Tensor) -> Tensor:
    """Return x, or a copy, as contiguous float32 or float64."""
    x = x.detach()
    if x.dtype is not torch.float32 and x.dtype is not torch.float64:
        x = x.to(torch.float32 if x.is_floating_point() else torch.float64)
    return x if x.is_contiguous() else numpy_statistics.dense(x)


def norm(x: Tensor) -> float:
    """Return ``‖x‖₂`` over all elements; NaN for an empty tensor."""
    elements = x.numel()
    if elements and x.dtype is torch.float32 and x.is_contiguous():
        return math.sqrt(squares(x.data_ptr(), elements))  # float64 holds every float32 squared
    return numpy_statistics.norm(x)


def gradient_numbers(
    x: Tensor, *, count_zeros: bool = True
) -> tuple[float, float, float, float, float]:
    """Return norm, mean_abs, max_abs, number of zeros and number of non-finite elements of x."""
    elements = x.numel()
    if elements:
        is_readable = x.dtype is torch.float32 and x.is_contiguous()
        y = x if is_readable else _readable(x)
        numbers = gradient(y.data_ptr(), elements, y.element_size())
        if numbers is not None:
            return numbers
    return numpy_statistics.gradient_numbers(x, count_zeros=count_zeros)


def activation_numbers(
    x: Tensor, unit_axis: int | None
) -> tuple[tuple[float, float, float, float, float, float, float], NDArray[np.bool_] | None]:
    """Return the seven activation statistics of x, and which units are zero in all of x.

    Args and returns are those of ``numpy_statistics.activation_numbers``.
    """
    elements = x.numel()
    if not elements:
        return numpy_statistics.activation_numbers(x, unit_axis)
    y = x if x.dtype is torch.float32 and x.is_contiguous() else _readable(x)
    numbers = activation(y.data_ptr(), elements, y.element_size())
    if numbers is None:
        return numpy_statistics.activation_numbers(x, unit_axis)
    dead = None
    if unit_axis is not None:
        units = x.shape[unit_axis]
        if numbers[5] < elements // units:  # too few zeros for even one dead unit
            dead = numpy_statistics.none_dead(units)
        else:
            dead = _dead_units(y, unit_axis % x.dim())
    return numbers, dead


def _dead_units(x: Tensor, axis: int) -> NDArray[np.bool_]:
    """Which units are zero in all of x."""
    x = x if x.is_contiguous() else x.contiguous()
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    found = zero_units(x.data_ptr(), before, x.shape[axis], after, x.element_size())
    return np.frombuffer(found, dtype=bool)

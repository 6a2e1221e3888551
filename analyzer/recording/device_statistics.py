"""Statistics of tensors on an accelerator: few launches, and nothing is waited for.

Each function returns small tensors on the device of its argument, and how the host makes the
numbers of them: it reads them later, in one copy a backward pass, on another thread.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["OnDevice", "activation_numbers", "gradient_numbers", "many_gradients", "norms"]

Arrays = Sequence[NDArray[np.float64]]


class OnDevice(NamedTuple):
    """Numbers that are still on a device.

    Args:
        tensors: What to copy to the host.
        finish: Makes the numbers of the copies, one-dimensional float64 arrays in the same order.
    """

    tensors: list[Tensor]
    finish: Callable[[Arrays], Any]


def wide_dtype(x: Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def norm(x: Tensor) -> Tensor:
    """Return ``‖x‖₂`` over all elements, without under- or overflow; a scalar on x's device."""
    wide = wide_dtype(x)
    if x.dtype != torch.float64 and wide is torch.float64:
        # float64 holds the square of every float32.
        length: Tensor = torch.linalg.vector_norm(x, dtype=wide)
        return length
    magnitude = x.abs().to(wide)
    largest = magnitude.amax()
    usable = torch.isfinite(largest) & (largest > 0)
    scale = torch.where(usable, largest, torch.ones_like(largest))
    scaled: Tensor = torch.linalg.vector_norm(magnitude / scale) * scale
    return scaled


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """Return the norm of each tensor of one device and dtype, in as few launches as possible."""
    is_plain = all(t.numel() for t in tensors) and tensors[0].dtype != torch.float64
    if is_plain and wide_dtype(tensors[0]) is torch.float64:
        return list(torch._foreach_norm(tensors, 2, dtype=torch.float64))
    return [norm(t) for t in tensors]


def _num_nonfinite(x: Tensor) -> Tensor:
    """Elements that are NaN or infinite: only for them is ``x − x`` not zero."""
    return torch.count_nonzero(x - x)


def gradient_numbers(x: Tensor) -> OnDevice:
    """Return norm, mean_abs, max_abs, zeros and non-finite elements of x."""
    if x.numel() == 0:
        return OnDevice([], lambda _: (math.nan, math.nan, math.nan, math.nan, 0.0))
    wide = wide_dtype(x)
    tensors = [
        norm(x),
        torch.linalg.vector_norm(x, 1, dtype=wide),
        torch.linalg.vector_norm(x, math.inf),
        torch.count_nonzero(x),
        _num_nonfinite(x),
    ]
    return OnDevice(tensors, _gradient(x.numel()))


def _gradient(elements: int) -> Callable[[Arrays], tuple[float, ...]]:
    def finish(arrays: Arrays) -> tuple[float, ...]:
        length, total, largest, nonzero, nonfinite = (float(array[0]) for array in arrays)
        return (length, total / elements, largest, elements - nonzero, nonfinite)

    return finish


def many_gradients(gradients: list[Tensor]) -> list[OnDevice]:
    """Return what ``gradient_numbers`` gives for each, with foreach kernels; zeros are not counted.

    Args:
        gradients: Dense tensors of one device and dtype, none of them empty.
    """
    wide = wide_dtype(gradients[0])
    lengths = norms(gradients)
    totals = torch._foreach_norm(gradients, 1, dtype=wide)
    largest = torch._foreach_norm(gradients, math.inf)
    nonfinite = [torch.count_nonzero(x) for x in torch._foreach_sub(gradients, gradients)]
    return [
        OnDevice([length, total, peak, bad], _without_zeros(x.numel()))
        for x, length, total, peak, bad in zip(
            gradients, lengths, totals, largest, nonfinite, strict=True
        )
    ]


def _without_zeros(elements: int) -> Callable[[Arrays], tuple[float, ...]]:
    def finish(arrays: Arrays) -> tuple[float, ...]:
        length, total, largest, nonfinite = (float(array[0]) for array in arrays)
        return (length, total / elements, largest, 0.0, nonfinite)

    return finish


def activation_numbers(x: Tensor, unit_axis: int | None) -> OnDevice:
    """Return the seven activation statistics of x, and which units are zero in all of x.

    Args:
        x: Any real tensor.
        unit_axis: The axis of channels or features; None where there is none.

    Returns:
        What becomes ``((norm, mean, std, min, max, zeros, non-finite), dead)`` on the host, with
        ``dead`` an array of truth values ``[units]``, or None.
    """
    if x.numel() == 0:
        return OnDevice([], lambda _: ((math.nan,) * 6 + (0.0,), None))
    wide = wide_dtype(x)
    low, high = torch.aminmax(x)
    if unit_axis is None:
        nonzero = torch.count_nonzero(x)
    else:
        others = [i for i in range(x.dim()) if i != unit_axis % x.dim()]
        nonzero = torch.count_nonzero(x, dim=others) if others else x.ne(0)
    tensors = [norm(x), x.sum(dtype=wide), low, high, nonzero]
    if x.is_floating_point():
        tensors.append(_num_nonfinite(x))
    return OnDevice(tensors, _activation(x.numel(), unit_axis is not None))


def _activation(elements: int, has_units: bool) -> Callable[[Arrays], Any]:
    def finish(arrays: Arrays) -> Any:
        length, total, low, high = (float(array[0]) for array in arrays[:4])
        nonzero = arrays[4]
        nonfinite = float(arrays[5][0]) if len(arrays) > 5 else 0.0
        mean = total / elements
        # Norm and sum are those of float64, so that the difference keeps enough digits.
        root_mean_square = length / math.sqrt(elements)
        spread = max(0.0, root_mean_square - abs(mean))
        std = math.sqrt(spread) * math.sqrt(root_mean_square + abs(mean))
        numbers = (
            length,
            mean,
            std if math.isfinite(length) else math.nan,
            low,
            high,
            elements - float(nonzero.sum()),
            nonfinite,
        )
        return numbers, (nonzero == 0 if has_units else None)

    return finish

"""A tensor in, a fixed row of numbers out: the one place where recorded statistics are computed.

How a row comes from a tensor depends on where the tensor lives (``host_statistics`` or
``device_statistics``). Rows of the micro-batches of a step are pooled as if they had been one
batch; pooling two rows gives a row again.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level

from analyzer.recording import device_statistics, host_statistics
from analyzer.recording.device_statistics import OnDevice

__all__ = [
    "HAS_QUICK_WAYS",
    "ActivationRow",
    "GradientRow",
    "activation_row",
    "gradient_row",
    "gradient_rows",
    "is_on_host",
    "pooled_activation",
    "pooled_gradient",
    "real_values",
]

Numbers: TypeAlias = Any


class ActivationRow(NamedTuple):
    """Statistics of one activation; numbers on the host already, or still ``OnDevice``.

    ``numbers`` are norm, mean, std, min, max, zeros and non-finite elements; ``dead`` is True for
    each unit that is zero in the whole tensor, None where there is no unit axis.
    """

    elements: int
    numbers: Numbers
    dead: NDArray[np.bool_] | None


class GradientRow(NamedTuple):
    """Statistics of one gradient: norm, mean_abs, max_abs, zeros, non-finite elements."""

    elements: int
    numbers: Numbers


# Named here, since compiled code has no other way to know them.
HAS_QUICK_WAYS = host_statistics.prepare(
    Tensor,
    nn.Parameter,
    torch.is_grad_enabled,
    maybe_current_level,
    partial(np.frombuffer, dtype=bool),
)


def real_values(x: Tensor) -> Tensor:
    """Return the stored values of x without autograd history; complex ones by magnitude."""
    x = x.detach()
    if x.layout is not torch.strided:
        x = x.coalesce().values() if x.is_sparse else x.values()
    if x.is_complex():
        x = x.abs()
    return x


def is_on_host(x: Tensor) -> bool:
    """Whether x can be read without waiting for a device."""
    return x.is_cpu


def activation_row(x: Tensor, unit_axis: int | None) -> ActivationRow:
    """Return the statistics of an activation; reads only, never waits for a device.

    Args:
        x: The output of a layer, any shape and dtype.
        unit_axis: Its axis of channels or features; None where there is none.
    """
    if x.is_cpu and x.dtype is torch.float32 and x.layout is torch.strided:  # the usual case
        return ActivationRow(x.numel(), *host_statistics.activation_numbers(x, unit_axis))
    x = real_values(x)
    if x.dtype is torch.bool:
        x = x.to(torch.uint8)
    if is_on_host(x):
        return ActivationRow(x.numel(), *host_statistics.activation_numbers(x, unit_axis))
    return ActivationRow(x.numel(), device_statistics.activation_numbers(x, unit_axis), None)


def gradient_row(x: Tensor, *, count_zeros: bool = True) -> GradientRow:
    """Return the statistics of a gradient; reads only, never waits for a device.

    The elements that a sparse gradient does not store are zeros.
    """
    count = x.numel()
    if x.is_cpu and x.dtype is torch.float32 and x.layout is torch.strided:  # the usual case
        if x.requires_grad:
            x = x.detach()
        return GradientRow(count, host_statistics.gradient_numbers(x, count_zeros=count_zeros))
    x = real_values(x)
    if not is_on_host(x):
        numbers = device_statistics.gradient_numbers(x)
        if x.numel() == count:
            return GradientRow(count, numbers)
        stored = x.numel()
        tensors, finish = numbers
        later = OnDevice(tensors, lambda arrays: _spread(finish(arrays), stored, count))
        return GradientRow(count, later)
    values = host_statistics.gradient_numbers(x, count_zeros=count_zeros)
    return GradientRow(count, _spread(values, x.numel(), count))


def gradient_rows(gradients: Sequence[Tensor]) -> list[GradientRow]:
    """Return the rows of many gradients without their zeros: by foreach on a device."""
    rows: list[GradientRow | None] = [None] * len(gradients)
    together: dict[Any, list[int]] = {}
    for i, gradient in enumerate(gradients):
        is_usual = gradient.layout is torch.strided and not gradient.is_complex()
        if is_on_host(gradient) or not is_usual or not gradient.numel():
            rows[i] = gradient_row(gradient, count_zeros=False)
        else:
            together.setdefault((gradient.device, gradient.dtype), []).append(i)
    for places in together.values():
        measured = device_statistics.many_gradients([gradients[i].detach() for i in places])
        for i, numbers in zip(places, measured, strict=True):
            rows[i] = GradientRow(gradients[i].numel(), numbers)
    return [row for row in rows if row is not None]


def _spread(numbers: Any, stored: int, count: int) -> Any:
    """Numbers of the stored elements → numbers of all elements of a sparse tensor."""
    if stored == count:
        return numbers
    if stored == 0:
        return (0.0, 0.0, 0.0, float(count), 0.0)
    norm, mean_abs, max_abs, zeros, nonfinite = numbers
    return (norm, mean_abs * (stored / count), max_abs, zeros + (count - stored), nonfinite)


def _low(a: float, b: float) -> float:
    return a if math.isnan(a) else b if math.isnan(b) else min(a, b)


def _high(a: float, b: float) -> float:
    return a if math.isnan(a) else b if math.isnan(b) else max(a, b)


def _length(a: float, b: float) -> float:
    """``√(a² + b²)`` that keeps NaN (``math.hypot`` drops it beside an infinity)."""
    return math.nan if math.isnan(a) or math.isnan(b) else math.hypot(a, b)


def pooled_activation(a: ActivationRow, b: ActivationRow) -> ActivationRow:
    """Return the statistics of two micro-batches taken as one batch.

    With weights ``w = n/(n_a + n_b)``: norm ``√(‖a‖² + ‖b‖²)``; mean ``μ = w_a μ_a + w_b μ_b``;
    population standard deviation ``√(w_a (σ_a² + (μ_a − μ)²) + w_b (σ_b² + (μ_b − μ)²))``; a unit
    is dead when it is dead in both. Rows must be on the host.
    """
    if not a.elements or not b.elements:
        return b if not a.elements else a
    norm_a, mean_a, std_a, low_a, high_a, zeros_a, nonfinite_a = a.numbers
    norm_b, mean_b, std_b, low_b, high_b, zeros_b, nonfinite_b = b.numbers
    weight_a, weight_b = (
        a.elements / (a.elements + b.elements),
        b.elements / (a.elements + b.elements),
    )
    mean = weight_a * mean_a + weight_b * mean_b
    std = _length(
        math.sqrt(weight_a) * _length(std_a, mean_a - mean),
        math.sqrt(weight_b) * _length(std_b, mean_b - mean),
    )
    dead: NDArray[np.bool_] | None = None
    if a.dead is not None and b.dead is not None and len(a.dead) == len(b.dead):
        dead = np.logical_and(a.dead, b.dead)
    numbers = (
        _length(norm_a, norm_b),
        mean,
        std,
        _low(low_a, low_b),
        _high(high_a, high_b),
        zeros_a + zeros_b,
        nonfinite_a + nonfinite_b,
    )
    return ActivationRow(a.elements + b.elements, numbers, dead)


def pooled_gradient(a: GradientRow, b: GradientRow) -> GradientRow:
    """Return the statistics of the gradients of two micro-batches taken as one batch.

    Rows must be on the host.
    """
    if not a.elements or not b.elements:
        return b if not a.elements else a
    norm_a, mean_a, max_a, zeros_a, nonfinite_a = a.numbers
    norm_b, mean_b, max_b, zeros_b, nonfinite_b = b.numbers
    count = a.elements + b.elements
    numbers = (
        _length(norm_a, norm_b),
        mean_a * (a.elements / count) + mean_b * (b.elements / count),
        _high(max_a, max_b),
        zeros_a + zeros_b,
        nonfinite_a + nonfinite_b,
    )
    return GradientRow(count, numbers)

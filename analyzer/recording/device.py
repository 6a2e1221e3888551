"""The moments of a tensor on an accelerator: few kernels are launched, and nothing is waited for.

The host makes the moments of small tensors that it reads later, on another thread. On a GPU one
launch of a Triton kernel reads a tensor once (`one_pass`); elsewhere torch's reductions do.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from analyzer.recording.moments import (
    Activation,
    Gradient,
    dense,
    host_activation,
    host_gradient,
)
from analyzer.recording.plain import Arrays, OnDevice

__all__ = [
    "GPUS",
    "device_activation",
    "device_gradient",
    "device_gradients",
    "device_norm",
    "device_norms",
]

# The kinds of device that Triton writes kernels for.
GPUS = ["cuda", "xpu"]
_one_pass: Any = ...  # the module of the kernel, once asked for; None where it fails


def _wide(x: Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def device_norm(x: Tensor) -> Tensor:
    """Return ``‖x‖₂`` over all elements, without under- or overflow; a scalar on x's device."""
    if x.dtype != torch.float64 and _wide(x) is torch.float64:
        # float64 holds the square of every float32.
        length: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
        return length
    magnitude = x.abs().to(_wide(x))
    largest = magnitude.amax()
    usable = torch.isfinite(largest) & (largest > 0)
    scale = torch.where(usable, largest, torch.ones_like(largest))
    scaled: Tensor = torch.linalg.vector_norm(magnitude / scale) * scale
    return scaled


def device_norms(tensors: list[Tensor]) -> list[Tensor]:
    """Return the norm of each tensor of one device and dtype, in as few launches as possible."""
    is_plain = all(t.numel() for t in tensors) and tensors[0].dtype != torch.float64
    if is_plain and _wide(tensors[0]) is torch.float64:
        return list(torch._foreach_norm(tensors, 2, dtype=torch.float64))
    return [device_norm(t) for t in tensors]


def _by_one_pass(x: Tensor) -> Any:
    """Return the module whose kernel serves this tensor; None where torch's reductions do."""
    global _one_pass
    if x.device.type not in GPUS or _one_pass is None:
        return None
    if _one_pass is ...:
        try:
            from analyzer.recording import one_pass as _one_pass
        except Exception:  # without Triton, or with one that does not suit this torch
            _one_pass = None
            return None
    return _one_pass if x.dtype in _one_pass.DTYPES and x.numel() else None


def _measured(x: Tensor, unit_axis: int | None, finish: Callable[[Any], Any]) -> OnDevice | None:
    """Return the moments by one launch; None once the kernel has failed."""
    global _one_pass
    if (by := _by_one_pass(x)) is None:
        return None
    try:
        return by.measured(dense(x.detach()), unit_axis, finish)  # type: ignore[no-any-return]
    except Exception:  # no compiler for the kernel: the reductions of torch are slower, not worse
        _one_pass = None
        return None


def device_gradient(x: Tensor, *, count_zeros: bool = True) -> OnDevice:
    """Return the moments of a gradient on a device."""
    if x.numel() == 0:
        return OnDevice([], lambda _: host_gradient(x))
    elements = x.numel()

    def finish(sums: Any) -> Gradient:
        largest = max(sums.high, -sums.low)
        zeros = sums.zeros if count_zeros else 0.0
        return Gradient(sums.norm, sums.absolute / elements, largest, zeros, sums.nonfinite)

    if (found := _measured(x, None, finish)) is not None:
        return found
    (found,) = _by_foreach([x])
    counted = [torch.count_nonzero(x)] if count_zeros else []
    return OnDevice([*found.tensors, *counted], found.finish)


def device_gradients(gradients: list[Tensor]) -> list[OnDevice]:
    """Return the moments of many gradients in few launches; zeros are not counted.

    They are dense tensors of one device and dtype, none of them empty.
    """
    if _by_one_pass(gradients[0]) is None:
        return _by_foreach(gradients)
    return [device_gradient(x, count_zeros=False) for x in gradients]


def _by_foreach(gradients: list[Tensor]) -> list[OnDevice]:
    totals = torch._foreach_norm(gradients, 1, dtype=_wide(gradients[0]))
    largest = torch._foreach_norm(gradients, math.inf)
    # Only for an element that is NaN or infinite is ``x − x`` not zero.
    odd = [torch.count_nonzero(x) for x in torch._foreach_sub(gradients, gradients)]
    moments = zip(device_norms(gradients), totals, largest, odd, strict=True)
    return [
        OnDevice(list(some), _gradient(x.numel()))
        for x, some in zip(gradients, moments, strict=True)
    ]


def _gradient(elements: int) -> Callable[[Arrays], Gradient]:
    def finish(arrays: Arrays) -> Gradient:
        length, total, largest, nonfinite, *nonzero = (float(array[0]) for array in arrays)
        zeros = elements - nonzero[0] if nonzero else 0.0
        return Gradient(length, total / elements, largest, zeros, nonfinite)

    return finish


def device_activation(x: Tensor, unit_axis: int | None) -> OnDevice:
    """Return what becomes the result of `host_activation` on the host."""
    if x.numel() == 0:
        return OnDevice([], lambda _: host_activation(x, unit_axis))
    elements = x.numel()

    def finish(sums: Any) -> Any:
        std = _spread_of(sums.norm, sums.total / elements, elements)
        numbers = (sums.norm, sums.total / elements, std, sums.low, sums.high, sums.zeros)
        return Activation(*numbers, num_nonfinite=sums.nonfinite), sums.dead

    if (found := _measured(x, unit_axis, finish)) is not None:
        return found
    low, high = torch.aminmax(x)
    if unit_axis is None:
        nonzero = torch.count_nonzero(x)
    else:
        others = [i for i in range(x.dim()) if i != unit_axis % x.dim()]
        nonzero = torch.count_nonzero(x, dim=others) if others else x.ne(0)
    tensors = [device_norm(x), x.sum(dtype=_wide(x)), low, high, nonzero]
    if x.is_floating_point():
        tensors.append(torch.count_nonzero(x - x))
    return OnDevice(tensors, _activation(x.numel(), unit_axis is not None))


def _activation(elements: int, has_units: bool) -> Callable[[Arrays], Any]:
    def finish(arrays: Arrays) -> Any:
        length, total, low, high = (float(array[0]) for array in arrays[:4])
        nonzero = arrays[4]
        mean = total / elements
        moments = Activation(
            norm=length,
            mean=mean,
            std=_spread_of(length, mean, elements),
            min=low,
            max=high,
            zeros=elements - float(nonzero.sum()),
            num_nonfinite=float(arrays[5][0]) if len(arrays) > 5 else 0.0,
        )
        return moments, (nonzero == 0 if has_units else None)

    return finish


def _spread_of(length: float, mean: float, elements: int) -> float:
    """The standard deviation from float64 sums, so that the difference keeps enough digits."""
    if not math.isfinite(length):
        return math.nan
    root_mean_square = length / math.sqrt(elements)
    difference = max(0.0, root_mean_square - abs(mean))
    return math.sqrt(difference) * math.sqrt(root_mean_square + abs(mean))

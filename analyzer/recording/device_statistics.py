"""Statistics of tensors on an accelerator: everything is computed there, nothing is waited for.

Each function returns small tensors on the device of its argument. The host reads them later, in
one copy a step, on another thread.
"""

import torch
from torch import Tensor

__all__ = ["activation_numbers", "gradient_numbers", "norm", "norms"]


def wide_dtype(x: Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def norm(x: Tensor) -> Tensor:
    """Return ``‖x‖₂`` over all elements, without under- or overflow; a scalar on x's device."""
    wide = wide_dtype(x)
    if x.numel() == 0:
        return torch.full((), torch.nan, dtype=wide, device=x.device)
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
    """Return the norm of each tensor with as few launches as the device allows."""
    plain = [t for t in tensors if t.dtype != torch.float64 and t.numel() and not t.is_sparse]
    if len(plain) != len(tensors) or not tensors or tensors[0].device.type == "mps":
        return [norm(t) for t in tensors]
    return list(torch._foreach_norm(tensors, 2, dtype=torch.float64))


def gradient_numbers(x: Tensor) -> Tensor:
    """Return ``[norm, mean_abs, max_abs, zeros, non-finite elements]`` of x."""
    wide = wide_dtype(x)
    if x.numel() == 0:
        return torch.tensor([torch.nan] * 4 + [0.0], dtype=wide).to(x.device, non_blocking=True)
    magnitude = x.abs()
    return torch.stack(
        [
            norm(x),
            magnitude.sum(dtype=wide) / x.numel(),
            magnitude.amax().to(wide),
            x.eq(0).sum().to(wide),
            torch.isfinite(x).logical_not().sum().to(wide),
        ]
    )


def activation_numbers(x: Tensor, unit_axis: int | None) -> tuple[Tensor, Tensor | None]:
    """Return ``[norm, mean, std, min, max, zeros, non-finite]`` of x and which units are zero.

    Args:
        x: Any real tensor.
        unit_axis: The axis of channels or features; None where there is none.

    Returns:
        A tensor ``[7]``, and truth values ``[units]`` that are True for a unit that is zero
        everywhere; both on the device of x.
    """
    wide = wide_dtype(x)
    if x.numel() == 0:
        empty = torch.tensor([torch.nan] * 6 + [0.0], dtype=wide)
        return empty.to(x.device, non_blocking=True), None
    mean = x.sum(dtype=wide) / x.numel()
    numbers = torch.stack(
        [
            norm(x),
            mean,
            norm(x.to(wide) - mean) / x.numel() ** 0.5,
            x.amin().to(wide),
            x.amax().to(wide),
            x.eq(0).sum().to(wide),
            torch.isfinite(x).logical_not().sum().to(wide)
            if x.is_floating_point()
            else torch.zeros((), dtype=wide, device=x.device),
        ]
    )
    if unit_axis is None:
        return numbers, None
    others = [i for i in range(x.dim()) if i != unit_axis % x.dim()]
    alive = x.ne(0)
    return numbers, (alive.any(dim=others) if others else alive).logical_not()

"""Dot products of float32 gradients in host memory, in one pass where there is a compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from analyzer.joins import _products as _compiled
except ImportError:  # installed without a compiler
    _compiled = None  # type: ignore[assignment]

__all__ = ["are_in_host_memory", "products", "squares"]

_BLOCK = 1 << 15


def are_in_host_memory(parts: Sequence[Tensor]) -> bool:
    """Whether all parts are plain float32 tensors whose memory can be read here."""
    return all(
        type(part) is Tensor
        and part.dtype is torch.float32
        and part.device.type == "cpu"
        and part.layout is torch.strided
        and not part.is_neg()
        for part in parts
    )


def squares(part: Tensor) -> float:
    """Return ``Σ a²`` of float32 elements in float64, where nothing under- or overflows."""
    part = _dense(part)
    if _compiled is not None:
        return _compiled.squares(part.data_ptr(), part.numel())
    flat = part.numpy().reshape(-1)
    total = 0.0
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.float64)
        total += float(np.dot(block, block))
    return total


def products(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Return ``Σ a²``, ``Σ a b`` and ``Σ b²`` of float32 elements in float64.

    The three are made alike, so that they cancel to zero exactly where ``b = −a``.
    """
    a, b = _dense(a), _dense(b)
    if _compiled is not None:
        return _compiled.products(a.data_ptr(), b.data_ptr(), a.numel())
    sums = np.zeros(3)
    flat_a, flat_b = a.numpy().reshape(-1), b.numpy().reshape(-1)
    for start in range(0, len(flat_a), _BLOCK):
        x: Any = flat_a[start : start + _BLOCK].astype(np.float64)
        y: Any = flat_b[start : start + _BLOCK].astype(np.float64)
        sums += [np.dot(x, x), np.dot(x, y), np.dot(y, y)]
    return float(sums[0]), float(sums[1]), float(sums[2])


def _dense(part: Tensor) -> Tensor:
    return part.detach().contiguous()

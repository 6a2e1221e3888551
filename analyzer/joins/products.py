"""Norms, dot products, cosine and shares of the gradients at a join, without under- or overflow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyzer.vocabulary import quantities_of

try:
    import analyzer.joins._products as _compiled
except ImportError:  # installed without a compiler
    _compiled = None  # type: ignore[assignment]

__all__ = [
    "SPLIT_COLUMNS",
    "JoinGradients",
    "are_in_host_memory",
    "norm_of",
    "norms_and_dots",
    "products",
    "split_products",
    "split_statistics",
    "squares",
    "statistics_of_products",
]

SPLIT_COLUMNS = tuple(quantity.key for quantity in quantities_of("splits"))
Parts = tuple[Tensor, ...]


class JoinGradients(NamedTuple):
    """What a backward pass computed at one join; None where it computed nothing.

    Each is a tuple of tensors, because a fork may be several outputs of one node (the chunks of a
    split tensor); shortcut, branch and fork then have the same number of parts.

    Args:
        join: ∂L/∂z, z the sum or concatenation.
        shortcut: g_s, the part of ∂L/∂x that arrives by the shortcut's edges, x the fork.
        branch: g_b, the part of ∂L/∂x that arrives by the branch's edges.
        fork: ∂L/∂x with all readers of x.
    """

    join: Parts | None
    shortcut: Parts | None
    branch: Parts | None
    fork: Parts | None


def split_products(gradients: JoinGradients) -> Tensor:
    """Return the norms and dot products of one join's gradients, on their device.

    Computed in float64 of values divided by their largest, so that nothing under- or overflows. No
    element may be written while this runs.

    Returns:
        Seven float64 numbers: ‖∂L/∂z‖, ‖g_s‖, ‖g_b‖, ‖∂L/∂x‖, then the dot products ss, sb, bb in
        a unit common to the three. NaN where the backward pass computed nothing, and where a
        gradient holds NaN.

    Raises:
        TypeError: If a gradient is of a subclass, as a ``DTensor``: to add up its parts the
            processes would have to talk to one another.
    """
    given = [part for parts in gradients for part in parts or ()]
    for part in given:
        if type(part) is not Tensor:
            raise TypeError(f"a gradient is a {type(part).__name__}, not a plain tensor")
    if not given:
        return torch.full((7,), torch.nan, dtype=torch.float64)
    if are_in_host_memory(given):
        return torch.tensor(_host_products(gradients), dtype=torch.float64)
    none = torch.full((), torch.nan, dtype=torch.float64, device=given[0].device)
    norms = [none if parts is None else _norm(parts) for parts in gradients]
    if gradients.shortcut is None or gradients.branch is None:
        return torch.stack([*norms, none, none, none])
    return torch.stack([*norms, *_dot_products(gradients.shortcut, gradients.branch)])


def _host_products(gradients: JoinGradients) -> list[float]:
    """The seven numbers of float32 gradients on the host: squares in float64 need no scale."""
    join, shortcut, branch, fork = gradients
    if shortcut is None or branch is None:
        return [*map(_host_norm, gradients), math.nan, math.nan, math.nan]
    pairs = zip(shortcut, branch, strict=True)
    ss, sb, bb = (sum(parts) for parts in zip(*(products(s, b) for s, b in pairs), strict=True))
    return [_host_norm(join), math.sqrt(ss), math.sqrt(bb), _host_norm(fork), ss, sb, bb]


def _host_norm(parts: Parts | None) -> float:
    return math.nan if parts is None else math.sqrt(sum(squares(part) for part in parts))


def _flat(part: Tensor) -> Tensor:
    part = part.detach()
    if part.device.type == "mps":  # no float64 there
        part = part.cpu()
    return (torch.view_as_real(part) if part.is_complex() else part).reshape(-1).double()


def _scale(parts: Iterable[Tensor]) -> Tensor:
    """Return the largest magnitude, 1 where that is 0 or not finite, as a power of two."""
    peaks = [part.abs().max() for part in parts if part.numel()]
    if not peaks:
        return torch.ones((), dtype=torch.float64)
    peak = torch.stack(peaks).max()
    exponent = torch.frexp(torch.where(peak.isfinite() & (peak > 0), peak, 1.0)).exponent
    # Within what float64 can hold and divide by, subnormal peaks included.
    return torch.ldexp(torch.ones_like(peak), exponent.clamp(-1000, 1000))


def _norm(parts: Parts) -> Tensor:
    flat = [_flat(part) for part in parts]
    scale = _scale(flat)
    return scale * torch.stack([(part / scale).square().sum() for part in flat]).sum().sqrt()


def norm_of(part: Tensor) -> float:
    """Return ``‖x‖₂`` over all elements of any tensor, without under- or overflow."""
    return _host_norm((part,)) if are_in_host_memory([part]) else float(_norm((part,)))


def _dot_products(shortcut: Parts, branch: Parts) -> tuple[Tensor, Tensor, Tensor]:
    s, b = [_flat(part) for part in shortcut], [_flat(part) for part in branch]
    scale = _scale([*s, *b])
    s, b = [part / scale for part in s], [part / scale for part in b]

    def dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
        # Multiplied and summed alike for all three, so that g_b = −g_s cancels to zero exactly.
        return torch.stack([(x * y).sum() for x, y in zip(one, other, strict=True)]).sum()

    return dot(s, s), dot(s, b), dot(b, b)


def split_statistics(ss: float, sb: float, bb: float) -> tuple[float | None, float | None]:
    """Return how shortcut and branch gradient of a fork compare.

    ``cosine = sb / √(ss · bb)`` and ``share = (ss + sb) / (ss + 2 sb + bb)``: the projection of g_s
    on g_s + g_b. The shares of shortcut and branch add to 1; a share can exceed 1 when the two
    cancel, and is exactly 1 when g_b = 0. ss = ⟨g_s, g_s⟩, sb = ⟨g_s, g_b⟩, bb = ⟨g_b, g_b⟩, in any
    unit common to the three.

    Returns:
        The cosine, None where one of the two gradients is zero; the shortcut's share, None where
        g_s + g_b = 0. Both without unit; NaN where a product is NaN.
    """
    lengths = ss**0.5 * bb**0.5
    total = ss + 2 * sb + bb
    cosine = None if lengths == 0 else sb / lengths
    share = None if total == 0 else (ss + sb) / total
    if cosine is not None and not abs(cosine) <= 1.0:
        # Rounding may leave the interval by one unit; NaN stays as it is.
        cosine = cosine if cosine != cosine else (1.0 if cosine > 0 else -1.0)
    return cosine, share


def statistics_of_products(gradients: JoinGradients, products: list[float]) -> list[Any]:
    """Return the first six of `SPLIT_COLUMNS` from the seven numbers of `split_products`.

    Of the gradients only which of them are None counts: what the backward pass did not compute.
    """
    given = zip(gradients, products[:4], strict=True)
    norms = [None if parts is None else norm for parts, norm in given]
    if gradients.shortcut is None or gradients.branch is None:
        return [*norms, None, None]
    return [*norms, *split_statistics(*products[4:])]


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
    part = part.detach().contiguous()
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
    a, b = a.detach().contiguous(), b.detach().contiguous()
    if _compiled is not None:
        return _compiled.products(a.data_ptr(), b.data_ptr(), a.numel())
    sums = np.zeros(3)
    flat_a, flat_b = a.numpy().reshape(-1), b.numpy().reshape(-1)
    for start in range(0, len(flat_a), _BLOCK):
        x: Any = flat_a[start : start + _BLOCK].astype(np.float64)
        y: Any = flat_b[start : start + _BLOCK].astype(np.float64)
        sums += [np.dot(x, x), np.dot(x, y), np.dot(y, y)]
    return float(sums[0]), float(sums[1]), float(sums[2])


def norms_and_dots(
    values: Sequence[Tensor], factors: Sequence[float], *, with_dots: bool = True
) -> list[float] | Tensor:
    """Return the norms of some multiples of tensors, then the dot products of each two of them.

    The tensors are of one size where dot products are wanted. On the host the result is numbers; on
    a device it stays there, and is not waited for.
    """
    values = [_real(value.detach()) for value in values]
    pairs = list(combinations(range(len(values)), 2)) if with_dots else []
    on_host = all(value.is_cpu for value in values)
    norms, dots = (_on_host if on_host else _on_device)(values, pairs)
    found = [norm * abs(factor) for norm, factor in zip(norms, factors, strict=True)]
    found += [dot * factors[i] * factors[j] for dot, (i, j) in zip(dots, pairs, strict=True)]
    return found if on_host else torch.stack(found)


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value.resolve_neg()


def _on_host(values: list[Tensor], pairs: list[tuple[int, int]]) -> tuple[list[Any], list[Any]]:
    if any(value.dtype is torch.float64 for value in values):
        wide = [value.double().reshape(-1) for value in values]
        dots = [float(torch.dot(wide[i], wide[j])) for i, j in pairs]
        return [norm_of(value) for value in wide], dots
    values = [value.float() for value in values]
    if len(values) == 2 and pairs:  # the usual case in one pass
        ss, sb, bb = products(*values)
        return [math.sqrt(ss), math.sqrt(bb)], [sb]
    return [math.sqrt(squares(v)) for v in values], [
        products(values[i], values[j])[1] for i, j in pairs
    ]


def _on_device(values: list[Tensor], pairs: list[tuple[int, int]]) -> tuple[list[Any], list[Any]]:
    wide = torch.float32 if values[0].device.type == "mps" else torch.float64
    norms = [torch.linalg.vector_norm(value, dtype=wide) for value in values]
    flat = [value if value.dtype is wide else value.float() for value in values]
    dots = [(flat[i].reshape(-1) * flat[j].reshape(-1)).sum(dtype=wide) for i, j in pairs]
    return norms, dots

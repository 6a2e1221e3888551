"""Singular values of a linear map that is known by its products alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ExtremeValues", "LinearMap", "extreme_singular_values"]


class LinearMap(Protocol):
    """A matrix ``[rows, columns]`` by its two products, vectors in float64."""

    rows: int
    columns: int
    epsilon: float

    def times(self, vector: Tensor) -> Tensor:
        """Return ``A v``."""

    def transposed_times(self, vector: Tensor) -> Tensor:
        """Return ``Aᵀ v``."""


@dataclass(frozen=True)
class ExtremeValues:
    """The singular values found, and how far they may be off.

    Args:
        values: Largest and smallest, falling; all of them where the iteration reached the end.
        orders: Place of each among all, 0 for the largest.
        residuals: Largest ``‖Aᵀu − σ v‖`` among the largest and among the smallest values, in units
            of the largest: how far they may be off.
        num_steps: Products with A, and as many with Aᵀ.
    """

    values: list[float]
    orders: list[int]
    residuals: tuple[float, float]
    num_steps: int


class _Vectors:
    """Orthonormal vectors, one after the other."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._rows = torch.empty(16, size, dtype=torch.float64)
        self._generator = generator
        self._count = 0

    def remainder(self, vector: Tensor) -> float:
        """Remove from a vector what lies in these, and normalize it; return its length before."""
        rows = self._rows[: self._count]
        for _ in range(2):
            vector.sub_((rows @ vector) @ rows)
        length = float(vector.norm())
        if length > 0:
            vector.div_(length)
        return length

    def append(self, vector: Tensor) -> Tensor:
        """Add a vector that `remainder` has made orthonormal to these; return it."""
        if self._count == len(self._rows):
            self._rows = torch.cat([self._rows, torch.empty_like(self._rows)])
        self._rows[self._count] = vector
        self._count += 1
        return vector

    def append_random(self) -> Tensor:
        """Add a random vector that is orthonormal to these; return it."""
        size = self._rows.shape[1]
        vector = torch.randn(size, generator=self._generator, dtype=torch.float64)
        self.remainder(vector)
        return self.append(vector)


@dataclass
class _Bidiagonal:
    """The matrix between the two bases."""

    diagonal: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def triplets(self) -> tuple[Tensor, Tensor]:
        """Return its singular values, falling, and the residual of each."""
        middle = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        middle = middle + torch.diag(torch.tensor(self.upper[:-1], dtype=torch.float64), 1)
        left, values, _ = torch.linalg.svd(middle)
        return values, self.upper[-1] * left[-1].abs()


def extreme_singular_values(
    matrix: LinearMap, k: int, *, tolerance: float, max_steps: int, seed: int = 0
) -> ExtremeValues:
    """Return the largest and smallest singular values of a linear map.

    Golub–Kahan–Lanczos bidiagonalization with full reorthogonalization, begun on the smaller side.
    A subspace that is exhausted is left through a random vector, so that an identity has all its
    values 1. Of equal singular values of other maps only some may be seen.

    Args:
        matrix: The map; at least one row and one column.
        k: How many from each end.
        tolerance: Stop when all 2k residuals are below this, in units of the largest value.
        max_steps: Stop then in any case, at least 2k.
        seed: Seed of the first vector; the global random state is not touched.

    Returns:
        2k values, or all ``min(rows, columns)``. NaN where a product is not finite.

    Reference:
        Golub and Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix.
    """
    is_wide = matrix.columns > matrix.rows
    forward = matrix.transposed_times if is_wide else matrix.times
    back = matrix.times if is_wide else matrix.transposed_times
    size, other = sorted((matrix.rows, matrix.columns))
    generator = torch.Generator().manual_seed(seed)
    lefts, rights = _Vectors(other, generator), _Vectors(size, generator)
    last = min(size, max(max_steps, 2 * k))
    middle, scale = _Bidiagonal(), 0.0
    right = rights.append_random()
    for step in range(1, last + 1):
        left = forward(right)
        length = lefts.remainder(left)
        scale = max(scale, length)
        is_in = length > 16 * matrix.epsilon * scale
        left = lefts.append(left) if is_in or length != length else lefts.append_random()
        middle.diagonal.append(length if is_in else 0.0)
        right = back(left)
        beyond = rights.remainder(right)
        if length + beyond != length + beyond:
            return _not_finite(k, size, step)
        scale = max(scale, beyond)
        is_exhausted = step == size or not beyond > 16 * matrix.epsilon * scale
        middle.upper.append(0.0 if is_exhausted else beyond)
        if step == last or (step >= 2 * k and (step % 5 == 0 or is_exhausted)):
            found = _ends(*middle.triplets(), k, size)
            if step == last or max(found.residuals) <= tolerance:
                return found
        right = rights.append_random() if is_exhausted else rights.append(right)
    raise AssertionError("the last step returns")


def _ends(values: Tensor, residuals: Tensor, k: int, size: int) -> ExtremeValues:
    """Return the k values at either end; all where there are no more than 2k."""
    count = len(values)
    is_whole = count == size
    chosen = list(range(count)) if is_whole else [*range(k), *range(count - k, count)]
    orders = [place if place < k or is_whole else size - count + place for place in chosen]
    largest = values[0].item() or 1.0
    worst = residuals[:k].max().item() / largest, residuals[-k:].max().item() / largest
    return ExtremeValues(values[chosen].tolist(), orders, worst, count)


def _not_finite(k: int, size: int, step: int) -> ExtremeValues:
    orders = list(range(size)) if size <= 2 * k else [*range(k), *range(size - k, size)]
    return ExtremeValues([float("nan")] * len(orders), orders, (float("nan"),) * 2, step)

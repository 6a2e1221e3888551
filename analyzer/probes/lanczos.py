"""Eigenvalues of a symmetric matrix that is known by its products alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.special import stdtrit
from torch import Tensor

__all__ = [
    "EigenPairs",
    "ExtremeValues",
    "LinearMap",
    "Quadrature",
    "end_eigenpairs",
    "extreme_singular_values",
    "quadrature",
    "student_quantile",
]


_RANDOM_PART = 0.3
_SETTLED = 1e-3
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EigenPairs:
    """Eigenvalues from both ends of a spectrum, with vectors of length 1, one row a value.

    Args:
        values: The largest, falling, then the smallest, falling; NaN where not finite.
        errors: How far each may be off: its residual r, or ``r² / gap`` where it stands apart.
        basis: All vectors that were tried, one row a product.
    """

    values: list[float]
    vectors: Tensor
    errors: list[float]
    basis: Tensor


@dataclass(frozen=True)
class Quadrature:
    """A spectrum as points with weights that add to 1 (stochastic Lanczos quadrature).

    ``trace`` is Hutchinson's estimate, ``trace_error`` its standard error, ``trace_margin`` half of
    its 95 % interval by Student's t, since a few vectors tell little of their own spread; NaN for
    one vector.
    """

    nodes: list[float]
    weights: list[float]
    trace: float
    trace_error: float
    trace_margin: float


class _Vectors:
    """Orthonormal vectors, one after the other, of the size, type and device of another one."""

    def __init__(self, like: Tensor) -> None:
        self.rows = like.new_empty(9, len(like))
        self._count = 0

    def remainder(self, vector: Tensor) -> float:
        """Remove from a vector what lies in these, and normalize it; return its length before."""
        for _ in range(2):
            basis = self.rows[: self._count]
            vector.sub_((basis @ vector) @ basis)
        length = float(vector.norm())
        if length > 0:
            vector.div_(length)
        return length

    def append(self, vector: Tensor) -> Tensor:
        """Add a vector that `remainder` has made orthonormal to these; return it."""
        if self._count == len(self.rows):
            self.rows = torch.cat([self.rows, torch.empty_like(self.rows)])
        self.rows[self._count] = vector
        self._count += 1
        return vector

    def append_random(self, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Add a random vector, drawn in a type, that is orthonormal to these; return it."""
        size = self.rows.shape[1]
        vector = torch.randn(size, generator=generator, dtype=dtype).to(self.rows)
        self.remainder(vector)
        return self.append(vector)


class _Steps:
    """Lanczos with full reorthogonalization.

    `diagonal` and `off` are the matrix in the basis of the steps made so far.
    """

    def __init__(self, product: Product, start: Tensor, seed: int) -> None:
        self._product = product
        self._generator = torch.Generator().manual_seed(seed)
        self._epsilon = torch.finfo(start.dtype).eps
        self.basis = _Vectors(start)
        self.basis.append(start / start.norm())
        self.diagonal: list[float] = []
        self.off: list[float] = []
        self.num_exhausted = 0
        self._scale = 0.0

    def advance(self) -> None:
        """Make one step: one product."""
        last = self.basis.rows[len(self.diagonal)]
        vector = self._product(last)
        self.diagonal.append(float(last @ vector))
        length = self.basis.remainder(vector)
        self._scale = max(self._scale, abs(self.diagonal[-1]), length)
        is_exhausted = not length > 16 * self._epsilon * self._scale
        self.off.append(0.0 if is_exhausted and length == length else length)
        if is_exhausted:
            # Nothing new in this subspace: eigenvalues that occur twice are in the rest.
            self.num_exhausted += 1
            self.basis.append_random(self._generator, torch.float32)
        else:
            self.basis.append(vector)

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Return eigenvalues, rising, and vectors in columns."""
        matrix = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        beside = torch.tensor(self.off[:-1], dtype=torch.float64)
        values, vectors = torch.linalg.eigh(matrix + torch.diag(beside, 1) + torch.diag(beside, -1))
        return values, vectors

    @property
    def is_finite(self) -> bool:
        """Whether the last step gave numbers."""
        return math.isfinite(self.diagonal[-1] + self.off[-1])


def end_eigenpairs(
    product: Product,
    like: Tensor,
    *,
    largest: int,
    smallest: int = 0,
    start: Tensor | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 100,
    enough: Callable[[EigenPairs], bool] | None = None,
    seed: int = 0,
) -> EigenPairs:
    """Return eigenpairs from the ends of the spectrum of a symmetric matrix.

    Lanczos; it stops when each requested value is within ``tolerance`` of the largest magnitude, by
    the residual r or, where a Ritz value stands apart from the others, by ``r² / gap``. That gap is
    between the values found so far: a value that has a twin closer than r may be off by r, which is
    at most ``sqrt(tolerance · gap)``. A smaller tolerance tells the two apart.

    ``like`` is a vector of the matrix's size, type and device; ``start`` one that leans to the
    requested vectors, where such is known. There are fewer pairs where the matrix is smaller.
    With ``enough`` the first value alone has to settle; then it is asked every fourth step, with
    what is found so far.

    Reference:
        Parlett (1998), The symmetric eigenvalue problem, chapters 11 and 13.
    """
    size = len(like)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(size, generator=generator).to(like)
    if start is not None and (length := float(start.norm())) > 0:
        # The random part stays: the vector given may lack a direction altogether.
        first = start / length + _RANDOM_PART * first / first.norm()
    last = min(size, max(max_steps, largest + smallest))
    steps = _Steps(product, first, seed + 1)
    for count in range(1, last + 1):
        steps.advance()
        if not steps.is_finite:
            break
        values, vectors = steps.eigen()
        chosen = [*range(count - 1, max(count - 1 - largest, -1), -1)]
        chosen += [n for n in range(min(smallest, count) - 1, -1, -1) if n not in chosen]
        errors = _errors(values, steps.off[-1] * vectors[-1].abs(), chosen)
        limit = tolerance * values.abs().max().item()
        # An exhausted subspace holds each eigenvalue once, however often it occurs.
        is_open = steps.off[-1] > 0 or steps.num_exhausted >= largest + smallest
        is_close = max(errors if enough is None else errors[:1]) <= limit
        is_enough = is_open and count >= largest + smallest and is_close
        if count == last or (is_enough and (enough is None or count % 4 == 0)):
            rows = steps.basis.rows[:count]
            found = EigenPairs(
                values[chosen].tolist(), vectors[:, chosen].T.to(like) @ rows, errors, rows
            )
            if count == last or enough is None or enough(found):
                return found
    nan = [float("nan")] * min(largest + smallest, size)
    missing = like.new_full((len(nan), size), float("nan"))
    return EigenPairs(nan, missing, nan, missing)


def quadrature(
    product: Product, like: Tensor, *, num_vectors: int, num_steps: int, seed: int = 0
) -> Quadrature:
    """Return the spectral density of a symmetric matrix as weighted points, and its trace.

    Each vector of random signs gives the points of its Lanczos matrix, weighted by the squared
    first components of the eigenvectors. ``vᵀHv`` of the same vectors estimates the trace.

    Reference:
        Ubaru, Chen, Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature;
        Ghorbani et al. (2019), An investigation into neural net optimization via Hessian
        eigenvalue density.
    """
    generator = torch.Generator().manual_seed(seed)
    nodes: list[float] = []
    weights: list[float] = []
    traces = []
    for number in range(num_vectors):
        signs = torch.randint(2, (len(like),), generator=generator) * 2 - 1
        steps = _Steps(product, signs.to(like), seed + number + 1)
        for _ in range(min(num_steps, len(like))):
            steps.advance()
            # What lies behind the end of the vector's own subspace has no weight.
            if not steps.is_finite or steps.off[-1] == 0:
                break
        traces.append(steps.diagonal[0] * len(like))
        if not steps.is_finite:
            nodes.append(float("nan"))
            weights.append(1 / num_vectors)
            continue
        values, vectors = steps.eigen()
        nodes += values.tolist()
        weights += (vectors[0].square() / num_vectors).tolist()
    return Quadrature(nodes, weights, *_mean_and_error(traces))


def _errors(values: Tensor, residuals: Tensor, chosen: Sequence[int]) -> list[float]:
    """Bound the errors of Ritz values by their residuals and their gaps."""
    errors = []
    for place in chosen:
        residual = residuals[place].item()
        gaps = (values - values[place]).abs()
        gaps[place] = float("inf")
        gap = gaps.min().item() if len(values) > 1 else 0.0
        # The quadratic bound means something only where the value stands apart.
        errors.append(residual * residual / gap if residual < gap / 2 else residual)
    return errors


def _mean_and_error(values: list[float]) -> tuple[float, float, float]:
    """Return the mean, its standard error, and half of its 95 % interval."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    error = (variance / count) ** 0.5
    return mean, error, student_quantile(count - 1) * error


def student_quantile(freedom: int, share: float = 0.95) -> float:
    """Return how far from 0 the middle ``share`` of Student's t reaches, by degrees of freedom."""
    return float(stdtrit(freedom, (1 + share) / 2))


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
        values: Largest and smallest, falling; all of them where the iteration reached the end. NaN
            where the residual is above 1e-3 of the largest: not settled, and no bound of anything.
        orders: Place of each among all, 0 for the largest.
        residuals: Largest ``‖Aᵀu − σ v‖`` among the largest and among the smallest values, in units
            of the largest.
        num_steps: Products with A, and as many with Aᵀ.
    """

    values: list[float]
    orders: list[int]
    residuals: tuple[float, float]
    num_steps: int


def _triplets(diagonal: list[float], upper: list[float]) -> tuple[Tensor, Tensor]:
    """Return singular values of the matrix between the two bases, falling, and their residuals."""
    middle = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    middle = middle + torch.diag(torch.tensor(upper[:-1], dtype=torch.float64), 1)
    left, values, _ = torch.linalg.svd(middle)
    return values, upper[-1] * left[-1].abs()


def extreme_singular_values(
    matrix: LinearMap, k: int, *, tolerance: float, max_steps: int, seed: int = 0
) -> ExtremeValues:
    """Return k singular values from each end of a linear map; all ``min(rows, columns)`` up to 2k.

    Golub–Kahan–Lanczos bidiagonalization with full reorthogonalization, begun on the smaller side.
    It stops when all 2k residuals are below ``tolerance``, in units of the largest value. A
    subspace that is exhausted is left through a random vector, so that an identity has all its
    values 1. Of equal singular values of other maps only some may be seen. NaN where a product is
    not finite.

    Reference:
        Golub and Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix.
    """
    is_wide = matrix.columns > matrix.rows
    forward = matrix.transposed_times if is_wide else matrix.times
    back = matrix.times if is_wide else matrix.transposed_times
    size, other = sorted((matrix.rows, matrix.columns))
    generator = torch.Generator().manual_seed(seed)
    lefts, rights = (_Vectors(torch.empty(n, dtype=torch.float64)) for n in (other, size))
    drawn = generator, torch.float64
    last = min(size, max(max_steps, 2 * k))
    diagonal: list[float] = []
    upper: list[float] = []
    scale = 0.0
    right = rights.append_random(*drawn)
    for step in range(1, last + 1):
        left = forward(right)
        length = lefts.remainder(left)
        scale = max(scale, length)
        is_in = length > 16 * matrix.epsilon * scale
        left = lefts.append(left) if is_in or length != length else lefts.append_random(*drawn)
        diagonal.append(length if is_in else 0.0)
        right = back(left)
        beyond = rights.remainder(right)
        if length + beyond != length + beyond:
            orders = list(range(size)) if size <= 2 * k else [*range(k), *range(size - k, size)]
            return ExtremeValues([math.nan] * len(orders), orders, (math.nan, math.nan), step)
        scale = max(scale, beyond)
        is_exhausted = step == size or not beyond > 16 * matrix.epsilon * scale
        upper.append(0.0 if is_exhausted else beyond)
        if step == last or (step >= 2 * k and (step % 5 == 0 or is_exhausted)):
            found = _ends(*_triplets(diagonal, upper), k, size)
            if step == last or max(found.residuals) <= tolerance:
                return found
        right = rights.append_random(*drawn) if is_exhausted else rights.append(right)
    raise AssertionError("the last step returns")


def _ends(values: Tensor, residuals: Tensor, k: int, size: int) -> ExtremeValues:
    """Return the k values at either end; all where there are no more than 2k."""
    count = len(values)
    is_whole = count == size
    chosen = list(range(count)) if is_whole else [*range(k), *range(count - k, count)]
    orders = [place if place < k or is_whole else size - count + place for place in chosen]
    largest = values[0].item() or 1.0
    worst = residuals[:k].max().item() / largest, residuals[-k:].max().item() / largest
    settled = torch.where(residuals <= _SETTLED * largest, values, math.nan)
    return ExtremeValues(settled[chosen].tolist(), orders, worst, count)

"""Curvature of the loss: sharpness, largest eigenpairs, spectral density, trace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.hessian import Hessian, Loss, hessian_of
from analyzer.probes.lanczos import EigenPairs, Quadrature, end_eigenpairs, quadrature

__all__ = ["HessianSpectrum", "hessian_spectrum", "measure", "metadata", "sharpness"]

_TOLERANCE = 5e-5
_MAX_STEPS = 100
_HELD_VECTORS, _HELD_STEPS = 4, 12
# The Lanczos basis of a large model may take this much memory.
_BASIS_BYTES = 2 << 30


@dataclass(frozen=True)
class HessianSpectrum:
    """The spectrum of the Hessian of the mean loss.

    Args:
        eigenvalues: The largest, falling, in loss / (unit of θ)²; NaN where it is not finite.
        eigenvectors: One direction each, of length 1: parameter name to tensor.
        errors: How far each eigenvalue may be off.
        density: The whole spectrum as weighted points, with the trace.
    """

    eigenvalues: list[float]
    eigenvectors: list[dict[str, Tensor]]
    errors: list[float]
    smallest: float
    density: Quadrature
    num_parameters: int
    num_samples: int
    num_vectors: int

    def quantities(self) -> dict[str, float]:
        """Return the numbers by name, as the probe's table has them."""
        named = {f"eigenvalue_{n}": value for n, value in enumerate(self.eigenvalues)}
        return {
            "sharpness": self.eigenvalues[0],
            **named,
            "smallest_eigenvalue": self.smallest,
            "trace": self.density.trace,
            "trace_standard_error": self.density.trace_error,
            "trace_low": self.density.trace - self.density.trace_margin,
            "trace_high": self.density.trace + self.density.trace_margin,
        }


def sharpness(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
    *,
    tolerance: float = _TOLERANCE,
    seed: int = 0,
) -> float:
    """Return the largest eigenvalue of the Hessian of the mean loss.

    Gradient descent with learning rate η is stable on a quadratic where it is below 2/η.

    Args:
        model: Any eager model, evaluated in eval mode; frozen parameters are left out.
        batches: Pairs of (input, target); losses are weighted by batch size.
        loss: ``loss(output, target)``, the mean over the batch.
        tolerance: Relative error at which the iteration stops.
        seed: Seed of its start; the global random state is not touched.

    Returns:
        In loss / (unit of θ)². 0 for a loss that is linear in the parameters; NaN where weights or
        loss are not finite.

    Raises:
        ValueError: If there is no batch, no parameter, or the loss is not one number.
        AnalyzerError: If an operation has no second derivative.

    Reference:
        Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of
        stability.
    """
    with hessian_of(model, batches, loss) as hessian:
        return _ends(hessian, 1, 0, tolerance, seed).values[0]


def hessian_spectrum(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
    k: int = 5,
    *,
    num_vectors: int = 8,
    num_steps: int = 24,
    seed: int = 0,
    as_trained: bool = False,
) -> HessianSpectrum:
    """Return the k largest eigenpairs of the Hessian, its density and its trace.

    See `analyzer.hessian_spectrum`; all eigenpairs where there are fewer parameters than k.
    ``as_trained``: batch norms in training mode stay in it.
    """
    for name, count in (("k", k), ("num_vectors", num_vectors), ("num_steps", num_steps)):
        if count < 1:
            raise ValueError(f"{name} is {count}; expected at least 1")
    with hessian_of(model, batches, loss, as_trained=as_trained) as hessian:
        k = min(k, hessian.size)
        pairs = _ends(hessian, k, 1, _TOLERANCE, seed)
        density = quadrature(
            hessian.times,
            hessian.vector(),
            num_vectors=num_vectors,
            num_steps=num_steps,
            seed=seed,
        )
        return HessianSpectrum(
            eigenvalues=pairs.values[:k],
            eigenvectors=[hessian.named(vector) for vector in pairs.vectors[:k]],
            errors=pairs.errors,
            smallest=pairs.values[-1],
            density=density,
            num_parameters=hessian.size,
            num_samples=hessian.num_samples,
            num_vectors=num_vectors,
        )


def measure(batch: HeldBatch) -> Measurement:
    """Measure the curvature of the loss on a held batch, without dropout."""
    found = hessian_spectrum(
        batch.model,
        [(batch.inputs, batch.targets)],
        batch.loss,
        num_vectors=_HELD_VECTORS,
        num_steps=_HELD_STEPS,
        as_trained=True,
    )
    quantities = found.quantities()
    columns: dict[str, Sequence[Any]] = {
        "quantity": list(quantities),
        "value": list(quantities.values()),
    }
    mode = {"mode": "train" if batch.model.training else "eval"}
    return Measurement(columns, metadata(found) | mode)


def metadata(found: HessianSpectrum) -> dict[str, str]:
    """Return what must be known to read a spectrum, and its density, as text."""
    density = {"nodes": found.density.nodes, "weights": found.density.weights}
    return {
        "num_parameters": str(found.num_parameters),
        "num_samples": str(found.num_samples),
        "trace_vectors": str(found.num_vectors),
        "eigenvalue_errors": json.dumps(found.errors),
        "density": json.dumps(density),
    }


def _ends(hessian: Hessian, largest: int, smallest: int, tolerance: float, seed: int) -> EigenPairs:
    # Near a minimum the gradient lies in the directions of large curvature (Gur-Ari et al. 2018).
    like = hessian.gradient()
    fitting = _BASIS_BYTES // (len(like) * like.element_size()) - 1
    return end_eigenpairs(
        hessian.times,
        like,
        largest=largest,
        smallest=smallest,
        start=like,
        tolerance=tolerance,
        max_steps=min(_MAX_STEPS, max(fitting, largest + smallest + 8)),
        seed=seed,
    )

"""Planes of a training's own path: PCA of its checkpoints, and where they lie in a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analyzer.probes.landscape.directions import direction_to
from analyzer.probes.landscape.weights import Direction, aligned, named_weights

__all__ = ["TrajectoryPlane", "projected", "trajectory_plane"]


@dataclass(frozen=True)
class TrajectoryPlane:
    """The plane that holds most of a trajectory.

    Attributes:
        directions: Two orthonormal directions over all parameters; their signs are arbitrary.
        variance_explained: Share of ``Σ ‖θᵢ − θ*‖²`` along each of the two.
        coordinates: Where each checkpoint lies in the plane, ``[checkpoints, 2]``.
        residuals: What of each checkpoint the plane does not show, ``[checkpoints]``.
    """

    directions: tuple[Direction, Direction]
    variance_explained: tuple[float, float]
    coordinates: Tensor
    residuals: Tensor


def trajectory_plane(
    model: nn.Module,
    checkpoints: Sequence[Mapping[str, Tensor]],
    *,
    centered: bool = False,
    weights_only: bool = False,
) -> TrajectoryPlane:
    """Find the plane through a model that is nearest to the checkpoints of its training.

    The two leading right singular vectors of the rows ``θᵢ − θ*``, θ* the model's weights. The rows
    are not centered: the plane is drawn through θ*, so it is the distance from θ* that it explains.

    Args:
        model: The model at the end of the trajectory.
        checkpoints: State dicts, or parameters by name; three or more that differ.
        centered: Subtract the mean of the rows first, as scikit-learn's PCA in the code of Li et
            al. does.
        weights_only: Leave out tensors of one dimension or none, as with filter normalization.

    Returns:
        The plane; each residual is ``‖rest‖ / ‖θᵢ − θ*‖``, 0 for a checkpoint at θ*.

    Raises:
        ValueError: If the checkpoints span less than a plane, or do not fit the model.

    Reference:
        Li et al. (2018), §7.2.
    """
    shapes = {name: weight.shape for name, weight in named_weights(model).items()}
    if not checkpoints:
        raise ValueError("there are no checkpoints, expected three or more; record more of them")
    rows = torch.stack([_row(model, checkpoint, weights_only) for checkpoint in checkpoints])
    if not torch.isfinite(rows).all():
        bad = int(torch.isfinite(rows).all(dim=1).logical_not().nonzero()[0])
        raise ValueError(
            f"the model or its checkpoint number {bad} holds weights that are not finite, expected "
            "numbers; the principal plane exists up to a step before that"
        )
    shifted = rows - rows.mean(dim=0) if centered else rows
    # Of the small matrix of inner products: as exact, and without a square one of all weights.
    values, vectors = torch.linalg.eigh(shifted @ shifted.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if len(values) < 2 or not values[1] > values[0] * _negligible(model):
        raise ValueError(
            f"{len(checkpoints)} checkpoints span no plane, expected at least two that differ from "
            "the model in different directions; use more checkpoints"
        )
    axes, _ = torch.linalg.qr(shifted.T @ vectors[:, :2])
    shares = (values[:2] / values.sum()).tolist()
    first, second = (_direction(axis, shapes, model) for axis in axes.T)
    coordinates, residuals = _projection(rows, axes)
    return TrajectoryPlane((first, second), (shares[0], shares[1]), coordinates, residuals)


def _negligible(model: nn.Module) -> float:
    """Return the share of variance below which a second direction is rounding."""
    kinds = {w.dtype for w in named_weights(model).values() if w.is_floating_point()}
    return max([1e-14, *((10 * torch.finfo(kind).eps) ** 2 for kind in kinds)])


def projected(
    model: nn.Module,
    checkpoints: Sequence[Mapping[str, Tensor]],
    directions: Sequence[Mapping[str, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Project checkpoints onto a plane (or a line) through a model, by least squares.

    ``min_c ‖θᵢ − θ* − Σ_k c_k d_k‖``: right for directions of any length and angle.

    Args:
        model: The model at the origin.
        checkpoints: State dicts, or parameters by name.
        directions: One or two.

    Returns:
        Coordinates ``[checkpoints, directions]`` and residuals ``[checkpoints]`` relative to
        ``‖θᵢ − θ*‖``: near 1, the picture says nothing about that checkpoint.

    Raises:
        ValueError: If a checkpoint or a direction does not fit the model.
    """
    rows = torch.stack([_row(model, checkpoint, False) for checkpoint in checkpoints])
    zeros = {name: torch.zeros_like(weight) for name, weight in named_weights(model).items()}
    axes = torch.stack([_flat({**zeros, **aligned(d, model)}) for d in directions], dim=1)
    return _projection(rows, axes)


def _row(model: nn.Module, checkpoint: Mapping[str, Tensor], weights_only: bool) -> Tensor:
    step = direction_to(model, checkpoint)
    if weights_only:
        step = {n: d if d.dim() > 1 else torch.zeros_like(d) for n, d in step.items()}
    return _flat(step)


def _flat(direction: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([d.detach().to("cpu", torch.float64).flatten() for d in direction.values()])


def _direction(axis: Tensor, shapes: Mapping[str, torch.Size], model: nn.Module) -> Direction:
    """Cut a row of all weights into tensors by name."""
    pieces = torch.split(axis, [shape.numel() for shape in shapes.values()])
    named = zip(shapes.items(), pieces, strict=True)
    return aligned({name: piece.view(shape) for (name, shape), piece in named}, model)


def _projection(rows: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    coordinates = torch.linalg.lstsq(axes, rows.T).solution.T
    lengths = rows.norm(dim=1)
    rest = (rows - coordinates @ axes.T).norm(dim=1)
    return coordinates, torch.where(lengths == 0, 0.0, rest / lengths)

"""Directions in weight space: random and normalized, to a checkpoint, through three points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analyzer.probes.landscape.weights import Direction, aligned, named_weights

__all__ = [
    "NORMALIZATIONS",
    "TrajectoryPlane",
    "cosine",
    "direction_to",
    "normalized",
    "plane_through",
    "projected",
    "random_directions",
    "trajectory_plane",
]


NORMALIZATIONS = ("filter", "layer", "none")
_EPSILON = 1e-10  # as in the code of Li et al.


def random_directions(
    model: nn.Module, normalization: str = "filter", seed: int = 0
) -> tuple[Direction, Direction]:
    """Draw two random directions from a private generator and scale them to the weights.

    ``d ~ N(0, 1)``, the second drawn after the first; then `normalized`. They are independent, not
    orthogonalized: `cosine` says how far they are from orthogonal.

    Args:
        model: Its parameters give names, shapes, types and norms; frozen ones are included.
        normalization: ``"filter"``, ``"layer"`` or ``"none"``.
        seed: Seed of the private generator. Equal seeds give equal directions for models of equal
            shapes, in every floating type, on every device.

    Returns:
        Two dicts over the names of ``named_parameters()``; a tied parameter stands in them once.

    Raises:
        ValueError: If the normalization is unknown.

    Reference:
        Li et al. (2018), Visualizing the loss landscape of neural nets, §3 and §4.
    """
    weights = named_weights(model)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}; expected a whole number from 0 up, below 2**63")
    generator = torch.Generator().manual_seed(seed)
    first, second = ({n: _drawn(w, generator) for n, w in weights.items()} for _ in range(2))
    return normalized(first, weights, normalization), normalized(second, weights, normalization)


def _drawn(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return Gaussian values in double precision, zeros for weights that are not floating."""
    if not (weight.is_floating_point() or weight.is_complex()):
        return torch.zeros(weight.shape)
    wide = torch.complex128 if weight.is_complex() else torch.float64
    return torch.randn(weight.shape, generator=generator, dtype=wide)


def normalized(
    direction: Mapping[str, Tensor], weights: Mapping[str, Tensor], normalization: str = "filter"
) -> Direction:
    """Scale a direction to the weights of the same names, in their types, on their devices.

    ``filter``: each slice f along dimension 0 becomes ``d[f] · ‖θ[f]‖ / (‖d[f]‖ + 1e-10)``: a row
    of a linear layer or an embedding, an output channel of a convolution, an *input* channel of a
    transposed convolution (as in the authors' code). ``layer``: ``d · ‖θ‖ / ‖d‖``. ``none``: as it
    is. In all three, tensors of one dimension or none (biases, γ and β of norms) become zero. A
    slice whose weights are zero is zero; one whose weights are not finite is not finite.

    Reference:
        Li et al. (2018), §4; ``xnorm=filter, xignore=biasbn`` of their code.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization {normalization!r} is unknown; choose one of {', '.join(NORMALIZATIONS)}"
        )
    return {
        name: _scaled(step, weights[name].detach(), normalization)
        for name, step in direction.items()
    }


def _scaled(step: Tensor, weight: Tensor, normalization: str) -> Tensor:
    if weight.dim() <= 1 or not (weight.is_floating_point() or weight.is_complex()):
        return torch.zeros_like(weight)
    wide = torch.complex128 if weight.is_complex() else torch.float64
    step = step.detach().to(device=weight.device, dtype=wide)
    if normalization == "filter":
        flat, sizes = step.flatten(1), weight.to(wide).flatten(1).norm(dim=1)
        factors = sizes / (flat.norm(dim=1) + _EPSILON)
        step = (flat * factors[:, None]).view_as(step)
    elif normalization == "layer":
        step = step * (weight.to(wide).norm() / step.norm())
    return step.to(weight.dtype)


def cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the cosine of the angle between two directions, ``⟨d₁, d₂⟩ / (‖d₁‖ ‖d₂‖)``.

    Names that only one of the two has count as zeros in the other. NaN where one is zero.
    """

    def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        wide = (_widened(a[name]) * _widened(b[name]).conj() for name in a if name in b)
        return sum(product.real.sum().item() for product in wide)

    size = (dot(first, first) * dot(second, second)) ** 0.5
    return dot(first, second) / size if size else float("nan")


def _widened(tensor: Tensor) -> Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().to(device="cpu", dtype=wide)


def direction_to(model: nn.Module, checkpoint: Mapping[str, Tensor]) -> Direction:
    """Return the direction from a model's weights to those of a checkpoint, a state dict.

    ``d = θ_checkpoint − θ``: the model is at α = 0, the checkpoint at α = 1. All parameters are
    taken, biases included; buffers such as running statistics stay those of the model.

    Raises:
        ValueError: If the checkpoint lacks a parameter, or one has another shape.
    """
    weights = named_weights(model)
    given = aligned(checkpoint, model, others_allowed=True)
    missing = [name for name in weights if name not in given]
    if missing:
        raise ValueError(
            f"the checkpoint lacks {missing[0]!r} and {len(missing) - 1} more, expected all "
            f"{len(weights)} parameters; use a checkpoint of this model"
        )
    return {name: given[name] - weight.detach() for name, weight in weights.items()}


def plane_through(
    model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[Direction, Direction]:
    """Return the directions of the plane through a model and two checkpoints.

    The model is at (0, 0), the first checkpoint at (1, 0), the second at (0, 1): the directions are
    not orthogonal, and of different lengths.
    """
    return direction_to(model, first), direction_to(model, second)


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
    ``centered`` and ``weights_only`` (no tensors of one dimension or none) make it the PCA in the
    code of Li et al. Each residual is ``‖rest‖ / ‖θᵢ − θ*‖``, 0 for a checkpoint at θ*.

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

    ``min_c ‖θᵢ − θ* − Σ_k c_k d_k‖``: right for directions of any length and angle. Returns
    coordinates ``[checkpoints, directions]`` and residuals ``[checkpoints]`` relative to
    ``‖θᵢ − θ*‖``: near 1, the picture says nothing about that checkpoint.
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

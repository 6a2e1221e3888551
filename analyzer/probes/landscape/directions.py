"""Directions in weight space: random and normalized, to a checkpoint, through three points."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from analyzer.probes.landscape.weights import Direction, aligned, named_weights

__all__ = [
    "NORMALIZATIONS",
    "cosine",
    "direction_to",
    "normalized",
    "plane_through",
    "random_directions",
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
    generator = torch.Generator().manual_seed(seed)
    first, second = ({n: _drawn(w, generator) for n, w in weights.items()} for _ in range(2))
    return normalized(first, weights, normalization), normalized(second, weights, normalization)


def _drawn(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return Gaussian values in double precision, zeros for weights that are no floats."""
    if not (weight.is_floating_point() or weight.is_complex()):
        return torch.zeros(weight.shape)
    wide = torch.complex128 if weight.is_complex() else torch.float64
    return torch.randn(weight.shape, generator=generator, dtype=wide)


def normalized(
    direction: Mapping[str, Tensor], weights: Mapping[str, Tensor], normalization: str = "filter"
) -> Direction:
    """Scale a direction to the weights, tensor by tensor.

    ``filter``: each slice f along dimension 0 becomes ``d[f] · ‖θ[f]‖ / (‖d[f]‖ + 1e-10)``: a row
    of a linear layer or an embedding, an output channel of a convolution, an *input* channel of a
    transposed convolution (as in the authors' code). ``layer``: ``d · ‖θ‖ / ‖d‖``. ``none``: as it
    is. In all three, tensors of one dimension or none (biases, γ and β of norms) become zero.

    Args:
        direction: Tensors by parameter name.
        weights: The weights by the same names, same shapes.
        normalization: ``"filter"``, ``"layer"`` or ``"none"``.

    Returns:
        The scaled direction in the weights' types, on their devices. A slice whose weights are zero
        is zero; one whose weights are not finite is not finite.

    Raises:
        ValueError: If the normalization is unknown.

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

    Args:
        first: A direction; names that only one of the two has count as zeros in the other.
        second: Another.

    Returns:
        The cosine; NaN where one of them is zero.
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
    """Return the direction from a model's weights to those of a checkpoint.

    ``d = θ_checkpoint − θ``: the model is at α = 0, the checkpoint at α = 1. All parameters are
    taken, biases included; buffers such as running statistics stay those of the model.

    Args:
        model: The model at the start of the line.
        checkpoint: A state dict, or parameters by name. What is no parameter is not used.

    Returns:
        The direction over all parameters.

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

    The model is at (0, 0), the first checkpoint at (1, 0), the second at (0, 1).

    Args:
        model: One of the three points.
        first: A checkpoint, as for `direction_to`.
        second: Another.

    Returns:
        Two directions over all parameters; not orthogonal, and of different lengths.

    Raises:
        ValueError: If a checkpoint does not fit the model.
    """
    return direction_to(model, first), direction_to(model, second)

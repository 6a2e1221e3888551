"""The weights of a model by name, directions that fit them, and moving along them in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analyzer.joins.calls import clean_path
from analyzer.joins.model_state import unwrapped

__all__ = [
    "Direction",
    "Moves",
    "Slice",
    "aligned",
    "moves_of",
    "named_weights",
    "squared_norm",
]

Direction = dict[str, Tensor]


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a model's parameters by name, each once, in the order of ``named_parameters()``.

    Inside DistributedDataParallel or ``torch.compile`` the user's own model is taken, without the
    parts that wrappers put into the names.

    Raises:
        ValueError: If a parameter has no shape yet (a lazy module that never ran).
    """
    named = {clean_path(name): p for name, p in unwrapped(model).named_parameters()}
    for name, parameter in named.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"parameter {name!r} has no shape yet, expected a model that has run; "
                "call the model once before you ask for its loss surface"
            )
    return named


def aligned(
    direction: Mapping[str, Tensor], model: nn.Module, *, others_allowed: bool = False
) -> Direction:
    """Return a direction in the names, types and places of a model's parameters.

    Parameters that it does not name stay where they are. Names of a wrapped model (``module.``,
    ``_orig_mod.``) are understood, and of tied parameters any name. Names that are not parameters
    (the buffers of a state dict) are left out where `others_allowed`.

    Raises:
        ValueError: If a name or a shape does not fit.
    """
    weights = named_weights(model)
    first = {id(parameter): name for name, parameter in weights.items()}
    everything = unwrapped(model).named_parameters(remove_duplicate=False)
    aliases = {clean_path(name): first[id(parameter)] for name, parameter in everything}
    found: Direction = {}
    for given, step in direction.items():
        name = aliases.get(_known(clean_path(given), aliases))
        if name is None and others_allowed:
            continue
        if name is None:
            raise ValueError(_unknown(given, list(aliases)))
        weight = weights[name]
        moved = torch.as_tensor(step).detach()
        if moved.shape != weight.shape:
            raise ValueError(
                f"the direction of {given!r} has shape {list(moved.shape)}, expected "
                f"{list(weight.shape)} as its parameter; make it for this model"
            )
        found.setdefault(name, moved.to(device=weight.device, dtype=weight.dtype))
    return found


def _known(name: str, names: Mapping[str, str]) -> str:
    """Return the name without the ``module.`` of a wrapper, where only that is a parameter."""
    return name if name in names else name.removeprefix("module.")


def _unknown(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the model has {len(names)} parameters"
    return f"the direction names {name!r}, expected names of parameters; {hint}"


class Slice:
    """One weight with the steps that two directions take along it."""

    def __init__(self, parameter: nn.Parameter, first: Tensor, second: Tensor) -> None:
        self.parameter = parameter
        # Not detach(): it would share the version counter, and a backward pass that waits for this
        # weight would refuse to run although the value is back.
        self.target = parameter.data
        self.origin = self.target.clone(memory_format=torch.preserve_format)
        self.first, self.second = first, second

    @property
    def is_finite(self) -> bool:
        """Whether weight and steps are finite."""
        parts = (self.origin, self.first, self.second)
        return all(bool(torch.isfinite(part).all()) for part in parts)


class Moves:
    """Moves weights in place to any point of a plane, always from the copy that it holds.

    ``θ(α, β) = θ* + α d₁ + β d₂``; a coefficient that is zero adds nothing, so that (0, 0) is the
    model itself, bit for bit, also where a direction is not finite. Weights that neither direction
    moves are never written to.
    """

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = list(slices)
        self._targets = [part.target for part in slices]
        self._origins = [part.origin for part in slices]
        self._steps = ([part.first for part in slices], [part.second for part in slices])

    def to(self, alpha: float, beta: float) -> None:
        """Move to a point."""
        if not self._targets:
            return
        torch._foreach_copy_(self._targets, self._origins)
        for coefficient, steps in zip((alpha, beta), self._steps, strict=True):
            if coefficient != 0:
                torch._foreach_add_(self._targets, steps, alpha=coefficient)
        # An autocast region around the caller keeps casts of weights, which are stale now.
        torch.clear_autocast_cache()

    def back(self) -> None:
        """Put the weights back, bit for bit."""
        self.to(0.0, 0.0)


def moves_of(model: nn.Module, directions: Sequence[Direction]) -> Moves:
    """Return the moves of a model's own weights along one or two aligned directions."""
    slices = []
    for name, parameter in named_weights(model).items():
        steps = [d[name] if name in d else torch.zeros_like(parameter.data) for d in directions]
        if any(bool((step != 0).any()) for step in steps):
            second = steps[1] if len(steps) > 1 else torch.zeros_like(parameter.data)
            slices.append(Slice(parameter, steps[0], second))
    return Moves(slices)


def squared_norm(
    model: nn.Module,
    directions: Sequence[Direction],
    alphas: NDArray[np.float64],
    betas: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return ``‖θ + α d₁ + β d₂‖²`` over a plane ``[alphas, betas]``, from inner products."""
    a, b = np.meshgrid(alphas, betas, indexing="ij")
    total = np.zeros_like(a)
    for name, parameter in named_weights(model).items():
        zero = torch.zeros_like(parameter.data)
        steps = [direction.get(name, zero) for direction in directions]
        parts = [_real(part) for part in (parameter.data, *steps, zero)[:3]]
        (oo, oa, ob), (_, aa, ab), (_, _, bb) = (
            [float(torch.dot(one, other)) for other in parts] for one in parts
        )
        total += oo + a**2 * aa + b**2 * bb + 2 * (a * oa + b * ob + a * b * ab)
    return total


def _real(tensor: Tensor) -> Tensor:
    """Return the elements as real numbers in double precision."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.double().flatten()

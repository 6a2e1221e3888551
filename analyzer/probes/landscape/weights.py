"""The weights of a model by name, and moving them along directions: in place, or as stacks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from analyzer.joins.calls import clean_path
from analyzer.joins.model_state import unwrapped

__all__ = [
    "AtPoints",
    "Direction",
    "Moves",
    "NotStackableError",
    "Point",
    "Slice",
    "aligned",
    "moves_of",
    "named_weights",
    "squared_norm",
]

Direction = dict[str, Tensor]
Point = tuple[float, float]


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
        clean = clean_path(given)
        name = aliases.get(clean, aliases.get(clean.removeprefix("module.")))
        if name is None and others_allowed:
            continue
        if name is None:
            near = get_close_matches(given, aliases, n=1)
            count = f"the model has {len(aliases)} parameters"
            hint = f"did you mean {near[0]!r}?" if near else count
            raise ValueError(f"the direction names {given!r}, expected names of parameters; {hint}")
        weight = weights[name]
        moved = torch.as_tensor(step).detach()
        if moved.shape != weight.shape:
            raise ValueError(
                f"the direction of {given!r} has shape {list(moved.shape)}, expected "
                f"{list(weight.shape)} as its parameter; make it for this model"
            )
        found.setdefault(name, moved.to(device=weight.device, dtype=weight.dtype))
    return found


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


class NotStackableError(Exception):
    """A network that holds more than linear layers and element-wise functions."""


class AtPoints(TorchFunctionMode):
    """Runs a forward pass at several points: what depends on moved weights is a stack.

    A stack is ``[points, batch, features]``; where its form is read, it is that of one point.
    ``kept`` fills with the products of layers that read the data itself, by weight.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        points: Sequence[Point],
        kept: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__()
        self._slices = {id(part.parameter): part for part in slices}
        like = slices[0].target
        rows = [(1.0, alpha, beta) for alpha, beta in points]
        self._points = torch.tensor(rows, dtype=like.dtype, device=like.device)
        self._kept = kept
        self._stacks: dict[int, Tensor] = {}  # by id, which counts as long as its tensor lives

    def holds(self, value: Any) -> bool:
        """Whether a value is a stack."""
        return id(value) in self._stacks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch on stacks, or on values that all points share."""
        kwargs = kwargs or {}
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func in _FORM:
            return func(*(arg[0] if self.holds(arg) else arg for arg in args), **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(id(tensor) in self._slices for tensor in tensors):
            raise NotStackableError("a weight moves outside of linear layers")
        stacks = [tensor for tensor in tensors if self.holds(tensor)]
        if not stacks:
            return func(*args, **kwargs)
        is_norm = func is functional.batch_norm and self.holds(args[0])
        if is_norm and not kwargs.get("training", args[5] if len(args) > 5 else False):
            rows = args[0].flatten(0, 1)
            return self._stack(func(rows, *args[1:], **kwargs).view_as(args[0]))
        is_wide = any(t.dim() >= stacks[0].dim() for t in tensors if not self.holds(t))
        if func not in _ELEMENTWISE or is_wide:
            raise NotStackableError(f"{func.__name__} is neither linear nor element-wise")
        return self._stack(func(*args, **kwargs))

    def _stack(self, tensor: Tensor) -> Tensor:
        self._stacks[id(tensor)] = tensor
        return tensor

    def _linear(self, given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return a linear layer's output, from data that all points share or from their own."""
        moves = id(weight) in self._slices or id(bias) in self._slices
        if given.dim() != 2 + self.holds(given):
            raise NotStackableError("a linear layer reads more than one axis")
        if not self.holds(given):
            return (
                self._of_shared(given, weight, bias)
                if moves
                else functional.linear(given, weight, bias)
            )
        if not moves:
            return self._stack(functional.linear(given, weight, bias))
        matrices = self._at_points(weight).transpose(1, 2)
        if bias is None:
            return self._stack(torch.bmm(given, matrices))
        return self._stack(torch.baddbmm(self._at_points(bias)[:, None], given, matrices))

    def _of_shared(self, data: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        known = self._kept.get(id(weight))
        if known is None or not torch.equal(known[0], data):
            weights = self._basis(weight)
            biases = [None] * 3 if bias is None else self._basis(bias)
            parts = [functional.linear(data, *pair) for pair in zip(weights, biases, strict=True)]
            known = self._kept[id(weight)] = data.clone(), torch.stack(parts).flatten(1)
        return self._stack((self._points @ known[1]).view(len(self._points), len(data), -1))

    def _at_points(self, parameter: Tensor) -> Tensor:
        """Return a parameter at each point, also one that does not move."""
        if id(parameter) not in self._slices:
            return parameter.detach().expand(len(self._points), *parameter.shape)
        basis = torch.stack(self._basis(parameter)).flatten(1)
        return (self._points @ basis).view(len(self._points), *parameter.shape)

    def _basis(self, parameter: Tensor) -> list[Tensor]:
        """Return a parameter and its step along either direction."""
        part = self._slices.get(id(parameter))
        if part is None:
            return [parameter.detach(), *[torch.zeros_like(parameter)] * 2]
        return [part.origin, part.first, part.second]


def _functions(names: str, *owners: Any) -> set[Callable[..., Any]]:
    return {getattr(o, name) for o in owners for name in names.split() if hasattr(o, name)}


_ELEMENTWISE = (
    _functions(
        "relu relu_ relu6 leaky_relu elu selu celu gelu silu mish tanh sigmoid softplus softsign "
        "hardtanh hardswish logsigmoid dropout",
        functional,
    )
    | _functions("relu relu_ tanh sigmoid add sub mul div neg sin cos exp", torch, Tensor)
    | _functions("__add__ __sub__ __mul__ __truediv__ __neg__ __rsub__", Tensor)
    | _functions("add sub mul truediv neg", operator)
)
_FORM = _functions("dim size is_floating_point", Tensor) | {
    getattr(Tensor, name).__get__
    for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda")
}

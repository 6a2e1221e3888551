"""The Hessian of the mean loss over some batches, by its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from analyzer.errors import AnalyzerError
from analyzer.joins.graph import Walk
from analyzer.joins.model_state import unwrapped
from analyzer.probes.activations import evaluating
from analyzer.probes.batch import Batch, held, num_samples, pooled, trained_parameters

__all__ = [
    "Hessian",
    "Loss",
    "hessian_of",
    "refuse_if_severed",
]


def refuse_if_severed(gradients: Iterable[Tensor]) -> Walk:
    """Return the graph of gradients that have one; refuse it where a custom function cuts it off.

    Such a function's backward is marked ``once_differentiable``. Torch raises only where it runs
    into the mark, and it never does when it looks for the derivative by something behind it: that
    part would silently be missing.
    """
    walk = Walk([g.grad_fn for g in gradients if g.grad_fn is not None])
    if any(type(node).__name__ == "Error" for node in walk.nodes):
        raise RuntimeError(
            "a custom function's backward is marked once_differentiable: it has no second "
            "derivative"
        )
    return walk


Loss = Callable[[Any, Any], Tensor]
# What the kept gradient graphs of all batches may hold; the graphs of later batches are rebuilt.
_KEPT_BYTES = 2 << 30
# Batches whose graph is smaller than this spend their time between operations, not in them.
_SMALL_BYTES = 16 << 20
# Two sums over the same samples in another order differ by no more than this.
_SAME_LOSS = 1e-5
Pairs = list[tuple[Tensor, Tensor]]


@contextmanager
def hessian_of(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], loss: Loss, *, as_trained: bool = False
) -> Iterator[Hessian]:
    """Give the Hessian of the mean loss over some batches, in eval mode, weighted by batch size.

    ``as_trained`` leaves batch norms that train in that mode: they normalize by each batch, and
    their statistics follow the weights, since it is along this loss that a step moves. With the
    statistics held constant the Hessian is another one: nothing would undo the length of weights.

    Raises:
        ValueError: If there is no batch, no such parameter, or the loss is not one number.
        AnalyzerError: If an operation has no second derivative.
    """
    model = unwrapped(model)
    norms = [part for part in model.modules() if isinstance(part, _NormBase) and part.training]
    norms = norms if as_trained else []
    with evaluating(model), torch.enable_grad():
        for norm in norms:
            norm.training = True
        yield Hessian(model, held(batches), loss)


class Hessian:
    """The Hessian of the mean loss over some batches, by the parameters that want a gradient.

    A product is the derivative of ``⟨∂L/∂θ, v⟩``; the graph of the gradient is built once a batch
    and used for every product, as long as it fits into 2 GiB in all. Small batches are merged where
    that leaves the loss as it is. Parameters that the loss does not use have rows of zeros.
    ``graph_bytes`` is about what the largest of these graphs holds, once it was built.
    """

    def __init__(self, model: nn.Module, batches: list[Batch], loss: Loss) -> None:
        self._model, self._loss = model, loss
        self.parameters = trained_parameters(model, "curvature")
        self._variables = list(self.parameters.values())
        if any(variable.is_complex() for variable in self._variables):
            raise ValueError(
                f"{type(model).__name__!r} has complex parameters; expected real ones. Let it hold "
                "their real and imaginary parts."
            )
        self.size = sum(variable.numel() for variable in self._variables)
        self._kept: dict[int, Pairs] = {}
        self._room, self.graph_bytes = _KEPT_BYTES, 0
        self._batches = self._merged(batches)
        self.num_samples = num_samples(self._batches)
        self._weights = [batch.size / self.num_samples for batch in self._batches]

    def vector(self) -> Tensor:
        """Return an empty vector of the type and on the device of the products."""
        dtype = reduce(torch.promote_types, [variable.dtype for variable in self._variables])
        return torch.empty(self.size, dtype=dtype, device=self._variables[0].device)

    def times(self, vector: Tensor) -> Tensor:
        """Return ``H v`` for v of `size` elements."""
        parts = [
            part.to(device=variable.device, dtype=variable.dtype)
            for part, variable in zip(self._cut(vector), self._variables, strict=True)
        ]
        chosen = dict(zip(map(id, self._variables), parts, strict=True))
        result = torch.zeros_like(vector)
        sums = self._cut(result)
        for number in range(len(self._batches)):
            pairs = self._gradient_graph(number)
            if not pairs:
                continue
            directions = [chosen[id(variable)] for variable, _ in pairs]
            with self._second_derivatives():
                products = torch.autograd.grad(
                    [gradient for _, gradient in pairs],
                    self._variables,
                    directions,
                    retain_graph=True,
                    allow_unused=True,
                )
            for total, product in zip(sums, products, strict=True):
                if product is not None:
                    total.add_(product.to(total), alpha=self._weights[number])
        return result

    def gradient(self) -> Tensor:
        """Return the gradient of the mean loss; it comes with the graphs of the products."""
        result = torch.zeros_like(self.vector())
        sums = dict(zip(map(id, self._variables), self._cut(result), strict=True))
        for number in range(len(self._batches)):
            for variable, gradient in self._gradient_graph(number):
                total = sums[id(variable)]
                total.add_(gradient.detach().to(total), alpha=self._weights[number])
        return result

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector as a direction: one tensor a parameter, by name."""
        parts = zip(self.parameters, self._cut(vector), strict=True)
        return {name: part.clone() for name, part in parts}

    def _cut(self, vector: Tensor) -> list[Tensor]:
        """Return views of a vector in the shapes of the parameters."""
        pieces = torch.split(vector, [variable.numel() for variable in self._variables])
        shapes = [variable.shape for variable in self._variables]
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _merged(self, batches: list[Batch]) -> list[Batch]:
        """Return small batches as fewer larger ones, where the loss is the same for both."""
        if len(batches) < 2:
            return batches
        pairs, size = self._gradient_of(batches[0])
        count = _SMALL_BYTES // max(size, 1)
        if count < 2:
            self._keep(0, pairs, size)
            return batches
        groups = [batches[start : start + count] for start in range(0, len(batches), count)]
        return [batch for group in groups for batch in self._as_one(group)]

    def _as_one(self, group: list[Batch]) -> list[Batch]:
        """Return a group of batches as one, if the loss of that is the mean of their losses."""
        joined = pooled(group)
        if len(group) < 2 or joined is None:
            return group
        with torch.no_grad():
            together = self._value(joined)
            apart = sum(float(self._value(part)) * part.size for part in group) / joined.size
        is_same = abs(float(together) - apart) <= _SAME_LOSS * abs(apart)
        return [joined] if is_same else group

    def _value(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        batch = batch.copied()
        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            return self._loss(self._model(*batch.args, **batch.kwargs), batch.target)

    def _gradient_graph(self, number: int) -> Pairs:
        """Return the parameters of a batch's loss with their gradients; keep small graphs."""
        if number in self._kept:
            return self._kept[number]
        pairs, size = self._gradient_of(self._batches[number])
        self._keep(number, pairs, size)
        return pairs

    def _keep(self, number: int, pairs: Pairs, size: int) -> None:
        self.graph_bytes = max(self.graph_bytes, size)
        if size <= self._room:
            self._room -= size
            self._kept[number] = pairs

    def _gradient_of(self, batch: Batch) -> tuple[Pairs, int]:
        """Return parameters with gradients as functions of them, and the bytes that these hold."""
        value = self._value(batch)
        _check_loss(value)
        with self._second_derivatives():
            gradients = torch.autograd.grad(
                value, self._variables, create_graph=True, allow_unused=True
            )
            pairs: Pairs = [
                (variable, gradient)
                for variable, gradient in zip(self._variables, gradients, strict=True)
                if gradient is not None and gradient.requires_grad
            ]
            walk = refuse_if_severed(gradient for _, gradient in pairs)
            # About what the graph holds in memory: the outputs of all its nodes.
            outputs = [part for node in walk.nodes for part in node._input_metadata]
            return pairs, sum(part.dtype.itemsize * math.prod(part.shape) for part in outputs)

    @contextmanager
    def _second_derivatives(self) -> Iterator[None]:
        """Turn torch's refusal to differentiate twice into one that says what to do."""
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            raise AnalyzerError(
                f"the Hessian of {type(self._model).__name__!r} cannot be computed: "
                f"{str(error).splitlines()[0]}; expected operations with second derivatives. "
                "Replace that operation by one of plain torch for this measurement."
            ) from error


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        seen = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"the loss has {seen}; expected one number that depends on the parameters. Let "
            "loss(output, target) return the mean over the batch."
        )

"""The Jacobian between two places of an autograd graph, by its products."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from analyzer.probes.second_derivatives import refuse_if_severed

__all__ = ["EdgeMap"]

_BLOCK = 64


class EdgeMap:
    """The Jacobian of some places of an autograd graph by others below them.

    ``Jᵀv`` is a backward pass between them; ``J u`` is the derivative of ``⟨Jᵀv, u⟩`` by v. The
    graph is kept and used for every product.

    Args:
        outputs: Edges of the outputs.
        inputs: Tensors, or edges of tensors, that the outputs depend on.

    Attributes:
        rows: Elements of the outputs.
        columns: Elements of the inputs.
        epsilon: Relative rounding error of a product.
    """

    def __init__(
        self, outputs: Sequence[GradientEdge], inputs: Sequence[Tensor | GradientEdge]
    ) -> None:
        self._outputs = list(outputs)
        self._inputs: list[Any] = list(inputs)
        self._output_likes = [_like(place) for place in outputs]
        self._input_likes = [_like(place) for place in inputs]
        self.rows = sum(like.numel() for like in self._output_likes)
        self.columns = sum(like.numel() for like in self._input_likes)
        self.epsilon = max(torch.finfo(like.dtype).eps for like in self._output_likes)
        self._linear: tuple[list[Tensor], list[Tensor]] | None = None

    def transposed_times(self, vector: Tensor) -> Tensor:
        """Return ``Jᵀ v`` for v of `rows` elements, in float64 on the CPU."""
        parts = _parts(vector, self._output_likes)
        gradients = torch.autograd.grad(
            self._outputs, self._inputs, parts, retain_graph=True, allow_unused=True
        )
        return _flat(gradients, self._input_likes)

    def times(self, vector: Tensor) -> Tensor:
        """Return ``J u`` for u of `columns` elements, in float64 on the CPU."""
        if self._linear is None:
            seeds = [torch.zeros_like(like).requires_grad_() for like in self._output_likes]
            pulled = torch.autograd.grad(
                self._outputs, self._inputs, seeds, create_graph=True, materialize_grads=True
            )
            refuse_if_severed(pulled)
            self._linear = seeds, list(pulled)
        seeds, pulled_back = self._linear
        parts = _parts(vector, self._input_likes)
        kept = [n for n, part in enumerate(pulled_back) if part.requires_grad]
        if not kept:
            return torch.zeros(self.rows, dtype=torch.float64)
        gradients = torch.autograd.grad(
            [pulled_back[n] for n in kept],
            seeds,
            [parts[n] for n in kept],
            retain_graph=True,
            allow_unused=True,
        )
        return _flat(gradients, self._output_likes)

    def dense(self) -> Tensor:
        """Return the Jacobian ``[rows, columns]`` by as few products as possible, in float64."""
        if self.rows > self.columns:
            return torch.stack([self.times(unit) for unit in _units(self.columns)], dim=1)
        try:
            pieces = torch.split(_units(self.rows), _BLOCK)
            return torch.cat([self._many_rows(piece) for piece in pieces])
        except RuntimeError:  # an operation that torch cannot run for several gradients at once
            return torch.stack([self.transposed_times(unit) for unit in _units(self.rows)])

    def _many_rows(self, vectors: Tensor) -> Tensor:
        """Return ``Vᵀ J`` for several vectors at once."""
        likes, count = self._output_likes, len(vectors)
        pieces = torch.split(vectors, [like.numel() for like in likes], dim=1)
        parts = [
            piece.reshape(count, *like.shape).to(device=like.device, dtype=like.dtype)
            for piece, like in zip(pieces, likes, strict=True)
        ]
        with warnings.catch_warnings():
            # Torch warns where it loops over the gradients for want of a batching rule.
            warnings.simplefilter("ignore", UserWarning)
            gradients = torch.autograd.grad(
                self._outputs,
                self._inputs,
                parts,
                retain_graph=True,
                is_grads_batched=True,
                materialize_grads=True,
            )
        return torch.cat([part.detach().flatten(1).double().cpu() for part in gradients], dim=1)


def _like(place: Tensor | GradientEdge) -> Tensor:
    """Return an empty tensor of the shape, type and device of a place."""
    if isinstance(place, Tensor):
        return torch.empty_like(place)
    about = place.node._input_metadata[place.output_nr]
    return torch.empty(tuple(about.shape), dtype=about.dtype, device=about.device)


def _units(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def _parts(vector: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector into tensors of the shapes and types asked for."""
    pieces = torch.split(vector, [like.numel() for like in likes])
    return [
        piece.reshape(like.shape).to(device=like.device, dtype=like.dtype)
        for piece, like in zip(pieces, likes, strict=True)
    ]


def _flat(parts: Sequence[Tensor | None], likes: Sequence[Tensor]) -> Tensor:
    """Join tensors to one vector; what nothing arrived at is zero."""
    return torch.cat(
        [
            (torch.zeros_like(like) if part is None else part.detach()).flatten().double().cpu()
            for part, like in zip(parts, likes, strict=True)
        ]
    )

"""The gradient of all paths of one length: backward passes that stop where a branch begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from analyzer.probes.path_graph import Crossing

__all__ = ["gradients_by_length"]

Parts = tuple[Tensor | None, ...]


def gradients_by_length(
    loss: Tensor, parts: Sequence[GradientEdge], crossings: Sequence[Crossing]
) -> Iterator[Parts]:
    """Yield the gradient of all paths that cross k branches, for k = 0, 1, … in order.

    At every join ``G_k ← G_k(through shortcut) + Jᵀ G_{k−1}(through branch)``. The first pass
    begins at the loss; each holds back what joins send into their branches, and the next one
    begins with that, there. All run over one graph, so memory holds one forward pass and one
    gradient a join, whatever their number, and a pass computes nothing above its first branch.

    Args:
        loss: One number, with its graph, which is kept.
        parts: The tensors at which the gradient is taken, as edges of the graph.
        crossings: The joins; their nodes are hooked until the last gradient is taken.

    Yields:
        One gradient a part, None where no path of that length arrives; ends early once no path
        is left.
    """
    held: dict[tuple[Node, int], Tensor] = {}
    slots: dict[Node, list[int]] = {}
    for crossing in crossings:
        for reader, slot in crossing.edges:
            slots.setdefault(reader, []).append(slot)
    handles = [
        reader.register_hook(partial(_hold_back, held, reader, own))
        for reader, own in slots.items()
    ]
    try:
        yield torch.autograd.grad(loss, list(parts), retain_graph=True, allow_unused=True)
        while held:
            starts = [(_operand(reader, slot), held[reader, slot]) for reader, slot in held]
            held.clear()
            edges = [edge for edge, _ in starts]
            gradients = [_fitted(gradient, edge) for edge, gradient in starts]
            del starts
            yield torch.autograd.grad(
                edges, list(parts), gradients, retain_graph=True, allow_unused=True
            )
    finally:
        for handle in handles:
            handle.remove()


def _hold_back(
    held: dict[tuple[Node, int], Tensor],
    reader: Node,
    slots: Sequence[int],
    gradients: tuple[Tensor | None, ...],
    _: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Keep what goes by some slots for the next pass, and let this pass send nothing there."""
    kept = list(gradients)
    for slot in slots:
        gradient = kept[slot]
        if gradient is not None:
            held[reader, slot] = gradient
            kept[slot] = None
    return tuple(kept)


def _operand(reader: Node, slot: int) -> GradientEdge:
    child, number = reader.next_functions[slot]
    assert child is not None  # a gradient came by this slot
    return GradientEdge(child, number)


def _fitted(gradient: Tensor, edge: GradientEdge) -> Tensor:
    """Undo broadcasting and promotion, as the engine does after the hooks."""
    metadata: Any = edge.node._input_metadata[edge.output_nr]
    if gradient.shape != metadata.shape:
        gradient = gradient.sum_to_size(metadata.shape)
    return gradient.to(metadata.dtype)

"""One forward pass in eval mode with the joins in its graph; the model is put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from analyzer.joins import JoinSite, joins_in_graph
from analyzer.joins.calls import tensors_in
from analyzer.joins.find import call_arguments, output_nodes, watched_forward
from analyzer.joins.graph import Walk
from analyzer.joins.model_state import cloned, preserve_state
from analyzer.probes.path_samples import PathsError

__all__ = ["EvaluatedBatch", "evaluate", "evaluating"]


@dataclass(frozen=True, eq=False)
class EvaluatedBatch:
    """One batch, run forward with its graph.

    Args:
        loss: The loss, one number.
        walk: The graph below the loss.
        sites: The joins with gradient, forward order.
        inputs: Tensors that the model was called with.
        input_edges: The floating ones among them, as edges of the graph.
        outputs: Floating tensors of the model's output that the loss reads.
    """

    loss: Tensor
    walk: Walk
    sites: list[JoinSite]
    inputs: list[Tensor]
    input_edges: list[GradientEdge]
    outputs: list[Tensor]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to eval mode with a gradient in all parts; put everything back."""
    frozen = [
        parameter
        for parameter in model.parameters()
        if not parameter.requires_grad and parameter.is_floating_point()
    ]
    has_rnn = any(isinstance(module, nn.RNNBase) for module in model.modules())
    # cuDNN's recurrent kernels have no backward pass in eval mode.
    cudnn = torch.backends.cudnn.flags(enabled=False) if has_rnn else nullcontext()
    with torch.inference_mode(False), preserve_state(model), torch.enable_grad(), cudnn:
        try:
            for module in model.modules():
                module.training = False
            # Of integer inputs the first tensor with gradient comes from an embedding.
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def evaluate(
    model: nn.Module, inputs: Any, targets: Any, loss: Callable[[Any, Any], Tensor]
) -> EvaluatedBatch:
    """Run a batch forward on copies of its inputs and locate the joins in its graph.

    Args:
        model: Inside of `evaluating`, outside of wrappers.
        inputs: Its arguments, as `analyzer.joins.find.call_arguments` takes them.
        targets: Second argument of `loss`.
        loss: ``loss(output, targets)``.

    Raises:
        PathsError: If the loss is not one number with a gradient, or joins cannot be seen.
    """
    copies: dict[int, tuple[Tensor, Tensor]] = {}
    args, kwargs = cloned(call_arguments(inputs), requires_grad=True, memo=copies)
    # Before the model runs: it may change its inputs in place.
    input_edges = [GradientEdge(c.grad_fn, 0) for _, c in copies.values() if c.grad_fn]
    output, log = watched_forward(model, args, kwargs)
    value = loss(output, targets)
    root = _root_of(value)
    roots = list(dict.fromkeys([*output_nodes(output), root]))
    plan = joins_in_graph(roots, log)
    if plan.unseen:
        name, reason = plan.unseen[0]
        raise PathsError(
            f"joins inside of {name!r} cannot be seen: {reason}; expected plain eager modules, for "
            "a path through a hidden join has no known length. Run that module without it."
        )
    walk = Walk([root])
    sites = [site for site in plan.sites(roots) or [] if site.node is not None]
    return EvaluatedBatch(
        loss=value,
        walk=walk,
        sites=sites,
        inputs=[leaf for leaf, _ in copies.values()] or list(tensors_in((args, kwargs))),
        input_edges=input_edges,
        outputs=_outputs_read(output, walk),
    )


def _root_of(value: Any) -> Node:
    if not isinstance(value, Tensor) or value.numel() != 1:
        seen = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise PathsError(
            f"the loss has {seen}; expected one number. Let loss(output, target) return the mean."
        )
    if value.grad_fn is None:
        raise PathsError(
            "the loss has no gradient; expected one that depends on the model. Compute it from the "
            "model's output without detach or no_grad."
        )
    return value.grad_fn


def _outputs_read(output: Any, walk: Walk) -> list[Tensor]:
    """Return the tensors of an output that are in the graph of the loss."""
    edges = {edge for edges in walk.edges for edge in edges} | {(walk.nodes[0], 0)}
    return [t for t in tensors_in(output) if t.grad_fn and (t.grad_fn, t.output_nr) in edges]

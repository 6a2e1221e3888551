"""The gradient that arrives at a fork, taken apart exactly: through shortcut and through branch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from analyzer.joins.find import call_arguments, output_nodes, watched_forward
from analyzer.joins.model_state import cloned, preserve_state, unwrapped
from analyzer.joins.plan import Join, JoinPlan, JoinSite, joins_in_graph
from analyzer.joins.products import (
    SPLIT_COLUMNS,
    JoinGradients,
    split_products,
    statistics_of_products,
)

__all__ = ["SplitHooks", "join_gradients", "splits_of_model"]

Parts = tuple[Tensor, ...]
OnGradients = Callable[[Join, JoinGradients], None]


class _Collected:
    """The gradients of one join while they arrive; holds no node, for a node holds it."""

    __slots__ = ("is_complete", "join", "parts", "site_join")

    def __init__(self, join: Join) -> None:
        self.site_join = join
        self.join: Parts | None = None
        self.parts: dict[tuple[str, int], list[Tensor]] = {}
        self.is_complete = False

    def add(self, side: str, number: int, gradient: Tensor) -> None:
        self.parts.setdefault((side, number), []).append(gradient)

    def side(self, name: str, fork: list[Tensor]) -> Parts:
        return tuple(
            _sum(self.parts.get((name, number), []), like) for number, like in enumerate(fork)
        )


class SplitHooks:
    """Hooks on the joins of a graph, so that its backward pass delivers their split gradients.

    No gradient changes and nothing is computed twice. The tensors are the backward pass's own: they
    must not be written to. Call `finish` after the backward pass, always.

    Args:
        sites: The joins in the graph that is going to run backward, from `JoinPlan.sites`.
        on_gradients: Called during the backward pass with a join and its gradients, once each;
            from `finish` for those whose fork no gradient reached.
    """

    def __init__(self, sites: Iterable[JoinSite], on_gradients: OnGradients) -> None:
        self._on_gradients = on_gradients
        self._handles: list[Any] = []
        self._collected: list[_Collected] = []
        for site in sites:
            self._attach(site)

    def finish(self) -> None:
        """Remove the hooks; deliver the joins whose fork no gradient reached."""
        waiting = list(self._collected)
        self.discard()
        for collected in waiting:
            if not collected.is_complete:
                collected.is_complete = True
                gradients = JoinGradients(collected.join, None, None, None)
                self._on_gradients(collected.site_join, gradients)

    def discard(self) -> None:
        """Remove the hooks and deliver nothing: the backward pass never came to its end."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._collected.clear()

    def _attach(self, site: JoinSite) -> None:
        collected = _Collected(site.join)
        self._collected.append(collected)
        if site.node is not None:
            hook = partial(_take_join, collected)
            self._handles.append(site.node.register_prehook(hook))
        if site.fork is None or site.shortcut_edges is None or site.branch_edges is None:
            return
        by_reader: dict[Node, list[tuple[str, int, int]]] = {}
        for side, edges in (("shortcut", site.shortcut_edges), ("branch", site.branch_edges)):
            for reader, slot, number in edges:
                by_reader.setdefault(reader, []).append((side, slot, number))
        for reader, reads in by_reader.items():
            self._handles.append(reader.register_hook(partial(_take_edges, collected, reads)))
        shapes = [tuple(part.shape) for part in site.fork._input_metadata]
        used = {read[2] for reads in by_reader.values() for read in reads}
        take = partial(_take_fork, collected, shapes, max(used, default=0) + 1, self._on_gradients)
        self._handles.append(site.fork.register_prehook(take))


def _take_join(collected: _Collected, gradients: tuple[Tensor | None, ...]) -> None:
    collected.join = tuple(gradient for gradient in gradients if gradient is not None)


def _take_edges(
    collected: _Collected,
    reads: list[tuple[str, int, int]],
    gradients: tuple[Tensor | None, ...],
    _: tuple[Tensor | None, ...],
) -> None:
    for side, slot, number in reads:
        gradient = gradients[slot]
        if gradient is not None:
            collected.add(side, number, gradient)


def _take_fork(
    collected: _Collected,
    shapes: list[tuple[int, ...]],
    num_parts: int,
    on_gradients: OnGradients,
    gradients: tuple[Tensor | None, ...],
) -> None:
    known = next((g for g in gradients if g is not None), None)
    if collected.is_complete or known is None:
        return
    collected.is_complete = True
    num_parts = max(num_parts, *(n + 1 for n, g in enumerate(gradients) if g is not None))
    fork = [
        gradient if gradient is not None else known.new_zeros(shapes[number])
        for number, gradient in enumerate(gradients[:num_parts])
    ]
    shortcut, branch = collected.side("shortcut", fork), collected.side("branch", fork)
    collected.parts = {}
    on_gradients(collected.site_join, JoinGradients(collected.join, shortcut, branch, tuple(fork)))


def _sum(gradients: list[Tensor], like: Tensor) -> Tensor:
    """Add what arrived by several edges; undo broadcasting, as the engine does after the hooks."""
    total: Tensor | None = None
    for gradient in gradients:
        part = gradient if gradient.shape == like.shape else gradient.sum_to_size(like.shape)
        total = part if total is None else total + part
    return torch.zeros_like(like) if total is None else total


Loss = Callable[[Any, Any], Tensor]


def splits_of_model(
    model: nn.Module, inputs: Any, targets: Any, loss: Loss
) -> dict[str, list[Any]]:
    """Return the splits of the gradient at every join of a model, for one batch.

    ``g_s`` and ``g_b`` are the parts of ∂L/∂x that arrive at the fork x through the shortcut and
    through the branch, each taken at the edges by which it reads x. The model runs in the mode it
    is in. Weights, buffers, ``.grad``, hooks and the random state stay as they are.

    Args:
        model: Any eager model.
        inputs: Its argument; a tuple or list of positional, a mapping of keyword arguments.
        targets: Second argument of `loss`.
        loss: ``loss(output, target)``, the mean over the batch.

    Returns:
        Columns: ``join`` and those of `SPLIT_COLUMNS`; norms in units of the loss per unit of the
        tensor. None where the backward pass computes nothing.

    Raises:
        ValueError: If the loss is not one number, or does not depend on the model.
    """
    rows: dict[int, list[Any]] = {}

    def note(join: Join, gradients: JoinGradients) -> None:
        products = split_products(gradients).tolist()
        rows[join.index] = statistics_of_products(gradients, products)

    plan = join_gradients(model, inputs, targets, loss, note)
    columns: dict[str, list[Any]] = {"join": [join.index for join in plan.joins]}
    for place, column in enumerate(SPLIT_COLUMNS):
        columns[column] = [rows[join.index][place] for join in plan.joins]
    return columns


def join_gradients(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Loss,
    on_gradients: Callable[[Join, JoinGradients], None],
) -> JoinPlan:
    """Run a model forward and backward once; deliver the gradients at each of its joins.

    Args:
        model: Any eager model.
        inputs: As for `splits_of_model`.
        targets: Second argument of `loss`.
        loss: ``loss(output, target)``.
        on_gradients: Called once for each join; the tensors must not be written to.

    Returns:
        The joins of this forward pass.

    Raises:
        ValueError: If the loss is not one number, or does not depend on the model.
    """
    model = unwrapped(model)
    with preserve_state(model), torch.enable_grad():
        copies: dict[int, tuple[Tensor, Tensor]] = {}
        args, kwargs = cloned(call_arguments(inputs), requires_grad=True, memo=copies)
        output, log = watched_forward(model, args, kwargs)
        value = loss(output, targets)
        _check_loss(value)
        roots = list(dict.fromkeys([*output_nodes(output), value.grad_fn]))
        plan = joins_in_graph([node for node in roots if node is not None], log)
        sites = plan.sites([node for node in roots if node is not None])
        hooks = SplitHooks(sites or [], on_gradients)
        leaves = [*model.parameters(), *(leaf for leaf, _ in copies.values())]
        needed = [leaf for leaf in leaves if leaf.requires_grad]
        try:
            torch.autograd.grad(value, needed, allow_unused=True)
        finally:
            hooks.finish()
    return plan


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        seen = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"the loss has {seen}; expected one number. Let loss(output, target) return the mean."
        )
    if value.grad_fn is None:
        raise ValueError(
            "the loss has no gradient; expected one that depends on the model. Compute it from the "
            "model's output without detach or no_grad."
        )

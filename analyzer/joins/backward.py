"""The gradient that arrives at a fork, taken apart exactly: through shortcut and through branch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from analyzer.joins.addends import Addends, JoinOutputs, statistics_of
from analyzer.joins.calls import tensors_in
from analyzer.joins.find import call_arguments, output_nodes, watched_forward
from analyzer.joins.graph import Walk
from analyzer.joins.model_state import check_loss, cloned, preserve_state, unwrapped
from analyzer.joins.plan import JoinPlan, JoinSite, joins_in_graph
from analyzer.joins.products import (
    SPLIT_COLUMNS,
    JoinGradients,
    split_products,
    statistics_of_products,
)
from analyzer.joins.search import Join
from analyzer.joins.trace import ForwardTrace

__all__ = ["SplitHooks", "join_gradients", "node_of_loss", "splits_of_model"]

Parts = tuple[Tensor, ...]
OnGradients = Callable[[Join, JoinGradients], None]
Loss = Callable[[Any, Any], Tensor]


class _Arrivals:
    """The gradients of one join as they arrive; holds no node, because nodes hold it as hooks."""

    def __init__(self, join: Join, on_gradients: OnGradients) -> None:
        self._of = join
        self._on_gradients = on_gradients
        self._join: Parts | None = None
        self._parts: dict[tuple[str, int], list[Tensor]] = {}
        self._is_complete = False

    def take_join(self, gradients: tuple[Tensor | None, ...]) -> None:
        self._join = tuple(gradient for gradient in gradients if gradient is not None)

    def take_edges(
        self,
        reads: list[tuple[str, int, int]],
        gradients: tuple[Tensor | None, ...],
        _: tuple[Tensor | None, ...],
    ) -> None:
        for side, slot, number in reads:
            gradient = gradients[slot]
            if gradient is not None:
                self._parts.setdefault((side, number), []).append(gradient)

    def take_part(self, side: str, number: int, gradient: Tensor | None) -> None:
        """Take what one side sends to an output of the fork."""
        if gradient is not None:
            self._parts.setdefault((side, number), []).append(gradient)

    def take_fork(
        self,
        shapes: list[tuple[int, ...]],
        num_parts: int,
        gradients: tuple[Tensor | None, ...],
    ) -> None:
        known = next((g for g in gradients if g is not None), None)
        if known is None or self._is_complete:
            return
        if type(known) is not Tensor or known.layout is not torch.strided:
            return self.deliver()  # no arithmetic inside of the program's own backward pass
        num_parts = max(num_parts, *(n + 1 for n, g in enumerate(gradients) if g is not None))
        fork = [
            gradient if gradient is not None else known.new_zeros(shapes[number])
            for number, gradient in enumerate(gradients[:num_parts])
        ]
        shortcut, branch = (
            tuple(_sum(self._parts.get((side, n), []), like) for n, like in enumerate(fork))
            for side in _SIDES
        )
        self.deliver(shortcut, branch, tuple(fork))

    def deliver(
        self, shortcut: Parts | None = None, branch: Parts | None = None, fork: Parts | None = None
    ) -> None:
        """Hand over the gradients, once."""
        if not self._is_complete:
            self._is_complete = True
            self._parts = {}
            self._on_gradients(self._of, JoinGradients(self._join, shortcut, branch, fork))


_SIDES = ("shortcut", "branch")


class _Shared:
    """The nodes that both sides of a join pass before they come to its fork.

    The backward pass sends through them the sum of both gradients. Just before it does, each node
    is called with that of each side alone.
    """

    def __init__(self, site: JoinSite, arrivals: _Arrivals) -> None:
        self._arrivals = arrivals
        self.nodes = list(site.shared)
        self._fork = site.fork
        self._waiting: dict[tuple[int, int, int], list[Tensor]] = {}

    def attach(self, site: JoinSite) -> list[Any]:
        """Hook the nodes, and those that read them; return the handles."""
        handles = []
        by_reader: dict[Node, list[tuple[int, int]]] = {}
        for reader, slot, side in site.shared_edges:
            by_reader.setdefault(reader, []).append((slot, side))
        for reader, reads in by_reader.items():
            goals = [(slot, side, *reader.next_functions[slot]) for slot, side in reads]
            places = [(s, side, self.nodes.index(c), number) for s, side, c, number in goals if c]
            handles.append(reader.register_hook(partial(self._take, places)))
        for place, node in enumerate(self.nodes):
            handles.append(node.register_prehook(partial(self._pass, place)))
        return handles

    def discard(self) -> None:
        """Hold no node any more: a node holds this, by its hooks."""
        self.nodes, self._fork = [], None

    def _take(
        self,
        places: list[tuple[int, int, int, int]],
        gradients: tuple[Tensor | None, ...],
        _: tuple[Tensor | None, ...],
    ) -> None:
        for slot, side, place, number in places:
            self._wait(side, place, number, gradients[slot])

    def _wait(self, side: int, place: int, number: int, gradient: Tensor | None) -> None:
        if gradient is not None:
            self._waiting.setdefault((side, place, number), []).append(gradient)

    def _pass(self, place: int, gradients: tuple[Tensor | None, ...]) -> None:
        node: Any = self.nodes[place]
        metadata = node._input_metadata
        known = next((gradient for gradient in gradients if gradient is not None), None)
        if known is None:
            return
        for side in (0, 1):
            given = [self._waiting.pop((side, place, n), []) for n in range(len(metadata))]
            if not any(given):
                continue
            like = [known.new_zeros(tuple(part.shape)) for part in metadata]
            with torch.no_grad():
                made = node(*[_sum(*pair) for pair in zip(given, like, strict=True)])
            made = made if isinstance(made, tuple) else (made,)
            for gradient, (child, number) in zip(made, node.next_functions, strict=True):
                if child is self._fork:
                    self._arrivals.take_part(_SIDES[side], number, gradient)
                elif child in self.nodes:
                    self._wait(side, self.nodes.index(child), number, gradient)


class SplitHooks:
    """Hooks on the joins of a graph, so that its backward pass delivers their split gradients.

    Each join is delivered once, from `finish` where no gradient reached its fork. No gradient
    changes and nothing is computed twice. The tensors are the backward pass's own: they must not be
    written to. Call `finish` after the backward pass, always.
    """

    def __init__(self, sites: Iterable[JoinSite], on_gradients: OnGradients) -> None:
        self._handles: list[Any] = []
        self._arrivals: list[_Arrivals] = []
        self._shared: list[_Shared] = []
        for site in sites:
            arrivals = _Arrivals(site.join, on_gradients)
            self._arrivals.append(arrivals)
            self._attach(site, arrivals)

    def finish(self) -> None:
        """Remove the hooks; deliver the joins whose fork no gradient reached."""
        waiting = list(self._arrivals)
        self.discard()
        for arrivals in waiting:
            arrivals.deliver()

    def discard(self) -> None:
        """Remove the hooks and deliver nothing: the backward pass never came to its end."""
        for handle in self._handles:
            handle.remove()
        for shared in self._shared:
            shared.discard()
        self._handles.clear()
        self._arrivals.clear()
        self._shared.clear()

    def _attach(self, site: JoinSite, arrivals: _Arrivals) -> None:
        if site.node is not None:
            self._handles.append(site.node.register_prehook(arrivals.take_join))
        if site.fork is None or site.shortcut_edges is None or site.branch_edges is None:
            return
        if any(isinstance(node, BackwardCFunction) for node in site.shared):
            return  # it may do more than it returns: only the backward pass itself may call it
        if site.shared:
            self._shared.append(_Shared(site, arrivals))
            self._handles += self._shared[-1].attach(site)
        by_reader: dict[Node, list[tuple[str, int, int]]] = {}
        for side, edges in zip(_SIDES, (site.shortcut_edges, site.branch_edges), strict=True):
            for reader, slot, number in edges:
                by_reader.setdefault(reader, []).append((side, slot, number))
        for reader, reads in by_reader.items():
            self._handles.append(reader.register_hook(partial(arrivals.take_edges, reads)))
        shapes = [tuple(part.shape) for part in site.fork._input_metadata]
        used = {read[2] for reads in by_reader.values() for read in reads}
        used |= {
            n for node in site.shared for child, n in node.next_functions if child is site.fork
        }
        take = partial(arrivals.take_fork, shapes, max(used, default=0) + 1)
        self._handles.append(site.fork.register_prehook(take))


def _sum(gradients: list[Tensor], like: Tensor) -> Tensor:
    """Add what arrived by several edges; undo broadcasting, as the engine does after the hooks."""
    total: Tensor | None = None
    for gradient in gradients:
        part = gradient if gradient.shape == like.shape else gradient.sum_to_size(like.shape)
        total = part if total is None else total + part
    return torch.zeros_like(like) if total is None else total


def splits_of_model(
    model: nn.Module, inputs: Any, targets: Any, loss: Loss
) -> dict[str, list[Any]]:
    """Return the splits of the gradient at every join of a model, for one batch.

    ``g_s`` and ``g_b`` are the parts of ∂L/∂x that arrive at the fork x through the shortcut and
    through the branch, each taken at the edges by which it reads x; with them what the forward pass
    adds. The model runs in the mode it is in. Weights, buffers, ``.grad``, hooks and the random
    state stay as they are.

    Returns:
        Columns: ``join`` and those of `SPLIT_COLUMNS`; norms in units of the loss per unit of the
        tensor. None where the backward pass computes nothing.

    Raises:
        ValueError: If the loss is not one number, or does not depend on the model.
    """
    rows: dict[int, list[Any]] = {}
    outputs: list[JoinOutputs | None] = []
    addends = Addends(follows=True)

    def note(join: Join, gradients: JoinGradients) -> None:
        products = split_products(gradients).tolist()
        rows[join.index] = statistics_of_products(gradients, products)

    plan = join_gradients(
        model,
        inputs,
        targets,
        loss,
        note,
        lambda sites: outputs.extend(addends.outputs(sites)),
        addends,
    )
    for join, output in zip(plan.joins, outputs, strict=True):
        rows[join.index] += statistics_of(output)
    columns: dict[str, list[Any]] = {"join": [join.index for join in plan.joins]}
    for place, column in enumerate(SPLIT_COLUMNS):
        columns[column] = [rows[join.index][place] for join in plan.joins]
    return columns


def join_gradients(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Loss,
    on_gradients: OnGradients,
    on_sites: Callable[[list[JoinSite]], object] = lambda sites: None,
    trace: ForwardTrace | None = None,
) -> JoinPlan:
    """Run a model forward and backward once; deliver the gradients at each join; return the joins.

    ``on_sites`` gets where they are in the graph, before the backward pass; ``trace`` follows the
    forward pass.

    Raises:
        ValueError: If the loss is not one number, or does not depend on the model.
    """
    model = unwrapped(model)
    check_loss(loss)
    with preserve_state(model), torch.enable_grad():
        copies: dict[int, tuple[Tensor, Tensor]] = {}
        args, kwargs = cloned(call_arguments(inputs), requires_grad=True, memo=copies)
        output, log = watched_forward(model, args, kwargs, trace)
        value = loss(output, targets)
        node_of_loss(value)
        walk = Walk(output_nodes([*tensors_in(output), value]))
        plan = joins_in_graph(walk, log)
        sites = plan.sites(walk) or []
        on_sites(sites)
        hooks = SplitHooks(sites, on_gradients)
        leaves = [*model.parameters(), *(leaf for leaf, _ in copies.values())]
        needed = [leaf for leaf in leaves if leaf.requires_grad]
        try:
            torch.autograd.grad(value, needed, allow_unused=True)
        finally:
            hooks.finish()
    return plan


def node_of_loss(value: Any) -> Node:
    """Return the node that made a loss; refuse one that is not one number with a gradient."""
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
    return value.grad_fn

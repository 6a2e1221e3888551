"""The gradient that arrives at a fork, taken apart exactly: through shortcut and through branch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from analyzer.joins.plan import Join, JoinSite
from analyzer.joins.statistics import JoinGradients

__all__ = ["SplitHooks", "attach"]

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
    """The hooks of one backward pass on the joins of its graph.

    Args:
        sites: The joins in the graph that is going to run backward.
        on_gradients: Called with each join and its gradients as soon as both are complete.
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


def attach(sites: Iterable[JoinSite], on_gradients: OnGradients) -> SplitHooks:
    """Hook the joins of a graph, so that its backward pass delivers their split gradients.

    No gradient changes and nothing is computed twice. The tensors are the backward pass's own: they
    must not be written to. Call `finish` on the result after the backward pass, always.

    Args:
        sites: The joins in the graph that is going to run backward, from `JoinPlan.sites`.
        on_gradients: Called during the backward pass with a join and its gradients, once each;
            from `finish` for those whose fork no gradient reached.

    Returns:
        The hooks.
    """
    return SplitHooks(sites, on_gradients)


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

"""The joins of a network, found once, and where they are in any equal graph."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from analyzer.joins.calls import CallLog
from analyzer.joins.graph import Dataflow, Walk
from analyzer.joins.search import Edge, Join, JoinVertices, joins_of_model

__all__ = ["HIDDEN", "JoinPlan", "JoinSite", "hiding_reason", "joins_in_graph"]

HIDDEN = {
    "CheckpointFunctionBackward": "reentrant checkpointing hides what it computes",
    "CompiledFunctionBackward": "compiled code hides what it computes",
}
N = TypeVar("N")


@dataclass(frozen=True, eq=False)
class _Site(Generic[N]):
    """A join in one autograd graph, whose nodes are given as such or as numbers in a `Walk`.

    Args:
        node: The node that adds or concatenates; None in a part without gradient.
        fork: The node that made the fork; None where autograd does not see it.
        branch_slots: Inputs of `node` that come from the branch.
        shortcut_edges: Reads of the fork by the shortcut: (reader, its input slot, output number
            of the fork); None where autograd does not see one of them.
        branch_edges: Reads of the fork by the branch, likewise.
        gate_edges: Reads, by products on the shortcut, of what only scales it there: a gate, which
            belongs to the branch.
    """

    join: Join
    node: N | None
    fork: N | None
    branch_slots: tuple[int, ...]
    shortcut_edges: tuple[tuple[N, int, int], ...] | None
    branch_edges: tuple[tuple[N, int, int], ...] | None
    gate_edges: tuple[tuple[N, int, int], ...]


JoinSite = _Site[Node]


class JoinPlan:
    """The joins of a network, found once, located in the graph of each later forward pass.

    Holds no node of any graph.

    Args:
        places: The joins, forward order, by the numbers of their nodes in the walk of the graph.
        num_nodes: How many nodes the graph has.
        structure: What a graph must look like for the places to hold.
        unseen: Modules whose joins cannot be seen, with the reason.
        parameters: Those that the graph reads. The plan ends with the first of them: a later one
            may have its address.
        types: The types of the nodes, which are held for the same reason.
        weights: Per join the parameters of its branch: their elements by their ``id``.
    """

    def __init__(
        self,
        places: list[_Site[int]],
        num_nodes: int,
        structure: bytes,
        unseen: list[tuple[str, str]],
        parameters: Iterable[nn.Parameter],
        types: Iterable[type],
        weights: list[dict[int, int]],
    ) -> None:
        self.weights = weights
        self.joins = [place.join for place in places]
        self.unseen = unseen
        self._places, self._num_nodes = places, num_nodes
        self._structure, self._types = structure, frozenset(types)
        self._parameters = [weakref.ref(parameter) for parameter in parameters]

    def sites(self, roots: Iterable[Node] | Walk) -> list[JoinSite] | None:
        """Return the joins in another graph of the same network; None where it differs.

        The roots, or the walk from them, are the nodes that correspond to those in which the joins
        were found, in the same order.
        """
        walk = roots if isinstance(roots, Walk) else Walk(roots)
        if len(walk.nodes) != self._num_nodes or walk.structure() != self._structure:
            return None
        if any(ref() is None for ref in self._parameters):
            return None
        return [
            JoinSite(
                join=at.join,
                node=None if at.node is None else walk.nodes[at.node],
                fork=None if at.fork is None else walk.nodes[at.fork],
                branch_slots=at.branch_slots,
                shortcut_edges=_nodes(walk, at.shortcut_edges),
                branch_edges=_nodes(walk, at.branch_edges),
                gate_edges=_nodes(walk, at.gate_edges),
            )
            for at in self._places
        ]


def joins_in_graph(roots: Iterable[Node] | Walk, log: CallLog) -> JoinPlan:
    """Find the residual joins inside of the model's calls; sums of scalars (loss terms) are none.

    Args:
        roots: Autograd nodes of the model's outputs, or of the loss; or the walk from them.
        log: The module calls of the forward that made the graph.
    """
    walk = roots if isinstance(roots, Walk) else Walk(roots)
    flow = Dataflow(walk, log)
    found, is_whole = joins_of_model(flow, log)
    places = [_place(walk, flow, join, vertices) for join, vertices in found]
    unseen = _hidden_parts(walk, log)
    if not is_whole:
        reason = (
            f"its graph of {len(walk.nodes):,} operations is too large to be searched to its end"
        )
        unseen += [(log.root_name(log.calls[0]), reason)]
    types = map(type, walk.nodes)
    read = flow.parameters
    weights = [
        {id(p): p.numel() for vertex in vertices.branch_region for p in read[vertex]}
        for _, vertices in found
    ]
    structure, parameters = walk.structure(), walk.parameters()
    return JoinPlan(places, len(walk.nodes), structure, unseen, parameters, types, weights)


def _place(walk: Walk, flow: Dataflow, join: Join, vertices: JoinVertices) -> _Site[int]:
    def edges(reads: tuple[Edge, ...]) -> tuple[Edge, ...] | None:
        found = [(walk.place.get(flow.vertices[v]), slot, number) for v, slot, number in reads]
        seen = tuple((at, slot, number) for at, slot, number in found if at is not None)
        return seen if len(seen) == len(reads) and all(slot >= 0 for _, slot, _ in seen) else None

    fork = walk.place.get(flow.vertices[vertices.fork])
    shortcut = None if fork is None else edges(vertices.shortcut_edges)
    branch = None if fork is None else edges(vertices.branch_edges)
    gates = (edges((gate,)) or () for gate in vertices.gate_edges if shortcut and branch)
    return _Site(
        join=join,
        node=walk.place.get(flow.vertices[vertices.join]),
        fork=fork,
        branch_slots=vertices.branch_slots,
        shortcut_edges=shortcut,
        branch_edges=branch,
        gate_edges=tuple(edge for found in gates for edge in found),
    )


def _nodes(walk: Walk, edges: tuple[Edge, ...] | None) -> Any:
    return edges and tuple((walk.nodes[at], slot, number) for at, slot, number in edges)


def _hidden_parts(walk: Walk, log: CallLog) -> list[tuple[str, str]]:
    """Return the modules whose joins cannot be seen, with the reason, in graph order."""
    found: dict[tuple[str, str], None] = {}
    for node in walk.nodes:
        if isinstance(node, BackwardCFunction):
            call = log.innermost(node._sequence_nr())
            if call is not None:
                found[log.root_name(call), hiding_reason(type(node).__name__)] = None
    return list(found)


def hiding_reason(function: str) -> str:
    """Return why the joins behind a custom autograd function cannot be seen."""
    name = function.rpartition("::")[2].removesuffix("Backward")
    return HIDDEN.get(function, f"the custom function {name}")

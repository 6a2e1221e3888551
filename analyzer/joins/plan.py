"""The joins of a network, found once, and where they are in any equal graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from analyzer.joins.calls import CallLog
from analyzer.joins.graph import Dataflow, Part, Walk
from analyzer.joins.modes import UnseenReference, without_collections
from analyzer.joins.operations import NODE_KINDS
from analyzer.joins.search import FoundJoins, Join, joins_of_model

__all__ = [
    "HIDDEN",
    "OPAQUE",
    "JoinPlan",
    "JoinSite",
    "adds_unseen",
    "hiding_reason",
    "joins_in_graph",
    "what_is_hidden",
]

HIDDEN = {
    "CheckpointFunctionBackward": "reentrant checkpointing hides what it computes",
    "CompiledFunctionBackward": "compiled code hides what it computes",
}
OPAQUE = frozenset(HIDDEN)
"""Nodes behind which there may be layers."""
N = TypeVar("N")


@dataclass(eq=False, slots=True)
class _Site(Generic[N]):
    """A join in one autograd graph, whose nodes are given as such or as numbers in a `Walk`.

    Args:
        node: The node that adds or concatenates; None in a part without gradient.
        fork: The node that made the fork; None where autograd does not see it.
        branch_entries: Edges by which the branch is added, (reader, its input slot): the reader is
            `node`, an earlier sum of the same chain, or what stacks the operands. Those that
            autograd does not see are left out.
        shortcut_entries: Edges by which the shortcuts are added, likewise.
        shortcut_edges: Reads of the fork by the shortcut: (reader, its input slot, output number
            of the fork); None where autograd does not see one of them.
        branch_edges: Reads of the fork by the branch, likewise.
        shared: Nodes that both sides pass before they come to the fork, each before what it reads.
        shared_edges: Reads of those by one side: (reader, its input slot, 1 for the branch).
        gate_edges: Reads, by products on either side, of what only scales it there: a gate, which
            belongs to the branch.
        tick: The followed function that adds or concatenates, where autograd does not see it; the
            first one of the first forward pass has the number 1.
        branch_ticks: Entries of the branch that autograd does not see: (function, operand).
        shortcut_ticks: Those of the shortcuts.
    """

    join: Join
    node: N | None
    fork: N | None
    branch_entries: tuple[tuple[N, int], ...]
    shortcut_entries: tuple[tuple[N, int], ...]
    shortcut_edges: tuple[tuple[N, int, int], ...] | None
    branch_edges: tuple[tuple[N, int, int], ...] | None
    gate_edges: tuple[tuple[N, int, int], ...]
    shared: tuple[N, ...] = ()
    shared_edges: tuple[tuple[N, int, int], ...] = ()
    tick: int = -1
    branch_ticks: tuple[tuple[int, int], ...] = ()
    shortcut_ticks: tuple[tuple[int, int], ...] = ()


JoinSite = _Site[Node]


class JoinPlan:
    """The joins of a network, found once, located in the graph of each later forward pass.

    Holds no node of any graph.

    Args:
        places: The joins, forward order, by the numbers of their nodes in the walk of the graph.
        num_nodes: How many nodes the graph has.
        structure: What a graph must look like for the places to hold.
        unseen: Modules whose joins cannot be seen, with the reason.
        passed_over: Modules with sums that look like joins and are none, with the reason.
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
        passed_over: list[tuple[str, str]],
        parameters: Iterable[nn.Parameter],
        types: Iterable[type],
        weights: list[dict[int, int]],
    ) -> None:
        self.weights = weights
        self.joins = [place.join for place in places]
        self.unseen, self.passed_over = unseen, passed_over
        self._places, self._num_nodes = places, num_nodes
        self._structure, self._types = structure, frozenset(types)
        self._parameters = [UnseenReference(parameter) for parameter in parameters]

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
                branch_entries=_nodes(walk, at.branch_entries),
                shortcut_entries=_nodes(walk, at.shortcut_entries),
                shortcut_edges=_nodes(walk, at.shortcut_edges),
                branch_edges=_nodes(walk, at.branch_edges),
                gate_edges=_nodes(walk, at.gate_edges),
                shared=tuple(walk.nodes[number] for number in at.shared),
                shared_edges=_nodes(walk, at.shared_edges),
                tick=at.tick,
                branch_ticks=at.branch_ticks,
                shortcut_ticks=at.shortcut_ticks,
            )
            for at in self._places
        ]


@without_collections()
def joins_in_graph(roots: Iterable[Node] | Walk, log: CallLog) -> JoinPlan:
    """Find the residual joins inside of the model's calls; sums of scalars (loss terms) are none.

    Args:
        roots: Autograd nodes of the model's outputs, or of the loss; or the walk from them.
        log: The module calls of the forward that made the graph.
    """
    walk = roots if isinstance(roots, Walk) else Walk(roots)
    flow = Dataflow(walk, log)
    found = joins_of_model(flow, log)
    first = log.calls[0].tick if log.calls else 0
    places = _places(walk, flow, first, found)
    unseen = _hidden_parts(walk, log)
    if not found.is_whole:
        reason = (
            f"its graph of {len(walk.nodes):,} operations is too large to be searched to its end"
        )
        unseen += [(log.root_name(log.calls[0]), reason)]
    types = map(type, walk.nodes)
    sizes = flow.sizes
    weights = [
        dict(chain.from_iterable(sizes[vertex].items() for vertex in vertices.branch_region))
        for _, vertices in found.joins
    ]
    return JoinPlan(
        places,
        len(walk.nodes),
        walk.structure(),
        unseen,
        found.passed_over,
        walk.parameters(),
        types,
        weights,
    )


def _places(walk: Walk, flow: Dataflow, first: int, found: FoundJoins) -> list[_Site[int]]:
    """Return where the joins are in the walk of their graph; `first` is the first call's tick."""
    made: list[Any] = [maker.node if isinstance(maker, Part) else maker for maker in flow.vertices]
    numbers = [walk.place.get(maker) for maker in made]

    def seen(edges: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        if not edges:
            return ()
        places = [(numbers[edge[0]], *edge[1:]) for edge in edges if edge[1] >= 0]
        return tuple([edge for edge in places if edge[0] is not None])

    def ticks(edges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        unseen = [(v, slot) for v, slot in edges if v in flow.unseen] if flow.unseen else ()
        return tuple([(made[vertex].tick - first, slot) for vertex, slot in unseen])

    places = []
    for join, at in found.joins:
        fork, shared = numbers[at.fork], [numbers[vertex] for vertex in at.shared]
        is_apart = fork is not None and at.is_apart and None not in shared
        shortcut, branch = seen(at.shortcut_edges), seen(at.branch_edges)
        has_shortcut = is_apart and len(shortcut) == len(at.shortcut_edges)
        has_branch = is_apart and len(branch) == len(at.branch_edges)
        place = _Site(
            join=join,
            node=numbers[at.join],
            fork=fork,
            branch_entries=seen(at.branch_entries),
            shortcut_entries=seen(at.shortcut_entries),
            shortcut_edges=shortcut if has_shortcut else None,
            branch_edges=branch if has_branch else None,
            gate_edges=seen(at.gate_edges),
            shared=tuple([number for number in shared if number is not None]),
            shared_edges=seen([(v, slot, side) for side, v, slot in at.shared_edges]),
            tick=made[at.join].tick - first if at.join in flow.unseen else -1,
            branch_ticks=ticks(at.branch_entries),
            shortcut_ticks=ticks(at.shortcut_entries),
        )
        places.append(place)
    return places


def _nodes(walk: Walk, edges: tuple[tuple[int, ...], ...] | None) -> Any:
    return edges and tuple((walk.nodes[at], *rest) for at, *rest in edges)


def _hidden_parts(walk: Walk, log: CallLog) -> list[tuple[str, str]]:
    """Return the modules whose joins cannot be seen, with the reason, in graph order."""
    found: dict[tuple[str, str], None] = {}
    for node in walk.nodes:
        if isinstance(node, BackwardCFunction):
            call = log.innermost(node._sequence_nr())
            if call is not None:
                found[log.root_name(call), hiding_reason(type(node).__name__)] = None
    return list(found)


def adds_unseen(walk: Walk) -> bool:
    """Whether a graph adds or joins something that autograd does not see: data or a constant."""
    kinds = ("add", "cat", "stack")
    return any(
        NODE_KINDS.get(type(node).__name__) in kinds and any(child is None for child, _ in edges)
        for node, edges in zip(walk.nodes, walk.edges, strict=True)
    )


def hiding_reason(function: str) -> str:
    """Return why the joins behind a custom autograd function cannot be seen."""
    name = function.rpartition("::")[2].removesuffix("Backward")
    return HIDDEN.get(function, f"the custom function {name}")


def what_is_hidden(reason: str) -> str:
    """Return what cannot be seen for a reason: a custom function hides no layer, as a rule."""
    return "joins and edges" if reason in HIDDEN.values() else "joins"

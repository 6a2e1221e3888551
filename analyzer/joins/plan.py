"""The joins of a network: their names and layers, and where they are in any equal graph."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from analyzer.joins.calls import CallLog, ModuleCall
from analyzer.joins.graph import Dataflow, Walk
from analyzer.joins.search import Edge, JoinVertices, joins_of
from analyzer.joins.trace import Untracked

__all__ = [
    "HIDDEN",
    "Join",
    "JoinPlan",
    "JoinSite",
    "hiding_reason",
    "joins_in_graph",
    "joins_of_model",
    "numbered",
]


HIDDEN = {
    "CheckpointFunctionBackward": "reentrant checkpointing hides what it computes",
    "CompiledFunctionBackward": "compiled code hides what it computes",
}


@dataclass(frozen=True)
class Join:
    """A place where a shortcut and a residual branch that left the same tensor meet again.

    Args:
        index: Number in forward order, from 0.
        name: Path of the innermost module whose call contains fork and join.
        operation: ``add`` | ``cat``.
        shortcut: ``identity`` | ``projection`` | ``concat``.
        branch_layers: Names of the branch's layers, forward order; a gate's are among them.
        shortcut_layers: Names of the layers on the shortcut's lightest path, forward order.
        branch_parameters: Elements of all different parameters of the branch.
        shortcut_parameters: Elements of the different parameters on the shortcut's lightest path.
    """

    index: int
    name: str
    operation: str
    shortcut: str
    branch_layers: list[str] = field(hash=False)
    shortcut_layers: list[str] = field(hash=False)
    branch_parameters: int
    shortcut_parameters: int


@dataclass(frozen=True, eq=False)
class JoinSite:
    """A join in one autograd graph.

    Args:
        join: The join.
        node: The node that adds or concatenates; None in a part without gradient.
        fork: The node that made the fork; None where autograd does not see it.
        shortcut_slot: Input of `node` that comes from the shortcut.
        branch_slots: Inputs of `node` that come from the branch.
        shortcut_edges: Reads of the fork by the shortcut: (reader, its input slot, output number
            of the fork); None where autograd does not see one of them.
        branch_edges: Reads of the fork by the branch, likewise.
        gate_edges: Reads, by products on the shortcut, of what only scales it there: a gate, which
            belongs to the branch.
    """

    join: Join
    node: Node | None
    fork: Node | None
    shortcut_slot: int
    branch_slots: tuple[int, ...]
    shortcut_edges: tuple[tuple[Node, int, int], ...] | None
    branch_edges: tuple[tuple[Node, int, int], ...] | None
    gate_edges: tuple[tuple[Node, int, int], ...]


@dataclass(frozen=True)
class _Location:
    """A `JoinSite` by the numbers of the nodes in a `Walk`."""

    node: int | None
    fork: int | None
    shortcut_slot: int
    branch_slots: tuple[int, ...]
    shortcut_edges: tuple[Edge, ...] | None
    branch_edges: tuple[Edge, ...] | None
    gate_edges: tuple[Edge, ...]


class JoinPlan:
    """The joins of a network, found once, located in the graph of each later forward pass.

    Holds no node of any graph.

    Args:
        joins: The joins, forward order.
        locations: Where each is in the walk of the graph.
        structure: What a graph must look like for the locations to hold.
        unseen: Modules whose joins cannot be seen, with the reason.
    """

    def __init__(
        self,
        joins: list[Join],
        locations: list[_Location],
        structure: list[tuple[object, ...]],
        unseen: list[tuple[str, str]],
    ) -> None:
        self.joins = joins
        self.unseen = unseen
        self._locations = locations
        self._structure = structure

    def sites(self, roots: Iterable[Node] | Walk) -> list[JoinSite] | None:
        """Return the joins in another graph of the same network; None where it differs.

        Args:
            roots: The nodes that correspond to those in which the joins were found, same order; or
                the walk from them.
        """
        walk = roots if isinstance(roots, Walk) else Walk(roots)
        if len(walk.nodes) != len(self._structure) or walk.structure() != self._structure:
            return None
        return [
            JoinSite(
                join=join,
                node=None if at.node is None else walk.nodes[at.node],
                fork=None if at.fork is None else walk.nodes[at.fork],
                shortcut_slot=at.shortcut_slot,
                branch_slots=at.branch_slots,
                shortcut_edges=_nodes(walk, at.shortcut_edges),
                branch_edges=_nodes(walk, at.branch_edges),
                gate_edges=_nodes(walk, at.gate_edges),
            )
            for join, at in zip(self.joins, self._locations, strict=True)
        ]


def joins_in_graph(roots: Iterable[Node] | Walk, log: CallLog) -> JoinPlan:
    """Find the residual joins of the graph below some nodes.

    Args:
        roots: Autograd nodes of the model's outputs, or of the loss; or the walk from them.
        log: The module calls of the forward that made the graph; its `ForwardTrace`, where it had
            one, adds what autograd does not see.

    Returns:
        The joins inside of the model's calls, forward order. Sums of scalars (loss terms) are none.
    """
    walk = roots if isinstance(roots, Walk) else Walk(roots)
    flow = Dataflow(walk, log)
    found = joins_of_model(flow, log)
    locations = [_location(walk, flow, vertices) for _, vertices in found]
    hidden = hidden_parts(walk, log)
    return JoinPlan([join for join, _ in found], locations, walk.structure(), hidden)


def joins_of_model(flow: Dataflow, log: CallLog) -> list[tuple[Join, JoinVertices]]:
    """Return the joins inside of a model's calls, each with its vertices, forward order."""
    scopes = Scopes(flow, log)
    owned = [
        (vertices, owner)
        for vertices in joins_of(flow)
        if not _is_scalar(flow, vertices.join) and (owner := scopes.owner(vertices)) is not None
    ]
    names = numbered([log.root_name(owner) for _, owner in owned])
    joins = [
        Join(
            index=index,
            name=name,
            operation=flow.kinds[vertices.join],
            shortcut=_shortcut_kind(flow, vertices),
            branch_layers=scopes.layers(vertices.branch_region, owner, vertices.join),
            shortcut_layers=scopes.layers(vertices.shortcut_path, owner, vertices.join),
            branch_parameters=scopes.parameters(vertices.branch_region, owner),
            shortcut_parameters=scopes.parameters(vertices.shortcut_path, owner),
        )
        for index, (name, (vertices, owner)) in enumerate(zip(names, owned, strict=True))
    ]
    return [(join, vertices) for join, (vertices, _) in zip(joins, owned, strict=True)]


def _shortcut_kind(flow: Dataflow, vertices: JoinVertices) -> str:
    if flow.kinds[vertices.join] == "cat":
        return "concat"
    return "projection" if vertices.shortcut_elements else "identity"


def _is_scalar(flow: Dataflow, vertex: int) -> bool:
    maker = flow.vertices[vertex]
    shape = maker._input_metadata[0].shape if isinstance(maker, Node) else maker.shape
    return len(shape) == 0


def _location(walk: Walk, flow: Dataflow, vertices: JoinVertices) -> _Location:
    def edges(reads: tuple[Edge, ...]) -> tuple[Edge, ...] | None:
        found = [(walk.place.get(flow.vertices[v]), slot, number) for v, slot, number in reads]
        seen = tuple((at, slot, number) for at, slot, number in found if at is not None)
        return seen if len(seen) == len(reads) and all(slot >= 0 for _, slot, _ in seen) else None

    fork = walk.place.get(flow.vertices[vertices.fork])
    shortcut = None if fork is None else edges(vertices.shortcut_edges)
    branch = None if fork is None else edges(vertices.branch_edges)
    gates = (edges((gate,)) or () for gate in vertices.gate_edges if shortcut and branch)
    return _Location(
        node=walk.place.get(flow.vertices[vertices.join]),
        fork=fork,
        shortcut_slot=vertices.shortcut_slot,
        branch_slots=vertices.branch_slots,
        shortcut_edges=shortcut,
        branch_edges=branch,
        gate_edges=tuple(edge for found in gates for edge in found),
    )


def _nodes(walk: Walk, edges: tuple[Edge, ...] | None) -> Any:
    return edges and tuple((walk.nodes[at], slot, number) for at, slot, number in edges)


class Scopes:
    """Which call of a log made which vertex of a graph."""

    def __init__(self, flow: Dataflow, log: CallLog) -> None:
        self.flow = flow
        self.log = log
        self._starts = [call.start for call in log.calls]
        self._ticks = [call.tick for call in log.calls]
        self._layers: dict[int, list[int]] = {}
        for number, call in enumerate(log.calls):
            if call.layer is not None:
                for vertex in self._made_by(call):
                    self._layers.setdefault(vertex, []).append(number)

    def owner(self, vertices: JoinVertices) -> ModuleCall | None:
        """Return the innermost call that contains a join and all that reads its fork.

        None where there is no such call, as for a sum of losses outside of the model, and where
        the join is inside of one of torch's own leaf modules (the cell of an LSTM).
        """
        number = self._innermost(vertices.join)
        if number < 0:
            return None
        module = self.log.calls[number].module
        if type(module).__module__.startswith("torch.nn.") and not module._modules:
            return None
        while number >= 0:
            call = self.log.calls[number]
            if all(self._is_after_start(call, vertex) for vertex in vertices.between):
                return call
            number = call.parent
        return None

    def layers(self, vertices: Iterable[int], owner: ModuleCall, join: int) -> list[str]:
        """Return the names of the layers that made vertices inside of a call, in call order."""
        numbers = {number for vertex in vertices for number in self._layers.get(vertex, ())}
        calls = [self.log.calls[number] for number in sorted(numbers)]
        return [
            call.layer or ""
            for call in calls
            if call.start >= owner.start
            and call.tick >= owner.tick
            and not self._contains(call, join)
        ]

    def parameters(self, vertices: Iterable[int], owner: ModuleCall) -> int:
        """Return the elements of the different parameters that vertices inside of a call read."""
        found: dict[nn.Parameter, None] = {}
        for vertex in vertices:
            if self._is_after_start(owner, vertex):
                found.update(dict.fromkeys(self.flow.parameters[vertex]))
        return sum(parameter.numel() for parameter in found)

    def _made_by(self, call: ModuleCall) -> list[int]:
        """Return the vertices of a layer's outputs.

        Where a view of the output was changed in place, autograd has replaced its node: what the
        layer computed before that view stands for it.
        """
        places = [
            self._by_sequence.get(maker) if isinstance(maker, int) else self.flow.place.get(maker)
            for maker in call.outputs
        ]
        made = [vertex for vertex in places if vertex is not None]
        if made or call.start == call.end:
            return made
        before = bisect_right(self._numbered, (call.end, -1)) - 1
        sequence, vertex = self._numbered[before] if before >= 0 else (-1, -1)
        return [vertex] if sequence >= call.start else []

    @cached_property
    def _by_sequence(self) -> dict[int, int]:
        """Vertex by sequence number: a log may hold numbers, to keep no graph alive."""
        return {sequence: vertex for sequence, vertex in self._numbered if sequence >= 0}

    @cached_property
    def _numbered(self) -> list[tuple[int, int]]:
        """Sequence number and vertex of every autograd node that carries data."""
        return sorted(
            (self.flow.sequences[vertex], vertex)
            for vertex, maker in enumerate(self.flow.vertices)
            if not isinstance(maker, Untracked)
        )

    def _innermost(self, vertex: int) -> int:
        """Return the number of the innermost call that made a vertex, -1 where none did."""
        maker = self.flow.vertices[vertex]
        if isinstance(maker, Untracked):
            number = bisect_right(self._ticks, maker.tick - 1) - 1
        else:
            number = bisect_right(self._starts, self.flow.sequences[vertex]) - 1
        while number >= 0 and not self._contains(self.log.calls[number], vertex):
            number = self.log.calls[number].parent
        return number

    def _contains(self, call: ModuleCall, vertex: int) -> bool:
        maker = self.flow.vertices[vertex]
        if isinstance(maker, Untracked):
            return call.tick < maker.tick <= call.tock
        return call.start <= self.flow.sequences[vertex] < call.end

    def _is_after_start(self, call: ModuleCall, vertex: int) -> bool:
        maker = self.flow.vertices[vertex]
        if isinstance(maker, Untracked):
            return call.tick < maker.tick
        return call.start <= self.flow.sequences[vertex]


def numbered(names: list[str]) -> list[str]:
    """Return names made unique: those that occur more than once get ``#0``, ``#1`` and so on."""
    total, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        result.append(name if total[name] == 1 else f"{name}#{seen[name]}")
        seen[name] += 1
    return result


def hidden_parts(walk: Walk, log: CallLog) -> list[tuple[str, str]]:
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

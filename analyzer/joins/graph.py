"""The data paths of an autograd graph, in forward order, with the parameters that each node reads.

Nodes that only prepare a parameter (a transpose, a view, a parametrization) are no data path: what
they read counts as parameters of the node that they feed.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any

from torch import nn
from torch.autograd.graph import Node

from analyzer.joins.calls import CallLog, ModuleCall
from analyzer.joins.operations import FUSED, kind_of_node
from analyzer.joins.trace import TracedCall, Untracked, is_parameter

__all__ = ["MAJOR", "Dataflow", "Part", "Scopes", "Walk"]

Edge = tuple[Node | None, int]
Weights = tuple[nn.Parameter, ...]
Read = tuple[int, int, int]
Item = tuple[int, int, int, Any, Any]
NO_SLOT = -1
MAJOR = 1 << 40
"""By how much an element of a weight counts more than one of a mere factor."""
# A factor makes no features of its own; a bias or a bound adds nothing to what it is applied to.
_WEIGHTS = {"add": 0, "product": 1, "element": 0}
_NONE: dict[int, int] = {}


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """What a node computes before it adds it to its first operand (``addmm``, ``addcmul``)."""

    node: Node


class Walk:
    """All nodes below some roots, in an order that depends on the graph's structure alone."""

    def __init__(self, roots: Iterable[Node]) -> None:
        self.edges: list[tuple[Edge, ...]] = []
        self.variables: list[Any] = []  # what the nodes that read no others stand for
        place: dict[Node, int] = {}
        stack, note = list(roots)[::-1], self.edges.append
        while stack:
            node = stack.pop()
            if node in place:
                continue
            place[node] = len(place)
            edges = node.next_functions
            note(edges)
            if not edges:
                self.variables.append(getattr(node, "variable", None))
            stack += [child for child, _ in edges if child is not None and child not in place]
        self.place, self.nodes = place, list(place)

    def structure(self) -> bytes:
        """Return what must be equal in two graphs for their nodes to correspond.

        The parameters belong to it: two blocks of one kind have graphs of one shape. They stand in
        it by their address, as types do: a garbage collection traverses nothing of it.
        """
        place: dict[Any, int] = {**self.place, None: -1}
        edges = list(chain.from_iterable(self.edges))
        flat = [id(type(node)) for node in self.nodes]
        flat += map(len, self.edges)
        flat += [place[child] for child, _ in edges]
        flat += [number for _, number in edges]
        # An input differs from graph to graph.
        flat += [id(read) if is_parameter(read) else 0 for read in self.variables]
        return array("q", flat).tobytes()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the graph reads."""
        return [variable for variable in self.variables if is_parameter(variable)]


class Dataflow:
    """The vertices that carry data, each after everything that it reads.

    Attributes:
        vertices: Autograd nodes, and `Untracked` where autograd has none.
        kinds: Per vertex a kind of `operations`, or ``input``.
        sequences: Per vertex the number of its autograd node; for an untracked tensor of the next.
        reads: Per vertex its data reads: (input slot, vertex read, output number of that vertex);
            the slot is -1 where autograd has no edge.
        parameters: Per vertex the parameters that it reads directly.
        sizes: The number of elements of each of those, by its ``id``: a tensor's hash is slow.
        elements: Their elements: once for factors, `MAJOR` times for weights.
        num_readers: Per vertex how many reads of it there are.
        place: Vertex numbers by node or `Untracked`.
        has_stack, unseen: Whether anything is stacked; the vertices that autograd does not see.
    """

    vertices: tuple[Any, ...]
    sequences: tuple[int, ...]
    kinds: tuple[str, ...]
    reads: tuple[tuple[Read, ...], ...]
    parameters: tuple[Weights, ...]

    def __init__(self, walk: Walk, log: CallLog) -> None:
        # The traced function calls by the sequence numbers of their nodes.
        self._notes = {n: call for call in log.trace.calls for n in range(call.start, call.end)}
        leaves: list[tuple[Node, Any]] = []
        items: list[Item] = [(f.sequence, 0, f.tick, f, None) for f in self._untracked(log)]
        variables = iter(walk.variables)
        for place, (node, edges) in enumerate(zip(walk.nodes, walk.edges, strict=True)):
            variable = None if edges else next(variables)
            if variable is None:
                items.append((node._sequence_nr(), 1, place, node, edges))
            else:
                leaves.append((node, variable))
        items.sort(key=itemgetter(0, 1, 2))
        try:
            self._build(leaves, items)
        except KeyError:
            # A view that was changed in place gets its node, and number, after its readers.
            self._build(leaves, _children_first(items))

    def _build(self, leaves: Iterable[tuple[Node, Any]], items: Iterable[Item]) -> None:
        self._rows: list[tuple[Any, int, str, tuple[Read, ...], Weights]] = []
        self._shapes: dict[tuple[int, int], tuple[int, ...]] = {}
        self.place: dict[Any, int] = {}
        self._weights: dict[Node | None, Weights] = {}
        for leaf, variable in leaves:
            if is_parameter(variable):
                self._weights[leaf] = (variable,)
            else:
                self._append(leaf, -1, "input", (), ())
        for sequence, _, _, vertex, edges in items:
            if edges is None:
                reads = tuple((slot, self.place[f], 0) for slot, f in enumerate(vertex.reads))
                self._append(vertex, sequence, vertex.kind, reads, vertex.parameters)
            else:
                self._add_node(vertex, edges, sequence)
        columns: Any = zip(*self._rows, strict=True) if self._rows else [()] * 5
        self.vertices, self.sequences, self.kinds, self.reads, self.parameters = columns
        self.sizes = [{id(p): p.numel() for p in own} if own else _NONE for own in self.parameters]
        self.elements = [
            sum(sizes.values()) * _WEIGHTS.get(kind, MAJOR) if sizes else 0
            for sizes, kind in zip(self.sizes, self.kinds, strict=True)
        ]
        self.num_readers = [0] * len(self._rows)
        for _, read, _ in chain.from_iterable(self.reads):
            self.num_readers[read] += 1
        self.has_stack = "stack" in self.kinds
        self.unseen = {v for v, made in enumerate(self.vertices) if isinstance(made, Untracked)}

    def shape(self, vertex: int, number: int = 0) -> tuple[int, ...]:
        """Return the shape of an output of a vertex."""
        known = self._shapes.get((vertex, number))
        if known is None:
            made: Any = self.vertices[vertex]
            made = made.node if type(made) is Part else made
            if type(made) is not Untracked:
                is_leaf = self.kinds[vertex] == "input"
                made = made.variable if is_leaf else made._input_metadata[number]
            known = self._shapes[vertex, number] = tuple(made.shape)
        return known

    def _untracked(self, log: CallLog) -> list[Untracked]:
        """Return the untracked tensors that carry data into the graph, or past it."""
        stack: list[Any] = [read for call in log.trace.calls for read in call.operands]
        stack += [made for call in log.calls for made in call.outputs]
        found: dict[Untracked, None] = {}
        while stack:
            read = stack.pop()
            is_data = isinstance(read, Untracked) and read.carries_data and read.is_differentiable
            if is_data and read not in found:
                found[read] = None
                stack.extend(read.reads)
        return sorted(found, key=lambda read: bool(read.reads))

    def _append(
        self,
        vertex: Any,
        sequence: int,
        kind: str,
        reads: tuple[Read, ...],
        parameters: Weights,
    ) -> None:
        self.place[vertex] = len(self._rows)
        self._rows.append((vertex, sequence, kind, reads, parameters))

    def _add_node(self, node: Node, edges: tuple[Edge, ...], sequence: int) -> None:
        reads: list[Read] = []
        parameters: list[nn.Parameter] = []
        has_gap, place = False, self.place
        for slot, (child, number) in enumerate(edges):
            if child in place:
                reads.append((slot, place[child], number))
            elif child is None:
                has_gap = True
            else:
                parameters += self._weights[child]
        name = type(node).__name__
        kind = kind_of_node(name, node)
        is_data = bool(reads)
        note = self._notes.get(sequence)
        if note is not None:
            kind = "add" if name == "CopySlices" and note.kind == "add" else kind
            unseen, carries_data = self._unseen_reads(note, kind, edges, is_data, has_gap)
            reads += unseen
            is_data |= carries_data
            if has_gap or note.end - note.start == 1:
                parameters += note.parameters
        if not is_data:
            self._weights[node] = tuple(parameters)
        elif name in FUSED:
            own = self._weights.get(edges[0][0], ())  # of the first operand
            others = tuple(parameters[len(own) :])
            self._add_fused(node, sequence, FUSED[name], reads, own, others)
        else:
            self._append(node, sequence, kind, tuple(reads), tuple(parameters))

    def _add_fused(
        self, node: Node, sequence: int, kind: str, reads: list[Read], own: Weights, others: Weights
    ) -> None:
        """Add what a node makes of its later operands, and apart from it the sum with the first."""
        first = [read for read in reads if read[0] == 0]
        later = tuple(read for read in reads if read[0] != 0)
        if not first or not later:
            self._append(node, sequence, kind if later else "add", tuple(reads), own + others)
            return
        part = Part(node)
        self._append(part, sequence, kind, later, others)
        reads = [*first, (1, self.place[part], 0)]
        self._append(node, sequence, "add", tuple(reads), own)

    def _unseen_reads(
        self, note: TracedCall, kind: str, edges: tuple[Edge, ...], is_data: bool, has_gap: bool
    ) -> tuple[list[Read], bool]:
        """Return the untracked tensors that a node reads, and whether an operand carries data."""
        data = [(s, f) for s, f in enumerate(note.operands) if f is not None and f.carries_data]
        if kind in ("add", "cat", "stack") and note.kind == kind:
            data = [(s, f) for s, f in data if s < len(edges) and edges[s][0] is None]
        elif note.end - note.start > 1 and (is_data or not has_gap):
            # Of several nodes of one function only the first ones read what autograd cannot see.
            return [], False
        else:
            data = [(NO_SLOT, read) for _, read in data]
        reads = [(s, self.place[f], 0) for s, f in data if f.is_differentiable]
        return reads, bool(data)


def _children_first(items: Sequence[Item]) -> list[Item]:
    """Return vertices so that each comes after what it reads, whatever their numbers say."""
    by_vertex = {item[3]: item for item in items}
    done: dict[Any, Item] = {item[3]: item for item in items if item[4] is None}
    stack = [(item[3], False) for item in reversed(items) if item[4] is not None]
    while stack:
        vertex, is_expanded = stack.pop()
        if vertex in done:
            continue
        if is_expanded:
            done[vertex] = by_vertex[vertex]
            continue
        stack.append((vertex, True))
        children = (child for child, _ in by_vertex[vertex][4])
        stack.extend((c, False) for c in children if c in by_vertex and c not in done)
    return list(done.values())


class Scopes:
    """Which call of a log made which vertex of a graph."""

    def __init__(self, flow: Dataflow, log: CallLog) -> None:
        self.flow = flow
        self.log = log
        self._starts = [call.start for call in log.calls]
        self._ticks = [call.tick for call in log.calls]
        self._layers: dict[int, list[int]] = {}
        self._late: set[int] = set()
        self._innermost: dict[int, int] = {}
        times: dict[str, int] = {}
        for number, call in enumerate(log.calls):
            times[call.path] = times.get(call.path, 0) + 1
            if times[call.path] > log.most_calls or call.parent in self._late:
                self._late.add(number)
            if call.layer is not None:
                for vertex in self._made_by(call):
                    self._layers.setdefault(vertex, []).append(number)

    def may_join(self, vertex: int) -> bool:
        """Whether a vertex may be a join: none in torch's own leaf modules, nor in late calls."""
        number = self.innermost(vertex)
        return number < 0 or not (number in self._late or _is_leaf_of_torch(self.log.calls[number]))

    def owner(self, join: int, between: set[int]) -> ModuleCall | None:
        """Return the innermost call that contains a join and what lies between it and its fork.

        None where there is no such call, as for a sum of losses outside of the model, and where
        the join is inside of one of torch's own leaf modules (the cell of an LSTM).
        """
        number = self.innermost(join)
        if number < 0 or _is_leaf_of_torch(self.log.calls[number]):
            return None
        unseen = self.flow.unseen and self.flow.unseen.intersection(between)
        tick = min([self.flow.vertices[v].tick for v in unseen], default=sys.maxsize)
        seen = between - unseen if unseen else between
        first = min(map(self.flow.sequences.__getitem__, seen), default=sys.maxsize)
        while number >= 0:
            call = self.log.calls[number]
            if call.start <= first and call.tick < tick:
                return call
            number = call.parent
        return None

    def layers(self, vertices: Collection[int], owner: ModuleCall, join: int) -> list[str]:
        """Return the names of the layers that made vertices inside of a call, in call order."""
        made, calls = self._layers, self.log.calls
        numbers = {number for vertex in vertices if vertex in made for number in made[vertex]}
        return [
            call.layer or ""
            for call in map(calls.__getitem__, sorted(numbers))
            if call.start >= owner.start
            and call.tick >= owner.tick
            and not self._contains(call, join)
        ]

    def parameters(self, vertices: Iterable[int], owner: ModuleCall) -> int:
        """Return the elements of the different parameters that vertices inside of a call read."""
        found: dict[int, int] = {}
        numbers, sizes, unseen = self.flow.sequences, self.flow.sizes, self.flow.unseen
        for vertex in [vertex for vertex in vertices if sizes[vertex]]:
            if vertex in unseen:
                is_after_start = owner.tick < self.flow.vertices[vertex].tick
            else:
                is_after_start = owner.start <= numbers[vertex]
            if is_after_start:
                found.update(sizes[vertex])
        return sum(found.values())

    def _made_by(self, call: ModuleCall) -> list[int]:
        """Return the vertices of a layer's outputs.

        Where a view of the output was changed in place, autograd has replaced its node: what the
        layer computed before that view stands for it.
        """
        made: list[int] = []
        for maker in call.outputs:
            places: Any = self._by_sequence if type(maker) is int else self.flow.place
            if maker in places:
                made.append(places[maker])
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
            for vertex in range(len(self.flow.vertices))
            if vertex not in self.flow.unseen
        )

    def innermost(self, vertex: int) -> int:
        """Return the number of the innermost call that made a vertex, -1 where none did."""
        if vertex in self._innermost:
            return self._innermost[vertex]
        if vertex in self.flow.unseen:
            number = bisect_right(self._ticks, self.flow.vertices[vertex].tick - 1) - 1
        else:
            number = bisect_right(self._starts, self.flow.sequences[vertex]) - 1
        while number >= 0 and not self._contains(self.log.calls[number], vertex):
            number = self.log.calls[number].parent
        self._innermost[vertex] = number
        return number

    def _contains(self, call: ModuleCall, vertex: int) -> bool:
        if vertex in self.flow.unseen:
            return bool(call.tick < self.flow.vertices[vertex].tick <= call.tock)
        return call.start <= self.flow.sequences[vertex] < call.end


def _is_leaf_of_torch(call: ModuleCall) -> bool:
    return type(call.module).__module__.startswith("torch.nn.") and not call.module._modules

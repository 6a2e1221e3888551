"""Residual joins among the data paths: where a shortcut and a branch that left one tensor meet.

The fork of a join is the nearest tensor that every path of the shortcut passes and that the branch
reads too: an immediate dominator of the shortcut's operand. The branch alone may read more than the
fork (cross-attention, a recurrent input).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from heapq import heappop, heappush

from torch.autograd.graph import Node

from analyzer.joins.calls import CallLog
from analyzer.joins.graph import Dataflow, Scopes

__all__ = ["Edge", "Join", "JoinVertices", "joins_of_model", "numbered"]

NOWHERE = -1
# Looks at vertices in one graph, about a second's worth.
_MOST_LOOKS = 3_000_000
Edge = tuple[int, int, int]


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


@dataclass(slots=True)
class JoinVertices:
    """A join as vertices of a `Dataflow`.

    Args:
        join: The vertex that adds or concatenates; its inputs by their slots.
        fork: The vertex that both operands come from.
        branch_slots: Inputs from the branch; one for an addition.
        shortcut_elements: Elements of the parameters on the shortcut's lightest path.
        shortcut_path: Vertices on such paths.
        branch_region: All vertices of the branch after the fork, a gate's included.
        shortcut_edges: Reads of the fork by the shortcut: (reader, its slot, output of the fork).
        branch_edges: Reads of the fork by the branch.
        gate_edges: Reads, by products on the shortcut, of what only scales it there.
        between: The vertices of both that lie on a path to the fork.
    """

    join: int
    fork: int
    shortcut_slot: int
    branch_slots: tuple[int, ...]
    shortcut_elements: int
    shortcut_path: set[int]
    branch_region: set[int]
    shortcut_edges: tuple[Edge, ...]
    branch_edges: tuple[Edge, ...]
    gate_edges: tuple[Edge, ...]
    between: set[int]


def joins_of_model(flow: Dataflow, log: CallLog) -> tuple[list[tuple[Join, JoinVertices]], bool]:
    """Return the joins inside of a model's calls, each with its vertices, forward order.

    The second result is whether all of the graph was searched: one in which each step of a long
    recurrence reads what came before takes a time that grows with its square.
    """
    scopes = Scopes(flow, log)
    search = _Search(flow, scopes)
    owned = []
    for vertices in search.run():
        owner = scopes.owner(vertices.join, vertices.between)
        if owner is not None and not _is_scalar(flow, vertices.join):
            owned.append((vertices, owner))
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
    found = [(join, vertices) for join, (vertices, _) in zip(joins, owned, strict=True)]
    return found, search.num_looks <= _MOST_LOOKS


def _shortcut_kind(flow: Dataflow, vertices: JoinVertices) -> str:
    if flow.kinds[vertices.join] == "cat":
        return "concat"
    return "projection" if vertices.shortcut_elements else "identity"


def _is_scalar(flow: Dataflow, vertex: int) -> bool:
    maker = flow.vertices[vertex]
    shape = maker._input_metadata[0].shape if isinstance(maker, Node) else maker.shape
    return len(shape) == 0


def numbered(names: list[str]) -> list[str]:
    """Return names made unique: those that occur more than once get ``#0``, ``#1`` and so on."""
    total, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        result.append(name if total[name] == 1 else f"{name}#{seen[name]}")
        seen[name] += 1
    return result


class _Search:
    def __init__(self, flow: Dataflow, scopes: Scopes) -> None:
        self.flow = flow
        self.scopes = scopes
        self.num_looks = 0
        self.reads = [tuple({read for _, read, _ in reads}) for reads in flow.reads]
        # For each vertex the nearest one that all its paths to any source pass.
        self.dominator: list[int] = []
        for reads in self.reads:
            nearest = reads[0] if reads else NOWHERE
            for other in reads[1:]:
                nearest = self._common(nearest, other)
            self.dominator.append(nearest)

    def run(self) -> list[JoinVertices]:
        found: dict[int, JoinVertices] = {}
        for vertex, kind in enumerate(self.flow.kinds):
            if kind in ("add", "cat") and len(self.reads[vertex]) > 1:
                if self.num_looks > _MOST_LOOKS or not self.scopes.may_join(vertex):
                    continue
                vertices = self._addition(vertex) if kind == "add" else self._concatenation(vertex)
                if vertices is not None:
                    found[vertex] = vertices
        for vertices in list(found.values()):
            self._drop_parallel_sums(vertices, found)
        return list(found.values())

    def _common(self, one: int, other: int) -> int:
        """Return the nearest vertex that all paths of two vertices to any source pass."""
        dominator = self.dominator
        while one != other and one != NOWHERE and other != NOWHERE:
            # Vertices are numbered forward, so the larger number is the one to lift.
            if one > other:
                one = dominator[one]
            else:
                other = dominator[other]
        return one if one == other else NOWHERE

    def _addition(self, join: int) -> JoinVertices | None:
        operands = [(slot, read) for slot, read, _ in self.flow.reads[join]]
        if len(operands) != 2:
            return None
        # The operand made first is the shortcut nearly always; if so the other order is not tried.
        first, second = sorted(operands, key=lambda operand: operand[1])
        best: JoinVertices | None = None
        for shortcut, branch in ((first, second), (second, first)):
            if best is not None and not best.shortcut_elements:
                break
            fork = self._fork(shortcut[1], branch[1])
            other = self._vertices(join, fork, shortcut, (branch,))
            if best is None or (other and other.shortcut_elements < best.shortcut_elements):
                best = other
        if best is not None and best.shortcut_elements and self._reads_apart(best):
            # Two projections of two slices, as in a recurrent cell, left different tensors.
            return None
        return best

    def _concatenation(self, join: int) -> JoinVertices | None:
        """Join where one operand is the fork itself: the earliest that the others read.

        An operand from elsewhere (a condition, another input) may be among them, but not one that
        left an earlier tensor together with the fork: there, several branches meet.
        """
        operands = [(slot, read) for slot, read, _ in self.flow.reads[join]]
        for shortcut in sorted(operands, key=lambda operand: self._unviewed(operand[1])):
            fork = self._unviewed(shortcut[1])
            others = [operand for operand in operands if operand is not shortcut]
            branches = tuple(other for other in others if self._reaches(other[1], fork))
            if not branches or any(
                other not in branches and self._common(other[1], fork) != NOWHERE
                for other in others
            ):
                continue
            vertices = self._vertices(join, fork, shortcut, branches)
            if vertices is not None and not self._reads_apart(vertices):
                return vertices
        return None

    def _unviewed(self, vertex: int) -> int:
        """Return the tensor that a vertex is a mere view, copy, crop or padding of."""
        kinds, reads = self.flow.kinds, self.flow.reads
        while kinds[vertex] in ("view", "select") and len(reads[vertex]) == 1:
            # Of several outputs of one node (split, unbind) each is another tensor.
            outputs = getattr(self.flow.vertices[vertex], "_input_metadata", ())
            if len(outputs) > 1 or self.flow.elements[vertex]:
                break
            vertex = reads[vertex][0][1]
        return vertex

    def _reaches(self, start: int, target: int) -> bool:
        region = self._region((start,), target)
        return start == target or any(target in self.reads[vertex] for vertex in region)

    def _fork(self, shortcut: int, branch: int) -> int:
        """Return the nearest dominator of the shortcut's operand that the branch reads."""
        reads, dominator = self.reads, self.dominator
        heap, seen, fork = [-branch], {branch}, shortcut
        while heap and fork != NOWHERE:
            while heap and -heap[0] > fork:
                for read in reads[-heappop(heap)]:
                    if read not in seen:
                        seen.add(read)
                        heappush(heap, -read)
            if heap and -heap[0] == fork:
                break
            fork = dominator[fork]
        self.num_looks += len(seen)
        return fork if heap and -heap[0] == fork else NOWHERE

    def _region(self, starts: tuple[int, ...], fork: int) -> set[int]:
        """Return what can be read from some vertices without passing the fork."""
        region = {start for start in starts if start > fork}
        stack = list(region)
        while stack:
            for read in self.reads[stack.pop()]:
                if read > fork and read not in region:
                    region.add(read)
                    stack.append(read)
        self.num_looks += len(region)
        return region

    def _costs(self, region: set[int], fork: int) -> dict[int, int]:
        """Return the fewest parameter elements on a path to the fork, where there is one."""
        cost = {fork: 0}
        elements = self.flow.elements
        for vertex in sorted(region):
            below = [cost[read] for read in self.reads[vertex] if read in cost]
            if below:
                cost[vertex] = elements[vertex] + min(below)
        return cost

    def _vertices(
        self,
        join: int,
        fork: int,
        shortcut: tuple[int, int],
        branches: tuple[tuple[int, int], ...],
    ) -> JoinVertices | None:
        """Return the join of a shortcut and branches, None where no branch is the heavier one."""
        if fork == NOWHERE:
            return None
        shortcut_region = self._region((shortcut[1],), fork)
        branch_region = self._region(tuple(start for _, start in branches), fork)
        cost = self._costs(shortcut_region | branch_region, fork)
        heavier = [b for b in branches if b[1] in cost and cost[b[1]] > cost[shortcut[1]]]
        if not heavier:
            return None
        path = self._lightest_path(shortcut[1], fork, cost)
        gates = self._gates(path, fork)
        gate_region = self._region(tuple(gates.values()), fork) - path if gates else set()
        branch_region |= gate_region
        own_region = shortcut_region - branch_region
        slots = {slot for slot, _ in heavier}
        direct = tuple(edge for edge in self._edges({join}, fork) if edge[1] == shortcut[0])
        return JoinVertices(
            join=join,
            fork=fork,
            shortcut_slot=shortcut[0],
            branch_slots=tuple(sorted(slots)),
            shortcut_elements=cost[shortcut[1]],
            shortcut_path=path,
            branch_region=branch_region,
            shortcut_edges=self._edges(own_region, fork) + direct,
            branch_edges=self._edges(branch_region, fork),
            gate_edges=tuple(edge for edge, read in gates.items() if read in cost),
            between=(shortcut_region | branch_region) & cost.keys(),
        )

    def _lightest_path(self, start: int, fork: int, cost: dict[int, int]) -> set[int]:
        path: set[int] = set()
        stack = [start] if start != fork else []
        while stack:
            vertex = stack.pop()
            path.add(vertex)
            rest = cost[vertex] - self.flow.elements[vertex]
            for read in self.reads[vertex]:
                if read != fork and read not in path and cost.get(read) == rest:
                    stack.append(read)
        return path

    def _gates(self, path: set[int], fork: int) -> dict[Edge, int]:
        """Return the edges from products on the shortcut to what only scales it, and that.

        ``s = (1 − g(x)) · x``: by the contract g belongs to the branch.
        """
        return {
            (vertex, slot, number): read
            for vertex in path
            if self.flow.kinds[vertex] == "product"
            for slot, read, number in self.flow.reads[vertex]
            if read != fork and read not in path
        }

    def _edges(self, region: set[int], fork: int) -> tuple[Edge, ...]:
        return tuple(
            (vertex, slot, number)
            for vertex in sorted(region)
            for slot, read, number in self.flow.reads[vertex]
            if read == fork
        )

    def _reads_apart(self, vertices: JoinVertices) -> bool:
        """Whether shortcut and branch read different parts of the fork (slices, chunks)."""
        shortcut, branch = vertices.shortcut_edges, vertices.branch_edges
        if {number for _, _, number in shortcut}.isdisjoint({number for _, _, number in branch}):
            return True
        kinds = self.flow.kinds
        readers = {vertex for vertex, _, _ in shortcut}, {vertex for vertex, _, _ in branch}
        return readers[0].isdisjoint(readers[1]) and all(
            kinds[vertex] == "select" for vertex in readers[0] | readers[1]
        )

    def _drop_parallel_sums(self, outer: JoinVertices, found: dict[int, JoinVertices]) -> None:
        """Remove sums of parallel branches, ``a(x) + m(x)``, that are then added to x itself."""
        if outer.shortcut_elements or self.flow.kinds[outer.join] != "add":
            return
        starts = {slot: read for slot, read, _ in self.flow.reads[outer.join]}
        stack = [starts[outer.branch_slots[0]]]
        while stack:
            vertex = stack.pop()
            while vertex not in found and len(self.reads[vertex]) == 1 and self._is_thin(vertex):
                vertex = self.reads[vertex][0]
            inner = found.get(vertex)
            if inner is None or not inner.shortcut_elements or inner.fork < outer.fork:
                continue
            between = self._region((inner.fork,), outer.fork)
            if all(self._is_thin(v) for v in between):
                del found[vertex]
                stack.extend(self.reads[vertex])

    def _is_thin(self, vertex: int) -> bool:
        """Whether a vertex at most scales, shifts or normalizes each feature."""
        return all(parameter.dim() <= 1 for parameter in self.flow.parameters[vertex])

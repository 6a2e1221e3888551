"""The two sides of a join: what a shortcut and a branch pass between their fork and their sum.

The fork of a join is the nearest tensor that every path of the shortcut passes and that the branch
reads too: an immediate dominator of the shortcut's operand. The branch alone may read more than the
fork (cross-attention, a recurrent input).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from analyzer.joins.graph import MAJOR, Dataflow, Scopes
from analyzer.joins.sums import Edge, Sum, Term, is_data_product, is_spread, mixing_gates, unscaled

__all__ = ["NOWHERE", "JoinVertices", "Sides"]

NOWHERE = -1


@dataclass(slots=True)
class JoinVertices:
    """A join as vertices of a `Dataflow`.

    Args:
        join: The vertex that adds or concatenates.
        fork: The vertex that both operands come from.
        kind: See `Join.shortcut`.
        shortcut_entries: Edges by which the shortcuts are added: (reader, its slot).
        branch_entries: Edges by which the branch is added.
        branch_reads: The vertices that those read.
        shortcut_elements: Elements of the parameters on the shortcut's lightest path, as in
            `Dataflow.elements`.
        shortcut_path: Vertices on such paths.
        branch_region: All vertices of the branch after the fork, a gate's included.
        shortcut_edges: Reads of the fork by the shortcut: (reader, its slot, output of the fork).
        branch_edges: Reads of the fork by the branch.
        gate_edges: Reads, by products on either side, of what only scales it there.
        between: The vertices of both that lie on a path to the fork.
        shared: Vertices that both pass on their way to the fork, the last one first.
        shared_edges: Reads of those by one side: (1 for the branch, reader, its slot).
        is_apart: Whether the gradients of both sides can be told apart.
        is_alone: Whether nothing else reads what stacks the operands.
    """

    join: int
    fork: int
    kind: str
    num_operands: int
    shortcut_entries: tuple[tuple[int, int], ...]
    branch_entries: tuple[tuple[int, int], ...]
    branch_reads: tuple[int, ...]
    shortcut_elements: int
    shortcut_path: set[int]
    branch_region: set[int]
    shortcut_edges: tuple[Edge, ...]
    branch_edges: tuple[Edge, ...]
    gate_edges: tuple[Edge, ...]
    between: set[int]
    shared: tuple[int, ...]
    shared_edges: tuple[Edge, ...]
    is_apart: bool
    is_alone: bool


class Sides:
    """What lies between the operands of a sum and the tensors that they left.

    Attributes:
        found: The joins that were found so far, by their vertex.
        sums: The operands of each sum that was looked at, by its vertex.
        edges_to: Per vertex the edges that read it.
        steps: Vertices of recurrences over time: no shortcut passes them.
        num_looks: How many vertices were looked at, as a measure of time.
    """

    def __init__(self, flow: Dataflow, scopes: Scopes) -> None:
        self.flow = flow
        self.scopes = scopes
        self.num_looks = 0
        self.sums: dict[int, Sum] = {}
        self.found: dict[int, JoinVertices] = {}
        self.steps: set[int] = set()
        self.reads: list[tuple[int, ...]] = []
        self.edges_to: list[list[Edge]] = [[] for _ in flow.reads]
        # Tensors into a part of which a value was written.
        self._written: dict[int, int] = {}
        # For each vertex the nearest one that all its paths to any source pass.
        self.dominator: list[int] = []
        for vertex, edges in enumerate(flow.reads):
            for slot, read, number in edges:
                self.edges_to[read].append((vertex, slot, number))
            own = (edges[0][1],) if len(edges) == 1 else tuple({read for _, read, _ in edges})
            nearest = own[0] if own else NOWHERE
            for other in own[1:]:
                nearest = self.common(nearest, other)
            self.reads.append(own)
            self.dominator.append(nearest)
            is_base = flow.kinds[vertex] == "other" and edges and edges[0][0] == 0
            if is_base and type(flow.vertices[vertex]).__name__ == "CopySlices":
                self._written[vertex] = edges[0][1]

    def common(self, one: int, other: int) -> int:
        """Return the nearest vertex that all paths of two vertices to any source pass."""
        dominator = self.dominator
        while one != other and one != NOWHERE and other != NOWHERE:
            # Vertices are numbered forward, so the larger number is the one to lift.
            if one > other:
                one = dominator[one]
            else:
                other = dominator[other]
        return one if one == other else NOWHERE

    def reaches(self, start: int, target: int) -> bool:
        """Whether a vertex was made from another one, or is that one."""
        region = self.region((start,), target)
        return start == target or any(target in self.reads[vertex] for vertex in region)

    def unviewed(self, vertex: int) -> int:
        """Return the tensor that a vertex is a mere view, copy, crop or padding of."""
        kinds, reads = self.flow.kinds, self.flow.reads
        while kinds[vertex] in ("view", "select") and len(reads[vertex]) == 1:
            # Of several outputs of one node (split, unbind) each is another tensor.
            outputs = getattr(self.flow.vertices[vertex], "_input_metadata", ())
            if len(outputs) > 1 or self.flow.elements[vertex]:
                break
            vertex = reads[vertex][0][1]
        return vertex

    def fork(self, shortcut: int, branch: int) -> int:
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

    def region(
        self, starts: Iterable[int], fork: int, without: Collection[tuple[int, int]] = ()
    ) -> set[int]:
        """Return what can be read from some vertices without passing the fork, or some reads."""
        region = {start for start in starts if start > fork}
        stack, reads = list(region), self.reads
        while stack:
            vertex = stack.pop()
            for read in reads[vertex]:
                is_new = read > fork and read not in region
                if is_new and not (without and (vertex, read) in without):
                    region.add(read)
                    stack.append(read)
        self.num_looks += len(region)
        return region

    def costs(
        self,
        region: set[int],
        fork: int,
        partial: Sequence[int] = (),
        without: Collection[tuple[int, int]] = (),
    ) -> dict[int, int]:
        """Return the fewest parameter elements on a path to the fork, where there is one.

        A path through an earlier join takes its branch: around a stage of residual blocks the
        shortcut is light, and the stage is not. One through a `partial` sum, ``x + a(x)`` of ``x +
        a(x) + m(x)``, takes the shortcut. None goes by the reads `without`: gates.
        """
        cost = {fork: 0}
        elements = self.flow.elements
        for vertex in sorted(region):
            own = self.reads[vertex]
            reads = own if vertex in partial else self._passed(vertex)
            if len(reads) == 1 and reads[0] in cost:
                cost[vertex] = elements[vertex] + cost[reads[0]]
                continue
            below = [cost[r] for r in reads if r in cost and (vertex, r) not in without]
            if not below and reads is not own:
                below = [cost[read] for read in own if read in cost]
            if below:
                cost[vertex] = elements[vertex] + min(below)
        return cost

    def _passed(self, vertex: int) -> Sequence[int]:
        """Return what a path through a vertex reads next.

        Of a join its branch; of a tensor into a part of which a value was written, the tensor.
        """
        if vertex in self.found:
            return self.found[vertex].branch_reads
        return (self._written[vertex],) if vertex in self._written else self.reads[vertex]

    def vertices(
        self, join: int, fork: int, shortcuts: list[Term], branches: list[Term], made: Sum | None
    ) -> JoinVertices | None:
        """Return the join of shortcuts and branches, None where no branch is the heavier one."""
        if fork == NOWHERE:
            return None
        starts, ends = ([r for t in terms for r in t.reads] for terms in (shortcuts, branches))
        branch_region = self.region(ends, fork)
        partial = [read for read in (*starts, *ends) if self.is_partial(read, join)]
        own_region = self.region(starts, fork)
        scaled = {read: unscaled(self.flow, read)[1] for read in (*starts, *ends)}
        without = {(e[0], r) for gated in scaled.values() if gated for e, r in gated.items()}
        cost = self.costs(own_region | branch_region, fork, partial, without)
        lightest = min([read for read in starts if read in cost], key=cost.__getitem__, default=-1)
        if lightest < 0:
            return None
        heavier = []
        for term in branches:
            costs = [cost[read] for read in term.reads if read in cost]
            if costs and _is_heavier(min(costs), cost[lightest]):
                heavier.append(term)
        path = self._lightest_path(lightest, fork, cost, without)
        if not heavier or not path.isdisjoint(self.steps):
            return None
        gates: dict[Edge, int] = {}
        for vertex in path:
            if is_spread(self.flow, vertex, path | {fork}):
                return None
            if is_data_product(self.flow, vertex):
                mixing = mixing_gates(self.flow, vertex, join, heavier[0].reads[0])
                if not mixing:
                    return None
                gates |= mixing
        if self._is_formula(heavier, fork, cost):
            return None
        gates |= self._gates(path, fork)
        for read in starts if len(shortcuts) > 1 else ():
            gates |= scaled[read]
        own_gates = scaled[heavier[0].reads[0]]
        if made is not None:
            gates |= made.gates
        if gates:
            branch_region |= self.region(gates.values(), fork)
            without = {(vertex, read) for (vertex, _, _), read in gates.items()}
            own_region = self.region(starts, fork, without)
        entries = [tuple([e for t in side for e in t.entries]) for side in (shortcuts, heavier)]
        shared, above = own_region & branch_region & cost.keys(), {join}
        first, second = entries
        if made is not None and made.shared:
            # Of a stack that gates read, too, only what comes from the sum is the shortcut's.
            shared |= {*made.shared}
            above |= {*made.inner} - shared
            first, second = (tuple(e for e in side if e[0] not in shared) for side in entries)
            first += self._entries_of(above, made.shared)
        shortcut_edges = self._edges_of(own_region, first, fork, shared)
        branch_edges = self._edges_of(branch_region, second, fork, shared)
        branch_edges += [e for e, r in gates.items() if r == fork and e[0] not in shared]
        return JoinVertices(
            join=join,
            fork=fork,
            kind=self._kind(made, lightest, path, cost, gates),
            num_operands=len(shortcuts) + len(branches),
            shortcut_entries=entries[0],
            branch_entries=entries[1],
            branch_reads=tuple([read for term in heavier for read in term.reads]),
            shortcut_elements=cost[lightest],
            shortcut_path=path,
            branch_region=branch_region - path if path else branch_region,
            shortcut_edges=tuple(shortcut_edges),
            branch_edges=tuple(branch_edges),
            gate_edges=tuple(
                [e for e, r in (gates | own_gates).items() if r in cost or self.reaches(r, fork)]
            ),
            between=cost.keys() - {fork},
            shared=tuple(sorted(shared, reverse=True)) if shared else (),
            shared_edges=self._reads_of(shared, own_region, 0, first)
            + self._reads_of(shared, branch_region - above, 1, second)
            if shared
            else (),
            is_apart=made is None
            or not made.shared
            or len(self._entries_of(branch_region | above, made.shared))
            == sum(self.flow.num_readers[vertex] for vertex in made.shared),
            is_alone=made is None or not made.shared,
        )

    def _kind(
        self,
        made: Sum | None,
        lightest: int,
        path: set[int],
        cost: dict[int, int],
        gates: dict[Edge, int],
    ) -> str:
        if made is None:
            return "concat"
        if cost[lightest] >= MAJOR:
            return "projection"
        if gates:
            return "gated"
        is_scaled = made.is_scaled or cost[lightest] > 0
        is_scaled |= any([self.flow.kinds[v] in ("product", "negative") for v in path])
        return "scaled" if is_scaled else "identity"

    def _edges_of(
        self, region: set[int], entries: Collection[tuple[int, int]], fork: int, without: set[int]
    ) -> list[Edge]:
        """Return the reads of the fork by a region and by the sum itself."""
        edges, own = self.edges_to[fork], region - without if without else region
        found = [edge for edge in edges if edge[0] in own]
        if len(found) < len(edges):
            found += [edge for edge in edges if edge[0] not in own and edge[:2] in entries]
        return found

    def _reads_of(
        self, shared: set[int], region: set[int], side: int, entries: Iterable[tuple[int, int]]
    ) -> tuple[Edge, ...]:
        """Return the edges by which one side reads what both pass: (side, reader, its slot)."""
        readers = {(v, slot) for v in region - shared for slot, _, _ in self.flow.reads[v]}
        readers.update(entries)
        return tuple(
            (side, vertex, slot)
            for vertex, at in sorted(readers)
            for slot, read, _ in self.flow.reads[vertex]
            if slot == at and read in shared
        )

    def _entries_of(self, region: set[int], read: Collection[int]) -> tuple[tuple[int, int], ...]:
        """Return the edges by which a region reads some vertices."""
        if not read:
            return ()
        return tuple((v, s) for v in sorted(region) for s, r, _ in self.flow.reads[v] if r in read)

    def _lightest_path(
        self, start: int, fork: int, cost: dict[int, int], without: Collection[tuple[int, int]]
    ) -> set[int]:
        path: set[int] = set()
        stack = [start] if start != fork else []
        while stack:
            vertex = stack.pop()
            path.add(vertex)
            rest = cost[vertex] - self.flow.elements[vertex]
            for read in {*self.reads[vertex], *self._passed(vertex)}:
                is_next = cost.get(read) == rest and (vertex, read) not in without
                if read != fork and read not in path and is_next:
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

    def _is_formula(self, branches: list[Term], fork: int, cost: dict[int, int]) -> bool:
        """Whether a branch is a function of each element: an activation that adds, by its formula.

        Such a function may also normalize, by a mean or a norm. A mere multiple is a branch.
        """
        reads = [read for term in branches for read in term.reads]
        if any([cost.get(read, 0) >= MAJOR for read in reads]):
            return False
        region = self.region(reads, fork)
        kinds = {self.flow.kinds[vertex] for vertex in region}
        return not kinds.isdisjoint(("element", "sum")) and kinds <= {
            "element", "product", "add", "negative", "view", "expand", "input", "sum"
        }  # fmt: skip

    def is_partial(self, read: int, join: int) -> bool:
        """Whether an operand is itself a sum of the same call, which nothing else reads."""
        return (
            read in self.sums
            and self.flow.num_readers[read] == 1
            and self.scopes.innermost(read) == self.scopes.innermost(join)
        )

    def reads_apart(self, vertices: JoinVertices) -> bool:
        """Whether shortcut and branch read different parts of the fork (slices, chunks)."""
        shortcut, branch = vertices.shortcut_edges, vertices.branch_edges
        if vertices.shared:
            return False
        if {number for _, _, number in shortcut}.isdisjoint({number for _, _, number in branch}):
            return True
        kinds = self.flow.kinds
        readers = {vertex for vertex, _, _ in shortcut}, {vertex for vertex, _, _ in branch}
        return readers[0].isdisjoint(readers[1]) and all(
            kinds[vertex] == "select" for vertex in readers[0] | readers[1]
        )


def _is_heavier(one: int, other: int) -> bool:
    """Whether there are more weights on one path; factors decide where none has weights."""
    return one // MAJOR > other // MAJOR or (other < MAJOR and one > other)

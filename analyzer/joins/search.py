"""Residual joins among the data paths: where a shortcut and a branch that left one tensor meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from analyzer.joins.calls import CallLog
from analyzer.joins.graph import MAJOR, Dataflow, Scopes
from analyzer.joins.recurrences import STEP, Recurrences
from analyzer.joins.sides import NOWHERE, JoinVertices
from analyzer.joins.sums import Edge, Sum, Term, merged, sum_at, unscaled

__all__ = ["FoundJoins", "Join", "joins_of_model", "numbered"]

# Looks at vertices in one graph, about a second's worth.
_MOST_LOOKS = 3_000_000
_BROADCAST = "it adds what is repeated over its activations (as an embedding of time or class)"
_STACKED = "it stacks a shortcut and a branch, and what adds the two is not known"


@dataclass(frozen=True, slots=True)
class Join:
    """A place where a shortcut and a residual branch that left the same tensor meet again.

    Args:
        index: Number in forward order, from 0.
        name: Path of the innermost module whose call contains fork and join.
        operation: ``add`` | ``cat``.
        num_operands: How many different tensors it adds or concatenates.
        shortcut: ``identity`` (the fork's values, also padded, sliced or pooled) | ``scaled``
            (times a constant or a parameter) | ``gated`` (times what was computed from data) |
            ``projection`` (a linear map with parameters) | ``concat``. Of several shortcuts it is
            that of the nearest fork.
        branch_layers: Names of the branch's layers, forward order; a gate's are among them.
        shortcut_layers: Names of the layers on the shortcut's lightest path, forward order.
        branch_parameters: Elements of all different parameters of the branch.
        shortcut_parameters: Elements of the different parameters on the shortcut's lightest path.
    """

    index: int
    name: str
    operation: str
    num_operands: int
    shortcut: str
    branch_layers: list[str] = field(hash=False)
    shortcut_layers: list[str] = field(hash=False)
    branch_parameters: int
    shortcut_parameters: int


@dataclass
class FoundJoins:
    """What a search gave.

    Args:
        joins: The joins inside of a model's calls, each with its vertices, forward order.
        passed_over: Modules with sums that look like joins and are none, with the reason.
        is_whole: Whether all of the graph was searched: one in which each step of a long recurrence
            reads what came before takes a time that grows with its square.
    """

    joins: list[tuple[Join, JoinVertices]]
    passed_over: list[tuple[str, str]]
    is_whole: bool


def joins_of_model(flow: Dataflow, log: CallLog) -> FoundJoins:
    """Return the joins inside of a model's calls; sums of scalars (loss terms) are none."""
    scopes = Scopes(flow, log)
    search = _Search(flow, scopes)
    owned = []
    for vertices in search.run():
        owner = scopes.owner(vertices.join, vertices.between)
        if owner is not None and flow.shape(vertices.join):
            owned.append((vertices, owner))
    names = numbered([log.root_name(owner) for _, owner in owned])
    joins = [
        Join(
            index=index,
            name=name,
            operation="cat" if vertices.kind == "concat" else "add",
            num_operands=vertices.num_operands,
            shortcut=vertices.kind,
            branch_layers=scopes.layers(vertices.branch_region, owner, vertices.join),
            shortcut_layers=scopes.layers(vertices.shortcut_path, owner, vertices.join),
            branch_parameters=scopes.parameters(vertices.branch_region, owner),
            shortcut_parameters=scopes.parameters(vertices.shortcut_path, owner),
        )
        for index, (name, (vertices, owner)) in enumerate(zip(names, owned, strict=True))
    ]
    return FoundJoins(
        [(join, vertices) for join, (vertices, _) in zip(joins, owned, strict=True)],
        search.named(log),
        search.num_looks <= _MOST_LOOKS,
    )


def numbered(names: list[str]) -> list[str]:
    """Return names made unique: those that occur more than once get ``#0``, ``#1`` and so on."""
    total, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        result.append(name if total[name] == 1 else f"{name}#{seen[name]}")
        seen[name] += 1
    return result


class _Search(Recurrences):
    def __init__(self, flow: Dataflow, scopes: Scopes) -> None:
        super().__init__(flow, scopes)
        # By what is added of a branch the join that adds it.
        self._branch_of: dict[int, int] = {}

    def run(self) -> list[JoinVertices]:
        for vertex, kind in enumerate(self.flow.kinds):
            if self.num_looks > _MOST_LOOKS:
                break
            if kind == "cat":
                if len(self.reads[vertex]) > 1 and self.scopes.may_join(vertex):
                    self._note(self._concatenation(vertex), vertex)
            elif kind in ("add", "sum", "matmul", "select"):
                self._look_at_sum(vertex)
        sums = {vertex for vertex, one in self.found.items() if one.shortcut_elements}
        for vertices in list(self.found.values()):
            if not sums.isdisjoint(vertices.branch_region):
                self._drop_parallel_sums(vertices)
        self.drop_scores()
        self.drop_gates()
        self._note_stacks()
        return list(self.found.values())

    def named(self, log: CallLog) -> list[tuple[str, str]]:
        """Return the modules with sums that were passed over, with the reason."""
        found: dict[tuple[str, str], None] = {}
        for vertex, reason in sorted(self.passed_over.items()):
            number = self.scopes.innermost(vertex)
            if number >= 0:
                found[log.root_name(log.calls[number]), reason] = None
        return list(found)

    def _note(self, vertices: JoinVertices | None, vertex: int) -> None:
        if vertices is None or self.is_step(vertices):
            return
        self.found[vertex] = vertices
        for read in vertices.branch_reads:
            self._branch_of.setdefault(unscaled(self.flow, read)[0], vertex)

    def _look_at_sum(self, vertex: int) -> None:
        made = sum_at(self.flow, vertex)
        if made is None or not self.scopes.may_join(vertex):
            return
        if made.broadcast and self._is_embedding(made):
            self.passed_over[vertex] = _BROADCAST
        if len(made.terms) < 2:
            return
        made = self._with_partial_sums(vertex, self._multiplied_out(vertex, made))
        vertices = self._addition(vertex, made)
        if self.adds_next_elements(vertex, made):
            if vertices is not None:
                self.passed_over[vertex] = STEP
            vertices = None
        self.sums[vertex] = made
        self._note(vertices, vertex)
        if vertices is not None or made.shared:
            for inner in made.inner:
                absorbed = self.found.pop(inner, None)
                for read in absorbed.branch_reads if absorbed else ():
                    if self._branch_of.get(read) == inner:
                        del self._branch_of[read]

    def _is_embedding(self, made: Sum) -> bool:
        """Whether what is added to several elements alike left the same tensor as the rest."""
        return any(
            self.fork(one, term.reads[0]) != NOWHERE or self.fork(term.reads[0], one) != NOWHERE
            for one in made.broadcast
            for term in made.terms
        )

    def _multiplied_out(self, vertex: int, made: Sum) -> Sum:
        """Return ``x + t · (h − x)``, an interpolation, as the sum of x and h that it is."""
        for term in made.terms:
            if self.flow.kinds[term.reads[0]] != "product" or len(term.reads) > 1:
                continue
            rest = [other for other in made.terms if other is not term]
            bases = {other.base for other in rest}
            for partial, gates in self._factors(term.reads[0]):
                inner = self.sums[partial]
                is_alone = self.is_partial(partial, vertex) and not inner.shared
                if is_alone and any(other.base in bases for other in inner.terms):
                    gates |= inner.gates | made.gates
                    inside = (*made.inner, partial, *inner.inner)
                    return Sum(merged(rest + inner.terms), True, gates, inside, made.shared)
        return made

    def _factors(self, start: int) -> Iterator[tuple[int, dict[Edge, int]]]:
        """Yield the sums that a product multiplies, with the edges to its other factors."""
        stack: list[tuple[int, dict[Edge, int]]] = [(start, {})]
        while stack:
            vertex, gates = stack.pop()
            edges = self.flow.reads[vertex]
            if self.flow.kinds[vertex] != "product" or self.flow.num_readers[vertex] > 1:
                continue
            for edge in edges:
                other = {(vertex, at, n): read for at, read, n in edges if at != edge[0]}
                if edge[1] in self.sums:
                    yield edge[1], gates | other
                else:
                    stack.append((edge[1], gates | other))

    def _with_partial_sums(self, vertex: int, made: Sum) -> Sum:
        """Return a sum with the operands of its partial sums, which nothing else reads.

        Only where one operand alone is a branch, or all are weights of one tensor: two branches
        that are added to a stream one after the other are two joins.
        """
        for term in made.terms:
            (partial, *others) = term.reads
            inner = self.sums.get(partial)
            if inner is None or others or inner.shared or not self.is_partial(partial, vertex):
                continue
            if not inner.costs:
                self._weigh(inner, 0)
            rest = [other for other in made.terms if other is not term]
            whole = Sum(
                merged(inner.terms + rest),
                inner.is_scaled or made.is_scaled,
                inner.gates | made.gates,
                (*made.inner, partial, *inner.inner),
                made.shared,
                forks=list(inner.forks),
                costs=list(inner.costs),
            )
            is_longer = len(whole.terms) == len(inner.terms) + len(rest)
            self._weigh(whole, len(inner.terms) if is_longer else 0)
            branches = sum(self._is_branch(one, whole, partial) for one in whole.terms)
            if branches <= 1 or self._adds_a_branch(partial, whole, len(inner.terms)):
                made = whole
        return made

    def _adds_a_branch(self, partial: int, whole: Sum, start: int) -> bool:
        """Whether a sum adds to a partial one, itself of linear maps, what is no lighter."""
        earlier = self.found.get(partial)
        if earlier is None or all(self._is_thin(vertex) for vertex in earlier.shortcut_path):
            return False
        return min(whole.costs[start:], default=0) >= earlier.shortcut_elements

    def _is_branch(self, term: Term, made: Sum, partial: int) -> bool:
        """Whether a term holds weights that are in no branch of a join that was found before."""
        forks = [fork for fork in made.forks if fork != NOWHERE]
        if not forks:
            return True
        oldest = min(forks)
        cost = {oldest: 0}
        starts = [unscaled(self.flow, read)[0] for read in term.reads]
        for vertex in sorted(self.region(starts, oldest)):
            below = [cost[read] for read in self.reads[vertex] if read in cost]
            if self._branch_of.get(vertex, partial) != partial:
                cost[vertex] = 0
            elif below:
                cost[vertex] = self.flow.elements[vertex] + min(below)
        costs = [cost[start] for start in starts if start in cost]
        return bool(costs) and min(costs) >= MAJOR

    def _weigh(self, made: Sum, start: int) -> None:
        """Fill in the nearest forks and the costs of the terms from `start` on."""
        made.forks[start:], made.costs[start:] = [], []
        bases = [unscaled(self.flow, term.reads[0])[0] for term in made.terms]
        for number, own in enumerate(bases[start:], start):
            fork = NOWHERE
            for at in sorted(range(number), key=lambda at: -bases[at]):
                other = bases[at]
                if made.costs[at] < MAJOR and fork != NOWHERE and other <= fork:
                    continue
                both = max(self.fork(own, other), self.fork(other, own))
                fork = max(fork, both)
                if both > made.forks[at]:
                    made.forks[at] = both
                    made.costs[at] = self._cost(other, both)
            made.forks.append(fork)
            made.costs.append(self._cost(own, fork))

    def _cost(self, start: int, fork: int) -> int:
        """Return the elements between a vertex and its fork; those of a term without one are 0."""
        if fork == NOWHERE or start <= fork:
            return 0
        return self.costs(self.region((start,), fork), fork).get(start, 0)

    def _addition(self, join: int, made: Sum) -> JoinVertices | None:
        if len(made.terms) > 2:
            return self._addition_of_many(join, made)
        # The operand made first is the shortcut nearly always; if so the other order is not tried.
        first, second = sorted(made.terms, key=lambda term: term.reads[0])
        best: JoinVertices | None = None
        for shortcut, branch in ((first, second), (second, first)):
            if best is not None and best.shortcut_elements < MAJOR:
                break
            fork = self.fork(shortcut.reads[0], branch.reads[0])
            other = self.vertices(join, fork, [shortcut], [branch], made)
            if best is None or (other and other.shortcut_elements < best.shortcut_elements):
                best = other
        if best is not None and best.shortcut_elements and self.reads_apart(best):
            # Two projections of two slices, as in a recurrent cell, left different tensors.
            return None
        return best

    def _addition_of_many(self, join: int, made: Sum) -> JoinVertices | None:
        if not made.costs:
            self._weigh(made, 0)
        order = sorted(range(len(made.terms)), key=lambda at: (made.costs[at], at))
        branch = made.terms[order[-1]]
        if not made.costs[order[-1]]:
            return None
        shortcuts = [term for term in made.terms if term is not branch]
        end, *starts = [unscaled(self.flow, term.reads[0])[0] for term in (branch, *shortcuts)]
        forks = [self.fork(start, end) for start in starts]
        return self.vertices(join, max(forks), shortcuts, [branch], made)

    def _concatenation(self, join: int) -> JoinVertices | None:
        """Join where one operand is the fork itself: the earliest that the others read.

        An operand from elsewhere (a condition, another input) may be among them, but not one that
        left an earlier tensor together with the fork: there, several branches meet.
        """
        operands = [(slot, read) for slot, read, _ in self.flow.reads[join]]
        for shortcut in sorted(operands, key=lambda operand: self.unviewed(operand[1])):
            fork = self.unviewed(shortcut[1])
            others = [operand for operand in operands if operand is not shortcut]
            branches = [other for other in others if self.reaches(other[1], fork)]
            if not branches or any(
                other not in branches and self.common(other[1], fork) != NOWHERE for other in others
            ):
                continue
            streams = [self.found.get(self.unviewed(read)) for _, read in branches]
            if any(stream is not None and stream.fork < fork for stream in streams):
                continue  # two streams side by side, as of a reversible block
            terms = [Term(read, (read,), ((join, slot),)) for slot, read in (shortcut, *branches)]
            vertices = self.vertices(join, fork, terms[:1], terms[1:], None)
            if vertices is not None and not self.reads_apart(vertices):
                return vertices
        return None

    def _drop_parallel_sums(self, outer: JoinVertices) -> None:
        """Remove sums of parallel branches, ``a(x) + m(x)``, that are then added to x itself."""
        is_thin = all(self._is_thin(vertex) for vertex in outer.shortcut_path)
        if not is_thin or outer.kind == "concat":
            return
        stack = list(outer.branch_reads)
        while stack:
            vertex = stack.pop()
            while (
                vertex not in self.found and len(self.reads[vertex]) == 1 and self._is_thin(vertex)
            ):
                vertex = self.reads[vertex][0]
            inner = self.found.get(vertex)
            if inner is None or not inner.shortcut_elements or inner.fork < outer.fork:
                continue
            between = self.region((inner.fork,), outer.fork)
            if all(self._is_thin(v) for v in between):
                del self.found[vertex]
                stack.extend(self.reads[vertex])

    def _is_thin(self, vertex: int) -> bool:
        """Whether a vertex at most scales, shifts or normalizes each feature."""
        return all(parameter.dim() <= 1 for parameter in self.flow.parameters[vertex])

    def _note_stacks(self) -> None:
        """Name the stacks of a shortcut and its branch that no sum over them was found for."""
        stacks = [vertex for vertex, kind in enumerate(self.flow.kinds) if kind == "stack"]
        summed = {inner for made in self.sums.values() for inner in made.inner} if stacks else ()
        joined = [{term.base for term in self.sums[v].terms} for v in self.found if v in self.sums]
        for vertex in stacks:
            is_known = vertex in summed or {*self.reads[vertex]} in joined
            if not is_known and self.scopes.may_join(vertex) and self._concatenation(vertex):
                self.passed_over[vertex] = _STACKED

"""Sums that look like joins and are none: steps of a recurrence, scores of attention, gates.

A recurrence over time inside of one call would have a join for each of its steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from analyzer.joins.graph import MAJOR, Dataflow, Scopes
from analyzer.joins.sides import JoinVertices, Sides
from analyzer.joins.sums import Sum, is_data_product

__all__ = ["STEP", "Recurrences"]

_SCORE = "it adds scores of attention"
_GATE = "it adds two projections for a gate"
_BOUNDED = tuple(f"{name}Backward0" for name in ("Sigmoid", "Tanh", "Hardsigmoid", "Hardtanh"))
STEP = "it adds in each step of a recurrence over time"
_MOST_ELEMENTS = 100
Slice = tuple[Any, ...]


class Recurrences(Sides):
    """Tells the steps of recurrences among the sums of a graph.

    Attributes:
        passed_over: By their vertex the sums that look like joins and are none, with the reason.
    """

    def __init__(self, flow: Dataflow, scopes: Scopes) -> None:
        super().__init__(flow, scopes)
        self.passed_over: dict[int, str] = {}
        self._has_slices = "select" in flow.kinds
        # By the call that made them the first join, and the last one by the parameters it reads.
        self._last: dict[int, tuple[JoinVertices, dict[frozenset[int], JoinVertices]]] = {}
        self._slices_of: dict[int, set[tuple[int, Slice]]] = {}

    def adds_next_elements(self, vertex: int, made: Sum) -> bool:
        """Whether a sum adds elements of a sequence to what was made of earlier ones.

        That is a recurrence over time of which each step is computed element by element, as in a
        state space model; the steps before are passed over, too.
        """
        if not self._has_slices:
            return False
        own, parts, others = self._elements_under(r for term in made.terms for r in term.reads)
        own |= self._elements_read({at for term in made.terms for at, _ in term.entries})
        self._slices_of[vertex] = own
        call = self.scopes.innermost(vertex)
        parts = [part for part in parts if self.scopes.innermost(part) == call]
        known: dict[int, set[Slice]] = {}
        steps = []
        for part, slices in [(vertex, own), *((p, self._slices_of.get(p, set())) for p in parts)]:
            if any(known.get(whole, {key}) != {key} for whole, key in slices):
                steps.append(part)
            for whole, key in slices:
                known.setdefault(whole, set()).add(key)
        if not steps or steps == [vertex]:
            return False
        if any(self.reaches(other, part) for other in others for part in parts):
            # A gate of a branch may be an element of what a condition gives to all blocks.
            return False
        for part in parts:
            if self.found.pop(part, None) is not None:
                self.passed_over[part] = STEP
        self.steps.update((vertex, *parts))
        return True

    def _elements_under(
        self, reads: Iterable[int]
    ) -> tuple[set[tuple[int, Slice]], list[int], list[int]]:
        """Return the slices that are read element by element, what joins several tensors, the rest.

        The rest is made neither of elements nor element by element, as by a layer.
        """
        slices: set[tuple[int, Slice]] = set()
        parts: list[int] = []
        others: list[int] = []
        stack = list(reads)
        seen = set(stack)
        while stack and len(seen) < _MOST_ELEMENTS:
            vertex = stack.pop()
            kind = self.flow.kinds[vertex]
            if vertex in self.sums or (kind == "element" and len(self.reads[vertex]) > 1):
                parts.append(vertex)
                if vertex not in self._slices_of:
                    self._slices_of[vertex] = set()
                    own = self._elements_under(self.reads[vertex])[0]
                    self._slices_of[vertex] = own | self._elements_read((vertex,))
            elif kind in ("add", "product", "element", "negative", "view"):
                slices |= self._elements_read((vertex,))
                new = [read for read in self.reads[vertex] if read not in seen]
                seen.update(new)
                stack += new
            elif kind != "select":
                others.append(vertex)
        return slices, parts, others

    def is_step(self, later: JoinVertices) -> bool:
        """Whether a join is a step of a recurrence over time inside of one call; note it.

        Such steps follow one another in a call, with the same parameters, and each one reads data
        that the one before does not: its element of the sequence.
        """
        first, known = self._last.setdefault(self.scopes.innermost(later.join), (later, {}))
        if first is later:
            return False
        if not known:
            known[self._weights(first)] = first
        weights = self._weights(later)
        earlier, known[weights] = known.get(weights), later
        if earlier is None or not self._follows(earlier, later):
            return False
        if not (self._reads_next_slice(earlier, later) or self._reads_more(earlier, later)):
            return False
        for vertices in (earlier, later):
            self.found.pop(vertices.join, None)
            self.passed_over[vertices.join] = STEP
        return True

    def _weights(self, one: JoinVertices) -> frozenset[int]:
        read = self.flow.parameters
        return frozenset([id(p) for v in one.branch_region | one.between for p in read[v]])

    def _follows(self, earlier: JoinVertices, later: JoinVertices) -> bool:
        if later.fork < earlier.join:
            return earlier.join in later.between
        return self.reaches(later.fork, earlier.join)

    def _reads_next_slice(self, earlier: JoinVertices, later: JoinVertices) -> bool:
        own, others = (
            self._slices_read(one.branch_region | one.between) for one in (later, earlier)
        )
        wholes = {whole for whole, _ in others}
        return any(whole in wholes for whole, _ in own - others)

    def _slices_read(self, vertices: Iterable[int]) -> set[tuple[int, Slice]]:
        """Return the slices that some vertices read: (whole, the slice itself)."""
        found = set()
        for vertex in vertices:
            for _, read, number in self.flow.reads[vertex]:
                if self.flow.kinds[read] == "select" and self.reads[read]:
                    whole = self.reads[read][0]
                    if prod(self.flow.shape(read, number)) < prod(self.flow.shape(whole)):
                        found.add((whole, self._slice(read, number)))
        return found

    def _elements_read(self, vertices: Iterable[int]) -> set[tuple[int, Slice]]:
        """Return the slices that some vertices read, but for groups of features (``chunk``)."""
        return {s for s in self._slices_read(vertices) if not str(s[1][0]).startswith("Split")}

    def _slice(self, vertex: int, number: int) -> Slice:
        """Return what tells a slice from others of the same tensor."""
        node = self.flow.vertices[vertex]
        names = ("_saved_dim", "_saved_index", "_saved_start", "_saved_end")
        place = tuple(getattr(node, name, None) for name in names)
        place = (type(node).__name__, *place, number)
        return place if place[1] is not None else (place[0], vertex, number)

    def _reads_more(self, earlier: JoinVertices, later: JoinVertices) -> bool:
        if later.fork < earlier.join:
            return False
        new = self._read_besides(later) - self._read_besides(earlier)
        return any(not self.reaches(vertex, earlier.join) for vertex in new)

    def _read_besides(self, vertices: JoinVertices) -> set[int]:
        """Return the data that the branch of a join reads besides the fork."""
        region = vertices.branch_region & vertices.between
        return {r for v in region for r in self.reads[v]} - region - {vertices.fork}

    def drop_scores(self) -> None:
        """Pass over sums of scores: products of data that are added on their way to a softmax."""
        flow = self.flow
        stack: list[int] = []
        for vertex, maker in enumerate(flow.vertices):
            if type(maker).__name__ in ("SoftmaxBackward0", "SafeSoftmaxBackward0"):
                stack += self.reads[vertex]
        seen = set(stack)
        while stack:
            vertex = stack.pop()
            if flow.kinds[vertex] in ("product", "add", "negative", "view", "expand", "select") or (
                type(flow.vertices[vertex]).__name__.startswith("MaskedFill")
            ):
                reads = [read for read in self.reads[vertex] if read not in seen]
                seen.update(reads)
                stack += reads
        for vertex in [vertex for vertex in self.found if vertex in seen]:
            terms = self.sums[vertex].terms if vertex in self.sums else []
            reads = [read for term in terms for read in term.reads]
            if any(self._is_score(read) for read in reads):
                del self.found[vertex]
                self.passed_over[vertex] = _SCORE

    def _is_score(self, vertex: int) -> bool:
        kinds = ("product", "negative", "view", "expand", "select", "add")
        while not is_data_product(self.flow, vertex):
            if self.flow.kinds[vertex] not in kinds or not self.reads[vertex]:
                return False
            vertex = max(self.reads[vertex])
        return True

    def drop_gates(self) -> None:
        """Pass over sums within a block that gate it, as in a GRU: ``σ(W a + U x) · y``."""
        gated = [one for one in self.found.values() if one.kind == "gated"]
        projected = [v for v, one in self.found.items() if one.shortcut_elements >= MAJOR]
        inner = {v for one in gated for v in self.found if v in one.branch_region}
        for vertex in {*inner, *projected}:
            is_inside = any(vertex in one.branch_region for one in self.found.values())
            if is_inside and self._gates_alone(vertex):
                del self.found[vertex]
                self.passed_over[vertex] = _GATE

    def _gates_alone(self, vertex: int) -> bool:
        """Whether all that is made of a vertex is bounded, and then multiplies other data."""
        stack, gates = [(vertex, False)], False
        while stack:
            made, is_bounded = stack.pop()
            for reader, _, _ in self.edges_to[made]:
                kind, name = self.flow.kinds[reader], type(self.flow.vertices[reader]).__name__
                is_passed = name in _BOUNDED or kind in ("view", "add", "negative", "product")
                if is_passed and len(self.reads[reader]) == 1:
                    stack.append((reader, is_bounded or name in _BOUNDED))
                elif is_bounded and kind == "product":
                    gates = True
                else:
                    return False
        return gates

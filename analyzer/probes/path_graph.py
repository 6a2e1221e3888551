"""Where an autograd graph crosses from a join into its branch, and the fork where paths end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from analyzer.joins.graph import Walk
from analyzer.joins.operations import FUSED, kind_of_node
from analyzer.joins.plan import JoinSite

__all__ = [
    "Crossing",
    "Slot",
    "count_paths",
    "crossings_of",
    "gradients_by_length",
    "inputs_first",
    "mixing_edges",
    "through_shortcuts",
]


Slot = tuple[Node, int]
# What a branch returns, multiplied or shaped otherwise before it is added, is still that branch.
_MULTIPLES = ("product", "negative", "view", "add")


@dataclass(frozen=True, eq=False)
class Crossing:
    """The edges by which a gradient enters one branch, whichever joins add it.

    Each is (reader, its input slot): from the sum to its operand, and from the shortcut into a
    gate, which belongs to the branch. What is added, by the `entries`, is a multiple of `source`.
    """

    edges: tuple[Slot, ...]
    source: GradientEdge
    entries: tuple[Slot, ...]


def crossings_of(sites: Sequence[JoinSite], walk: Walk, goal: Node) -> list[Crossing]:
    """Return for each branch the edges that cross into it, in the order of the joins.

    A concatenation crosses as an addition does: it is the sum of its operands, each padded with
    zeros. A join of many operands crosses into each that is a branch: of this join, of an earlier
    one (a mix of all earlier outputs reads it again), or beside it (``x + a(x) + m(x)``). An edge
    belongs to one branch.

    Args:
        sites: The joins, forward order.
        walk: The graph of the loss.
        goal: The node at which paths end.
    """
    operands = _Operands(sites, walk, goal)
    seen = [site for site in sites if site.node is not None]
    branches = {operands.base(edge) for site in seen for edge in site.branch_entries}
    found: dict[GradientEdge, dict[Slot, Slot]] = {}
    taken = {operands.last(edge) for site in seen for edge in site.branch_entries}
    for site in seen:
        for edge in (*site.branch_entries, *operands.parallel_branches(site, branches)):
            last = operands.last(edge)
            found.setdefault(operands.base(edge), {})[last] = edge
            taken.add(last)
        for reader, slot, _ in site.gate_edges if site.branch_entries else ():
            # Weights that are computed from branches, too (attention over earlier outputs), cross
            # into those; other gates belong to the branch of their join.
            behind = operands.into((reader, slot), branches)
            gate = {(reader, slot): operands.base(site.branch_entries[0])}
            for edge, source in (behind or gate).items():
                if edge not in taken:
                    found.setdefault(source, {})[edge] = edge
                    taken.add(edge)
    return [Crossing((*edges,), source, (*edges.values(),)) for source, edges in found.items()]


def mixing_edges(sites: Sequence[JoinSite], walk: Walk, goal: Node) -> tuple[Slot, ...]:
    """Return the edges to matrices, computed from the streams, by which those were mixed.

    As where one product makes what a block of hyper-connections reads and the mixed streams: both
    sides of its join read slices of the product, their fork.
    """
    operands = _Operands(sites, walk, goal)
    return tuple(edge for site in sites for edge in operands.mixing(site))


class _Operands:
    """What the operands of joins are: the tensors that they are multiples of."""

    def __init__(self, sites: Sequence[JoinSite], walk: Walk, goal: Node) -> None:
        self._joins = {site.node for site in sites}
        self._gates = {edge[:2] for site in sites for edge in site.gate_edges}
        self._goal = goal
        self._num_readers = Counter(child for edges in walk.edges for child, _ in edges)
        self._bearing = {goal}  # the nodes from which a path leads to the goal
        for node in inputs_first(walk.nodes[0]):
            if not self._bearing.isdisjoint(child for child, _ in node.next_functions):
                self._bearing.add(node)

    def base(self, edge: Slot) -> GradientEdge:
        """Return the tensor that an operand is a multiple of."""
        return self._multiples(edge)[1]

    def last(self, edge: Slot) -> Slot:
        """Return the edge to that tensor; an earlier one where something else reads multiples."""
        return self._multiples(edge)[0]

    def _multiples(self, edge: Slot) -> tuple[Slot, GradientEdge]:
        reader, slot = edge
        if type(reader).__name__ in FUSED and slot > 0:
            return edge, GradientEdge(reader, 0)  # what it makes itself of its later operands
        while True:
            child, number = reader.next_functions[slot]
            assert child is not None  # the operands of a site are seen by autograd
            if child in self._joins or child is self._goal:
                return edge, GradientEdge(child, number)
            name = type(child).__name__
            kind = kind_of_node(name, child)
            read = [
                (child, at)
                for at, (below, _) in enumerate(child.next_functions)
                if below in self._bearing and (child, at) not in self._gates
            ]
            is_multiple = kind in _MULTIPLES and len(read) == 1 and len(child._input_metadata) == 1
            if not is_multiple or (name in FUSED and read[0][1] > 0):
                return edge, GradientEdge(child, number)
            if edge == (reader, slot) and self._num_readers[child] == 1:
                edge = read[0]
            reader, slot = read[0]

    def into(self, edge: Slot, branches: Container[GradientEdge]) -> dict[Slot, GradientEdge]:
        """Return the edges behind one by which branches are read, before any fork or join."""
        found: dict[Slot, GradientEdge] = {}
        stack, seen = [edge], {edge}
        while stack:
            reader, slot = stack.pop()
            child, number = reader.next_functions[slot]
            if child not in self._bearing or child is self._goal or child in self._joins:
                continue
            if (source := GradientEdge(child, number)) in branches:
                found[reader, slot] = source
                continue
            edges = {(child, at) for at in range(len(child.next_functions))} - seen
            seen |= edges
            stack.extend(edges)
        return found

    def mixing(self, site: JoinSite) -> list[Slot]:
        """Return the edge to the matrix that mixed the streams before a join."""
        readers = {edge[0] for edge in (*(site.shortcut_edges or ()), *(site.branch_edges or ()))}
        if site.fork is None or {_kind(reader) for reader in readers} != {"select"}:
            return []
        product = self._unviewed(site.fork)
        below = [child for child, _ in product.next_functions]
        read = [(product, slot) for slot, child in enumerate(below) if child in self._bearing]
        if product is self._goal or _kind(product) != "matmul" or len(read) != 2:
            return []
        made = [self._unviewed(below[slot]) for _, slot in read]
        pairs = zip(read, made, made[::-1], strict=True)
        return [edge for edge, matrix, streams in pairs if self._reads(matrix, streams)]

    def _unviewed(self, node: Any) -> Node:
        """Return the node that made what a node is a mere view of, or a repetition."""
        while _kind(node) in ("view", "expand") and node not in self._joins:
            if node is self._goal:
                break
            node = next(child for child, _ in node.next_functions if child in self._bearing)
        found: Node = node
        return found

    def _reads(self, node: Node, other: Node) -> bool:
        """Whether a node was computed from another one."""
        stack, seen = [node], {node}
        while stack:
            children = {child for child, _ in stack.pop().next_functions if child is not None}
            if other in children:
                return True
            new = {c for c in children - seen if c._sequence_nr() > other._sequence_nr()}
            seen |= new
            stack.extend(new)
        return False

    def parallel_branches(self, site: JoinSite, branches: Container[GradientEdge]) -> list[Slot]:
        """Return which shortcuts of a sum of many operands are branches."""
        leading = [
            e for e in site.shortcut_entries if e[0].next_functions[e[1]][0] in self._bearing
        ]
        bases = {edge: self.base(edge) for edge in leading}
        if len(set(bases.values())) < 2:
            return []
        weights = {edge: self._weight(base, site) for edge, base in bases.items()}
        lightest = min(weights.values())
        return [e for e, base in bases.items() if base in branches or weights[e] > lightest]

    def _weight(self, base: GradientEdge, site: JoinSite) -> int:
        """Return how many elements the parameters have between a tensor and fork or join."""
        stops = {*self._joins, self._goal, site.fork}
        stack, seen = [base.node], {base.node}
        total = 0
        while stack:
            node = stack.pop()
            if node in stops:
                continue
            variable = getattr(node, "variable", None)
            total += variable.numel() if isinstance(variable, nn.Parameter) else 0
            children = {child for child, _ in node.next_functions if child is not None} - seen
            seen |= children
            stack.extend(children)
        return total


def _kind(node: Node) -> str:
    return kind_of_node(type(node).__name__, node)


def inputs_first(start: Node) -> list[Node]:
    """Return the nodes below one, each after all that it reads."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(start, False)]
    while stack:
        node, is_expanded = stack.pop()
        if is_expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child is not None)
    return order


Counts = list[int]


def count_paths(root: Node, goal: Node, crossings: Sequence[Crossing]) -> Counts:
    """Return the number of paths from the loss to the goal, by the branches that they cross.

    A path is the set of branches that it crosses, so that routes inside of one branch (query, key
    and value), and shortcuts around one and the same branches, are one path: C(n, k) for n joins
    one after another, 1, 2, 0 for ``x + a(x) + m(x)``, 1, 1, 1 for a join inside the branch of
    another, and C(n, k) where each of n blocks reads a mix of all earlier outputs.
    """
    entered = {edge: number for number, one in enumerate(crossings) for edge in one.edges}
    # What can be reached from a node without crossing: the goal (bit 0), and ways into branches.
    ways: dict[tuple[int, Node], int] = {}
    reach: dict[Node, int] = {}
    for node in inputs_first(root):
        found = int(node is goal)
        for slot, (child, _) in enumerate(node.next_functions) if node is not goal else ():
            number = entered.get((node, slot))
            if child is None or not reach[child]:
                continue
            if number is None:
                found |= reach[child]
            else:
                found |= 1 << ways.setdefault((number, child), len(ways) + 1)
        reach[node] = found
    branch_of = [-1, *(number for number, _ in ways)]
    behind = [0, *(reach[child] for _, child in ways)]
    counts: dict[int, Counts] = {0: [], 1: [1]}
    stack = [reach[root]]
    while stack:
        here = stack[-1]
        if here in counts:
            stack.pop()
            continue
        branch = branch_of[here.bit_length() - 1]
        own = [bit for bit in range(1, here.bit_length()) if here >> bit & 1]
        own = [bit for bit in own if branch_of[bit] == branch]
        rest, across = here, 0
        for bit in own:
            rest, across = rest & ~(1 << bit), across | behind[bit]
        missing = [way for way in (rest, across) if way not in counts]
        if not missing:
            counts[here] = _sum([counts[rest], [0, *counts[across]]])
        stack += missing
    length = len(crossings) + 1
    found_counts = counts[reach[root]]
    return [*found_counts, *[0] * (length - len(found_counts))][:length]


def _sum(many: Sequence[Counts]) -> Counts:
    length = max(map(len, many), default=0)
    return [sum(counts[k] for counts in many if k < len(counts)) for k in range(length)]


Parts = tuple[Tensor | None, ...]


def gradients_by_length(
    loss: Tensor, parts: Sequence[GradientEdge], crossings: Sequence[Crossing]
) -> Iterator[Parts]:
    """Yield the gradient of all paths that cross k branches, for k = 0, 1, … in order.

    At every join ``G_k ← G_k(through shortcut) + Jᵀ G_{k−1}(through branch)``. The first pass
    begins at the loss; each holds back what joins send into their branches, and the next one
    begins with that, there. All run over one graph, so memory holds one forward pass and one
    gradient a join, whatever their number, and a pass computes nothing above its first branch.

    One gradient a part (a place where it is taken), None where no path of that length arrives;
    ends early once no path is left. The joins' nodes are hooked until then.
    """
    with _holding_back(edge for one in crossings for edge in one.edges) as held:
        yield _gradients([loss], None, parts)
        while held:
            edges = [_operand(reader, slot) for reader, slot in held]
            gradients = [_fitted(*pair) for pair in zip(held.values(), edges, strict=True)]
            held.clear()
            yield _gradients(edges, gradients, parts)


def through_shortcuts(
    edges: Sequence[GradientEdge],
    gradients: Sequence[Tensor],
    parts: Sequence[GradientEdge],
    closed: Iterable[Slot],
) -> Parts:
    """Return what gradients at some tensors become on the paths that go by no closed edge."""
    with _holding_back(closed):
        return _gradients(edges, gradients, parts)


def _gradients(starts: Sequence[Any], gradients: Any, parts: Sequence[GradientEdge]) -> Parts:
    return torch.autograd.grad(
        list(starts), list(parts), gradients, retain_graph=True, allow_unused=True
    )


@contextmanager
def _holding_back(edges: Iterable[Slot]) -> Iterator[dict[Slot, Tensor]]:
    """Let passes send nothing by some edges; what they would send is in the result."""
    held: dict[Slot, Tensor] = {}
    slots: dict[Node, list[int]] = {}
    for reader, slot in edges:
        slots.setdefault(reader, []).append(slot)
    with ExitStack() as hooks:
        for reader, own in slots.items():
            hooks.enter_context(reader.register_hook(partial(_hold_back, held, reader, own)))
        yield held


def _hold_back(
    held: dict[Slot, Tensor],
    reader: Node,
    slots: Sequence[int],
    gradients: tuple[Tensor | None, ...],
    _: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Keep what goes by some slots for the next pass, and let this pass send nothing there."""
    kept = list(gradients)
    for slot in slots:
        gradient = kept[slot]
        if gradient is not None:
            held[reader, slot] = gradient
            kept[slot] = None
    return tuple(kept)


def _operand(reader: Node, slot: int) -> GradientEdge:
    child, number = reader.next_functions[slot]
    assert child is not None  # a gradient came by this slot
    return GradientEdge(child, number)


def _fitted(gradient: Tensor, edge: GradientEdge) -> Tensor:
    """Undo broadcasting and promotion, as the engine does after the hooks."""
    metadata: Any = edge.node._input_metadata[edge.output_nr]
    if gradient.shape != metadata.shape:
        gradient = gradient.sum_to_size(metadata.shape)
    return gradient.to(metadata.dtype)

"""How many paths of each length a network has: the recursion of the gradients, on counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch.autograd.graph import Node

from analyzer.joins.graph import Walk
from analyzer.probes.path_graph import Crossing

__all__ = ["count_paths"]

Counts = list[int]


def count_paths(root: Node, fork: Node, crossings: Sequence[Crossing]) -> Counts:
    """Return the number of paths from the loss to the fork by the branches that they cross.

    A path is a choice of shortcut or branch at each join that it meets; routes inside one branch
    that meet the same joins (query, key and value) are one path. At every join
    ``N_k ← N_k(through shortcut) + N_{k−1}(through branch)``: C(n, k) for n joins one after
    another, 1, 2, 0 for ``x + a(x) + m(x)``, 1, 1, 1 for a join inside the branch of another.

    Args:
        root: The node of the loss.
        fork: Where paths end.
        crossings: The joins.

    Returns:
        Whole numbers for lengths 0 to the number of joins.
    """
    joins = {crossing.node: crossing for crossing in crossings}
    cut = {edge for crossing in crossings for edge in crossing.edges}
    stops: dict[Node, frozenset[Node]] = {}
    counts: dict[Node, Counts] = {}
    for node in _inputs_first(root):
        edges = node.next_functions
        straight = [stops[c] for s, (c, _) in enumerate(edges) if c and (node, s) not in cut]
        if node is fork:
            stops[node], counts[node] = frozenset([node]), [1]
        elif (crossing := joins.get(node)) is not None:
            operands = [reader.next_functions[slot][0] for reader, slot in crossing.edges]
            across = [stops[operand] for operand in operands if operand is not None]
            shortcut = _total(counts, _union(straight))
            branch = _total(counts, _union(across))
            counts[node] = _sum([shortcut, [0, *branch] if branch else []])
            stops[node] = frozenset([node]) if counts[node] else frozenset()
        else:
            stops[node] = _union(straight)
    found = _total(counts, stops[root])
    length = len(crossings) + 1
    return [*found, *[0] * (length - len(found))][:length]


def _union(sets: Sequence[frozenset[Node]]) -> frozenset[Node]:
    """Return one of the sets itself where it holds all, so that long chains share it."""
    largest = max(sets, key=len, default=frozenset[Node]())
    rest = [one for one in sets if one is not largest and not one <= largest]
    return largest.union(*rest) if rest else largest


def _total(counts: dict[Node, Counts], nodes: Iterable[Node]) -> Counts:
    return _sum([counts[node] for node in nodes])


def _sum(many: Sequence[Counts]) -> Counts:
    length = max(map(len, many), default=0)
    return [sum(counts[k] for counts in many if k < len(counts)) for k in range(length)]


def _inputs_first(root: Node) -> list[Node]:
    """Return all nodes below one, each after everything that it reads."""
    walk = Walk([root])
    order: list[Node] = []
    num_readers = dict.fromkeys(walk.nodes, 0)
    for edges in walk.edges:
        for child, _ in edges:
            if child is not None:
                num_readers[child] += 1
    ready = [root]
    while ready:
        node = ready.pop()
        order.append(node)
        for child, _ in walk.edges[walk.place[node]]:
            if child is not None:
                num_readers[child] -= 1
                if num_readers[child] == 0:
                    ready.append(child)
    return order[::-1]

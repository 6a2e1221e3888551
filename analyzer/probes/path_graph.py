"""Where an autograd graph crosses from a join into its branch, and the fork where paths end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch.autograd.graph import GradientEdge, Node

from analyzer.joins.graph import Walk
from analyzer.joins.plan import JoinSite
from analyzer.probes.path_samples import PathsError

__all__ = [
    "Crossing",
    "count_paths",
    "crossings_of",
    "destination_of",
    "inputs_first",
]


Slot = tuple[Node, int]


@dataclass(frozen=True, eq=False)
class Crossing:
    """The edges by which a gradient enters the branch of one join.

    Each is (reader, its input slot): from the join's node to its branch operand, and from the
    shortcut into a gate, which belongs to the branch.
    """

    node: Node
    edges: tuple[Slot, ...]


@dataclass(frozen=True, eq=False)
class Destination:
    """The tensor at which the gradients of all paths are taken, and the node that made it.

    There are several parts where a join reads several chunks of one tensor.
    """

    name: str
    node: Node
    parts: tuple[GradientEdge, ...]


def crossings_of(sites: Sequence[JoinSite]) -> list[Crossing]:
    """Return for each join with gradient the edges that cross into its branch, forward order.

    A concatenation crosses as an addition does: it is the sum of its operands, each padded with
    zeros. An edge belongs to one join: that whose node it leaves.
    """
    taken = {edge for site in sites if site.node for edge in site.branch_entries}
    crossings: list[Crossing] = []
    for site in sites:
        if site.node is None:
            continue
        gates = [edge[:2] for edge in site.gate_edges if edge[:2] not in taken]
        taken.update(gates)
        crossings.append(Crossing(site.node, (*site.branch_entries, *gates)))
    return crossings


def destination_of(
    sites: Sequence[JoinSite], inputs: Sequence[GradientEdge], walk: Walk
) -> Destination:
    """Return the fork of the first join: of nested joins the outermost one's, made first.

    Without joins it is the first floating input with a batch axis, or the first embedding.

    Raises:
        PathsError: If that tensor has no gradient.
    """
    if not sites:
        return _start(inputs, walk)
    first = sites[0].fork
    if first is None:
        raise PathsError(
            f"the fork of the first join, {sites[0].join.name!r}, comes from a part that runs "
            "without gradient (no_grad, detach, integers); expected a tensor with gradient. Run "
            "that part with gradient, or measure the part behind it."
        )
    before = set(Walk([first]).nodes)
    forks = [site for site in sites if site.fork in before]
    site = min(forks, key=lambda site: _order(site.fork))
    assert site.fork is not None
    numbers = sorted({number for other in forks for number in _outputs_read(other, site.fork)})
    return Destination(
        f"fork of {site.join.name}",
        site.fork,
        tuple(GradientEdge(site.fork, number) for number in numbers),
    )


def _start(inputs: Sequence[GradientEdge], walk: Walk) -> Destination:
    if inputs:
        return Destination("input", inputs[0].node, (inputs[0],))
    embeddings = [node for node in walk.nodes if type(node).__name__.startswith("Embedding")]
    if not embeddings:
        raise PathsError(
            "the model has no floating input with a batch axis, and no embedding; expected one of "
            "the two, at which its gradient is taken. Pass the tensors that the model reads."
        )
    node = min(embeddings, key=_order)
    return Destination("first embedding", node, (GradientEdge(node, 0),))


def _order(node: Node | None) -> int:
    return node._sequence_nr() if node is not None else -1


def _outputs_read(site: JoinSite, fork: Node) -> set[int]:
    """Return which outputs of the fork a join reads."""
    if site.fork is not fork:
        return set()
    if site.shortcut_edges is None or site.branch_edges is None:
        return set(range(len(fork._input_metadata)))
    return {number for _, _, number in (*site.shortcut_edges, *site.branch_edges)}


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


def count_paths(root: Node, fork: Node, crossings: Sequence[Crossing]) -> Counts:
    """Return the number of paths from the loss to the fork, by the branches that they cross.

    A path is a choice of shortcut or branch at each join that it meets; routes inside one branch
    that meet the same joins (query, key and value) are one path. At every join
    ``N_k ← N_k(through shortcut) + N_{k−1}(through branch)``: C(n, k) for n joins one after
    another, 1, 2, 0 for ``x + a(x) + m(x)``, 1, 1, 1 for a join inside the branch of another.
    """
    joins = {crossing.node: crossing for crossing in crossings}
    cut = {edge for crossing in crossings for edge in crossing.edges}
    stops: dict[Node, frozenset[Node]] = {}
    counts: dict[Node, Counts] = {}
    for node in inputs_first(root):
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

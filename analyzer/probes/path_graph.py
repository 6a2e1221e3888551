"""Where an autograd graph crosses from a join into its branch, and the fork where paths end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.autograd.graph import GradientEdge, Node

from analyzer.joins import JoinSite
from analyzer.joins.graph import Walk
from analyzer.probes.path_samples import PathsError

__all__ = ["Crossing", "Destination", "crossings_of", "destination_of"]

Slot = tuple[Node, int]


@dataclass(frozen=True, eq=False)
class Crossing:
    """The edges by which a gradient enters the branch of one join.

    Args:
        node: The node that adds or concatenates.
        edges: (reader, its input slot): from the join to its branch operand, and from the shortcut
            into a gate, which belongs to the branch.
    """

    node: Node
    edges: tuple[Slot, ...]


@dataclass(frozen=True, eq=False)
class Destination:
    """The tensor at which the gradients of all paths are taken.

    Args:
        name: What it is, in words.
        node: The node that made it.
        parts: It, as edges of the graph; several where a join reads several chunks of one tensor.
    """

    name: str
    node: Node
    parts: tuple[GradientEdge, ...]


def crossings_of(sites: Sequence[JoinSite]) -> list[Crossing]:
    """Return for each join with gradient the edges that cross into its branch.

    A concatenation crosses as an addition does: it is the sum of its operands, each padded with
    zeros. An edge belongs to one join: that whose node it leaves.

    Args:
        sites: The joins in the graph, forward order.

    Returns:
        One crossing a join; without edges where no gradient goes to the branch.
    """
    taken = {(site.node, slot) for site in sites if site.node for slot in site.branch_slots}
    crossings: list[Crossing] = []
    for site in sites:
        if site.node is None:
            continue
        gates = [edge for edge in _gate_edges(site) if edge not in taken]
        taken.update(gates)
        own = [(site.node, slot) for slot in site.branch_slots]
        crossings.append(Crossing(site.node, (*own, *gates)))
    return crossings


def destination_of(
    sites: Sequence[JoinSite], inputs: Sequence[GradientEdge], walk: Walk
) -> Destination:
    """Return the fork of the first join: of nested joins the outermost one's, made first.

    Without joins it is the first floating input, or the first embedding.

    Args:
        sites: The joins with gradient, forward order.
        inputs: Floating inputs of the model that have a batch axis.
        walk: The graph of the loss.

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


def _gate_edges(site: JoinSite) -> list[Slot]:
    """Return the edges from products on the shortcut to what only scales them there.

    ``s = (1 − g(x)) · x``: the split of a join counts g's reads of the fork with the branch.
    """
    operand = site.node.next_functions[site.shortcut_slot][0] if site.node else None
    if operand is None or operand is site.fork or not site.shortcut_edges or not site.branch_edges:
        return []
    shortcut = {edge[:2] for edge in site.shortcut_edges}
    branch = {edge[:2] for edge in site.branch_edges}
    by_shortcut, by_branch = set[Node](), set[Node]()
    order = _inputs_first(operand, site.fork)
    for node in order:
        for slot, (child, _) in enumerate(node.next_functions):
            if (node, slot) in shortcut or child in by_shortcut:
                by_shortcut.add(node)
            if (node, slot) in branch or child in by_branch:
                by_branch.add(node)
    return [
        (node, slot)
        for node in order
        if node in by_shortcut and type(node).__name__ == "MulBackward0"
        for slot, (child, _) in enumerate(node.next_functions)
        if child not in by_shortcut
        and (node, slot) not in shortcut
        and ((node, slot) in branch or child in by_branch)
    ]


def _inputs_first(start: Node, stop: Node | None) -> list[Node]:
    """Return the nodes below one, each after all that it reads, without passing another one."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(start, False)]
    while stack:
        node, is_expanded = stack.pop()
        if is_expanded:
            order.append(node)
        elif node not in seen and node is not stop:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child is not None)
    return order

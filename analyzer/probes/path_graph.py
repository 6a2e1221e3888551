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
        gates = [edge[:2] for edge in site.gate_edges if edge[:2] not in taken]
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

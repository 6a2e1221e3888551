"""What lies between a place in an autograd graph and the output above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.autograd.graph import Node

from analyzer.joins.graph import Walk

__all__ = ["is_nonlinearity", "numbers_above"]

_NONLINEARITIES = {
    "CeluBackward",
    "EluBackward",
    "GeluBackward",
    "HardsigmoidBackward",
    "HardswishBackward",
    "HardtanhBackward",
    "LeakyReluBackward",
    "MishBackward",
    "PreluKernelBackward",
    "ReluBackward",
    "SigmoidBackward",
    "SiluBackward",
    "SoftplusBackward",
    "TanhBackward",
    "ThresholdBackward",
}


def is_nonlinearity(node: Node) -> bool:
    """Return whether a node is an element-wise nonlinearity, written as module or as function."""
    return type(node).__name__.rstrip("0123456789") in _NONLINEARITIES


def numbers_above(
    root: Node, places: Sequence[Node | None], counts: Callable[[Node], bool]
) -> list[int]:
    """Return how many nodes of a kind lie above each place, on the longest path to the root.

    Args:
        root: The node that made the output.
        places: Nodes of the graph; the place itself is not counted.
        counts: Which nodes count.

    Returns:
        A number per place; 0 for None and for nodes that the root does not depend on.
    """
    walk = Walk([root])
    waiting = dict.fromkeys(walk.nodes, 0)
    for edges in walk.edges:
        for child, _ in edges:
            if child is not None:
                waiting[child] += 1
    edges_of = dict(zip(walk.nodes, walk.edges, strict=True))
    above, ready = dict.fromkeys(walk.nodes, 0), [root]
    while ready:
        node = ready.pop()
        number = above[node] + counts(node)
        for child, _ in edges_of[node]:
            if child is None:
                continue
            above[child] = max(above[child], number)
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    return [0 if place is None else above.get(place, 0) for place in places]

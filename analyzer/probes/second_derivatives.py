"""Whether a gradient can be differentiated once more."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from analyzer.joins.graph import Walk

__all__ = ["num_bytes_held", "refuse_if_severed"]


def refuse_if_severed(gradients: Iterable[Tensor]) -> Walk:
    """Return the graph of some gradients; refuse it where a custom function cuts it off.

    Such a function's backward is marked ``once_differentiable``. Torch raises only where it runs
    into the mark, and it never does when it looks for the derivative by something behind it: that
    part would silently be missing.

    Args:
        gradients: Results of ``torch.autograd.grad(…, create_graph=True)``.

    Raises:
        RuntimeError: If there is such a mark.
    """
    walk = Walk([g.grad_fn for g in gradients if g.grad_fn is not None])
    if any(type(node).__name__ == "Error" for node in walk.nodes):
        raise RuntimeError(
            "a custom function's backward is marked once_differentiable: it has no second "
            "derivative"
        )
    return walk


def num_bytes_held(walk: Walk) -> int:
    """Estimate what a graph holds in memory: the outputs of all its nodes."""
    total = 0
    for node in walk.nodes:
        for part in node._input_metadata:
            size = part.dtype.itemsize
            for length in part.shape:
                size *= length
            total += size
    return total

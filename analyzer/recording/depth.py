"""The depth of each layer: how many layers lie on the longest path from the input to it."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["ForwardDepth", "graph_depths"]


class _Call(Protocol):
    node: Any
    forward_depth: int


def graph_depths(roots: Iterable[Any], calls: Sequence[_Call]) -> list[int]:
    """Return the depth of each call from the autograd graph below the roots of a backward pass.

    ``depth(layer) = 1 + max depth of the layers that it reads``; 1 where it reads none. Layers that
    share an output node (an identity, a module around another one) follow one another in call
    order. A call without a node gets 0.

    Args:
        roots: Tensors (or graph edges) from which the backward pass starts.
        calls: Calls in call order, with the graph node of their output.
    """
    layers_at: dict[Node, list[int]] = {}
    for place, call in enumerate(calls):
        if call.node is not None:
            layers_at.setdefault(call.node, []).append(place)
    depths = [0] * len(calls)
    below: dict[Node, int] = {}
    starts = [root.grad_fn if isinstance(root, Tensor) else root.node for root in roots]
    stack: list[tuple[Node, bool]] = [
        (node, False) for node in (*starts, *layers_at) if node is not None
    ]
    while stack:
        node, is_expanded = stack.pop()
        if node in below:
            continue
        children = [child for child, _ in node.next_functions if child is not None]
        if not is_expanded:
            stack.append((node, True))
            stack.extend((child, False) for child in children if child not in below)
            continue
        depth = max((below[child] for child in children), default=0)
        for place in layers_at.get(node, ()):
            depth = max(depth + 1, calls[place].forward_depth)
            depths[place] = depth
        below[node] = depth
    return depths


class ForwardDepth(TorchFunctionMode):
    """Follows tensors forward through one forward pass, where there is no graph to read.

    A tensor has the largest depth among the tensors that it was computed from; the output of a
    layer has one more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._depths: Any = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor | tuple | list):
            inputs = (x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor))
            depth = max((self._depths.get(x, 0) for x in inputs), default=0)
            if depth:
                for output in tree_iter(result):
                    if isinstance(output, Tensor):
                        self._depths[output] = depth
        return result

    def pass_layer(self, output: Tensor) -> int:
        """A layer returned this tensor: return its depth, and note it."""
        depth: int = self._depths.get(output, 0) + 1
        self._depths[output] = depth
        return depth

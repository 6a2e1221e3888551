"""The depth of layers: from the autograd graph, and forward where there is none."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor
from torch.autograd.graph import Node

from analyzer.joins.modes import runs_compiled
from analyzer.joins.trace import ForwardTrace, TensorNotes
from analyzer.recording.ranks import find_parts, is_distributed, num_parts

__all__ = ["ForwardDepth", "PassDepths", "find_depths"]


class _Call(Protocol):
    """What is asked of a call here; `analyzer.recording.hook_classes.Call` is one."""

    site: Any
    node: Any
    depth: int
    forward_depth: int


Inner: TypeAlias = dict[Node, list[tuple[Sequence[Any], Sequence[_Call]]]]
"""What only one node stands for: the roots of a backward pass of its own, and the calls in it."""


def find_depths(
    roots: Iterable[Any], calls: Sequence[_Call], inner: Inner | None = None, start: int = 0
) -> int:
    """Set the depth of each call from the autograd graph below the roots of a backward pass.

    ``depth(layer) = 1 + max depth of the layers that it reads``; 1 where it reads none. Layers that
    share an output node (an identity, a module around another one) follow one another in call
    order; the output tensors of one layer share its depth. A call without a node keeps 0, or what
    is known from the forward pass.

    Args:
        roots: Tensors (or graph edges) from which the backward pass starts.
        calls: Calls in call order, with the graph node of their output; a further output tensor of
            a call follows that one.
        inner: The parts of the network that only one node stands for.
        start: The depth of what this graph begins with.

    Returns:
        The largest depth.
    """
    layers_at: dict[Node, list[int]] = {}
    firsts: list[int] = []
    for place, call in enumerate(calls):
        firsts.append(firsts[-1] if firsts and call.site.number < 0 else place)
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
        depth = max((below[child] for child in children), default=start)
        for part_roots, part_calls in (inner or {}).get(node, ()):
            depth = find_depths(part_roots, part_calls, inner, depth)
        for place in layers_at.get(node, ()):
            first = firsts[place]
            # Of several output tensors one may be computed from another one.
            depth = max(depth + (not depths[first]), depths[first], calls[place].forward_depth)
            depths[place] = depths[first] = depth
        below[node] = depth
    for call, depth in zip(calls, depths, strict=True):
        inside = call.forward_depth and start + call.forward_depth
        call.depth = depth or call.depth or inside
        call.node = None  # a node held here would keep its graph, and so itself, alive
    return max([start, *below.values(), *(call.depth for call in calls)])


class PassDepths:
    """What a backward pass shows of the depth of layers, until all of the network was seen.

    Attributes:
        is_split: Whether ranks hold parts of weights.
        parts: In how many parts they hold the outputs of layers, by the number of their site.
    """

    def __init__(self) -> None:
        self.is_split = False
        self.parts: dict[int, int] = {}
        self._roots: Sequence[Any] = ()
        self._inner: Inner = {}
        self._mode: ForwardDepth | None = None

    def follow(self) -> None:
        """Follow the tensors of a forward pass of which a part has no graph."""
        if not runs_compiled():
            self._mode = ForwardDepth()
            self._mode.begin()

    def stop_following(self) -> None:
        """That forward pass has ended."""
        if self._mode is not None:
            self._mode.end()
            self._mode = None

    def pass_layer(self, output: Tensor) -> int:
        """Return the depth of a layer that returned this tensor; 0 where it is not followed."""
        return self._mode.pass_layer(output) if self._mode else 0

    def note_parts(self, site: Any, output: Tensor) -> None:
        """Note in how many parts the ranks hold the output of a layer, where it says so itself."""
        if is_distributed(output) and site.number >= 0:
            self.parts[site.number] = num_parts(output)

    def begin(self, roots: Sequence[Any]) -> None:
        """A pass over graphs that are looked at begins."""
        self._roots = list(roots)

    def add(self, node: Any, roots: Sequence[Any], calls: Sequence[_Call]) -> None:
        """A node has computed these calls again, and begins the backward pass of them."""
        if self._roots:
            self._inner.setdefault(node, []).append((list(roots), calls))

    def add_inside(self, node: Any, call: _Call) -> None:
        """A node stands for a part of the network in which the depth of this call is known."""
        if self._roots:
            parts = self._inner.setdefault(node, [((), [])])
            parts[0][1].append(call)  # type: ignore[attr-defined]

    def end(self, calls: Sequence[_Call]) -> None:
        """Set the depth of these calls, and of those that were computed again; forget them."""
        if self.is_split:
            find_parts(calls, self.parts)
        find_depths(self._roots, calls, self._inner)
        self._roots, self._inner = (), {}


class ForwardDepth(ForwardTrace):
    """Follows the depth of tensors through one forward pass, where there is no graph to read.

    A tensor has the largest depth among the tensors that it was computed from; the output of a
    layer has one more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._depths: TensorNotes[int] = TensorNotes()

    def note(self, name: str, arguments: list[Tensor], made: list[Tensor], start: int) -> None:
        """Note the depth of what a function made."""
        depth = max([self._depths.get(tensor) or 0 for tensor in arguments], default=0)
        for tensor in made if depth else ():
            self._depths[tensor] = depth

    def pass_layer(self, output: Tensor) -> int:
        """A layer returned this tensor: return its depth, and note it."""
        depth = self._depths[output] = (self._depths.get(output) or 0) + 1
        return depth

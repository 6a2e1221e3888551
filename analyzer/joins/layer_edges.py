"""The data flow between the layers of a network: which layer reads what which other one made."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from analyzer.joins.calls import CallLog, ModuleCall
from analyzer.joins.graph import Walk, is_parameter
from analyzer.joins.plan import OPAQUE
from analyzer.joins.trace import Untracked

__all__ = ["INPUT", "layer_edges"]

INPUT = ""
"""What stands for the network's input among the names of layers."""


def layer_edges(walk: Walk, log: CallLog) -> list[tuple[str, str]]:
    """Return source and target of each edge: the target reads the source's output.

    What lies between is no layer (an addition, a view). A tensor that several layers return (an
    identity, a module around another one) passes from one to the next in the order in which their
    calls ended. What was cut off (``detach``), and what checkpointing hides, comes from nowhere.

    Args:
        walk: The graph of a forward pass.
        log: The module calls of the forward pass that made it.
    """
    return list(dict.fromkeys(_Edges(walk, log).pairs()))


class _Edges:
    def __init__(self, walk: Walk, log: CallLog) -> None:
        self._walk = walk
        # The untracked tensors that the nodes of a function read.
        self._unseen = {n: c.operands for c in log.trace.calls for n in range(c.start, c.end)}
        self._made = self._makers(log)
        self._sources: dict[Any, frozenset[str]] = {}

    def pairs(self) -> Iterator[tuple[str, str]]:
        for maker, calls in self._made.items():
            for source in self._read_by(maker):
                yield source, calls[0].layer or ""
            for before, after in pairwise(calls):
                yield before.layer or "", after.layer or ""

    def _makers(self, log: CallLog) -> dict[Any, list[ModuleCall]]:
        """The layers that returned what a node or an untracked tensor stands for."""
        numbers = [n._sequence_nr() for n in self._walk.nodes]
        nodes = dict(zip(numbers, self._walk.nodes, strict=True))
        made: dict[Any, list[ModuleCall]] = {}
        for call in _as_they_ended(log):
            if call.layer is None:
                continue
            found = [nodes.get(one, one) if isinstance(one, int) else one for one in call.outputs]
            found = [one for one in found if isinstance(one, Untracked) or one in self._walk.place]
            if not found:
                # A view of the output was changed in place: its node came later.
                found = [nodes[max(inside)] for inside in [_inside(nodes, call)] if inside]
            for maker in dict.fromkeys(found):
                made.setdefault(maker, []).append(call)
        return made

    def _read_by(self, start: Any) -> frozenset[str]:
        """The layers, or the input, that a maker was computed from."""
        stack = [start]
        while stack:
            maker = stack[-1]
            waiting = [read for read in self._reads(maker) if self._waits(read, maker)]
            stack += waiting
            if not waiting:
                stack.pop()
                if maker not in self._sources:
                    self._sources[maker] = self._found(maker)
        return self._sources[start]

    def _waits(self, read: Any, reader: Any) -> bool:
        return read not in self._sources and self._layer(read, reader) is None

    def _found(self, maker: Any) -> frozenset[str]:
        if isinstance(maker, Untracked):
            # Numbers of words and the like: whoever made them, they came in with the input.
            is_input = maker.kind == "input" or not maker.is_differentiable
            if is_input and maker.carries_data:
                return frozenset((INPUT,))
        elif not maker.next_functions and not is_parameter(getattr(maker, "variable", None)):
            is_leaf = hasattr(maker, "variable")
            return frozenset((INPUT,) if is_leaf else ())
        found: set[str] = set()
        for read in self._reads(maker):
            layer = self._layer(read, maker)
            found.update(self._sources[read] if layer is None else (layer,))
        return frozenset(found)

    def _reads(self, maker: Any) -> list[Any]:
        if isinstance(maker, Untracked):
            return list(maker.reads)
        if type(maker).__name__ in OPAQUE:
            return []
        reads: list[Any] = [child for child, _ in maker.next_functions if child is not None]
        operands = self._unseen.get(maker._sequence_nr(), ())
        # One without a number stands for all that was not traced.
        return reads + [one for one in operands if one and one.carries_data and one.tick >= 0]

    def _layer(self, read: Any, reader: Any) -> str | None:
        """The layer whose output a reader has read; None where it read what is inside of one."""
        for call in reversed(self._made.get(read, ())):
            if isinstance(reader, Untracked):
                is_over = call.tock < reader.tick
            else:
                is_over = call.end <= reader._sequence_nr()
            if is_over:
                return call.layer
        return None


def _as_they_ended(log: CallLog) -> list[ModuleCall]:
    """The calls of a log, an inner one before the one around it."""
    ended: list[ModuleCall] = []
    running: list[int] = []
    for number, call in enumerate(log.calls):
        while running and running[-1] != call.parent:
            ended.append(log.calls[running.pop()])
        running.append(number)
    return ended + [log.calls[number] for number in reversed(running)]


def _inside(nodes: dict[int, Any], call: ModuleCall) -> list[int]:
    return [number for number in range(call.start, call.end) if number in nodes]

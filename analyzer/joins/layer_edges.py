"""The data flow between the layers of a network: which layer reads what which other one made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analyzer.joins.calls import CallLog, ModuleCall
from analyzer.joins.graph import Walk
from analyzer.joins.plan import OPAQUE
from analyzer.joins.trace import Untracked, is_parameter

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
    return _Edges(walk, log).pairs()


class _Edges:
    """Sets of layers are whole numbers with a bit for each: an unrolled cell has many and large.

    Calls that share a row (`CallLog.most_calls`) are one layer.
    """

    def __init__(self, walk: Walk, log: CallLog) -> None:
        self._walk, self._most_calls = walk, log.most_calls
        self._bits: dict[str, int] = {INPUT: 0}
        # The untracked tensors that the nodes of a function read.
        self._unseen = {n: c.operands for c in log.trace.calls for n in range(c.start, c.end)}
        self._made = self._makers(log)
        self._sources: dict[Any, int] = {}

    def pairs(self) -> list[tuple[str, str]]:
        read: dict[int, int] = {}
        for maker, calls in self._made.items():
            bits = [self._bit(call) for call in calls]
            sources = self._read_by(maker)
            for bit in bits:
                read[bit] = read.get(bit, 0) | sources
                sources = 1 << bit
        names = list(self._bits)
        return [
            (names[source], names[target])
            for target, sources in read.items()
            for source in _bits_of(sources & ~(1 << target))
        ]

    def _bit(self, call: ModuleCall) -> int:
        name, _, number = str(call.layer).partition("#")
        if number and int(number) >= self._most_calls:
            number = str(self._most_calls)
        return self._bits.setdefault(f"{name}#{number}" if number else name, len(self._bits))

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

    def _read_by(self, start: Any) -> int:
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

    def _found(self, maker: Any) -> int:
        if isinstance(maker, Untracked):
            # Numbers of words and the like: whoever made them, they came in with the input.
            is_input = maker.kind == "input" or not maker.is_differentiable
            if is_input and maker.carries_data:
                return 1
        elif not maker.next_functions and not is_parameter(getattr(maker, "variable", None)):
            return int(hasattr(maker, "variable"))
        found = 0
        for read in self._reads(maker):
            layer = self._layer(read, maker)
            found |= self._sources[read] if layer is None else 1 << layer
        return found

    def _reads(self, maker: Any) -> list[Any]:
        if isinstance(maker, Untracked):
            return list(maker.reads)
        if type(maker).__name__ in OPAQUE:
            return []
        reads: list[Any] = [child for child, _ in maker.next_functions if child is not None]
        operands = self._unseen.get(maker._sequence_nr(), ())
        # One without a number stands for all that was not traced.
        return reads + [one for one in operands if one and one.carries_data and one.tick >= 0]

    def _layer(self, read: Any, reader: Any) -> int | None:
        """The layer whose output a reader has read; None where it read what is inside of one."""
        for call in reversed(self._made.get(read, ())):
            if isinstance(reader, Untracked):
                is_over = call.tock < reader.tick
            else:
                is_over = call.end <= reader._sequence_nr()
            if is_over:
                return self._bit(call)
        return None


def _bits_of(found: int) -> Iterator[int]:
    while found:
        yield (found & -found).bit_length() - 1
        found &= found - 1


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

"""The names of joins and of the layers on their two sides, from the module calls of one forward."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property

from torch import nn
from torch.autograd.function import BackwardCFunction

from analyzer.joins.calls import CallLog, ModuleCall
from analyzer.joins.forward import Flow
from analyzer.joins.graph import Dataflow, Walk
from analyzer.joins.search import Meeting

__all__ = ["Scopes", "numbered", "unseen_parts"]

_REASONS = {
    "CheckpointFunctionBackward": "reentrant checkpointing hides what it computes",
    "CompiledFunctionBackward": "compiled code hides what it computes",
}


class Scopes:
    """Which call made which vertex.

    Args:
        flow: The vertices.
        log: The calls of the forward that made them.
    """

    def __init__(self, flow: Dataflow, log: CallLog) -> None:
        self.flow = flow
        self.log = log
        self._starts = [call.start for call in log.calls]
        self._ticks = [call.tick for call in log.calls]
        self._layers: dict[int, list[int]] = {}
        for number, call in enumerate(log.calls):
            if call.layer is not None:
                for vertex in self._made_by(call):
                    self._layers.setdefault(vertex, []).append(number)

    def owner(self, meeting: Meeting) -> ModuleCall | None:
        """Return the innermost call that contains a join and all that reads its fork.

        None where there is no such call, as for a sum of losses outside of the model, and where
        the join is inside of one of torch's own leaf modules (the cell of an LSTM).
        """
        number = self._innermost(meeting.join)
        if number < 0 or _is_built_in_leaf(self.log.calls[number].module):
            return None
        while number >= 0:
            call = self.log.calls[number]
            if all(self._is_after_start(call, vertex) for vertex in meeting.between):
                return call
            number = call.parent
        return None

    def layers(self, vertices: Iterable[int], owner: ModuleCall, join: int) -> list[str]:
        """Return the names of the layers that made vertices inside of a call, in call order."""
        numbers = {
            number
            for vertex in vertices
            for number in self._layers.get(vertex, ())
            if self.log.calls[number].start >= owner.start
            and self.log.calls[number].tick >= owner.tick
            and not self._contains(self.log.calls[number], join)
        }
        return [self.log.calls[number].layer or "" for number in sorted(numbers)]

    def parameters(self, vertices: Iterable[int], owner: ModuleCall) -> int:
        """Return the elements of the different parameters that vertices inside of a call read."""
        found: dict[nn.Parameter, None] = {}
        for vertex in vertices:
            if self._is_after_start(owner, vertex):
                found.update(dict.fromkeys(self.flow.parameters[vertex]))
        return sum(parameter.numel() for parameter in found)

    def _made_by(self, call: ModuleCall) -> list[int]:
        """Return the vertices of a layer's outputs.

        Where a view of the output was changed in place, autograd has replaced its node: what the
        layer computed before that view stands for it.
        """
        places = [
            self._by_sequence.get(maker) if isinstance(maker, int) else self.flow.place.get(maker)
            for maker in call.outputs
        ]
        made = [vertex for vertex in places if vertex is not None]
        if made or call.start == call.end:
            return made
        before = bisect_right(self._numbered, (call.end, -1)) - 1
        sequence, vertex = self._numbered[before] if before >= 0 else (-1, -1)
        return [vertex] if sequence >= call.start else []

    @cached_property
    def _by_sequence(self) -> dict[int, int]:
        """Vertex by sequence number: a log may hold numbers, to keep no graph alive."""
        return {sequence: vertex for sequence, vertex in self._numbered if sequence >= 0}

    @cached_property
    def _numbered(self) -> list[tuple[int, int]]:
        """Sequence number and vertex of every autograd node that carries data."""
        return sorted(
            (self.flow.sequences[vertex], vertex)
            for vertex, maker in enumerate(self.flow.vertices)
            if not isinstance(maker, Flow)
        )

    def _innermost(self, vertex: int) -> int:
        """Return the number of the innermost call that made a vertex, -1 where none did."""
        maker = self.flow.vertices[vertex]
        if isinstance(maker, Flow):
            number = bisect_right(self._ticks, maker.tick - 1) - 1
        else:
            number = bisect_right(self._starts, self.flow.sequences[vertex]) - 1
        while number >= 0 and not self._contains(self.log.calls[number], vertex):
            number = self.log.calls[number].parent
        return number

    def _contains(self, call: ModuleCall, vertex: int) -> bool:
        maker = self.flow.vertices[vertex]
        if isinstance(maker, Flow):
            return call.tick < maker.tick <= call.tock
        return call.start <= self.flow.sequences[vertex] < call.end

    def _is_after_start(self, call: ModuleCall, vertex: int) -> bool:
        maker = self.flow.vertices[vertex]
        if isinstance(maker, Flow):
            return call.tick < maker.tick
        return call.start <= self.flow.sequences[vertex]


def _is_built_in_leaf(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not module._modules


def numbered(names: list[str]) -> list[str]:
    """Return names made unique: those that occur more than once get ``#0``, ``#1`` and so on."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        number = seen.get(name, 0)
        seen[name] = number + 1
        result.append(name if names.count(name) == 1 else f"{name}#{number}")
    return result


def unseen_parts(walk: Walk, log: CallLog) -> list[tuple[str, str]]:
    """Return the modules whose joins cannot be seen, with the reason.

    Args:
        walk: The autograd graph.
        log: The calls of the forward that made it.

    Returns:
        Pairs of a module name and a reason, without repetition, in graph order.
    """
    starts = [call.start for call in log.calls]
    found: dict[tuple[str, str], None] = {}
    for node in walk.nodes:
        if not isinstance(node, BackwardCFunction):
            continue
        name = type(node).__name__
        sequence = int(node._sequence_nr())
        number = bisect_right(starts, sequence) - 1
        while number >= 0 and not log.calls[number].end > sequence:
            number = log.calls[number].parent
        if number >= 0:
            reason = _REASONS.get(name, f"the custom function {name.removesuffix('Backward')}")
            found[log.root_name(log.calls[number]), reason] = None
    return list(found)

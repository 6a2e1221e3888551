"""Which additions of a model's call are joins, and which of their operands is the shortcut."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import CallLog, clean_path, is_compiled_itself
from analyzer.joins.edits import JoinOperands, OperandsByToken, Tokens, holds_tensor
from analyzer.joins.find import output_nodes
from analyzer.joins.graph import Dataflow, Part, Walk
from analyzer.joins.model_state import RandomStates, arguments_copied, unobserved
from analyzer.joins.operations import OPERANDS, Operands
from analyzer.joins.plan import HIDDEN, hiding_reason
from analyzer.joins.search import joins_of_model
from analyzer.joins.trace import ForwardTrace, Untracked, sequence_number

__all__ = ["planned_operands"]

_REMEDY = (
    "write that part in plain eager operations (no torch.compile, no scripting, no reentrant "
    "checkpointing, no custom function) while its shortcuts are scaled"
)


@dataclass(eq=False, slots=True)
class _Traced:
    """One call of a function that could be a join."""

    token: int | None
    start: int
    end: int
    tick: int
    untracked_slots: tuple[int, ...]
    is_recomputed: bool


class _Tracer(ForwardTrace):
    """Follows tensors, and notes each call that could be a join by the token of its operands."""

    def __init__(self, with_grad: bool) -> None:
        super().__init__(without_grad=not with_grad)
        self.traced: list[_Traced] = []
        self._writes_out = False
        self._tokens = Tokens()

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function, note it where it could be a join."""
        token: int | None = None
        untracked_slots: tuple[int, ...] = ()
        if name in OPERANDS:
            operands = Operands(name, args, kwargs)
            token = self._tokens.of_operands(name, operands)
            untracked_slots = tuple(i for i, v in enumerate(operands.values) if self._is_data(v))
        self._writes_out = kwargs.get("out") is not None
        start = sequence_number()
        result = super().call(func, name, args, kwargs)
        self._tokens.note_call(name, args, kwargs, result)
        if holds_tensor(result):
            span = (start, sequence_number())
            self.traced.append(_Traced(token, *span, self.tick, untracked_slots, _is_recomputed()))
        return result

    def note(self, name: str, arguments: list[Tensor], made: list[Tensor], start: int) -> None:
        """Note it as `ForwardTrace` does."""
        if self._writes_out:  # what is written to is not read
            arguments = [tensor for tensor in arguments if not any(tensor is m for m in made)]
        super().note(name, arguments, made, start)

    def _is_data(self, value: Any) -> bool:
        flow = self.untracked(value) if isinstance(value, Tensor) else None
        return flow is not None and flow.carries_data and flow.is_differentiable


def _is_recomputed() -> bool:
    """Return whether what is computed now is computed again in the backward pass."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"


def planned_operands(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    states: RandomStates,
    *,
    with_grad: bool = True,
) -> OperandsByToken:
    """Run a model once on copies of its arguments; return its additions and what each is.

    Weights, buffers, modes, ``.grad``, hooks and the random state stay as they are. The model is
    one without wrappers, the random states are those with which its call began. Without gradient a
    model may compute otherwise.

    Raises:
        AnalyzerError: If a join, or a part that may hide one, cannot be intercepted.
    """
    _refuse_compiled(model)
    tracer = _Tracer(with_grad)
    log = CallLog({"": model}, tracer)
    with unobserved(model), torch.inference_mode(False):
        positional, named = arguments_copied(args, kwargs)
        states.restore()
        with torch.set_grad_enabled(with_grad), log.watch():
            output = model(*positional, **named)
    walk = Walk(output_nodes(output))
    _refuse_opaque(walk, log)
    return _operands_by_token(walk, log, tracer.traced)


def _operands_by_token(walk: Walk, log: CallLog, traced: list[_Traced]) -> OperandsByToken:
    flow = Dataflow(walk, log)
    known: OperandsByToken = {call.token: None for call in traced if call.token is not None}
    calls = _Calls(flow, traced)
    found = joins_of_model(flow, log)
    if not found.is_whole:
        raise AnalyzerError(
            f"the model's graph of {len(walk.nodes):,} operations is too large to be searched for "
            f"shortcuts to its end; expected a smaller one, as of a shorter sequence. {_REMEDY}."
        )
    for join, vertices in found.joins:
        sides: dict[_Traced, tuple[list[int], list[int]]] = {}
        entries = (vertices.shortcut_entries, vertices.branch_entries)
        for side, own in enumerate(entries):
            # A product that is added has two operands: one of them is enough to change it.
            parts = {v: (v, s) for v, s in own if isinstance(flow.vertices[v], Part)}
            for vertex, slot in (
                *(entry for entry in own if entry[0] not in parts),
                *parts.values(),
            ):
                call = calls.of(vertex)
                if call is None or call.token is None or not vertices.is_alone:
                    raise AnalyzerError(
                        f"the shortcut of '{join.name}' is added by code that shows no addition of "
                        "its own; expected +, torch.add, torch.cat, torch.stack or the like. "
                        f"Otherwise, {_REMEDY}."
                    )
                if isinstance(flow.vertices[vertex], Untracked):
                    slot = call.untracked_slots[slot]  # reads count only what carries data
                sides.setdefault(call, ([], []))[side].append(slot)
        last = calls.of(vertices.join)
        for call, (shortcuts, branches) in sides.items():
            assert call.token is not None
            known[call.token] = JoinOperands(
                join, tuple(shortcuts), tuple(branches), call is last, call.is_recomputed
            )
    return known


class _Calls:
    """Which call of a function made a vertex."""

    def __init__(self, flow: Dataflow, traced: list[_Traced]) -> None:
        self._flow = flow
        self._by_tick = {call.tick: call for call in traced}
        self._with_nodes = [call for call in traced if call.end > call.start]
        self._starts = [call.start for call in self._with_nodes]

    def of(self, vertex: int) -> _Traced | None:
        maker = self._flow.vertices[vertex]
        if isinstance(maker, Untracked):
            return self._by_tick.get(maker.tick)
        sequence = self._flow.sequences[vertex]
        at = bisect_right(self._starts, sequence) - 1
        is_inside = at >= 0 and sequence < self._with_nodes[at].end
        return self._with_nodes[at] if is_inside else None


def _refuse_compiled(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if is_compiled_itself(module):
            name = clean_path(path) or type(module).__name__
            raise AnalyzerError(
                f"'{name}' is compiled, which hides its shortcuts; expected eager modules. "
                f"Otherwise, {_REMEDY}."
            )


def _refuse_opaque(walk: Walk, log: CallLog) -> None:
    """Refuse parts that may hide a join: they compute with parameters, out of sight."""
    for node in walk.nodes:
        reason = _what_hides(node)
        if reason:
            call = log.innermost(node._sequence_nr())
            part = type(log.roots[""]).__name__ if call is None else log.root_name(call)
            raise AnalyzerError(
                f"'{part}' may hold shortcuts that cannot be seen ({reason}); expected operations "
                f"that autograd shows. Otherwise, {_REMEDY}."
            )


def _what_hides(node: Node) -> str | None:
    """Return why a node may stand for a join among other things; None where it does not."""
    kind = type(node).__name__
    # Functions in C++ have one type; what a script was optimized to is one of them.
    name = node.name() if kind == "CppFunction" else kind
    if name == kind and not isinstance(node, BackwardCFunction):
        return None
    reads_parameters = any(
        isinstance(getattr(child, "variable", None), nn.Parameter)
        for child, _ in node.next_functions
    )
    return hiding_reason(name) if reads_parameters or name in HIDDEN else None

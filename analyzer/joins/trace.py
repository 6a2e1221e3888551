"""The trace of one forward pass: how tensors were made of which autograd keeps no graph.

An *untracked* tensor is one without gradient: a network's input, what a frozen or ``no_grad`` part
makes of it, or a frozen parameter. It carries data where it was computed from the network's inputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from analyzer.joins.modes import leave_mode
from analyzer.joins.operations import FUNCTION_KINDS, function_name

__all__ = [
    "ForwardTrace",
    "FunctionMode",
    "TensorNotes",
    "TracedCall",
    "Untracked",
    "is_parameter",
    "made_by",
    "sequence_number",
]


N = TypeVar("N")


def sequence_number() -> int:
    """Return the sequence number that the next autograd node of this thread will get."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number


def is_parameter(variable: Any) -> bool:
    """Whether the variable of a leaf is a parameter; the usual case first, which is quicker."""
    return type(variable) is nn.Parameter or isinstance(variable, nn.Parameter)


@dataclass(eq=False, slots=True)
class Untracked:
    """A tensor that autograd does not see, and how it was made.

    Args:
        kind: A kind of `analyzer.joins.operations`, or ``input``.
        carries_data: Whether it was computed from the network's inputs.
        is_differentiable: Whether it is floating, so that a gradient could flow through it.
        reads: What it was made from, slot by slot for ``add`` and ``cat``.
        sequence: Number of the next autograd node when it was made.
        tick: Number of the followed function that made it.
    """

    kind: str
    carries_data: bool
    is_differentiable: bool
    reads: tuple[Untracked, ...]
    parameters: tuple[nn.Parameter, ...]
    sequence: int
    tick: int
    shape: tuple[int, ...]


@dataclass(eq=False, slots=True)
class TracedCall:
    """One function call that made autograd nodes.

    Args:
        kind: As for `Untracked`.
        start: Sequence number of its first autograd node; `end`: the one after its last.
        operands: Per tensor argument its `Untracked`; None where autograd sees it, or a constant.
        parameters: Parameters without gradient that it read.
    """

    kind: str
    start: int
    end: int
    operands: tuple[Untracked | None, ...]
    parameters: tuple[nn.Parameter, ...]


def _tensor_arguments(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments, one level of lists deep, as torch functions take them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(item for item in value if isinstance(item, Tensor))
    return found


def made_by(func: Callable[..., Any], args: tuple[Any, ...], result: Any) -> list[Tensor]:
    """Return the tensors that a function made, or wrote to."""
    return [args[0]] if func is Tensor.__setitem__ else _tensor_arguments((result,))


class TensorNotes(Generic[N]):
    """What is known of tensors while they live: afterwards another one may have their ``id``."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[weakref.ref[Tensor], N]] = {}

    def __setitem__(self, tensor: Tensor, note: N) -> None:
        self._notes[id(tensor)] = (weakref.ref(tensor), note)

    def get(self, tensor: Tensor) -> N | None:
        """Return what is known of a tensor."""
        entry = self._notes.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def clear(self) -> None:
        """Hold nothing any more."""
        self._notes.clear()


class FunctionMode(TorchFunctionMode):
    """Sees each torch function that is called under it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let `call` stand for the function."""
        return self.call(func, function_name(func), args, dict(kwargs or {}))

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function; return what it returns."""
        return func(*args, **kwargs)


class ForwardTrace(FunctionMode):
    """Follows tensors through the functions of one forward pass; it changes no result.

    Args:
        without_grad: Whether the additions of a pass without gradient are wanted all the same.

    Attributes:
        tick: How many functions were followed so far.
        calls: Calls that made autograd nodes from tensors that autograd does not see.
    """

    looks_on = follows = True
    is_paused = False

    def __init__(self, *, without_grad: bool = False) -> None:
        super().__init__()
        self.tick = 0
        self._without_grad = without_grad
        self.calls: list[TracedCall] = []
        self._untracked: TensorNotes[Untracked] = TensorNotes()
        self._has_inputs = False

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function, note what it made from what."""
        start = sequence_number()
        result = func(*args, **kwargs)
        made = made_by(func, args, result)
        if made:
            self.note(name, _tensor_arguments((*args, *kwargs.values())), made, start)
        return result

    def begin(self) -> None:
        """Follow from now on."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Follow no more, wherever this is among the modes that are entered."""
        leave_mode(self)

    def let_go(self) -> None:
        """Follow tensors no more, and hold nothing of those that were followed."""
        self.follows = self.is_paused = False
        self.calls.clear()
        self._untracked.clear()

    def add_inputs(self, tensors: Iterable[Tensor]) -> None:
        """Note the inputs of a root model: data from here on, where not already followed."""
        for tensor in tensors:
            self._has_inputs = True
            if not tensor.requires_grad and self.untracked(tensor) is None:
                self._remember(tensor)

    def untracked(self, tensor: Tensor) -> Untracked | None:
        """Return how a tensor without gradient was made; None where it is not followed.

        What a custom function returns was made without gradient, and has one afterwards.
        """
        made = self._untracked.get(tensor)
        return None if made is None or tensor.requires_grad else made

    def _remember(
        self,
        tensor: Tensor,
        kind: str = "input",
        carries_data: bool = True,
        reads: tuple[Untracked, ...] = (),
        parameters: tuple[nn.Parameter, ...] = (),
        sequence: int | None = None,
    ) -> Untracked:
        is_differentiable = tensor.is_floating_point() or tensor.is_complex()
        made = Untracked(
            kind=kind,
            carries_data=carries_data,
            is_differentiable=is_differentiable,
            reads=reads if is_differentiable else (),
            parameters=parameters,
            sequence=sequence_number() if sequence is None else sequence,
            tick=self.tick,
            shape=tuple(tensor.shape),
        )
        self._untracked[tensor] = made
        return made

    def _operand(self, tensor: Tensor) -> Untracked | None:
        operand = self.untracked(tensor)
        if operand is not None or self._has_inputs:
            return operand
        # A model whose inputs could not be found in its arguments reads them from elsewhere.
        is_input = not (isinstance(tensor, nn.Parameter) or tensor.requires_grad)
        return self._remember(tensor) if is_input else None

    def note(self, name: str, arguments: list[Tensor], made: list[Tensor], start: int) -> None:
        """Note what a function made from what; `start` is the number of its first node."""
        self.tick += 1
        # While the functions of a mode run it is off; the tensors' own fields are read plainly.
        with torch._C.DisableTorchFunction():
            operands = tuple(self._operand(tensor) for tensor in arguments)
            kind = FUNCTION_KINDS.get(name, "other")
            end = sequence_number()
            if any(tensor.grad_fn is not None for tensor in made):
                frozen = self._parameters(arguments, operands, only_frozen=True)
                if frozen or kind != "other" or any(operands):
                    self.calls.append(TracedCall(kind, start, end, operands, frozen))
            elif not any(tensor.is_leaf and tensor.requires_grad for tensor in made):
                self._note_unseen(kind, arguments, operands, made, start)

    def _note_unseen(
        self,
        kind: str,
        arguments: list[Tensor],
        operands: tuple[Untracked | None, ...],
        made: list[Tensor],
        start: int,
    ) -> None:
        """Note tensors without gradient."""
        data = tuple(
            operand for operand in operands if operand is not None and operand.carries_data
        )
        # What is cut off from a tensor with gradient (detach, argmax) leads to no fork, because no
        # gradient could flow back through it.
        is_cut = any(
            tensor.requires_grad and not isinstance(tensor, nn.Parameter) for tensor in arguments
        )
        carries_data = is_cut or bool(data)
        parameters = self._parameters(arguments, operands, only_frozen=False)
        if not carries_data and not parameters:
            return
        reads = tuple(operand for operand in data if operand.is_differentiable)
        if is_cut or len(reads) != len(data):
            kind, reads = "other", (() if is_cut else reads)
        if not (torch.is_grad_enabled() or self._without_grad or kind == "select"):
            kind = "other"
        for tensor in made:
            self._remember(tensor, kind, carries_data, reads, parameters, start)

    @staticmethod
    def _parameters(
        arguments: list[Tensor], operands: tuple[Untracked | None, ...], *, only_frozen: bool
    ) -> tuple[nn.Parameter, ...]:
        found: dict[nn.Parameter, None] = {}
        for tensor, operand in zip(arguments, operands, strict=True):
            if isinstance(tensor, nn.Parameter) and not (only_frozen and tensor.requires_grad):
                found[tensor] = None
            elif operand is not None and not operand.carries_data:
                found.update(dict.fromkeys(operand.parameters))
        return tuple(found)

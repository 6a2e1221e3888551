"""The loss of a training step as a function of the model's output, noted while the step runs.

A *tape* holds the operations from the output of the model to the root of the backward pass. It is
played again on another output with everything else constant; parameters count as they are then.
It is noted below the functions that `analyzer.joins.trace` follows: what autocast, scripts and
custom functions do inside of them is part of what is played again bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves, tree_map

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import tensors_in

__all__ = ["LossTape", "RecordedLoss", "ReplayError", "passed_by"]

_HOST_READ = torch.ops.aten._local_scalar_dense.default


class ReplayError(AnalyzerError):
    """The loss of a step cannot be computed again from another output."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A tensor that an earlier operation made, or an output of the model."""

    number: int


@dataclass(frozen=True, slots=True)
class _Operation:
    function: Callable[..., Any]
    args: Any
    kwargs: Any
    makes: tuple[int, ...]


class _Passing:
    is_by = False


@contextmanager
def passed_by() -> Iterator[None]:
    """What is computed in here, and from it, is no part of a loss."""
    was_by, _Passing.is_by = _Passing.is_by, True
    try:
        yield
    finally:
        _Passing.is_by = was_by


class LossTape(TorchDispatchMode):
    """Notes the operations between a model's output and the backward pass; changes no result."""

    def __init__(self, output: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._outputs = list(tensors_in(output))
        # Copied now: the loss may write into the output in place.
        self._recorded = [output.detach().clone() for output in self._outputs]
        self._alive: list[Tensor] = list(self._outputs)
        self._slots = {id(tensor): number for number, tensor in enumerate(self._outputs)}
        self._operations: list[_Operation] = []
        self._constants: dict[int, tuple[Tensor, int]] = {}
        self._refusal: str | None = None
        self._passed: dict[int, Tensor] = {}
        self._reads: list[tuple[int, bool]] = []

    def start(self) -> None:
        """Note operations from now on."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> bool:
        """Note no more; return whether torch let go of the tape.

        It does not where the program began a mode of its own in between and is still inside.
        """
        stack = _get_current_dispatch_mode_stack()
        if stack and stack[-1] is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            return True
        return self not in stack

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call the operation; note it where it depends on the output or on parameters."""
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if _Passing.is_by or any(id(leaf) in self._passed for leaf in leaves):
            result = func(*args, **kwargs)
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self._passed.update((id(leaf), leaf) for leaf in made)
            return result
        given = [(leaf, leaf._version) for leaf in leaves if isinstance(leaf, Tensor)]
        result = func(*args, **kwargs)
        if any(id(tensor) in self._slots or tensor.requires_grad for tensor, _ in given):
            self._note(func, args, kwargs, result, given)
        return result

    def _note(
        self, func: Any, args: Any, kwargs: Any, result: Any, given: list[tuple[Tensor, int]]
    ) -> None:
        if func is _HOST_READ:
            self._reads.append((len(self._operations), given[0][0].dtype is torch.bool))
            return
        for tensor, version in given:
            if id(tensor) in self._slots:
                continue
            is_free = isinstance(tensor, nn.Parameter)
            if tensor.requires_grad and not is_free:
                self._refuse("it uses tensors that were computed outside of the model's call")
            if tensor._version != version:
                self._refuse(f"it writes to a tensor in place ({func})")
            if not is_free:
                self._constants[id(tensor)] = (tensor, tensor._version)
        noted_args, noted_kwargs = tree_map(self._placed, (tuple(args), kwargs))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._operations.append(
            _Operation(func, noted_args, noted_kwargs, tuple(self._slot(t) for t in made))
        )

    def _placed(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and id(leaf) in self._slots:
            return _Slot(self._slots[id(leaf)])
        return leaf

    def _slot(self, tensor: Tensor) -> int:
        if id(tensor) not in self._slots:
            self._alive.append(tensor)  # an id counts only while its tensor lives
            self._slots[id(tensor)] = len(self._alive) - 1
        return self._slots[id(tensor)]

    def _refuse(self, reason: str) -> None:
        self._refusal = self._refusal or reason

    def loss(self, roots: Sequence[Any]) -> RecordedLoss:
        """Return the loss as a function of the output, from the roots of the backward pass.

        Raises:
            ReplayError: If it cannot be computed again, with the reason.
        """
        self._check_reads()
        if self._refusal is not None:
            raise ReplayError(_because(self._refusal))
        numbers = []
        for root in roots:
            if not isinstance(root, Tensor) or root.numel() != 1:
                raise ReplayError(_because("it is not one number"))
            if id(root) not in self._slots:
                raise ReplayError(_because("it was not computed from the output of this model"))
            numbers.append(self._slots[id(root)])
        _check_functions(roots, self._outputs)
        return RecordedLoss(
            self._operations,
            len(self._alive),
            numbers,
            self._recorded,
            [root.detach().clone() for root in roots],
            list(self._constants.values()),
        )

    def _check_reads(self) -> None:
        """A number that Python read may steer what follows, unseen."""
        for place, is_decision in self._reads:
            later = self._operations[place:]
            if later and is_decision:
                self._refuse("Python decides by a value read from the device before it is complete")
            words = [word for o in later for word in tree_leaves((o.args, o.kwargs))]
            if any(isinstance(word, float) for word in words):
                self._refuse("a value is read by Python and may be used as a number afterwards")


@dataclass(frozen=True, eq=False)
class RecordedLoss:
    """``loss(output, targets)`` of one recorded step; targets are those of the step.

    Args:
        num_slots: Number of tensors that the operations make or read.
        roots: Slots of the roots of the backward pass; their values are added.
        outputs: The recorded output, for the check.
        values: The recorded values of the roots.
        constants: The tensors that enter as constants, with their version.
    """

    operations: list[_Operation]
    num_slots: int
    roots: list[int]
    outputs: list[Tensor]
    values: list[Tensor]
    constants: list[tuple[Tensor, int]]

    def __call__(self, output: Any, targets: Any = None) -> Tensor:
        """Return the loss of an output of the same kind as the recorded one."""
        given = list(tensors_in(output))
        if len(given) != len(self.outputs):
            raise ReplayError(
                f"the model returned {len(given)} tensors; expected {len(self.outputs)} as in the "
                "recorded step"
            )
        for constant, version in self.constants:
            if constant._version != version:
                raise ReplayError(_because("a tensor that it reads was overwritten since"))
        parts = self._play(given)
        return sum(parts[1:], parts[0])

    def check(self) -> None:
        """See that the recorded output gives the recorded loss, bit for bit.

        At the recorded step only: later the parameters that the loss may read have changed.
        """
        with torch.no_grad():
            again = self._play([output.clone() for output in self.outputs])
        for part, value in zip(again, self.values, strict=True):
            same = torch.equal(part, value) or (part.isnan() & value.isnan()).all()
            if not same:
                raise ReplayError(
                    f"the loss cannot be computed again: the recorded output gives "
                    f"{part.item()!r}, the step had {value.item()!r}. It may draw random numbers"
                )

    @property
    def labels(self) -> Tensor | None:
        """The classes that the loss compares with, where it is a cross entropy of a batch."""
        for operation in self.operations:
            if operation.function is torch.ops.aten.nll_loss_forward.default:
                target = operation.args[1]
                if isinstance(target, Tensor) and target.dim() == 1:
                    return target
        return None

    def _play(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        slots: list[Any] = [*outputs, *[None] * (self.num_slots - len(outputs))]

        def filled(leaf: Any) -> Any:
            return slots[leaf.number] if isinstance(leaf, _Slot) else leaf

        for operation in self.operations:
            args, kwargs = tree_map(filled, (operation.args, operation.kwargs))
            result = operation.function(*args, **kwargs)
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            for number, tensor in zip(operation.makes, made, strict=True):
                slots[number] = tensor
        return [slots[number] for number in self.roots]


def _because(reason: str) -> str:
    return (
        f"the loss of this step cannot be computed again: {reason}. Probes that need no loss still "
        "work"
    )


def _check_functions(roots: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """A custom function has a gradient of its own, which its operations do not show."""
    stack = [root.grad_fn for root in roots]
    seen: set[Node | None] = {output.grad_fn for output in outputs}
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            name = type(node).__name__.removesuffix("Backward")
            raise ReplayError(_because(f"it uses the custom function {name}"))
        stack.extend(child for child, _ in node.next_functions)

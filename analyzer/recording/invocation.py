"""The calls of one forward pass, who wants to know of them, and the tensors that they return."""

import weakref
from threading import get_ident
from typing import Any, Protocol

from torch import Tensor, nn

from analyzer.joins.calls import tensors_in
from analyzer.recording.hook_classes import Call

__all__ = ["CallWatcher", "Invocation", "first_tensor"]


class CallWatcher(Protocol):
    """Someone who wants to know of module calls: of roots, and of all modules where it says so."""

    @property
    def wants_all(self) -> bool:
        """Whether calls of modules that are not roots matter now."""

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module is about to be called."""

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a module has ended; by an exception where the output is None."""


class Invocation:
    """The calls of one forward pass, in call order.

    Args:
        window: How many backward passes had ended when it began.
        number: Its place among all invocations.
    """

    __slots__ = ("__weakref__", "calls", "hooks", "is_numbered", "number", "thread", "window")

    def __init__(self, window: int, number: int) -> None:
        self.window = window
        self.number = number
        self.thread = get_ident()
        self.is_numbered = False
        self.calls: list[Call] = []
        self.hooks: list[weakref.ref[Any]] = []

    def take_calls(self) -> list[Call]:
        """Hand over the calls that are to be pooled; from now on the graph alone keeps them.

        A call comes back when one more gradient arrives at it. Without calls in here no cycle is
        left, so that all of it goes away with its graph, and not by a garbage collection.
        """
        calls, self.calls = self.calls, []
        self.hooks += [call.hooks for call in calls if call.hooks is not None]
        return calls

    def unhook(self) -> None:
        """Remove the hooks from output tensors that are still alive."""
        for call in self.take_calls():
            call.invocation = None
        for ref in self.hooks:
            hooks = ref() or {}
            for key, hook in list(hooks.items()):
                if isinstance(hook, Call) and hook.invocation in (self, None):
                    hook.invocation = None
                    del hooks[key]


def first_tensor(output: Any) -> Tensor | None:
    """Return the first floating tensor in a module's output, else its first tensor, else None."""
    if isinstance(output, Tensor):
        return output
    first = None
    for tensor in tensors_in(output):
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor
        first = tensor if first is None else first
    return first

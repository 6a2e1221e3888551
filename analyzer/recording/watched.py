"""Functions of torch that are replaced while somebody watches them: torch has no hooks for them."""

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, autograd
from torch._C import _current_graph_task_id
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer

from analyzer.joins.modes import UnseenReference, leave_uncompiled
from analyzer.recording.invocation import BackwardWatcher

__all__ = [
    "BACKWARD_PASSES",
    "CLIPPING",
    "REFERENCES",
    "ClippingWatcher",
    "GuardedUpdates",
    "Replaced",
    "is_stepping",
]

_Watcher = TypeVar("_Watcher")


class ClippingWatcher(Protocol):
    """Someone who wants to know of gradients that torch clips."""

    def before_clipping(self, gradients: Sequence[Tensor]) -> None:
        """These gradients are about to be clipped."""

    def after_clipping(self, gradients: Sequence[Tensor]) -> None:
        """They have been."""


class GuardedUpdates:
    """Who is told of clipping and of gradient scalers, with a guard around it.

    Args:
        guard: Returns what may be called in place of a method.
        updates: The `Updates`.
    """

    def __init__(self, guard: Callable[[Any], Any], updates: Any) -> None:
        self.before_clipping = guard(updates.before_clipping)
        self.after_clipping = guard(updates.after_clipping)
        self.unscaled = guard(updates.unscaled)
        self.begin_scaler_step = guard(updates.begin_scaler_step)
        self.end_scaler_step = guard(updates.end_scaler_step)


class Replaced(Generic[_Watcher]):
    """A function that is replaced while somebody watches it.

    It is looked up by name when it runs, so that the replacement reaches every caller, however that
    one imported it.

    Args:
        owner: The module or class where it is looked up.
        name: Its name there.
        run: Called in its place with itself, its watchers and its arguments.
    """

    def __init__(self, owner: Any, name: str, run: Callable[..., Any]) -> None:
        self._owner, self._name, self._run = owner, name, _passed_over(run)
        self._watchers: list[_Watcher] = []
        self._original: Any = None

    def watch(self, watcher: _Watcher) -> None:
        """Tell this watcher about every call from now on."""
        if watcher in self._watchers:
            return
        if not self._watchers:
            self._original = original = getattr(self._owner, self._name)

            @functools.wraps(original)
            def replacement(*args: Any, **kwargs: Any) -> Any:  # a function, to be a method, too
                return self._run(original, list(self._watchers), *args, **kwargs)

            setattr(self._owner, self._name, _passed_over(replacement))
        self._watchers.append(watcher)

    def unwatch(self, watcher: _Watcher) -> None:
        """Tell it nothing more."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
            if not self._watchers:
                setattr(self._owner, self._name, self._original)


def _passed_over(function: Any) -> Any:
    """Let warnings name the line that they would name without this function on the stack.

    Python passes over frames of its import machinery, which it knows by the name of their file.
    """
    code = function.__code__
    function.__code__ = code.replace(co_filename=f"{code.co_filename} (as importlib._bootstrap)")
    leave_uncompiled(function, callees=False)  # it may be called where compiled code was left
    return function


def _run_backward(
    run: Any, watchers: list[BackwardWatcher], roots: Any, *args: Any, **kwargs: Any
) -> Any:
    is_backward = kwargs.get("accumulate_grad", False)
    if is_backward and _current_graph_task_id() != -1:  # inside another one: a part of it
        for watcher in watchers:
            watcher.begin_inner_backward(roots)
        return run(roots, *args, **kwargs)
    watchers = _following(watchers, roots, is_backward=is_backward)
    if not is_backward:
        states = _suspended(watchers, roots, args[3] if len(args) > 3 else ())
        try:
            return run(roots, *args, **kwargs)
        finally:
            _resume(watchers, states)
    keeps_graph = bool(args[1]) if len(args) > 1 else False
    for watcher in watchers:
        watcher.begin_backward(roots, keeps_graph=keeps_graph)
    failed = True
    try:
        result = run(roots, *args, **kwargs)
        failed = False
        return result
    finally:
        for watcher in watchers:
            watcher.end_backward(failed=failed)


def _following(
    watchers: list[BackwardWatcher], roots: Any, *, is_backward: bool
) -> list[BackwardWatcher]:
    return [watcher for watcher in watchers if watcher.follows(roots, is_backward=is_backward)]


def _suspended(watchers: list[BackwardWatcher], roots: Any, inputs: Any) -> list[Any]:
    return [watcher.suspend(roots, inputs) for watcher in watchers]


def _resume(watchers: list[BackwardWatcher], states: list[Any]) -> None:
    for watcher, state in zip(watchers, states, strict=True):
        watcher.resume(state)


for _function in (_following, _suspended, _resume):
    leave_uncompiled(_function)


def is_stepping(optimizer: Optimizer) -> bool:
    """Whether this thread is in the middle of a step of this optimizer."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == Optimizer.__module__ and (
            frame.f_locals.get("self") is optimizer
        ):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


# Both clip gradients just after they have grouped them, by a function that others use too.
_CLIPPERS = ("_clip_grads_with_norm_", "clip_grad_value_")


class _Groups(dict[Any, Any]):
    """Grouped gradients that say when the loop over them, which clips them, has ended."""

    after: Callable[[], None]

    def items(self) -> Any:
        yield from super().items()
        self.after()


def _group_tensors(
    group: Any, watchers: list[ClippingWatcher], tensors: Any, *args: Any, **kwargs: Any
) -> Any:
    if sys._getframe(2).f_code.co_name not in _CLIPPERS:
        return group(tensors, *args, **kwargs)
    for watcher in watchers:
        watcher.before_clipping(tensors[0])
    groups = _Groups(group(tensors, *args, **kwargs))

    def after() -> None:
        for watcher in watchers:
            watcher.after_clipping(tensors[0])

    groups.after = after
    return groups


def _references(find: Any, watchers: list[Any], thing: Any) -> list[Any]:
    return [found for found in find(thing) if type(found) is not UnseenReference]


BACKWARD_PASSES: Replaced[BackwardWatcher] = Replaced(
    autograd, "_engine_run_backward", _run_backward
)
"""Backward passes, however they were started."""

CLIPPING: Replaced[ClippingWatcher] = Replaced(
    clip_grad, "_group_tensors_by_device_and_dtype", _group_tensors
)
"""Gradients that torch clips."""

REFERENCES: Replaced[Any] = Replaced(weakref, "getweakrefs", _references)
"""The weak references to an object, as a program sees them."""

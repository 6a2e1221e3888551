"""Events that torch has no hooks for: backward passes, and gradients that are about to be clipped.

Each is a function that torch looks up by name when it runs, so that replacing it there reaches
every caller, however it was imported. Without watchers torch is as it was.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, autograd
from torch._C import _current_graph_task_id
from torch.nn.utils import clip_grad

__all__ = ["BACKWARD_PASSES", "CLIPPING", "BackwardWatcher"]

_Watcher = TypeVar("_Watcher")


class BackwardWatcher(Protocol):
    """Someone who wants to know about backward passes (``autograd.grad`` is none)."""

    def begin_backward(self, roots: Sequence[Any], *, keeps_graph: bool) -> None:
        """A backward pass from these tensors is about to run."""

    def end_backward(self, *, failed: bool) -> None:
        """That pass has ended."""

    def suspend(self) -> Any:
        """``autograd.grad`` runs inside a backward pass: its gradients are not of the loss."""

    def resume(self, state: Any) -> None:
        """That ``autograd.grad`` has ended."""


class _Replaced(Generic[_Watcher]):
    """A function of torch that is replaced while somebody watches it.

    Args:
        module: Where torch looks it up.
        name: Its name there.
        run: Called in its place with itself, its watchers and its arguments.
    """

    def __init__(self, module: Any, name: str, run: Callable[..., Any]) -> None:
        self._module, self._name, self._run = module, name, run
        self._watchers: list[_Watcher] = []
        self._original: Any = None

    def watch(self, watcher: _Watcher) -> None:
        """Tell this watcher about every call from now on."""
        if not self._watchers:
            self._original = getattr(self._module, self._name)
            setattr(self._module, self._name, self._call)
        self._watchers.append(watcher)

    def unwatch(self, watcher: _Watcher) -> None:
        """Tell it nothing more."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
            if not self._watchers:
                setattr(self._module, self._name, self._original)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._original, list(self._watchers), *args, **kwargs)


def _run_backward(
    run: Any, watchers: list[BackwardWatcher], roots: Any, *args: Any, **kwargs: Any
) -> Any:
    if not kwargs.get("accumulate_grad", False):
        states = [watcher.suspend() for watcher in watchers]
        try:
            return run(roots, *args, **kwargs)
        finally:
            for watcher, state in zip(watchers, states, strict=True):
                watcher.resume(state)
    if _current_graph_task_id() != -1:  # inside another backward pass: a part of it
        return run(roots, *args, **kwargs)
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


# Both clip gradients just after they have grouped them, by a function that others use too.
_CLIPPERS = ("_clip_grads_with_norm_", "clip_grad_value_")


def _group_tensors(
    group: Any,
    watchers: list[Callable[[Sequence[Tensor]], None]],
    tensors: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if sys._getframe(2).f_code.co_name in _CLIPPERS:
        for watcher in watchers:
            watcher(tensors[0])
    return group(tensors, *args, **kwargs)


BACKWARD_PASSES: _Replaced[BackwardWatcher] = _Replaced(
    autograd, "_engine_run_backward", _run_backward
)
"""Backward passes, however they were started."""

CLIPPING: _Replaced[Callable[[Sequence[Tensor]], None]] = _Replaced(
    clip_grad, "_group_tensors_by_device_and_dtype", _group_tensors
)
"""Gradients that torch is about to clip; the watcher is called with them."""

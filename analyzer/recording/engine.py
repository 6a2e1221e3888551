"""Notice when a backward pass begins and ends, however it was started."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import autograd
from torch._C import _current_graph_task_id

__all__ = ["BackwardWatcher", "unwatch", "watch"]


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


_watchers: list[BackwardWatcher] = []
_original: Any = None
_autograd: Any = autograd


def watch(watcher: BackwardWatcher) -> None:
    """Tell this watcher about every backward pass from now on."""
    global _original
    if not _watchers:
        # `Tensor.backward` and `torch.autograd.backward` both look this name up when they run, so
        # replacing it here reaches every way of calling them, however they were imported.
        _original = _autograd._engine_run_backward
        _autograd._engine_run_backward = _watched_run
    _watchers.append(watcher)


def unwatch(watcher: BackwardWatcher) -> None:
    """Tell this watcher nothing more; without watchers torch is as it was."""
    if watcher in _watchers:
        _watchers.remove(watcher)
        if not _watchers:
            _autograd._engine_run_backward = _original


def _watched_run(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
    if not kwargs.get("accumulate_grad", False):
        states = [watcher.suspend() for watcher in _watchers]
        try:
            return _original(t_outputs, *args, **kwargs)
        finally:
            for watcher, state in zip(list(_watchers), states, strict=False):
                watcher.resume(state)
    if _current_graph_task_id() != -1:  # inside another backward pass: a part of it
        return _original(t_outputs, *args, **kwargs)
    keeps_graph = bool(args[1]) if len(args) > 1 else False
    watchers = list(_watchers)
    for watcher in watchers:
        watcher.begin_backward(t_outputs, keeps_graph=keeps_graph)
    failed = True
    try:
        result = _original(t_outputs, *args, **kwargs)
        failed = False
        return result
    finally:
        for watcher in watchers:
            watcher.end_backward(failed=failed)

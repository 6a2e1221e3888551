"""Gradient scalers: which loss was scaled and by how much, what is unscaled, what is skipped.

A scale is read where it is applied, as a copy that stays on its device: the scaler changes its own
in place. A scaled loss carries its scale on the node of the autograd graph that multiplied it.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor
from torch.amp import GradScaler
from torch.compiler import is_dynamo_compiling
from torch.optim.optimizer import Optimizer

from analyzer.probes.loss_tape import passed_by
from analyzer.recording.plain import plain
from analyzer.recording.watched import Replaced

__all__ = [
    "Scale",
    "ScalerWatcher",
    "num_scaler_kinds",
    "scalar",
    "scale_of",
    "unscaled",
    "unwatch_scalers",
    "watch_scalers",
]

Scale: TypeAlias = float | Tensor
"""By how much a loss was multiplied; on the host, or still on its device."""

_KEY = "analyzer.scale"
# Between a scaled loss and the root of its backward pass there may be a sum or a division.
_MOST_NODES = 32


class ScalerWatcher(Protocol):
    """Someone who wants to know what a gradient scaler does."""

    def unscaled(self, optimizer: Optimizer) -> None:
        """The gradients of this optimizer have been divided by the scale."""

    def begin_scaler_step(self, optimizer: Optimizer) -> None:
        """A scaler is about to step this optimizer, or to skip it."""

    def end_scaler_step(self, optimizer: Optimizer) -> None:
        """It has."""


def scalar(value: Tensor) -> float | Tensor:
    """Return a one-element tensor as a float, or as a copy that stays on its device.

    Raises:
        UnreadableError: If it has no value that can be read.
    """
    value = plain(value).detach().reshape(())
    if value.is_cpu:
        return float(value.double().numpy())
    return value.clone()


class _Used:
    """Whether any loss was ever scaled: before, no graph is looked at."""

    flag = False


def scale_of(roots: Sequence[Any]) -> Scale | None:
    """Return the scale of the loss that a backward pass starts from; None where it has none."""
    if not _Used.flag:
        return None
    nodes: list[Any] = [root.grad_fn if isinstance(root, Tensor) else root.node for root in roots]
    for count, node in enumerate(nodes):
        if count == _MOST_NODES:
            break
        if node is not None:
            found = node.metadata.get(_KEY)
            if found is not None:
                scale: Scale = found[0]
                return scale
            nodes.extend(child for child, _ in node.next_functions)
    return None


def unscaled(roots: Sequence[Any]) -> list[Any]:
    """Return the losses of which these roots are multiples, as far as they are known."""
    found = []
    for root in roots:
        node: Any = getattr(root, "grad_fn", None)
        noted = node.metadata.get(_KEY) if node is not None else None
        loss = noted[1]() if noted is not None else None
        found.append(root if loss is None else loss)
    return found


def _scale(
    original: Any,
    watchers: list[ScalerWatcher],
    scaler: Any,
    outputs: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    with passed_by():
        scaled = original(scaler, outputs, *args, **kwargs)
    factor = getattr(scaler, "_scale", None)
    if isinstance(factor, Tensor) and scaler.is_enabled() and not is_dynamo_compiling():
        kept = scalar(factor)
        pairs = [(scaled, outputs)]
        if not isinstance(scaled, Tensor):
            # An iterator must not be used up before the program sees it.
            are_lists = isinstance(scaled, list | tuple) and isinstance(outputs, list | tuple)
            pairs = list(zip(scaled, outputs, strict=True)) if are_lists else []
        for tensor, plain_one in pairs:
            node: Any = getattr(tensor, "grad_fn", None)
            if node is not None:
                node.metadata[_KEY] = kept, weakref.ref(plain_one)
                _Used.flag = True
    return scaled


def _unscale(
    original: Any, watchers: list[ScalerWatcher], scaler: Any, optimizer: Any, *args: Any, **kw: Any
) -> Any:
    result = original(scaler, optimizer, *args, **kw)
    if scaler.is_enabled() and isinstance(optimizer, Optimizer):
        for watcher in watchers:
            watcher.unscaled(optimizer)
    return result


def _step(
    original: Any, watchers: list[ScalerWatcher], scaler: Any, optimizer: Any, *args: Any, **kw: Any
) -> Any:
    if not (scaler.is_enabled() and isinstance(optimizer, Optimizer)):
        return original(scaler, optimizer, *args, **kw)
    for watcher in watchers:
        watcher.begin_scaler_step(optimizer)
    result = original(scaler, optimizer, *args, **kw)
    for watcher in watchers:
        watcher.end_scaler_step(optimizer)
    return result


_METHODS: dict[str, Callable[..., Any]] = {
    "scale": _scale,
    "unscale_": _unscale,
    "step": _step,
}


@functools.cache
def _replaced(owner: type, name: str) -> Replaced[ScalerWatcher]:
    return Replaced(owner, name, _METHODS[name])


def _functions() -> Iterator[Replaced[ScalerWatcher]]:
    """What is replaced of all classes of scalers."""
    kinds: list[type] = [GradScaler]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        yield from (_replaced(kind, name) for name in _METHODS.keys() & vars(kind).keys())


def num_scaler_kinds() -> int:
    """Return how many classes of scalers there are; that they are made is not watched."""
    return len(GradScaler.__subclasses__())


def watch_scalers(watcher: ScalerWatcher) -> None:
    """Tell this watcher what scalers do from now on, those of classes that are there by now."""
    for function in _functions():
        function.watch(watcher)


def unwatch_scalers(watcher: ScalerWatcher) -> None:
    """Tell it nothing more."""
    for function in _functions():
        function.unwatch(watcher)

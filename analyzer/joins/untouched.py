"""Run a live model without a trace: buffers, modes and the random state are put back."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["cloned", "untouched", "unwrapped"]

_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's model inside the wrappers of torch that run it as it is."""
    while (name := _WRAPPERS.get(type(model).__name__)) and name in model._modules:
        inner = model._modules[name]
        if inner is None:
            break
        model = inner
    return model


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back a model's buffers, its modules' modes, and the random state, also after an error.

    Weights and their ``.grad`` are not copied: nothing in this package changes them. Only those of
    embeddings with ``max_norm`` are, because a forward pass writes to them.
    """
    written = [
        (module.weight.data, module.weight.detach().clone())
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    ]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    with ExitStack() as stack:
        stack.enter_context(_same_random_states())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in {device.type for device in devices} - {"cpu", "meta"}:
            indices = [device.index or 0 for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        try:
            yield
        finally:
            for weight, saved in written:
                weight.copy_(saved)
            _restore_buffers(buffers)
            for module, mode in modes:
                module.training = mode


@contextmanager
def _same_random_states() -> Iterator[None]:
    """Put back the generators of Python, and of numpy where the program has it."""
    numpy = sys.modules.get("numpy")
    python = random.getstate()
    state = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(state)


def _restore_buffers(buffers: list[tuple[nn.Module, str, Tensor | None, Tensor | None]]) -> None:
    """Put back the same tensors with the same values; what did not change is not written."""
    with torch.no_grad():
        for module, name, buffer, saved in buffers:
            module._buffers[name] = buffer
            if buffer is None or saved is None:
                continue
            if buffer.shape != saved.shape:
                buffer.resize_(saved.shape)
            if not _is_same(buffer, saved):
                buffer.copy_(saved)


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.is_meta or bool(torch.eq(one, other).all())


def cloned(
    value: Any, *, requires_grad: bool, memo: dict[int, tuple[Tensor, Tensor]] | None = None
) -> Any:
    """Return nested tuples, lists and dicts with their tensors copied, one tensor only once.

    Args:
        value: The inputs of a model.
        requires_grad: Whether floating copies get a gradient. They are no leaves then, so that a
            model may change its inputs in place.
        memo: Filled with pairs of leaf and copy by the ``id`` of what was copied.

    Returns:
        The same structure; what is no tensor, tuple, list or dict is passed on as it is.
    """
    memo = {} if memo is None else memo
    if isinstance(value, Tensor):
        if id(value) not in memo:
            # Outside of inference mode its tensors take part in nothing that has a gradient.
            copy = value.clone() if value.is_inference() else value.detach()
            is_continuous = copy.is_floating_point() or copy.is_complex()
            needs = (requires_grad and is_continuous) or value.requires_grad
            # Cloned after it requires a gradient: an operation in place on a leaf would raise.
            leaf = copy.requires_grad_(needs)
            memo[id(value)] = (leaf, leaf.clone())
        return memo[id(value)][1]
    if type(value) is dict:
        items = value.items()
        return {k: cloned(item, requires_grad=requires_grad, memo=memo) for k, item in items}
    if type(value) in (tuple, list):
        return type(value)(cloned(item, requires_grad=requires_grad, memo=memo) for item in value)
    return value

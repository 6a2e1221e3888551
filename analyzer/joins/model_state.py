"""A live model run unnoticed: what a pass changes is put back, and no hook of ours sees it."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _pop_mode_temporarily

from analyzer.errors import ModelError
from analyzer.joins.calls import without_call_hooks

__all__ = [
    "RandomStates",
    "arguments_copied",
    "check_loss",
    "cloned",
    "preserve_state",
    "unobserved",
    "unwrapped",
]

_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's model inside the wrappers of torch that run it as it is.

    Raises:
        ModelError: If it is no model.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model is a {type(model).__name__}; expected a torch.nn.Module. Pass the model "
            "itself, in memory."
        )
    while (inner := model._modules.get(_WRAPPERS.get(type(model).__name__, ""))) is not None:
        model = inner
    return model


def check_loss(loss: object) -> None:
    """Refuse a loss that cannot be called."""
    if not callable(loss):
        raise ModelError(
            f"the loss is {loss!r}; expected a function loss(output, target), such as "
            "torch.nn.functional.cross_entropy"
        )


@contextmanager
def preserve_state(model: nn.Module, *, in_eval: bool = False) -> Iterator[None]:
    """Put back a model's buffers, its modules' modes, and the random state, also after an error.

    With ``in_eval`` all modules are in eval mode inside.

    Weights and their ``.grad`` are not copied: nothing in this package changes them. Only those of
    embeddings with ``max_norm`` are, because a forward pass writes to them.

    Raises:
        ModelError: If the model was called inside with arguments that do not fit.
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
    states = RandomStates({t.device for t in (*model.parameters(), *model.buffers())})
    try:
        for module, _ in modes if in_eval else ():
            module.training = False
        yield
    except TypeError as error:
        call = f"{type(model).forward.__qualname__}()"
        if isinstance(error, ModelError) or not str(error).startswith(call):
            raise
        raise ModelError(
            f"{error}; expected the arguments of one call of the model. Pass several as a tuple, "
            "or by their names in a dict."
        ) from error
    finally:
        for weight, saved in written:
            weight.copy_(saved)
        _restore_buffers(buffers)
        for module, mode in modes:
            module.training = mode
        states.restore()


def _restore_buffers(buffers: list[tuple[nn.Module, str, Tensor | None, Tensor | None]]) -> None:
    """Put back the same tensors with the same values; what did not change is not written."""
    with torch.no_grad():
        for module, name, buffer, saved in buffers:
            module._buffers[name] = buffer
            if buffer is None or saved is None:
                continue
            if buffer.shape != saved.shape:
                buffer.resize_(saved.shape)
            if not (buffer.is_meta or bool(torch.eq(buffer, saved).all())):
                buffer.copy_(saved)


def cloned(
    value: Any, *, requires_grad: bool, memo: dict[int, tuple[Tensor, Tensor]] | None = None
) -> Any:
    """Return nested tuples, lists and dicts with their tensors copied, each tensor only once.

    Anything else is passed on as it is. With ``requires_grad`` floating copies get a gradient; they
    are not leaves, so that a model may change its inputs in place. ``memo`` is filled with pairs of
    leaf and copy by the ``id`` of what was copied.
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


_HOOK_TABLES = ("_forward_pre_hooks", "_forward_hooks")


class RandomStates:
    """The states of the generators of Python, numpy, torch and some devices at one moment."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy: Any = None if numpy is None else numpy.random.get_state()
        self._torch = torch.get_rng_state()
        self._others = [
            (device, torch.get_device_module(device).get_rng_state(device))
            for device in devices
            if device.type not in ("cpu", "meta")
        ]

    def restore(self) -> None:
        """Set all generators to these states."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        for device, state in self._others:
            torch.get_device_module(device).set_rng_state(state, device)


def arguments_copied(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the arguments of a call for another one; neither can change what the other reads."""
    positional, named = _copied(cloned((tuple(args), dict(kwargs)), requires_grad=False))
    return positional, named


def _copied(value: Any) -> Any:
    """Return arguments with copies of the objects among them: a cache is written to by a pass."""
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_copied(item) for item in value)
    if isinstance(value, Tensor | nn.Module) or not hasattr(value, "__dict__"):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # tensors with a graph cannot be copied: the object is read as it is
        return value


@contextmanager
def unobserved(model: nn.Module, *, in_eval: bool = False) -> Iterator[None]:
    """Let a model run once more, unseen by this package's hooks, with buffers of its own."""
    with ExitStack() as stack:
        stack.enter_context(preserve_state(model, in_eval=in_eval))
        stack.enter_context(_without_own_modes())
        stack.enter_context(without_call_hooks())
        stack.enter_context(_without_own_hooks(model))
        copies: dict[int, Tensor] = {}
        for module in model.modules():
            # The pass writes into copies: the buffers' versions count in a forward that is open.
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
        yield


@contextmanager
def _without_own_modes() -> Iterator[None]:
    """Take the modes of this package off the stack; those of others stay."""
    with ExitStack() as stack:
        others = []
        while torch._C._len_torch_function_stack():
            mode = stack.enter_context(_pop_mode_temporarily())
            if not type(mode).__module__.startswith("analyzer."):
                others.append(mode)
        for mode in reversed(others):
            stack.enter_context(mode)
        yield


@contextmanager
def _without_own_hooks(model: nn.Module) -> Iterator[None]:
    """Take the forward hooks of this package off the modules of a model; put them back."""
    tables = [vars(module)[name] for module in model.modules() for name in _HOOK_TABLES]
    saved = [(table, dict(table)) for table in tables if any(map(_is_own, table.values()))]
    try:
        for table, items in saved:
            for key, hook in items.items():
                if _is_own(hook):
                    del table[key]
        yield
    finally:
        for table, items in saved:
            added = {key: hook for key, hook in table.items() if key not in items}
            table.clear()
            table.update({**items, **added})


def _is_own(hook: Any) -> bool:
    """Return whether a hook was registered by this package."""
    while hasattr(hook, "func"):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith("analyzer.")

"""What may run in place of a program's own computation, and the modes that look at all it does."""

import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import takewhile
from types import FrameType
from typing import Any, cast

import torch
from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import maybe_current_level
from torch.compiler import is_compiling
from torch.fx import _symbolic_trace
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = [
    "UnseenReference",
    "come_back",
    "compiled_apart",
    "is_traced",
    "is_transformed",
    "leave_mode",
    "leave_uncompiled",
    "runs_compiled",
    "stand_aside",
    "unseen",
    "without_collections",
]

_HERE = nullcontext()


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage while a graph is looked at, which makes many objects for a short time.

    They would be taken for long-lived ones, and all objects of the program be traversed for them,
    a few times now and once more in a later step.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class UnseenReference(weakref.ref[Any]):
    """A weak reference of ours: torch exchanges what two tensors hold only where it finds none."""

    __slots__ = ()


def is_transformed() -> bool:
    """Whether what runs now is not the program's computation on its own values.

    It is traced, or a transform of ``torch.func``.
    """
    return maybe_current_level() is not None or is_traced()


def is_traced() -> bool:
    """Whether what runs now is a look at a program: no tensor, or not each, has values.

    A trace (``torch.jit``, ``torch.fx``, ``make_fx``), an export, a compilation, or a mode in which
    tensors are fake or functional.
    """
    if is_compiling() or _get_tracing_state() is not None:
        return True
    if vars(_symbolic_trace)["_is_fx_tracing_flag"]:
        return True
    return _len_torch_dispatch_stack() > 0 and any(
        mode.is_infra_mode() for mode in _get_current_dispatch_mode_stack()
    )


def leave_uncompiled(what: Any, *, callees: bool = True) -> None:
    """Let ``torch.compile`` run a hook (or code) as it is, and not count it.

    A part of a model that is compiled by itself has its hooks called by code that is not: they
    would be compiled one by one.

    Args:
        what: A function, a method or its code.
        callees: Whether all that it calls is run as it is, too.
    """
    frames: Any = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):  # since torch 2.7
        skip, default = frames._FrameAction.SKIP, frames._FrameAction.DEFAULT
        strategy = frames._FrameExecStrategy(skip, skip if callees else default)
        frames.set_code_exec_strategy(getattr(what, "__code__", what), strategy)


def runs_compiled() -> bool:
    """Whether this is called from inside of a function that ``torch.compile`` has made."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    frame = sys._getframe(1) if compiler is not None else None
    while frame is not None:
        if frame.f_globals is vars(compiler):
            return True
        frame = frame.f_back
    return False


_aside: dict[FrameType, tuple[list[TorchFunctionMode], list[TorchFunctionMode]]] = {}


def leave_mode(mode: TorchFunctionMode) -> None:
    """Leave a mode wherever it is among those that are entered, if it is."""
    for whole, _ in _aside.values():
        whole[:] = [other for other in whole if other is not mode]
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if any(other is mode for other in stack):
        _exchange(stack, [other for other in stack if other is not mode])


def stand_aside(call: FrameType) -> None:
    """Leave the modes that only look on while compiled code runs: it would be compiled for them.

    Args:
        call: What calls it; `come_back` ends it.
    """
    if _len_torch_function_stack():
        whole = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        rest = [mode for mode in whole if not getattr(mode, "looks_on", False)]
        if len(rest) < len(whole):
            _aside[call] = whole, rest
            _exchange(whole, rest)


def come_back(call: FrameType) -> bool:
    """Enter the modes again that `stand_aside` left for a call; return whether there are any."""
    whole, rest = _aside.pop(call, (None, None))
    if whole is None:
        return False
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if stack == rest:
        _exchange(stack, whole)
    return True


@contextmanager
def compiled_apart() -> Iterator[None]:
    """Let compiled code that is called inside run without the modes that only look on."""
    frames: Any = sys.modules.get("torch._dynamo.eval_frame")
    begin = getattr(frames, "_maybe_set_eval_frame", None)
    if begin is None:
        yield
        return

    def turn(callback: Any) -> Any:
        call = sys._getframe(1)
        if not come_back(call) and callback is not None:
            stand_aside(call)
        return begin(callback)

    frames._maybe_set_eval_frame = turn
    try:
        yield
    finally:
        frames._maybe_set_eval_frame = begin


def _exchange(stack: list[TorchFunctionMode], wanted: list[TorchFunctionMode]) -> None:
    """Let other modes be entered than those of the stack."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(stack, wanted)))  # noqa: B905
    for _ in stack[same:]:
        _pop_mode()  # type: ignore[no-untyped-call]
    for mode in wanted[same:]:
        _push_mode(mode)  # type: ignore[no-untyped-call]


def unseen() -> AbstractContextManager[None]:
    """Compute inside of it out of sight of the modes that the program has begun.

    A program's mode may print or count every operation: those of a recorder are none of its own.
    Where all modes are our own, dispatch is left as it is: a device that is written in Python needs
    it. That of functions is left out, since ours would note each attribute that we read.
    """
    if not (_len_torch_dispatch_stack() or _len_torch_function_stack()):
        return _HERE
    functions = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    modes = (*_get_current_dispatch_mode_stack(), *functions)
    if not all(_is_ours(mode) for mode in modes):
        return _without_modes()
    guards: Any = torch._C
    return cast(AbstractContextManager[None], guards.DisableTorchFunction()) if functions else _HERE


def _is_ours(mode: Any) -> bool:
    return type(mode).__module__.startswith("analyzer.")


@contextmanager
def _without_modes() -> Iterator[None]:
    guards: Any = torch._C
    with guards.DisableTorchFunction(), guards._DisableTorchDispatch():
        yield

"""What may run in place of a program's own computation, and the modes that look at all it does."""

import inspect
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import CellType
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
    "calls_compiled_code",
    "is_traced",
    "is_transformed",
    "leave_mode",
    "leave_uncompiled",
    "runs_compiled",
    "stand_aside",
    "unseen",
]

_HERE = nullcontext()


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


def calls_compiled_code(functions: Iterable[Any]) -> bool:
    """Whether functions call what ``torch.compile`` made, as far as their code names it.

    Compiled code that is called under a mode of functions is compiled for that mode, once more.
    """
    if "torch._dynamo.eval_frame" not in sys.modules:
        return False
    stack: list[tuple[Any, Any]] = [(one, getattr(one, "__self__", None)) for one in functions]
    seen = set()
    while stack:
        function, owner = stack.pop()
        function = inspect.unwrap(function, stop=_is_compiled)
        if _is_compiled(function):
            return True
        function = getattr(function, "__func__", function)
        code, home = getattr(function, "__code__", None), getattr(function, "__globals__", {})
        if code is None or code in seen or str(home.get("__name__")).partition(".")[0] == "torch":
            continue
        seen.add(code)
        own = {**vars(type(owner)), **getattr(owner, "__dict__", {})}
        named = [home.get(name, own.get(name)) for name in code.co_names]
        named += [cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY]
        stack += [(value, owner) for value in named if callable(value)]
    return False


_EMPTY = CellType()


def _is_compiled(function: Any) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable") and not getattr(
        function, "_torchdynamo_disable", False
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


def leave_mode(mode: TorchFunctionMode) -> None:
    """Leave a mode wherever it is among those that are entered, if it is."""
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if not any(other is mode for other in stack):
        return
    above = []
    while (top := _pop_mode()) is not mode:  # type: ignore[no-untyped-call]
        above.append(top)
    for other in reversed(above):
        _push_mode(other)  # type: ignore[no-untyped-call]


def stand_aside() -> None:
    """Leave the modes that only look on: compiled code would be compiled again for them."""
    if _len_torch_function_stack():
        for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            if getattr(mode, "looks_on", False):
                leave_mode(mode)


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

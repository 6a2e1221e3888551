"""The calls of modules: the log of one forward pass, running calls, hooks common to all modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from analyzer.joins.modes import leave_uncompiled
from analyzer.joins.trace import ForwardTrace, sequence_number

__all__ = [
    "CallLog",
    "ModuleCall",
    "after_calls",
    "before_calls",
    "call_arguments_of",
    "clean_path",
    "is_compiled_itself",
    "is_layer",
    "keywords_of_call",
    "num_running",
    "numbered_call",
    "tensors_in",
]

_WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_MAX_NESTING = 6
_TABLES = (
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
)
_ours: set[int] = set()
_torch: Any = torch_module
_original: Any = None


def clean_path(path: str) -> str:
    """Return a module path without the parts that wrappers (compile, FSDP) put into it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPER_PARTS)


def is_layer(path: str, module: nn.Module) -> bool:
    """Return whether a module's calls are layers: a leaf, or an owner of parameters.

    A module whose weights are computed by ``torch.nn.utils.parametrize`` is one layer, and the
    modules that compute them are none.
    """
    if ".parametrizations." in f".{path}.":
        return False
    if hasattr(module, "parametrizations"):
        return True
    owns = any(parameter is not None for parameter in module._parameters.values())
    return owns or next(module.children(), None) is None


def tensors_in(value: object, nesting: int = 0) -> Iterator[Tensor]:
    """Yield the tensors inside nested tuples, lists, mappings and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif nesting >= _MAX_NESTING or isinstance(value, str | bytes | int | float | nn.Module | type):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, nesting + 1)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item, nesting + 1)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), nesting + 1)
    elif hasattr(value, "__dataclass_fields__"):  # with slots
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name, None), nesting + 1)


def is_compiled_itself(module: nn.Module) -> bool:
    """Return whether calls of this module run compiled code."""
    is_wrapper = type(module).__name__ == "OptimizedModule"
    return is_wrapper or getattr(module, "_compiled_call_impl", None) is not None


def numbered_call(name: str, times: dict[str, int]) -> str:
    """Return the name of a module's next call: ``#k`` for call k > 0; counts it in `times`."""
    number = times.get(name, 0)
    times[name] = number + 1
    return f"{name}#{number}" if number else name


@dataclass(eq=False, slots=True)
class ModuleCall:
    """One call of a module, as a span of the autograd graph.

    Args:
        path: Module path; the root's is its prefix, usually empty.
        layer: Layer name (path, ``#k`` for the k-th further call), None where no layer.
        parent: Position of the enclosing call in the log, -1 for a root.
        start: First autograd sequence number inside the call; `end`: the one after it.
        tick: First count of followed functions inside the call; `tock`: the one after it.
        outputs: What made the outputs of a layer or a root: autograd nodes, or their sequence
            numbers; `Untracked` where there is none.
    """

    path: str
    module: nn.Module
    layer: str | None
    parent: int
    start: int
    tick: int
    end: int = -1
    tock: int = -1
    outputs: list[Any] = field(default_factory=list)


class CallLog:
    """The module calls of one forward, in order.

    The recorder's own hooks may feed it through `enter` and `leave`; `watch` does so with
    temporary hooks. Root modules are those inside of wrappers such as DDP, by the prefix of their
    paths; one root has the prefix ``""``.

    Attributes:
        most_calls: Calls of one module in which joins are looked for.
    """

    def __init__(self, roots: Mapping[str, nn.Module], trace: ForwardTrace | None = None) -> None:
        self.roots = dict(roots)
        self.trace = ForwardTrace() if trace is None else trace
        self.calls: list[ModuleCall] = []
        self.most_calls = sys.maxsize
        self.paths: dict[nn.Module, str] = {}
        for prefix, root in roots.items():
            for name, module in root.named_modules():
                path = clean_path(".".join(part for part in (prefix, name) if part))
                self.paths.setdefault(module, path)
        self._open: list[int] = []
        self._times_called: dict[str, int] = {}
        self._layers = {m for m, path in self.paths.items() if is_layer(path, m)}

    def enter(self, module: nn.Module, inputs: object = ()) -> None:
        """Note that a module's call begins; `inputs` are its arguments, needed for roots only."""
        if not self._open:
            self.trace.add_inputs(tensors_in(inputs))
        path = self.paths[module]
        call = ModuleCall(
            path=path,
            module=module,
            layer=self._layer_name(module, path),
            parent=self._open[-1] if self._open else -1,
            start=sequence_number(),
            tick=self.trace.tick,
        )
        self._open.append(len(self.calls))
        self.calls.append(call)

    def leave(self, module: nn.Module, output: object) -> None:
        """Note that the innermost open call of a module ends with this output."""
        while self._open:
            call = self.calls[self._open.pop()]
            call.end, call.tock = sequence_number(), self.trace.tick
            # A call that raised inside its parent never left by itself.
            if call.module is module:
                is_needed = call.layer is not None or call.parent < 0
                call.outputs = self._makers(output) if is_needed else []
                return

    @contextmanager
    def watch(self) -> Iterator[CallLog]:
        """Log and trace what is computed inside, by temporary hooks on every module."""
        handles = []
        try:
            for module in self.paths:
                if isinstance(module, torch.jit.ScriptModule) and module not in self.roots.values():
                    continue
                handles.append(
                    module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
                )
                handles.append(module.register_forward_hook(self._after))
            with self.trace:
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def innermost(self, sequence: int) -> ModuleCall | None:
        """Return the innermost call in which the autograd node of a sequence number was made."""
        around = (call for call in reversed(self.calls) if call.start <= sequence < call.end)
        return next(around, None)

    def root_name(self, call: ModuleCall) -> str:
        """Return the name of a call's module: its path, for the one root its class name."""
        return call.path or type(call.module).__name__

    def _before(self, module: nn.Module, args: object, kwargs: object) -> None:
        self.enter(module, (args, kwargs))

    def _after(self, module: nn.Module, args: object, output: object) -> None:
        self.leave(module, output)

    def _layer_name(self, module: nn.Module, path: str) -> str | None:
        """Name the layer and count its calls; calls without gradient are no layers."""
        if module not in self._layers or not torch.is_grad_enabled():
            return None
        return numbered_call(path or type(module).__name__, self._times_called)

    def _makers(self, output: object) -> list[Any]:
        """Return what made the tensors of an output: autograd nodes, else `Untracked`."""
        makers: list[Any] = []
        for tensor in tensors_in(output):
            maker = tensor.grad_fn or self.trace.untracked(tensor)
            if maker is not None:
                makers.append(maker)
        return makers


def _calls_of(module: nn.Module) -> Iterator[FrameType]:
    """Yield the frames of the calls of a module that are running, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    code = nn.Module._call_impl.__code__
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is module:
            yield frame
        frame = frame.f_back


def call_arguments_of(module: nn.Module, level: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a running call; a hook for all modules does not get the keywords.

    Of several running calls `level` counts from 1 for the outermost; 0 is the innermost.
    """
    frame = list(_calls_of(module))[-level]
    return frame.f_locals["args"], frame.f_locals["kwargs"]


def keywords_of_call(module: nn.Module) -> Mapping[str, Any]:
    """Return the keyword arguments of the innermost running call of a module; empty without one."""
    frame = next(_calls_of(module), None)
    return {} if frame is None else frame.f_locals["kwargs"]


def num_running(module: nn.Module) -> int:
    """Return how many calls of a module are running."""
    return sum(1 for _ in _calls_of(module))


class GlobalHook:
    """A hook common to all modules, until `remove`, of which torch itself takes no notice.

    With such hooks `torch.compile` warns, in the user's process, about what they would do there;
    ours do nothing in compiled modules. The check before that warning passes over them.
    """

    def __init__(self, handle: Any) -> None:
        global _original
        self._handle = handle
        self.id: int = handle.id
        if not _ours:
            _original = _torch._has_any_global_hook
            _torch._has_any_global_hook = _has_hook_of_others
        _ours.add(handle.id)

    def remove(self) -> None:
        """Remove the hook; after the last one torch is as it was."""
        self._handle.remove()
        if self._handle.id in _ours:
            _ours.discard(self._handle.id)
            if not _ours:
                _torch._has_any_global_hook = _original


def before_calls(hook: Callable[[Any, Any], None]) -> GlobalHook:
    """Call ``hook(module, args)`` before the forward of every module."""
    leave_uncompiled(hook)
    return GlobalHook(register_module_forward_pre_hook(hook))


def after_calls(hook: Callable[[Any, Any, Any], None]) -> GlobalHook:
    """Call ``hook(module, args, output)`` after it; with the output None after an exception."""
    leave_uncompiled(hook)
    return GlobalHook(register_module_forward_hook(hook, always_call=True))


def _has_hook_of_others() -> bool:
    return any(key not in _ours for table in _TABLES for key in getattr(_torch, table))

"""Which module call made which part of the autograd graph, as spans of sequence numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "CallLog",
    "ModuleCall",
    "clean_path",
    "is_compiled_itself",
    "is_layer",
    "numbered_call",
    "sequence_number",
    "tensors_in",
]

_WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_MAX_NESTING = 6


def sequence_number() -> int:
    """Return the sequence number that the next autograd node of this thread will get."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number


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
        module: The module called.
        layer: Layer name (path, ``#k`` for the k-th further call), None where no layer.
        parent: Position of the enclosing call in the log, -1 for a root.
        start: First autograd sequence number inside the call.
        tick: First count of followed functions inside the call.
        end: Sequence number after the call.
        tock: Count of followed functions after the call.
        outputs: The autograd nodes, or their sequence numbers, (or flows, where there is none) that
            made the outputs of a layer or a root.
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
    temporary hooks.

    Args:
        roots: Root modules, outside of wrappers such as DDP, by the prefix of their paths; one
            root has the prefix ``""``.
        follower: Follows tensors that autograd does not see; see `analyzer.joins.forward`.
    """

    def __init__(self, roots: Mapping[str, nn.Module], follower: Any = None) -> None:
        self.roots = dict(roots)
        self.follower = follower
        self.calls: list[ModuleCall] = []
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
        if not self._open and self.follower is not None:
            self.follower.add_inputs(tensors_in(inputs))
        path = self.paths[module]
        call = ModuleCall(
            path=path,
            module=module,
            layer=self._layer_name(module, path),
            parent=self._open[-1] if self._open else -1,
            start=sequence_number(),
            tick=self._tick(),
        )
        self._open.append(len(self.calls))
        self.calls.append(call)

    def leave(self, module: nn.Module, output: object) -> None:
        """Note that the innermost open call of a module ends with this output."""
        while self._open:
            call = self.calls[self._open.pop()]
            call.end, call.tock = sequence_number(), self._tick()
            # A call that raised inside its parent never left by itself.
            if call.module is module:
                is_needed = call.layer is not None or call.parent < 0
                call.outputs = self._makers(output) if is_needed else []
                return

    @contextmanager
    def watch(self) -> Iterator[CallLog]:
        """Feed the log by temporary forward hooks on every module of the roots."""
        handles = []
        try:
            for module in self.paths:
                if isinstance(module, torch.jit.ScriptModule) and module not in self.roots.values():
                    continue
                handles.append(
                    module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
                )
                handles.append(module.register_forward_hook(self._after))
            yield self
        finally:
            for handle in handles:
                handle.remove()

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

    def _tick(self) -> int:
        return self.follower.tick if self.follower is not None else 0

    def _makers(self, output: object) -> list[Any]:
        """Return what made the tensors of an output: autograd nodes, or flows without them."""
        makers: list[Any] = []
        for tensor in tensors_in(output):
            maker = tensor.grad_fn
            if maker is None and self.follower is not None:
                maker = self.follower.flow_of(tensor)
            if maker is not None:
                makers.append(maker)
        return makers

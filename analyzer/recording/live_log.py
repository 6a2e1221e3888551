"""The module calls of a training's own forward passes, noted for the discovery of joins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch._C._functorch import maybe_current_level
from torch.autograd.graph import Node

from analyzer.joins.calls import (
    CallLog,
    ModuleCall,
    clean_path,
    is_compiled_itself,
    is_layer,
    keywords_of_call,
    numbered_call,
    tensors_in,
)
from analyzer.joins.trace import ForwardTrace
from analyzer.recording.names import unwrapped

__all__ = ["LiveLog", "is_compiled", "token"]

# A validation that keeps its graphs never comes to a backward pass: the log must not grow with it.
_MOST_CALLS = 100_000


def token(root: int) -> str:
    """What stands for a root model in the names of a log: its own name may still change."""
    return f"@{root}"


def is_compiled(root: nn.Module) -> bool:
    """Whether a part of a model is compiled."""
    return any(map(is_compiled_itself, root.modules()))


class LiveLog(CallLog):
    """A log of the calls between one update and the next backward pass.

    It holds no autograd node, so that the graphs of forward passes that never meet a backward pass
    go away as they would without it.
    """

    def __init__(self) -> None:
        super().__init__({}, ForwardTrace())
        self.is_paused = False
        self._follows = False

    def add_root(self, number: int, root: nn.Module) -> None:
        """Note the calls of this model's modules, too."""
        prefix, model = token(number), unwrapped(root)
        self.roots[prefix] = model
        for name, module in model.named_modules():
            if module in self.paths:
                continue
            path = clean_path(f"{prefix}.{name}" if name else prefix)
            self.paths[module] = path
            if is_layer(path, module):
                self._layers.add(module)

    def close(self) -> None:
        """Follow no more; what was noted stays."""
        self._open.clear()
        self._stop_following()

    def enter(self, module: nn.Module, inputs: object = ()) -> None:
        """Note that a module's call begins, unless it can lead to no backward pass."""
        if not self._open:
            if self.is_paused or not torch.is_grad_enabled() or maybe_current_level() is not None:
                return
            if len(self.calls) > _MOST_CALLS or torch.compiler.is_compiling():
                return
            inputs = (inputs, keywords_of_call(module))
            self.trace.__enter__()  # type: ignore[no-untyped-call]
            self._follows = True
        super().enter(module, inputs)

    def leave(self, module: nn.Module, output: object) -> None:
        """Note that the innermost open call of a module ends with this output."""
        super().leave(module, output)
        if not self._open:
            self._stop_following()

    def _stop_following(self) -> None:
        if self._follows:
            self._follows = False
            self.trace.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _makers(self, output: object) -> list[Any]:
        """Return the sequence numbers of autograd nodes: a node would keep its graph alive."""
        makers: list[Any] = []
        for tensor in tensors_in(output):
            node = tensor.grad_fn
            maker = node._sequence_nr() if node is not None else self.trace.untracked(tensor)
            if maker is not None:
                makers.append(maker)
        return makers

    def restrict(self, nodes: Iterable[Node]) -> None:
        """Leave out forward passes that had no part in a graph; number the layers' calls again."""
        sequences = {node._sequence_nr() for node in nodes}
        kept: list[ModuleCall] = []
        times: dict[str, int] = {}
        for calls in self._passes():
            if not _has_part(calls, sequences):
                continue
            shift = len(kept) - calls[0][0]
            for _, call in calls:
                call.parent = call.parent + shift if call.parent >= 0 else -1
                if call.layer is not None:
                    call.layer = numbered_call(call.path, times)
                kept.append(call)
        self.calls = kept

    def _passes(self) -> Iterable[list[tuple[int, ModuleCall]]]:
        """The calls of each forward pass, with their positions."""
        current: list[tuple[int, ModuleCall]] = []
        for position, call in enumerate(self.calls):
            if call.parent < 0 and current:
                yield current
                current = []
            current.append((position, call))
        if current:
            yield current


def _has_part(calls: list[tuple[int, ModuleCall]], sequences: Mapping[int, Any] | set[int]) -> bool:
    return any(
        maker in sequences for _, call in calls for maker in call.outputs if isinstance(maker, int)
    )

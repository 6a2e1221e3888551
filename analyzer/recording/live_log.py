"""The module calls of a training's own forward passes, and the joins that were found in them."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from analyzer.joins.search import Join, numbered
from analyzer.joins.trace import ForwardTrace
from analyzer.recording.names import unwrapped

__all__ = ["JoinTable", "LiveLog", "is_compiled", "token", "without_collections"]

_TOKEN = re.compile(r"@(\d+)(\.?)")
# A validation that keeps its graphs never comes to a backward pass: the log must not grow with it.
_MOST_CALLS = 100_000


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

    def __init__(self, most_calls: int) -> None:
        super().__init__({}, ForwardTrace())
        # A cell that is called for each element of a sequence does in its later calls what it does
        # in the first ones.
        self.most_calls = most_calls
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

    def restrict(self, nodes: Iterable[Node]) -> list[ModuleCall]:
        """Leave out forward passes that had no part in a graph; number the layers' calls again.

        Returns:
            The calls that were left out: their own backward pass may still come.
        """
        sequences = {node._sequence_nr() for node in nodes}
        kept: list[ModuleCall] = []
        left: list[ModuleCall] = []
        times: dict[str, int] = {}
        for calls in self._passes():
            into = kept if _has_part(calls, sequences) else left
            shift = len(into) - calls[0][0]
            for _, call in calls:
                call.parent = call.parent + shift if call.parent >= 0 else -1
                if call.layer is not None and into is kept:
                    call.layer = numbered_call(call.path, times)
                into.append(call)
        self.calls = kept
        return left

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


class JoinTable:
    """Static rows of the joins, in the order in which backward passes first showed them.

    Two joins of different graphs are the same where module, operation and branch are: so the joins
    of a network keep their numbers when stochastic depth leaves some of its blocks out.

    Args:
        max_calls: Calls of a module that have names of their own.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._joins: list[Join] = []
        self._numbers: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._joins)

    def number(self, join: Join) -> int | None:
        """Return the number of a join, None where it is not in the table."""
        return self._numbers.get(_key(join))

    def add(self, join: Join) -> bool:
        """Add a join; return whether it is new."""
        if _key(join) in self._numbers:
            return False
        self._numbers[_key(join)] = len(self._joins)
        self._joins.append(join)
        return True

    def rows(self, name_of: Callable[[int, str], str]) -> list[dict[str, Any]]:
        """Return the rows of joins.parquet; names from the number of a root and a path there."""

        def spelled(layers: Sequence[str]) -> list[str]:
            return list(dict.fromkeys(_spelled(x, name_of, self._max_calls) for x in layers))

        names = numbered([_spelled(_base(join), name_of) for join in self._joins])
        return [
            {
                "join": number,
                "name": name,
                "operation": join.operation,
                "shortcut": join.shortcut,
                "branch_layers": spelled(join.branch_layers),
                "shortcut_layers": spelled(join.shortcut_layers),
                "branch_parameters": join.branch_parameters,
                "shortcut_parameters": join.shortcut_parameters,
            }
            for number, (name, join) in enumerate(zip(names, self._joins, strict=True))
        ]

    def roles(self) -> dict[str, tuple[int, str]]:
        """Return the innermost join and the role (branch | shortcut) of layers, by their token."""
        sizes: dict[str, int] = {}
        roles: dict[str, tuple[int, str]] = {}
        for number, join in enumerate(self._joins):
            size = len(join.branch_layers) + len(join.shortcut_layers)
            sides = [("branch", layer) for layer in join.branch_layers]
            sides += [("shortcut", layer) for layer in join.shortcut_layers]
            for role, layer in sides:
                if layer not in roles or size < sizes[layer]:
                    roles[layer], sizes[layer] = (number, role), size
        return roles


def _base(join: Join) -> str:
    return join.name.partition("#")[0]


def _key(join: Join) -> Any:
    return _base(join), join.operation, tuple(join.branch_layers), tuple(join.shortcut_layers)


def _spelled(name: str, name_of: Callable[[int, str], str], max_calls: int | None = None) -> str:
    """A name that begins with the token of its root, as a user would write it."""
    found = _TOKEN.match(name)
    if found is None:
        return name
    path, mark, call = name[found.end() :].partition("#")
    if max_calls is not None and call and int(call) >= max_calls:
        call = "rest"
    return f"{name_of(int(found[1]), path)}{mark}{call}"

"""The module calls of a training's own forward passes, and the joins that were found in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._C._functorch import maybe_current_level

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
from analyzer.joins.graph import Walk
from analyzer.joins.layer_edges import layer_edges
from analyzer.joins.modes import runs_compiled
from analyzer.joins.plan import JoinPlan
from analyzer.joins.search import Join, numbered
from analyzer.joins.trace import ForwardTrace, TracedCall, Untracked
from analyzer.recording.invocation import has_any
from analyzer.recording.names import unwrapped

__all__ = ["JoinTable", "LiveLog", "is_compiled", "token"]

_TOKEN = re.compile(r"@(\d+)(\.?)")
_NUMBER = re.compile(r"\d+")
# A validation that keeps its graphs never comes to a backward pass: the log must not grow with it.
_MOST_CALLS = 100_000
_ANY_INPUT = Untracked("input", True, False, (), (), -1, -1, ())


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

    def __init__(self, most_calls: int, trace: ForwardTrace | None = None) -> None:
        super().__init__({}, trace)
        # A cell that is called for each element of a sequence does in its later calls what it does
        # in the first ones.
        self.most_calls = most_calls
        self.is_paused = self._follows = False
        self.is_traced = True

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

    def remove_root(self, number: int) -> None:
        """Note no more calls of a model, and forget those that were noted."""
        prefix = token(number)
        self.close()
        self.roots.pop(prefix, None)
        self.paths = {m: path for m, path in self.paths.items() if path.split(".")[0] != prefix}
        passes, self.calls = list(self._passes()), []
        for calls in passes:
            if calls[0][1].path.split(".")[0] != prefix:
                shift = len(self.calls) - calls[0][0]
                for _, call in calls:
                    call.parent = call.parent + shift if call.parent >= 0 else -1
                    self.calls.append(call)

    def close(self) -> None:
        """Follow no more; what was noted stays."""
        self._open.clear()
        self._late = 0
        self._stop_following()

    def enter(self, module: nn.Module, inputs: object = ()) -> None:
        """Note that a module's call begins, unless it can lead to no backward pass."""
        if not self._open:
            if self.is_paused or not torch.is_grad_enabled() or maybe_current_level() is not None:
                return
            if len(self.calls) > _MOST_CALLS or runs_compiled():
                return
            inputs = (inputs, keywords_of_call(module))
            self.trace.begin()
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
            self.trace.end()

    def _makers(self, output: object) -> list[Any]:
        """Return the sequence numbers of autograd nodes: a node would keep its graph alive."""
        makers: list[Any] = []
        for tensor in tensors_in(output):
            node = tensor.grad_fn
            maker = node._sequence_nr() if node is not None else self.trace.untracked(tensor)
            if maker is not None:
                makers.append(maker)
        return makers

    def replay(self, base: int, spans: Sequence[int]) -> None:
        """Note the calls of a forward pass that was not watched, from what its invocation noted.

        Nothing of it was traced. What autograd does not see in the call of a layer is taken to be
        data, and its parameters without gradient.
        """
        self.is_traced = False
        modules = {id(module): module for module in self.paths}
        running: list[ModuleCall] = []
        first = len(self.calls)
        places: list[int] = []
        for key, count in zip(spans[::2], spans[1::2], strict=True):
            module, number = modules.get(abs(key)), base + count
            if key == 0 and running:
                running[-1].outputs = [number]
            elif module is not None and key > 0:
                path, parent = self.paths[module], places[-1] if places else -1
                layer = path if module in self._layers else None  # numbered by `restrict`
                running.append(ModuleCall(path, module, layer, parent, start=number, tick=0))
                places.append(len(self.calls))
                self.calls.append(running[-1])
            while module is not None and key < 0 and running:
                call, _ = running.pop(), places.pop()
                call.end, call.tock = number, 0
                if call.module is module:
                    break
        for call in self.calls[first:]:
            own = [p for p in call.module._parameters.values() if p is not None]
            if call.layer is not None:
                frozen = tuple(p for p in own if not p.requires_grad)
                traced = TracedCall("other", call.start, call.end, (_ANY_INPUT,), frozen)
                self.trace.calls.append(traced)

    def restrict(self, sequences: Sequence[int]) -> list[ModuleCall]:
        """Leave out forward passes that had no part in a graph; number the layers' calls again.

        Args:
            sequences: The numbers of the nodes of the graph, in rising order.

        Returns:
            The calls that were left out: their own backward pass may still come.
        """
        kept: list[ModuleCall] = []
        left: list[ModuleCall] = []
        times: dict[str, int] = {}
        for calls in self._passes():
            into = kept if has_any(sequences, calls[0][1].start, calls[0][1].end) else left
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


class JoinTable:
    """Static rows of the joins, in the order in which backward passes first showed them.

    A join of another graph is the same where module and operation are the same, and the branch has
    something in common: so the joins of a network keep their numbers when stochastic depth leaves
    some of its blocks out, and one join stays one whichever experts of a mixture ran.

    Args:
        max_calls: Calls of a module that have names of their own.

    Attributes:
        edges: The data flow between layers of all graphs: pairs of names, empty for an input.
    """

    def __init__(self, max_calls: int) -> None:
        self.edges: dict[tuple[str, str], None] = {}
        self._max_calls = max_calls
        self._known: list[_Known] = []
        self._by_group: dict[_Group, list[int]] = {}
        # Modules that had no join in some graph, or several.
        self._varied: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    def take(self, plan: JoinPlan, walk: Walk, log: CallLog) -> tuple[list[int], bool]:
        """Return the numbers of the joins of a graph, and whether joins or edges are new.

        Args:
            plan: The joins.
            walk: The graph.
            log: The calls of the modules in the forward pass.
        """
        given = [_Known(*pair) for pair in zip(plan.joins, plan.weights, strict=True)]
        counts = Counter(one.group[0] for one in given)
        self._varied.update(call.path for call in log.calls if counts[call.path] != 1)
        numbers: dict[int, int] = {}
        for is_like in (_is_equal, _overlaps, self._alternate):
            taken = set(numbers.values())
            for place, one in enumerate(given):
                for number in self._by_group.get(one.group, ()) if place not in numbers else ():
                    if number not in taken and is_like(one, self._known[number]):
                        numbers[place] = number
                        taken.add(number)
                        break
        known, self.edges = self.edges, self.edges | dict.fromkeys(layer_edges(walk, log))
        has_changed = len(self.edges) > len(known)
        for place, one in enumerate(given):
            if place in numbers:
                has_changed |= self._known[numbers[place]].widen(one)
            else:
                numbers[place], has_changed = len(self), True
                self._by_group.setdefault(one.group, []).append(len(self))
                self._known.append(one)
        return [numbers[place] for place in range(len(given))], has_changed

    def _alternate(self, one: _Known, other: _Known) -> bool:
        """Whether two branches stand for each other: the same layers of two entries of one list.

        They do where each call of their module had one join so far, as with a router that picks an
        expert and passes no gradient. Layers that are dropped at random show none, or several.
        """
        return one.group[0] not in self._varied and one.pattern == other.pattern != set()

    def _joins(self) -> list[Join]:
        return [known.join for known in self._known]

    def rows(self, name_of: Callable[[int, str], str]) -> list[dict[str, Any]]:
        """Return the rows of joins.parquet; names from the number of a root and a path there."""

        def spelled(layers: Sequence[str]) -> list[str]:
            return list(dict.fromkeys(_spelled(x, name_of, self._max_calls) for x in layers))

        names = numbered([_spelled(_base(join), name_of) for join in self._joins()])
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
            for number, (name, join) in enumerate(zip(names, self._joins(), strict=True))
        ]

    def roles(self) -> dict[str, tuple[int, str]]:
        """Return the innermost join and the role (branch | shortcut) of layers, by their token."""
        sizes: dict[str, int] = {}
        roles: dict[str, tuple[int, str]] = {}
        for number, join in enumerate(self._joins()):
            size = len(join.branch_layers) + len(join.shortcut_layers)
            sides = [("branch", layer) for layer in join.branch_layers]
            sides += [("shortcut", layer) for layer in join.shortcut_layers]
            for role, layer in sides:
                if layer not in roles or size < sizes[layer]:
                    roles[layer], sizes[layer] = (number, role), size
        return roles


_Group: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Known:
    """A join, and the parameters of its branch: their elements by their ``id``."""

    join: Join
    weights: dict[int, int]

    @property
    def group(self) -> _Group:
        """The module and the operation of a join."""
        return _base(self.join), self.join.operation

    @property
    def layers(self) -> tuple[list[str], list[str]]:
        """The layers of branch and shortcut."""
        return self.join.branch_layers, self.join.shortcut_layers

    @property
    def pattern(self) -> set[str]:
        """The layers of the branch, with an asterisk for each number in their paths."""
        return {_NUMBER.sub("*", layer) for layer in self.join.branch_layers}

    def widen(self, other: _Known) -> bool:
        """Add what another graph shows of the same join; return whether that is anything."""
        new = {key: n for key, n in other.weights.items() if key not in self.weights}
        branch, shortcut = map(_merged, self.layers, other.layers)
        if (branch, shortcut) == self.layers and not new:
            return False
        self.weights = self.weights | new
        self.join = replace(
            self.join,
            branch_layers=branch,
            shortcut_layers=shortcut,
            branch_parameters=self.join.branch_parameters + sum(new.values()),
        )
        return True


def _base(join: Join) -> str:
    return join.name.partition("#")[0]


def _is_equal(one: _Known, other: _Known) -> bool:
    has_layers = bool(one.join.branch_layers)
    return one.layers == other.layers and (has_layers or one.weights == other.weights)


def _overlaps(one: _Known, other: _Known) -> bool:
    """Whether two branches have a layer in common; without layers, a parameter."""
    if one.join.branch_layers or other.join.branch_layers:
        return not set(one.join.branch_layers).isdisjoint(other.join.branch_layers)
    return not one.weights.keys().isdisjoint(other.weights)


def _merged(known: list[str], more: list[str]) -> list[str]:
    """Two lists of layers in forward order as one, in which those of `known` come first."""
    found, place = list(known), 0
    for layer in more:
        if layer in found:
            place = found.index(layer) + 1
            continue
        while place < len(found) and found[place] not in more:
            place += 1
        found.insert(place, layer)
        place += 1
    return found


def _spelled(name: str, name_of: Callable[[int, str], str], max_calls: int | None = None) -> str:
    """A name that begins with the token of its root, as a user would write it."""
    found = _TOKEN.match(name)
    if found is None:
        return name
    path, mark, call = name[found.end() :].partition("#")
    if max_calls is not None and call and int(call) >= max_calls:
        call = "rest"
    return f"{name_of(int(found[1]), path)}{mark}{call}"

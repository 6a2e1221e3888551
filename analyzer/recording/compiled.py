"""Layers inside of code that ``torch.compile`` makes, where no module is called: what runs there.

Each output of a layer has a node in the graph that is compiled (`analyzer.recording.tracing`): the
operator ``analyzer::layer``. No value in the graph depends on it, so that nothing is added to and
nothing is aliased; a later in-place operation finds the tensor that it would have found.

A backend that runs the graph as it is, runs that operator, and it hooks the tensor as in eager
code. AOTAutograd traces it: it becomes ``analyzer::output`` in the forward graph, which reads the
tensor, and, by a hook, ``analyzer::gradient`` in the backward graph where all of the gradient of
the tensor has arrived. That one returns a copy: what returns nothing would be removed as of no use.
The two are tied by a *ticket*, a tensor of one element that the forward graph saves for the
backward graph. Its memory holds the calls, so that they go away with the graph as in eager code.
"""

import bisect
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C import _current_autograd_node
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from analyzer.joins.modes import leave_uncompiled, unseen
from analyzer.recording.hook_classes import Call, Layer
from analyzer.recording.invocation import recomputing, will_recompute
from analyzer.recording.plain import said

__all__ = ["OPERATORS", "InnerLayers", "Place", "nesting_of", "places", "watchers"]


class InnerLayers:
    """Takes the outputs of layers inside of compiled code for a recording.

    Args:
        capture: What takes those of modules that are called.
        hide: Called with a module of which a part runs as compiled code.
        on_problem: Called with a sentence about what cannot be recorded.

    Attributes:
        look: Looks for a model that nobody calls outside of compiled code.
    """

    def __init__(
        self,
        capture: Any,
        hide: Callable[[nn.Module], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self.on_problem = on_problem
        self._hide = hide
        self.look: Callable[[nn.Module, Any], object] = lambda module, args: None
        self._capture = capture
        self._further: dict[tuple[int, int], Layer] = {}
        self._again: list[int] = []
        self._recomputed: tuple[Any, Any] = (None, None)

    def roots(self) -> Iterator[nn.Module]:
        """Yield the models that are recorded."""
        found = [root() for root in self._capture.roots.values()]
        yield from (root for root in found if root is not None)

    def take(self, outer: nn.Module, module: nn.Module, tensor: Tensor, place: "Place") -> Any:
        """Take a tensor of a layer's output; return the call that waits for its gradient.

        None where nothing waits for it, or the tensor has a hook for that.
        """
        capture = self._capture
        if not capture.listening or capture.trainer.is_other():
            return None
        with unseen():
            if not capture.is_inside:
                self.look(outer, ())
            if place.is_first:
                self._hide(outer)
            capture.meet(module)
            layer = capture.layers.get(id(module))
            if layer is None or layer.module() is not module or layer.site.number in capture.broken:
                return None
            if place.further:
                layer = self._further_of(layer, place.further)
            if (hook := recomputing()) is not None:
                return self._take_recomputed(hook, layer, module, tensor, place)
            if capture.in_backward:
                return self._take_again(layer, module, tensor, place)
            invocation = capture.invocation(is_new=place.is_first)
            return self._observe(invocation, layer, module, tensor, place)

    def _observe(
        self, invocation: Any, layer: Layer, module: nn.Module, tensor: Tensor, place: "Place"
    ) -> Call | None:
        capture, calls = self._capture, invocation.calls
        number, current = len(calls), capture.current
        capture.current = invocation
        try:
            if place.further or not capture.take(module, tensor):
                capture.take_further(layer, module, tensor)
        finally:
            capture.current = current
        if len(calls) == number:
            return None
        call: Call = calls[-1]
        call.forward_depth = max(call.forward_depth, place.depth)
        return None if tensor.requires_grad else call

    def _take_again(
        self, layer: Layer, module: nn.Module, tensor: Tensor, place: "Place"
    ) -> Call | None:
        """The same in a backward graph: what was checkpointed is computed there, the last first."""
        capture = self._capture
        if capture.current is None:
            capture.begin_recomputation()
            self._again.clear()
        if capture.current is None:
            return None
        calls = capture.current.calls
        call = self._observe(capture.current, layer, module, tensor, place)
        if call is not None and calls and calls[-1] is call:
            where = bisect.bisect_left(self._again, place.number)
            self._again.insert(where, place.number)
            calls.insert(where, calls.pop())
        return call

    def _take_recomputed(
        self, hook: Any, layer: Layer, module: nn.Module, tensor: Tensor, place: "Place"
    ) -> Call | None:
        """The same in a forward graph that is run again, with tickets that replace the first."""
        if not self._capture.in_backward:
            return None
        if self._recomputed[0] is not hook:
            self._recomputed = hook, self._capture.new_invocation(is_again=True)
        return self._observe(self._recomputed[1], layer, module, tensor, place)

    def _further_of(self, layer: Layer, number: int) -> Layer:
        """What stands for a further tensor of a layer's output."""
        further = self._further.setdefault((layer.site.number, number), Layer())
        if further.module is not layer.module:
            further.site = replace(layer.site, number=~layer.site.number)
            further.module, further.is_ready = layer.module, False
        return further


@dataclass(eq=False)
class Place:
    """A tensor that a layer returns in a compiled graph.

    One graph may serve several modules of one kind. A parameter tells which: it is an argument of
    the operator.

    Args:
        module: The layer for which the graph was made.
        outer: The outermost module that is called in that graph.
        depth: The depth of the layer inside of the graph.
        further: How many tensors of that output came before.
        is_first: Whether it is the first in its graph.
        number: Its place among all of `places`.
        paths: From the innermost module that holds both: the path of the layer, and that of the
            parameter's owner.
        known: The parameter and the layer by the address of the parameter.
    """

    module: weakref.ref[nn.Module]
    outer: weakref.ref[nn.Module]
    depth: int
    further: int
    is_first: bool = False
    number: int = 0
    paths: tuple[str, str] = ("", "")
    known: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def take(self, x: Tensor, parameter: Tensor | None) -> list[Any]:
        """Tell the watchers of a tensor; return the calls that wait for its gradient."""
        try:
            module = self.module() if parameter is None else self._module_of(parameter)
            if module is None:
                return []
            outer = (self.outer() if module is self.module() else None) or module
            found = [watcher.take(outer, module, x, self) for watcher in list(watchers)]
        except Exception as error:  # the training must continue whatever the graph computes with
            for watcher in watchers:
                watcher.on_problem(f"a layer inside of compiled code: {said(error)}")
            return []
        return [call for call in found if call is not None]

    def _module_of(self, parameter: Tensor) -> nn.Module | None:
        """The layer for which the graph runs now."""
        address = parameter.data_ptr()
        owned, module = self.known.get(address, (_nothing, _nothing))
        known = owned()
        if known is None or known.data_ptr() != address:
            owned, module = self.known[address] = self._find(address)
        found: nn.Module | None = module()
        return found

    def _find(self, address: int) -> tuple[Any, Any]:
        here, there = self.paths
        outer = self.outer()
        models = [root for watcher in watchers for root in watcher.roots()]
        for part in (part for model in (*models, outer) if model for part in model.modules()):
            try:
                owner, module = part.get_submodule(there), part.get_submodule(here)
            except AttributeError:
                continue
            for parameter in owner._parameters.values():
                if parameter is not None and parameter.data_ptr() == address:
                    return weakref.ref(parameter), weakref.ref(module)
        return _nothing, _nothing


def _nothing() -> None:
    return None


def nesting_of(target: Any) -> int:
    """Return 1 for a function that begins a transform of ``torch.func``, -1 for one that ends it.

    In between, what a graph computes with has no values; 0 for any other function.
    """
    name = getattr(target, "__name__", "")
    return bool(name.endswith("_increment_nesting")) - bool(name.endswith("_decrement_nesting"))


watchers: list[InnerLayers] = []
places: list[Place] = []
"""What the numbers in the graphs mean; a graph may be run as long as the process does."""

_calls: dict[int, list[Any]] = {}
"""What waits for the gradients, by the address of the ticket."""


class _Memory(np.ndarray[Any, np.dtype[np.int64]]):
    """The memory of a ticket; the calls are known as long as a tensor uses it."""

    address = 0

    def __del__(self) -> None:
        _calls.pop(self.address, None)


leave_uncompiled(_Memory.__del__)  # it may be called where compiled code runs


def _layer(x: Tensor, parameter: Tensor | None, place: int, before: Tensor | None) -> Tensor:
    """A look at a tensor, as it stands in the graph that is compiled."""
    if isinstance(x, FunctionalTensor | FakeTensor):
        with torch.no_grad():
            ticket: Tensor = OPERATORS.output(x.detach(), parameter, place, before)
        if isinstance(x, FunctionalTensor) and x.requires_grad:
            hook: Any = x.register_hook
            hook(lambda gradient: OPERATORS.gradient(gradient, ticket))
        return ticket
    if watchers and torch.is_grad_enabled():
        places[place].take(x, parameter)
    return _new_ticket(x)


def _output(x: Tensor, parameter: Tensor | None, place: int, before: Tensor | None) -> Tensor:
    """That look in a forward graph."""
    calls: list[Any] = []
    if watchers and not will_recompute():  # then what is saved now will not be used
        with torch.enable_grad():  # autograd sees all of the graph as one function
            calls = places[place].take(x, parameter)
    if not calls:
        return _new_ticket(x)
    memory = _Memory(1, dtype=np.int64)
    ticket = torch.from_numpy(memory)
    memory.address = ticket.data_ptr()
    _calls[memory.address] = calls
    return ticket


def _new_ticket(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(1, dtype=torch.int64, device="cpu")


def _gradient(x: Tensor, ticket: Tensor) -> Tensor:
    """The gradient that has arrived at a tensor, in a backward graph."""
    for call in _calls.get(ticket.data_ptr(), ()):
        call(x)
        if call.capture.discovering:
            call.capture.depths.add_inside(_current_autograd_node(), call)
    return x.clone()


_library: Any = torch.library.Library
_LIBRARY = _library("analyzer", "DEF")
_ARGUMENTS = "(Tensor x, Tensor? parameter, int place, Tensor? before) -> Tensor"
_TAGS = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)
_LIBRARY.define(f"layer{_ARGUMENTS}")
_LIBRARY.define(f"output{_ARGUMENTS}", tags=_TAGS)
_LIBRARY.define("gradient(Tensor x, Tensor ticket) -> Tensor", tags=_TAGS)
_LIBRARY.impl("layer", _layer, "CompositeImplicitAutograd")
_LIBRARY.impl("output", _output, "CompositeExplicitAutograd")
_LIBRARY.impl("gradient", _gradient, "CompositeExplicitAutograd")
torch.library.register_fake("analyzer::output", _new_ticket, lib=_LIBRARY)
torch.library.register_fake(
    "analyzer::gradient", lambda x, ticket: torch.empty_like(x), lib=_LIBRARY
)
OPERATORS: Any = torch.ops.analyzer

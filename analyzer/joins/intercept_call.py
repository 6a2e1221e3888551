"""A call of a model that is running with its joins edited, and what the stack knows about it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import tensors_in
from analyzer.joins.intercept_mode import Edit, EditingMode
from analyzer.joins.intercept_pass import RandomStates
from analyzer.joins.intercept_plan import Place, Places, planned_places

__all__ = ["KnownCalls", "OpenCall", "Refuse", "call_arguments_of", "num_running"]

_MOST_KNOWN = 100_000
Refuse = Callable[[AnalyzerError], BaseException]


class KnownCalls:
    """What is known of the calls of one model.

    Attributes:
        places: Its additions, each a join or none, from all passes that were planned.
        kinds: The kinds of calls that were planned: modes of the modules, shapes of the inputs.
    """

    def __init__(self) -> None:
        self.places: Places = {}
        self.kinds: set[int] = set()


class OpenCall:
    """A call of a model that is running with its joins edited.

    Args:
        root: The model.
        edits: What is done to the operands of its joins.
        known: What earlier calls showed; added to.
        refuse: Makes of an error what is raised.

    Attributes:
        depth: How many calls of the model are inside of each other.
        modules: The modules of the model.
        mode: The mode under which the call is to run.
    """

    def __init__(
        self, root: nn.Module, edits: Sequence[Edit], known: KnownCalls, refuse: Refuse
    ) -> None:
        self.root = root
        self.depth = 1
        # A probe may call a model before the forward of a call that has begun: that one is outside.
        self.level = num_running(root)
        self.modules = set(root.modules())
        self.mode = EditingMode(edits, self._place_of)
        self._known = known
        self._refuse = refuse
        self._states = RandomStates({parameter.device for parameter in root.parameters()})

    def plan_if_new(self) -> None:
        """Find the joins of this call where no call of its kind was planned yet."""
        modes = tuple([module.training for module in self.root.modules()])
        inputs = tensors_in(call_arguments_of(self.root, self.level))
        kind = hash((modes, *[(tensor.shape, tensor.dtype) for tensor in inputs]))
        if kind in self._known.kinds:
            return
        try:
            self._plan()
        except RuntimeError:
            # What can only be called without gradient: additions into a tensor that is given.
            if torch.is_grad_enabled():
                raise
            self._plan(with_grad=False)
        self._known.kinds.add(kind)

    def _plan(self, *, with_grad: bool = True) -> None:
        """Find the joins of this call by a run on copies of its arguments."""
        places = self._known.places
        if len(places) > _MOST_KNOWN:
            places.clear()
        args, kwargs = call_arguments_of(self.root, self.level)
        try:
            found = planned_places(self.root, args, kwargs, self._states, with_grad=with_grad)
        except AnalyzerError as error:
            raise self._refuse(error) from None
        places.update(found)

    def _place_of(self, token: int) -> Place | None:
        """Return the join that an addition is; None for another one."""
        places = self._known.places
        if token not in places:
            if num_running(self.root) < self.level:
                return None  # an interrupt left this mode behind: this is no part of the call
            # The call takes another way than those that were planned: stochastic depth.
            self._plan()
        if token not in places and not torch.is_grad_enabled():
            self._plan(with_grad=False)
        if token not in places:
            raise self._refuse(_not_repeated(_innermost_module(self.root)))
        place = places[token]
        if place is not None and place.is_recomputed and torch.is_grad_enabled():
            raise self._refuse(_recomputed(place))
        return place


def _not_repeated(module: str) -> AnalyzerError:
    return AnalyzerError(
        f"an addition in '{module}' is not there when the same call is repeated, so that it cannot "
        "be told whether it is a skip; expected a model that computes the same from the same "
        "inputs and random states. Make it so, or do not scale its skips."
    )


def _recomputed(place: Place) -> AnalyzerError:
    return AnalyzerError(
        f"the skip of '{place.join.name}' is inside of a checkpoint, which computes it again in "
        "the backward pass, without the change made here; expected activations that are kept. "
        "Turn checkpointing off while skips are scaled."
    )


def _calls_of(module: nn.Module) -> Iterator[FrameType]:
    """Yield the frames of the calls of a module that are running, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    code = nn.Module._call_impl.__code__
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is module:
            yield frame
        frame = frame.f_back


def call_arguments_of(
    module: nn.Module, level: int = 0
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments of a call of a module that is running.

    A hook for all modules does not get the keyword arguments.

    Args:
        module: The module.
        level: Which of its running calls, counted from 1 for the outermost; 0 for the innermost.
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


def _innermost_module(root: nn.Module) -> str:
    """Return the name of the innermost module of a model that is running."""
    names = {module: name for name, module in root.named_modules()}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in names:
            return names[module] or type(root).__name__
        frame = frame.f_back
    return type(root).__name__

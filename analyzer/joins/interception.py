"""Models whose calls run with the operands of their joins changed: `skip_scale`."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
from torch import nn

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import (
    after_calls,
    before_calls,
    call_arguments_of,
    num_running,
    tensors_in,
)
from analyzer.joins.edit_plan import planned_operands
from analyzer.joins.edits import Edit, EditingMode, JoinOperands, OperandsByToken, ScaledShortcuts
from analyzer.joins.model_state import RandomStates, unobserved, unwrapped
from analyzer.joins.modes import is_traced
from analyzer.options import expected_scale

__all__ = ["Interception", "active_edits", "recomputed", "skip_scale"]

_MAX_KNOWN = 100_000
Prepare = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
Refuse = Callable[[AnalyzerError], BaseException]


@contextmanager
def skip_scale(model: nn.Module, alpha: float | Mapping[str, float]) -> Iterator[None]:
    """Multiply the shortcut at every join of a model by a constant, in every call inside.

    ``z = s + b`` becomes ``z = α·s + b``, and the gradient through the shortcut is multiplied by α
    with it. α = 0 replaces s by zeros, also where s is not finite; parameters on a shortcut then
    get gradients of zero. α = 1 changes no bit. Of a concatenation the slice of the fork is scaled.

    An addition is known by what its operands were computed from. Where that is not known yet (in
    the first call, and where a call takes another path: stochastic depth) the model runs once more,
    on copies of the arguments.

    Args:
        model: Any eager model. One inside of a wrapper (DDP) is scaled inside of it. Nested
            contexts of one model multiply.
        alpha: The factor, finite; or factors by join, ``{"layer1": 0, "layer2.0": 0.5}``, for some
            shortcuts: by the name of a join, the path of a module around joins, or a regular
            expression. A join's own name wins, then what was given last.

    Raises:
        ValueError: If ``alpha`` is not finite.
        AnalyzerError: In a call of the model, if one of its joins cannot be intercepted; the
            message names it. If a name stands for none of its joins; the message lists them. If
            it has none.

    Reference:
        He et al. (2016), Identity mappings in deep residual networks, §3.1: a constant factor α on
        every shortcut multiplies the gradient by α a block.
    """
    if (expected := expected_scale(alpha)) is not None:
        raise ValueError(f"alpha is {alpha!r}; expected {expected}.")
    edit = ScaledShortcuts(alpha, expects_joins=True)
    interception = Interception(edit, unwrapped(model))
    interception.start()
    try:
        yield
    finally:
        interception.stop()


class Interception:
    """Edits the operands of the joins in each call of a model; leaves nothing behind.

    Only hooks on the calls of all modules are used, so that a model that is copied or saved
    meanwhile carries nothing of it.

    Args:
        edit: What is done to the operands.
        model: None for every outermost module that is called and has parameters that
            are trained.
        prepare: Called once with each model and the arguments of its first call with gradient,
            before that call.
        refuse: Makes of the error about a join that cannot be intercepted what is raised in the
            call of the model.
    """

    def __init__(
        self,
        edit: Edit,
        model: nn.Module | None = None,
        *,
        prepare: Prepare | None = None,
        refuse: Refuse = lambda error: error,
    ) -> None:
        self.edit = edit
        self.model = None if model is None else unwrapped(model)
        self.refuse = refuse
        self._prepare = prepare
        self._prepared: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._met: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def start(self) -> None:
        """Edit the calls that begin from now on; refuse to where a part of the model is edited."""
        _watch.add(self)

    def stop(self) -> None:
        """Edit no more calls."""
        _watch.remove(self)

    def applies_to(self, module: nn.Module) -> bool:
        """Whether the calls of an outermost module are edited."""
        if self.model is not None:
            return module is self.model
        return any(parameter.requires_grad for parameter in module.parameters())

    def prepare(self, module: nn.Module) -> None:
        """Get a model ready, once, before its first call with gradient."""
        if self._prepare is None or module in self._prepared or not torch.is_grad_enabled():
            return
        self._prepared.add(module)
        self._prepare(module, *call_arguments_of(module))

    def meet(self, call: _OpenCall) -> None:
        """Let the edit know a model's joins; refuse names that none of them has.

        Where any model is edited, another one may have them: that is not refused here.
        """
        if call.root in self._met:
            return
        self._met.add(call.root)
        self.edit.meet(call.join_names())
        if self.model is None or not self.edit.unmatched():
            return
        self.edit.meet(call.names_in_eval())
        if (sentence := self.edit.unmatched()) is not None:
            raise self.refuse(AnalyzerError(sentence))


def active_edits(model: nn.Module) -> list[Edit]:
    """Return what is done now to the joins in each call of a model."""
    return [one.edit for one in _watch.interceptions if one.applies_to(unwrapped(model))]


class _OfThread(threading.local):
    call: _OpenCall | None = None
    is_opening = False


class _Watch:
    """Sees which models are called, for all interceptions of this process."""

    def __init__(self) -> None:
        self.interceptions: list[Interception] = []
        self._handles: list[Any] = []
        self._known: weakref.WeakKeyDictionary[nn.Module, _KnownCalls] = weakref.WeakKeyDictionary()
        self._thread = _OfThread()

    def add(self, interception: Interception) -> None:
        _refuse_overlap(interception, self.interceptions)
        if not self.interceptions:
            self._handles = [before_calls(self._before_call), after_calls(self._after_call)]
        self.interceptions.append(interception)

    def remove(self, interception: Interception) -> None:
        if interception in self.interceptions:
            self.interceptions.remove(interception)
        if not self.interceptions:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._close()
            self._known.clear()

    def _before_call(self, module: nn.Module, args: object) -> None:
        if self._thread.is_opening or is_traced():
            return
        if self._thread.call is not None and self._is_nested(self._thread.call, module):
            return
        chosen = [one for one in self.interceptions if one.applies_to(module)]
        if chosen:
            # Last of all, so that what other hooks do first (a probe between two steps) is no part
            # of the call that is edited.
            self._handles[0].move_to_end()
            self._thread.is_opening = True
            try:
                self._begin(module, chosen)
            finally:
                self._thread.is_opening = False

    def _is_nested(self, call: _OpenCall, module: nn.Module) -> bool:
        """Return whether a module is called inside of an open call; else forget that one."""
        if module is not call.root and module in call.modules:
            return True
        # An interrupt ends a forward pass without its hooks.
        running = num_running(call.root)
        if running > (call.level if module is call.root else call.level - 1):
            call.depth += module is call.root
            return True
        self._close()
        return False

    def _begin(self, root: nn.Module, chosen: list[Interception]) -> None:
        for interception in chosen:
            interception.prepare(root)
        edits = [interception.edit for interception in chosen]
        call = _OpenCall(root, edits, self._known.setdefault(root, _KnownCalls()), chosen[0].refuse)
        call.plan_if_new()
        for interception in chosen:
            interception.meet(call)
        self._thread.call = call
        call.mode.__enter__()  # type: ignore[no-untyped-call]

    def _after_call(self, module: nn.Module, args: object, output: object) -> None:
        call = self._thread.call
        if call is not None and module is call.root and not self._thread.is_opening:
            call.depth -= 1
            if call.depth == 0:
                self._close()

    def _close(self) -> None:
        call, self._thread.call = self._thread.call, None
        if call is not None:
            call.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


_watch = _Watch()


def _refuse_overlap(new: Interception, others: Sequence[Interception]) -> None:
    """Refuse to edit a model and a part of it: the two could not tell their joins apart."""
    if new.model is None:
        return
    modules = set(new.model.modules())
    for other in others:
        if other.model is None or other.model is new.model:
            continue
        if other.model in modules or new.model in set(other.model.modules()):
            raise AnalyzerError(
                f"the shortcuts of '{type(new.model).__name__}' cannot be changed while those of "
                f"'{type(other.model).__name__}' are, because one is part of the other; expected "
                "one of them, or models apart. Leave the other context first."
            )


class _KnownCalls:
    """What earlier calls of one model showed."""

    def __init__(self) -> None:
        self.operands: OperandsByToken = {}
        # Kinds of calls that were planned: modes of the modules, shapes of the inputs.
        self.kinds: set[int] = set()


class _OpenCall:
    """A call of a model that is running with its joins edited."""

    def __init__(
        self, root: nn.Module, edits: Sequence[Edit], known: _KnownCalls, refuse: Refuse
    ) -> None:
        self.root = root
        self.depth = 1  # how many calls of the model are inside of each other
        # A probe may call a model before the forward of a call that has begun: that one is outside.
        self.level = num_running(root)
        self.modules = set(root.modules())
        self.mode = EditingMode(edits, self._operands_of)
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
        operands = self._known.operands
        if len(operands) > _MAX_KNOWN:
            operands.clear()
        args, kwargs = call_arguments_of(self.root, self.level)
        try:
            found = planned_operands(self.root, args, kwargs, self._states, with_grad=with_grad)
        except AnalyzerError as error:
            raise self._refuse(error) from None
        operands.update(found)

    def join_names(self) -> list[str]:
        """Return the names of the joins that calls of this model have."""
        return [which.join.name for which in self._known.operands.values() if which is not None]

    def names_in_eval(self) -> list[str]:
        """Return the names in eval mode: stochastic depth leaves out some joins in training."""
        args, kwargs = call_arguments_of(self.root, self.level)
        with suppress(Exception), unobserved(self.root, in_eval=True):
            found = planned_operands(self.root, args, kwargs, self._states)
            return [which.join.name for which in found.values() if which is not None]
        return []

    def _operands_of(self, token: int) -> JoinOperands | None:
        """Return the join that an addition is; None for another one."""
        operands = self._known.operands
        if token not in operands:
            if num_running(self.root) < self.level:
                return None  # an interrupt left this mode behind: this is no part of the call
            # The call takes a path that no planned call took: stochastic depth.
            self._plan()
        if token not in operands and not torch.is_grad_enabled():
            self._plan(with_grad=False)
        if token not in operands:
            raise self._refuse(_not_repeated(_innermost_module(self.root)))
        which = operands[token]
        if which is not None and which.is_recomputed and torch.is_grad_enabled():
            raise self._refuse(recomputed(which))
        return which


def _not_repeated(module: str) -> AnalyzerError:
    return AnalyzerError(
        f"an addition in '{module}' is not there when the same call is repeated, so that it cannot "
        "be told whether it joins a shortcut; expected a model that computes the same from the "
        "same inputs and random states. Do not scale its shortcuts otherwise."
    )


def recomputed(which: JoinOperands) -> AnalyzerError:
    """Return the error about a join that a checkpoint computes again in the backward pass."""
    return AnalyzerError(
        f"the shortcut of '{which.join.name}' is inside of a checkpoint, which computes it again "
        "in the backward pass, without the change made here; expected activations that are kept. "
        "Turn checkpointing off while shortcuts are scaled."
    )


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

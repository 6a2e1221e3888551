"""Finds the models of an unmodified script while it runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._C._functorch import maybe_current_level

from analyzer.joins.calls import before_calls
from analyzer.joins.modes import is_transformed, unseen
from analyzer.recording.invocation import LivingSet
from analyzer.recording.names import container_of
from analyzer.recording.training import Training

__all__ = ["Discovery", "FirstCall"]

# A program that calls models many times before it trains, if ever, is not slowed down for long.
_MOST_LOOKS = 100


class Discovery:
    """Adds each model to a recording when its first forward pass with gradient begins.

    A model is the outermost module that is called, or the largest module in sight that contains
    it; it must have a parameter that wants a gradient, so that loss modules and frozen teachers
    are none. One that was called in part before it was complete, as in its own constructor, is
    looked at again until the first backward pass.

    Args:
        training: The recording that gets the models.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._known = LivingSet[nn.Module]()
        self._num_looks = 0
        self._has_trained = False
        self._handle = before_calls(self._before_call)
        training.inner.look = self._before_call

    def stop(self) -> None:
        """Look for models no more."""
        self._handle.remove()
        self._training.inner.look = lambda module, args: None

    def look(self, module: nn.Module, args: Any) -> None:
        """Look at a module whose call had begun before there was a recording."""
        self._before_call(module, args)
        capture = self._training.capture
        if capture.is_root(module):
            capture.enter_late(module, args)

    def _before_call(self, module: nn.Module, args: Any) -> None:
        if self._has_trained and module in self._known:
            return  # the usual case of a training that runs
        try:
            with unseen():
                self._look_at(module, args)
        except Exception as error:  # the script must not notice
            self._training.give_up(error)

    def _look_at(self, module: nn.Module, args: Any) -> None:
        capture = self._training.capture
        if self._training.guard.is_off:
            return
        if capture.trainer.is_other():
            capture.trainer.miss()
            return
        if capture.is_inside or (capture.in_backward and not capture.is_computing_again):
            return
        is_known = module in self._known
        self._has_trained = self._training.has_trained
        if is_known and (self._training.has_trained or self._num_looks >= _MOST_LOOKS):
            return
        if not torch.is_grad_enabled():
            return
        if is_transformed():
            if maybe_current_level() is not None:
                self._training.models.note_transformed(module)
            return
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trained:
            return
        if isinstance(module, torch.jit.ScriptModule) and all(
            map(self._training.models.parameters.has, trained)
        ):  # a trace of a model that is recorded
            return
        root = container_of(module)
        parts = set(root.modules())
        if is_known:
            self._num_looks += 1
            if all(part in self._known for part in parts):
                return
        for part in parts:
            self._known.add(part)
        models = self._training.models
        taken = [ref() for ref in models.layers.roots]
        if parts.intersection(taken) and not self._training.has_trained:
            models.complete(root)
        elif root in taken:
            models.look_again(taken.index(root))
        elif not models.meet_module(module):  # no new part of a model that is out of sight
            models.add(root)


class FirstCall:
    """Waits for the first call with gradient of a module with a parameter that wants one.

    Args:
        callback: Called once, with the module and its arguments, as that call begins.
    """

    def __init__(self, callback: Callable[[nn.Module, Any], object]) -> None:
        self._callback = callback
        self._handle = before_calls(self._before_call)

    def stop(self) -> None:
        """Wait no more."""
        self._handle.remove()

    def _before_call(self, module: nn.Module, args: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if any(parameter.requires_grad for parameter in module.parameters()):
            self.stop()
            self._callback(module, args)

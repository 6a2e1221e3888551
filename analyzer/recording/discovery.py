"""Finds the models of an unmodified script while it runs."""

import sys
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from analyzer.joins.calls import before_calls
from analyzer.joins.modes import is_transformed, unseen
from analyzer.recording.training import Training

__all__ = ["Discovery"]

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
        self._known: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._num_looks = 0
        self._handle = before_calls(self._before_call)

    def stop(self) -> None:
        """Look for models no more."""
        self._handle.remove()

    def _before_call(self, module: nn.Module, args: Any) -> None:
        if is_dynamo_compiling():  # traced: in here so that no graph is broken
            return
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
        if capture.is_inside or capture.in_backward:
            return
        is_known = module in self._known
        if is_known and (self._training.has_trained or self._num_looks >= _MOST_LOOKS):
            return
        if not torch.is_grad_enabled() or is_transformed():
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
            if parts <= set(self._known):
                return
        self._known.update(parts)
        was_watching = capture.is_watching
        taken = {ref() for ref in self._training.models.layers.roots}
        if parts & taken and not self._training.has_trained:
            self._training.models.complete(root)
        else:
            self._training.models.add(root)
        if root is module and not was_watching:
            # This call has begun: its hooks were chosen before those of the recording were there.
            capture.enter_late(module, args)


def _visible_modules() -> Iterator[nn.Module]:
    """Modules that variables of ``__main__`` or of the running functions hold."""
    scopes: list[dict[str, Any]] = [vars(sys.modules["__main__"])]
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(("torch.", "analyzer.")):
            scopes.append(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]
    for scope in scopes:
        for value in list(scope.values()):
            if isinstance(value, nn.Module):
                yield value
            elif type(value).__module__ == "__main__" and hasattr(value, "__dict__"):
                yield from (v for v in vars(value).values() if isinstance(v, nn.Module))


def container_of(module: nn.Module) -> nn.Module:
    """Return the largest module in sight that contains this one: the model of which it is a part.

    A script may call ``model.encoder(x)`` and ``model.decoder(h)`` and never ``model(x)``.
    """
    best, best_size = module, -1
    for candidate in _visible_modules():
        parts = list(candidate.modules())
        if len(parts) > best_size and any(part is module for part in parts):
            best, best_size = candidate, len(parts)
    return best

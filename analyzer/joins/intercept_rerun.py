"""A model run again on held arguments with the operands of its joins changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from analyzer.errors import AnalyzerError
from analyzer.joins.intercept import active_edits
from analyzer.joins.intercept_mode import Edit, EditingMode
from analyzer.joins.intercept_pass import RandomStates, arguments_copied, undisturbed
from analyzer.joins.intercept_plan import Place, Places, planned_places
from analyzer.joins.plan import Join
from analyzer.joins.untouched import unwrapped

__all__ = ["Rerun"]


class Rerun:
    """Runs one call of a model again and again, each time from the same random state.

    Weights, buffers, modes, ``.grad``, hooks and the random state stay as they are; what
    `skip_scale` does to the model at this moment is done in these runs too.

    Args:
        model: Any eager model.
        args: Arguments of the call.
        kwargs: Its keyword arguments.
        in_eval: Whether the runs are in eval mode; else in the mode that the model is in.
        is_alone: Whether to run without what `skip_scale` does at this moment.

    Attributes:
        model: The model, outside of wrappers.
        joins: Its joins in this call, forward order.

    Raises:
        AnalyzerError: If one of its joins cannot be intercepted.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        in_eval: bool = False,
        is_alone: bool = False,
    ) -> None:
        self.model = unwrapped(model)
        self._args, self._kwargs = args, kwargs
        self._in_eval = in_eval
        self._outer: list[Edit] = [] if is_alone else active_edits(self.model)
        self._states = RandomStates({parameter.device for parameter in model.parameters()})
        self._places: Places = self._quietly(
            lambda: planned_places(self.model, args, kwargs, self._states)
        )
        found = {p.join.index: p.join for p in self._places.values() if p is not None}
        self.joins: list[Join] = [found[index] for index in sorted(found)]

    def run(
        self,
        edits: Sequence[Edit] = (),
        call: Callable[..., Any] | None = None,
    ) -> Any:
        """Return what a function of the model's output gives, without gradient.

        Args:
            edits: What is done to the operands of the joins.
            call: Called with the arguments in place of the model.
        """
        mode = EditingMode([*self._outer, *edits], self._place_of)

        def once() -> Any:
            positional, named = arguments_copied(self._args, self._kwargs)
            self._states.restore()
            with mode:
                return (call or self.model)(*positional, **named)

        with torch.no_grad():
            return self._quietly(once)

    def _quietly(self, function: Callable[[], Any]) -> Any:
        with undisturbed(self.model):
            if self._in_eval:
                for module in self.model.modules():
                    module.training = False
            return function()

    def _place_of(self, token: int) -> Place | None:
        if token not in self._places:
            raise AnalyzerError(
                f"'{type(self.model).__name__}' does not compute the same when a call is repeated, "
                "so that its skips cannot be told apart; expected the same operations from the "
                "same inputs and random states. Make it so, or leave this measurement out."
            )
        return self._places[token]

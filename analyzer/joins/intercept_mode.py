"""The mode under which a forward pass runs with the operands of its joins changed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from analyzer.joins.intercept_operands import Operands, Tokens, function_name, operand_slots
from analyzer.joins.intercept_plan import Place, holds_tensor

__all__ = ["Edit", "EditingMode", "ScaledShortcuts"]

_RECORDING = ("analyzer.recording.", "analyzer.probes.", "analyzer.joins.")
_MODULE_CALL = "torch.nn.modules.module"


class Edit(Protocol):
    """What is done to the operands of joins."""

    def factor(self, place: Place, slot: int, operand: Tensor) -> float:
        """Return the factor of one operand; 1 leaves it alone, 0 replaces it by zeros."""

    def joined(self, place: Place, result: Tensor) -> None:
        """Look at what a join gave."""


class ScaledShortcuts:
    """Every shortcut multiplied by a constant.

    Args:
        alpha: The factor.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def factor(self, place: Place, slot: int, operand: Tensor) -> float:
        """Return α for the shortcut, 1 for the branch."""
        return self.alpha if slot == place.shortcut else 1.0

    def joined(self, place: Place, result: Tensor) -> None:
        """Do nothing with what the join gave."""


class EditingMode(TorchFunctionMode):
    """Changes the operands of joins in the functions that run under it.

    Args:
        edits: What is done to the operands, in this order.
        place_of: Returns the join that an addition is, by the token of its operands; None for
            other additions.
    """

    def __init__(self, edits: Sequence[Edit], place_of: Callable[[int], Place | None]) -> None:
        super().__init__()
        self._edits = edits
        self._place_of = place_of
        self._tokens = Tokens()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, with other operands where it is a join."""
        named = dict(kwargs or {})
        name = function_name(func)
        if operand_slots(name) is not None and not _is_called_by_recording():
            result = self._add(func, name, args, named)
        else:
            result = func(*args, **named)
        if name == "__setitem__":
            self._tokens.note(args[0], self._tokens.of_call(name, args, named))
        elif holds_tensor(result):
            if not _is_called_by_recording():
                self._tokens.note(result, self._tokens.of_call(name, args, named))
            elif name == "clone":  # a probe may put a copy in the place of a layer's output
                self._tokens.note(result, self._tokens.of_tensor(args[0]))
        return result

    def _add(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        operands = Operands(name, args, named)
        place = self._place_of(self._tokens.of_operands(name, operands))
        if place is None:
            return func(*args, **named)
        for slot in (place.shortcut, *place.branches):
            self._change(place, slot, operands)
        args, named = operands.arguments()
        result = func(*args, **named)
        for edit in self._edits:
            edit.joined(place, result)
        return result

    def _change(self, place: Place, slot: int, operands: Operands) -> None:
        for edit in self._edits:
            operand = operands[slot]
            factor = edit.factor(place, slot, operand)
            if factor == 1.0:
                continue
            # What is added to in place is read elsewhere afterwards: it is itself what changes.
            in_place = operands.is_in_place and slot == 0
            if factor == 0.0:
                everywhere = torch.ones((), dtype=torch.bool, device=operand.device)
                fill = operand.masked_fill_ if in_place else operand.masked_fill
                # Not a product with zero, which is no zero where the operand is not finite.
                operands[slot] = fill(everywhere, 0)
            else:
                operands[slot] = operand.mul_(factor) if in_place else operand * factor


def _is_called_by_recording() -> bool:
    """Return whether a function is called by a hook of this package, not by the model."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        home = str(frame.f_globals.get("__name__", ""))
        is_passed_on = home.startswith("torch.") or frame.f_code.co_name == "__torch_function__"
        is_call = home == _MODULE_CALL and frame.f_code.co_name in ("inner", "_call_impl")
        if is_call or not is_passed_on:
            return home.startswith(_RECORDING)
        frame = frame.f_back
    return False

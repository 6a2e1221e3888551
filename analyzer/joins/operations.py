"""Additions and concatenations as function calls: which arguments are the operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["Operands", "function_name", "operand_slots"]

_TWO, _LERP, _ADDCMUL = (
    ("input", "other"),
    ("input", "end", "weight"),
    ("input", "tensor1", "tensor2"),
)
_LIST = ("tensors",)
_SLOTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "add_", "__add__", "__iadd__", "__radd__"), _TWO),
    **dict.fromkeys(("sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__"), _TWO),
    **dict.fromkeys(("lerp", "lerp_"), _LERP),
    **dict.fromkeys(("addcmul", "addcmul_"), _ADDCMUL),
    **dict.fromkeys(("cat", "concat", "concatenate", "hstack", "vstack", "dstack"), _LIST),
    **dict.fromkeys(("row_stack", "column_stack"), _LIST),
}


def function_name(function: Callable[..., Any]) -> str:
    """Return the name under which torch knows a function, an operator or a property of tensors."""
    name = str(getattr(function, "__name__", type(function).__name__))
    if name == "__get__":
        return f"get {getattr(getattr(function, '__self__', None), '__name__', '')}"
    # An overload of the dispatcher is called "add.Tensor".
    return name.partition(".")[0]


def operand_slots(name: str) -> tuple[str, ...] | None:
    """Return the parameters that hold the operands of an addition; None for other functions."""
    return _SLOTS.get(name)


class Operands:
    """The operands of one call of an addition or a concatenation.

    Args:
        name: Name of the function, one that `operand_slots` knows.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        slots = _SLOTS[name]
        self.is_in_place = (name.endswith("_") and not name.endswith("__")) or name == "__iadd__"
        self.is_in_place |= name == "__isub__"
        self._args, self._kwargs = list(args), dict(kwargs)
        self._is_list = slots == _LIST
        if self._is_list:
            self.values = list(args[0] if args else kwargs["tensors"])
        else:
            self._slots = [s for i, s in enumerate(slots) if i < len(args) or s in kwargs]
            self.values = [
                args[i] if i < len(args) else kwargs[slot] for i, slot in enumerate(self._slots)
            ]

    def __getitem__(self, slot: int) -> Any:
        return self.values[slot]

    def __setitem__(self, slot: int, value: Tensor) -> None:
        self.values[slot] = value

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call with the operands as they are now."""
        args, kwargs = self._args, self._kwargs
        if self._is_list:
            if args:
                args[0] = self.values
            else:
                kwargs["tensors"] = self.values
        else:
            for place, (slot, value) in enumerate(zip(self._slots, self.values, strict=True)):
                if place < len(args):
                    args[place] = value
                else:
                    kwargs[slot] = value
        return tuple(args), kwargs

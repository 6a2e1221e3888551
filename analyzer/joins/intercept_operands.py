"""Additions and concatenations as function calls: which arguments are the operands that are joined.

An operand is known by how it was computed: its *token* is the same in two passes that compute it in
the same way from the same sources, whatever the values are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Operands", "Tokens", "function_name", "operand_slots"]

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
_PLAIN = (int, str, bool, type(None))


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


class Tokens:
    """Tokens of the tensors of one forward pass.

    What no followed function made (an input, a parameter, a constant) is a source; sources are
    told apart by the order in which the pass first uses them.
    """

    def __init__(self) -> None:
        self._tokens: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._num_sources = 0

    def of_call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        """Return the token of a function call with these arguments, before or after it ran."""
        return hash((name, self._of(args), tuple((k, self._of(v)) for k, v in kwargs.items())))

    def of_operands(self, name: str, operands: Operands) -> int:
        """Return the token of an addition: its name and operands, nothing else of the call."""
        return hash((name, self._of(operands.values)))

    def note(self, result: Any, token: int) -> None:
        """Give the tensors in a result the token of the call that made them."""
        if isinstance(result, Tensor):
            self._tokens[id(result)] = (weakref.ref(result), token)
        elif isinstance(result, tuple | list):
            for number, item in enumerate(result):
                self.note(item, hash((token, number)))

    def _of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of_tensor(value)
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, tuple | list):
            return tuple([self._of(item) for item in value])
        if isinstance(value, slice):
            return ("slice", self._of(value.start), self._of(value.stop), self._of(value.step))
        # Numbers may come from the data: they tell no two operands apart.
        return type(value).__name__

    def of_tensor(self, tensor: Tensor) -> int:
        """Return the token of a tensor."""
        entry = self._tokens.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        self._num_sources += 1
        token = hash(("source", self._num_sources))
        self._tokens[id(tensor)] = (weakref.ref(tensor), token)
        return token

"""What each operation is: one table for graphs, for traced functions, and for changed operands.

Autograd shows an operation as a node, a trace as a function; `Operands` are what a function joins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FUNCTION_KINDS", "NODE_KINDS", "OPERANDS", "Operands", "function_name"]


@dataclass(frozen=True)
class _Operation:
    """One row.

    Args:
        kind: ``add`` | ``cat`` | ``product`` (element by element) | ``select`` (of a part) |
            ``view``; everything that is not in the table is ``other``.
        nodes: Names of its autograd nodes.
        functions: Names of its functions; operators and in-place forms are functions too.
        operands: Their parameters that are joined; empty where no join can be changed.
    """

    kind: str
    nodes: str
    functions: str = ""
    operands: tuple[str, ...] = ()


_LIST = ("tensors",)
_TWO = ("input", "other")
_TABLE = (
    _Operation("add", "AddBackward0", "add add_ __add__ __iadd__ __radd__", _TWO),
    _Operation("add", "SubBackward0", "sub sub_ subtract subtract_ __sub__ __isub__", _TWO),
    # Of two tensors the first one's `__sub__` is called: this one has a number on the left.
    _Operation("add", "", "__rsub__"),
    _Operation("add", "AddcmulBackward0", "addcmul addcmul_", ("input", "tensor1", "tensor2")),
    _Operation("add", "LerpBackward0 LerpBackward1", "lerp lerp_", ("input", "end", "weight")),
    _Operation("cat", "CatBackward0", "cat concat concatenate hstack vstack dstack", _LIST),
    _Operation("cat", "", "row_stack column_stack", _LIST),
    # Only nodes: a trace calls these ``other``, so that a gate, or a shortcut of a concatenation
    # through a view, is not found where autograd has no graph.
    _Operation("product", "MulBackward0"),
    _Operation(
        "view",
        "ViewBackward0 UnsafeViewBackward0 ReshapeAliasBackward0 AliasBackward0 "
        "AsStridedBackward0 CloneBackward0 ToCopyBackward0 TransposeBackward0 PermuteBackward0 "
        "SqueezeBackward0 SqueezeBackward1 UnsqueezeBackward0 ExpandBackward0 "
        "ConstantPadNdBackward0",
    ),
    _Operation(
        "select",
        "SelectBackward0 SliceBackward0 SplitBackward0 SplitWithSizesBackward0 UnbindBackward0 "
        "IndexSelectBackward0",
        "__getitem__ select narrow chunk split unbind tensor_split",
    ),
)
NODE_KINDS = {name: row.kind for row in _TABLE for name in row.nodes.split()}
FUNCTION_KINDS = {name: row.kind for row in _TABLE for name in row.functions.split()}
OPERANDS = {name: row.operands for row in _TABLE if row.operands for name in row.functions.split()}


def function_name(function: Callable[..., Any]) -> str:
    """Return the name under which torch knows a function, an operator or a property of tensors."""
    name = str(getattr(function, "__name__", type(function).__name__))
    if name == "__get__":
        return f"get {getattr(getattr(function, '__self__', None), '__name__', '')}"
    # An overload of the dispatcher is called "add.Tensor".
    return name.partition(".")[0]


class Operands:
    """The operands of one call of an addition or a concatenation, a function of `OPERANDS`."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        parameters = OPERANDS[name]
        is_operator = name.endswith("__")
        self.is_in_place = name.startswith("__i") if is_operator else name.endswith("_")
        self._args, self._kwargs = list(args), dict(kwargs)
        self._is_list = parameters == _LIST
        self._where: list[Any] = [
            place if place < len(args) else parameter
            for place, parameter in enumerate(parameters)
            if place < len(args) or parameter in kwargs
        ]
        given = [self._holder(where)[where] for where in self._where]
        self.values: list[Any] = list(given[0]) if self._is_list else given

    def _holder(self, where: int | str) -> Any:
        return self._args if isinstance(where, int) else self._kwargs

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call with the operands as they are now."""
        given = [self.values] if self._is_list else self.values
        for where, value in zip(self._where, given, strict=True):
            self._holder(where)[where] = value
        return tuple(self._args), self._kwargs

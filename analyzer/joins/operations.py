"""What each operation is: one table for graphs, for traced functions, and for changed operands.

Autograd shows an operation as a node, a trace as a function; `Operands` are what a function joins.
Kinds:

- ``add``: a sum of its operands, element by element
- ``sum``: a sum over one axis; ``matmul``: a product that sums over one axis
- ``cat``, ``stack``: operands side by side, along an axis of theirs or along a new one
- ``product``: element by element; ``element``: another function of each element
- ``view``: the same values elsewhere; ``expand``: repeated; ``select``: a part of them
- ``other``: everything that is not in the table, linear maps and norms with parameters among it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "FUNCTION_KINDS",
    "FUSED",
    "KEEPS_ORDER",
    "NODE_KINDS",
    "OPERANDS",
    "Operands",
    "function_name",
    "kind_of_node",
]


@dataclass(frozen=True)
class _Operation:
    """One row.

    Args:
        kind: See above.
        nodes: Names of its autograd nodes.
        functions: Names of its functions; operators and in-place forms are functions too.
        operands: Their parameters that are joined, each with its place among the arguments; empty
            where no join can be changed.
        fused: What all operands but the first one make, before it is added; "" for nothing.
    """

    kind: str
    nodes: str
    functions: str = ""
    operands: str = ""
    fused: str = ""


_LIST = "tensors"
_TWO = "input other"
_TABLE = (
    _Operation("add", "AddBackward0", "add add_ __add__ __iadd__ __radd__", _TWO),
    _Operation("add", "SubBackward0", "sub sub_ subtract subtract_ __sub__ __isub__", _TWO),
    _Operation("add", "RsubBackward0 RsubBackward1", "rsub __rsub__", _TWO),
    _Operation("add", "LerpBackward0 LerpBackward1", "lerp lerp_", "input end weight"),
    _Operation(
        "add", "AddcmulBackward0", "addcmul addcmul_", "input tensor1 tensor2", fused="product"
    ),
    _Operation(
        "add", "AddcdivBackward0", "addcdiv addcdiv_", "input tensor1 tensor2", fused="product"
    ),
    _Operation("add", "AddmmBackward0", "addmm addmm_", "input mat1 mat2", fused="matmul"),
    _Operation("add", "AddmvBackward0", "addmv addmv_", "input mat vec", fused="matmul"),
    _Operation("add", "AddrBackward0", "addr addr_", "input vec1 vec2", fused="product"),
    _Operation(
        "add", "BaddbmmBackward0", "baddbmm baddbmm_", "input batch1 batch2", fused="matmul"
    ),
    _Operation("add", "AddbmmBackward0", "addbmm addbmm_", "input batch1 batch2", fused="matmul"),
    _Operation("add", "IndexAddBackward0", "index_add index_add_", "input source@3"),
    _Operation("add", "ScatterAddBackward0", "scatter_add scatter_add_", "input src@3"),
    _Operation("add", "ScatterReduceBackward0", "scatter_reduce scatter_reduce_", "input src@3"),
    _Operation("add", "IndexPutBackward0", "index_put index_put_", "input values@2"),
    _Operation("add", "PutBackward0", "put put_", "input source@2"),
    _Operation("sum", "SumBackward1 NansumBackward0", "sum nansum"),
    _Operation("sum", "MeanBackward1 CumsumBackward0", "mean cumsum"),
    _Operation("sum", "LinalgVectorNormBackward0 VarBackward0"),
    _Operation("matmul", "MmBackward0 MvBackward0 BmmBackward0 DotBackward0", "matmul mm mv bmm"),
    _Operation("matmul", "ScaledDotProductFlashAttentionForCpuBackward0"),
    _Operation("matmul", "ScaledDotProductFlashAttentionBackward0"),
    _Operation("matmul", "ScaledDotProductEfficientAttentionBackward0"),
    _Operation("matmul", "ScaledDotProductCudnnAttentionBackward0"),
    _Operation("cat", "CatBackward0", "cat concat concatenate hstack vstack dstack", _LIST),
    _Operation("cat", "", "row_stack column_stack", _LIST),
    _Operation("stack", "StackBackward0", "stack", _LIST),
    _Operation("product", "MulBackward0 DivBackward0", "mul mul_ __mul__ __imul__ __rmul__"),
    _Operation("product", "", "multiply div div_ true_divide divide __truediv__ __itruediv__"),
    _Operation(
        "element",
        "AbsBackward0 ClampBackward0 ClampBackward1 ClampMinBackward0 CosBackward0 EluBackward0 "
        "ErfBackward0 ExpBackward0 Expm1Backward0 GeluBackward0 HardswishBackward0 "
        "HardsigmoidBackward0 HardtanhBackward0 HypotBackward0 LeakyReluBackward0 LogBackward0 "
        "Log1PBackward0 LogSigmoidBackward0 MaximumBackward0 MinimumBackward0 MishBackward0 "
        "PowBackward0 PowBackward1 PreluKernelBackward0 ReciprocalBackward0 ReluBackward0 "
        "RsqrtBackward0 SigmoidBackward0 SignBackward0 SiluBackward0 SinBackward0 "
        "SoftplusBackward0 SqrtBackward0 TanBackward0 TanhBackward0 WhereBackward0",
    ),
    _Operation("negative", "NegBackward0", "neg neg_ __neg__ negative"),
    _Operation(
        "view",
        "ViewBackward0 UnsafeViewBackward0 ReshapeAliasBackward0 AliasBackward0 "
        "AsStridedBackward0 CloneBackward0 ToCopyBackward0 TransposeBackward0 PermuteBackward0 "
        "TBackward0 SqueezeBackward0 SqueezeBackward1 SqueezeBackward2 UnsqueezeBackward0 "
        "ConstantPadNdBackward0",
        "view reshape permute transpose squeeze unsqueeze contiguous clone flatten",
    ),
    _Operation("expand", "ExpandBackward0 RepeatBackward0", "expand expand_as repeat"),
    _Operation(
        "select",
        "SelectBackward0 SliceBackward0 SplitBackward0 SplitWithSizesBackward0 UnbindBackward0 "
        "IndexSelectBackward0",
        "__getitem__ select narrow chunk split unbind tensor_split",
    ),
)
NODE_KINDS = {name: row.kind for row in _TABLE for name in row.nodes.split()}
FUNCTION_KINDS = {name: row.kind for row in _TABLE for name in row.functions.split()}
OPERANDS = {
    name: tuple(
        (parameter, int(place or number))
        for number, word in enumerate(row.operands.split())
        for parameter, _, place in [word.partition("@")]
    )
    for row in _TABLE
    if row.operands
    for name in row.functions.split()
}
FUSED = {name: row.fused for row in _TABLE if row.fused for name in row.nodes.split()}
"""Nodes that add to their first operand what they make of the others, with the kind of that."""
KEEPS_ORDER = ("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "ToCopy", "Squeeze", "Unsq")
"""Nodes of views that only name the axes otherwise, by how their names begin: the elements keep
their order."""


_WRITES = ("IndexPutBackward0", "PutBackward0")
_SCATTERS = "ScatterReduceBackward0"
_MAY_WRITE = frozenset((*_WRITES, _SCATTERS))


def kind_of_node(name: str, node: Any) -> str:
    """Return the kind of an autograd node; of those that may write or add, what it does."""
    if name in _MAY_WRITE:
        adds = node._saved_reduce == "sum" if name == _SCATTERS else node._saved_accumulate
        if not adds:
            return "other"
    return NODE_KINDS.get(name, "other")


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
        self._is_list = parameters[0][0] == _LIST
        self._where: list[Any] = [
            place if place < len(args) else parameter
            for parameter, place in parameters
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

"""The operands of a sum, however it is written: by +, over a stacked axis, or as a product.

``einsum``, ``tensordot`` and ``matmul`` over a stacked axis are products of matrices to autograd:
which axis was stacked is followed through the views between.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import dropwhile
from math import prod
from typing import Any

from analyzer.joins.graph import MAJOR, Dataflow, Part
from analyzer.joins.operations import KEEPS_ORDER
from analyzer.joins.trace import Untracked

__all__ = [
    "Edge",
    "Sum",
    "Term",
    "base_of",
    "is_data_product",
    "is_spread",
    "merged",
    "mixing_gates",
    "sum_at",
    "unscaled",
]

Edge = tuple[int, int, int]
_WEIGHT_OF_LERP = 2


@dataclass(slots=True)
class Term:
    """One operand of a sum.

    Args:
        base: The vertex that it is a multiple of.
        reads: The vertices that are added; several where one operand is added in parts.
        entries: Edges by which they are added: (reader, its slot).
    """

    base: int
    reads: tuple[int, ...]
    entries: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Sum:
    """The operands of a sum, one `Term` for each different one.

    Args:
        is_scaled: Whether constants or parameters weight all of them.
        gates: Edges by which data weights all of them, and what they read.
        inner: Vertices between the sum and its operands: partial sums, a stack and views of it.
        shared: Those of them that something else reads, or that such a one reads.
        broadcast: What is added to several elements alike: no operand.
        forks: Per term the nearest vertex that it shares with another term, and `costs`: what lies
            between; filled by the search.
    """

    terms: list[Term]
    is_scaled: bool = False
    gates: dict[Edge, int] = field(default_factory=dict)
    inner: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()
    broadcast: tuple[int, ...] = ()
    forks: list[int] = field(default_factory=list)
    costs: list[int] = field(default_factory=list)


def sum_at(flow: Dataflow, vertex: int) -> Sum | None:
    """Return the operands that a vertex adds, None where it does not add two."""
    kind, found = flow.kinds[vertex], None
    if kind == "add" and len(flow.reads[vertex]) > 1:
        found = (_unstacked(flow, vertex) if flow.has_stack else None) or _added(flow, vertex)
    elif kind in ("sum", "matmul", "select"):
        found = _stacked(flow, vertex)
    if found is None:
        return None
    found.terms = merged(found.terms)
    return found if len(found.terms) + len(found.broadcast) > 1 else None


def merged(terms: list[Term]) -> list[Term]:
    """Return terms with those that are multiples of one vertex as one."""
    by_base: dict[int, Term] = {}
    for term in terms:
        known = by_base.get(term.base)
        if known is not None:
            term = Term(term.base, known.reads + term.reads, known.entries + term.entries)
        by_base[term.base] = term
    return list(by_base.values())


def base_of(flow: Dataflow, vertex: int) -> int:
    """Return the vertex that another one is a constant multiple of, element by element."""
    while flow.kinds[vertex] in ("product", "negative", "add") and len(flow.reads[vertex]) == 1:
        (_, read, number) = flow.reads[vertex][0]
        if flow.elements[vertex] or flow.shape(read, number) != flow.shape(vertex):
            break
        vertex = read
    return vertex


def unscaled(flow: Dataflow, vertex: int) -> tuple[int, dict[Edge, int]]:
    """Return the tensor that a vertex is a multiple of, and the edges to what multiplies it."""
    shape, reads, kinds = flow.shape, flow.reads, flow.kinds
    gates: dict[Edge, int] = {}
    while kinds[vertex] in ("product", "negative") or (
        kinds[vertex] == "add" and len(reads[vertex]) == 1
    ):
        like = {read for _, read, n in reads[vertex] if shape(read, n) == shape(vertex)}
        if len(like) != 1:
            break
        gates |= {(vertex, slot, n): r for slot, r, n in reads[vertex] if r not in like}
        (vertex,) = like
    return vertex, gates


def is_data_product(flow: Dataflow, vertex: int) -> bool:
    """Whether a vertex multiplies two tensors of data and sums over an axis of theirs."""
    if flow.kinds[vertex] == "matmul":
        return len(flow.reads[vertex]) > 1
    if flow.kinds[vertex] != "sum":
        return False
    read = flow.reads[vertex][0][1]
    while flow.kinds[read] == "view" and len(flow.reads[read]) == 1:
        read = flow.reads[read][0][1]
    return flow.kinds[read] == "product" and len(flow.reads[read]) > 1


def is_spread(flow: Dataflow, vertex: int, path: Collection[int]) -> bool:
    """Whether a vertex repeats what it reads of a path, to multiply it by data (outer product)."""
    sizes = [prod(flow.shape(read, n)) for _, read, n in flow.reads[vertex] if read in path]
    is_product = flow.kinds[vertex] == "product" and len(flow.reads[vertex]) > 1
    return is_product and bool(sizes) and max(sizes) < prod(flow.shape(vertex))


def mixing_gates(flow: Dataflow, vertex: int, join: int, written: int) -> dict[Edge, int]:
    """Return the edge to the matrix where a vertex mixes the streams of hyper-connections by data.

    The streams are an axis that the branch does not have: what it wrote (`written`) is repeated
    along it. In attention no branch is; the matrix there is over positions.
    """
    whole, size = prod(flow.shape(join)), _written_size(flow, written)
    count = whole // size if size else 0
    if flow.kinds[vertex] != "matmul" or count < 2 or whole % size:
        return {}
    reads = flow.reads[vertex]
    square = [read for read in reads if flow.shape(*read[1:])[-2:] == (count, count)]
    if len(reads) != 2 or len(square) != 1:
        return {}
    ((slot, read, number),) = square
    return {(vertex, slot, number): read}


def _written_size(flow: Dataflow, vertex: int) -> int:
    """Return how many elements a branch made, before they are repeated and scaled."""
    size = prod(flow.shape(vertex))
    while flow.kinds[vertex] in ("product", "view", "expand") and len(flow.reads[vertex]) == 1:
        _, vertex, number = flow.reads[vertex][0]
        size = min(size, prod(flow.shape(vertex, number)))
    return size


def _added(flow: Dataflow, vertex: int) -> Sum:
    is_lerp = type(flow.vertices[vertex]).__name__.startswith("LerpBackward")
    size = prod(flow.shape(vertex))
    found = Sum([], is_scaled=is_lerp)
    for slot, read, number in flow.reads[vertex]:
        maker = flow.vertices[read]
        if is_lerp and slot == _WEIGHT_OF_LERP:
            found.gates[vertex, slot, number] = read
        elif _own_size(flow, read, number) < size:
            found.broadcast += (read,)
        else:
            is_part = isinstance(maker, Part) and maker.node is flow.vertices[vertex]
            slots = [(read, at) for at, _, _ in flow.reads[read]] if is_part else [(vertex, slot)]
            found.terms.append(Term(base_of(flow, read), (read,), tuple(slots)))
    return found


def _unstacked(flow: Dataflow, vertex: int) -> Sum | None:
    """Return the operands of a chain of additions that adds elements of one stack, and only those.

    ``s[0] + s[1]``, or Python's sum over ``s.unbind()``. None where other things read them, too.
    """
    found = Sum([], is_scaled=type(flow.vertices[vertex]).__name__.startswith("LerpBackward"))
    inner: dict[int, None] = {}
    left = [(read, number) for _, read, number in flow.reads[vertex]]
    while left:
        read, number = left.pop()
        inner[read] = None
        if flow.kinds[read] in ("add", "product", "negative") and flow.num_readers[read] == 1:
            below = [(r, n) for _, r, n in flow.reads[read]]
            is_like = all(flow.shape(*b) == flow.shape(vertex) for b in below)
            if (
                flow.elements[read] >= MAJOR
                or not is_like
                or (len(below) > 1 and flow.kinds[read] != "add")
            ):
                return None
            found.is_scaled |= flow.kinds[read] == "product"
            left += below
        elif (place := _place_in_stack(flow, read, number)) is None:
            return None
        else:
            stack = flow.reads[read][0][1]
            inner[stack] = None
            found.terms += [
                Term(base_of(flow, operand), (operand,), ((stack, at),))
                for at, operand, _ in flow.reads[stack]
                if at == place
            ]
    found.inner = tuple(inner)
    return found


_ELEMENTS = ("SelectBackward0", "UnbindBackward0", "SliceBackward0")


def _place_in_stack(flow: Dataflow, vertex: int, number: int) -> int | None:
    """Return which operand of a stack an element of it is; None where it is none."""
    node: Any = flow.vertices[vertex]
    name = type(node).__name__
    if name not in _ELEMENTS or not flow.reads[vertex]:
        return None
    stack = flow.reads[vertex][0][1]
    below: Any = flow.vertices[stack]
    if type(below).__name__ != "StackBackward0":
        return None
    num_operands, num_axes = len(below.next_functions), len(flow.shape(stack))
    is_unbound = name == "UnbindBackward0"
    most, most_below = (num_operands, 1) if is_unbound else (1, num_operands)
    is_shared = flow.num_readers[vertex] > most or flow.num_readers[stack] > most_below
    if is_shared or (_signed(node._saved_dim) - _signed(below._saved_dim)) % num_axes:
        return None
    if name == "SliceBackward0":
        places = range(num_operands)[_signed(node._saved_start) : _signed(node._saved_end)]
        return places[0] if len(places) == 1 else None
    return number if is_unbound else _signed(node._saved_index) % num_operands


def _own_size(flow: Dataflow, vertex: int, number: int) -> int:
    """Return how many elements a vertex has, before it is repeated."""
    size = prod(flow.shape(vertex, number))
    while len(flow.reads[vertex]) == 1:
        kind, (_, read, other) = flow.kinds[vertex], flow.reads[vertex][0]
        if kind == "expand":
            size = min(size, prod(flow.shape(read, other)))
        elif kind not in ("view", "product", "negative"):
            break
        vertex = read
    return size


def _stacked(flow: Dataflow, vertex: int) -> Sum | None:
    """Return the operands of a sum over an axis that was stacked."""
    if isinstance(flow.vertices[vertex], Untracked):
        return None
    name = type(flow.vertices[vertex]).__name__
    for slot, read, number in flow.reads[vertex]:
        axis = _axis_summed(flow, vertex, name, slot)
        if axis is None:
            continue
        found = Sum([], is_scaled=name in ("MeanBackward1", *_AXES))
        if name == "SelectBackward0":  # of a cumulative sum
            found.inner, (_, read, number) = (read,), flow.reads[read][0]
        stack = _stack_under(flow, read, number, axis, found)
        if stack is None:
            continue
        if name in _AXES:
            others = [other for other in flow.reads[vertex] if other[0] != slot]
            found.gates |= {(vertex, at, number): other for at, other, number in others}
        found.shared = tuple(
            dropwhile(lambda inner: flow.num_readers[inner] == 1, found.inner)  # top down
        )
        for at, operand, _ in flow.reads[stack]:
            found.terms.append(Term(base_of(flow, operand), (operand,), ((stack, at),)))
        return found
    return None


# By the node of a product the axes of its two operands that it sums over.
_AXES = {
    "MmBackward0": (1, 0),
    "MvBackward0": (1, 0),
    "BmmBackward0": (2, 1),
    "DotBackward0": (0, 0),
}


def _axis_summed(flow: Dataflow, vertex: int, name: str, slot: int) -> int | None:
    """Return the one axis of an operand over which a vertex sums; None where there is none."""
    node: Any = flow.vertices[vertex]
    if name in ("SumBackward1", "MeanBackward1", "NansumBackward0"):
        axes: tuple[int, ...] = node._saved_dim or ()
        (_, read, number) = flow.reads[vertex][0]
        size = len(flow.shape(read, number))
        return _signed(axes[0]) % size if len(axes) == 1 and size else None
    if name == "SelectBackward0":
        read = flow.reads[vertex][0][1]
        below: Any = flow.vertices[read]
        if type(below).__name__ != "CumsumBackward0":
            return None
        size = len(node._saved_self_sym_sizes)
        axis, last = _signed(node._saved_dim) % size, _signed(node._saved_index)
        is_last = last in (-1, node._saved_self_sym_sizes[axis] - 1)
        return axis if is_last and _signed(below._saved_dim) % size == axis else None
    if name not in _AXES or slot not in (0, 1):
        return None
    shape: tuple[int, ...] = flow.shape(vertex)
    if name in ("MmBackward0", "BmmBackward0") and shape[-2 if slot else -1] != 1:
        return None  # several sums, as of a linear map
    return _AXES[name][slot]


def _stack_under(flow: Dataflow, vertex: int, number: int, axis: int, into: Sum) -> int | None:
    """Return the vertex that stacked the operands along an axis; note what lies before it."""
    into.inner += (vertex,)
    node: Any = flow.vertices[vertex]
    shape = flow.shape(vertex, number)
    reads = flow.reads[vertex]
    name = type(node).__name__
    if isinstance(node, Untracked) or not reads or axis >= len(shape):
        return None
    if name in ("StackBackward0", "CatBackward0"):
        is_along = _signed(node._saved_dim) % len(shape) == axis
        return vertex if is_along and len(node.next_functions) == shape[axis] else None
    if flow.kinds[vertex] == "product":
        return _stack_in_product(flow, vertex, axis, into)
    _, read, other = reads[0]
    given = flow.shape(read, other)
    if name.startswith(KEEPS_ORDER):
        if _is_cat_apart(flow, read, shape, given, axis):
            into.inner += (read,)
            return read
        place = _same_axis(shape, given, axis)
    elif name == "PermuteBackward0":
        place = _signed(node._saved_dims[axis]) % len(shape)
    elif name == "ExpandBackward0":
        place = axis - len(shape) + len(given)
        place = place if place >= 0 and given[place] == shape[axis] else None
    elif name in ("TransposeBackward0", "TBackward0"):
        dims = (0, 1) if name == "TBackward0" else (node._saved_dim0, node._saved_dim1)
        one, two = (_signed(dim) % len(shape) for dim in dims)
        place = {one: two, two: one}.get(axis, axis)
    else:
        return None
    return None if place is None else _stack_under(flow, read, other, place, into)


def _stack_in_product(flow: Dataflow, vertex: int, axis: int, into: Sum) -> int | None:
    shape = flow.shape(vertex)
    before = into.inner
    for slot, read, number in flow.reads[vertex]:
        given = flow.shape(read, number)
        place = axis - len(shape) + len(given)
        if place < 0 or given[place] != shape[axis]:
            continue
        stack = _stack_under(flow, read, number, place, into)
        if stack is not None:
            into.is_scaled = True
            others = [other for other in flow.reads[vertex] if other[0] != slot]
            into.gates |= {(vertex, at, number): other for at, other, number in others}
            return stack
        into.inner = before
    return None


def _is_cat_apart(
    flow: Dataflow, vertex: int, shape: tuple[int, ...], given: tuple[int, ...], axis: int
) -> bool:
    """Whether an axis of a view counts the operands, all of one size, of a concatenation."""
    node: Any = flow.vertices[vertex]
    if type(node).__name__ != "CatBackward0" or len(node.next_functions) != shape[axis]:
        return False
    along = _signed(node._saved_dim) % len(given)
    sizes = {flow.shape(read, number)[along] for _, read, number in flow.reads[vertex]}
    is_ahead = prod(shape[:axis]) == prod(given[:along])
    return is_ahead and sizes == {given[along] // shape[axis]}


def _same_axis(shape: tuple[int, ...], given: tuple[int, ...], axis: int) -> int | None:
    """Return the axis of a view's source that is one of its own axes."""
    ahead, size = prod(shape[:axis]), shape[axis]
    for place, length in enumerate(given):
        if length == size and prod(given[:place]) == ahead:
            return place
    return None


def _signed(number: int) -> int:
    """Return a number that torch keeps as unsigned."""
    return number - (1 << 64) if number >= 1 << 63 else number

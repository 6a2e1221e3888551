"""A tensor in, its moments out: the one place where recorded statistics are computed.

In host memory by one pass of compiled code where the package was built with a compiler, else by
numpy; on a device by torch, where nothing is waited for (``moments``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch._C._functorch import maybe_current_level

from analyzer.pooling import Column, Groups, Pool
from analyzer.recording import device, moments
from analyzer.recording.hook_classes import IS_COMPILED, prepare
from analyzer.recording.moments import Activation, Gradient, dense, none_dead
from analyzer.recording.plain import OnDevice, plain
from analyzer.storage.writer import Block
from analyzer.vocabulary import quantities_of

if IS_COMPILED:
    from analyzer.recording import _scan

__all__ = [
    "HAS_QUICK_WAYS",
    "IS_COMPILED",
    "ActivationRow",
    "GradientRow",
    "Measured",
    "activation_row",
    "block_of",
    "column_of",
    "gradient_row",
    "gradient_rows",
    "host_activation",
    "host_gradient",
    "host_norm",
    "none_dead",
    "real_values",
]


class ActivationRow(NamedTuple):
    """Moments of one activation; on the host already, or still ``OnDevice``.

    ``dead`` is True for each unit that is zero in the whole tensor, None where there is no unit
    axis. Rows of compiled code have the same names.
    """

    elements: int
    numbers: Any
    dead: NDArray[np.bool_] | None


class GradientRow(NamedTuple):
    """Moments of one gradient."""

    elements: int
    numbers: Any


@dataclass(frozen=True, eq=False)
class Measured:
    """The quantities of many tensors side by side; those of micro-batches merge to these of a step.

    Args:
        table: The table whose rows they become.
        ids: Layer or parameter of each row, ``[rows]``.
        elements: Elements of each tensor, ``[rows]``.
        columns: Values by quantity; masks instead of a count of dead units.
    """

    table: str
    ids: NDArray[np.int32]
    elements: NDArray[np.float64]
    columns: dict[str, Column]

    @classmethod
    def of(
        cls,
        table: str,
        kind: str,
        ids: Sequence[int],
        rows: Sequence[Any],
        scales: Sequence[Any] = (),
    ) -> "Measured":
        """Return the quantities of one kind of tensor: activation, output_gradient or gradient.

        There is a row for each id; all of a parameter weigh the same. What scales with the loss is
        divided by the scale of its row, where it has one.
        """
        names = Activation._fields if kind == "activation" else Gradient._fields
        found = _moments_of(rows, len(names))
        elements, numbers = np.ones(len(ids)) if kind == "gradient" else found[0], found[1:]
        x = SimpleNamespace(elements=elements, **dict(zip(names, numbers, strict=True)))
        everywhere = np.ones(len(ids), dtype=bool)
        factors = np.array([scale or 1.0 for scale in scales])
        columns: dict[str, Column] = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for quantity in quantities_of(table):
                if quantity.moments != kind:
                    continue
                if quantity.pooling.batches == "dead":
                    dead = [row.dead for row in rows]
                    has_units = np.array([mask is not None for mask in dead], dtype=bool)
                    columns[quantity.key] = np.fromiter(dead, object, len(dead)), has_units
                elif callable(quantity.value):
                    columns[quantity.key] = quantity.value(x), everywhere
                else:
                    columns[quantity.key] = getattr(x, quantity.value), everywhere
                if quantity.scales_with_loss and any(scales):
                    columns[quantity.key] = columns[quantity.key][0] / factors, everywhere
        return cls(table, np.array(ids, dtype=np.int32), elements, columns)

    def merge(self, other: "Measured | None" = None) -> "Measured":
        """Return one row an id, in order: micro-batches pooled as if they had been one batch."""
        if other is None and (self.ids[1:] > self.ids[:-1]).all():
            return self
        both = [self] if other is None else [other, self]
        ids = np.concatenate([part.ids for part in both])
        elements = np.concatenate([part.elements for part in both])
        order = np.argsort(ids, kind="stable")
        groups = Groups.of(ids[order])
        if len(groups.firsts) < len(ids):
            # An empty tensor has no moments to add, unless there are no others.
            whole = groups.spread(np.add.reduceat(elements[order], groups.firsts))
            order = order[(elements[order] > 0) | (whole == 0)]
            groups = Groups.of(ids[order], weights=elements[order])

        def read(key: str) -> Column:
            columns = [part.columns[key] for part in both]
            values = np.concatenate([values for values, _ in columns])
            return values[order], np.concatenate([present for _, present in columns])[order]

        pool = Pool(self.table, "batches", groups, read)
        total = np.add.reduceat(elements[order], groups.firsts)
        pooled = {key: pool.column(key) for key in self.columns}
        return Measured(self.table, ids[order][groups.firsts], total, pooled)


def _moments_of(rows: Sequence[Any], count: int) -> NDArray[np.float64]:
    """Return the elements and moments of rows, ``[1 + count, rows]``."""
    if IS_COMPILED and (found := _scan.moments_of(rows)) is not None:
        return np.frombuffer(found, np.float64).reshape(len(rows), 1 + count).T
    numbers = ((row.elements, *row.numbers) for row in rows)
    flat = np.fromiter(chain.from_iterable(numbers), np.float64)  # faster than of tuples
    return flat.reshape(-1, 1 + count).T


def block_of(table: str, parts: Sequence[Measured], columns: str = "all") -> Block:
    """Return the rows of a table for one step: null where a part has no row of an id.

    The first part says which ids there are; columns are ``all`` or ``norms``.
    """
    ids = parts[0].ids
    quantities = quantities_of(table)
    values = np.full((len(ids), len(quantities)), math.nan)
    present = np.zeros(values.shape, dtype=bool)
    for part in parts:
        is_known: Any = slice(None)
        rows: Any = slice(None)
        if part.ids is not ids and not np.array_equal(part.ids, ids):
            is_known = np.isin(part.ids, ids)
            rows = np.searchsorted(ids, part.ids[is_known])
        for place, quantity in enumerate(quantities):
            if quantity.key in part.columns and (columns == "all" or quantity.is_norm):
                found, known = part.columns[quantity.key]
                if quantity.pooling.batches == "dead":
                    found = _num_dead(found)
                values[rows, place], present[rows, place] = found[is_known], known[is_known]
    return Block(table, ids, values, present)


def _num_dead(masks: NDArray[np.object_]) -> NDArray[np.int64]:
    # Layers with as many units share the mask of none, so that few masks are counted.
    distinct = {id(mask): mask for mask in masks if mask is not None}
    counts = {key: np.count_nonzero(mask) for key, mask in distinct.items()}
    return np.array([counts.get(id(mask), 0) for mask in masks])


def column_of(values: Sequence[float | None]) -> Column:
    """Return values, and which of them are not None."""
    present = np.array([value is not None for value in values], dtype=bool)
    return np.array(values, dtype=np.float64), present  # None becomes NaN


# Named here, since compiled code has no other way to know them.
HAS_QUICK_WAYS = prepare(
    Tensor,
    nn.Parameter,
    Tensor.is_neg,
    torch.is_grad_enabled,
    maybe_current_level,
    _len_torch_function_stack,
    vars(torch._C)["DisableTorchFunction"],
    partial(np.frombuffer, dtype=bool),
)


def real_values(x: Tensor) -> Tensor:
    """Return the stored values of x without autograd history; complex ones by magnitude.

    Raises:
        UnreadableError: If x has no values that can be read.
    """
    x = plain(x).detach()
    if x.layout is not torch.strided:
        x = x.coalesce().values() if x.is_sparse else x.values()
    if x.is_complex():
        # No kernel takes the magnitude of halves.
        x = (x.to(torch.complex64) if x.dtype is torch.complex32 else x).abs()
    return x


def activation_row(x: Tensor, unit_axis: int | None) -> ActivationRow:
    """Return the moments of a layer's output of any shape and dtype; never waits for a device.

    Its unit axis is that of channels or features; None where there is none.

    Raises:
        UnreadableError: If x has no values that can be read.
    """
    x = plain(x)
    if x.is_cpu and x.dtype is torch.float32 and x.layout is torch.strided:  # the usual case
        return ActivationRow(x.numel(), *host_activation(x, unit_axis))
    x = real_values(x)
    if x.dtype is torch.bool:
        x = x.to(torch.uint8)
    if x.is_cpu:
        return ActivationRow(x.numel(), *host_activation(x, unit_axis))
    return ActivationRow(x.numel(), device.device_activation(x, unit_axis), None)


def gradient_row(x: Tensor, *, count_zeros: bool = True) -> GradientRow:
    """Return the moments of a gradient; reads only, never waits for a device.

    The elements that a sparse gradient does not store are zeros.

    Raises:
        UnreadableError: If x has no values that can be read.
    """
    x = plain(x)
    count = x.numel()
    if x.is_cpu and x.dtype is torch.float32 and x.layout is torch.strided:  # the usual case
        if x.requires_grad:
            x = x.detach()
        return GradientRow(count, host_gradient(x, count_zeros=count_zeros))
    x = real_values(x)
    stored = x.numel()
    if x.is_cpu:
        return GradientRow(count, _spread(host_gradient(x, count_zeros=count_zeros), stored, count))
    found = device.device_gradient(x, count_zeros=count_zeros)
    if stored == count:
        return GradientRow(count, found)
    later = OnDevice(found.tensors, lambda arrays: _spread(found.finish(arrays), stored, count))
    return GradientRow(count, later)


def gradient_rows(gradients: Sequence[Tensor]) -> list[GradientRow]:
    """Return the rows of many gradients without their zeros: by foreach on a device."""
    rows: list[GradientRow | None] = [None] * len(gradients)
    together: dict[Any, list[int]] = {}
    for i, gradient in enumerate(gradients):
        is_usual = gradient.layout is torch.strided and not gradient.is_complex()
        if gradient.is_cpu or not is_usual or not gradient.numel():
            rows[i] = gradient_row(gradient, count_zeros=False)
        else:
            together.setdefault((gradient.device, gradient.dtype), []).append(i)
    for places in together.values():
        measured = device.device_gradients([gradients[i].detach() for i in places])
        for i, numbers in zip(places, measured, strict=True):
            rows[i] = GradientRow(gradients[i].numel(), numbers)
    return [row for row in rows if row is not None]


def _spread(found: Gradient, stored: int, count: int) -> Gradient:
    """Moments of the stored elements → those of all elements of a sparse tensor."""
    if stored == count:
        return found
    if stored == 0:
        return Gradient(0.0, 0.0, 0.0, float(count), 0.0)
    zeros = found.zeros + (count - stored)
    return found._replace(mean_abs=found.mean_abs * (stored / count), zeros=zeros)


def host_norm(x: Tensor) -> float:
    """Return ``‖x‖₂`` over all elements of a tensor in host memory; NaN for an empty one."""
    elements = x.numel()
    if IS_COMPILED and elements and x.dtype is torch.float32 and x.is_contiguous():
        # float64 holds the square of every float32.
        return math.sqrt(_scan.squares(x.data_ptr(), elements))
    return moments.host_norm(x)


def host_gradient(x: Tensor, *, count_zeros: bool = True) -> Gradient:
    """Return the moments of a gradient in host memory."""
    if IS_COMPILED and x.numel():
        y = _readable(x)
        found = _scan.gradient(y.data_ptr(), y.numel(), y.element_size())
        if found is not None:
            return Gradient._make(found)
    return moments.host_gradient(x, count_zeros=count_zeros)


def host_activation(
    x: Tensor, unit_axis: int | None
) -> tuple[Activation, NDArray[np.bool_] | None]:
    """Return the moments of an activation in host memory, and which units are zero in all of it."""
    if not IS_COMPILED or not x.numel():
        return moments.host_activation(x, unit_axis)
    y = _readable(x)
    numbers = _scan.activation(y.data_ptr(), y.numel(), y.element_size())
    if numbers is None:
        return moments.host_activation(x, unit_axis)
    found = Activation._make(numbers)
    if unit_axis is None:
        return found, None
    axis = unit_axis % x.dim()
    units = x.shape[axis]
    if found.zeros < x.numel() // units:  # too few zeros for even one dead unit
        return found, none_dead(units)
    y = y if y.is_contiguous() else y.contiguous()
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    dead = _scan.zero_units(y.data_ptr(), before, units, after, y.element_size())
    return found, np.frombuffer(dead, dtype=bool)


def _readable(x: Tensor) -> Tensor:
    """Return x, or a copy, as float32 or float64 without gaps in memory."""
    if x.dtype is torch.float32 and x.is_contiguous():
        return x
    x = x.detach()
    if x.dtype is not torch.float32 and x.dtype is not torch.float64:
        x = x.to(torch.float32 if x.is_floating_point() else torch.float64)
    return x if x.is_contiguous() else dense(x)

"""What backward passes of one fate gave: rows of layers, losses and splits, and parameters.

The passes of a step are received by an update together, or are discarded. What they gave is kept
apart until that is known.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analyzer.recording.invocation import Invocation
from analyzer.recording.plain import OnDevice, Transfer, UnreadableError
from analyzer.recording.scaling import Scale, scalar
from analyzer.recording.split_rows import SplitRows
from analyzer.recording.statistics import ActivationRow, GradientRow, Measured
from analyzer.storage.schema import TABLES

__all__ = ["LayerRows", "ParameterRows", "Part", "logged", "loss_of"]

# Copies under way before the finished ones are taken: a step that never ends stays bounded.
_MOST_TRANSFERS = 64
# Rows of micro-batches before they are pooled.
_MOST_ROWS = 4096

_Row = TypeVar("_Row", ActivationRow | None, GradientRow | None)
# A layer, its activation where that is new, its gradient where there is one, and its scale.
_Parts: TypeAlias = tuple[int, ActivationRow | None, GradientRow | None, Scale | None]
_serials = itertools.count()
_NOTHING: dict[int, Any] = {}


@dataclass(slots=True)
class _Pending:
    """Rows of one backward pass that are on their way to the host."""

    transfer: Transfer
    rows: list[_Parts]


@dataclass(slots=True, eq=False)
class LayerRows:
    """What the passes of a part gave of layers: what there is, side by side, and what is moving.

    A tuple for each row would let garbage be collected often; likewise, all that waits for the
    writer's thread is held by few objects.
    """

    activation_layers: list[int] = field(default_factory=list)
    activations: list[ActivationRow] = field(default_factory=list)
    gradient_layers: list[int] = field(default_factory=list)
    gradients: list[GradientRow] = field(default_factory=list)
    scales: list[Scale | None] = field(default_factory=list)
    _pooled_activations: Measured | None = None
    _pooled_gradients: Measured | None = None
    _pending: list[_Pending] = field(default_factory=list)

    def add(
        self,
        layer: int,
        activation: ActivationRow | None,
        gradient: GradientRow | None,
        scale: Scale | None,
    ) -> None:
        """Add what there is of a layer."""
        if activation is not None:
            self.activation_layers.append(layer)
            self.activations.append(activation)
        if gradient is not None:
            self.gradient_layers.append(layer)
            self.gradients.append(gradient)
            self.scales.append(scale)

    def add_moving(self, moving: list[_Parts], scale: Scale | None) -> None:
        """Start to copy rows, or a scale, that are on a device; take those that have arrived."""
        self._pending.append(_Pending(Transfer(_tensors_of(moving, scale)), moving))
        while len(self._pending) > _MOST_TRANSFERS and self._pending[0].transfer.is_done():
            self._receive(self._pending.pop(0))

    def stay_bounded(self) -> None:
        """Pool the rows where there are many."""
        pooled = 0 if self._pooled_activations is None else len(self._pooled_activations.ids)
        if max(len(self.activations), len(self.gradients)) > _MOST_ROWS + 4 * pooled:
            self._pool()

    def extend(self, other: "LayerRows") -> None:
        """Add all rows of another part."""
        self.activation_layers += other.activation_layers
        self.activations += other.activations
        self.gradient_layers += other.gradient_layers
        self.gradients += other.gradients
        self.scales += other.scales
        self._pending += other._pending
        if other._pooled_activations is not None:
            self._pooled_activations = other._pooled_activations.merge(self._pooled_activations)
        if other._pooled_gradients is not None:
            self._pooled_gradients = other._pooled_gradients.merge(self._pooled_gradients)

    def measured(self) -> tuple[Measured | None, Measured | None]:
        """Return activations and gradients of layers; waits for those that are on their way."""
        while self._pending:
            self._receive(self._pending.pop(0))
        self._pool()
        return self._pooled_activations, self._pooled_gradients

    def _pool(self) -> None:
        """Pool the rows of micro-batches with those that were pooled before."""
        if self.activations:
            measured = Measured.of(
                "layer_stats", "activation", self.activation_layers, self.activations
            )
            self._pooled_activations = measured.merge(self._pooled_activations)
            self.activation_layers, self.activations = [], []
        if self.gradients:
            measured = Measured.of(
                "layer_stats", "output_gradient", self.gradient_layers, self.gradients, self.scales
            )
            self._pooled_gradients = measured.merge(self._pooled_gradients)
            self.gradient_layers, self.gradients, self.scales = [], [], []

    def _receive(self, pending: _Pending) -> None:
        arrays = iter(pending.transfer.arrays())
        scale = pending.rows[0][3]
        if isinstance(scale, Tensor):
            scale = float(next(arrays)[0])
        for layer, activation, gradient, _ in pending.rows:
            row = _arrived(activation, arrays)
            self.add(layer, row, _arrived(gradient, arrays), scale)


@dataclass(slots=True, eq=False)
class ParameterRows:
    """What a step knows of its parameters, by number; on the host, or still on the device.

    Side by side for the same reason.

    Attributes:
        norm: None for a parameter that was met and not read.
        scale: By how much gradients are too large; ``scale_before_clipping``: their norm before.
    """

    gradient: dict[int, GradientRow | None] = field(default_factory=dict)
    norm: dict[int, float | Tensor | None] = field(default_factory=dict)
    update_norm: dict[int, float | Tensor | None] = field(default_factory=dict)
    norm_before_clipping: dict[int, float | Tensor | None] = field(default_factory=dict)
    scale: dict[int, Scale | None] = field(default_factory=dict)
    scale_before_clipping: dict[int, Scale | None] = field(default_factory=dict)

    def columns(self) -> Iterator[dict[int, Any]]:
        """Yield what there is, by parameter."""
        yield from (getattr(self, name) for name in self.__slots__)

    def numbers(self) -> set[int]:
        """Return the parameters of which anything is known."""
        return self.norm.keys() | self.norm_before_clipping.keys()

    def __contains__(self, number: object) -> bool:
        return number in self.norm or number in self.norm_before_clipping

    def __bool__(self) -> bool:
        return bool(self.norm or self.norm_before_clipping)

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget some of them."""
        for column in self.columns() if self else ():
            for number in numbers:
                column.pop(number, None)

    def take(self, other: "ParameterRows", numbers: Set[int]) -> None:
        """Replace some of them, or add them, by what another knows."""
        self.drop(numbers)
        for mine, theirs in zip(self.columns(), other.columns(), strict=True):
            mine.update((number, theirs[number]) for number in numbers if number in theirs)

    def settled(self) -> "ParameterRows":
        """Return the same, to be read only: columns that are empty are one object for all."""
        return ParameterRows(*[column or _NOTHING for column in self.columns()])

    def clear(self) -> None:
        """Forget all."""
        for column in self.columns():
            column.clear()


def logged(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a user logs as plain numbers and texts; tensors stay where they are.

    Raises:
        ValueError: If a name is a column that the recorder writes itself, or a tensor has not one
            element.
        TypeError: If a value is of another type.
    """
    for name, value in values.items():
        if name in TABLES["steps"].names and name != "epoch":
            raise ValueError(
                f"{name!r} is a column that the recorder writes itself; choose another name"
            )
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(
                    f"{name!r} is a tensor of shape {list(value.shape)}; expected one element"
                )
        elif not isinstance(value, float | int | bool | str) and not hasattr(value, "item"):
            raise TypeError(
                f"{name!r} is a {type(value).__name__}; expected a number, a text or a "
                "one-element tensor"
            )
    return {
        name: value if isinstance(value, Tensor | str | bool) else _number(value)
        for name, value in values.items()
    }


def _number(value: Any) -> float | int:
    plain = value.item() if hasattr(value, "item") else value
    return int(plain) if isinstance(plain, int) else float(plain)


@dataclass(slots=True, eq=False)
class Part:
    """The passes of a step that share their fate.

    Attributes:
        given: The parameters that got a gradient, by number; None where nobody looked.
        roots: The root models that were called, by number.
        scale: By how much the loss of its last pass was multiplied; None where it was not.
        num_backward: How many passes.
        losses: Values of their roots, each with its scale; None for a root that is not a scalar.
        parameters: The parameters as they were after the last pass, for an update by hand.
        is_changed: Whether weights changed after the last pass without an optimizer.
        is_cleared: Whether its gradients were cleared; perhaps a flag that is still on a device.
        is_kept: Whether its gradients are where they cannot be cleared, for a later pass.
        notes: What was noted before torch clipped its gradients; ``clipped``: whether it did.
        logged: Extra columns.
        layers: What the passes gave of layers.
        started: When its first pass began.
    """

    given: frozenset[int] | None = None
    roots: set[int] = field(default_factory=set)
    scale: Scale | None = None
    num_backward: int = 0
    losses: list[tuple[float | Tensor, Scale | None] | None] = field(default_factory=list)
    splits: SplitRows = field(default_factory=SplitRows)
    parameters: ParameterRows = field(default_factory=ParameterRows)
    is_changed: bool = False
    is_cleared: bool | Tensor = False
    is_kept: bool = False
    notes: ParameterRows = field(default_factory=ParameterRows)
    clipped: bool = False
    logged: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    layers: LayerRows = field(default_factory=LayerRows)
    _serial: int = field(default_factory=lambda: next(_serials))
    _kept: dict[Invocation, Scale | None] = field(default_factory=dict)

    def add_loss(self, roots: Sequence[Any], scale: Scale | None) -> None:
        """Add the roots of a backward pass; a root that is not a scalar makes the loss unknown."""
        for root in roots:
            self.losses.append(loss_of(root, scale))

    def keep(self, invocation: Invocation, scale: Scale | None) -> None:
        """Pool this invocation when the step closes: its graph may be used once more."""
        self._kept[invocation] = scale

    def keeps(self, invocation: Invocation) -> bool:
        """Whether the invocation waits for the end of the step."""
        return invocation in self._kept

    def fold(self, invocation: Invocation, scale: Scale | None) -> None:
        """Pool the calls of one invocation, whose backward pass has ended, into the rows.

        Args:
            invocation: The forward pass.
            scale: By how much its gradients are too large.
        """
        moving: list[_Parts] = []
        for call in invocation.take_calls():
            layer, activation, gradient = call.layer, call.activation, call.gradient
            call.kept = call.gradient = None
            call.is_pooled = True
            is_unused = gradient is None and call.site.number < 0  # a further output tensor
            if activation is None or is_unused:
                continue
            if call.step == self._serial:  # a second pass met another part of the same graph
                activation = None
            call.step = self._serial
            if isinstance(scale, Tensor) or _is_moving(activation) or _is_moving(gradient):
                moving.append((layer, activation, gradient, scale))
            else:
                self.layers.add(layer, activation, gradient, scale)
        if moving:
            self.layers.add_moving(moving, scale)
        self.layers.stay_bounded()

    def take_pass(self, passed: "Part") -> None:
        """Take over a pass of which no rows are there yet."""
        if self.given is not None:
            self.given = None if passed.given is None else self.given | passed.given
        self.roots |= passed.roots
        self.num_backward += passed.num_backward
        self.losses += passed.losses
        if passed.splits is not self.splits:
            self.splits.absorb(passed.splits)

    def absorb(self, other: "Part") -> None:
        """Take over what another part has: the two are received by one update."""
        self.fold_kept()
        other.fold_kept()
        self.take_pass(other)
        self.parameters.take(other.parameters, other.parameters.numbers())
        self.notes.take(other.notes, other.notes.numbers())
        self.clipped |= other.clipped
        self.logged |= other.logged
        self.layers.extend(other.layers)

    def fold_kept(self) -> None:
        """Pool the invocations that wait for the end of the step: no pass uses them any more."""
        for invocation, scale in self._kept.items():
            self.fold(invocation, scale)
        self._kept.clear()

    def end(self) -> None:
        """No later pass belongs to this part, whatever graph it uses."""
        self.fold_kept()
        self.splits.kept.clear()

    def discard(self) -> None:
        """Forget what is held of graphs that may be used once more."""
        for invocation in self._kept:
            for call in invocation.take_calls():
                call.kept = call.gradient = None
                call.is_pooled = True
        self._kept.clear()


def loss_of(root: Any, scale: Scale | None) -> tuple[float | Tensor, Scale | None] | None:
    """Return the value of a root, with its scale; None where it has no one value."""
    if isinstance(root, Tensor) and root.numel() == 1 and not root.is_complex():
        with suppress(UnreadableError):
            return scalar(root), scale
    return None


def _is_moving(row: ActivationRow | GradientRow | None) -> bool:
    # Compiled rows are not tuples, and make their numbers when they are asked for.
    return isinstance(row, tuple) and isinstance(row.numbers, OnDevice)


def _tensors_of(rows: Sequence[_Parts], scale: Scale | None) -> list[Tensor]:
    tensors: list[Tensor] = [scale] if isinstance(scale, Tensor) else []
    for _, *parts, _ in rows:
        for part in parts:
            if part is not None and _is_moving(part):
                tensors.extend(part.numbers.tensors)
    return tensors


def _arrived(row: _Row, arrays: Iterator[NDArray[np.float64]]) -> _Row:
    """The row with its numbers on the host; for that, the next arrays are taken."""
    if row is None or not isinstance(row.numbers, OnDevice):
        return row
    found = row.numbers.finish([next(arrays) for _ in row.numbers.tensors])
    if isinstance(row, GradientRow):
        return row._replace(numbers=found)
    numbers, dead = found
    return row._replace(numbers=numbers, dead=dead)

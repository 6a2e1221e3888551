"""One step while it is open, and its rows once it is closed."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analyzer.pooling import total_norm
from analyzer.recording.buffer import OnDevice, Transfer
from analyzer.recording.invocation import Invocation
from analyzer.recording.parameters import ParameterRow
from analyzer.recording.plain import UnreadableError, plain
from analyzer.recording.splits import SplitRows
from analyzer.recording.statistics import ActivationRow, GradientRow, Measured, block_of, column_of
from analyzer.storage.writer import Block, StepRecord

__all__ = ["OpenStep", "scalar"]

# Copies under way before the finished ones are taken: a step that never ends stays bounded.
_MOST_TRANSFERS = 64
# Rows of micro-batches before they are pooled.
_MOST_ROWS = 4096


def scalar(value: Tensor) -> float | Tensor:
    """Return a one-element tensor as a float, or as a copy that stays on its device.

    Raises:
        UnreadableError: If it has no value that can be read.
    """
    value = plain(value).detach().reshape(())
    if value.is_cpu:
        return float(value.double().numpy())
    return value.clone()


# A layer, its activation where that is new, and its gradient where there is one.
_Row = TypeVar("_Row", ActivationRow | None, GradientRow | None)
_Parts: TypeAlias = tuple[int, ActivationRow | None, GradientRow | None]


@dataclass(slots=True)
class _Pending:
    """Rows of one backward pass that are on their way to the host."""

    transfer: Transfer
    rows: list[_Parts]


@dataclass(slots=True)
class OpenStep:
    """What is known of the current step; ``recorded`` where layers and parameters are, too."""

    index: int
    recorded: bool
    started: float = field(default_factory=time.perf_counter)
    num_backward: int = 0
    losses: list[float | Tensor | None] = field(default_factory=list)
    parameters: dict[int, ParameterRow] = field(default_factory=dict)
    learning_rates: dict[tuple[int, int], Any] = field(default_factory=dict)
    logged: dict[str, Any] = field(default_factory=dict)
    updated: bool = False
    clipped: bool = False
    skipped: bool = False
    evaluations: int = 0
    splits: SplitRows = field(default_factory=SplitRows)
    _rows: list[_Parts] = field(default_factory=list)
    _activations: Measured | None = None
    _gradients: Measured | None = None
    _pending: list[_Pending] = field(default_factory=list)
    _kept: dict[Invocation, None] = field(default_factory=dict)

    def add_loss(self, roots: Sequence[Any]) -> None:
        """Add the roots of a backward pass; a root that is not a scalar makes the loss unknown."""
        for root in roots:
            loss = None
            if isinstance(root, Tensor) and root.numel() == 1 and not root.is_complex():
                with suppress(UnreadableError):
                    loss = scalar(root)
            self.losses.append(loss)

    def keep(self, invocation: Invocation) -> None:
        """Pool this invocation when the step closes: its graph may be used once more."""
        self._kept[invocation] = None

    def keeps(self, invocation: Invocation) -> bool:
        """Whether the invocation waits for the end of the step."""
        return invocation in self._kept

    def fold(self, invocation: Invocation) -> None:
        """Pool the calls of one invocation, whose backward pass has ended, into the step's rows."""
        moving: list[_Parts] = []
        for call in invocation.take_calls():
            layer, activation, gradient = call.layer, call.activation, call.gradient
            call.kept = call.gradient = None
            call.is_pooled = True
            is_unused = gradient is None and call.site.number < 0  # a further output tensor
            if activation is None or is_unused:
                continue
            if call.step == self.index:  # a second pass met another part of the same graph
                activation = None
            call.step = self.index
            if _is_moving(activation) or _is_moving(gradient):
                moving.append((layer, activation, gradient))
            else:
                self._rows.append((layer, activation, gradient))
        if moving:
            self._pending.append(_Pending(Transfer(_tensors_of(moving)), moving))
            while len(self._pending) > _MOST_TRANSFERS and self._pending[0].transfer.is_done():
                self._receive(self._pending.pop(0))
        pooled = 0 if self._activations is None else len(self._activations.ids)
        if len(self._rows) > _MOST_ROWS + 4 * pooled:
            self._pool()

    def _pool(self) -> None:
        """Pool the rows of micro-batches with those that were pooled before."""
        activations = [(layer, row) for layer, row, _ in self._rows if row is not None]
        gradients = [(layer, row) for layer, _, row in self._rows if row is not None]
        self._rows.clear()
        if activations:
            measured = Measured.of("layer_stats", "activation", activations)
            self._activations = measured.merge(self._activations)
        if gradients:
            measured = Measured.of("layer_stats", "output_gradient", gradients)
            self._gradients = measured.merge(self._gradients)

    def _receive(self, pending: _Pending) -> None:
        arrays = iter(pending.transfer.arrays())
        for layer, activation, gradient in pending.rows:
            row = _arrived(activation, arrays)
            self._rows.append((layer, row, _arrived(gradient, arrays)))

    def seal(
        self, columns: str, is_written: Callable[[int], bool] | None, seconds: float
    ) -> Callable[[], StepRecord]:
        """Close the step: start the last copies, return what makes its rows on another thread.

        Args:
            columns: ``all`` or ``norms``.
            is_written: Whether the rows of a parameter are wanted; None where all are.
            seconds: Wall time of the step.
        """
        for invocation in self._kept:
            self.fold(invocation)
        self._kept.clear()
        finish = time.time()
        scalars = _Scalars()
        losses = [None if loss is None else scalars.put(loss) for loss in self.losses]
        rates = {key: scalars.put(rate) for key, rate in self.learning_rates.items()}
        logged = {key: scalars.put(value) for key, value in self.logged.items()}
        parameters = {number: _slots(row, scalars) for number, row in self.parameters.items()}
        scalars.start()
        make_splits = self.splits.seal()

        def make() -> StepRecord:
            for pending in self._pending:
                self._receive(pending)
            read = scalars.read
            values = {
                number: row if type(row[1]) is float else [read(slot) for slot in row]
                for number, row in parameters.items()
            }
            step: dict[str, Any] = {
                "step": self.index,
                "loss": sum(map(read, losses)) if losses and None not in losses else None,
                "num_backward": self.num_backward,
                "skipped": self.skipped,
                "seconds": seconds,
                "time": int(finish * 1e6),
                **_norm_and_clipping(values, self.clipped),
                **_rates({key: read(slot) for key, slot in rates.items()}),
                **{key: read(slot) for key, slot in logged.items()},
            }
            blocks = []
            self._pool()
            if self.recorded and self._activations is not None:
                parts = [self._activations, *([self._gradients] if self._gradients else [])]
                blocks.append(block_of("layer_stats", parts, columns))
            if is_written is not None:
                values = {number: row for number, row in values.items() if is_written(number)}
            if self.recorded and values:
                blocks.append(_parameter_block(values, columns))
            if (split_rows := make_splits()) is not None:
                blocks.append(split_rows)
            return StepRecord(step, blocks)

        return make


class _Scalars:
    """Single numbers, some of them still on a device, read together."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._transfer: Transfer | None = None
        self._arrays: list[NDArray[np.float64]] | None = None

    def put(self, value: Any) -> Any:
        """Return the value itself, or where to read it later."""
        if isinstance(value, OnDevice):
            first = len(self._tensors)
            self._tensors.extend(value.tensors)
            return _Slot(first, len(value.tensors), value.finish)
        if not isinstance(value, Tensor):
            return value
        self._tensors.append(value)
        return _Slot(len(self._tensors) - 1, 1, lambda arrays: float(arrays[0][0]))

    def start(self) -> None:
        """Start to copy what is on a device."""
        if self._tensors:
            self._transfer = Transfer(self._tensors)
        self._tensors = []

    def read(self, value: Any) -> Any:
        """Return what was put; waits for the copy."""
        if not isinstance(value, _Slot):
            return value
        if self._arrays is None and self._transfer is not None:
            self._arrays = self._transfer.arrays()
        assert self._arrays is not None
        return value.finish(self._arrays[value.first : value.first + value.length])


@dataclass(frozen=True, slots=True)
class _Slot:
    first: int
    length: int
    finish: Callable[[Any], Any]


def _slots(row: ParameterRow, scalars: _Scalars) -> list[Any]:
    """The numbers of a parameter: gradient row, norm, update norm, norm before clipping."""
    gradient = None if row.gradient is None else row.gradient.numbers
    numbers = [gradient, row.norm, row.update_norm, row.norm_before_clipping]
    if type(row.norm) is float:  # in host memory: all is there
        return numbers
    return [scalars.put(number) for number in numbers]


def _is_moving(row: ActivationRow | GradientRow | None) -> bool:
    # Compiled rows are not tuples, and make their numbers when they are asked for.
    return isinstance(row, tuple) and isinstance(row.numbers, OnDevice)


def _tensors_of(rows: Sequence[_Parts]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for _, *parts in rows:
        for part in parts:
            if part is not None and isinstance(part.numbers, OnDevice):
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


def _norm_and_clipping(values: dict[int, list[Any]], clipped: bool) -> dict[str, float | None]:
    """``gradient_norm`` before clipping, and ``clip_factor``, over all parameters read."""
    received = {number: row[0][0] for number, row in values.items() if row[0] is not None}
    if not received:
        return {"gradient_norm": None, "clip_factor": None}
    before = [
        norm if values[number][3] is None else values[number][3]
        for number, norm in received.items()
    ]
    total = total_norm(before)
    if not clipped:
        return {"gradient_norm": total, "clip_factor": 1.0}
    after = total_norm(list(received.values()))
    return {"gradient_norm": total, "clip_factor": 1.0 if after == total else after / total}


def _rates(rates: dict[tuple[int, int], float]) -> dict[str, float]:
    return {
        "learning_rate" if place == 0 else f"learning_rate_{place}": float(rate)
        for place, rate in enumerate(rates.values())
    }


def _parameter_block(rows: dict[int, list[Any]], columns: str) -> Block:
    numbers = sorted(rows)
    ids = np.array(numbers, dtype=np.int32)
    norms = {
        "norm": column_of([rows[number][1] for number in numbers]),
        "update_norm": column_of([rows[number][2] for number in numbers]),
    }
    parts = [Measured("parameter_stats", ids, np.ones(len(ids)), norms)]
    gradients = [(number, rows[number][0]) for number in numbers if rows[number][0] is not None]
    if gradients:
        parts.append(Measured.of("parameter_stats", "gradient", gradients))
    return block_of("parameter_stats", parts, columns)

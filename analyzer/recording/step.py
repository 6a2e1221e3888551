"""One step while it is open, and its rows once it is closed."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analyzer.pooling import total_norm
from analyzer.recording.part import LayerRows, ParameterRows, Part
from analyzer.recording.plain import OnDevice, Transfer
from analyzer.recording.scaling import Scale
from analyzer.recording.split_rows import pooled_splits
from analyzer.recording.statistics import GradientRow, Measured, block_of, column_of
from analyzer.storage.schema import SHARE
from analyzer.storage.writer import Block, StepRecord

__all__ = ["OpenStep"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(slots=True)
class OpenStep:
    """What is known of the current step; ``recorded`` where layers and parameters are, too.

    Attributes:
        parts: What its backward passes gave, apart where they may not share their fate.
        num_backward: All passes, discarded ones included.
        parameters: What the optimizers receive.
        skipped: Whether a gradient scaler skipped its updates; flags may still be on a device.
        has_begun_update: Whether an optimizer stepped inside of the pass that is running.
    """

    index: int
    recorded: bool
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    parts: list[Part] = field(default_factory=list)
    num_backward: int = 0
    num_discarded: int = 0
    losses: list[tuple[float | Tensor, Scale | None] | None] = field(default_factory=list)
    parameters: ParameterRows = field(default_factory=ParameterRows)
    learning_rates: dict[tuple[int, int], Any] = field(default_factory=dict)
    logged: dict[str, Any] = field(default_factory=dict)
    updated: bool = False
    has_begun_update: bool = False
    clipped: bool = False
    skipped: list[float | Tensor] = field(default_factory=list)
    scale: Scale | None = None
    evaluations: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing has happened that makes a row."""
        return not (self.parts or self.updated)

    def has_read(self, number: int) -> bool:
        """Whether a parameter was read: its row may hold no more than a note on its clipping."""
        return self.parameters.norm.get(number) is not None

    def loss(self) -> float | None:
        """The sum of the losses so far, unscaled; waits for a device."""
        losses = [*self.losses, *(loss for part in self.parts for loss in part.losses)]
        return _total(losses, lambda value: None if value is None else float(value))

    def discard(self, part: Part) -> None:
        """Take a part out of the step: no update receives it."""
        self.parts.remove(part)
        self.num_discarded += part.num_backward
        self.logged |= part.logged
        part.discard()

    def set_aside(self, part: Part) -> None:
        """What was noted of gradients before they were clipped belongs to this part alone."""
        if self.parameters:
            part.notes, self.parameters = self.parameters, ParameterRows()
            part.clipped, self.clipped = self.clipped, False

    def unite(self) -> None:
        """Make one part of all those of which it is known that they are not cleared."""
        received = [part for part in self.parts if part.is_cleared is False]
        for part in received[1:]:
            self.parts.remove(part)
            received[0].absorb(part)

    def receive_by_hand(self) -> None:
        """An update by hand receives what is not cleared, as it was after the last pass."""
        for part in [part for part in self.parts if part.is_cleared is True]:
            self.discard(part)
        self.unite()
        for part in self.parts:
            self.set_aside(part)
            self.parameters, self.clipped = part.parameters, part.clipped
            rows, notes = self.parameters, part.notes
            for number in rows.numbers() & notes.numbers():
                rows.norm_before_clipping[number] = notes.norm_before_clipping.get(number)
                rows.scale_before_clipping[number] = notes.scale_before_clipping.get(number)

    def seal(
        self,
        columns: str,
        is_written: Callable[[int], bool] | None,
        seconds: float,
        weights: Mapping[int, float],
    ) -> Callable[[], StepRecord]:
        """Close the step: start the last copies, return what makes its rows on another thread.

        Args:
            columns: ``all`` or ``norms``.
            is_written: Whether the rows of a parameter are wanted; None where all are.
            seconds: Wall time of the step.
            weights: Those of parameters that this process has a part of; empty without any.
        """
        for part in self.parts:
            part.fold_kept()
            self.logged |= part.logged
        scalars = _Scalars()
        closed = _Closed(
            index=self.index,
            recorded=self.recorded,
            clipped=self.clipped,
            num_backward=self.num_backward,
            num_discarded=self.num_discarded,
            columns=columns,
            is_written=is_written,
            weights=weights,
            seconds=seconds,
            time=int(time.time() * 1e6),
            scalars=scalars,
            parts=[_sealed(part, scalars) for part in self.parts],
            rates=[scalars.put(rate) for rate in self.learning_rates.values()],
            logged={key: scalars.put(value) for key, value in self.logged.items()} or _NOTHING,
            parameters=_arriving(self.parameters, scalars),
            skipped=[scalars.put(flag) for flag in self.skipped] or (),
            losses=_put_losses(self.losses, scalars),
            scale=None if self.scale is None else scalars.put(self.scale),
        )
        closed.scalars = scalars.start()
        return closed


class _Sealed(NamedTuple):
    """A part whose last numbers are on their way."""

    is_cleared: Any
    num_backward: int
    losses: Sequence[Any]
    layers: LayerRows
    make_splits: Callable[[], Any]


@dataclass(slots=True, eq=False)
class _Closed:
    """A closed step, whose rows are made when it is called, on another thread.

    Many wait for that thread at a time, so that they are few objects which the garbage collector
    counts: not what the step was while it was open.
    """

    index: int
    recorded: bool
    clipped: bool
    num_backward: int
    num_discarded: int
    columns: str
    is_written: Callable[[int], bool] | None
    weights: Mapping[int, float]
    seconds: float
    time: int
    scalars: "_Scalars"
    parts: Sequence[_Sealed]
    rates: Sequence[Any]
    logged: Mapping[str, Any]
    parameters: "ParameterRows | Callable[[], ParameterRows]"
    skipped: Sequence[Any]
    losses: Sequence[Any]
    scale: Any

    def __call__(self) -> StepRecord:
        read = self.scalars.read
        kept, cleared = [], 0
        for part in self.parts:
            if read(part.is_cleared):
                cleared += part.num_backward
            else:
                kept.append(part)
        known = self.parameters
        if not isinstance(known, ParameterRows):
            known = known()
        numbers = sorted(known.numbers())
        gradients = _gradients_of(known, numbers)
        step: dict[str, Any] = {
            "step": self.index,
            "loss": _total([*self.losses, *(loss for part in kept for loss in part.losses)], read),
            "num_backward": self.num_backward,
            "num_discarded": self.num_discarded + cleared,
            "grad_scale": read(self.scale),
            "skipped": any(map(read, self.skipped)),
            "seconds": self.seconds,
            "time": self.time,
            **_norm_and_clipping(known, gradients, self.clipped, self.weights),
            **_rates([read(rate) for rate in self.rates]),
            **{key: read(slot) for key, slot in self.logged.items()},
        }
        blocks = []
        layers = _united([part.layers.measured() for part in kept])
        if self.recorded and layers:
            blocks.append(block_of("layer_stats", layers, self.columns))
        if self.is_written is not None:
            numbers = [number for number in numbers if self.is_written(number)]
            gradients = _gradients_of(known, numbers)
        if self.recorded and numbers:
            blocks.append(_parameter_block(known, numbers, gradients, self.columns))
        split_rows = [part.make_splits() for part in kept]
        if any(split_rows) and None not in split_rows:
            ids, rows = zip(*(row for part in split_rows for row in part or ()), strict=True)
            blocks.append(pooled_splits(ids, rows))
        return StepRecord(step, blocks)


def _sealed(part: Part, scalars: "_Scalars") -> _Sealed:
    losses = _put_losses(part.losses, scalars)
    is_cleared = scalars.put(part.is_cleared)
    return _Sealed(is_cleared, part.num_backward, losses, part.layers, part.splits.seal())


def _put_losses(losses: Sequence[Any], scalars: "_Scalars") -> Sequence[Any]:
    put = scalars.put
    return [None if loss is None else (put(loss[0]), put(loss[1])) for loss in losses] or ()


def _total(losses: Sequence[Any], read: Callable[[Any], Any]) -> float | None:
    """The sum of losses, each divided by its scale; None where one of them is not known."""
    if not losses or None in losses:
        return None
    found = [(read(value), read(scale)) for value, scale in losses]
    return float(sum(value if scale is None else value / scale for value, scale in found))


def _united(measured: Sequence[tuple[Measured | None, Measured | None]]) -> list[Measured]:
    """The rows of several parts as if they had been one batch: activations, then gradients."""
    united = []
    for rows in zip(*measured, strict=True):
        given = [part for part in rows if part is not None]
        if given:
            united.append(functools.reduce(lambda whole, part: part.merge(whole), given))
    return united


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

    def start(self) -> "_Scalars":
        """Start to copy what is on a device; return what reads it."""
        if not self._tensors:
            return _ALL_HERE
        self._transfer = Transfer(self._tensors)
        self._tensors = []
        return self

    def read(self, value: Any) -> Any:
        """Return what was put; waits for the copy."""
        if not isinstance(value, _Slot):
            return value
        if self._arrays is None and self._transfer is not None:
            self._arrays = self._transfer.arrays()
        assert self._arrays is not None
        return value.finish(self._arrays[value.first : value.first + value.length])


_ALL_HERE = _Scalars()


@dataclass(frozen=True, slots=True)
class _Slot:
    first: int
    length: int
    finish: Callable[[Any], Any]


def _arriving(
    rows: ParameterRows, scalars: _Scalars
) -> ParameterRows | Callable[[], ParameterRows]:
    """Start to copy what is on a device; return the rows, or what gives them on the host."""
    if all(type(norm) is float for norm in rows.norm.values()) and not (
        rows.scale or rows.scale_before_clipping
    ):
        return rows.settled()
    slots = [
        {n: scalars.put(x.numbers if isinstance(x, GradientRow) else x) for n, x in column.items()}
        for column in rows.columns()
    ]

    def arrived() -> ParameterRows:
        found = ParameterRows(*({n: scalars.read(x) for n, x in part.items()} for part in slots))
        for number, x in found.gradient.items():
            if isinstance(x, tuple):
                found.gradient[number] = GradientRow(1, x)
        return found

    return arrived


def _gradients_of(rows: ParameterRows, numbers: Sequence[int]) -> Measured | None:
    """What parameters receive, unscaled; None where none has a gradient."""
    given = [number for number in numbers if rows.gradient.get(number) is not None]
    scales = [rows.scale.get(number) for number in given] if rows.scale else ()
    gradients = [rows.gradient[number] for number in given]
    if not given:
        return None
    return Measured.of("parameter_stats", "gradient", given, gradients, scales)


def _norm_and_clipping(
    rows: ParameterRows, gradients: Measured | None, clipped: bool, weights: Mapping[int, float]
) -> dict[str, float | None]:
    """``gradient_norm`` before clipping, and ``clip_factor``, over all parameters read.

    ``gradient_norm_share`` is what this process adds to the norm over all ranks, by ``weights``.
    """
    if gradients is None:
        return {"gradient_norm": None, "clip_factor": None}
    numbers, received = gradients.ids.tolist(), gradients.columns["gradient_norm"][0].tolist()
    noted: Mapping[int, Any] = rows.norm_before_clipping
    before, scale = received, rows.scale_before_clipping
    if noted:
        before = [
            norm if noted.get(n) is None else noted[n] / (scale.get(n) or 1.0)
            for n, norm in zip(numbers, received, strict=True)
        ]
    total = total_norm(before)
    norms = {"gradient_norm": total}
    if weights:
        shares = (math.sqrt(weights.get(number, weights[-1])) for number in numbers)
        norms[SHARE] = total_norm([x * y for x, y in zip(before, shares, strict=True)])
    after = total_norm(received) if clipped else total
    return {**norms, "clip_factor": 1.0 if after == total else after / total}


def _rates(rates: Sequence[float]) -> dict[str, float]:
    return {
        "learning_rate" if place == 0 else f"learning_rate_{place}": float(rate)
        for place, rate in enumerate(rates)
    }


def _parameter_block(
    rows: ParameterRows, numbers: Sequence[int], gradients: Measured | None, columns: str
) -> Block:
    ids = np.array(numbers, dtype=np.int32)
    found: dict[str, Mapping[int, Any]] = {"norm": rows.norm, "update_norm": rows.update_norm}
    norms = {
        name: column_of([known.get(number) for number in numbers]) for name, known in found.items()
    }
    parts = [Measured("parameter_stats", ids, np.ones(len(ids)), norms)]
    return block_of("parameter_stats", [*parts, *([gradients] if gradients else [])], columns)

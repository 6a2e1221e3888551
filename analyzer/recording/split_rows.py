"""The split gradients of one step, from the joins of its graphs to the rows of ``splits``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from analyzer.joins.addends import JoinOutputs, statistics_of
from analyzer.joins.products import (
    SPLIT_COLUMNS,
    JoinGradients,
    split_products,
    statistics_of_products,
)
from analyzer.recording.plain import Transfer
from analyzer.recording.statistics import Measured, block_of, column_of
from analyzer.storage.writer import Block
from analyzer.vocabulary import quantities_of

__all__ = ["SplitRows", "pooled_splits"]

_COLUMNS = quantities_of("splits")
_Products: TypeAlias = list[float] | Tensor
_Has: TypeAlias = tuple[bool, ...]
_Part: TypeAlias = tuple[_Has, _Products, Any]
_Rows: TypeAlias = list[tuple[int, Sequence[float | None]]]


@dataclass(slots=True)
class SplitRows:
    """The split gradients of one step: per join those of each of its places in a graph.

    Attributes:
        parts: What is not None, the products, and the scale of the loss, by place.
        outputs: What the forward pass added, by place.
        kept: Gradients to which a second pass over a kept graph adds.
        is_partial: Whether some are missing, so that the rest would be wrong.
    """

    parts: dict[tuple[int, int], _Part] = field(default_factory=dict)
    outputs: dict[tuple[int, int], JoinOutputs] = field(default_factory=dict)
    kept: dict[tuple[int, int], JoinGradients] = field(default_factory=dict)
    is_partial: bool = False

    def add(
        self, place: tuple[int, int], gradients: JoinGradients, *, keeps: bool, scale: Any = None
    ) -> None:
        """Take the gradients of a join; those of a second pass over a kept graph add.

        A place is the join and the sequence number of its node: one place in one graph.
        """
        earlier = self.kept.pop(place, None)
        if earlier is not None:
            gradients = _sum_of(earlier, gradients)
        if keeps:
            self.kept[place] = _sum_of(gradients, None)
        products = split_products(gradients)
        has = tuple(parts is not None for parts in gradients)
        self.parts[place] = has, products.tolist() if products.is_cpu else products, scale

    def add_outputs(self, place: tuple[int, int], outputs: JoinOutputs | None) -> None:
        """Take what a join adds in a forward pass that no backward pass follows."""
        self.parts[place] = (False,) * 4, [math.nan] * 7, None
        if outputs is not None:
            self.outputs[place] = outputs

    def absorb(self, other: SplitRows) -> None:
        """Take over what other passes of the step gave."""
        self.parts |= other.parts
        self.outputs |= other.outputs
        self.kept |= other.kept
        self.is_partial |= other.is_partial

    def seal(self) -> Callable[[], _Rows | None]:
        """Start the last copies; return what makes the rows on another thread, None for partial."""
        self.kept.clear()
        if self.is_partial:
            return lambda: None
        if not self.parts:
            return list
        parts = [(place[0], self.outputs.get(place), *part) for place, part in self.parts.items()]
        given = [n for _, outputs, _, *rest in parts for n in (outputs and outputs.numbers, *rest)]
        moving = [number for number in given if isinstance(number, Tensor)]
        transfer = Transfer(moving) if moving else None
        return lambda: _rows_of(parts, transfer)


def _sum_of(one: JoinGradients, other: JoinGradients | None) -> JoinGradients:
    """Add the gradients of two passes part by part; copy those of one where there is one."""
    totals: list[tuple[Tensor, ...] | None] = []
    for sides in zip(one, other or JoinGradients(None, None, None, None), strict=True):
        given = [parts for parts in sides if parts is not None]
        if len(given) < 2:
            totals.append(tuple(part.detach().clone() for part in given[0]) if given else None)
        else:
            totals.append(tuple(x.detach() + y.detach() for x, y in zip(*given, strict=True)))
    return JoinGradients(*totals)


def _rows_of(
    parts: list[tuple[int, JoinOutputs | None, _Has, _Products, Any]], transfer: Transfer | None
) -> _Rows:
    arrays = iter(transfer.arrays() if transfer is not None else ())
    rows: _Rows = []
    for join, outputs, has, products, scale in parts:
        is_moved = outputs is not None and isinstance(outputs.numbers, Tensor)
        added = next(arrays).tolist() if is_moved else None
        numbers = next(arrays).tolist() if isinstance(products, Tensor) else products
        factor = float(next(arrays)[0]) if isinstance(scale, Tensor) else scale
        sides: list[tuple[Tensor, ...] | None] = [() if given else None for given in has]
        values = statistics_of_products(JoinGradients(*sides), numbers)
        values += statistics_of(outputs, added)
        if factor is not None:
            values = [
                value / factor if value is not None and quantity.scales_with_loss else value
                for value, quantity in zip(values, _COLUMNS, strict=True)
            ]
        rows.append((join, values))
    return rows


def pooled_splits(ids: Sequence[int], rows: Sequence[Sequence[float | None]]) -> Block:
    """Return the rows of ``splits``: the micro-batches of a join as one batch.

    Gradients of different samples stand side by side, so squares of norms and dot products add.
    Rows hold the values of `SPLIT_COLUMNS`, None where nothing was computed.
    """
    by_column = zip(SPLIT_COLUMNS, zip(*rows, strict=True), strict=True)
    columns = {key: column_of(cells) for key, cells in by_column}
    measured = Measured("splits", np.array(ids, dtype=np.int32), np.ones(len(ids)), columns)
    return block_of("splits", [measured.merge()])

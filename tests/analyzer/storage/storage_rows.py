"""Rows of numbers that a test can compute again, and a writer that waits for nothing."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter, StepRecord

__all__ = ["block", "record", "refuse_warnings", "value", "written"]


def value(step: int, id_: int, place: int) -> float:
    """The number of one cell; column ``place`` counts from 0."""
    return float(step * 100 + id_ * 10 + place)


def block(table: str, step: int, num_ids: int) -> Block:
    """Rows of ids 0, 1, … with the numbers of ``value``, nothing null."""
    places = range(len(STAT_COLUMNS[table]))
    values = [[value(step, i, place) for place in places] for i in range(num_ids)]
    return Block(table, np.arange(num_ids, dtype=np.int32), np.array(values))


def record(step: int, *blocks: Block, **columns: Any) -> StepRecord:
    """A step whose loss is its number plus one half."""
    return StepRecord({"step": step, "loss": step + 0.5, **columns}, list(blocks))


def refuse_warnings(message: str) -> None:
    """The ``warn`` of a writer that must not warn."""
    raise AssertionError(message)


def written(
    path: Path,
    records: Iterable[StepRecord],
    *,
    status: str | None = "finished",
    manifest: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write a run and return its folder."""
    options.setdefault("warn", refuse_warnings)
    writer = RunWriter(path, manifest or {}, **options)
    for one in records:
        writer.add(lambda one=one: one)  # type: ignore[misc]
    if status:
        writer.close(status)
    return path

"""Runs made of hand-written numbers, on disk as a recorder would leave them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analyzer.storage.rows import Block, StepRecord
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import RunWriter

__all__ = ["layer_row", "write_run"]

TIME = 1_790_000_000_000_000
Rows = Sequence[Sequence[float | None]]


def layer_row(layer: int, name: str, kind: str = "Linear", **changes: Any) -> dict[str, Any]:
    """A row of layers.parquet: a layer of 4 units at depth ``layer`` with 20 parameters."""
    row = {
        "layer": layer,
        "name": name,
        "module": name,
        "call": 0,
        "kind": kind,
        "depth": layer,
        "num_parameters": 20,
        "output_shape": [8, 4],
    }
    return row | changes


def write_run(
    path: Path,
    losses: Sequence[float | None],
    norms: Rows,
    *,
    layers: Sequence[dict[str, Any]] | None = None,
    joins: Sequence[dict[str, Any]] = (),
    edges: Sequence[dict[str, int]] = (),
    more: Sequence[dict[str, Any]] = (),
    status: str | None = "finished",
    error: str | None = None,
    **manifest: Any,
) -> Path:
    """Write a run whose layers have these output gradient norms, ``[steps][layers]``.

    ``more`` are further cells of the rows of its steps, such as what was logged.
    """
    writer = RunWriter(path, manifest)
    count = len(norms[0]) if norms else 0
    writer.write_layers(layers or [layer_row(i, f"layers.{i}") for i in range(count)])
    writer.write_parameters([])
    counts = {"branch_parameters": 1, "shortcut_parameters": 0}
    writer.write_joins([counts | dict(join) for join in joins])
    writer.write_edges(edges)
    for step, (loss, row) in enumerate(zip(losses, norms, strict=True)):
        columns = {"step": step, "loss": loss, "seconds": 0.5, "skipped": False, "time": TIME}
        columns |= more[step] if step < len(more) else {}
        record = StepRecord(columns, [_layer_stats(row)] if row else [])
        writer.add(lambda record=record: record)
    writer.close(status or "running", error=error)
    return path


def _layer_stats(row: Sequence[float | None]) -> Block:
    """Activation statistics 1, 2, 3, … by column; the given gradient norms, null where None."""
    names = STAT_COLUMNS["layer_stats"]
    values = np.tile(np.arange(1.0, len(names) + 1), (len(row), 1))
    present = np.ones(values.shape, bool)
    norms = np.array([np.nan if v is None else v for v in row], float)
    values[:, names.index("output_gradient_norm")] = norms
    values[:, names.index("activation_num_nonfinite")] = 0
    values[:, names.index("output_gradient_num_nonfinite")] = ~np.isfinite(norms)
    gradient = [i for i, name in enumerate(names) if name.startswith("output_gradient")]
    present[np.ix_([v is None for v in row], gradient)] = False
    return Block("layer_stats", np.arange(len(row), dtype=np.int32), values, present)

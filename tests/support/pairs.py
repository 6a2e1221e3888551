"""Plain and residual runs made of numbers, so that what separates them is known by construction."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import analyzer
from analyzer.opened import Run
from analyzer.storage.rows import Block, StepRecord
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import RunWriter

__all__ = ["BLOCKS", "write_side"]

BLOCKS = 4
LAYERS = 2 * BLOCKS + 2
TIME = 1_790_000_000_000_000


def write_side(
    path: Path,
    *,
    residual: bool,
    decades: float | Sequence[float] = 0.0,
    cliff: tuple[int, float] | None = None,
    branch: float = 1.0,
    losses: Sequence[float] = (2.3, 1.0, 1.0, 1.0),
    lr: float = 0.1,
    share: float | Sequence[float] = 0.7,
    stream: float = 0.3,
    shortcut: str = "identity",
    width: int = 16,
    kind: str = "Linear",
    batch: int = 32,
    update: float = 0.01,
    probes: dict[str, dict[str, Any]] | None = None,
    accuracy: float = 0.9,
    zero: bool = False,
    clip: float = 1.0,
    **manifest: Any,
) -> Run:
    """Write a net of a stem, four blocks of two layers, and a head, and open it.

    Args:
        path: Folder of the run.
        residual: Whether each block is a join.
        decades: How far the gradient falls from the head to the stem; one number for each step.
        cliff: A layer, and the decades that are lost on the way through it.
        branch: What the output gradients inside of branches are multiplied by.
        losses: Loss of each step.
        share: Share of the shortcuts; one number for each join.
        stream: ‖branch‖ / ‖shortcut‖.
        update: Update ratio of the first weight.
        probes: Columns by the name of a probe, at step 0; of lesions and paths at the last step,
            of the sharpness at each. What they note stands under ``notes``.
        accuracy: That of the whole network, which the lesion probe notes.
        zero: Whether no gradient arrives below the head.
        clip: Factor by which gradients are clipped.
        manifest: Further fields of ``run.json``.
    """
    layers = [_layer(k, residual, width, kind, batch) for k in range(LAYERS)]
    joins = [_join(k, shortcut) for k in range(BLOCKS)] if residual else []
    writer = RunWriter(path, {"seed": 0} | manifest)
    writer.write_layers(layers)
    writer.write_parameters([_parameter(k) for k in range(LAYERS)])
    writer.write_joins(joins)
    steps = len(losses)
    falls = [decades] * steps if isinstance(decades, int | float) else list(decades)
    for step, (loss, fall) in enumerate(zip(losses, falls, strict=True)):
        norms = 10.0 ** (-fall * (LAYERS - 1 - np.arange(LAYERS)) / (LAYERS - 1))
        if cliff is not None:
            norms[: cliff[0]] *= 10.0 ** -cliff[1]
        if zero:
            norms[:-1] = 0
        columns = {"step": step, "loss": loss, "learning_rate": lr, "skipped": False}
        columns["clip_factor"] = clip
        columns |= {"num_backward": 1, "num_discarded": 0, "seconds": 0.1, "time": TIME + step}
        inside = np.array([row["role"] == "branch" for row in layers])
        blocks = [_layer_stats(np.where(inside, norms * branch, norms))]
        blocks.append(_parameter_stats(update))
        if residual:
            blocks.append(_splits(norms, share, stream))
        record = StepRecord(columns, blocks)
        writer.add(lambda record=record: record)
    given = dict(probes or {})
    notes = given.pop("notes", {}) | {"accuracy": json.dumps(accuracy)}
    for name, table in given.items():
        last = (steps - 1,)
        at = {"lesion": last, "paths": last, "sharpness": range(steps)}.get(name, (0,))
        for step in at:
            writer.write_probe(name, step, table, notes)
    writer.close("finished")
    return analyzer.open_run(path)


def _layer(k: int, residual: bool, width: int, kind: str, batch: int) -> dict[str, Any]:
    inside = 0 < k < LAYERS - 1
    return {
        "layer": k,
        "name": f"block{(k - 1) // 2}.{(k - 1) % 2}" if inside else ("stem" if k == 0 else "head"),
        "module": f"m{k}",
        "call": 0,
        "kind": kind if inside else "Linear",
        "depth": k,
        "num_parameters": width * width,
        "output_shape": [batch, width],
        "join": (k - 1) // 2 if residual and inside else None,
        "role": "branch" if residual and inside else None,
    }


def _join(k: int, shortcut: str) -> dict[str, Any]:
    return {
        "join": k,
        "name": f"block{k}",
        "operation": "add",
        "shortcut": shortcut,
        "branch_layers": [f"block{k}.0", f"block{k}.1"],
        "shortcut_layers": [],
        "branch_parameters": 100,
        "shortcut_parameters": 0,
    }


def _parameter(k: int) -> dict[str, Any]:
    fields = {"parameter": k, "name": f"p{k}", "layer": k, "shape": [4, 4], "num_elements": 16}
    return fields | {"trained": True, "placement": "replicated"}


def _block(table: str, cells: dict[str, Any], count: int) -> Block:
    ones = np.ones(count)
    values = np.column_stack([ones * cells.get(name, 1.0) for name in STAT_COLUMNS[table]])
    return Block(table, np.arange(count, dtype=np.int32), values)


def _layer_stats(norms: Any) -> Block:
    cells = {"output_gradient_norm": norms, "activation_num_nonfinite": 0}
    cells["output_gradient_num_nonfinite"] = ~np.isfinite(norms)
    return _block("layer_stats", cells, LAYERS)


def _parameter_stats(update: float) -> Block:
    return _block("parameter_stats", {"norm": 1.0, "update_norm": update}, LAYERS)


def _splits(norms: Any, share: float | Sequence[float], stream: float) -> Block:
    after = norms[2::2][:BLOCKS]
    cells = {
        "join_gradient_norm": after,
        "shortcut_share": np.asarray(share, float),
        "shortcut_output_norm": 1.0,
        "branch_output_norm": stream,
    }
    return _block("splits", cells, BLOCKS)

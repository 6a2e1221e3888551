"""A plain and a residual run that hold everything a run can hold; hand-made numbers, no torch."""

import json
from itertools import pairwise
from math import comb, sin
from pathlib import Path
from typing import Any

import numpy as np

from analyzer.storage.rows import Block, StepRecord
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import RunWriter
from analyzer.vocabulary.probes import PROBES

__all__ = ["GRID", "write_empty_run", "write_full_pair", "write_network_run"]

TIME = 1_790_000_000_000_000
WIDTH = 16
GRID = 15
_MANIFEST = {
    "target": "train.py",
    "argv": ["train.py", "--lr", "0.02"],
    "seed": 0,
    "device": "cpu",
    "created": "2026-11-20T10:00:00+00:00",
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "versions": {"python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.6"},
    "platform": "Linux x86_64",
}


def write_full_pair(folder: Path) -> tuple[Path, Path]:
    """Write the runs ``plain`` and ``residual``: 8 blocks, 60 steps, all probes at steps 0 and 59.

    The plain net's output gradient falls by 0.4 per layer, its loss stays at 2.30; the residual
    net's shortcuts carry 60 to 88 % of the gradient and its loss falls from 2.30 to 0.44.
    """
    return (
        write_network_run(folder / "plain", has_shortcuts=False),
        write_network_run(folder / "residual", has_shortcuts=True),
    )


def write_empty_run(path: Path) -> Path:
    """Write a run that ended before its first step: tables without a row, no probe."""
    writer = RunWriter(path, _MANIFEST)
    for write in (writer.write_layers, writer.write_parameters, writer.write_joins):
        write([])
    writer.close("finished")
    return path


def write_network_run(
    path: Path,
    *,
    has_shortcuts: bool,
    blocks: int = 8,
    steps: int = 60,
    probes: bool = True,
    nan_from: int | None = None,
    **manifest: Any,
) -> Path:
    """Write a run of a net of a stem, blocks of two linear layers with a ReLU each, and a head.

    Args:
        path: Folder of the run.
        has_shortcuts: Whether each block is a join.
        blocks: Number of blocks; the middle one has a projection shortcut.
        steps: Number of steps.
        probes: Whether all probes measured at the first and the last step.
        nan_from: First step whose loss and gradients are NaN.
        manifest: Further fields of ``run.json``.
    """
    layers = _layers(blocks, has_shortcuts)
    joins = _joins(blocks) if has_shortcuts else []
    parameters = _parameters(layers)
    writer = RunWriter(path, _MANIFEST | manifest)
    writer.write_layers(layers)
    writer.write_parameters(parameters)
    writer.write_joins(joins)
    writer.write_edges(_edges(layers, joins))
    for step in range(steps):
        is_nan = nan_from is not None and step >= nan_from
        record = _record(step, steps, layers, parameters, len(joins), is_nan)
        writer.add(lambda record=record: record)
    if probes and steps:
        for step in sorted({0, steps - 1}):
            _write_probes(writer, step, steps, layers, joins)
    writer.close("finished")
    return path


def _layer(layer: int, name: str, kind: str, depth: int, owner: tuple[int, str] | None) -> Any:
    count = WIDTH * WIDTH + WIDTH if kind == "Linear" else 0
    return {
        "layer": layer,
        "name": name,
        "module": name,
        "call": 0,
        "kind": kind,
        "depth": depth,
        "num_parameters": count,
        "output_shape": [8, WIDTH],
        "join": owner[0] if owner else None,
        "role": owner[1] if owner else None,
    }


def _block_name(block: int, blocks: int) -> str:
    half = (blocks + 1) // 2
    return f"layer{block // half + 1}.{block % half}"


def _layers(blocks: int, has_shortcuts: bool) -> list[dict[str, Any]]:
    rows = [_layer(0, "stem", "Linear", 0, None)]
    for block in range(blocks):
        name, depth = _block_name(block, blocks), 1 + 4 * block
        for offset, (part, kind) in enumerate(
            (("fc1", "Linear"), ("relu1", "ReLU"), ("fc2", "Linear"), ("relu2", "ReLU"))
        ):
            owner = (block, "branch") if has_shortcuts else None
            rows.append(_layer(len(rows), f"{name}.{part}", kind, depth + offset, owner))
        if has_shortcuts and block == blocks // 2:
            shortcut = (block, "shortcut")
            rows.append(_layer(len(rows), f"{name}.downsample", "Linear", depth, shortcut))
    rows.append(_layer(len(rows), "head", "Linear", 1 + 4 * blocks, None))
    return rows


def _joins(blocks: int) -> list[dict[str, Any]]:
    rows = []
    for block in range(blocks):
        name, projects = _block_name(block, blocks), block == blocks // 2
        rows.append(
            {
                "join": block,
                "name": name,
                "operation": "add",
                "shortcut": "projection" if projects else "identity",
                "branch_layers": [f"{name}.{part}" for part in ("fc1", "relu1", "fc2", "relu2")],
                "shortcut_layers": [f"{name}.downsample"] if projects else [],
                "branch_parameters": 2 * (WIDTH * WIDTH + WIDTH),
                "shortcut_parameters": WIDTH * WIDTH + WIDTH if projects else 0,
            }
        )
    return rows


def _edges(layers: list[dict[str, Any]], joins: list[dict[str, Any]]) -> list[dict[str, int]]:
    """What reads what: one layer after the other, past each block what its shortcut adds."""
    ids = {layer["name"]: layer["layer"] for layer in layers}
    if not joins:
        chain = list(ids.values())
        return [{"source": s, "target": t} for s, t in zip([-1, *chain], chain, strict=False)]
    pairs: set[tuple[int, int]] = {(-1, 0)}
    sources = {0}
    for join in joins:
        branch = [ids[name] for name in join["branch_layers"]]
        past = [ids[name] for name in join["shortcut_layers"]]
        pairs |= {(source, first) for source in sources for first in (branch[0], *past)}
        pairs |= set(pairwise(branch))
        sources = {branch[-1], *(past or sources)}
    pairs |= {(source, ids["head"]) for source in sources}
    return [{"source": source, "target": target} for source, target in sorted(pairs)]


def _parameters(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for layer in layers:
        if not layer["num_parameters"]:
            continue
        for part, shape in (("weight", [WIDTH, WIDTH]), ("bias", [WIDTH])):
            rows.append(
                {
                    "parameter": len(rows),
                    "name": f"{layer['name']}.{part}",
                    "layer": layer["layer"],
                    "shape": shape,
                    "num_elements": WIDTH ** len(shape),
                    "trained": True,
                    "placement": "replicated",
                }
            )
    return rows


def gradient_norms(layers: list[dict[str, Any]], step: int, has_joins: bool) -> Any:
    """Output gradient norms: 0.4 per two units of depth without joins, nearly flat with them."""
    depths = np.array([row["depth"] for row in layers], float)
    behind = (depths.max() - depths) / 2
    wave = 1 + 0.1 * np.sin(step / 3 + depths)
    norms: Any = 0.1 * (1.02 if has_joins else 0.4) ** behind * wave
    return norms


def share_of(join: int, step: int, steps: int) -> float:
    """Shortcut share of a join: 0.60 at the first step, up to 0.88 at the last."""
    return 0.6 + 0.2 * step / max(1, steps - 1) + 0.08 * sin(join) ** 2 * (step > 0)


def loss_of(step: int, steps: int, has_joins: bool) -> float:
    """Loss: 2.30 throughout without joins, from 2.30 to 0.44 with them."""
    return 2.3 - (1.86 * step / max(1, steps - 1) if has_joins else 0.0)


def _record(
    step: int,
    steps: int,
    layers: list[dict[str, Any]],
    parameters: list[dict[str, Any]],
    num_joins: int,
    is_nan: bool,
) -> StepRecord:
    norms = gradient_norms(layers, step, num_joins > 0) * (np.nan if is_nan else 1.0)
    total = 3.0 + sin(step)
    columns = {
        "step": step,
        "epoch": step // 20,
        "loss": float("nan") if is_nan else loss_of(step, steps, num_joins > 0),
        "learning_rate": 0.02 if step < steps / 2 else 0.002,
        "gradient_norm": total,
        "clip_factor": min(1.0, 2.5 / total),
        "num_backward": 1,
        "skipped": False,
        "seconds": 0.02,
        "time": TIME + 20_000 * step,
        "accuracy": 0.1 + 0.01 * step,
        "val/accuracy": 0.1 + 0.009 * step if step % 10 == 9 else None,
        "phase": "warm-up" if step < 5 else "main",
    }
    blocks = [_layer_block(layers, norms, is_nan), _parameter_block(parameters, norms, step)]
    if num_joins and step % 10 in (0, 9):
        blocks.append(_split_block(num_joins, step, steps))
    return StepRecord(columns, blocks)


def _layer_block(layers: list[dict[str, Any]], norms: Any, is_nan: bool) -> Block:
    relu = np.array([row["kind"] == "ReLU" for row in layers], float)
    depths = np.array([row["depth"] for row in layers], float)
    ones = np.ones(len(layers))
    cells = {
        "activation_norm": 5 * ones,
        "activation_mean": 0.2 * relu,
        "activation_std": 1 - 0.5 * depths / (1 + depths.max()),
        "activation_min": -1.5 * (1 - relu),
        "activation_max": 2 * ones,
        "activation_zero_fraction": 0.5 * relu,
        "activation_num_dead": relu * (np.arange(len(layers)) % 4),
        "activation_num_nonfinite": 0 * ones,
        "output_gradient_norm": norms,
        "output_gradient_mean_abs": norms / 20,
        "output_gradient_max_abs": norms / 3,
        "output_gradient_zero_fraction": 0.5 * relu,
        "output_gradient_num_nonfinite": 8 * WIDTH * is_nan * ones,
    }
    return _block("layer_stats", cells)


def _parameter_block(parameters: list[dict[str, Any]], norms: Any, step: int) -> Block:
    own = norms[[row["layer"] for row in parameters]]
    count = np.sqrt([row["num_elements"] for row in parameters])
    update = 0.02 * own if step % 10 in (0, 9) else np.full(len(own), np.nan)
    cells = {
        "gradient_norm": own,
        "gradient_mean_abs": own / count,
        "gradient_max_abs": own,
        "gradient_num_nonfinite": 0 * own,
        "norm": 0.25 * count,
        "update_norm": update,
    }
    block = _block("parameter_stats", cells)
    present = np.ones(block.values.shape, bool)
    present[:, list(cells).index("update_norm")] = step % 10 in (0, 9)
    return Block(block.table, block.ids, block.values, present)


def _split_block(num_joins: int, step: int, steps: int) -> Block:
    share = np.array([share_of(join, step, steps) for join in range(num_joins)])
    cells = {
        "join_gradient_norm": share,
        "shortcut_gradient_norm": share,
        "branch_gradient_norm": 1 - share,
        "fork_gradient_norm": np.ones(num_joins),
        "cosine": np.ones(num_joins),
        "shortcut_share": share,
    }
    # Independent writes of one size: the stream grows by the root of their number.
    before = 4 * np.sqrt(1.0 + np.arange(num_joins))
    cells |= {
        "shortcut_output_norm": before,
        "branch_output_norm": np.full(num_joins, 4.0),
        "join_output_norm": np.hypot(before, 4.0),
        "output_cosine": np.zeros(num_joins),
    }
    return _block("splits", cells)


def _block(table: str, cells: dict[str, Any]) -> Block:
    values = np.column_stack([cells[name] for name in STAT_COLUMNS[table]]).astype(float)
    return Block(table, np.arange(len(values), dtype=np.int32), values)


def _write_probes(
    writer: RunWriter,
    step: int,
    steps: int,
    layers: list[dict[str, Any]],
    joins: list[dict[str, Any]],
) -> None:
    has_joins = bool(joins)
    linear = [row for row in layers if row["kind"] == "Linear"]
    loss = loss_of(step, steps, has_joins)
    if has_joins:
        writer.write_probe("paths", step, _paths(len(joins), 0.5 if step else 0.8))
        writer.write_probe("lesion", step, _lesion(joins, loss), {"loss": repr(loss)})
        writer.write_probe("counterfactual", step, _counterfactual(linear))
    writer.write_probe("landscape", step, _landscape(loss, 4.0 if has_joins else 9.0), _PLANE)
    falls = 0.99 if has_joins else 0.8
    writer.write_probe(
        "shattering",
        step,
        {
            "layer": [row["layer"] for row in linear],
            "name": [row["name"] for row in linear],
            "correlation": [falls**above for above in reversed(range(len(linear)))],
        },
        _references(len(linear), len(joins)),
    )
    writer.write_probe("jacobian", step, _jacobian(layers, has_joins))
    writer.write_probe(
        "curvature", step, {"quantity": ["sharpness", "trace"], "value": [12.5, 80.0]}
    )
    writer.write_probe(
        "sharpness",
        step,
        {
            "sharpness": [12.5 + step],
            "threshold": [80.0],
            "preconditioned_sharpness": [None],
            "preconditioned_threshold": [None],
            "gradient_share": [0.75],
            "num_eigenvectors": [10],
        },
    )
    weights = [1.0 / (1 + k) for k in range(len(linear))]
    writer.write_probe(
        "attribution",
        step,
        {
            "layer": [row["layer"] for row in linear],
            "name": [row["name"] for row in linear],
            "method": ["conductance"] * len(linear),
            "attribution": weights,
            "share": [weight / sum(weights) for weight in weights],
        },
    )
    writer.write_probe(
        "noise",
        step,
        {"gradient_noise_scale": [40.0 + step], "signal_norm": [0.5], "noise_trace": [10.0]},
    )
    for probe in PROBES:
        keys = [column.key for column in probe.columns]
        if probe.name not in _WRITTEN and {"layer", "name"} <= set(keys):
            numbers = {key: weights for key in keys if key not in ("layer", "name")}
            named = {key: [row[key] for row in linear] for key in ("layer", "name")}
            writer.write_probe(probe.name, step, named | numbers)


# What _write_probes has its own numbers for; a new probe by layer gets some there.
_WRITTEN = {"paths", "lesion", "landscape", "shattering", "jacobian", "curvature", "noise"}
_WRITTEN |= {"sharpness"}
_WRITTEN |= {"attribution", "counterfactual"}
_PLANE = {
    "normalization": "filter",
    "seed": "0",
    "mode": "eval",
    "cosine": "0.01",
    "trajectory": json.dumps([[0, -0.8, 0.5], [30, -0.4, 0.1], [59, 0.0, 0.0]]),
    "trajectory_residuals": json.dumps([0.21, 0.34, 0.0]),
    "variance_explained": json.dumps([0.62, 0.25]),
}


def _references(count: int, num_joins: int) -> dict[str, str]:
    """The curves of Balduzzi et al., a nonlinearity above each layer but the last."""
    above = list(reversed(range(count)))
    curves = {
        "plain": [0.5**depth for depth in above],
        "residual": [0.75**depth for depth in above],
        "residual_norm": [min(1.0, 1 / depth**0.5) if depth else 1.0 for depth in above],
    }
    return {
        "mode": "train",
        "nonlinearities_above": json.dumps(above),
        "joins_above": json.dumps(above if num_joins else [0] * count),
        "references": json.dumps(curves),
    }


def _counterfactual(linear: list[dict[str, Any]]) -> dict[str, Any]:
    """A gradient that falls toward the input, the faster the less the shortcuts carry."""
    kinds = [(1.0, False, 0.98), (0.5, False, 0.8), (0.0, False, 0.3), (0.0, True, 0.6)]
    return {
        "layer": [row["layer"] for _ in kinds for row in linear],
        "name": [row["name"] for _ in kinds for row in linear],
        "skip_scale": [scale for scale, _, _ in kinds for _ in linear],
        "rescaled": [rescaled for _, rescaled, _ in kinds for _ in linear],
        "output_gradient_norm": [
            falls**above for _, _, falls in kinds for above in reversed(range(len(linear)))
        ],
    }


def _paths(num_joins: int, branch: float) -> dict[str, Any]:
    """Branches that multiply by ``branch``: norms C(n, k)·branchᵏ."""
    norms = np.array([comb(num_joins, k) * branch**k for k in range(num_joins + 1)])
    return {
        "length": range(num_joins + 1),
        "num_paths": [float(comb(num_joins, k)) for k in range(num_joins + 1)],
        "gradient_norm": norms,
        "share": norms / norms.sum(),
    }


def _lesion(joins: list[dict[str, Any]], loss: float) -> dict[str, Any]:
    change = [0.5 / (1 + row["join"]) for row in joins]
    return {
        "join": [row["join"] for row in joins],
        "loss": [loss + more for more in change],
        "loss_change": change,
        "accuracy": [0.9 - more for more in change],
        "shortcut_loss": [loss + 2 * more for more in change],
        "shortcut_loss_change": [2 * more for more in change],
        "shortcut_accuracy": [0.9 - 1.5 * more for more in change],
    }


def _landscape(loss: float, steepness: float) -> dict[str, Any]:
    alpha, beta = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-1, 1, GRID)] * 2))
    return {
        "alpha": alpha,
        "beta": beta,
        "loss": loss + steepness * (alpha**2 + 0.5 * beta**2),
        "evaluated": np.ones(GRID * GRID, bool),
    }


def _jacobian(layers: list[dict[str, Any]], has_joins: bool) -> dict[str, Any]:
    blocks = list(dict.fromkeys(row["name"].rpartition(".")[0] for row in layers))
    names = [name for name in blocks if name] + ["network"]
    values = [1.5, 1.0, 0.7] if has_joins else [1.2, 0.1, 1e-7]
    return {
        "name": [name for name in names for _ in values],
        "rank_order": list(range(len(values))) * len(names),
        "singular_value": values * len(names),
    }

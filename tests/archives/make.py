"""Makes ``tests/archives/v2/tiny``: four steps of two layers and a join, by schema version 2.

An archive is made once, when its schema version is released, and never again: the tests then show
that later code still reads what earlier code wrote.
"""

import math
from pathlib import Path

import numpy as np

from analyzer.storage.schema import SCHEMA_VERSION, STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter, StepRecord

TIME = 1_790_000_000_000_000
LOSSES = (2.0, 1.0, math.nan, None)
NORMS = (0.25, 0.5, math.inf, 1.0)


def layer(id_: int, join: int | None, role: str | None) -> dict[str, object]:
    """A row of layers.parquet."""
    name = f"layers.{id_}"
    row = {
        "layer": id_,
        "name": name,
        "module": name,
        "call": 0,
        "kind": "Linear",
        "depth": id_ + 1,
    }
    return row | {"num_parameters": 6, "output_shape": [8, 2], "join": join, "role": role}


def rows(table: str, count: int, **columns: float) -> Block:
    """Rows whose columns hold 1, 2, …, except for those that are given; ``update_norm`` is null."""
    names = STAT_COLUMNS[table]
    values = np.tile(np.arange(1.0, len(names) + 1), (count, 1))
    for name, value in columns.items():
        values[-1, names.index(name)] = value
    present = np.ones(values.shape, dtype=bool)
    present[:, [name == "update_norm" for name in names]] = False
    return Block(table, np.arange(count, dtype=np.int32), values, present)


def step(number: int) -> StepRecord:
    """One step."""
    columns = {"step": number, "loss": LOSSES[number], "learning_rate": 0.1, "num_backward": 1}
    columns |= {"skipped": False, "seconds": 0.5, "time": TIME + number, "accuracy": 0.5}
    return StepRecord(
        columns,
        [
            rows("layer_stats", 2, output_gradient_norm=NORMS[number]),
            rows("parameter_stats", 2),
            rows("splits", 1, shortcut_share=1.0, cosine=math.nan),
        ],
    )


def main(folder: Path) -> None:
    """Write the run."""
    assert SCHEMA_VERSION == 2, "the archive of a released version is not made again"
    created = "2026-09-21T14:13:20+00:00"
    writer = RunWriter(folder, {"name": "tiny", "created": created})
    writer.write_layers([layer(0, None, None), layer(1, 0, "branch")])
    parameter = {"layer": 0, "shape": [2, 3], "num_elements": 6, "trained": True}
    writer.write_parameters(
        [
            {"parameter": i, "name": f"layers.{i}.weight", "placement": "replicated", **parameter}
            for i in range(2)
        ]
    )
    join = {"join": 0, "name": "block", "operation": "add", "shortcut": "identity"}
    join |= {"branch_layers": ["layers.1"], "shortcut_layers": []}
    writer.write_joins([join | {"branch_parameters": 6, "shortcut_parameters": 0}])
    for number in range(len(LOSSES)):
        writer.add(lambda number=number: step(number))  # type: ignore[misc]
    paths = {"length": [0, 1], "num_paths": [1.0, 1.0], "gradient_norm": [1.0, 0.5]}
    writer.write_probe("paths", 3, {**paths, "share": [0.75, 0.25]}, {"mode": "eval"})
    lesion = {"loss": 3.0, "loss_change": 1.0, "accuracy": 0.25}
    lesion |= {f"shortcut_{name}": 2 * value for name, value in lesion.items()}
    writer.write_probe("lesion", 3, {"join": [0], **{key: [lesion[key]] for key in lesion}})
    scales = {"skip_scale": [1.0, 0.0], "rescaled": [False, True]}
    named = {"layer": [1, 1], "name": ["layers.1"] * 2}
    writer.write_probe(
        "counterfactual", 3, {**named, **scales, "output_gradient_norm": [0.5, 0.125]}
    )
    writer.close("finished")


if __name__ == "__main__":
    main(Path(__file__).parent / "v2" / "tiny")

"""Runs each file of which keeps to every limit, and that would still fill the memory of a list."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.storage.schema import TABLES
from tests.support.runs import write_run

__all__ = ["BOMBS", "write_bomb"]

BOMBS: dict[str, Callable[[Path], object]] = {}
"""What makes one of a good run, by name."""
_NOISE = np.random.default_rng(0).bytes(4 << 20)


def write_bomb(folder: Path, name: str) -> Path:
    """Write a good run into a folder of runs, and make a bomb of it."""
    run = write_run(folder / name, [1.0] * 4, [[1.0, 2.0]] * 4)
    BOMBS[name](run)
    return run


def _bomb(function: Callable[[Path], object]) -> Callable[[Path], object]:
    BOMBS[function.__name__] = function
    return function


def _part(flush: int) -> str:
    return f"000000000000-000000000003.r0.a0.p{flush}-{flush}.parquet"


def _repeated(path: Path, table: pa.Table, groups: int) -> None:
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(table)


def _padded(path: Path) -> None:
    """Make a file larger, where no reader looks: between the pages and the footer."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(content[:-length] + _NOISE + content[-length:])


def _zeros(rows: int) -> pa.Table:
    """Rows of ``layer_stats``."""
    schema, zeros = TABLES["layer_stats"], pa.array(np.zeros(rows))
    return pa.table({field.name: zeros.cast(field.type) for field in schema}, schema=schema)


def _said(run: Path, **fields: Any) -> None:
    found = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**found, **fields}))


@_bomb
def rows(run: Path) -> None:
    """4 MB that take 3.5 GB as rows."""
    path = run / "layer_stats" / _part(0)
    _repeated(path, _zeros(1_000_000), 35)
    _padded(path)


@_bomb
def parts(run: Path) -> None:
    """900 parts that take 60 GB together."""
    first = run / "layer_stats" / _part(0)
    _repeated(first, _zeros(600_000), 1)
    for flush in range(1, 900):
        os.link(first, run / "layer_stats" / _part(flush))


@_bomb
def columns(run: Path) -> None:
    """9,900 logged columns."""
    names = [f"c{k}" for k in range(9_900)]
    rows = pq.read_table(run / "steps" / _part(0)).replace_schema_metadata(None)
    cells = {
        **dict(zip(rows.column_names, rows.columns, strict=True)),
        **dict.fromkeys(names, [1.0] * 4),
    }
    pq.write_table(pa.table(cells), run / "steps" / _part(0))


@_bomb
def ids(run: Path) -> None:
    """190,000 layers."""
    known = pq.read_table(run / "layers.parquet").slice(0, 1).replace_schema_metadata(None)
    table = pa.concat_tables([known] * 190_000).combine_chunks()
    table = table.set_column(0, "layer", pa.array(np.arange(190_000), pa.int32()))
    pq.write_table(table, run / "layers.parquet")


@_bomb
def text(run: Path) -> None:
    """Names that are 60 MB in each of 60 groups of rows."""
    path = run / "layers.parquet"
    known = pq.read_table(path).slice(0, 1).replace_schema_metadata(None)
    known = known.set_column(1, "name", pa.array(["x" * 60_000]))
    _repeated(path, pa.concat_tables([known] * 1000), 60)
    _padded(path)


@_bomb
def probes(run: Path) -> None:
    """900 files of a probe that findings read, of 20 MB each."""
    folder = run / "probes" / "sharpness"
    folder.mkdir(parents=True)
    first = folder / f"step-{0:012d}.parquet"
    _repeated(first, pa.table({"sharpness": np.zeros(2_500_000)}), 1)
    for step in range(1, 900):
        os.link(first, folder / f"step-{step:012d}.parquet")


@_bomb
def manifest(run: Path) -> None:
    """4 MB of empty lists, 150 MB in memory."""
    text = (run / "run.json").read_text().rstrip()[:-1]
    (run / "run.json").write_text(f'{text}, "damaged": [{"[]," * 1_300_000}[]]}}')


@_bomb
def ranks(run: Path) -> None:
    """60 MB of what ranks say."""
    (run / "ranks").mkdir()
    elements = {f"{k:x}": 1 for k in range(330_000)}
    for rank in range(16):
        (run / "ranks" / f"a0.r{rank}.json").write_text(json.dumps({"elements": elements}))


@_bomb
def uncounted(run: Path) -> None:
    """200 million steps in 4 MB, of a run that does not say how many they are."""
    path = run / "steps" / _part(0)
    schema = pa.schema([("step", pa.int64())])
    _repeated(path, pa.table({"step": pa.array(np.zeros(10_000_000, np.int64))}, schema), 20)
    _padded(path)
    _said(run, status="running", steps=None, last_loss=None, num_layers=None, num_joins=None)

"""All tables of a run as CSV files, streamed, with names beside ids."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from analyzer.cli.csv_tables import named, write_csv
from analyzer.storage.run import Run
from analyzer.storage.schema import STATIC_TABLES, STEP_TABLES
from analyzer.storage.static import StaticTable, probe_rows

__all__ = ["export_csv"]

_BATCH_ROWS = 100_000
_TABLE_OF = {"layer": "layers", "parameter": "parameters", "join": "joins"}
Names = Mapping[str, Mapping[int, str]]


def export_csv(run: Run, folder: Path) -> Iterator[tuple[str, int]]:
    """Write every table of a run, one after the other, ranks pooled.

    A column ``layer_name``, ``parameter_name`` or ``join_name`` follows each id that refers to
    another table.

    Args:
        run: An opened run.
        folder: Where to write; made where it does not exist.

    Yields:
        The file's path in the folder and its number of rows, after each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    static = {t: StaticTable(run.path, t, run.warnings.append).read() for t in STATIC_TABLES}
    names = {key: _names(static[table], key) for key, table in _TABLE_OF.items()}
    for table, rows in static.items():
        others = {key: names[key] for key in names if _TABLE_OF[key] != table}
        yield f"{table}.csv", _write(folder / f"{table}.csv", [rows], others)
    for table in STEP_TABLES:
        empty = run.read(table, steps=[])
        size = max(1, _BATCH_ROWS // max(1, *(rows.num_rows for rows in static.values())))
        batches = _with_header(empty, run.batches(table, size))
        yield f"{table}.csv", _write(folder / f"{table}.csv", batches, names)
    for probe in run.probes:
        (folder / "probes").mkdir(exist_ok=True)
        rows = probe_rows(run.path / "probes" / probe, run.warnings.append)
        file = f"probes/{probe}.csv"
        yield file, _write(folder / file, [rows], names)


def _names(rows: pa.Table, key: str) -> dict[int, str]:
    ids, names = rows.column(key).to_pylist(), rows.column("name").to_pylist()
    return dict(zip(ids, names, strict=True))


def _with_header(empty: pa.Table, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The batches after an empty one, so that a table without rows has its columns."""
    yield empty
    yield from batches


def _write(path: Path, batches: Iterable[pa.Table], names: Names) -> int:
    """Write batches with a name beside each id that refers to another table."""
    return write_csv(path, (_with_names(batch, names) for batch in batches))


def _with_names(batch: pa.Table, names: Names) -> pa.Table:
    for key, of_key in names.items():
        if key in batch.column_names and f"{key}_name" not in batch.column_names:
            batch = named(batch, key, of_key)
    return batch

"""The tables of a run that have no steps: layers, parameters, joins, and what probes measured."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.storage.arrays import as_array
from analyzer.storage.columns import conform, unified
from analyzer.storage.parts import listing
from analyzer.storage.schema import TABLES

__all__ = ["StaticTable", "probe_files", "probe_rows"]

_PROBE_FILE = re.compile(r"step-(\d{12,18})\.parquet")
_FAILURES = (OSError, pa.ArrowException, ValueError, KeyError)


class StaticTable:
    """One of the tables that are written whole.

    Args:
        run: Folder of the run.
        name: ``layers``, ``parameters`` or ``joins``.
        warn: Receives a sentence when the file cannot be read.
    """

    def __init__(self, run: Path, name: str, warn: Callable[[str], None]) -> None:
        self._path, self._name, self._warn = run / f"{name}.parquet", name, warn
        self._table: pa.Table | None = None

    def refresh(self) -> None:
        """Read the file again at the next question."""
        self._table = None

    def read(self) -> pa.Table:
        """Return the rows; none where the file is missing or damaged."""
        if self._table is None:
            self._table = self._read()
        return self._table

    def names(self) -> dict[int, str]:
        """Return the name of each id."""
        rows = self.read()
        return dict(zip(rows.column(0).to_pylist(), rows.column("name").to_pylist(), strict=True))

    def _read(self) -> pa.Table:
        # A file of an earlier or foreign version may lack a column that is never null here.
        fields = [field.with_nullable(True) for field in TABLES[self._name]]
        schema = pa.schema(fields, metadata=TABLES[self._name].metadata)
        if self._path.is_symlink() or not self._path.is_file():
            return schema.empty_table()
        try:
            return conform(pq.ParquetFile(self._path).read(), schema)
        except _FAILURES as error:
            self._warn(f"{self._path.name} cannot be read and is left out ({_short(error)})")
            return schema.empty_table()


def probe_files(folder: Path) -> dict[int, Path]:
    """Return the files of one probe by step."""
    found = ((_PROBE_FILE.fullmatch(name), name) for name in sorted(listing(folder)))
    return {int(match[1]): folder / name for match, name in found if match}


def probe_rows(folder: Path, warn: Callable[[str], None]) -> pa.Table:
    """Return what a probe measured at all steps, with a ``step`` column in front."""
    tables = []
    for step, path in probe_files(folder).items():
        try:
            rows = pq.ParquetFile(path).read().replace_schema_metadata(None)
        except _FAILURES as error:
            name = f"probes/{folder.name}/{path.name}"
            warn(f"{name} cannot be read and is left out ({_short(error)})")
            continue
        if "step" in rows.column_names:
            rows = rows.drop_columns(["step"])
        steps = as_array(np.full(rows.num_rows, step, dtype=np.int64))
        tables.append(rows.add_column(0, "step", steps))
    if not tables:
        return pa.table({"step": pa.nulls(0, pa.int64())})
    schema = unified(table.schema for table in tables)
    return pa.concat_tables([conform(table, schema) for table in tables])


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"

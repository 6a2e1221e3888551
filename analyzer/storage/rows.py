"""What the training hands to the writer, and the tables that it becomes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.storage.arrays import (
    as_array,
    as_cells,
    as_column,
    as_numpy,
    inferred,
    is_number,
    plain,
    side_by_side,
)
from analyzer.storage.bins import Numbers
from analyzer.storage.schema import (
    CONSTANT_COLUMNS,
    PROBES,
    SCHEMA_VERSION,
    SHARE,
    STAT_COLUMNS,
    TABLES,
)

__all__ = ["Block", "StepRecord", "probe_table", "stat_rows", "static_table", "step_rows"]


@dataclass(frozen=True)
class Block:
    """Rows of one table of statistics for one step: ids ``[rows]``, values ``[rows, columns]``.

    Columns are in the order of the schema; ``present`` is False for null, None where nothing is
    null. NaN is a value.
    """

    table: str
    ids: NDArray[np.int32]
    values: NDArray[np.float64]
    present: NDArray[np.bool_] | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        return self.ids.nbytes + self.values.nbytes + getattr(self.present, "nbytes", 0)

    def check(self) -> None:
        """Raise ValueError where the arrays are not those of the table."""
        expected = (len(self.ids), len(STAT_COLUMNS[self.table]))
        for name in ("values", "present"):
            array = getattr(self, name)
            if array is not None and array.shape != expected:
                raise ValueError(f"{name} of {self.table} are {array.shape}, expected {expected}")


@dataclass(frozen=True)
class StepRecord:
    """Everything that one step adds to a run: its row of ``steps``, and those of other tables.

    ``time`` is in microseconds since 1970; a column that ``steps`` does not know was logged.
    """

    step: Mapping[str, Any]
    blocks: Sequence[Block] = field(default_factory=list)


def stat_rows(
    table: str, blocks: Sequence[tuple[int, Block]], rank: int
) -> tuple[pa.Table, Numbers]:
    """Return the rows of the blocks of some steps, in their order, as a table and as arrays."""
    schema = TABLES[table]
    counts = [len(block.ids) for _, block in blocks]
    steps = np.repeat(np.array([step for step, _ in blocks], dtype=np.int64), counts)
    ids = np.concatenate([block.ids for _, block in blocks]).astype(np.int32, copy=False)
    values = np.concatenate([block.values for _, block in blocks]).astype(np.float64, copy=False)
    present = _present([block for _, block in blocks])
    columns = [as_array(steps), as_array(np.full(len(ids), rank, dtype=np.int16)), as_array(ids)]
    for place, name in enumerate(STAT_COLUMNS[table]):
        known = None if present is None else present[:, place]
        columns.append(as_column(values[:, place], known, schema.field(name).type))
    whole = pa.Table.from_arrays(columns, schema=schema)
    return whole, Numbers(STAT_COLUMNS[table], steps, ids, values, present)


def _present(blocks: Sequence[Block]) -> NDArray[np.bool_] | None:
    if all(block.present is None for block in blocks):
        return None
    masks = [
        np.ones(block.values.shape, dtype=bool) if block.present is None else block.present
        for block in blocks
    ]
    return np.concatenate(masks)


def step_rows(
    records: Sequence[Mapping[str, Any]], rank: int, attempt: int, warn: Callable[[str], None]
) -> tuple[pa.Table, Numbers]:
    """Return the rows of ``steps``; a value that its column cannot hold is null, with a warning."""
    schema = TABLES["steps"]
    names = list(dict.fromkeys([*schema.names, *(name for row in records for name in row)]))
    constant = {"rank": rank, "attempt": attempt}
    fields, arrays = [], []
    for name in names:
        cells = [constant.get(name, plain(row.get(name))) for row in records]
        known = schema.field(name) if name in schema.names else None
        type_ = inferred(cells) if known is None else known.type
        arrays.append(_cells(name, cells, type_, warn))
        fields.append(known or _logged(name, type_))
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=schema.metadata))
    steps = as_numpy(table.column("step")).astype(np.int64, copy=False)
    numbers = [f.name for f in table.schema if f.name not in CONSTANT_COLUMNS and is_number(f.type)]
    values, present = side_by_side(table, numbers)
    ids = np.zeros(len(steps), dtype=np.int32)
    return table, Numbers(tuple(numbers), steps, ids, values, present)


def _logged(name: str, type_: pa.DataType) -> pa.Field:
    unit, text = b"", "Logged by the training."
    if name.startswith("learning_rate_"):
        unit = TABLES["steps"].field("learning_rate").metadata[b"unit"]
        text = f"Learning rate of group {name.removeprefix('learning_rate_')}, counted from 0."
    if name == SHARE:
        text = "What this rank adds to gradient_norm: the root of the sum of squares over ranks."
    return pa.field(name, type_, metadata={b"unit": unit, b"description": text.encode()})


def _cells(
    name: str, cells: Sequence[Any], type_: pa.DataType, warn: Callable[[str], None]
) -> pa.Array:
    """One column; a cell that its type cannot hold costs that cell, never the other rows."""
    try:
        return as_cells(cells, type_)
    except (TypeError, ValueError, OverflowError):
        fits = [_fits(cell, type_) for cell in cells]
        wrong = cells[fits.index(False)]
        warn(f"{name} was {str(wrong)[:80]!r} in a step, expected {type_}; it is null there")
        return as_cells([c if fit else None for c, fit in zip(cells, fits, strict=True)], type_)


def _fits(cell: Any, type_: pa.DataType) -> bool:
    try:
        as_cells([cell], type_)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def static_table(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the table of layers, parameters or joins; refuse a null where there must be none."""
    schema = TABLES[name]
    arrays = [as_cells([row.get(field.name) for row in rows], field.type) for field in schema]
    for known, array in zip(schema, arrays, strict=True):
        if array.null_count and not known.nullable:
            raise ValueError(f"a row of {name} has no {known.name!r}; expected one in every row")
    return pa.Table.from_arrays(arrays, schema=schema)


def probe_table(name: str, columns: Mapping[str, Any], metadata: Mapping[str, str]) -> pa.Table:
    """Return the table of a probe at one step, in the types of the schema where it names them."""
    known = PROBES.get(name)
    fields, arrays = [], []
    for column, values in columns.items():
        cells = [plain(cell) for cell in values]
        field_ = known.field(column) if known is not None and column in known.names else None
        field_ = field_ or pa.field(column, _probe_type(column, cells))
        arrays.append(as_cells(cells, field_.type))
        fields.append(field_)
    version = {"schema_version": str(SCHEMA_VERSION)}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={**version, **metadata}))


def _probe_type(column: str, cells: Sequence[Any]) -> pa.DataType:
    """Type of a column that the schema leaves open: ids and names of layers and joins are both."""
    type_ = inferred(cells)
    return pa.int32() if column in ("layer", "join") and type_ == pa.int64() else type_

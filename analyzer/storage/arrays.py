"""Between NumPy, Python and Arrow without pandas.

``pyarrow.array`` and ``to_numpy`` import pandas where it is installed, which takes half a second:
too much inside a training, and for a command that only looks. So arrays are made of their buffers.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.storage.schema import TABLES

if TYPE_CHECKING:
    import pandas as pd


__all__ = [
    "as_array",
    "as_cells",
    "as_column",
    "as_floats",
    "as_numpy",
    "conform",
    "frame",
    "inferred",
    "is_number",
    "is_plain",
    "is_present",
    "plain",
    "side_by_side",
    "static_frame",
    "unified",
]

_TYPES = {
    np.dtype(name): pa.type_for_alias(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
}
_DTYPES = {type_: dtype for dtype, type_ in _TYPES.items()}


def _dtype(type_: pa.DataType) -> np.dtype[Any]:
    """The NumPy type of the values in the buffer of an array; times are integers there."""
    return np.dtype(np.int64) if pa.types.is_timestamp(type_) else _DTYPES[type_]


def _bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def as_array(
    values: NDArray[Any], type_: pa.DataType | None = None, null: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return numbers or booleans ``[n]``, null where ``null`` is True; NaN stays a value."""
    type_ = type_ or _TYPES[values.dtype]
    with np.errstate(over="ignore"):  # a float64 beyond the range of float32 is infinite there
        cast = np.ascontiguousarray(values, dtype=_dtype(type_))
    data = _bits(cast) if pa.types.is_boolean(type_) else pa.py_buffer(cast)
    validity = None if null is None or not null.any() else _bits(~null)
    return pa.Array.from_buffers(type_, len(cast), [validity, data])


def as_column(
    values: NDArray[np.float64], present: NDArray[np.bool_] | None, type_: pa.DataType
) -> pa.Array:
    """Return floats as a column of its type; a NaN in a column of counts is null."""
    if pa.types.is_integer(type_):
        finite = np.isfinite(values)
        present = finite if present is None else present & finite
        values = np.where(present, values, 0)
    return as_array(values, type_, None if present is None else ~present)


def as_cells(cells: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Return an Arrow array of Python values; None becomes null.

    Raises:
        TypeError, ValueError, OverflowError: If the type does not hold a value exactly.
    """
    if pa.types.is_null(type_):
        return pa.nulls(len(cells))
    null = np.array([cell is None for cell in cells], dtype=bool)
    if pa.types.is_string(type_):
        return _strings(cells, null)
    if pa.types.is_list(type_):
        return _lists(cells, null, type_)
    numbers = [0 if cell is None else _number(cell, type_) for cell in cells]
    return as_array(np.array(numbers, dtype=_dtype(type_)), type_, null)


def _number(cell: Any, type_: pa.DataType) -> Any:
    if pa.types.is_floating(type_):
        return float(cell)
    if pa.types.is_boolean(type_):
        if not isinstance(cell, bool | np.bool_):
            raise TypeError(f"{cell!r} is not a truth value")
        return bool(cell)
    if int(cell) != cell:
        raise ValueError(f"{cell!r} is not an integer")
    return int(cell)


def _strings(cells: Sequence[Any], null: NDArray[np.bool_]) -> pa.Array:
    # A lone surrogate, as in a file name that is not UTF-8, has no encoding; it is shown escaped.
    texts = [b"" if cell is None else str(cell).encode(errors="backslashreplace") for cell in cells]
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    validity = _bits(~null) if null.any() else None
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def _lists(cells: Sequence[Any], null: NDArray[np.bool_], type_: pa.DataType) -> pa.Array:
    lists = [[] if cell is None else list(cell) for cell in cells]
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    items = as_cells([item for one in lists for item in one], type_.value_type)
    validity = _bits(~null) if null.any() else None
    buffers = [validity, pa.py_buffer(offsets)]
    return pa.Array.from_buffers(type_, len(lists), buffers, children=[items])


def _single(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def as_numpy(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Return the values of numbers or booleans; where one is null, there is any value."""
    array = _single(column)
    data = array.buffers()[1] if not pa.types.is_null(array.type) else None
    if data is None:
        return np.zeros(len(array), dtype=np.int64)
    if pa.types.is_boolean(array.type):
        return _unpacked(data, array)
    dtype = _dtype(array.type)
    offset = array.offset * dtype.itemsize
    values: NDArray[Any] = np.frombuffer(data, dtype, count=len(array), offset=offset)
    return values


def _unpacked(bits: pa.Buffer, array: pa.Array) -> NDArray[np.bool_]:
    end = array.offset + len(array)
    unpacked = np.unpackbits(np.frombuffer(bits, np.uint8), count=end, bitorder="little")
    return unpacked[array.offset :].astype(bool)


def is_present(column: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return False for null, True for values, NaN included."""
    array = _single(column)
    if array.null_count == 0:
        return np.ones(len(array), dtype=bool)
    if pa.types.is_null(array.type):
        return np.zeros(len(array), dtype=bool)
    return _unpacked(array.buffers()[0], array)


def as_floats(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Return numbers or booleans as float64; null becomes NaN."""
    values: NDArray[np.float64] = as_numpy(column).astype(np.float64, copy=False)
    if column.null_count:
        return np.where(is_present(column), values, np.nan)
    return values


_LARGEST = 2**63


def plain(value: Any) -> Any:
    """Return a logged value as bool, int, float, str or None; one-element arrays are opened."""
    if value is None or isinstance(value, bool):
        return value
    # A subclass, as NumPy's and those of an enumeration, would hide what a value is.
    for kind in (float, str, int):
        if isinstance(value, kind):
            number = kind(value)
            is_huge = isinstance(number, int) and not -_LARGEST <= number < _LARGEST
            return float(number) if is_huge else number
    opened = value.item() if hasattr(value, "item") else str(value)
    return opened if isinstance(opened, bool | int | float | str) else str(opened)


def inferred(values: Sequence[Any]) -> pa.DataType:
    """Return the narrowest type that holds every plain value: bool, int64, float64 or string."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.null()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.string() if str in kinds else pa.float64()


def _wider(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """Return a type that holds the values of both."""
    if left == right or pa.types.is_null(right):
        return left
    if pa.types.is_null(left):
        return right
    return pa.float64() if is_number(left) and is_number(right) else pa.string()


def is_number(type_: pa.DataType) -> bool:
    """Whether values of the type have a minimum, a mean and a maximum."""
    tests = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
    return any(test(type_) for test in tests)


def is_plain(type_: pa.DataType) -> bool:
    """Whether values of the type are numbers, texts or times."""
    tests = (is_number, pa.types.is_string, pa.types.is_timestamp, pa.types.is_null)
    return any(test(type_) for test in tests)


def unified(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the schema that holds the columns of all, in the order of their first appearance."""
    fields: dict[str, pa.Field] = {}
    metadata = None
    for schema in schemas:
        metadata = metadata or schema.metadata
        for field in schema:
            known = fields.get(field.name)
            if known is None:
                fields[field.name] = field
            elif known.type != field.type:
                fields[field.name] = known.with_type(_wider(known.type, field.type))
    return pa.schema(list(fields.values()), metadata=metadata)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns and types of a schema; columns that it lacks are null."""
    if table.schema.equals(schema):
        return table
    known = {*table.column_names}
    columns = [
        _cast(table.column(field.name), field.type)
        if field.name in known
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Cast, with large integers rounded to the nearest float instead of refused."""
    if column.type == type_:
        return column
    return column.cast(type_, safe=not pa.types.is_floating(type_))


def frame(rows: pa.Table) -> "pd.DataFrame":
    """Return the rows as a DataFrame; null becomes NaN there."""
    result: pd.DataFrame = rows.replace_schema_metadata(None).to_pandas()
    return result


def static_frame(table: str, rows: pa.Table) -> "pd.DataFrame":
    """Return a static table: lists as lists, ids that may be null as nullable integers."""
    import pandas as pd

    result = frame(rows)
    for field in TABLES[table]:
        if pa.types.is_list(field.type):
            # Without the type, pandas would spread lists of equal length over columns.
            cells = rows.column(field.name).to_pylist()
            result[field.name] = pd.Series(cells, dtype=object)
        elif pa.types.is_integer(field.type) and field.nullable:
            result[field.name] = result[field.name].astype(f"Int{field.type.bit_width}")
    return result


def side_by_side(
    rows: pa.Table, names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return numeric columns as one array ``[rows, columns]``, and where they are not null."""
    values = np.empty((rows.num_rows, len(names)))
    present = np.empty(values.shape, dtype=bool)
    for place, name in enumerate(names):
        values[:, place], present[:, place] = as_floats(rows[name]), is_present(rows[name])
    return values, present

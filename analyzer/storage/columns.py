"""One schema for tables whose columns came and went: types are widened, missing ones are null."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["conform", "inferred", "is_number", "masked", "plain", "unified"]

_LARGEST = 2**63


def plain(value: Any) -> Any:
    """Return a logged value as bool, int, float, str or None; one-element arrays are opened."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if -_LARGEST <= value < _LARGEST else float(value)
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
    numbers = all(is_number(type_) for type_ in (left, right))
    return pa.float64() if numbers else pa.string()


def is_number(type_: pa.DataType) -> bool:
    """Whether values of the type have a minimum, a mean and a maximum."""
    tests = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
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
    """Return a table with the columns and types of a schema; columns that it lacks are null.

    Raises:
        pyarrow.ArrowInvalid: If a value does not fit its new type.
    """
    if table.schema.equals(schema):
        return table
    columns = [
        _cast(table.column(field.name), field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Cast, with large integers rounded to the nearest float instead of refused."""
    if column.type == type_:
        return column
    return column.cast(type_, safe=not pa.types.is_floating(type_))


def masked(values: np.ndarray[Any, Any], mask: Any, type_: pa.DataType) -> pa.Array:
    """Return an array of its type: null where the mask is True, NaN kept as a value.

    A NaN in a column of counts has no integer; it is null.
    """
    if pa.types.is_integer(type_):
        unknown = ~np.isfinite(values)
        mask = unknown if mask is None else mask | unknown
        return pa.array(np.where(mask, 0, values).astype(type_.to_pandas_dtype()), mask=mask)
    with np.errstate(over="ignore"):  # a float64 beyond the range of float32 is infinite there
        return pa.array(values.astype(type_.to_pandas_dtype(), copy=False), mask=mask)

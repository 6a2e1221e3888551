"""One schema for tables whose columns came and went: types are widened, missing ones are null."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

__all__ = ["conform", "inferred", "is_number", "plain", "unified"]

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

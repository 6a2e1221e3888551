"""Arrow tables as pandas DataFrames."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from analyzer.storage.schema import TABLES

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["frame", "static_frame"]


def frame(rows: pa.Table) -> "pd.DataFrame":
    """Return the rows as a DataFrame; null becomes NaN there."""
    result: pd.DataFrame = rows.replace_schema_metadata(None).to_pandas()
    return result


def static_frame(table: str, rows: pa.Table) -> "pd.DataFrame":
    """Return a static table: lists as lists, ids that may be null as nullable integers."""
    result = frame(rows)
    for field in TABLES[table]:
        if pa.types.is_list(field.type):
            result[field.name] = _objects(rows.column(field.name).to_pylist())
        elif pa.types.is_integer(field.type) and field.nullable:
            result[field.name] = result[field.name].astype("Int32")
    return result


def _objects(cells: Sequence[Any]) -> "pd.Series[Any]":
    """A column of Python objects; without the type, pandas would spread lists of equal length."""
    import pandas as pd

    return pd.Series(list(cells), dtype=object)

"""The data behind a figure as comma-separated values."""

from typing import Any

import numpy as np
import pandas as pd

from analyzer.texts import escaped

__all__ = ["cell_rows", "csv_cells", "csv_text", "is_numeric"]


def csv_text(rows: pd.DataFrame) -> str:
    """Return comma-separated values, every number in full precision.

    Missing values are empty; NaN and infinite ones are written as such, and text so that no
    spreadsheet runs it.
    """
    return "".join(f"{','.join(row)}\n" for row in zip(*csv_cells(rows), strict=True))


def csv_cells(rows: pd.DataFrame, digits: int | None = None) -> list[list[str]]:
    """Return the columns of a table as cells of a CSV file, each below its heading.

    Numbers that are not whole have ``digits`` significant digits; None for all that they have.
    """
    columns = zip(*cell_rows(rows), strict=True) if len(rows) else ((),) * rows.shape[1]
    return [
        [_csv_cell(str(name)), *(_csv_cell(value, digits) for value in column)]
        for name, column in zip(rows.columns, columns, strict=True)
    ]


def _csv_cell(value: Any, digits: int | None = None) -> str:
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return "NaN"
        return repr(float(value)) if digits is None else f"{float(value):.{digits}g}"
    return escaped(value, "csv") if isinstance(value, str) else str(value)


def cell_rows(rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Return the cells row by row; a missing text is None, and a NaN stays NaN."""
    return list(zip(*(_cells(rows[name]) for name in rows.columns), strict=True))


def _cells(column: "pd.Series[Any]") -> list[Any]:
    is_text = not is_numeric(column)
    return [
        None if v is pd.NA or (is_text and isinstance(v, float) and np.isnan(v)) else v
        for v in column
    ]


def is_numeric(column: "pd.Series[Any]") -> bool:
    """Return whether a column holds numbers; truth values are words."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)

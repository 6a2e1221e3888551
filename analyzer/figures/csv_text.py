"""The data behind a figure as comma-separated values."""

import re
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["cell_rows", "csv_cells", "csv_text", "is_numeric", "text_cell"]

# Excel and its kin run a cell that begins so as a formula; some begin a cell after a semicolon, a
# tab or a lone carriage return, too, whatever stands in quotes.
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[=+\-@\uff1d\uff0b\uff0d\uff20\x00-\x1f\x7f])")
_QUOTED = re.compile(r'[",;\t\r\n]')


def csv_text(rows: pd.DataFrame) -> str:
    """Return comma-separated values, every number in full precision.

    Missing values are empty; NaN and infinite ones are written as such, and text as ``text_cell``
    does.
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
    return text_cell(value) if isinstance(value, str) else str(value)


def text_cell(text: str) -> str:
    """Return a text as a cell of a CSV file: in quotes where it needs them, never a formula.

    What a spreadsheet would run gets an apostrophe in front.
    """
    text = _FORMULA.sub(r"\1'", text)
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if _QUOTED.search(text) else text


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

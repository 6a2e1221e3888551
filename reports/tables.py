"""Tables of a report, and how they are written as Markdown and CSV."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "PaperTable",
    "cell_rows",
    "csv_cells",
    "csv_text",
    "is_missing",
    "is_numeric",
    "markdown_text",
]

# Excel and its kin run such a cell as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_QUOTED = re.compile(r'[",\r\n]')


@dataclass(frozen=True)
class PaperTable:
    """A table with its words.

    Args:
        key: Name of its files, and of its label.
        caption: What it shows, with the run that it is of.
        rows: Its cells; column names are the headings.
    """

    key: str
    caption: str
    rows: pd.DataFrame


def cell_rows(rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Return the cells row by row; a missing text is None, and a NaN stays NaN."""
    columns = [
        list(rows[name]) if is_numeric(rows[name]) else [_or_none(value) for value in rows[name]]
        for name in rows.columns
    ]
    return list(zip(*columns, strict=True))


def _or_none(value: Any) -> Any:
    """A text, or None where pandas has its mark for a missing one."""
    return None if isinstance(value, float) and np.isnan(value) else value


def is_missing(value: Any) -> bool:
    """Return whether a cell holds nothing; NaN is a number."""
    return value is None or value is pd.NA


def is_numeric(column: "pd.Series[Any]") -> bool:
    """Return whether a column holds numbers; truth values are words."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def markdown_text(table: PaperTable) -> str:
    """Return a Markdown table with its caption below; markup in cells is text."""
    names = [_markdown_cell(str(name).replace("_", " ")) for name in table.rows.columns]
    ends = ["---:" if is_numeric(table.rows[name]) else "---" for name in table.rows.columns]
    lines = [_markdown_line(names), _markdown_line(ends)]
    for row in cell_rows(table.rows):
        lines.append(_markdown_line([_markdown_cell(value) for value in row]))
    return "\n".join([*lines, "", _markdown_cell(table.caption), ""])


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(value: Any) -> str:
    if is_missing(value):
        return "–"
    if isinstance(value, float | np.floating):
        return "NaN" if np.isnan(value) else f"{value:.4g}"
    words = re.sub(r"\s", " ", str(value)).replace("&", "&amp;")
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", words)


def csv_text(rows: pd.DataFrame) -> str:
    """Return comma-separated values, every number in full precision.

    Missing values are empty; NaN and infinite ones are written as such. Text that a spreadsheet
    would take for a formula gets an apostrophe in front.
    """
    return "".join(f"{','.join(row)}\n" for row in zip(*csv_cells(rows), strict=True))


def csv_cells(rows: pd.DataFrame, digits: int | None = None) -> list[list[str]]:
    """Return the columns of a table as cells of a CSV file, each below its heading.

    Args:
        rows: The table.
        digits: Significant digits of numbers that are not whole; None for all that they have.
    """
    columns = zip(*cell_rows(rows), strict=True) if len(rows) else ((),) * rows.shape[1]
    return [
        [_csv_cell(str(name)), *(_csv_cell(value, digits) for value in column)]
        for name, column in zip(rows.columns, columns, strict=True)
    ]


def _csv_cell(value: Any, digits: int | None = None) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return "NaN"
        return repr(float(value)) if digits is None else f"{float(value):.{digits}g}"
    text = str(value)
    text = f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA) else text
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if _QUOTED.search(text) else text

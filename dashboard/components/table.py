"""The numbers behind a figure as a table in the page."""

import math
from typing import Any

from dash import html

__all__ = ["number_table"]

_MOST_ROWS = 60
_MOST_CHARACTERS = 80


def number_table(table: Any) -> list[Any]:
    """Return the first rows of a DataFrame, and how many there are.

    Args:
        table: A pandas DataFrame.
    """
    head = html.Thead(html.Tr([html.Th(str(name), scope="col") for name in table.columns]))
    rows = table.head(_MOST_ROWS).itertuples(index=False, name=None)
    body = html.Tbody([html.Tr([html.Td(_text(cell)) for cell in row]) for row in rows])
    shown = min(len(table), _MOST_ROWS)
    words = f"{shown:,} of {len(table):,} rows; the CSV file has all of them."
    return [html.P(words if shown < len(table) else f"{shown:,} rows."), html.Table([head, body])]


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.6g}" if math.isfinite(cell) else str(cell)
    return str(cell)[:_MOST_CHARACTERS]

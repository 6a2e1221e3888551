"""The data behind a figure as a CSV file."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from dash import Dash
from flask import Response, request

from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import PANELS

from .address import parse
from .context import context
from .drawing import recorded
from .library import Library

__all__ = ["as_csv", "connect", "harmless"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def connect(app: Dash, library: Library) -> None:
    """Serve ``/csv/<panel>?run=…``."""

    def download(key: str) -> Response:
        if key not in {panel.key for panel in PANELS}:
            return _refusal(f"there is no figure {key[:80]!r}", 404)
        try:
            chosen = context(library, parse(request.query_string.decode(errors="replace")))
            if not chosen.runs:
                return _refusal("no run is named that can be opened; expected ?run=NAME", 404)
            table = recorded(key, chosen).table()
        except AnalyzerError as error:
            return _refusal(str(error), 404)
        lines = as_csv(table)
        headers = {"Content-Disposition": f'attachment; filename="{key}.csv"'}
        return Response(lines, mimetype="text/csv", headers=headers)

    app.server.add_url_rule("/csv/<key>", "csv", download)


def _refusal(text: str, status: int) -> Response:
    return Response(text + "\n", status, mimetype="text/plain")


def as_csv(table: Any) -> Iterator[str]:
    """Yield the lines of a table; a null is an empty cell, NaN and infinities stay words.

    Args:
        table: A pandas DataFrame.
    """
    yield _line(table.columns)
    for row in table.itertuples(index=False, name=None):
        yield _line(row)


def _line(cells: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([harmless(cell) for cell in cells])
    return text.getvalue()


def harmless(cell: Any) -> Any:
    """Return a cell that a spreadsheet does not take for a formula; floats keep every digit."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return repr(float(cell))
    if isinstance(cell, str) and cell.startswith(_FORMULA):
        return "'" + cell
    return cell

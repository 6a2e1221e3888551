"""What a page asks for beside its callbacks: the data of a figure, and its small picture."""

from collections.abc import Callable
from typing import Any

from flask import Flask, Response, request

from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import PANELS
from analyzer.figures.csv_text import csv_text

from .address import Context
from .drawing import recorded, shown
from .thumbnail import thumbnail

__all__ = ["add_downloads"]


def add_downloads(server: Flask, seen: Callable[[str], Context]) -> None:
    """Serve ``/csv/<panel>?run=…``, and ``/thumbnail/<panel>?run=…&scheme=…``.

    Args:
        server: The Flask application.
        seen: Leads from a query string to its runs.
    """

    def download(key: str) -> Response:
        if key not in {panel.key for panel in PANELS}:
            return _refusal(f"there is no figure {key[:80]!r}")
        try:
            chosen = seen(request.query_string.decode(errors="replace"))
            if not chosen.runs:
                return _refusal("no run is named that can be opened; expected ?run=NAME")
            table = recorded(key, chosen).table()
        except AnalyzerError as error:
            return _refusal(str(error))
        headers = {"Content-Disposition": f'attachment; filename="{key}.csv"'}
        return Response(csv_text(table), mimetype="text/csv", headers=headers)

    def picture(key: str) -> Response:
        if key not in {panel.key for panel in PANELS}:
            return _refusal(f"there is no figure {key[:80]!r}")
        chosen = seen(request.query_string.decode(errors="replace"))
        found = shown(key, chosen, request.args.get("scheme", "light"))
        empty: dict[str, Any] = {"data": [], "layout": {}}
        return Response(thumbnail(found.figure or empty), mimetype="image/svg+xml")

    server.add_url_rule("/csv/<key>", "csv", download)
    server.add_url_rule("/thumbnail/<key>", "thumbnail", picture)


def _refusal(text: str) -> Response:
    return Response(text + "\n", 404, mimetype="text/plain")

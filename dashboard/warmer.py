"""Draws the figures of a page while the browser still loads its scripts."""

import time
from contextlib import suppress

from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_at, page_of
from analyzer.storage.schema import STAT_COLUMNS

from .address import Address, Context, context, parse
from .cache import Line
from .drawing import shown, step_choices
from .library import Library

__all__ = ["Warmer"]

_NEWEST = 3
# The list itself comes first.
_LIST_SECONDS = 1.0
# The page itself comes first, too, and what it asks for meanwhile.
_READ_SECONDS, _REST_SECONDS = 0.5, 0.05
# Columns of single layers, some 60 kB each.
_MOST_COLUMNS = 1_000


class Warmer:
    """Draws in a thread what a page will ask for; of several pages only the last one.

    Args:
        library: The runs; what is drawn is kept there.

    Attributes:
        line: The thread.
        look: Name of the theme and whether the screen is narrow, as the last browser had them.
    """

    def __init__(self, library: Library) -> None:
        self.look = ("light", False)
        self.line = Line("warmer")
        self._library = library

    def ask(self, path: str, search: str) -> None:
        """Draw the figures of a page in the background; a page without figures needs nothing.

        The list of runs leads to an overview: those of the newest runs are drawn once it stands.

        Args:
            path: Its path.
            search: Its query string.
        """
        page = page_at(path)
        if path != "/" and (not search or page is None or not page.shown):
            return
        self.line.put("page", lambda: self._warm(path, search))

    def _warm(self, path: str, search: str) -> None:
        # Whoever asks for a figure itself is told what is wrong with it.
        with suppress(Exception):
            if path == "/":
                self._draw_newest()
            else:
                self._draw(path, context(self._library, parse(search)))

    def _draw_newest(self) -> None:
        time.sleep(_LIST_SECONDS)
        for listed in self._library.listing()[:_NEWEST]:
            if not self.line.is_called_off:
                self._draw(page_of("overview").path, context(self._library, Address((listed.id,))))

    def _draw(self, path: str, seen: Context) -> None:
        if not seen.runs:
            return
        scheme, narrow = self.look
        page = page_at(path)
        for panel in page.shown if page else ():
            if self.line.is_called_off:
                return
            shown(panel.key, seen, scheme, narrow=narrow)
        step_choices(seen, path)
        if page and "quantity" in page.controls:
            self._read_ahead(seen)

    def _read_ahead(self, seen: Context) -> None:
        """Read the statistics of the layers, one of which a reader may choose next.

        Only of runs so small that all of them are kept.
        """
        quantities = STAT_COLUMNS["layer_stats"]
        time.sleep(_READ_SECONDS)
        for column in quantities:
            for run in seen.runs:
                if self.line.is_called_off:
                    return
                if run.static_rows("layers").num_rows * len(quantities) <= _MOST_COLUMNS:
                    with suppress(AnalyzerError):
                        run.heatmap(column, 1, table="layer_stats")
                    time.sleep(_REST_SECONDS)

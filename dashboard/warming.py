"""What is drawn ahead of a page, while a browser still loads the page itself."""

import time
from contextlib import suppress
from threading import Lock

from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import RUNS, page_at, page_of
from analyzer.storage.schema import STAT_COLUMNS

from .address import Address, Context, context, opened
from .cache import Line
from .drawing import shown, step_choices
from .library import Library

__all__ = ["Warmer"]

_LIST, _OVERVIEW = RUNS.path, page_of("overview").path
# Pages that have something to show without a choice of runs.
_LEADING = (_LIST, _OVERVIEW)
# Newest runs whose overview is drawn ahead, once the list itself has been sent and has asked for
# what is new, which it does every 1.5 seconds.
_NEWEST, _LIST_SECONDS = 3, 1.8
# The page itself comes first, too, and what it asks for meanwhile.
_READ_SECONDS, _REST_SECONDS = 0.5, 0.05
_FIRST_SECONDS = 2.0
# Columns of single layers, some 60 kB each.
_MOST_COLUMNS = 1_000


class Warmer:
    """Draws in a thread what a page will ask for; of several pages only the last one.

    What is drawn is kept in the library.

    Attributes:
        line: The thread.
        look: Name of the theme and whether the screen is narrow, as the last browser had them.
    """

    def __init__(self, library: Library) -> None:
        self.look, self.line = ("light", False), Line("warmer")
        self._library, self._is_asked, self._turn = library, False, Lock()

    def ask(self, path: str, search: str) -> None:
        """Draw the figures of a page in the background; a page without figures needs nothing.

        The list of runs leads to an overview: those of the newest runs are drawn once it stands.
        """
        with self._turn:  # or what was drawn ahead says that this is drawn
            self._is_asked = True
        self._start(path, search)

    def _start(self, path: str, search: str) -> None:
        page = page_at(path)
        if page is None or (path not in _LEADING and (not search or not page.shown)):
            return
        # Long answers about the same runs would share the interpreter with their figures.
        self._library.drawn.clear()
        self.line.put("page", lambda: self._warm(path, search))

    def draw_first(self) -> None:
        """Draw the first page, unless some page was asked for already; wait until one is there."""
        if not self._is_asked:
            self._start(_OVERVIEW, "")
        self._library.drawn.wait(_FIRST_SECONDS)

    def _warm(self, path: str, search: str) -> None:
        # Whoever asks for a figure itself is told what is wrong with it.
        with suppress(Exception):
            if path == _LIST:
                self._rest()
                self._draw_newest()
            else:
                self._draw(path, opened(self._library, path, search))
        self._rest()

    def _rest(self) -> None:
        """Say that no figure is drawn; a browser that has asked for a page says so itself."""
        with self._turn:
            if not self._is_asked:
                self._library.drawn.set()

    def _draw_newest(self) -> None:
        time.sleep(_LIST_SECONDS)
        for listed in self._library.listing()[:_NEWEST]:
            if not self.line.is_called_off:
                self._draw(_OVERVIEW, context(self._library, Address((listed.id,))))

    def _draw(self, path: str, seen: Context) -> None:
        if not seen.runs:
            return
        scheme, narrow = self.look
        page = page_at(path)
        for one in page.shown if page else ():
            if self.line.is_called_off:
                return
            shown(one.key, seen, scheme, narrow=narrow)
        step_choices(seen, path)
        self._rest()
        if page and "quantity" in page.controls:
            self._read_ahead(seen)

    def _read_ahead(self, seen: Context) -> None:
        """Read the statistics of the layers, one of which a reader may choose next.

        Only of runs so small that all of them are kept.
        """
        time.sleep(_READ_SECONDS)
        quantities = STAT_COLUMNS["layer_stats"]
        for column in quantities:
            for run in seen.runs:
                if self.line.is_called_off:
                    return
                if run.static_rows("layers").num_rows * len(quantities) <= _MOST_COLUMNS:
                    with suppress(AnalyzerError):
                        run.heatmap(column, 1, table="layer_stats")
                    time.sleep(_REST_SECONDS)

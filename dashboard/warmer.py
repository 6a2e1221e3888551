"""Draws the figures of a page while the browser still loads its scripts."""

import threading
import time
from contextlib import suppress

from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_of
from analyzer.storage.schema import STAT_COLUMNS

from .address import Address, parse
from .context import Context, context
from .drawing import shown
from .frames import frames
from .library import Library
from .routes import page_at

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
        look: Name of the theme and whether the screen is narrow, as the last browser had them.
    """

    def __init__(self, library: Library) -> None:
        self.look = ("light", False)
        self._library = library
        self._wanted: tuple[str, str] | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

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
        with self._lock:
            self._wanted = (path, search)
            if self._thread is None:
                # Not a daemon: a program that ends while such a thread is in a library is aborted.
                self._thread = threading.Thread(target=self._work, name="warmer")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                wanted, self._wanted = self._wanted, None
                if wanted is None or not threading.main_thread().is_alive():
                    # Said under the lock, so that nobody counts on a thread that is about to end.
                    self._thread = None
                    return
            try:
                if wanted[0] == "/":
                    self._draw_newest()
                else:
                    self._draw(wanted[0], context(self._library, parse(wanted[1])))
            except Exception:
                # Whoever asks for the figure itself is told what is wrong.
                continue

    def _draw_newest(self) -> None:
        time.sleep(_LIST_SECONDS)
        for listed in self._library.listing()[:_NEWEST]:
            if self._wanted is None:
                self._draw(page_of("overview").path, context(self._library, Address((listed.id,))))

    def _draw(self, path: str, seen: Context) -> None:
        if not seen.runs:
            return
        scheme, narrow = self.look
        page = page_at(path)
        for panel in page.shown if page else ():
            if self._is_called_off():
                return
            shown(panel.key, seen, scheme, narrow=narrow)
        frames(seen, path)
        if page and "quantity" in page.controls:
            self._read_ahead(seen)

    def _is_called_off(self) -> bool:
        """Whether another page is asked for, or the program ends."""
        return self._wanted is not None or not threading.main_thread().is_alive()

    def _read_ahead(self, seen: Context) -> None:
        """Read the statistics of the layers, one of which a reader may choose next.

        Only of runs so small that all of them are kept.
        """
        quantities = STAT_COLUMNS["layer_stats"]
        time.sleep(_READ_SECONDS)
        for column in quantities:
            for run in seen.runs:
                if self._is_called_off():
                    return
                if run.static_rows("layers").num_rows * len(quantities) <= _MOST_COLUMNS:
                    with suppress(AnalyzerError):
                        run.heatmap(column, 1, table="layer_stats")
                    time.sleep(_REST_SECONDS)

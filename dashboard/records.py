"""Keeps the last records behind figures: a card, its numbers and its CSV ask for the same one."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from analyzer.analysis.view import View

__all__ = ["Records"]


class Records:
    """The last few records by panel and view.

    Two requests at a time for the same record compute it once. Runs are told apart as objects: the
    library opens a new one when a run has changed on disk.

    Args:
        most: Records that are kept.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, View], tuple[Lock, list[Any]]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str, view: View, info: Callable[[View], Any]) -> Any:
        """Return the record of a panel for a view, computed where it is not kept.

        Args:
            key: Key of the panel.
            view: What it is asked to show.
            info: Computes the record; what it raises is raised here, and not kept.
        """
        with self._lock:
            slot = self._kept.setdefault((key, view), (Lock(), []))
            self._kept.move_to_end((key, view))
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        lock, found = slot
        with lock:
            if not found:
                found.append(info(view))
            return found[0]

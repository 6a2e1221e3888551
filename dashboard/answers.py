"""Keeps long answers that threads look for, so that no request waits for them."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

import pyarrow as pa

from analyzer.storage.run import Run

__all__ = ["Answers"]

_MOST = 16


class Answers:
    """The last few answers about runs, such as findings and verdicts, one looked for at a time.

    Args:
        patience: Seconds that a request waits for an answer before it goes on without.
    """

    def __init__(self, patience: float = 0.03) -> None:
        self._patience = patience
        self._kept: OrderedDict[tuple[str, tuple[Run, ...]], Future[Any]] = OrderedDict()
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def get(self, what: str, runs: tuple[Run, ...], find: Callable[[], Any]) -> Any | None:
        """Return an answer about runs; None while it is looked for.

        Args:
            what: Tells several answers about the same runs apart.
            runs: The runs; a run that has changed on disk is another object.
            find: Finds the answer; what it raises is raised here.
        """
        key = (what, runs)
        with self._lock:
            future = self._kept.get(key)
            if future is None:
                future = self._kept[key] = Future()
                # Not a daemon: a program that ends while such a thread is in a library is aborted.
                threading.Thread(target=self._work, args=(key, future, find), name=what).start()
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        try:
            return future.result(self._patience)
        except (TimeoutError, CancelledError):
            return None

    def _work(
        self, key: tuple[str, tuple[Run, ...]], future: "Future[Any]", find: Callable[[], Any]
    ) -> None:
        with self._turn:
            if self._is_stale(key):
                future.cancel()
                with self._lock:
                    self._kept.pop(key, None)
                return
            try:
                future.set_result(find())
            except Exception as error:
                # Raised where the answer is asked for, which knows what to say about it.
                future.set_exception(error)
            pa.default_memory_pool().release_unused()

    def _is_stale(self, key: tuple[str, tuple[Run, ...]]) -> bool:
        """Whether the same was asked since then of the same runs as they are now."""
        what, paths = key[0], [run.path for run in key[1]]
        with self._lock:
            asked = [runs for name, runs in self._kept if name == what]
        same = [runs for runs in asked if [run.path for run in runs] == paths]
        return bool(same) and same[-1] != key[1]

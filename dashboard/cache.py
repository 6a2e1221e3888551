"""What was computed about runs, kept by kind and key; and threads for what no request waits for."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

from cachetools import LRUCache

from analyzer.storage.once import once

__all__ = ["Cache", "Line"]


class Cache:
    """The last values of each kind.

    Runs in a key are told apart as objects: a run that has changed on disk is another one.

    Args:
        sizes: How many values of each kind are kept.
    """

    def __init__(self, **sizes: int) -> None:
        self._kept: dict[str, LRUCache[Hashable, Future[Any]]] = {
            kind: LRUCache(size) for kind, size in sizes.items()
        }
        self._lock = threading.Lock()

    def get(self, kind: str, key: Hashable, find: Callable[[], Any]) -> Any:
        """Return a value; two who ask for the same at a time compute it once.

        What ``find`` raises is raised here, and not kept.
        """
        return once(self._lock, self._kept[kind], key, find)

    def slot(self, kind: str, key: Hashable) -> tuple["Future[Any]", bool]:
        """Return the place of a value, and whether it is new and whoever asked has to fill it."""
        with self._lock:
            kept = self._kept[kind]
            known = kept.get(key)
            future = kept[key] = Future() if known is None else known
        return future, known is None

    def peek(self, kind: str, key: Hashable) -> Any | None:
        """Return a value that is there; None where there is none."""
        with self._lock:
            future = self._kept[kind].get(key)
        return future.result() if future is not None and future.done() else None

    def put(self, kind: str, key: Hashable, value: Any) -> None:
        """Keep a value in place of an earlier one."""
        future: Future[Any] = Future()
        future.set_result(value)
        with self._lock:
            self._kept[kind][key] = future

    def count(self, kind: str) -> int:
        """Return how many values of a kind are there."""
        return len(self._kept[kind])


class Line:
    """A thread of this name that does one job after the other and ends when there is none."""

    def __init__(self, name: str) -> None:
        self.thread: threading.Thread | None = None
        self._name = name
        self._jobs: dict[Hashable, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def put(self, key: Hashable, job: Callable[[], None]) -> None:
        """Add a job, which must not raise; one of the same key that has not begun is dropped."""
        with self._lock:
            self._jobs[key] = job
            if self.thread is None:
                # Not a daemon, as it would be by itself where one starts it: a program that ends
                # while such a thread is in a library is aborted, or never ends.
                self.thread = threading.Thread(target=self._work, name=self._name, daemon=False)
                self.thread.start()

    @property
    def is_called_off(self) -> bool:
        """Whether a job should end early: another one waits, or the program ends."""
        return bool(self._jobs) or not threading.main_thread().is_alive()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs or not threading.main_thread().is_alive():
                    # Said under the lock, so that nobody counts on a thread that is about to end.
                    self.thread = None
                    return
                job = self._jobs.pop(next(iter(self._jobs)))
            job()

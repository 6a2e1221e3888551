"""Keeps a process from being forked in the middle of what a thread of ours does.

A forked process has none of the other threads, but every lock that they hold, those of Arrow
among them: it would wait for them without end.
"""

import os
import threading
import time
from types import TracebackType
from typing import ClassVar
from weakref import WeakSet

__all__ = ["Unforked"]

# So long a fork waits in all; a thread that stands still for longer waits for a device or a disk.
_PATIENCE_SECONDS = 2.0
_POLL_SECONDS = 0.001


class Unforked:
    """A context of one thread, within which this process is not forked.

    A fork waits for its end, two seconds at most. Contexts of one object do not nest.
    """

    _all: ClassVar["WeakSet[Unforked]"] = WeakSet()
    _waiting: ClassVar["list[tuple[Unforked, bool]]"] = []

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_awaited = False
        _register_once()
        Unforked._all.add(self)

    def __enter__(self) -> None:
        while self._is_awaited:  # else this thread would take the lock again before the fork does
            time.sleep(_POLL_SECONDS)
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    @staticmethod
    def _before_fork() -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        for one in list(Unforked._all):
            one._is_awaited = True
            left = max(0.0, until - time.monotonic())
            Unforked._waiting.append((one, one._lock.acquire(timeout=left)))

    @staticmethod
    def _after_fork() -> None:
        while Unforked._waiting:
            one, is_taken = Unforked._waiting.pop()
            one._is_awaited = False
            if is_taken:
                one._lock.release()


_is_registered = False


def _register_once() -> None:
    global _is_registered
    if not _is_registered and hasattr(os, "register_at_fork"):
        _is_registered = True
        after = Unforked._after_fork
        os.register_at_fork(
            before=Unforked._before_fork, after_in_parent=after, after_in_child=after
        )

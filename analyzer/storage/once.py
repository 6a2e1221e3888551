"""What several threads ask for at a time is computed by the first of them."""

from collections.abc import Callable, Hashable, MutableMapping
from concurrent.futures import Future
from threading import Lock
from typing import Any

__all__ = ["once"]


def once(
    lock: Lock,
    kept: MutableMapping[Hashable, "Future[Any]"],
    key: Hashable,
    find: Callable[[], Any],
) -> Any:
    """Return what is kept under a key; else what ``find`` returns, which is kept.

    Whoever asks meanwhile waits for it. What ``find`` raises is raised for all of these, and not
    kept. ``kept`` is looked at and changed under the ``lock`` alone.
    """
    with lock:
        known = kept.get(key)
        future = kept[key] = Future() if known is None else known
    if known is None:
        try:
            future.set_result(find())
        except BaseException as error:
            with lock:
                kept.pop(key, None)
            future.set_exception(error)
    return future.result()

"""Keeps numbers of a run that take long to read and that several figures show."""

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from analyzer.storage.run import Run

__all__ = ["remembered"]

T = TypeVar("T")
_MOST = 8


def remembered(table: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Return a decorator: a function of a run is computed once until a table of the run grows.

    What it returns is shared by all who ask, and must not be changed.

    Args:
        table: The table that the function reads.
    """

    def decorated(function: Callable[..., T]) -> Callable[..., T]:
        kept: WeakKeyDictionary[Run, tuple[object, dict[Hashable, Any]]] = WeakKeyDictionary()

        @wraps(function)
        def answer(run: Run, *asked: Hashable) -> T:
            mark = run.written(table)
            known_mark, answers = kept.get(run, (None, {}))
            if known_mark != mark or len(answers) >= _MOST:
                answers = {}
            if asked not in answers:
                answers[asked] = function(run, *asked)
                kept[run] = (mark, answers)
            found: T = answers[asked]
            return found

        return answer

    return decorated

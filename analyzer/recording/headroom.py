"""Room for the frames that recording adds to a program's stack while a model runs."""

import sys
from typing import Any

__all__ = ["Headroom"]

# Of a call of a module three frames are torch's and the program's, and the one that calls hooks is
# there because of ours; the hooks themselves go this deep.
_FRAMES = 60


class Headroom:
    """A recursion limit that is higher while a model runs: a model as deep as it allows still does.

    A program that reads or sets its limit by then sees nothing of it, and keeps what it sets.
    """

    def __init__(self) -> None:
        self._before = self._raised = 0

    def make(self) -> None:
        """Raise the limit by what the hooks may need."""
        limit = _real(sys.getrecursionlimit)()
        if limit != self._raised:  # else an interrupt has left it so
            self._before, self._raised = limit, limit + limit // 3 + _FRAMES
            _real(sys.setrecursionlimit)(self._raised)

    def give_back(self) -> None:
        """Put the limit back, unless the program has set another one."""
        if self._raised and _real(sys.getrecursionlimit)() == self._raised:
            _real(sys.setrecursionlimit)(self._before)
        self._raised = 0


def _real(function: Any) -> Any:
    """The function of the interpreter, where a program that is run here has another one."""
    return getattr(function, "__wrapped__", function)

"""How a program ended, and ending this process in the same way, with its traceback."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn

__all__ = ["Ending", "peel"]

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PASSES_ON = "__torch_function__"
_INTERRUPTED = 130


@dataclass
class Ending:
    """How a program ended.

    Args:
        namespace: The globals of its ``__main__``.
        exception: What it raised, ``SystemExit`` included; None where it came to its end.
    """

    namespace: dict[str, Any]
    exception: BaseException | None = None
    exit_code: int = field(init=False)
    """What a shell sees: 0 to 255, 130 for an interrupt."""
    _shown: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.exit_code = _exit_code(self.exception)

    def show(self) -> None:
        """Print what Python would print about this ending; a second call prints nothing.

        That is the traceback of an uncaught exception, through the program's own ``sys.excepthook``
        if it has one, and the message of a ``SystemExit`` that carries one.
        """
        if self._shown:
            return
        self._shown = True
        if isinstance(self.exception, SystemExit):
            _print_message(self.exception)
        elif self.exception is not None:
            self._report(self.exception)

    def leave(self) -> NoReturn:
        """End this process as Python would have ended the program's.

        Exit handlers run. After an uncaught ``KeyboardInterrupt`` the process dies of SIGINT, so
        that a shell loop around it stops too.

        Raises:
            BaseException: ``SystemExit``, or the interrupt; to be caught by nobody.
        """
        self.show()
        if type(self.exception) is KeyboardInterrupt:
            # Only an interrupt that reaches the interpreter makes it die of the signal at its end.
            sys.excepthook = _print_nothing
            raise self.exception
        raise SystemExit(self.exit_code)

    def _report(self, exception: BaseException) -> None:
        """Hand an uncaught exception to ``sys.excepthook``, with what Python does around that."""
        kind, traceback = type(exception), exception.__traceback__
        sys.last_type, sys.last_value, sys.last_traceback = kind, exception, traceback
        hook = getattr(sys, "excepthook", None)
        sys.audit("sys.excepthook", hook, kind, exception, traceback)
        if hook is None:
            _print("sys.excepthook is missing\n")
            hook = sys.__excepthook__
        try:
            hook(kind, exception, traceback)
        except SystemExit as error:
            _print_message(error)
            self.exit_code = _exit_code(error)
        except BaseException as error:
            peel(error)
            _print("Error in sys.excepthook:\n")
            sys.__excepthook__(type(error), error, error.__traceback__)
            _print("\nOriginal exception was:\n")
            sys.__excepthook__(kind, exception, traceback)


def _exit_code(exception: BaseException | None) -> int:
    """Return the exit code that an ending gives a process."""
    if exception is None:
        return 0
    if type(exception) is KeyboardInterrupt:
        return _INTERRUPTED
    code = getattr(exception, "code", exception) if isinstance(exception, SystemExit) else 1
    if code is None:
        return 0
    if not isinstance(code, int):
        return 1
    # A number too large for the system becomes -1 on its way there.
    return code & 0xFF if abs(code) <= sys.maxsize else 0xFF


def _print_message(exception: SystemExit) -> None:
    """Print the message of a ``SystemExit``, if it carries one."""
    code = getattr(exception, "code", exception)
    if code is not None and not isinstance(code, int):
        _print(f"{code}\n")


def _print(text: str) -> None:
    """Write to stderr where there is one."""
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _print_nothing(*_: object) -> None:
    """Stand in for ``sys.excepthook`` when everything was printed already."""


class _Entry(NamedTuple):
    """One line of a traceback."""

    frame: FrameType
    lasti: int
    lineno: int

    @property
    def is_own(self) -> bool:
        """Whether the code of the frame belongs to this package."""
        return self.frame.f_code.co_filename.startswith(_PACKAGE)


def peel(exception: BaseException) -> None:
    """Take the recorder's frames out of the traceback of an exception, in place.

    Frames of this package vanish where they called something else; an error that this package
    raised itself keeps the frame that raised it. Causes, contexts and the members of groups are
    treated alike.

    Args:
        exception: The exception whose ``__traceback__`` is replaced.
    """
    for one in _related(exception):
        entries = _without_own(list(_entries(one.__traceback__)))
        one.__traceback__ = _linked(entries)


def _related(exception: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all that it names as cause, context or member, each once."""
    waiting, seen = [exception], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        members = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        waiting += [x for x in (one.__cause__, one.__context__, *members) if x is not None]


def _entries(traceback: TracebackType | None) -> Iterator[_Entry]:
    """Yield the lines of a traceback, outermost first."""
    while traceback is not None:
        yield _Entry(traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)
        traceback = traceback.tb_next


def _linked(entries: list[_Entry]) -> TracebackType | None:
    """Return the traceback with these lines, None for no lines."""
    traceback = None
    for entry in reversed(entries):
        traceback = TracebackType(traceback, entry.frame, entry.lasti, entry.lineno)
    return traceback


def _without_own(entries: list[_Entry]) -> list[_Entry]:
    """Drop this package's lines, except those at the end: there the error is its own."""
    others = [index for index, entry in enumerate(entries) if not entry.is_own]
    if not others:
        return []
    last = others[-1]
    if any(entry.frame.f_code.co_name == _PASSES_ON for entry in entries[last + 1 :]):
        # What a function of torch, written in C, raised: it leaves no line of its own.
        return [e for e in entries if not e.is_own]
    return [e for index, e in enumerate(entries) if index > last or not e.is_own]

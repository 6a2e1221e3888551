"""What ends a process without running anything: a recording is brought to its end first."""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["DeadlySignals", "SuddenEnds"]

_NAMES = ("SIGTERM", "SIGHUP")


class DeadlySignals:
    """Calls a function before this process dies of SIGTERM or SIGHUP, as it would have anyway.

    Only where the default action stands; a handler of the program's own wins. The program does not
    see ours: `signal.getsignal` and `signal.signal` answer what they would without it, for a
    program that found a handler might keep it beside its own, and die where it meant to go on.

    Args:
        end: Called with the signal and the frame that it interrupted, between two instructions of
            Python.
    """

    def __init__(self, end: Callable[[int, FrameType | None], object]) -> None:
        self._end = end
        self._set, self._get = signal.signal, signal.getsignal
        self._pid = os.getpid()
        self._is_watching = False
        self._ours: dict[str, Any] = {}

    def watch(self) -> None:
        """Begin, where Python allows it: in the main thread."""
        if threading.current_thread() is not threading.main_thread() or self._is_watching:
            return
        self._is_watching = True
        self._set, self._get = signal.signal, signal.getsignal
        self._ours = {
            "signal": functools.wraps(self._set)(lambda *args: self._signal(*args)),
            "getsignal": functools.wraps(self._get)(lambda *args: self._getsignal(*args)),
        }
        vars(signal).update(self._ours)
        for number in self._numbers():
            if self._get(number) is signal.SIG_DFL:
                self._set(number, self._die)

    def stop(self) -> None:
        """Leave the signals as the program has them."""
        if not self._is_watching:
            return
        self._is_watching = False
        for name, original in (("signal", self._set), ("getsignal", self._get)):
            if vars(signal)[name] is self._ours[name]:
                vars(signal)[name] = original
        with contextlib.suppress(ValueError):  # not in the main thread of a forked process
            for number in self._numbers():
                if self._get(number) == self._die:
                    self._set(number, signal.SIG_DFL)

    @staticmethod
    def _numbers() -> list[int]:
        return [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]

    def _signal(self, number: int, handler: Any) -> Any:
        is_default = isinstance(handler, int) and handler == signal.SIG_DFL
        is_default = is_default and number in self._numbers()
        return self._seen(self._set(number, self._die if is_default else handler))

    def _getsignal(self, number: int) -> Any:
        return self._seen(self._get(number))

    def _seen(self, handler: Any) -> Any:
        return signal.SIG_DFL if handler == self._die else handler

    def _die(self, number: int, frame: FrameType | None) -> None:
        self._set(number, signal.SIG_IGN)  # a second one does not cut the end short
        if os.getpid() == self._pid:
            with contextlib.suppress(Exception):
                self._end(number, frame)
        self._set(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class SuddenEnds:
    """Calls a function before a program leaves by ``os._exit``, or becomes another one.

    Args:
        end: Called with the exit code, None where another program takes the place of this one,
            and the frame that asked for it.
    """

    def __init__(self, end: Callable[[int | None, FrameType | None], object]) -> None:
        self._end = end
        self._pid = os.getpid()
        self._originals: dict[str, Any] = {}

    def watch(self) -> None:
        """Begin."""
        for name in ("_exit", "execv", "execve"):  # os has the others call these
            self._originals[name] = original = getattr(os, name)
            vars(os)[name] = functools.wraps(original)(functools.partial(self._leave, original))

    def stop(self) -> None:
        """Leave the functions as they were."""
        vars(os).update(self._originals)
        self._originals = {}

    def _leave(self, original: Callable[..., Any], first: Any, *rest: Any) -> Any:
        is_exit = original.__name__ == "_exit"
        if os.getpid() == self._pid and (is_exit or _can_run(first)):
            with contextlib.suppress(Exception):
                self._end(first if is_exit else None, sys._getframe().f_back)
        return original(first, *rest)


def _can_run(path: Any) -> bool:
    """Whether a program can be run: os asks for it in each folder of the path."""
    return isinstance(path, int) or (os.path.isfile(path) and os.access(path, os.X_OK))

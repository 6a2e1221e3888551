"""Signals that end a process without running anything: a recording is brought to its end first."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["DeadlySignals"]

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

"""What the simulated accelerator was asked for, how far it is, how often the host waited."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

DEVICE = "simgpu"
# Operator or copy -> launches; "wait: ..." -> waits of the host.
counts: Counter[str] = Counter()


def reset_counts() -> None:
    """Start counting anew."""
    counts.clear()


def launches() -> int:
    """How many kernels and copies the device has got; one for a whole foreach operator."""
    return sum(number for name, number in counts.items() if not name.startswith("wait: "))


def waits() -> int:
    """How often the host has waited for the device."""
    return sum(number for name, number in counts.items() if name.startswith("wait: "))


class Timeline:
    """What the host has asked for and the device has not done yet; usually nothing."""

    def __init__(self) -> None:
        self.is_held = self.is_visible = False
        self.issued = self.done = 0
        self._open: list[tuple[int, Callable[[], object]]] = []
        self._lock = threading.RLock()

    def issue(self, work: Callable[[], object]) -> int:
        """Do ``work`` now, or later where the device is held."""
        with self._lock:
            self.issued += 1
            self._open.append((self.issued, work))
            if not self.is_held:
                self.finish()
            return self.issued

    def finish(self, until: int | None = None) -> None:
        """Do what is open, in order."""
        with self._lock:
            last = self.issued if until is None else until
            while self._open and self._open[0][0] <= last:
                self._open.pop(0)[1]()
            self.done = max(self.done, last)


timeline = Timeline()


def wait(reason: str, until: int | None = None) -> None:
    """Let the host wait."""
    counts[f"wait: {reason}"] += 1
    timeline.finish(until)


@contextmanager
def held() -> Iterator[None]:
    """Keep the device busy: events stay open and copies do not arrive until the host waits."""
    timeline.is_held = True
    try:
        yield
    finally:
        timeline.is_held = False
        timeline.finish()


@contextmanager
def visible() -> Iterator[None]:
    """Let ``torch.accelerator.is_available()`` find the device."""
    timeline.is_visible = True
    try:
        yield
    finally:
        timeline.is_visible = False


class Event(torch.Event):
    """An event that knows whether the simulated device has come to it."""

    _place, _seen, _at = 0, False, 0.0

    def record(self, stream: torch.Stream | None = None) -> None:
        """Note what the device has been asked for up to now."""
        self._seen, self._at = False, time.perf_counter()
        self._place = timeline.issue(lambda: None)

    def query(self) -> bool:
        """Whether the device has come here; the host does not wait."""
        self._seen = self._place <= timeline.done
        return self._seen

    def synchronize(self) -> None:
        """Wait for the event; no wait for a host that has asked and knows that it is over."""
        if not self._seen:
            wait("event", self._place)

    def wait(self, stream: torch.Stream | None = None) -> None:
        """Let a stream wait, which it does anyhow: the device does everything in order."""

    def elapsed_time(self, other: "Event") -> float:
        """Return the milliseconds between two records."""
        return (other._at - self._at) * 1e3


class Stream(torch.Stream):
    """A stream; all streams of the simulated device follow one another."""

    def synchronize(self) -> None:
        """Wait for the stream."""
        wait("stream")

    def query(self) -> bool:
        """Whether all work is done; the host does not wait."""
        return timeline.done >= timeline.issued

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event, or a new one."""
        event = Event(DEVICE) if event is None else event
        event.record(self)
        return event

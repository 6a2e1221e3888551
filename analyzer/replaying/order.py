"""What is to be measured on a finished run, and who is told about it."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

from analyzer.probes.landscape.planes import LandscapeRequest

__all__ = ["ProbeOrder", "Progress", "Say", "sentences"]

_PROGRESS_SECONDS = 10.0
Say: TypeAlias = Callable[[str], None]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Receives what goes on, how much of it is done, and how much there is at most."""


@dataclass(frozen=True)
class ProbeOrder:
    """What is to be measured.

    Args:
        names: The probes.
        which: The checkpoints: a step, ``last`` or ``all``.
        landscape: What a landscape shows.
        overwrites: Whether tables that are there are measured anew.
    """

    names: tuple[str, ...]
    which: str = "last"
    landscape: LandscapeRequest = field(default_factory=LandscapeRequest)
    overwrites: bool = False

    def as_text(self) -> str:
        """Return one word for the command line of a child process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "ProbeOrder":
        """Read such a word."""
        parts = json.loads(text)
        request = LandscapeRequest(**parts["landscape"])
        return cls(tuple(parts["names"]), parts["which"], request, parts["overwrites"])


def sentences(say: Say) -> Progress:
    """Return what says now and then how far a landscape is."""
    told = [time.monotonic()]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - told[0] > _PROGRESS_SECONDS:
            told[0] = time.monotonic()
            say(f"{what}: {done} of at most {total} points")

    return progress

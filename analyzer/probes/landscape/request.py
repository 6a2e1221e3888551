"""What a landscape is asked to show: its plane, grid, directions and loss, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from analyzer.probes.landscape.directions import NORMALIZATIONS
from analyzer.probes.landscape.evaluation import BATCH_NORM
from analyzer.probes.landscape.surface import MODES

__all__ = ["LandscapeRequest"]

Range = tuple[float, float]


@dataclass(frozen=True)
class LandscapeRequest:
    """What is to be drawn, in words as a command line has them.

    Args:
        plane: ``random``; ``trajectory``, the principal plane of the checkpoints; ``N``, the line
            from the model to the checkpoint of step N; ``N,M``, the plane through all three.
        grid: Points along the axes, ``N`` or ``NxM``; ``Nx1`` for a line. Empty for 51 (81 along
            the line to a checkpoint).
        range: Coordinates, ``LOW:HIGH`` for both axes or ``LOW:HIGH,LOW:HIGH``. Empty for −1 to 1
            on random directions, −0.5 to 1.5 where a checkpoint is at 1, and what holds all
            checkpoints for their principal plane; (0, 0) is then a point of the grid.
        normalization: Of random directions: ``filter``, ``layer`` or ``none``.
        seed: Of random directions.
        mode: ``fast`` or ``exact``.
        tolerance: Of the fast mode, over the range of the loss.
        batch_norm: ``keep`` the running statistics or ``recompute`` them at every point.
        weight_decay: λ of ``λ/2 ‖θ‖²``, added to the loss.
        seconds: Evaluate no more after this time; None for no limit.

    Raises:
        ValueError: If one of them is not as expected; the message names it as an option.
    """

    plane: str = "random"
    grid: str = ""
    range: str = ""
    normalization: str = "filter"
    seed: int = 0
    mode: str = "fast"
    tolerance: float = 0.005
    batch_norm: str = "keep"
    weight_decay: float = 0.0
    seconds: float | None = None

    def __post_init__(self) -> None:
        choices = {"normalization": NORMALIZATIONS, "mode": MODES, "batch_norm": BATCH_NORM}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)!r}; expected one of "
                    f"{', '.join(known)}"
                )
        for name in ("tolerance", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} is {value:g}; expected a number above 0")
        if not math.isfinite(self.weight_decay):
            raise ValueError(f"--weight-decay is {self.weight_decay}; expected a finite number")
        _ = self.steps, self.sizes, self.ranges  # refused now, not after the model was built

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints that the plane goes through, besides the model's own."""
        if self.plane in ("random", "trajectory"):
            return ()
        words = self.plane.split(",")
        if len(words) > 2 or not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError(
                f"--plane is {self.plane!r}; expected random, trajectory, the step of a checkpoint "
                "for a line to it, or two steps as in 0,50 for the plane through both"
            )
        return tuple(map(int, words))

    @property
    def goes_through_checkpoints(self) -> bool:
        """Whether checkpoints are needed to draw it."""
        return self.plane != "random"

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Points along the first and the second axis; 1 along the second for a line."""
        is_to_one = len(self.steps) == 1
        first, times, second = (self.grid or ("81" if is_to_one else "51")).partition("x")
        words = [first, second if times else ("1" if is_to_one else first)]
        if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
            raise ValueError(f"--grid is {self.grid!r}; expected points, as in 51, 21x51 or 51x1")
        if is_to_one and words[1] != "1":
            raise ValueError(
                f"--grid is {self.grid!r}, but the way to one checkpoint is a line; expected one "
                "number, or two steps after --plane"
            )
        return int(words[0]), int(words[1])

    @cached_property
    def ranges(self) -> tuple[Range, Range] | None:
        """Lowest and highest coordinate of both axes; None where none were given."""
        if not self.range:
            return None
        words = self.range.split(",")
        parts = [word.split(":") for word in words]
        try:
            found = [(float(low), float(high)) for low, high in parts]
        except ValueError:
            found = []
        if len(found) not in (1, 2) or not all(_is_range(low, high) for low, high in found):
            raise ValueError(
                f"--range is {self.range!r}; expected LOW:HIGH with LOW below HIGH, as in -1:1, or "
                "one for each axis as in -1:1,0:2"
            )
        return found[0], found[-1]


def _is_range(low: float, high: float) -> bool:
    return math.isfinite(low) and math.isfinite(high) and low < high

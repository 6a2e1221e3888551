"""Planes as a command line describes them, and where the checkpoints of a training lie in them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.probes.activations import as_it_trains
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.landscape.directions import (
    NORMALIZATIONS,
    direction_to,
    plane_through,
    projected,
    random_directions,
    trajectory_plane,
)
from analyzer.probes.landscape.methods import BATCH_NORM
from analyzer.probes.landscape.surface import MODES, surface
from analyzer.probes.landscape.weights import Direction

__all__ = ["Checkpoints", "LandscapeRequest", "drawn", "measure"]


Range = tuple[float, float]


@dataclass(frozen=True)
class LandscapeRequest:
    """What is to be drawn, as the options of a command line have it; wrong ones are refused.

    Args:
        plane: ``random``; ``trajectory``, the principal plane of the checkpoints; ``N``, the line
            from the model to the checkpoint of step N; ``N,M``, the plane through all three.
        grid: Points along the axes, ``N`` or ``NxM``; ``Nx1`` for a line. Empty for 51 (81 along
            the line to a checkpoint).
        range: Coordinates, ``LOW:HIGH`` for both axes or ``LOW:HIGH,LOW:HIGH``. Empty for −1 to 1
            on random directions, −0.5 to 1.5 where a checkpoint is at 1, and what holds all
            checkpoints for their principal plane; (0, 0) is then a point of the grid.
        tolerance: Of the fast mode, over the range of the loss.
        weight_decay: λ of ``λ/2 ‖θ‖²``, added to the loss.
        seconds: Evaluate no more after this time; None for no limit.
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
        if len(found) not in (1, 2) or not all(-math.inf < a < b < math.inf for a, b in found):
            raise ValueError(
                f"--range is {self.range!r}; expected LOW:HIGH with LOW below HIGH, as in -1:1, or "
                "one for each axis as in -1:1,0:2"
            )
        return found[0], found[-1]


Checkpoints = Mapping[int, Mapping[str, Tensor]]
"""State dicts by step."""
_NOT_RANDOM = {"normalization": "none", "seed": ""}
_SECONDS = 30.0
_BESIDE = 0.2  # of what the checkpoints span, on either side of them


@dataclass(frozen=True)
class _Plane:
    directions: tuple[Direction, ...]
    ranges: tuple[Range, Range] = ((-1.0, 1.0), (-1.0, 1.0))
    notes: Mapping[str, str] = field(default_factory=dict)


def measure(batch: HeldBatch, **options: Any) -> Measurement:
    """Measure the loss of one batch over a plane of two random directions, in half a minute.

    ``L(θ* + α d₁ + β d₂)`` on ``[−1, 1]²`` with 51 points along each axis; (0, 0) is one of them.
    ``options`` are fields of `LandscapeRequest`, for another plane, grid or mode. The loss is NaN
    where time ran out before anything could be fitted.

    Reference:
        Li et al. (2018), Visualizing the loss landscape of neural nets, §4.
    """
    return drawn(batch, LandscapeRequest(**{"seconds": _SECONDS, **options}))


def drawn(
    batch: HeldBatch,
    request: LandscapeRequest,
    *,
    step: int = 0,
    checkpoints: Checkpoints | None = None,
    resume: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measurement:
    """Measure the loss of one batch over the requested plane.

    The model has the weights of `step`, which are at (0, 0); its batch norms that train have the
    statistics of the batch there, as constants, at all points. One row a point: ``alpha``,
    ``beta``, ``loss``, ``evaluated``. Planes through checkpoints have in their metadata
    ``trajectory``, ``[[step, alpha, beta], …]`` as JSON, and ``trajectory_residuals``, what the
    plane does not show of ``θᵢ − θ*`` (0: all is in it). ``resume`` is a file for the points that
    are done.

    Raises:
        ValueError: If a checkpoint is missing or does not fit.

    Reference:
        Li et al. (2018), Visualizing the loss landscape of neural nets, §4 and §7.2.
    """
    plane = _plane(batch.model, request, step, checkpoints or {})
    ranges, (rows, columns) = request.ranges or plane.ranges, request.sizes
    keeps_zero = request.ranges is None
    with as_it_trains(batch.model, batch.inputs) as notes:
        found = surface(
            batch.model,
            [(batch.inputs, batch.targets)],
            batch.loss,
            plane.directions,
            _axis(*ranges[0], rows, keeps_zero=keeps_zero),
            None if columns == 1 else _axis(*ranges[1], columns, keeps_zero=keeps_zero),
            mode=request.mode,
            tolerance=request.tolerance,
            batch_norm=request.batch_norm,
            weight_decay=request.weight_decay,
            resume=resume,
            seconds=request.seconds,
            on_progress=on_progress,
        )
    held = {"batch_norms_held_fixed": notes["batch_norms_held_fixed"]}
    return Measurement(found.columns(), {**plane.notes, **held, **found.metadata})


def _plane(
    model: nn.Module, request: LandscapeRequest, step: int, checkpoints: Checkpoints
) -> _Plane:
    if request.plane == "trajectory":
        return _of_trajectory(model, step, checkpoints)
    if request.steps:
        return _through(model, request.steps, step, checkpoints)
    directions = random_directions(model, request.normalization, request.seed)
    notes = {
        "directions": "random",
        "normalization": request.normalization,
        "seed": str(request.seed),
    }
    return _Plane(directions, notes=notes)


def _of_trajectory(model: nn.Module, step: int, checkpoints: Checkpoints) -> _Plane:
    """The principal plane of the checkpoints up to a step."""
    before = {at: checkpoints[at] for at in sorted(checkpoints) if at <= step}
    found = trajectory_plane(model, list(before.values()))
    points = found.coordinates
    low, high = points.amin(dim=0).clamp(max=0), points.amax(dim=0).clamp(min=0)
    beside = _BESIDE * (high - low)
    ranges = list(zip((low - beside).tolist(), (high + beside).tolist(), strict=True))
    notes = {
        **_NOT_RANDOM,
        "directions": "principal components of the trajectory",
        "variance_explained": json.dumps(found.variance_explained),
        **_trajectory_notes(list(before), points, found.residuals),
    }
    return _Plane(found.directions, (ranges[0], ranges[1]), notes)


def _through(
    model: nn.Module, steps: tuple[int, ...], step: int, checkpoints: Checkpoints
) -> _Plane:
    """The line or the plane through the model and one or two checkpoints."""
    for other in steps:
        if other not in checkpoints:
            raise ValueError(
                f"there is no checkpoint of step {other}; expected one of "
                f"{', '.join(map(str, sorted(checkpoints))) or 'none'}"
            )
    if len({step, *steps}) <= len(steps):
        raise ValueError(
            f"the plane goes through the checkpoints of the steps {step} and "
            f"{', '.join(map(str, steps))}; expected all of them to differ"
        )
    others = [checkpoints[other] for other in steps]
    ranges = ((-0.5, 1.5), (-0.5, 1.5))
    notes = {
        **_NOT_RANDOM,
        "directions": f"to the checkpoints of steps {', '.join(map(str, steps))}",
    }
    if len(others) == 1:
        return _Plane((direction_to(model, others[0]),), ranges, notes)
    directions = plane_through(model, *others)
    known = sorted(checkpoints)
    where = projected(model, [checkpoints[at] for at in known], directions)
    return _Plane(directions, ranges, notes | _trajectory_notes(known, *where))


def _trajectory_notes(steps: list[int], points: Tensor, residuals: Tensor) -> dict[str, str]:
    rows = [[at, *point] for at, point in zip(steps, points.tolist(), strict=True)]
    return {
        "trajectory": json.dumps(rows),
        "trajectory_residuals": json.dumps(residuals.tolist()),
    }


def _axis(low: float, high: float, size: int, *, keeps_zero: bool) -> list[float]:
    """Coordinates from low to high; moved by less than a step where 0 is to be one of them."""
    if size == 1:
        return [0.0 if keeps_zero else low]
    if low == -high:
        return [high * (2 * k - (size - 1)) / (size - 1) for k in range(size)]
    step = (high - low) / (size - 1)
    if keeps_zero:
        zero = round(-low / step)
        return [step * (k - zero) for k in range(size)]
    return [float(value) for value in torch.linspace(low, high, size, dtype=torch.float64)]

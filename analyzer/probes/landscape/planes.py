"""Planes that are asked for by words, and where the checkpoints of a training lie in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.landscape.directions import direction_to, plane_through, random_directions
from analyzer.probes.landscape.request import LandscapeRequest, Range
from analyzer.probes.landscape.surface import surface
from analyzer.probes.landscape.trajectory import projected, trajectory_plane
from analyzer.probes.landscape.weights import Direction

__all__ = ["Checkpoints", "drawn"]

Checkpoints = Mapping[int, Mapping[str, Tensor]]
"""State dicts by step."""
_NOT_RANDOM = {"normalization": "none", "seed": ""}
_BESIDE = 0.2  # of what the checkpoints span, on either side of them


@dataclass(frozen=True)
class _Plane:
    directions: tuple[Direction, ...]
    ranges: tuple[Range, Range] = ((-1.0, 1.0), (-1.0, 1.0))
    notes: Mapping[str, str] = field(default_factory=dict)


def drawn(
    batch: HeldBatch,
    request: LandscapeRequest,
    *,
    step: int = 0,
    checkpoints: Checkpoints | None = None,
    resume: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measurement:
    """Measure the loss of one batch over the plane that was asked for.

    Args:
        batch: The model at the checkpoint of `step`, one batch and its loss; left as they are.
        request: What is to be drawn.
        step: The step of the model's weights, which are at (0, 0).
        checkpoints: Those of the training; planes through checkpoints need them.
        resume: A file for the points that are done, as in `surface`.
        on_progress: Called with points done and in all.

    Returns:
        ``alpha``, ``beta``, ``loss``, ``evaluated``, a row a point. Planes through checkpoints have
        in their metadata ``trajectory``, ``[[step, alpha, beta], …]`` as JSON, and
        ``trajectory_residuals``, what the plane does not show of ``θᵢ − θ*`` (0: all is in it).

    Raises:
        ValueError: If a checkpoint is missing or does not fit.

    Reference:
        Li et al. (2018), Visualizing the loss landscape of neural nets, §4 and §7.2.
    """
    plane = _plane(batch.model, request, step, checkpoints or {})
    ranges, (rows, columns) = request.ranges or plane.ranges, request.sizes
    keeps_zero = request.ranges is None
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
    return Measurement(found.columns(), {**plane.notes, **found.metadata})


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
    points, ranges = found.coordinates, []
    for axis in range(2):
        low, high = (float(points[:, axis].min()), float(points[:, axis].max()))
        low, high = min(low, 0.0), max(high, 0.0)
        beside = _BESIDE * (high - low)
        ranges.append((low - beside, high + beside))
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

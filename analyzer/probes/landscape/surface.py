"""The loss over a plane or along a line through the weights of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from analyzer.joins.model_state import preserve_state, unwrapped
from analyzer.probes.batch import held, num_samples
from analyzer.probes.landscape.directions import cosine
from analyzer.probes.landscape.ledger import Ledger, fingerprint
from analyzer.probes.landscape.methods import (
    BATCH_NORM,
    Loss,
    Work,
    chosen,
    evaluating,
    method_named,
)
from analyzer.probes.landscape.points import Estimate, Floats, Places, estimated_surface
from analyzer.probes.landscape.weights import aligned, moves_of, named_weights, squared_norm

__all__ = [
    "MODES",
    "Surface",
    "largest_gap",
    "plane_curvatures",
    "surface",
    "surface_measures",
]


MODES = ("exact", "fast")
_USUAL_SHARE = 0.1  # of the points of a surface that the fast mode evaluates


@dataclass(frozen=True)
class Surface:
    """Losses over a plane.

    Attributes:
        alphas: Coordinates along the first direction, as given.
        betas: Along the second; a single 0 for a line.
        losses: ``[alphas, betas]``; interpolated where not evaluated, never repaired.
        metadata: How it was made, and `surface_measures`.
    """

    alphas: Floats
    betas: Floats
    losses: Floats
    evaluated: NDArray[np.bool_]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, list[Any]]:
        """Return one row a point, α outer and β inner: ``alpha, beta, loss, evaluated``."""
        alphas, betas = np.meshgrid(self.alphas, self.betas, indexing="ij")
        return {
            "alpha": alphas.ravel().tolist(),
            "beta": betas.ravel().tolist(),
            "loss": self.losses.ravel().tolist(),
            "evaluated": self.evaluated.ravel().tolist(),
        }


def surface(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    directions: Any,
    alphas: Sequence[float] | Floats | Tensor,
    betas: Sequence[float] | Floats | Tensor | None = None,
    *,
    mode: str = "exact",
    tolerance: float = 0.005,
    batch_norm: str = "keep",
    weight_decay: float = 0.0,
    resume: str | Path | None = None,
    seconds: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Surface:
    """Evaluate the loss at ``θ(α, β) = θ* + α d₁ + β d₂``; see `analyzer.loss_surface`.

    ``L(α, β) = Σ_b n_b L_b / Σ_b n_b`` over the batches, in eval mode, θ* the model's weights.
    Afterwards weights, buffers, modes, ``.grad``, hooks and the random state are bit for bit what
    they were. The coordinates may be in any order. ``mode="fast"`` leaves out points of grids of
    more than 256; the metadata have the ``largest_gap`` between evaluated points, and a spike that
    is narrower may be missed. ``weight_decay`` is λ of ``λ/2 ‖θ(α, β)‖²`` over all parameters. A
    killed run is resumed with the values of an undisturbed one. What is not evaluated after
    ``seconds`` is interpolated, or NaN. Where the model or the loss is NaN or infinite, so is the
    surface.
    """
    _check(mode, batch_norm, tolerance)
    wanted = (_axis(alphas, "alphas"), np.zeros(1) if betas is None else _axis(betas, "betas"))
    steps = [aligned(d, model) for d in _given(directions, 1 if betas is None else 2)]
    is_fast = mode == "fast" and betas is not None
    axes, places = _distinct(wanted) if is_fast else (wanted, None)
    deadline = None if seconds is None else time.monotonic() + seconds
    with preserve_state(unwrapped(model)):
        data = held(batches)
    moves = moves_of(model, steps)
    with evaluating(model, moves) as module:
        work = Work(module, moves, steps, data, loss, batch_norm)
        ledger = Ledger(
            axes,
            None if resume is None else Path(resume),
            "" if resume is None else _identity(module, work, axes, mode, tolerance),
            lambda: deadline is not None and time.monotonic() > deadline,
            lambda done: on_progress(done, axes[0].size * axes[1].size),
        )
        estimate, name = _filled(work, ledger, axes, tolerance if is_fast else None)
    values = estimate.values
    if weight_decay:
        values = values + weight_decay / 2 * squared_norm(model, steps, *axes)
    facts = {
        "mode": "fast" if is_fast else "exact",
        "method": name,
        "points": str(values.size),
        "evaluations": str(int(estimate.evaluated.sum())),
        "tolerance": str(tolerance) if is_fast else "0",
        "error": str(estimate.error),
        "tolerance_met": str(estimate.is_within).lower(),
        "largest_gap": str(largest_gap(estimate.evaluated, *axes)),
        "may_miss": "what is narrower than the largest gap between evaluated points",
        "fit": estimate.fit,
        "batch": str(num_samples(data)),
        "batch_norm": batch_norm,
        "loss_term": f"data + weight decay {weight_decay:g}" if weight_decay else "data",
        "cosine": str(cosine(*steps)) if len(steps) == 2 else "",
    }
    measures = surface_measures(values, *axes) if np.isfinite(np.concatenate(axes)).all() else {}
    facts |= {key: str(value) for key, value in measures.items()}
    evaluated = estimate.evaluated
    if places is not None:
        values, evaluated = values[places], evaluated[places]
    return Surface(*wanted, values, evaluated, facts)


def largest_gap(evaluated: NDArray[np.bool_], alphas: Floats, betas: Floats) -> float:
    """Return the widest place without an evaluated point, in units of the coordinates.

    Twice the largest distance of a point of the grid from the nearest evaluated one, and no less
    than the largest step between neighbors on an axis: what is narrower may lie there unseen. Inf
    where nothing is evaluated, NaN on an axis that is not finite.
    """
    axes = [np.unique(axis) for axis in (alphas, betas)]
    steps = [float(np.diff(axis).max(initial=0.0)) for axis in axes]
    grid = np.stack(np.meshgrid(alphas, betas, indexing="ij"), axis=-1)
    known, empty = grid[evaluated], grid[~evaluated]
    if not len(known):
        return float("inf")
    far = [np.hypot(*(known - point).T).min() for point in empty]
    return float(max(2 * max(far, default=0.0), *steps))


def _check(mode: str, batch_norm: str, tolerance: float) -> None:
    for name, value, known in (("mode", mode, MODES), ("batch_norm", batch_norm, BATCH_NORM)):
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
    if not tolerance > 0:
        raise ValueError(
            f"tolerance is {tolerance}, expected a positive share of the range such as 0.005; "
            "choose mode 'exact' for no error"
        )


def _axis(values: Any, name: str) -> Floats:
    """Return coordinates as an array of one axis."""
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    try:
        axis = np.asarray(plain, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {values!r:.80}; expected a sequence of numbers") from None
    if axis.ndim != 1 or axis.size == 0:
        raise ValueError(
            f"{name} has shape {list(axis.shape)}, expected a sequence of one or more numbers; "
            "pass for instance numpy.linspace(-1, 1, 51)"
        )
    return axis


def _given(directions: Any, needed: int) -> list[Mapping[str, Tensor]]:
    """Return the directions that are needed."""
    several = isinstance(directions, Iterable) and not isinstance(directions, Mapping)
    found = list(directions) if several else [directions]
    if len(found) < needed or not all(isinstance(item, Mapping) for item in found):
        kinds = ", ".join(type(item).__name__ for item in found) or "nothing"
        raise ValueError(
            f"directions holds {kinds}, expected {needed} dicts of tensors by parameter name; "
            "random_directions(model) gives two"
        )
    return found[:needed]


def _distinct(axes: tuple[Floats, Floats]) -> tuple[tuple[Floats, Floats], Any]:
    """Return increasing axes, and how to index their surface to get the requested one."""
    if not np.isfinite(np.concatenate(axes)).all():
        raise ValueError(
            "alphas or betas hold a value that is not finite, expected numbers; "
            "choose mode 'exact' to evaluate there"
        )
    first, rows = np.unique(axes[0], return_inverse=True)
    second, columns = np.unique(axes[1], return_inverse=True)
    return (first, second), np.ix_(rows, columns)


def _identity(
    module: nn.Module, work: Work, axes: tuple[Floats, Floats], mode: str, tolerance: float
) -> str:
    """Return the fingerprint of everything but the loss function."""
    weights = {name: parameter.data for name, parameter in named_weights(module).items()}
    data = [(batch.args, batch.kwargs, batch.target) for batch in work.batches]
    settings = (mode, tolerance, work.batch_norm)
    buffers = dict(module.named_buffers())
    return fingerprint([weights, buffers, work.directions, data, axes, settings])


def _filled(
    work: Work, ledger: Ledger, axes: tuple[Floats, Floats], tolerance: float | None
) -> tuple[Estimate, str]:
    """Evaluate all points, or those that the tolerance needs."""
    points = [(float(a), float(b)) for a in axes[0] for b in axes[1]]
    share = 1.0 if tolerance is None else _USUAL_SHARE
    try:
        name = ledger.begin(lambda: chosen(work, points, share))
        method = method_named(work, name)

        def evaluate(places: Places) -> Floats:
            return ledger.evaluate(method, places)

        if tolerance is not None:
            return estimated_surface(axes, evaluate, tolerance, ledger.is_late), name
        evaluate([(i, j) for i in range(len(axes[0])) for j in range(len(axes[1]))])
    finally:
        ledger.close()
    whole = bool(ledger.done.all())
    error = 0.0 if whole else float("nan")
    estimate = Estimate(ledger.values.copy(), ledger.done.copy(), error, whole, "none")
    return estimate, name


def plane_curvatures(losses: Floats, alphas: Floats, betas: Floats) -> tuple[Floats, Floats]:
    """Return the smallest and the largest curvature at the inner points of a surface.

    Eigenvalues of the 2 × 2 Hessian in the coordinates (α, β), by central differences on the grid,
    which need not be even; in loss per unit of coordinate squared. On a line both hold the second
    derivative. NaN beside a loss that is not finite, empty where there is no inner point.
    """
    if len(betas) == 1:
        bent = _second(losses[:, 0], alphas)
        return bent, bent
    if len(alphas) < 3 or len(betas) < 3:
        return np.empty((0, 0)), np.empty((0, 0))
    with np.errstate(invalid="ignore", over="ignore"):
        aa = _second(losses, alphas)[:, 1:-1]
        bb = _second(losses.T, betas).T[1:-1]
        corners = losses[2:, 2:] - losses[2:, :-2] - losses[:-2, 2:] + losses[:-2, :-2]
        ab = corners / np.outer(alphas[2:] - alphas[:-2], betas[2:] - betas[:-2])
        middle, radius = (aa + bb) / 2, np.hypot((aa - bb) / 2, ab)
        return middle - radius, middle + radius


def _second(losses: Floats, axis: Floats) -> Floats:
    """Second derivative along the first axis, at the inner points."""
    if len(axis) < 3:
        return np.empty((0, *losses.shape[1:]))
    steps = np.diff(axis).reshape(-1, *[1] * (losses.ndim - 1))
    with np.errstate(invalid="ignore", over="ignore"):
        slopes = np.diff(losses, axis=0) / steps
        second: Floats = 2 * np.diff(slopes, axis=0) / (steps[1:] + steps[:-1])
    return second


def surface_measures(losses: Floats, alphas: Floats, betas: Floats) -> dict[str, float]:
    """Measure a surface; NaN where nothing finite gives a number.

    - ``loss_min``, ``loss_max``: of the finite values.
    - ``nonfinite_points``: values that are NaN or infinite.
    - ``non_convex_share``: share of inner points whose smallest curvature is negative by more than
      1e-5 of the largest curvature of the surface (which is rounding).
    - ``non_convexity``: mean of ``|λ_min| / |λ_max|`` over the inner points, at most 1 for each; a
      point with ``λ_min ≥ 0`` counts 0, so 0 is convex. The map of Li et al. §6, on the plane.
    - ``plane_sharpness``: the largest curvature at the inner point nearest to (0, 0). In
      coordinates of the plane; not the largest eigenvalue of the Hessian.
    - ``epsilon_sharpness``: ``(max L − L₀) / (1 + L₀)`` over the points with ``max(|α|, |β|) ≤
      0.1``, L₀ at the point nearest to (0, 0), as Keskar et al. do in a box.

    Reference:
        Li et al. (2018), §6; Keskar et al. (2017), On large-batch training, metric 2.1.
    """
    rows, columns = np.unique(alphas, return_index=True), np.unique(betas, return_index=True)
    losses = losses[np.ix_(rows[1], columns[1])]
    alphas, betas = rows[0], columns[0]
    finite = losses[np.isfinite(losses)]
    low, high = plane_curvatures(losses, alphas, betas)
    return {
        "loss_min": float(finite.min()) if finite.size else float("nan"),
        "loss_max": float(finite.max()) if finite.size else float("nan"),
        "nonfinite_points": float(losses.size - finite.size),
        **_convexity(low, high),
        "plane_sharpness": _at_center(high, alphas, betas),
        "epsilon_sharpness": _epsilon_sharpness(losses, alphas, betas),
    }


def _convexity(low: Floats, high: Floats) -> dict[str, float]:
    known = np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return {"non_convex_share": float("nan"), "non_convexity": float("nan")}
    low, high = low[known], high[known]
    threshold = 1e-5 * max(np.abs(low).max(), np.abs(high).max())
    negative = low < -threshold
    low, high = np.abs(low[negative]), np.abs(high[negative])
    ratios = low / np.maximum(low, high)
    return {
        "non_convex_share": float(negative.mean()),
        "non_convexity": float(ratios.sum() / negative.size),
    }


def _nearest(axis: Floats) -> int:
    return int(np.argmin(np.abs(axis)))


def _at_center(curvatures: Floats, alphas: Floats, betas: Floats) -> float:
    if curvatures.size == 0:
        return float("nan")
    row = _nearest(alphas[1:-1])
    value = curvatures[row] if curvatures.ndim == 1 else curvatures[row, _nearest(betas[1:-1])]
    return float(value)


def _epsilon_sharpness(losses: Floats, alphas: Floats, betas: Floats) -> float:
    box = losses[np.ix_(np.abs(alphas) <= 0.1, np.abs(betas) <= 0.1)]
    center = losses[_nearest(alphas), _nearest(betas)]
    if box.size == 0 or not np.isfinite(box).all():
        return float("nan")
    return float((box.max() - center) / (1 + center)) if 1 + center != 0 else float("nan")

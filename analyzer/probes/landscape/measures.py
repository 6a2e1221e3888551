"""What a surface says in a few numbers: how far from convex, how sharp, how far it spans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["plane_curvatures", "surface_measures"]

Floats = NDArray[np.float64]


def plane_curvatures(losses: Floats, alphas: Floats, betas: Floats) -> tuple[Floats, Floats]:
    """Return the smallest and the largest curvature at the inner points of a surface.

    Eigenvalues of the 2 × 2 Hessian in the coordinates (α, β), by central differences on the grid,
    which need not be even.

    Args:
        losses: ``[alphas, betas]``.
        alphas: Increasing coordinates.
        betas: The same; one value only for a line.

    Returns:
        Two arrays over the inner points, in loss per unit of coordinate squared; on a line both
        hold the second derivative. NaN beside a loss that is not finite, empty where there is no
        inner point.
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
    """Measure a surface.

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

    Args:
        losses: ``[alphas, betas]``, interpolated where not evaluated.
        alphas: Coordinates; sorted here.
        betas: The same; one value only for a line.

    Returns:
        The measures; NaN where nothing finite gives one.

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

"""Smooth surfaces through points of a grid, and where to put the first points."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

__all__ = ["chebyshev_nodes", "fits_through", "unit_grid"]

Floats = NDArray[np.float64]
_KERNELS = (("quintic", 2), ("cubic", 1))


def chebyshev_nodes(count: int, nodes: int) -> NDArray[np.intp]:
    """Return the places on an axis of `count` points that are nearest to Chebyshev's nodes.

    ``(N − 1) (1 − cos(π k / (n − 1))) / 2``, both ends and the middle included for odd n: a
    polynomial, and a spline, errs most near the ends, so the nodes are denser there.

    Args:
        count: Points on the axis.
        nodes: Nodes to choose, 2 or more.

    Returns:
        Increasing places from 0 to ``count - 1``, fewer than `nodes` where they coincide.
    """
    angles = np.pi * np.arange(nodes) / (nodes - 1)
    return np.unique(np.round((count - 1) * (1 - np.cos(angles)) / 2).astype(np.intp))


def unit_grid(axes: tuple[Floats, Floats]) -> Floats:
    """Return the points of a grid with both axes mapped to [-1, 1], so that both count alike.

    Args:
        axes: Increasing coordinates.

    Returns:
        ``[alphas, betas, 2]``.
    """
    return np.stack(np.meshgrid(*map(_to_unit, axes), indexing="ij"), axis=-1)


def _to_unit(axis: Floats) -> Floats:
    """Map an axis to [-1, 1], so that both count alike."""
    span = axis[-1] - axis[0]
    unit: Floats = 2 * (axis - axis[0]) / span - 1 if span > 0 else np.zeros_like(axis)
    return unit


def fits_through(grid: Floats, values: Floats, evaluated: NDArray[np.bool_]) -> dict[str, Floats]:
    """Fit radial functions, cubic and quintic, to the loss and, where positive, to its logarithm.

    Args:
        grid: ``[alphas, betas, 2]``.
        values: Losses ``[alphas, betas]``, finite where evaluated.
        evaluated: Which of them to fit.

    Returns:
        Values at every point by the name of the fit; NaN where a fit is not possible.
    """
    points, known = grid[evaluated], values[evaluated]
    fits = {}
    for kernel, degree in _KERNELS:
        fits[f"{kernel} of L"] = _fitted(grid, points, known, kernel, degree)
        if known.min() > 0:
            with np.errstate(over="ignore"):
                logs = _fitted(grid, points, np.log(known), kernel, degree)
                fits[f"{kernel} of log L"] = np.exp(logs)
    return fits


def _fitted(grid: Floats, points: Floats, known: Floats, kernel: str, degree: int) -> Floats:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = RBFInterpolator(points, known, kernel=kernel, degree=degree)
            values: Floats = fit(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    except (np.linalg.LinAlgError, ValueError):
        return np.full(grid.shape[:2], np.nan)
    return values

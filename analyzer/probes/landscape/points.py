"""Which points of a surface the tolerance needs, and the fit through them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

__all__ = [
    "Estimate",
    "chebyshev_nodes",
    "estimated_surface",
]

Floats = NDArray[np.float64]
Places = Sequence[tuple[int, int]]


_KERNELS = (("quintic", 2), ("cubic", 1))


def chebyshev_nodes(count: int, nodes: int) -> NDArray[np.intp]:
    """Return the places on an axis of `count` points that are nearest to Chebyshev's nodes.

    ``(N − 1) (1 − cos(π k / (n − 1))) / 2``, both ends and the middle included for odd n: a
    polynomial, and a spline, errs most near the ends, so the nodes are denser there. Fewer than
    `nodes`, which are 2 or more, where they coincide.
    """
    angles = np.pi * np.arange(nodes) / (nodes - 1)
    return np.unique(np.round((count - 1) * (1 - np.cos(angles)) / 2).astype(np.intp))


def _to_unit(axis: Floats) -> Floats:
    """Map an axis to [-1, 1], so that both count alike."""
    span = axis[-1] - axis[0]
    unit: Floats = 2 * (axis - axis[0]) / span - 1 if span > 0 else np.zeros_like(axis)
    return unit


def _fitted(grid: Floats, points: Floats, known: Floats, kernel: str, degree: int) -> Floats:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = RBFInterpolator(points, known, kernel=kernel, degree=degree)
            values: Floats = fit(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    except (np.linalg.LinAlgError, ValueError):
        return np.full(grid.shape[:2], np.nan)
    return values


_START = 9  # nodes per axis of the first grid
_HELD_OUT = 20  # points of a round, at least
_ROUNDS = 3  # rounds in a row that must be within the margin
_MARGIN = 0.6  # share of the tolerance that held-out points may be off: they are not all points
_GIVE_UP = 0.45  # share of evaluated points above which all others are evaluated as well
_SMALL = 256  # points of a grid that is not worth guessing at


@dataclass(frozen=True)
class Estimate:
    """A surface, partly evaluated.

    Attributes:
        values: Loss at every point ``[alphas, betas]``; where not evaluated, that of the fitted
            surface, NaN where none could be fitted.
        error: Largest error at points that were predicted before they were evaluated, over the
            range of the loss, in the rounds that decided; 0 where all were evaluated, NaN where no
            point was held out.
        is_within: Whether that is within the tolerance.
        fit: What was fitted.
    """

    values: Floats
    evaluated: NDArray[np.bool_]
    error: float
    is_within: bool
    fit: str


def estimated_surface(
    axes: tuple[Floats, Floats],
    evaluate: Callable[[Places], Floats],
    tolerance: float,
    is_late: Callable[[], bool] = lambda: False,
) -> Estimate:
    """Evaluate a surface where that is needed and fit the rest.

    A grid of Chebyshev nodes comes first. Then rounds of points that were not evaluated: where four
    fits (cubic and quintic radial functions of L and of log L) disagree most, and where the next
    evaluated point is farthest. Each is predicted, evaluated, and then used. It ends when the
    best fit was within 0.6 of the tolerance in three rounds in a row. A surface too rough for that,
    or with a point that is not finite, is evaluated at every point. ``evaluate`` returns the losses
    of the first places only if time is up.
    """
    search = _Search(axes, evaluate)
    while not (search.is_complete or is_late()):
        if not search.is_smooth_so_far:
            rest = np.argwhere(~search.evaluated)[: search.round_size * 4]
            search.add([(int(i), int(j)) for i, j in rest])
            continue
        search.round()
        if search.rounds >= _ROUNDS and search.error <= _MARGIN * tolerance:
            break
    return search.estimate(tolerance)


class _Search:
    """The points evaluated so far, at first those of a coarse grid, and the fits through them."""

    def __init__(self, axes: tuple[Floats, Floats], evaluate: Callable[[Places], Floats]) -> None:
        self.shape = (len(axes[0]), len(axes[1]))
        self.values = np.full(self.shape, np.nan)
        self.evaluated = np.zeros(self.shape, dtype=bool)
        self._evaluate = evaluate
        self._grid = np.stack(np.meshgrid(*map(_to_unit, axes), indexing="ij"), axis=-1)
        self._distance = np.full(self.shape, np.inf)
        self._surprise = np.zeros(self.shape)
        self._errors: dict[str, list[float]] = {}
        self._best = ""
        self.rounds = 0
        is_small = self.shape[0] * self.shape[1] <= _SMALL
        rows, columns = (
            range(count) if is_small else chebyshev_nodes(count, _START).tolist()
            for count in self.shape
        )
        points = [(int(i), int(j)) for i in rows for j in columns]
        self.add(points)
        self._has_grid = int(self.evaluated.sum()) == len(points)

    @property
    def round_size(self) -> int:
        """Points of the next round: more where many were not enough."""
        return max(_HELD_OUT, int(self.evaluated.sum()) // 8)

    @property
    def is_complete(self) -> bool:
        """Whether every point was evaluated."""
        return bool(self.evaluated.all())

    @property
    def is_smooth_so_far(self) -> bool:
        """Whether a fit still promises to need fewer evaluations than there are points."""
        return self._is_finite and bool(self.evaluated.mean() < _GIVE_UP)

    @property
    def _is_finite(self) -> bool:
        return bool(np.isfinite(self.values[self.evaluated]).all())

    def add(self, points: Places, predicted: Floats | None = None) -> None:
        """Evaluate points; remember around each of them how wrong its prediction was."""
        found = self._evaluate(points)
        points = points[: len(found)]
        if not points:
            return
        places = tuple(np.array(points, dtype=np.intp).T)
        self.values[places] = found
        self.evaluated[places] = True
        wrong = np.zeros(len(points)) if predicted is None else predicted[: len(points)] - found
        for place, error in zip(points, np.abs(wrong), strict=True):
            away = np.sqrt(((self._grid - self._grid[place]) ** 2).sum(axis=-1))
            nearer = away < self._distance
            self._distance = np.where(nearer, away, self._distance)
            self._surprise = np.where(nearer, error, self._surprise)

    def round(self) -> None:
        """Predict some points, evaluate them, and note how far off each fit was."""
        fits, trusted = self._fits()
        # How far the trusted fit is from its sibling of another smoothness.
        transform = trusted.partition(" ")[2]
        siblings = np.stack([fit for name, fit in fits.items() if name.endswith(f" {transform}")])
        doubt = np.nan_to_num(siblings.max(axis=0) - siblings.min(axis=0), nan=np.inf)
        points = self._doubtful(doubt)
        places = tuple(np.array(points, dtype=np.intp).T)
        self.add(points, fits[trusted][places])
        if not self.evaluated[places].all():
            return
        for name, fit in fits.items():
            worst = float(np.abs(fit[places] - self.values[places]).max())
            self._errors.setdefault(name, []).append(worst if np.isfinite(worst) else np.inf)
        self.rounds += 1
        self._best = min(fits, key=self._recent)

    def _fits(self) -> tuple[dict[str, Floats], str]:
        """Fit radial functions, cubic and quintic, to the loss and, where positive, to its log.

        The name is that of the fit to trust.
        """
        points, known = self._grid[self.evaluated], self.values[self.evaluated]
        fits = {}
        for kernel, degree in _KERNELS:
            fits[f"{kernel} of L"] = _fitted(self._grid, points, known, kernel, degree)
            if known.min() > 0:
                with np.errstate(over="ignore"):
                    logs = _fitted(self._grid, points, np.log(known), kernel, degree)
                    fits[f"{kernel} of log L"] = np.exp(logs)
        return fits, self._best if self._best in fits else next(iter(fits))

    def _recent(self, name: str) -> float:
        """Largest error of a fit in the rounds that decide."""
        return max(self._errors[name][-_ROUNDS:])

    @property
    def error(self) -> float:
        """Largest recent error of the best fit over the range; NaN before the first round."""
        if self.is_complete:
            return 0.0
        if not self._best or not self._is_finite:
            return float("nan")
        known = self.values[self.evaluated]
        span = float(known.max() - known.min())
        worst = self._recent(self._best)
        return worst / span if span > 0 else (0.0 if worst == 0 else np.inf)

    def _doubtful(self, doubt: Floats) -> list[tuple[int, int]]:
        """Points that no fit should pass unseen, in turn of three kinds.

        Where nothing is near; where fits disagree; where the nearest prediction was wrong.
        """
        distance = np.where(self.evaluated, 0.0, self._distance)
        chosen: list[tuple[int, int]] = []
        for place in range(min(self.round_size, int((~self.evaluated).sum()))):
            weight = (1.0, doubt, self._surprise)[place % 3]
            score = weight * distance
            # What lies beside a point that is already chosen tells little more.
            score = score if score.max() > 0 else distance
            i, j = np.unravel_index(int(np.argmax(score)), self.shape)
            chosen.append((int(i), int(j)))
            step = np.sqrt(((self._grid - self._grid[i, j]) ** 2).sum(axis=-1))
            distance = np.minimum(distance, step)
        return chosen

    def estimate(self, tolerance: float) -> Estimate:
        """Return the surface with the best fit where nothing was evaluated."""
        values, name = self.values.copy(), "none"
        if not self.is_complete and self._has_grid and self._is_finite:
            fits, name = self._fits()
            values = np.where(self.evaluated, values, fits[name])
        enough = self.is_complete or self.rounds >= _ROUNDS
        is_within = enough and self.error <= tolerance
        return Estimate(values, self.evaluated.copy(), self.error, is_within, name)

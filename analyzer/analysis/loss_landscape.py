"""The loss on a plane or a line through the weights, with one range for all runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.per_run import (
    PerRun,
    RunAtStep,
    not_recorded,
    probe_rows_at,
    read_runs,
    shown_range,
)
from analyzer.analysis.view import RunLabel, View
from analyzer.storage.run import Run

__all__ = ["Landscape", "Landscapes", "Trajectory", "landscapes", "trajectories"]

Floats = NDArray[np.float64]
# Above this many times the smallest loss a linear scale shows a needle and a plain.
_LOG_RATIO = 20.0


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Where the checkpoints of a training lie in a plane.

    Args:
        alphas: First coordinate, ``[checkpoints]``.
        betas: Second coordinate.
        residuals: What of its distance from the weights at (0, 0) the plane does not show, from 0
            to 1; NaN where not noted.
        explained: Share of the squared distances that the plane explains; NaN where not noted.
    """

    steps: NDArray[np.int64]
    alphas: Floats
    betas: Floats
    residuals: Floats
    explained: float


@dataclass(frozen=True, eq=False)
class Landscape(RunAtStep):
    """The loss of one run around its weights at one step.

    Args:
        alphas: Coordinates along the first direction, ascending, ``[m]``.
        betas: Coordinates along the second, ``[n]``; none for a line.
        losses: ``[n, m]``, or ``[1, m]`` for a line, as the probe gives them: interpolated where
            not evaluated, never repaired; NaN also where the table has no such point.
        evaluated: Where the loss was evaluated rather than interpolated, in the same shape.
        center: Loss at (0, 0); NaN where that is not a point of the grid.
        trajectory: Checkpoints in this plane; None where the probe noted none.
    """

    alphas: Floats
    betas: Floats
    losses: Floats
    evaluated: NDArray[np.bool_]
    center: float
    num_nonfinite: int
    trajectory: Trajectory | None
    notes: Mapping[str, str]

    def sentence(self) -> str:
        """Return the loss at the weights and the largest one, and what was not evaluated."""
        finite = self.losses[np.isfinite(self.losses)]
        if not len(finite):
            return f"{self.where}: no loss on the grid is finite."
        text = (
            f"{self.where}: the loss is {number(self.center)} at the weights and reaches "
            f"{number(float(finite.max()))} at distance {number(float(np.abs(self.alphas).max()))}"
        )
        if not self.evaluated.all():
            share = percent(1 - float(self.evaluated.mean()))
            text += f"; {share} of the points are interpolated or missing"
        if self.num_nonfinite:
            verb = "is" if self.num_nonfinite == 1 else "are"
            text += f"; {counted(self.num_nonfinite, 'point')} {verb} not finite"
        return f"{text}."

    def cells(self) -> Mapping[str, Any]:
        """Return one row per point of the grid."""
        betas = self.betas if len(self.betas) else np.array([np.nan])
        return {
            "step": self.step,
            "alpha": np.tile(self.alphas, len(betas)),
            "beta": np.repeat(betas, len(self.alphas)),
            "loss": self.losses.ravel(),
            "evaluated": self.evaluated.ravel(),
        }


@dataclass(frozen=True, eq=False)
class CrossedLandscape(Landscape):
    """The landscape of one run, seen for the path of its training."""

    def sentence(self) -> str:
        """Return the checkpoints, and how much of their distances the plane shows."""
        path = self.trajectory
        if path is None or not len(path.steps):
            return f"{self.where}: no checkpoint lies in the plane."
        count = counted(len(path.steps), "checkpoint")
        text = f"{self.where}: the path of {count} from step {path.steps[0]:,}"
        if np.isfinite(path.explained):
            text += f"; the plane explains {percent(path.explained)} of their squared distances"
        outside = path.residuals[np.isfinite(path.residuals)]
        if len(outside):
            worst = int(np.nanargmax(path.residuals))
            text += (
                f"; at most {percent(float(outside.max()))} of a distance lies outside of it "
                f"(step {path.steps[worst]:,})"
            )
        return f"{text}."


@dataclass(frozen=True, eq=False)
class Landscapes(PerRun[Landscape]):
    """Landscapes of all runs with the probe.

    Args:
        is_log: Whether losses are shown by their logarithm.
        low: Smallest loss shown, of all runs; a decimal logarithm where ``is_log``.
        high: Largest loss shown.
    """

    is_log: bool
    low: float
    high: float

    def shown(self, run: Landscape) -> Floats:
        """Return the losses of a run as they are drawn; NaN where the scale has none."""
        finite = np.where(np.isfinite(run.losses), run.losses, np.nan)
        if not self.is_log:
            return finite
        return np.log10(np.where(finite > 0, finite, np.nan))


def landscapes(view: View) -> Landscapes:
    """Read the loss landscape of every run at the probe nearest to the step.

    Reference:
        Li et al. (2018), Visualizing the loss landscape of neural nets.
    """
    return _in_one_range(*read_runs(view, _landscape))


def trajectories(view: View) -> Landscapes:
    """Read the landscapes that hold a trajectory of the optimizer."""
    return _in_one_range(*read_runs(view, _crossed))


def _in_one_range(runs: Sequence[Landscape], missing: tuple[str, ...]) -> Landscapes:
    low, high = shown_range((run.losses for run in runs), is_log=False)
    if np.isnan(low):
        low, high = 0.0, 1.0
    is_log = low > 0 and high / low > _LOG_RATIO
    if is_log:
        low, high = float(np.log10(low)), float(np.log10(high))
    return Landscapes(tuple(runs), missing, is_log, low, high if high > low else low + 1e-6)


def _crossed(view: View, run: Run, label: RunLabel) -> CrossedLandscape:
    found = _landscape(view, run, label)
    if found.trajectory is None:
        remedy = (
            "record with `--checkpoint-every N`, then "
            f"`analyzer probe {run.name} landscape --plane trajectory`"
        )
        raise not_recorded("a trajectory was", run, remedy)
    return CrossedLandscape(**vars(found))


def _landscape(view: View, run: Run, label: RunLabel) -> Landscape:
    step, rows = probe_rows_at(run, "landscape", view.step)
    notes = run.probe_metadata("landscape").get(step, {})
    alpha, beta = (rows[name].to_numpy(np.float64) for name in ("alpha", "beta"))
    alphas, column = np.unique(alpha, return_inverse=True)
    betas, line = np.unique(np.where(np.isnan(beta), 0.0, beta), return_inverse=True)
    shape = (len(betas), len(alphas))
    losses, evaluated = np.full(shape, np.nan), np.zeros(shape, bool)
    losses[line, column] = rows["loss"].to_numpy(np.float64, na_value=np.nan)
    evaluated[line, column] = rows["evaluated"].to_numpy(bool, na_value=False)
    at_center = losses[np.ix_(betas == 0, alphas == 0)].ravel()
    return Landscape(
        label,
        step,
        alphas,
        betas if len(betas) > 1 else np.zeros(0),
        losses,
        evaluated,
        float(at_center[0]) if len(at_center) else float("nan"),
        int(np.count_nonzero(evaluated & ~np.isfinite(losses))),
        _trajectory(notes),
        notes,
    )


def _trajectory(notes: Mapping[str, str]) -> Trajectory | None:
    """The checkpoints that the probe noted as ``[[step, alpha, beta], …]``."""
    points = _noted(notes, "trajectory")
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        return None
    residuals = _noted(notes, "trajectory_residuals")
    if residuals.shape != points.shape[:1]:
        residuals = np.full(len(points), np.nan)
    shares = _noted(notes, "variance_explained")
    explained = float(shares.sum()) if shares.shape == (2,) else float("nan")
    steps = points[:, 0].astype(np.int64)
    return Trajectory(steps, points[:, 1], points[:, 2], residuals, explained)


def _noted(notes: Mapping[str, str], name: str) -> Floats:
    """Numbers that a probe noted as JSON; none where there are none, or something else."""
    try:
        return np.asarray(json.loads(notes.get(name, "[]")), np.float64)
    except (ValueError, TypeError, RecursionError):
        return np.zeros(0)

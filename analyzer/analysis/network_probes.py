"""What probes measured of a whole network: its loss landscape, path lengths and lesions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.per_run import (
    AlongDepth,
    PerRun,
    RunAtStep,
    not_recorded,
    per_run,
    probe_rows_at,
    read_runs,
    shown_range,
)
from analyzer.analysis.view import RunLabel, View
from analyzer.errors import NotRecordedError
from analyzer.storage.reading import noted, noted_numbers
from analyzer.storage.run import Run

__all__ = [
    "Landscape",
    "Landscapes",
    "PathSpectrum",
    "Trajectory",
    "join_lesions",
    "landscapes",
    "path_lengths",
    "trajectories",
]

Floats = NDArray[np.float64]
_MOST_CELLS = 4_000_000
# In units of the weights.
_MOST_FAR = 1e100
_MOST_CHECKPOINTS = 10_000
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
            f"{number(float(finite.max()))} within {number(float(np.abs(self.alphas).max()))} of "
            "them along each direction"
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
    """Landscapes of all runs with the probe in one range of losses, logarithms where ``is_log``."""

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
    far = [x for x in (*alpha, *beta[~np.isnan(beta)]) if not abs(x) < _MOST_FAR]
    if far:
        raise NotRecordedError(
            f"the landscape has a point at {far[0]:.3g}, expected places below {_MOST_FAR:.0e}. "
            "Measure it again with --overwrite"
        )
    alphas, column = np.unique(alpha, return_inverse=True)
    betas, line = np.unique(np.where(np.isnan(beta), 0.0, beta), return_inverse=True)
    if len(alphas) * len(betas) > _MOST_CELLS:  # a file may hold points of no grid
        raise NotRecordedError(
            f"the landscape has {len(alphas):,} by {len(betas):,} points; expected at most "
            f"{_MOST_CELLS:,}, those of a grid. Measure it again with --overwrite"
        )
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
    points = noted_numbers(noted(notes, "trajectory"))
    if points.ndim != 2 or points.shape[1] != 3 or not (abs(points) < _MOST_FAR).all():
        return None
    if len(points) > _MOST_CHECKPOINTS:  # a folder of anybody may note any number
        return None
    residuals = noted_numbers(noted(notes, "trajectory_residuals"))
    if residuals.shape != points.shape[:1]:
        residuals = np.full(len(points), np.nan)
    shares = noted_numbers(noted(notes, "variance_explained"))
    explained = float(shares.sum()) if shares.shape == (2,) else float("nan")
    steps = points[:, 0].astype(np.int64)
    return Trajectory(steps, points[:, 1], points[:, 2], residuals, explained)


@dataclass(frozen=True, eq=False)
class PathSpectrum(RunAtStep):
    """The path-length spectrum of one run: how many branches the gradient crosses on its way.

    Args:
        lengths: Branches that the paths cross, from 0, ``[lengths]``.
        num_paths: Number of paths of each length.
        norms: Mean over samples of ``‖G_k‖₂``, in loss / unit of x.
        norm_shares: ``‖G_k‖ / Σ ‖G_k‖``; NaN where all are zero.
        path_shares: ``num_paths / Σ num_paths``.
        effective_length: ``Σ k‖G_k‖ / Σ ‖G_k‖``, in branches; NaN where all are zero.
    """

    lengths: NDArray[np.int64]
    num_paths: Floats
    norms: Floats
    norm_shares: Floats
    path_shares: Floats
    effective_length: float

    columns: ClassVar[Mapping[str, str]] = {
        "step": "step",
        "length": "lengths",
        "num_paths": "num_paths",
        "gradient_norm": "norms",
        "norm_share": "norm_shares",
    }

    def sentence(self) -> str:
        """Return the effective length, and the length at which the gradient is largest."""
        start = f"{self.where}: {number(float(self.num_paths.sum()))} paths"
        if not np.isfinite(self.effective_length):
            return f"{start}; their gradient is zero or not finite."
        if len(self.lengths) < 2:
            return (
                f"{self.where}: there are no joins, so a single path carries all of the gradient."
            )
        peak = int(self.norms.argmax())
        share, paths = percent(self.norm_shares[peak]), percent(self.path_shares[peak])
        return (
            f"{start} of up to {self.lengths[-1]} branches; the gradient has effective length "
            f"{number(self.effective_length)} and is largest at length {self.lengths[peak]} "
            f"({share} of it, in {paths} of the paths)."
        )


@per_run
def path_lengths(view: View, run: Run, label: RunLabel) -> PathSpectrum:
    """Read the path-length spectrum of every run at the probe nearest to the step.

    Reference:
        Veit et al. (2016), Residual networks behave like ensembles of relatively shallow networks.
    """
    step, rows = probe_rows_at(run, "paths", view.step)
    rows = rows.sort_values("length")
    lengths = rows["length"].to_numpy(np.int64)
    norms, paths = (rows[name].to_numpy(np.float64) for name in ("gradient_norm", "num_paths"))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares, of_paths = norms / norms.sum(), paths / paths.sum()
    effective = float((lengths * shares).sum())
    return PathSpectrum(label, step, lengths, paths, norms, shares, of_paths, effective)


@per_run
def join_lesions(view: View, run: Run, label: RunLabel) -> AlongDepth:
    """Read ``loss_change`` and ``accuracy`` without each residual branch, joins in forward order.

    Of every run at the probe nearest to the step. The change is the loss without the branch minus
    that of the whole network; the accuracy is NaN where there are no classes.
    ``shortcut_loss_change`` is that without the shortcut; NaN in runs that did not measure it.

    Reference:
        Veit et al. (2016), Residual networks behave like ensembles of relatively shallow networks.
    """
    step, rows = probe_rows_at(run, "lesion", view.step)
    rows = rows[rows["join"].notna()].sort_values("join")
    if not len(rows):
        raise not_recorded("probe lesion has no join:", run, "a net without joins has no lesion")
    known = dict(zip(run.joins["join"], run.joins["name"].astype(str), strict=True))
    joins = rows["join"].to_numpy(np.int64)
    names = tuple(known.get(int(join), f"join {join}") for join in joins)
    columns = ["loss_change", "accuracy", "shortcut_loss_change"]
    rows = rows.reindex(columns=columns)
    values = {name: rows[name].to_numpy(np.float64, na_value=np.nan) for name in columns}
    changes = values["loss_change"]
    finite = np.isfinite(changes)
    text = f"without the branch of one of {counted(len(names), 'join')} the loss "
    if finite.any():
        worst = int(np.argmax(np.where(finite, changes, -np.inf)))
        text += (
            f"changes by {number(float(np.median(changes[finite])))} (median), by "
            f"{number(float(changes[worst]))} at most ({names[worst]})."
        )
    else:
        text += "is not finite."
    cut = values["shortcut_loss_change"]
    if np.isfinite(cut).any():
        middle = number(float(np.median(cut[np.isfinite(cut)])))
        text += f" Without one of the shortcuts it changes by {middle} (median)."
    places = np.arange(len(names), dtype=np.float64)
    return AlongDepth(label, step, names, places, values, text, row="join", axis="")

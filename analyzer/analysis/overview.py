"""The overview: network, profile along depth, depth × step grid and loss of each run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import Band, grouped
from analyzer.analysis.evidence import NonFinite, broke_first
from analyzer.analysis.flow_grid import NONFINITE, GridColumn, grid_column, value_range
from analyzer.analysis.gradient_flow import Gain, depth_profile, gain_clause, profile_gain
from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.per_run import (
    PerRun,
    RunAtStep,
    probe_rows_at,
    profile_values,
    read_runs,
    recorded_step,
    remembered,
    shown_range,
)
from analyzer.analysis.probe_numbers import fallen_without_shortcuts
from analyzer.analysis.profiles import over_deepest
from analyzer.analysis.shortcuts import JoinArcs, join_arcs, share_grid
from analyzer.analysis.training import TrainingSummary, loss_band, run_training
from analyzer.analysis.view import RunLabel, View, has_shortcuts, stage_borders
from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = [
    "Overview",
    "OverviewColumn",
    "class_entropy",
    "loss_spike",
    "overview",
    "step_gains",
]

Floats = NDArray[np.float64]
_CELLS = 21_000
_MOST_POINTS = 500
_MOST_PAIRS = 2000
# Of colors.
_DECADES = 15.0
# Bins of the loss that a spike is compared with.
_BEFORE = 10
# Arcs that stay apart on the width of a screen.
_ARCS_ACROSS, _FEWEST_ARCS = 112, 6


@dataclass(frozen=True, eq=False)
class OverviewColumn(RunAtStep):
    """One run of the overview.

    Args:
        profile: Norms of the same rows at the step, ``[rows]``.
        gain: The fit at the step, over all layers with parameters.
        gains: Gain per layer of each bin of the grid, over its rows, ``[bins]``; NaN without one.
        arcs: The joins, with their shares at the split nearest to the step; a band of groups where
            there are many.
        share_steps: Steps of ``shares``, ``[splits]``.
        shares: Shortcut share of each arc at those steps, ``[splits, arcs]``.
        stages: Depth and name at which a stage of the network begins.
        without: Norms of the same rows with every shortcut multiplied by 0, at the same weights, as
            the probe ``counterfactual`` measured them nearest to the step; empty where it did not.
        without_step: The step of that.
        without_fallen: Decades that the gradient falls then from the last layer with parameters to
            the first; NaN where it is not known.
        guess: Loss of answering with the shares of the classes alone, where the classes
            were seen; else NaN.
        fit: Ends of the line that is fitted along depth at the step, what a diagnosis names:
            depths, then norms. Empty of a network with shortcuts, where it is fitted to the sums at
            joins, which are not among the rows.
        broke: What is not finite first; None where all layers are.
        broke_at: Depth of its layer.
        spike: Step and height of the loss where it rises most and comes back; None without one.
    """

    grid: GridColumn
    profile: Floats
    gain: Gain
    gains: Floats
    arcs: JoinArcs
    share_steps: NDArray[np.int64]
    shares: Floats
    stages: tuple[tuple[float, str], ...]
    loss: Band
    title: str
    note: str
    without: Floats
    without_step: int
    without_fallen: float
    guess: float
    fit: tuple[tuple[float, float], ...]
    broke: NonFinite | None
    broke_at: float
    spike: tuple[int, float] | None

    @property
    def outcome(self) -> str:
        """What the loss came to, without its name: ``2.30`` or ``NaN from step 31 on``."""
        said = self.title.removeprefix("loss ").partition(" after ")[0]
        if self.spike is None:
            return said
        step, height = self.spike
        about = "about " * (self.loss.width > 1)
        return f"{said} (spike: {number(height)} at {about}step {step:,})"

    def sentence(self) -> str:
        """Return the outcome, and what the profile shows at the step."""
        return f"{self.label.text}: {self.title}; at step {self.step}, {self.note}."

    def cells(self) -> Mapping[str, Any]:
        """Return one row per layer (or group of layers) at the step."""
        return {
            "step": self.step,
            "layer": self.grid.names,
            "depth": self.grid.positions,
            "output_gradient_norm": self.profile,
            **({"without_shortcuts": self.without} if len(self.without) else {}),
        }


@dataclass(frozen=True, eq=False)
class Overview(PerRun[OverviewColumn]):
    """One to three runs, with the ranges that they share.

    ``low`` to ``high`` are decimal logarithms of norms, ``depth`` the places along depth, and
    ``loss_range`` the finite losses.
    """

    low: float
    high: float
    depth: tuple[float, float]
    loss_range: tuple[float, float]

    @property
    def lowest_color(self) -> float:
        """The logarithm of the norm that has the lowest color.

        So far below the highest that a run has the same colors by itself and beside one that
        vanishes; a fall of 2.5 decades is still seen.
        """
        return min(self.low, self.high - _DECADES)


def overview(view: View) -> Overview:
    """Read the overview: output gradient norms over steps, whatever the view says."""
    asked = replace(view, quantity="output_gradient_norm", over="step")
    found, missing = read_runs(asked, _column)
    # With what the shortcuts are to be compared with, so that a net has the same colors by itself.
    grids, taken = zip(*((column.grid, column.without) for column in found), strict=True)
    low, high = value_range(grids, is_log=True, more=taken)
    places = np.concatenate([column.grid.positions for column in found])
    columns = tuple(_with_legible_arcs(column, places, len(found)) for column in found)
    edges = (edge for column in columns for edge in (column.loss.low, column.loss.high))
    losses = shown_range(edges, is_log=False)
    return Overview(
        columns,
        missing,
        low,
        high,
        (float(places.min()), float(places.max())),
        losses if np.isfinite(losses[0]) else (0.0, 1.0),
    )


def _with_legible_arcs(column: OverviewColumn, places: Floats, count: int) -> OverviewColumn:
    """Put joins together until an arc has room for its lines in its part of the screen."""
    mine = column.grid.positions
    part = (mine[-1] - mine[0] + 1) / (places.max() - places.min() + 1) / count
    arcs = column.arcs.thinned(max(_FEWEST_ARCS, int(_ARCS_ACROSS * part)))
    return replace(column, arcs=arcs, shares=grouped(column.shares, arcs.size, "median"))


def _column(view: View, run: Run, label: RunLabel) -> OverviewColumn:
    step = recorded_step(run, view.step)
    shown = (view.layers, view.aggregate, view.relative)
    grid, gains = _over_steps(run, label, _CELLS // len(view.runs), *shown)
    loss = loss_band(run, _MOST_POINTS, view.smooth)
    broke = broke_first(run) if (grid.marks == NONFINITE).any() else None
    depths = as_floats(run.static_rows("layers").column("depth"))
    fit = profile_gain(depth_profile(run, step))
    # With shortcuts a diagnosis is of sums at joins, which are no rows here.
    has_line = fit.is_defined and not (view.relative or has_shortcuts(run))
    low, high = fit.ends
    line = (fit.depths, (10.0**low, 10.0**high)) if has_line else ()
    arcs = join_arcs(run, step)
    share_steps, shares = _shares(run)
    training = run_training(run)
    # A group of neighbors is shown by its first.
    norms = profile_values(run, "output_gradient_norm", step, grid.ids)
    without_step, without, fallen = _without_shortcuts(run, view.step, grid.ids)
    return OverviewColumn(
        label=label,
        step=step,
        grid=grid,
        profile=over_deepest(norms) if view.relative else norms,
        gain=fit,
        gains=gains,
        arcs=arcs,
        share_steps=share_steps,
        shares=shares,
        stages=stage_borders(grid.names, grid.positions),
        loss=loss,
        title=_outcome(training),
        note=_note(fit, arcs),
        without=over_deepest(without) if view.relative and len(without) else without,
        without_step=without_step,
        without_fallen=fallen,
        guess=class_entropy(run),
        fit=line,
        broke=broke,
        broke_at=math.nan if broke is None else float(depths[broke.layer]),
        spike=loss_spike(loss),
    )


@remembered("layer_stats")
def _over_steps(
    run: Run, label: RunLabel, most: int, layers: str | None, aggregate: str, relative: bool
) -> tuple[GridColumn, Floats]:
    """Gradients at all steps and the gain of each: what another chosen step does not change."""
    asked = View((run,), layers=layers, aggregate=aggregate, relative=relative)
    grid = grid_column(asked, run, label, most_cells=most)
    return grid, step_gains(grid)


@remembered("splits")
def _shares(run: Run) -> tuple[NDArray[np.int64], Floats]:
    """The shares of all joins over the steps."""
    return share_grid(run, join_arcs(run, None))


def loss_spike(loss: Band) -> tuple[int, float] | None:
    """Return step and height of the largest rise of a loss that comes back; None without one.

    Against the median of ten bins before. It must be half as much again, a fifth of the whole
    range of the medians, and eight times what losses differ from those medians as a rule.
    """
    known = np.flatnonzero(np.isfinite(loss.high) & np.isfinite(loss.middle))
    if len(known) < 2 * _BEFORE:
        return None
    high, middle = loss.high[known], loss.middle[known]
    before = np.median(np.lib.stride_tricks.sliding_window_view(middle, _BEFORE), axis=1)[:-1]
    rises = high[_BEFORE:] - before
    at = int(rises.argmax())
    least = max(0.5 * abs(before[at]), 0.2 * np.ptp(before), 8 * float(np.median(np.abs(rises))))
    after = middle[_BEFORE + at + 1 :]
    if rises[at] < least or not len(after) or after.min() > before[at] + rises[at] / 2:
        return None
    place = known[_BEFORE + at]
    return int(loss.steps[place]), float(loss.high[place])


def _without_shortcuts(
    run: Run, step: int | None, ids: NDArray[np.int32]
) -> tuple[int, Floats, float]:
    """The probed step nearest to one, norms of layers there with every shortcut taken out, and the
    decades that these fall.
    """
    try:
        at, rows = probe_rows_at(run, "counterfactual", step)
        fallen = fallen_without_shortcuts(run, rows)
    except NotRecordedError:
        return 0, np.empty(0), math.nan
    taken = rows[(rows["skip_scale"] == 0) & ~rows["rescaled"].astype(bool)]
    norm_of = dict(zip(taken["layer"], taken["output_gradient_norm"], strict=True))
    norms = np.array([norm_of.get(int(layer), np.nan) for layer in ids], np.float64)
    return at, norms if np.isfinite(norms).any() else np.empty(0), fallen


def class_entropy(run: Run) -> float:
    """Return the cross entropy of answering with the shares of the classes alone; NaN unknown."""
    said = run.manifest.get("conditions")
    loss = said.get("loss") if isinstance(said, dict) else None
    entropy = loss.get("class_entropy") if isinstance(loss, dict) else None
    return float(entropy) if isinstance(entropy, int | float) and entropy > 0 else math.nan


def step_gains(grid: GridColumn) -> Floats:
    """Return the gain per layer, going backward, of every bin of a grid, ``[bins]``.

    ``exp(−slope)`` with the median slope of ``ln ‖∂L/∂y‖`` over pairs of rows of different depth,
    as in ``analyzer.analysis.gradient_flow``; of more than 2,000 pairs evenly spaced ones. NaN
    where no pair of rows has two finite norms above 0.
    """
    # Layers of one depth are drawn side by side, within a unit of it.
    depths = np.round(grid.positions)
    first, second = np.triu_indices(len(depths), k=1)
    apart = np.flatnonzero(depths[first] != depths[second])
    chosen = apart[:: max(1, -(-len(apart) // _MOST_PAIRS))]
    first, second = first[chosen], second[chosen]
    rise = (grid.log10[second] - grid.log10[first]) / (depths[second] - depths[first])[:, None]
    slopes = grouped(rise.T, max(2, len(chosen)), "median")
    flat = slopes[:, 0] if slopes.shape[1] else np.full(len(slopes), np.nan)
    with np.errstate(over="ignore"):
        return np.asarray(np.power(10.0, -flat), np.float64)


def _outcome(training: TrainingSummary) -> str:
    if not training.num_losses:
        return f"no loss in {counted(training.num_steps, 'step')}"
    if training.nonfinite_step is not None:
        return f"loss not finite from step {training.nonfinite_step} on"
    return f"loss {number(training.final_loss)} after {counted(training.num_steps, 'step')}"


def _note(gain: Gain, arcs: JoinArcs) -> str:
    text = gain_clause(gain)
    if np.isfinite(arcs.median_share):
        text += f"; shortcuts carry {percent(arcs.median_share)} of the gradient (median)"
    return text

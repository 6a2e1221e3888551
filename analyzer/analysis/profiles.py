"""Quantities along depth at a step: activations, dead units, residual stream; over the steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import Band, grouped, series_band, smoothed, spaced_places
from analyzer.analysis.clock import on_axis, step_places
from analyzer.analysis.gradient_flow import (
    ROUTE,
    depth_profile,
    gain_clause,
    profile_gain,
    relative_depth,
)
from analyzer.analysis.groups import grouped_profiles
from analyzer.analysis.numerals import number, percent
from analyzer.analysis.per_run import (
    AlongDepth,
    InOneRange,
    PerRun,
    RunAtStep,
    RunRecord,
    joined_table,
    not_recorded,
    per_run,
    profile_values,
    read_runs,
    recorded_step,
    shown_range,
)
from analyzer.analysis.shortcuts import join_arcs, share_grid
from analyzer.analysis.view import RunLabel, View, row_set
from analyzer.storage.arrays import as_floats, as_numpy
from analyzer.storage.run import Run
from analyzer.vocabulary import quantity

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LayerSeries",
    "ProfileCurves",
    "ResidualStream",
    "RunSeries",
    "StreamCurves",
    "activation_profiles",
    "dead_unit_profiles",
    "layer_series",
    "num_units",
    "over_deepest",
    "profile_curves",
    "profile_overlay",
    "residual_stream",
    "stream_series",
]

Floats = NDArray[np.float64]
_MOST_LAYERS, _MOST_PINNED, _MOST_POINTS = 5, 8, 500
_CHANNEL_FIRST = ("Conv1d", "BatchNorm", "GroupNorm", "InstanceNorm", "LocalResponseNorm")


@dataclass(frozen=True, eq=False)
class ProfileCurves(PerRun[AlongDepth]):
    """Profiles of one step, their values under the key of the quantity.

    Relative depth is from 0 (first layer) to 1 (last).
    """

    quantity: str
    label: str
    is_log: bool
    is_relative_depth: bool


def profile_curves(view: View) -> ProfileCurves:
    """Read the profile of every run at the step of the view, layers at their depth."""
    runs, missing = read_runs(view, _curve)
    row = quantity(view.quantity)
    label = f"{row.label} / that of the deepest" if view.relative else row.label
    runs = grouped_profiles(view, runs) if view.group else runs
    return ProfileCurves(runs, missing, row.key, label, view.is_log(row.scale == "log"), False)


def profile_overlay(view: View) -> ProfileCurves:
    """Read the profiles of all runs on one axis from the first layer, 0, to the last, 1."""
    found = profile_curves(view)
    runs = tuple(replace(one, positions=relative_depth(one.positions)) for one in found.runs)
    return replace(found, runs=runs, is_relative_depth=True)


def _curve(view: View, run: Run, label: RunLabel) -> AlongDepth:
    rows = row_set(run, view.quantity, view.layers)
    step = recorded_step(run, view.step, rows.table)
    profile = depth_profile(run, step) if view.quantity == "output_gradient_norm" else None
    if profile is not None:
        known = as_numpy(run.static_rows("layers").column("layer"))
        values = profile.norms[np.searchsorted(known, rows.ids)]
    else:
        values = profile_values(run, view.quantity, step, rows.ids, rows.table)
    # A row that holds NaN was recorded; one that is not there was not.
    if (
        np.isnan(values).all()
        and not np.isin(rows.ids, run.profile(view.quantity, step, table=rows.table)[0]).any()
    ):
        raise not_recorded(f"{view.quantity} at step {step} was", run, "choose another step")
    values = over_deepest(values) if view.relative else values
    line: dict[str, Floats] = {}
    if profile is not None:
        fit = profile_gain(profile)
        if fit.is_defined and not view.relative:
            line["fit"] = np.power(10.0, np.interp(rows.positions, fit.depths, fit.ends))
        text = f"{gain_clause(fit)}{f' {ROUTE}' if fit.is_defined else ''}."
    else:
        text = _reach(quantity(view.quantity).label, rows.names, values)
    named = {view.quantity: values}
    return AlongDepth(label, step, rows.names, rows.positions, named, text, line, axis="position")


def _reach(what: str, names: tuple[str, ...], values: Floats) -> str:
    shown = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(shown).all():
        return f"{what} is nowhere finite."
    ends = (np.nanargmin(shown), np.nanargmax(shown))
    low, high = (f"{number(values[at])} ({names[at]})" for at in ends)
    return f"{what} reaches from {low} to {high}."


def over_deepest(values: Floats) -> Floats:
    """Return values by depth over that of the last, ``[rows, …]``; NaN or infinite over zero."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(values / values[-1], np.float64)


@per_run
def activation_profiles(view: View, run: Run, label: RunLabel) -> AlongDepth:
    """Read ``activation_mean`` and ``activation_std`` of every run at the step, layers by depth."""
    layers = row_set(run, "activation_mean", view.layers, every=True)
    step = recorded_step(run, view.step)
    columns = ("activation_mean", "activation_std")
    values = {name: profile_values(run, name, step, layers.ids) for name in columns}
    if not any(np.isfinite(column).any() for column in values.values()):
        raise not_recorded("activations were", run, "record with `--columns all`")
    stds = values["activation_std"]
    known = np.flatnonzero(np.isfinite(stds) & (stds > 0))
    text = "no layer has a finite standard deviation above 0."
    if len(known):
        first, last = (f"{number(stds[at])} ({layers.names[at]})" for at in known[[0, -1]])
        text = f"the standard deviation of activations goes from {first} to {last}."
    return AlongDepth(label, step, layers.names, layers.positions, values, text)


def num_units(kind: str, shape: Sequence[int] | None) -> int | None:
    """Return the number of units of an output: channels of images and convolutions, else features.

    The size of axis 1 with 4 or more axes, or where the kind of module puts channels there; else of
    the last axis. None with fewer than 2 axes (batch first), or without a single tensor.
    """
    if shape is None or len(shape) < 2:
        return None
    channels_first = len(shape) > 3 or kind.startswith(_CHANNEL_FIRST)
    return int(shape[1] if channels_first else shape[-1])


@per_run
def dead_unit_profiles(view: View, run: Run, label: RunLabel) -> AlongDepth:
    """Read ``num_dead`` and ``dead_share`` of the layers with units of every run at the step.

    The share is NaN where the number of units is unknown.
    """
    layers = row_set(run, "activation_num_dead", view.layers, every=True)
    step = recorded_step(run, view.step)
    dead = profile_values(run, "activation_num_dead", step, layers.ids)
    kept = np.flatnonzero(np.isfinite(dead))
    if not len(kept):
        raise not_recorded("dead units were", run, "record with `--columns all`")
    shapes = run.layers.set_index("layer").loc[layers.ids[kept], ["kind", "output_shape"]]
    units = [num_units(*row) or np.nan for row in shapes.itertuples(index=False)]
    names, counts = tuple(layers.names[k] for k in kept), dead[kept].astype(np.int64)
    shares = counts / np.array(units, np.float64)
    text, worst = "no unit is dead.", int(np.argmax(counts))
    if counts.any():
        text = (
            f"{int(counts.sum()):,} dead units in {int(np.count_nonzero(counts))} of {len(names)} "
            f"layers, most in {names[worst]} ({counts[worst]:,}, "
            f"{percent(float(shares[worst]))} of its units)."
        )
    values = {"num_dead": counts, "dead_share": shares}
    return AlongDepth(label, step, names, layers.positions[kept], values, text)


@dataclass(frozen=True, eq=False)
class RunSeries(RunRecord):
    """A quantity of at most eight layers of one run over the steps, by depth, with its bands."""

    quantity: str
    names: tuple[str, ...]
    bands: tuple[Band, ...]

    def sentence(self) -> str:
        """Return where the first of the layers began and where it ended."""
        band, what = self.bands[0], quantity(self.quantity).label
        start = f"{self.label.text}: {what} of {self.names[0]}"
        known = np.flatnonzero(np.isfinite(band.middle))
        if not len(known):
            return f"{start} is nowhere finite."
        first, last = (
            f"{number(band.middle[at])} at step {band.steps[at]}" for at in known[[0, -1]]
        )
        return f"{start} goes from {first} to {last}."


@dataclass(frozen=True, eq=False)
class LayerSeries(InOneRange[RunSeries]):
    """Series of the same quantity in every run."""

    def table(self) -> "pd.DataFrame":
        """Return one row per run, layer and bin of steps."""
        return joined_table(
            {"run": run.label.text, "layer": name, **band.cells(run.quantity)}
            for run in self.runs
            for name, band in zip(run.names, run.bands, strict=True)
        )


def layer_series(view: View) -> LayerSeries:
    """Read the series of the layers that the view picks, or of five from the first to the last."""
    runs, missing = read_runs(view, _series)
    row = quantity(view.quantity)
    is_log = view.is_log(row.scale == "log")
    edges = (edge for run in runs for band in run.bands for edge in (band.low, band.high))
    low, high = shown_range(edges, is_log=is_log)
    return LayerSeries(
        runs, missing, row.label, is_log, low, high, over=view.over, is_log_x=view.log_x
    )


def _series(view: View, run: Run, label: RunLabel) -> RunSeries:
    rows = row_set(run, view.quantity, view.layers)
    if not len(rows.ids):
        raise not_recorded("layers were", run, "wait for the first step, or record it again")
    # Layers that were asked for by name are all shown, as long as they can be told apart.
    most = _MOST_PINNED if view.layers and len(rows.ids) <= _MOST_PINNED else _MOST_LAYERS
    chosen = spaced_places(len(rows.ids), most)
    ids = rows.ids[chosen].tolist()
    series = run.several_series(view.quantity, ids, _MOST_POINTS, table=rows.table)
    bands = tuple(on_axis(run, view.over, series_band(s, smooth=view.smooth)) for s in series)
    if not any(len(band.steps) for band in bands):
        raise not_recorded(f"{view.quantity} was", run, "record with `--columns all`")
    names = tuple(rows.names[k] for k in chosen)
    return RunSeries(label, view.quantity, names, bands)


_NO_STREAM = (
    "runs of schema version 1 have none; else the net has no join, or one that was not seen"
)


@dataclass(frozen=True, eq=False)
class ResidualStream(RunAtStep):
    """The residual stream of one run along depth: how large it is, and how much each block writes.

    Args:
        names: Joins, by depth.
        positions: Depth of each join, ``[joins]``.
        before: ‖s‖, the stream before the block writes; ``written``: ‖b‖; ``after``: ‖s + b‖.
        cosines: cos(s, b); NaN where one of the two is zero, and in a concatenation.
        ends_in_norm: Whether a normalization follows the last join.
    """

    names: tuple[str, ...]
    positions: Floats
    before: Floats
    written: Floats
    after: Floats
    cosines: Floats
    ends_in_norm: bool

    columns: ClassVar[Mapping[str, str]] = {
        "step": "step",
        "join": "names",
        "depth": "positions",
        "shortcut_output_norm": "before",
        "branch_output_norm": "written",
        "join_output_norm": "after",
        "output_cosine": "cosines",
    }

    @property
    def last_word(self) -> str:
        """What the stream after the last join is called."""
        return "before the final norm" if self.ends_in_norm else "after the last join"

    def sentence(self) -> str:
        """Return the first and the last norm of the stream, and what blocks write to it."""
        known = np.flatnonzero(np.isfinite(self.after))
        first, last = (number(float(self.after[at])) for at in known[[0, -1]])
        text = (
            f"{self.where}: the norm of the stream is {first} after {self.names[known[0]]} and "
            f"{last} {self.last_word} ({self.names[known[-1]]})"
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.written / self.before
        if np.isfinite(ratio).any():
            least = int(np.nanargmin(np.where(np.isfinite(ratio), ratio, np.nan)))
            middle = number(float(np.median(ratio[np.isfinite(ratio)])))
            text += (
                f"; a block writes {middle} of it (median), "
                f"{number(float(ratio[least]))} at least ({self.names[least]})"
            )
        return f"{text}."


@per_run
def residual_stream(view: View, run: Run, label: RunLabel) -> ResidualStream:
    """Read ‖s‖, ‖b‖ and ‖s + b‖ at the joins of every run, at the split nearest to the step.

    Reference:
        De and Smith (2020), Batch normalization biases residual blocks towards the identity
        function in deep networks, section 3.
    """
    arcs = join_arcs(run, view.step)
    order = np.argsort(arcs.ends, kind="stable")
    names = ("shortcut_output_norm", "branch_output_norm", "join_output_norm", "output_cosine")
    at = -1 if arcs.step is None else arcs.step
    before, written, after, cosines = (
        profile_values(run, name, at, arcs.joins[order])
        if arcs.step is not None
        else np.full(len(order), np.nan)
        for name in names
    )
    if not np.isfinite(after).any():
        raise not_recorded("norms of what joins add were", run, _NO_STREAM)
    layers = run.static_rows("layers")
    ends, kinds = arcs.ends[order], layers.column("kind").to_pylist()
    behind = np.flatnonzero(as_floats(layers.column("depth")) > ends[-1])
    ends_in_norm = any("norm" in str(kinds[place]).lower() for place in behind)
    words = tuple(arcs.names[place] for place in order)
    return ResidualStream(label, at, words, ends, before, written, after, cosines, ends_in_norm)


@dataclass(frozen=True, eq=False)
class StreamCurves(RunRecord):
    """The residual stream of one run over the steps.

    Args:
        steps: First step of each bin, ``[points]``.
        low: The smallest ‖s + b‖ of all joins; ``high``: the largest.
        last: That of the last join.
        written: The median of ‖b‖.
        smooth: ``last`` smoothed; None where that was not asked for.
        at: Place of each bin on an axis of epochs or of time; None on one of steps.
    """

    steps: NDArray[np.int64]
    low: Floats
    high: Floats
    last: Floats
    written: Floats
    smooth: Floats | None
    at: Floats | None

    columns: ClassVar[Mapping[str, str]] = {
        "step": "steps",
        "min_join_output_norm": "low",
        "max_join_output_norm": "high",
        "last_join_output_norm": "last",
        "median_branch_output_norm": "written",
    }

    def sentence(self) -> str:
        """Return the norm of the stream after the last join, at the first and the last step."""
        known = np.flatnonzero(np.isfinite(self.last))
        if not len(known):
            return f"{self.label.text}: no norm of the stream is finite."
        start, end = (
            f"{number(float(self.last[at]))} at step {self.steps[at]}" for at in known[[0, -1]]
        )
        to = f" goes from {start} to {end}" if len(known) > 1 else f" is {start}"
        return f"{self.label.text}: the norm of the stream after the last join{to}."


@per_run
def stream_series(view: View, run: Run, label: RunLabel) -> StreamCurves:
    """Read the residual stream of every run over its steps."""
    arcs = join_arcs(run, view.step)
    steps, after = share_grid(run, arcs, _MOST_POINTS, "join_output_norm")
    if not np.isfinite(after).any():
        raise not_recorded("norms of what joins add were", run, _NO_STREAM)
    _, written = share_grid(run, arcs, _MOST_POINTS, "branch_output_norm")
    count = after.shape[1]
    low, high = (grouped(after, count, how)[:, 0] for how in ("min", "max"))
    last = after[:, int(np.argmax(arcs.ends))]
    middle = grouped(written, count, "median")[:, 0]
    smooth = smoothed(last, view.smooth) if view.smooth else None
    at = step_places(run, view.over, steps)
    return StreamCurves(label, steps, low, high, last, middle, smooth, at)

"""A quantity along depth at one step, for several runs, on the axis of layers or a relative one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.depth_profile import depth_profile, relative_depth
from analyzer.analysis.gradient_flow import Gain, profile_gain
from analyzer.analysis.numerals import number
from analyzer.analysis.sources import (
    for_each_run,
    joined_table,
    missing_clause,
    not_recorded,
    recorded_step,
)
from analyzer.analysis.view import RunLabel, View, row_set
from analyzer.storage.run import Run
from analyzer.vocabulary import quantity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ProfileCurve", "ProfileCurves", "flow_sentence", "profile_curves", "profile_overlay"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ProfileCurve:
    """A quantity along the depth of one run.

    Args:
        label: Name and style of the run.
        step: The recorded step shown.
        names: Layers or parameters, by depth.
        positions: Place of each on the axis, ``[rows]``.
        values: Recorded values, ``[rows]``; NaN also where the value is null.
        gain: The fit of the output gradient at this step; None for another quantity.
    """

    label: RunLabel
    step: int
    names: tuple[str, ...]
    positions: Floats
    values: Floats
    gain: Gain | None


@dataclass(frozen=True, eq=False)
class ProfileCurves:
    """Profiles of one step.

    Args:
        quantity: Its key.
        label: What the axis says.
        is_log: Whether the axis is logarithmic.
        is_relative_depth: Whether positions run from 0 (first layer) to 1 (last).
        curves: One per run that has the quantity.
        caption: The finding with its number.
    """

    quantity: str
    label: str
    is_log: bool
    is_relative_depth: bool
    curves: tuple[ProfileCurve, ...]
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run and layer."""
        return joined_table(
            {
                "run": curve.label.text,
                "step": curve.step,
                "layer": curve.names,
                "position": curve.positions,
                self.quantity: curve.values,
            }
            for curve in self.curves
        )


def profile_curves(view: View) -> ProfileCurves:
    """Read the profile of every run at the step of the view, layers at their depth.

    Raises:
        NotRecordedError: If no run has the quantity.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    return _curves(view, is_relative_depth=False)


def profile_overlay(view: View) -> ProfileCurves:
    """Read the profiles of all runs on one axis from the first layer, 0, to the last, 1.

    Raises:
        NotRecordedError: If no run has the quantity.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    return _curves(view, is_relative_depth=True)


def _curves(view: View, *, is_relative_depth: bool) -> ProfileCurves:
    curves, missing = for_each_run(
        view, lambda run, label: _curve(view, run, label, is_relative_depth)
    )
    row = quantity(view.quantity)
    label = f"{row.label} / that of the deepest" if view.relative else row.label
    sentences = [_sentence(curve, row.label) for curve in curves]
    return ProfileCurves(
        view.quantity,
        label,
        row.scale == "log",
        is_relative_depth,
        curves,
        " ".join(sentences) + missing_clause(missing),
    )


def _curve(view: View, run: Run, label: RunLabel, is_relative_depth: bool) -> ProfileCurve:
    rows = row_set(run, view.quantity, view.layers)
    step = recorded_step(run, view.step, rows.table)
    ids, found = run.profile(view.quantity, step, table=rows.table)
    value_of = dict(zip(ids.tolist(), found.tolist(), strict=True))
    values = np.array([value_of.get(int(id_), np.nan) for id_ in rows.ids], np.float64)
    if np.isnan(values).all() and not any(int(id_) in value_of for id_ in rows.ids):
        raise not_recorded(f"{view.quantity} at step {step} was", run, "choose another step")
    if view.relative:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = values / values[-1]
    fit = None
    if view.quantity == "output_gradient_norm":
        fit = profile_gain(depth_profile(run, step))
    positions = relative_depth(rows.positions) if is_relative_depth else rows.positions
    return ProfileCurve(label, step, rows.names, positions, values, fit)


def flow_sentence(gain: Gain) -> str:
    """Return what a fitted gain says, as a clause: how far the gradient falls, and the gain."""
    if not gain.is_defined:
        lost = gain.num_zero + gain.num_nonfinite
        return f"no gain can be fitted ({gain.num_layers} usable layers, {lost} zero or non-finite)"
    fallen = gain.decades_fallen
    factor = f"gain {number(gain.gain)} per layer"
    return f"{factor}: ‖δ‖ {'falls' if fallen > 0 else 'grows'} {number(abs(fallen))} decades"


def _sentence(curve: ProfileCurve, what: str) -> str:
    start = f"{curve.label.text}, step {curve.step}:"
    if curve.gain is not None:
        route = " from the last layer to the first" if curve.gain.is_defined else ""
        return f"{start} {flow_sentence(curve.gain)}{route}."
    finite = np.isfinite(curve.values)
    if not finite.any():
        return f"{start} {what} is nowhere finite."
    low = int(np.nanargmin(np.where(finite, curve.values, np.nan)))
    high = int(np.nanargmax(np.where(finite, curve.values, np.nan)))
    return (
        f"{start} {what} reaches from {number(curve.values[low])} ({curve.names[low]}) to "
        f"{number(curve.values[high])} ({curve.names[high]})."
    )

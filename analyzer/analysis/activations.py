"""Activations along depth, and units that are zero for every sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import number, percent
from analyzer.analysis.per_run import (
    AlongDepth,
    PerRun,
    not_recorded,
    profile_values,
    read_runs,
    recorded_step,
)
from analyzer.analysis.view import RunLabel, View, row_set
from analyzer.storage.run import Run

__all__ = ["DeadUnits", "activation_profiles", "dead_unit_profiles", "dead_units", "num_units"]

Floats = NDArray[np.float64]
_CHANNEL_FIRST = ("Conv1d", "BatchNorm", "GroupNorm", "InstanceNorm", "LocalResponseNorm")


@dataclass(frozen=True)
class DeadUnits:
    """Dead units of one layer at one step.

    Args:
        layer: Row of the table of layers.
        name: Its name.
        num_dead: Units whose activation is zero for every sample of the pooled step.
        num_units: Channels or features of the layer; None where its shape does not say.
    """

    layer: int
    name: str
    num_dead: int
    num_units: int | None

    @property
    def fraction(self) -> float:
        """Dead units over all units; NaN where the number of units is unknown or zero."""
        return self.num_dead / self.num_units if self.num_units else float("nan")


def num_units(kind: str, shape: Sequence[int] | None) -> int | None:
    """Return the number of units of an output: channels of images and convolutions, else features.

    Args:
        kind: Class name of the module.
        shape: Shape of its output, batch first; None where it is not a single tensor.

    Returns:
        The size of axis 1 with 4 or more axes, or where the kind puts channels there; else of the
        last axis. None with fewer than 2 axes, where there is no unit axis.
    """
    if shape is None or len(shape) < 2:
        return None
    channels_first = len(shape) > 3 or kind.startswith(_CHANNEL_FIRST)
    return int(shape[1] if channels_first else shape[-1])


def dead_units(run: Run, step: int) -> list[DeadUnits]:
    """Return the dead units of every layer that has units, in call order.

    Args:
        run: An opened run.
        step: A recorded step.

    Returns:
        One row per layer whose ``activation_num_dead`` is not null, zeros included.
    """
    stats = run.read("layer_stats", "activation_num_dead", steps=step)
    ids, values = (stats.column(c).to_pylist() for c in ("layer", "activation_num_dead"))
    counted = {i: v for i, v in zip(ids, values, strict=True) if v is not None}
    rows = run.layers[["layer", "name", "kind", "output_shape"]].itertuples(index=False)
    return [
        DeadUnits(layer, name, counted[layer], num_units(kind, shape))
        for layer, name, kind, shape in rows
        if layer in counted
    ]


def activation_profiles(view: View) -> PerRun[AlongDepth]:
    """Read ``activation_mean`` and ``activation_std`` of every run at the step, layers by depth.

    Raises:
        NotRecordedError: If no run has them.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    return PerRun(*read_runs(view, _activations))


def _activations(view: View, run: Run, label: RunLabel) -> AlongDepth:
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


def dead_unit_profiles(view: View) -> PerRun[AlongDepth]:
    """Read ``num_dead`` and ``dead_share`` of the layers with units of every run at the step.

    The share is NaN where the number of units is unknown.

    Raises:
        NotRecordedError: If no run counted them.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    return PerRun(*read_runs(view, _dead_units))


def _dead_units(view: View, run: Run, label: RunLabel) -> AlongDepth:
    layers = row_set(run, "activation_num_dead", view.layers, every=True)
    step = recorded_step(run, view.step)
    counted = {row.layer: row for row in dead_units(run, step)}
    kept = [k for k, id_ in enumerate(layers.ids) if int(id_) in counted]
    if not kept:
        raise not_recorded("dead units were", run, "record with `--columns all`")
    rows = [counted[int(layers.ids[k])] for k in kept]
    names = tuple(row.name for row in rows)
    counts = np.array([row.num_dead for row in rows], np.int64)
    shares = np.array([row.fraction for row in rows], np.float64)
    text, worst = "no unit is dead.", int(np.argmax(counts))
    if counts.any():
        text = (
            f"{int(counts.sum()):,} dead units in {int(np.count_nonzero(counts))} of {len(names)} "
            f"layers, most in {names[worst]} ({counts[worst]:,}, "
            f"{percent(float(shares[worst]))} of its units)."
        )
    values = {"num_dead": counts, "dead_share": shares}
    return AlongDepth(label, step, names, layers.positions[kept], values, text)

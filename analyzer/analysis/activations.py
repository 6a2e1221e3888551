"""Activations along depth, dead units, and the attribution of layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import number, percent
from analyzer.analysis.per_run import (
    PerRun,
    RunAtStep,
    RunRecord,
    not_recorded,
    probe_rows,
    profile_values,
    read_runs,
    recorded_step,
)
from analyzer.analysis.view import RunLabel, View, matching, row_set
from analyzer.storage.run import Run

__all__ = [
    "ActivationProfile",
    "AttributionShares",
    "DeadUnitProfile",
    "DeadUnits",
    "activation_profiles",
    "attribution_shares",
    "dead_unit_profiles",
    "dead_units",
    "num_units",
]

Floats = NDArray[np.float64]
_CHANNEL_FIRST = ("Conv1d", "BatchNorm", "GroupNorm", "InstanceNorm", "LocalResponseNorm")
_MOST_ATTRIBUTION_STEPS = 6


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


@dataclass(frozen=True, eq=False)
class ActivationProfile(RunAtStep):
    """Activations of one run, all layers by depth.

    Args:
        names: Layers.
        positions: Place along depth, ``[layers]``.
        means: Mean over elements; NaN also where it is null.
        stds: Population standard deviation over elements.
    """

    names: tuple[str, ...]
    positions: Floats
    means: Floats
    stds: Floats

    def sentence(self) -> str:
        """Return how the spread changes from the first layer to the last."""
        known = np.flatnonzero(np.isfinite(self.stds) & (self.stds > 0))
        if not len(known):
            return f"{self.where}: no layer has a finite standard deviation above 0."
        first, last = int(known[0]), int(known[-1])
        return (
            f"{self.where}: the standard deviation of activations goes from "
            f"{number(self.stds[first])} ({self.names[first]}) to {number(self.stds[last])} "
            f"({self.names[last]})."
        )

    def cells(self) -> Mapping[str, Any]:
        """Return one row per layer."""
        return {
            "step": self.step,
            "layer": self.names,
            "depth": self.positions,
            "activation_mean": self.means,
            "activation_std": self.stds,
        }


def activation_profiles(view: View) -> PerRun[ActivationProfile]:
    """Read mean and standard deviation of the activations of every run at the step.

    Raises:
        NotRecordedError: If no run has them.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    return PerRun(*read_runs(view, _activations))


def _activations(view: View, run: Run, label: RunLabel) -> ActivationProfile:
    layers = row_set(run, "activation_mean", view.layers, every=True)
    step = recorded_step(run, view.step)
    means, stds = (
        profile_values(run, name, step, layers.ids)
        for name in ("activation_mean", "activation_std")
    )
    if not (np.isfinite(means).any() or np.isfinite(stds).any()):
        raise not_recorded("activations were", run, "record with `--columns all`")
    return ActivationProfile(label, step, layers.names, layers.positions, means, stds)


@dataclass(frozen=True, eq=False)
class DeadUnitProfile(RunAtStep):
    """Dead units of one run, layers with units by depth.

    Args:
        names: Layers.
        positions: Place along depth, ``[layers]``.
        counts: Dead units, ``[layers]``.
        shares: Dead units over all units; NaN where the number of units is unknown.
    """

    names: tuple[str, ...]
    positions: Floats
    counts: NDArray[np.int64]
    shares: Floats

    def sentence(self) -> str:
        """Return how many units are dead, and where most of them are."""
        dead, worst = int(self.counts.sum()), int(np.argmax(self.counts))
        if not dead:
            return f"{self.where}: no unit is dead."
        layers = int(np.count_nonzero(self.counts))
        share = percent(float(self.shares[worst]))
        return (
            f"{self.where}: {dead:,} dead units in {layers} of {len(self.names)} layers, most in "
            f"{self.names[worst]} ({self.counts[worst]:,}, {share} of its units)."
        )

    def cells(self) -> Mapping[str, Any]:
        """Return one row per layer."""
        return {
            "step": self.step,
            "layer": self.names,
            "num_dead": self.counts,
            "dead_share": self.shares,
        }


def dead_unit_profiles(view: View) -> PerRun[DeadUnitProfile]:
    """Read the dead units of every run at the step.

    Raises:
        NotRecordedError: If no run counted them.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    return PerRun(*read_runs(view, _dead_units))


def _dead_units(view: View, run: Run, label: RunLabel) -> DeadUnitProfile:
    layers = row_set(run, "activation_num_dead", view.layers, every=True)
    step = recorded_step(run, view.step)
    counted = {row.layer: row for row in dead_units(run, step)}
    kept = [k for k, id_ in enumerate(layers.ids) if int(id_) in counted]
    if not kept:
        raise not_recorded("dead units were", run, "record with `--columns all`")
    rows = [counted[int(layers.ids[k])] for k in kept]
    return DeadUnitProfile(
        label,
        step,
        tuple(row.name for row in rows),
        layers.positions[kept],
        np.array([row.num_dead for row in rows], np.int64),
        np.array([row.fraction for row in rows], np.float64),
    )


@dataclass(frozen=True, eq=False)
class AttributionShares(RunRecord):
    """The share of each layer in what the network puts out, over the checkpoints of one run.

    Args:
        method: Attribution method.
        names: Layers in call order.
        steps: Steps of the probe, at most six, the first and the last among them.
        shares: Attribution over the sum of all layers, ``[steps, layers]``; NaN where a step has no
            row of the layer.
    """

    method: str
    names: tuple[str, ...]
    steps: NDArray[np.int64]
    shares: Floats

    def sentence(self) -> str:
        """Return the largest share at the last step, and what that layer had at the first."""
        last = self.shares[-1]
        start = f"{self.label.text}, step {self.steps[-1]}:"
        if not np.isfinite(last).any():
            return f"{start} no share is finite."
        top = int(np.nanargmax(last))
        return (
            f"{start} the largest share of the {self.method} is that of {self.names[top]} "
            f"({percent(float(last[top]))}); it was {percent(float(self.shares[0][top]))} at step "
            f"{self.steps[0]}."
        )

    def cells(self) -> Mapping[str, Any]:
        """Return one row per step and layer."""
        return {
            "method": self.method,
            "step": np.repeat(self.steps, len(self.names)),
            "layer": np.tile(np.array(self.names, object), len(self.steps)),
            "share": self.shares.ravel(),
        }


def attribution_shares(view: View) -> PerRun[AttributionShares]:
    """Read the attribution shares of every run; of several methods the first.

    Raises:
        NotRecordedError: If no run has them.
        AnalyzerError: If the pattern for layers is refused.
    """
    return PerRun(*read_runs(view, _shares))


def _shares(view: View, run: Run, label: RunLabel) -> AttributionShares:
    rows = probe_rows(run, "attribution")
    method = str(rows["method"].iloc[0])
    rows = rows[rows["method"].astype(str) == method]
    if view.layers:
        rows = rows[matching(view.layers, rows["name"].astype(str).tolist())]
    if not len(rows):
        remedy = "add `--probe attribution`, or change the pattern for layers"
        raise not_recorded("probe attribution has no such layer:", run, remedy)
    rows = rows.assign(name=rows["name"].astype(str))
    table = rows.pivot_table(
        index="step", columns=["layer", "name"], values="share", dropna=False, sort=True
    )
    table = table.loc[:, table.columns.isin(list(zip(rows["layer"], rows["name"], strict=True)))]
    most = min(_MOST_ATTRIBUTION_STEPS, len(table))
    places = np.linspace(0, len(table) - 1, most).round().astype(int)
    kept = table.iloc[np.unique(places)]
    names = tuple(kept.columns.get_level_values("name").astype(str))
    steps = kept.index.to_numpy(np.int64)
    return AttributionShares(label, method, names, steps, kept.to_numpy(np.float64))

"""The share of dead units of each layer along depth at one step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.dead_units import dead_units
from analyzer.analysis.numerals import percent
from analyzer.analysis.sources import (
    for_each_run,
    joined_table,
    missing_clause,
    not_recorded,
    recorded_step,
)
from analyzer.analysis.view import RunLabel, View, row_set
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DeadUnitProfile", "DeadUnitProfiles", "dead_unit_profiles"]


@dataclass(frozen=True, eq=False)
class DeadUnitProfile:
    """Dead units of one run, layers with units by depth.

    Args:
        label: Name and style of the run.
        step: The recorded step shown.
        names: Layers.
        positions: Place along depth, ``[layers]``.
        counts: Dead units, ``[layers]``.
        shares: Dead units over all units; NaN where the number of units is unknown.
    """

    label: RunLabel
    step: int
    names: tuple[str, ...]
    positions: NDArray[np.float64]
    counts: NDArray[np.int64]
    shares: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DeadUnitProfiles:
    """Dead units of all runs.

    Args:
        profiles: One per run.
        caption: The finding with its number.
    """

    profiles: tuple[DeadUnitProfile, ...]
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run and layer."""
        return joined_table(
            {
                "run": profile.label.text,
                "step": profile.step,
                "layer": profile.names,
                "num_dead": profile.counts,
                "dead_share": profile.shares,
            }
            for profile in self.profiles
        )


def dead_unit_profiles(view: View) -> DeadUnitProfiles:
    """Read the dead units of every run at the step.

    Raises:
        NotRecordedError: If no run counted them.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    profiles, missing = for_each_run(view, lambda run, label: _profile(view, run, label))
    caption = " ".join(map(_sentence, profiles)) + missing_clause(missing)
    return DeadUnitProfiles(profiles, caption)


def _profile(view: View, run: Run, label: RunLabel) -> DeadUnitProfile:
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


def _sentence(profile: DeadUnitProfile) -> str:
    dead, worst = int(profile.counts.sum()), int(np.argmax(profile.counts))
    start = f"{profile.label.text}, step {profile.step}:"
    if not dead:
        return f"{start} no unit is dead."
    layers = int(np.count_nonzero(profile.counts))
    share = percent(float(profile.shares[worst]))
    return (
        f"{start} {dead:,} dead units in {layers} of {len(profile.names)} layers, most in "
        f"{profile.names[worst]} ({profile.counts[worst]:,}, {share} of its units)."
    )

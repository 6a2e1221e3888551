"""Mean and spread of activations along depth at one step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ActivationProfile", "ActivationProfiles", "activation_profiles"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ActivationProfile:
    """Activations of one run, all layers by depth.

    Args:
        label: Name and style of the run.
        step: The recorded step shown.
        names: Layers.
        positions: Place along depth, ``[layers]``.
        means: Mean over elements; NaN also where it is null.
        stds: Population standard deviation over elements.
    """

    label: RunLabel
    step: int
    names: tuple[str, ...]
    positions: Floats
    means: Floats
    stds: Floats


@dataclass(frozen=True, eq=False)
class ActivationProfiles:
    """Activations of all runs.

    Args:
        profiles: One per run.
        caption: The finding with its number.
    """

    profiles: tuple[ActivationProfile, ...]
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run and layer."""
        return joined_table(
            {
                "run": profile.label.text,
                "step": profile.step,
                "layer": profile.names,
                "depth": profile.positions,
                "activation_mean": profile.means,
                "activation_std": profile.stds,
            }
            for profile in self.profiles
        )


def activation_profiles(view: View) -> ActivationProfiles:
    """Read mean and standard deviation of the activations of every run at the step.

    Raises:
        NotRecordedError: If no run has them.
        AnalyzerError: If the pattern for layers is refused or matches nothing.
    """
    profiles, missing = for_each_run(view, lambda run, label: _profile(view, run, label))
    caption = " ".join(map(_sentence, profiles)) + missing_clause(missing)
    return ActivationProfiles(profiles, caption)


def _profile(view: View, run: Run, label: RunLabel) -> ActivationProfile:
    layers = row_set(run, "activation_mean", view.layers, every=True)
    step = recorded_step(run, view.step)
    columns = []
    for name in ("activation_mean", "activation_std"):
        ids, values = run.profile(name, step)
        value_of = dict(zip(ids.tolist(), values.tolist(), strict=True))
        columns.append(np.array([value_of.get(int(i), np.nan) for i in layers.ids], np.float64))
    if not any(np.isfinite(column).any() for column in columns):
        raise not_recorded("activations were", run, "record with `--columns all`")
    return ActivationProfile(label, step, layers.names, layers.positions, columns[0], columns[1])


def _sentence(profile: ActivationProfile) -> str:
    known = np.flatnonzero(np.isfinite(profile.stds) & (profile.stds > 0))
    start = f"{profile.label.text}, step {profile.step}:"
    if not len(known):
        return f"{start} no layer has a finite spread above 0."
    first, last = int(known[0]), int(known[-1])
    return (
        f"{start} the standard deviation of activations goes from {number(profile.stds[first])} "
        f"({profile.names[first]}) to {number(profile.stds[last])} ({profile.names[last]})."
    )

"""How far the gradients of different inputs agree along depth, against what theory expects."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyzer.analysis.numerals import number
from analyzer.analysis.sources import (
    for_each_run,
    joined_table,
    missing_clause,
    not_recorded,
    probe_rows_at,
)
from analyzer.analysis.view import RunLabel, View, row_set
from analyzer.storage.run import Run

__all__ = ["REFERENCES", "ShatteringCurve", "ShatteringCurves", "shattering_curves"]

Floats = NDArray[np.float64]
# The names under which the probe stores the curves of Balduzzi et al.
REFERENCES = {
    "plain": "plain, 1/2ᴸ",
    "residual": "residual, (3/4)ᴸ",
    "residual_norm": "residual with norm, 1/√L",
}


@dataclass(frozen=True, eq=False)
class ShatteringCurve:
    """The correlations of one run at one step.

    Args:
        label: Name and style of the run.
        step: Step of the probe.
        names: Layers by depth.
        positions: Place along depth, ``[layers]``.
        correlations: Mean cosine over pairs of inputs, ``[layers]``; NaN where it is not defined.
        references: The curves of theory at the same layers, by their words.
    """

    label: RunLabel
    step: int
    names: tuple[str, ...]
    positions: Floats
    correlations: Floats
    references: Mapping[str, Floats]


@dataclass(frozen=True, eq=False)
class ShatteringCurves:
    """Correlations of all runs with the probe.

    Args:
        curves: One per run.
        caption: The finding with its number.
    """

    curves: tuple[ShatteringCurve, ...]
    caption: str

    def table(self) -> pd.DataFrame:
        """Return one row per run and layer."""
        return joined_table(
            {
                "run": curve.label.text,
                "step": curve.step,
                "layer": curve.names,
                "depth": curve.positions,
                "correlation": curve.correlations,
                **curve.references,
            }
            for curve in self.curves
        )


def shattering_curves(view: View) -> ShatteringCurves:
    """Read the correlations of every run at the probe nearest to the step.

    Raises:
        NotRecordedError: If no run has them.
        AnalyzerError: If the pattern for layers is refused or matches nothing.

    Reference:
        Balduzzi et al. (2017), The shattered gradients problem.
    """
    curves, missing = for_each_run(view, lambda run, label: _curve(view, run, label))
    return ShatteringCurves(curves, " ".join(map(_sentence, curves)) + missing_clause(missing))


def _curve(view: View, run: Run, label: RunLabel) -> ShatteringCurve:
    step, rows = probe_rows_at(run, "shattering", view.step)
    layers = row_set(run, "output_gradient_norm", view.layers)
    values = rows["correlation"].to_numpy(np.float64)
    # A module inside compiled code has a name, but no layer.
    place = {int(layer): at for at, layer in enumerate(rows["layer"]) if not np.isnan(layer)}
    kept = [k for k, id_ in enumerate(layers.ids) if int(id_) in place]
    if not kept:
        raise not_recorded("probe shattering has no such layer:", run, "add `--probe shattering`")
    at = np.array([place[int(layers.ids[k])] for k in kept], int)
    notes = run.probe_metadata("shattering").get(step, {})
    return ShatteringCurve(
        label,
        step,
        tuple(layers.names[k] for k in kept),
        layers.positions[kept],
        values[at],
        {REFERENCES[key]: curve[at] for key, curve in _references(notes, len(rows)).items()},
    )


def _references(notes: Mapping[str, str], count: int) -> dict[str, Floats]:
    """The curves that the probe noted; those that do not fit its rows are left out."""
    try:
        stored = json.loads(notes.get("references", "{}"))
        items = [(key, stored[key]) for key in REFERENCES if key in stored]
        curves = {key: np.asarray(values, np.float64) for key, values in items}
    except (ValueError, TypeError, RecursionError):
        return {}
    return {key: curve for key, curve in curves.items() if curve.shape == (count,)}


def _sentence(curve: ShatteringCurve) -> str:
    known = np.flatnonzero(np.isfinite(curve.correlations))
    start = f"{curve.label.text}, step {curve.step}:"
    if not len(known):
        return f"{start} no correlation is defined."
    first, last = int(known[0]), int(known[-1])
    return (
        f"{start} gradients of different inputs correlate {number(curve.correlations[first])} at "
        f"{curve.names[first]} and {number(curve.correlations[last])} at {curve.names[last]}."
    )

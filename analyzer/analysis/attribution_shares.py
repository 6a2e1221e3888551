"""The share of each layer in what the network puts out, over its checkpoints."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import percent
from analyzer.analysis.sources import (
    for_each_run,
    joined_table,
    missing_clause,
    not_recorded,
    probe_rows,
)
from analyzer.analysis.view import RunLabel, View, matching
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AttributionShares", "RunAttribution", "attribution_shares"]

Floats = NDArray[np.float64]
_MOST_STEPS = 6


@dataclass(frozen=True, eq=False)
class RunAttribution:
    """The shares of one run.

    Args:
        label: Name and style of the run.
        method: Attribution method.
        names: Layers in call order.
        steps: Steps of the probe, six at the most, the first and the last among them.
        shares: Attribution over the sum of all layers, ``[steps, layers]``; NaN where a step has no
            row of the layer.
    """

    label: RunLabel
    method: str
    names: tuple[str, ...]
    steps: NDArray[np.int64]
    shares: Floats


@dataclass(frozen=True, eq=False)
class AttributionShares:
    """Shares of all runs with the probe.

    Args:
        runs: One per run.
        caption: The finding with its number.
    """

    runs: tuple[RunAttribution, ...]
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run, step and layer."""
        return joined_table(
            {
                "run": run.label.text,
                "method": run.method,
                "step": np.repeat(run.steps, len(run.names)),
                "layer": np.tile(np.array(run.names, object), len(run.steps)),
                "share": run.shares.ravel(),
            }
            for run in self.runs
        )


def attribution_shares(view: View) -> AttributionShares:
    """Read the attribution shares of every run; of several methods the first.

    Raises:
        NotRecordedError: If no run has them.
        AnalyzerError: If the pattern for layers is refused.
    """
    runs, missing = for_each_run(view, lambda run, label: _shares(view, run, label))
    return AttributionShares(runs, " ".join(map(_sentence, runs)) + missing_clause(missing))


def _shares(view: View, run: Run, label: RunLabel) -> RunAttribution:
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
    places = np.linspace(0, len(table) - 1, min(_MOST_STEPS, len(table))).round().astype(int)
    kept = table.iloc[np.unique(places)]
    names = tuple(kept.columns.get_level_values("name").astype(str))
    steps = kept.index.to_numpy(np.int64)
    return RunAttribution(label, method, names, steps, kept.to_numpy(np.float64))


def _sentence(run: RunAttribution) -> str:
    last = run.shares[-1]
    start = f"{run.label.text}, step {run.steps[-1]}:"
    if not np.isfinite(last).any():
        return f"{start} no share is finite."
    top = int(np.nanargmax(last))
    return (
        f"{start} the largest share of the {run.method} is that of {run.names[top]} "
        f"({percent(float(last[top]))}); it was {percent(float(run.shares[0][top]))} at step "
        f"{run.steps[0]}."
    )

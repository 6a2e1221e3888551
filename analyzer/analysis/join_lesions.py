"""What the loss does without one residual branch, join by join."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import counted, number
from analyzer.analysis.sources import (
    for_each_run,
    joined_table,
    missing_clause,
    not_recorded,
    probe_rows_at,
)
from analyzer.analysis.view import RunLabel, View
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["JoinLesions", "RunLesions", "join_lesions"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RunLesions:
    """The lesions of one run at one step, in forward order.

    Args:
        label: Name and style of the run.
        step: Step of the probe.
        names: Joins whose branch was taken out.
        changes: Loss without the branch minus loss of the whole network.
        accuracies: Accuracy without the branch; NaN where there are no classes.
    """

    label: RunLabel
    step: int
    names: tuple[str, ...]
    changes: Floats
    accuracies: Floats


@dataclass(frozen=True, eq=False)
class JoinLesions:
    """Lesions of all runs with the probe.

    Args:
        runs: One per run.
        caption: The finding with its number.
    """

    runs: tuple[RunLesions, ...]
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run and join."""
        return joined_table(
            {
                "run": run.label.text,
                "step": run.step,
                "join": run.names,
                "loss_change": run.changes,
                "accuracy": run.accuracies,
            }
            for run in self.runs
        )


def join_lesions(view: View) -> JoinLesions:
    """Read the lesion study of every run at the probe nearest to the step.

    Raises:
        NotRecordedError: If no run has it.

    Reference:
        Veit et al. (2016), Residual networks behave like ensembles of relatively shallow networks.
    """
    runs, missing = for_each_run(view, lambda run, label: _lesions(view, run, label))
    return JoinLesions(runs, " ".join(map(_sentence, runs)) + missing_clause(missing))


def _lesions(view: View, run: Run, label: RunLabel) -> RunLesions:
    step, rows = probe_rows_at(run, "lesion", view.step)
    rows = rows[rows["join"].notna()].sort_values("join")
    if not len(rows):
        raise not_recorded("probe lesion has no join:", run, "a net without joins has no lesion")
    known = dict(zip(run.joins["join"], run.joins["name"].astype(str), strict=True))
    joins = rows["join"].to_numpy(np.int64)
    names = tuple(known.get(int(join), f"join {join}") for join in joins)
    changes, accuracies = (
        rows[name].to_numpy(np.float64, na_value=np.nan) for name in ("loss_change", "accuracy")
    )
    return RunLesions(label, step, names, changes, accuracies)


def _sentence(run: RunLesions) -> str:
    finite = np.isfinite(run.changes)
    joins = counted(len(run.names), "join")
    start = f"{run.label.text}, step {run.step}: without the branch of one of {joins}"
    if not finite.any():
        return f"{start} the loss is not finite."
    worst = int(np.argmax(np.where(finite, run.changes, -np.inf)))
    return (
        f"{start} the loss changes by {number(float(np.median(run.changes[finite])))} (median), "
        f"by {number(float(run.changes[worst]))} at most ({run.names[worst]})."
    )

"""Reads what a figure needs of each run, and says what to record where it is missing."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from analyzer.analysis.view import RunLabel, View, nearest_step, run_labels
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "for_each_run",
    "joined_table",
    "missing_clause",
    "not_recorded",
    "probe_rows",
    "probe_rows_at",
    "recorded_step",
]

T = TypeVar("T")


def not_recorded(what: str, run: Run, remedy: str) -> NotRecordedError:
    """Return the error that says what a run lacks and how to record it."""
    return NotRecordedError(f"{what} not recorded in run '{run.name}'; {remedy}")


def for_each_run(
    view: View, read: Callable[[Run, RunLabel], T]
) -> tuple[tuple[T, ...], tuple[str, ...]]:
    """Read something of each run of a view.

    Args:
        view: What to show.
        read: Reads one run; raises NotRecordedError where it lacks the data.

    Returns:
        What was read, and the names of the runs that lack it.

    Raises:
        NotRecordedError: If every run lacks it.
        ValueError: If the view has no run.
    """
    if not view.runs:
        raise ValueError("a view has 0 runs; expected at least one. Choose a run to show")
    found: list[T] = []
    missing: list[str] = []
    errors: list[NotRecordedError] = []
    for run, label in zip(view.runs, run_labels(view.runs), strict=True):
        try:
            found.append(read(run, label))
        except NotRecordedError as error:
            errors.append(error)
            missing.append(label.text)
    if not found:
        raise errors[0]
    return tuple(found), tuple(missing)


def joined_table(parts: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """Return the data behind a figure as one table, the parts (of runs, curves) below one another.

    Args:
        parts: Cells by column; single values stand for a column of them.
    """
    import pandas as pd

    return pd.concat([pd.DataFrame(cells) for cells in parts], ignore_index=True)


def missing_clause(missing: tuple[str, ...]) -> str:
    """Return the end of a caption that names runs without the data; empty where none lacks it."""
    return f" Not recorded in {', '.join(missing)}." if missing else ""


def recorded_step(run: Run, step: int | None, table: str = "layer_stats") -> int:
    """Return the recorded step of a table that is nearest to one; None asks for the last.

    Raises:
        NotRecordedError: If the table has no row.
    """
    found = run.nearest_step(step, table)
    if found is None:
        remedy = {
            "splits": "a net without joins has none; else add `--splits-every 10`",
            "parameter_stats": "record with `--columns all`",
        }.get(table, "the run has no step yet; wait for its first step, or record it again")
        raise not_recorded(f"{table} were", run, remedy)
    return found


def probe_rows(run: Run, name: str) -> "pd.DataFrame":
    """Return what a probe measured at all steps, at least one row.

    Raises:
        NotRecordedError: If the probe measured nothing: it was not asked for, or the network has
            nothing that it measures, such as a join.
    """
    if name not in run.probes:
        raise not_recorded(f"probe {name} was", run, f"add `--probe {name}`")
    rows = run.probe(name)
    if not len(rows):
        remedy = "the probe found nothing in this network that it measures"
        raise not_recorded(f"numbers of probe {name} were", run, remedy)
    return rows


def probe_rows_at(run: Run, name: str, step: int | None) -> "tuple[int, pd.DataFrame]":
    """Return what a probe measured at the step nearest to one; None asks for the last.

    Returns:
        The step and its rows, without the ``step`` column.

    Raises:
        NotRecordedError: If the probe measured nothing.
    """
    rows = probe_rows(run, name)
    found = nearest_step(np.unique(rows["step"].to_numpy(np.int64)), step)
    assert found is not None  # there is at least one row
    here = rows[rows["step"] == found].drop(columns="step")
    return found, here.reset_index(drop=True)

"""What a study shows: a row of numbers for each point, and curves over depth with their spread."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from analyzer.analysis.claims import Claim, Numbers, judged, measured
from analyzer.analysis.comparability import differences
from analyzer.analysis.gradient_flow import run_gain
from analyzer.analysis.statements import STATEMENTS
from analyzer.analysis.training import final_losses, run_training
from analyzer.analysis.view import has_shortcuts
from analyzer.errors import AnalyzerError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run
from analyzer.storage.study import Study, StudyPoint

if TYPE_CHECKING:
    pass

__all__ = ["OWN_COLUMNS", "ROLES", "column_of", "summary_table"]

ROLES = ("shortcuts", "residual", "shortcut", "skip", "skips")
_CLAIMS = tuple(one.key for one in STATEMENTS if not one.is_alone)
_ACCURACIES, _ERRORS = ("accuracy", "acc", "train_accuracy"), ("error", "error_rate")

OWN_COLUMNS = {
    "point": "Name of the point and of its run.",
    "status": "finished, failed, running or waiting.",
    "problem": "Why it failed.",
    "has_shortcuts": "Whether gradients flow through joins of the network.",
    "layers_deep": "Layers on the longest path from input to output.",
    "steps": "Recorded steps.",
    "seconds": "Wall time of its process.",
    "bytes": "Size of its run.",
    "final_loss": "Mean loss of the last tenth of the steps (at most 100).",
    "error_rate": "1 - accuracy of the training batches, mean over the same steps.",
    "gain": "Factor per layer by which the output gradient changes, median over steps.",
    "decades_fallen": "Decades that it falls from output to input, median over steps.",
    "path_length": "Effective path length at the last probe: sum of k |G_k| over sum of |G_k|.",
}
"""The columns of a summary beside the arguments; then ``claim_<key>`` with its status,
``plain_<key>`` and ``residual_<key>`` with its numbers, and ``seeds_<key>`` with the status over
all seeds, in the row of the residual point of each pair."""


def summary_table(study: Study) -> pa.Table:
    """Return one row for each point of a study, in the order of its plan.

    A point without shortcuts and one with them that agree in every other argument are a pair; the
    claims of the verdict about it stand in the row of the latter.
    """
    points = study.points
    runs: dict[str, Run] = {}
    rows = [_row(study, point, runs) for point in points]
    for row, claims in zip(rows, _all_claims(points, runs), strict=True):
        row.update(claims)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    for axis in study.axes:
        name = column_of(axis)
        if len({type(value) for value in columns[name] if value is not None}) > 1:
            is_number = all(isinstance(x, int | float) for x in columns[name] if x is not None)
            kind = float if is_number else str
            columns[name] = [None if x is None else kind(x) for x in columns[name]]
    types = {n: pa.float64() for n in names if n.startswith(("plain_", "residual_"))}
    return pa.table({n: pa.array(cells, types.get(n)) for n, cells in columns.items()})


def column_of(argument: str) -> str:
    """Return the column of an argument, which may have the name of one of ours."""
    is_taken = argument in OWN_COLUMNS or argument.startswith(("claim_", "plain_", "residual_"))
    return f"{argument}_argument" if is_taken or argument.startswith("seeds_") else argument


def _row(study: Study, point: StudyPoint, runs: dict[str, Run]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(OWN_COLUMNS)
    row |= {"point": point.name, "status": point.status, "problem": point.error}
    row |= {name: point.ending.get(name) for name in ("seconds", "bytes")}
    row |= {column_of(name): point.arguments.get(name) for name in study.axes}
    if point.status not in ("finished", "failed"):
        return row
    try:
        run = study.run(point.name)
        row["has_shortcuts"] = has_shortcuts(run)
        row |= _numbers(run)
    except (AnalyzerError, OSError, ValueError) as error:
        row["problem"] = row["problem"] or str(error)[:500]
        return row
    if point.status == "finished":
        runs[point.name] = run
    return row


def _numbers(run: Run) -> dict[str, Any]:
    training = run_training(run)
    depths = as_floats(run.static_rows("layers").column("depth"))
    found: dict[str, Any] = {
        "steps": training.num_steps,
        "layers_deep": int(depths.max()) if len(depths) else None,
        "final_loss": training.final_loss if training.num_losses else None,
        "error_rate": _error_rate(run),
    }
    if len(run.layer_steps()):
        gain = run_gain(run)
        found |= {"gain": gain.gain, "decades_fallen": gain.decades_fallen}
    if "paths" in run.probes and len(rows := run.probe("paths")):
        last = rows[rows["step"] == rows["step"].max()]
        total = float(last["gradient_norm"].sum())
        lengths = float((last["length"] * last["gradient_norm"]).sum())
        found["path_length"] = lengths / total if total else math.nan
    return found


def _error_rate(run: Run) -> float | None:
    """The share of wrong answers at the end, where the training logged it."""
    columns = run.read("steps").column_names
    for names, is_accuracy in ((_ACCURACIES, True), (_ERRORS, False)):
        name = next((name for name in names if name in columns), None)
        if name is None:
            continue
        values = run.read("steps", name).column(name).drop_null()
        if not len(values) or not pa.types.is_floating(values.type):
            continue
        last = float(final_losses(as_floats(values)).mean())
        return 1 - last if is_accuracy else last
    return None


def _all_claims(points: Sequence[StudyPoint], runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """The claims about each residual point beside its plain one, and over all seeds."""
    known: dict[str, Numbers] = {}

    def numbers(name: str) -> Numbers:
        if name not in known:
            known[name] = measured(runs[name])
        return known[name]

    plain: dict[str, str] = {}
    for point in points:
        if point.name in runs and not has_shortcuts(runs[point.name]):
            plain.setdefault(_pair_of(point), point.name)
    pairs: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for point in points:
        if point.name in runs and has_shortcuts(runs[point.name]) and _pair_of(point) in plain:
            pairs[point.name] = plain[_pair_of(point)]
            groups.setdefault(_without_seed(point), []).append(point.name)
    over_seeds: dict[str, dict[str, str]] = {}
    for names in groups.values():
        others = [pairs[name] for name in names]
        apart = differences([runs[x] for x in others], [runs[x] for x in names])
        found = judged(list(map(numbers, others)), list(map(numbers, names)), apart)
        said = {f"seeds_{one.key}": one.status for one in found if one.key in _CLAIMS}
        over_seeds |= {name: said for name in names}
    rows = []
    for point in points:
        row: dict[str, Any] = {}
        if (other := pairs.get(point.name)) is not None:
            apart = differences([runs[other]], [runs[point.name]])
            for one in judged([numbers(other)], [numbers(point.name)], apart):
                row |= _cells(one) if one.key in _CLAIMS else {}
            row |= over_seeds[point.name]
        rows.append(row)
    return rows


def _cells(claim: Claim) -> dict[str, Any]:
    key = claim.key
    return {f"claim_{key}": claim.status, f"plain_{key}": _float(claim.plain)} | {
        f"residual_{key}": _float(claim.residual)
    }


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _pair_of(point: StudyPoint) -> str:
    others = {name: value for name, value in point.arguments.items() if name not in ROLES}
    return json.dumps(others, sort_keys=True)


def _without_seed(point: StudyPoint) -> str:
    others = {name: value for name, value in point.arguments.items() if name != "seed"}
    return json.dumps(others, sort_keys=True)

"""What probes say of the blocks of a network: path lengths, lesions, Jacobians, shattering."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.per_run import (
    PerRun,
    RunAtStep,
    not_recorded,
    probe_rows_at,
    read_runs,
    shown_range,
)
from analyzer.analysis.view import RunLabel, View, row_set
from analyzer.storage.run import Run

__all__ = [
    "REFERENCES",
    "BlockSpectra",
    "JacobianSpectra",
    "Lesions",
    "PathSpectrum",
    "Shattering",
    "block_spectra",
    "join_lesions",
    "path_lengths",
    "shattering_curves",
]

Floats = NDArray[np.float64]
# The names under which the probe stores the curves of Balduzzi et al.
REFERENCES = {
    "plain": "plain, 1/2ᴸ",
    "residual": "residual, (3/4)ᴸ",
    "residual_norm": "residual with norm, 1/√L",
}


@dataclass(frozen=True, eq=False)
class PathSpectrum(RunAtStep):
    """The path-length spectrum of one run: how many branches the gradient crosses on its way.

    Args:
        lengths: Branches that the paths cross, from 0, ``[lengths]``.
        num_paths: Number of paths of each length.
        norms: Mean over samples of ``‖G_k‖₂``, in loss / unit of x.
        norm_shares: ``‖G_k‖ / Σ ‖G_k‖``; NaN where all are zero.
        path_shares: ``num_paths / Σ num_paths``.
        effective_length: ``Σ k‖G_k‖ / Σ ‖G_k‖``, in branches; NaN where all are zero.
    """

    lengths: NDArray[np.int64]
    num_paths: Floats
    norms: Floats
    norm_shares: Floats
    path_shares: Floats
    effective_length: float

    def sentence(self) -> str:
        """Return the effective length, and the length at which the gradient is largest."""
        start = f"{self.where}: {number(float(self.num_paths.sum()))} paths"
        if not np.isfinite(self.effective_length):
            return f"{start}; their gradient is zero or not finite."
        if len(self.lengths) < 2:
            return (
                f"{self.where}: there are no joins, so a single path carries all of the gradient."
            )
        peak = int(self.norms.argmax())
        share, paths = percent(self.norm_shares[peak]), percent(self.path_shares[peak])
        return (
            f"{start} of up to {self.lengths[-1]} branches; the gradient has effective length "
            f"{number(self.effective_length)} and is largest at length {self.lengths[peak]} "
            f"({share} of it, in {paths} of the paths)."
        )

    def cells(self) -> Mapping[str, Any]:
        """Return one row per length."""
        return {
            "step": self.step,
            "length": self.lengths,
            "num_paths": self.num_paths,
            "gradient_norm": self.norms,
            "norm_share": self.norm_shares,
        }


def path_lengths(view: View) -> PerRun[PathSpectrum]:
    """Read the path-length spectrum of every run at the probe nearest to the step.

    Raises:
        NotRecordedError: If no run has it.

    Reference:
        Veit et al. (2016), Residual networks behave like ensembles of relatively shallow networks.
    """
    return PerRun(*read_runs(view, _spectrum))


def _spectrum(view: View, run: Run, label: RunLabel) -> PathSpectrum:
    step, rows = probe_rows_at(run, "paths", view.step)
    rows = rows.sort_values("length")
    lengths = rows["length"].to_numpy(np.int64)
    norms, paths = (rows[name].to_numpy(np.float64) for name in ("gradient_norm", "num_paths"))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares, of_paths = norms / norms.sum(), paths / paths.sum()
    effective = float((lengths * shares).sum())
    return PathSpectrum(label, step, lengths, paths, norms, shares, of_paths, effective)


@dataclass(frozen=True, eq=False)
class Lesions(RunAtStep):
    """What the loss of one run does without one residual branch, joins in forward order.

    Args:
        names: Joins whose branch was taken out.
        changes: Loss without the branch minus loss of the whole network.
        accuracies: Accuracy without the branch; NaN where there are no classes.
    """

    names: tuple[str, ...]
    changes: Floats
    accuracies: Floats

    def sentence(self) -> str:
        """Return the median and the largest change of the loss."""
        finite = np.isfinite(self.changes)
        start = f"{self.where}: without the branch of one of {counted(len(self.names), 'join')}"
        if not finite.any():
            return f"{start} the loss is not finite."
        worst = int(np.argmax(np.where(finite, self.changes, -np.inf)))
        return (
            f"{start} the loss changes by {number(float(np.median(self.changes[finite])))} "
            f"(median), by {number(float(self.changes[worst]))} at most ({self.names[worst]})."
        )

    def cells(self) -> Mapping[str, Any]:
        """Return one row per join."""
        return {
            "step": self.step,
            "join": self.names,
            "loss_change": self.changes,
            "accuracy": self.accuracies,
        }


def join_lesions(view: View) -> PerRun[Lesions]:
    """Read the lesion study of every run at the probe nearest to the step.

    Raises:
        NotRecordedError: If no run has it.

    Reference:
        Veit et al. (2016), Residual networks behave like ensembles of relatively shallow networks.
    """
    return PerRun(*read_runs(view, _lesions))


def _lesions(view: View, run: Run, label: RunLabel) -> Lesions:
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
    return Lesions(label, step, names, changes, accuracies)


@dataclass(frozen=True, eq=False)
class JacobianSpectra(RunAtStep):
    """Singular values of the Jacobian of each block of one run, and of the whole network.

    Args:
        names: Blocks in forward order, then the whole network.
        blocks: Index into ``names`` of each singular value, ``[values]``.
        orders: Rank of each value from the largest of its block, ``[values]``.
        values: Singular values, in unit of y / unit of x, ``[values]``.
    """

    names: tuple[str, ...]
    blocks: NDArray[np.int64]
    orders: NDArray[np.int64]
    values: Floats

    def span(self, block: int) -> tuple[float, float]:
        """Return the largest and the smallest value of a block; NaN where one is NaN."""
        mine = self.values[self.blocks == block]
        return float(mine.max()), float(mine.min())

    def sentence(self) -> str:
        """Return what the last spectrum, that of the whole network, spans."""
        top, bottom = self.span(len(self.names) - 1)
        start = f"{self.where}: singular values of {self.names[-1]}"
        if not (np.isfinite(top) and np.isfinite(bottom)):
            return f"{start} are not all finite."
        ratio = f", a condition number of {number(top / bottom)}" if bottom > 0 else ""
        return f"{start} reach from {number(bottom)} to {number(top)}{ratio}."

    def cells(self) -> Mapping[str, Any]:
        """Return one row per block and singular value."""
        return {
            "step": self.step,
            "name": [self.names[block] for block in self.blocks],
            "rank_order": self.orders,
            "singular_value": self.values,
        }


@dataclass(frozen=True, eq=False)
class BlockSpectra(PerRun[JacobianSpectra]):
    """Spectra of all runs with the probe.

    Args:
        low: Smallest value above 0, of all runs; NaN without one.
        high: Largest finite value.
    """

    low: float
    high: float


def block_spectra(view: View) -> BlockSpectra:
    """Read the Jacobian spectra of every run at the probe nearest to the step.

    Raises:
        NotRecordedError: If no run has them.

    Reference:
        Saxe et al. (2013); Pennington et al. (2017), Resurrecting the sigmoid.
    """
    runs, missing = read_runs(view, _spectra)
    return BlockSpectra(runs, missing, *shown_range((run.values for run in runs), is_log=True))


def _spectra(view: View, run: Run, label: RunLabel) -> JacobianSpectra:
    step, rows = probe_rows_at(run, "jacobian", view.step)
    names = tuple(dict.fromkeys(rows["name"].astype(str)))
    place = {name: at for at, name in enumerate(names)}
    blocks = np.array([place[str(name)] for name in rows["name"]], np.int64)
    orders, values = rows["rank_order"].to_numpy(np.int64), rows["singular_value"].to_numpy(float)
    return JacobianSpectra(label, step, names, blocks, orders, values)


@dataclass(frozen=True, eq=False)
class Shattering(RunAtStep):
    """How far the gradients of different inputs of one run agree along depth.

    Args:
        names: Layers by depth.
        positions: Place along depth, ``[layers]``.
        correlations: Mean cosine over pairs of inputs, ``[layers]``; NaN where it is not defined.
        references: The curves that theory expects at the same layers, by their names.
    """

    names: tuple[str, ...]
    positions: Floats
    correlations: Floats
    references: Mapping[str, Floats]

    def sentence(self) -> str:
        """Return the correlation at the first and at the last layer."""
        known = np.flatnonzero(np.isfinite(self.correlations))
        if not len(known):
            return f"{self.where}: no correlation is defined."
        first, last = (
            f"{number(self.correlations[at])} at {self.names[at]}" for at in known[[0, -1]]
        )
        return f"{self.where}: gradients of different inputs correlate {first} and {last}."

    def cells(self) -> Mapping[str, Any]:
        """Return one row per layer."""
        return {
            "step": self.step,
            "layer": self.names,
            "depth": self.positions,
            "correlation": self.correlations,
            **self.references,
        }


def shattering_curves(view: View) -> PerRun[Shattering]:
    """Read the correlations of every run at the probe nearest to the step.

    Raises:
        NotRecordedError: If no run has them.
        AnalyzerError: If the pattern for layers is refused or matches nothing.

    Reference:
        Balduzzi et al. (2017), The shattered gradients problem.
    """
    return PerRun(*read_runs(view, _shattering))


def _shattering(view: View, run: Run, label: RunLabel) -> Shattering:
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
    return Shattering(
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

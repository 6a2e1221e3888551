"""What probes measured: path lengths, lesions, Jacobians, shattering, attribution, any by layer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import spaced_places
from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.per_run import (
    AlongDepth,
    PerRun,
    RunAtStep,
    RunRecord,
    not_recorded,
    probe_rows,
    probe_rows_at,
    read_runs,
    shown_range,
)
from analyzer.analysis.view import RowSet, RunLabel, View, matching, row_set
from analyzer.storage.run import Run
from analyzer.vocabulary import quantities_of, quantity

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "REFERENCES",
    "AttributionShares",
    "BlockSpectra",
    "JacobianSpectra",
    "PathSpectrum",
    "attribution_shares",
    "block_spectra",
    "join_lesions",
    "path_lengths",
    "probe_by_layer",
    "shattering_curves",
]

Floats = NDArray[np.float64]
_MOST_ATTRIBUTION_STEPS = 6
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

    columns: ClassVar[Mapping[str, str]] = {
        "step": "step",
        "length": "lengths",
        "num_paths": "num_paths",
        "gradient_norm": "norms",
        "norm_share": "norm_shares",
    }

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


def path_lengths(view: View) -> PerRun[PathSpectrum]:
    """Read the path-length spectrum of every run at the probe nearest to the step.

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


def join_lesions(view: View) -> PerRun[AlongDepth]:
    """Read ``loss_change`` and ``accuracy`` without each residual branch, joins in forward order.

    Of every run at the probe nearest to the step. The change is the loss without the branch minus
    that of the whole network; the accuracy is NaN where there are no classes.

    Reference:
        Veit et al. (2016), Residual networks behave like ensembles of relatively shallow networks.
    """
    return PerRun(*read_runs(view, _lesions))


def _lesions(view: View, run: Run, label: RunLabel) -> AlongDepth:
    step, rows = probe_rows_at(run, "lesion", view.step)
    rows = rows[rows["join"].notna()].sort_values("join")
    if not len(rows):
        raise not_recorded("probe lesion has no join:", run, "a net without joins has no lesion")
    known = dict(zip(run.joins["join"], run.joins["name"].astype(str), strict=True))
    joins = rows["join"].to_numpy(np.int64)
    names = tuple(known.get(int(join), f"join {join}") for join in joins)
    columns = ("loss_change", "accuracy")
    values = {name: rows[name].to_numpy(np.float64, na_value=np.nan) for name in columns}
    changes = values["loss_change"]
    finite = np.isfinite(changes)
    text = f"without the branch of one of {counted(len(names), 'join')} the loss "
    if finite.any():
        worst = int(np.argmax(np.where(finite, changes, -np.inf)))
        text += (
            f"changes by {number(float(np.median(changes[finite])))} (median), by "
            f"{number(float(changes[worst]))} at most ({names[worst]})."
        )
    else:
        text += "is not finite."
    places = np.arange(len(names), dtype=np.float64)
    return AlongDepth(label, step, names, places, values, text, row="join", axis="")


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
    """Spectra of all runs with the probe, and the range of their finite values above 0."""

    low: float
    high: float


def block_spectra(view: View) -> BlockSpectra:
    """Read the Jacobian spectra of every run at the probe nearest to the step.

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


def shattering_curves(view: View) -> PerRun[AlongDepth]:
    """Read how far the gradients of different inputs agree, ``correlation``, along depth.

    Of every run at the probe nearest to the step: the mean cosine over pairs of inputs, NaN where
    it is not defined, with the curves that theory expects.

    Reference:
        Balduzzi et al. (2017), The shattered gradients problem.
    """
    return PerRun(*read_runs(view, _shattering))


def _shattering(view: View, run: Run, label: RunLabel) -> AlongDepth:
    step, rows, layers, kept, at = _layer_rows("shattering", view, run)
    names = tuple(layers.names[k] for k in kept)
    correlations = rows["correlation"].to_numpy(np.float64)[at]
    known = np.flatnonzero(np.isfinite(correlations))
    text = "no correlation is defined."
    if len(known):
        first, last = (f"{number(correlations[k])} at {names[k]}" for k in known[[0, -1]])
        text = f"gradients of different inputs correlate {first} and {last}."
    notes = run.probe_metadata("shattering").get(step, {})
    curves = _references(notes, len(rows)).items()
    references = {REFERENCES[key]: curve[at] for key, curve in curves}
    values = {"correlation": correlations}
    return AlongDepth(label, step, names, layers.positions[kept], values, text, references)


def probe_by_layer(probe: str, column: str) -> Callable[[View], PerRun[AlongDepth]]:
    """Return a function that reads one number by layer that a probe measured.

    The table of the probe has a column ``layer``, or ``name`` for blocks.
    """

    def read(view: View, run: Run, label: RunLabel) -> AlongDepth:
        if any(row.key == "layer" for row in quantities_of(f"probes/{probe}")):
            step, rows, layers, kept, at = _layer_rows(probe, view, run)
            names, places = tuple(layers.names[k] for k in kept), layers.positions[kept]
        else:
            step, rows = probe_rows_at(run, probe, view.step)
            at = np.arange(len(rows))
            names, places = tuple(rows["name"].astype(str)), at.astype(np.float64)
        values = rows[column].to_numpy(np.float64, na_value=np.nan)[at]
        first, last = (f"{number(values[k])} at {names[k]}" for k in (0, -1))
        what = quantity(column, f"probes/{probe}").label
        text = f"{what} goes from {first} to {last}."
        return AlongDepth(label, step, names, places, {column: values}, text)

    return lambda view: PerRun(*read_runs(view, read))


def _layer_rows(
    probe: str, view: View, run: Run
) -> tuple[int, "pd.DataFrame", RowSet, list[int], NDArray[np.int64]]:
    """The step and the rows of a probe, the layers of the view, which of them it has, and where."""
    step, rows = probe_rows_at(run, probe, view.step)
    layers = row_set(run, "output_gradient_norm", view.layers)
    # A module inside compiled code has a name, but no layer.
    place = {int(layer): at for at, layer in enumerate(rows["layer"]) if not np.isnan(layer)}
    kept = [k for k, id_ in enumerate(layers.ids) if int(id_) in place]
    if not kept:
        raise not_recorded(f"probe {probe} has no such layer:", run, f"add `--probe {probe}`")
    return step, rows, layers, kept, np.array([place[int(layers.ids[k])] for k in kept], np.int64)


def _references(notes: Mapping[str, str], count: int) -> dict[str, Floats]:
    """The curves that the probe noted; those that do not fit its rows are left out."""
    try:
        stored = json.loads(notes.get("references", "{}"))
        items = [(key, stored[key]) for key in REFERENCES if key in stored]
        curves = {key: np.asarray(values, np.float64) for key, values in items}
    except (ValueError, TypeError, RecursionError):
        return {}
    return {key: curve for key, curve in curves.items() if curve.shape == (count,)}


@dataclass(frozen=True, eq=False)
class AttributionShares(RunRecord):
    """The share of each layer in what the network puts out, over the checkpoints of one run.

    Args:
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
    """Read the attribution shares of every run; of several methods the first."""
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
    kept = table.iloc[spaced_places(len(table), _MOST_ATTRIBUTION_STEPS)]
    names = tuple(kept.columns.get_level_values("name").astype(str))
    steps = kept.index.to_numpy(np.int64)
    return AttributionShares(label, method, names, steps, kept.to_numpy(np.float64))

"""What probes measured of blocks and layers: Jacobians, shattering, attribution, any by layer."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    per_run,
    probe_rows,
    probe_rows_at,
    read_runs,
    shown_range,
)
from analyzer.analysis.probe_numbers import hidden_words, sample_conditions
from analyzer.analysis.view import RunLabel, View, matching, row_set
from analyzer.storage.reading import noted, noted_numbers
from analyzer.storage.run import Run
from analyzer.vocabulary import quantities_of, quantity

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COUNTERFACTUALS",
    "AttributionShares",
    "BlockSpectra",
    "JacobianSpectra",
    "attribution_shares",
    "block_spectra",
    "counterfactual_curves",
    "forward_correlations",
    "probe_by_layer",
    "shattering_curves",
]

Floats = NDArray[np.float64]
_MOST_ATTRIBUTION_STEPS = 6
COUNTERFACTUALS = {
    "as it is": (1.0, False),
    "with shortcuts halved": (0.5, False),
    "without shortcuts": (0.0, False),
    "without shortcuts, rescaled": (0.0, True),
}
"""What is done to the shortcuts: their factor, and whether branches are rescaled."""
# The names under which the probe stores the curves of Balduzzi et al.
_REFERENCES = {
    "plain": "plain, 1/2ᴸ",
    "residual": "residual, (3/4)ᴸ",
    "residual_norm": "residual with norm, 1/√L",
    "relu": "plain ReLU of infinite width",
}


@dataclass(frozen=True, eq=False)
class JacobianSpectra(RunAtStep):
    """Singular values of the Jacobian of each block of one run, and of the whole network.

    Args:
        names: Blocks in forward order, then the whole network.
        blocks: Index into ``names`` of each singular value, ``[values]``.
        orders: Rank of each value from the largest of its block, ``[values]``.
        values: Median over samples of each singular value, in unit of y / unit of x, ``[values]``;
            NaN where it did not settle.
        lows, highs: Lower and upper quartile over the samples; NaN where not measured.
        condition: What is said of the condition number of the whole network.
    """

    names: tuple[str, ...]
    blocks: NDArray[np.int64]
    orders: NDArray[np.int64]
    values: Floats
    lows: Floats
    highs: Floats
    condition: str = ""

    def sentence(self) -> str:
        """Return what the last spectrum, that of the whole network, spans."""
        last = self.values[self.blocks == len(self.names) - 1]
        top, bottom = float(last.max()), float(last.min())
        start = f"{self.where}: singular values of {self.names[-1]}"
        if np.isfinite(last[0]) and not np.isfinite(bottom):
            return f"{start} reach up to {number(float(last[0]))}; the smallest did not settle."
        if not (np.isfinite(top) and np.isfinite(bottom)):
            return f"{start} are not all finite."
        return f"{start} reach from {number(bottom)} to {number(top)}{self.condition}."

    def cells(self) -> Mapping[str, Any]:
        """Return one row per block and singular value."""
        return {
            "step": self.step,
            "name": [self.names[block] for block in self.blocks],
            "rank_order": self.orders,
            "singular_value": self.values,
            "lower_quartile": self.lows,
            "upper_quartile": self.highs,
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
    ends = rows.reindex(columns=["lower_quartile", "upper_quartile"])
    lows, highs = (ends[name].to_numpy(np.float64, na_value=np.nan) for name in ends)
    last = values[blocks == len(names) - 1]
    each = sample_conditions(run, step, names[-1]) if names else None
    known = np.zeros(0) if each is None else each[~np.isnan(each)]
    condition, over = float(np.median(known)) if len(known) else math.nan, ""
    if len(known):
        over = f" (median of {counted(len(known), 'sample')})"
    elif len(last) and last.min() > 0:
        condition = float(last.max() / last.min())
    words = f"{number(condition)}{hidden_words(run, condition)}{over}"
    said = "" if math.isnan(condition) else f", a condition number of {words}"
    return JacobianSpectra(label, step, names, blocks, orders, values, lows, highs, said)


@per_run
def shattering_curves(view: View, run: Run, label: RunLabel) -> AlongDepth:
    """Read how far the gradients of different inputs agree, ``correlation``, along depth.

    Of every run at the probe nearest to the step: the mean cosine over pairs of inputs and its
    interval, NaN where it is not defined, with the curves that theory expects.

    Reference:
        Balduzzi et al. (2017), The shattered gradients problem.
    """
    return _correlations("shattering", "gradients", view, run, label)


@per_run
def forward_correlations(view: View, run: Run, label: RunLabel) -> AlongDepth:
    """Read how far the activations of different inputs agree, as `shattering_curves` does.

    Reference:
        Schoenholz et al. (2017), Deep information propagation.
    """
    return _correlations("forward_correlation", "activations", view, run, label)


def _correlations(probe: str, what: str, view: View, run: Run, label: RunLabel) -> AlongDepth:
    step, rows, names, places, at = _layer_rows(probe, view, run)
    columns = ["correlation", "correlation_low", "correlation_high"]
    rows = rows.reindex(columns=columns)
    values = {name: rows[name].to_numpy(np.float64, na_value=np.nan)[at] for name in columns}
    known = np.flatnonzero(np.isfinite(values["correlation"]))
    text = "no correlation is defined."
    if len(known):
        first, last = (f"{_with_interval(values, k)} at {names[k]}" for k in known[[0, -1]])
        text = f"{what} of different inputs correlate {first} and {last}."
    notes = run.probe_metadata(probe).get(step, {})
    curves = _references(notes, len(rows)).items()
    references = {_REFERENCES[key]: curve[at] for key, curve in curves}
    return AlongDepth(label, step, names, places, values, text, references)


def _with_interval(values: Mapping[str, Floats], place: int) -> str:
    """A correlation, and between which ends it lies where that is known."""
    middle, low, high = (float(column[place]) for column in values.values())
    if not (np.isfinite(low) and np.isfinite(high)):
        return number(middle)
    return f"{number(middle)} ({number(low)} to {number(high)})"


@per_run
def counterfactual_curves(view: View, run: Run, label: RunLabel) -> AlongDepth:
    """Read the gradient by layer with every shortcut times 1, 0.5 and 0, and rescaled.

    Of every run at the probe nearest to the step; one number for each of the four, in loss / unit
    of y, NaN where no gradient arrives.
    """
    step, rows, names, places, at = _layer_rows("counterfactual", view, run)
    layers = rows["layer"].to_numpy()[at]
    values: dict[str, Floats] = {}
    for word, (scale, rescaled) in COUNTERFACTUALS.items():
        rows_of = rows[(rows["skip_scale"] == scale) & (rows["rescaled"].astype(bool) == rescaled)]
        norm_of = dict(zip(rows_of["layer"], rows_of["output_gradient_norm"], strict=True))
        values[word] = np.array([norm_of.get(layer, np.nan) for layer in layers], np.float64)
    falls = {word: _fall(norms) for word, norms in values.items()}
    said = ", ".join(f"{number(fall)} {word}" for word, fall in falls.items() if fall is not None)
    text = "at the same weights, the gradient at the first layer over that at the last is "
    text = f"{text}{said}." if said else "no gradient is finite."
    return AlongDepth(label, step, names, places, values, text)


def _fall(norms: Floats) -> float | None:
    """The first over the last norm that is finite and above zero."""
    known = norms[np.isfinite(norms) & (norms > 0)]
    return float(known[0] / known[-1]) if len(known) > 1 else None


def probe_by_layer(probe: str, column: str) -> Callable[[View], PerRun[AlongDepth]]:
    """Return a function that reads one number by layer that a probe measured.

    The table of the probe has a column ``layer``, or ``name`` for blocks.
    """

    @per_run
    def read(view: View, run: Run, label: RunLabel) -> AlongDepth:
        if any(row.key == "layer" for row in quantities_of(f"probes/{probe}")):
            step, rows, names, places, at = _layer_rows(probe, view, run)
        else:
            step, rows = probe_rows_at(run, probe, view.step)
            at = np.arange(len(rows))
            names, places = tuple(rows["name"].astype(str)), at.astype(np.float64)
        values = rows[column].to_numpy(np.float64, na_value=np.nan)[at]
        first, last = (f"{number(values[k])} at {names[k]}" for k in (0, -1))
        what = quantity(column, f"probes/{probe}").label
        text = f"{what} goes from {first} to {last}."
        return AlongDepth(label, step, names, places, {column: values}, text)

    return read


def _layer_rows(
    probe: str, view: View, run: Run
) -> tuple[int, "pd.DataFrame", tuple[str, ...], Floats, NDArray[np.int64]]:
    """Step and rows of a probe; names, depths and rows of those layers of the view that it has."""
    step, rows = probe_rows_at(run, probe, view.step)
    layers = row_set(run, "output_gradient_norm", view.layers)
    # A module inside compiled code has a name, but no layer.
    place = {int(layer): at for at, layer in enumerate(rows["layer"]) if not np.isnan(layer)}
    kept = [k for k, id_ in enumerate(layers.ids) if int(id_) in place]
    if not kept:
        raise not_recorded(f"probe {probe} has no such layer:", run, f"add `--probe {probe}`")
    at = np.array([place[int(layers.ids[k])] for k in kept], np.int64)
    return step, rows, tuple(layers.names[k] for k in kept), layers.positions[kept], at


def _references(notes: Mapping[str, str], count: int) -> dict[str, Floats]:
    """The curves that the probe noted; those that do not fit its rows are left out."""
    stored = noted(notes, "references")
    some = stored if isinstance(stored, dict) else {}
    curves = {key: noted_numbers(some.get(key)) for key in _REFERENCES}
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
        start = f"{self.label.text}, {self.label.moment(int(self.steps[-1]))}:"
        if not np.isfinite(last).any():
            return f"{start} no share is finite."
        top = int(np.nanargmax(last))
        return (
            f"{start} the largest share of the {self.method} is that of {self.names[top]} "
            f"({percent(float(last[top]))}); it was {percent(float(self.shares[0][top]))} "
            f"{self.label.at(int(self.steps[0]))}."
        )

    def cells(self) -> Mapping[str, Any]:
        """Return one row per step and layer."""
        return {
            "method": self.method,
            "step": np.repeat(self.steps, len(self.names)),
            "layer": np.tile(np.array(self.names, object), len(self.steps)),
            "share": self.shares.ravel(),
        }


@per_run
def attribution_shares(view: View, run: Run, label: RunLabel) -> AttributionShares:
    """Read the attribution shares of every run; of several methods the first."""
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

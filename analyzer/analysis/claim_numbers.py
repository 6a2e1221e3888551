"""The numbers of claims: of one run each, with the expression that gives the number again.

A query is built from literals and ids alone, uses what ``analyzer.open_run`` returns, and calls the
run ``RUN``. Each function raises NotRecordedError where the run lacks what it reads.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analyzer.analysis.gradient_flow import relative_depth
from analyzer.analysis.per_run import not_recorded, probe_rows, probe_rows_at
from analyzer.analysis.training import run_training
from analyzer.analysis.trunk import median_trunk, trunk, trunk_steps
from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = ["MOMENTS", "NUMBERS", "Measured", "relative_gradient"]

# All rows of a longer run take seconds to read; evenly spaced steps of it a tenth of that.
_LONG, _SPACED_STEPS = 20_000, 200
# As analyzer.probes.jacobian names it, which the reading side does not import.
_NETWORK = "network"


@dataclass(frozen=True)
class Measured:
    """A number of one run, NaN where it is not one, and the query that gives it.

    Args:
        steps: At which it was measured: the first one is that of the figure.
        low: Lower end of its spread within the run; None where one run has none.
        high: Upper end of it.
        over: What the spread is over: ``steps``, ``samples`` or ``pairs of inputs``.
        count: How many of them.
        scale: What it is compared with, where that is a number of the run too.
        other: The same number of the network without its shortcuts, by a probe of this run.
        where: The layer or join that it is about.
    """

    value: float
    query: str
    steps: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    over: str = ""
    count: int = 1
    scale: float = 1.0
    other: float | None = None
    where: str = ""


MOMENTS = ("first", "median", "last")
"""When a number along depth is taken: at the first step, over the steps, at the last one."""


def _along_trunk(run: Run, moment: str, name: str) -> Measured:
    """A number of `Trunk` at a moment; ``scale`` is how many layers with weights are passed."""
    steps = trunk_steps(run)
    if not len(steps):
        raise not_recorded("layer statistics were", run, "record a training with a backward pass")
    rows = run.static_rows("layers").select(["kind", "num_parameters", "role"]).to_pylist()
    weights = [r for r in rows if r["num_parameters"] and "Norm" not in r["kind"]]
    passed = float(max(1, sum(r["role"] != "shortcut" for r in weights) - 1))
    if moment == "median":
        found = median_trunk(run)
        low, high, count = None, None, max(1, len(found.steps))
        if name != "gain":
            low, high = sorted((found.low, found.high))
            low, high = (low, high) if name == "decades_fallen" else (-high, -low)
        value, query = getattr(found, name), f"RUN.trunk().{name}"
        return Measured(value, query, found.steps, low, high, "steps", count, passed)
    step = int(steps[0] if moment == "first" else steps[-1])
    at = trunk(run, step)
    value, query = getattr(at, name), f"RUN.trunk({step}).{name}"
    return Measured(value, query, (step,), scale=passed, where=at.drop_layer)


def _cliff(run: Run) -> Measured:
    """The largest single fall along the trunk beyond the fit, at the first or the last step."""
    found = [_along_trunk(run, moment, "cliff") for moment in ("first", "last")]
    return max(found, key=lambda one: -math.inf if math.isnan(one.value) else one.value)


def _gain(run: Run) -> Measured:
    """The gain per layer of depth; ``scale`` is how far the depths reach."""
    found = _along_trunk(run, "median", "gain")
    depths = as_floats(run.static_rows("layers").column("depth"))
    return replace(found, scale=float(depths.max() - depths.min()))


def relative_gradient(run: Run) -> Measured:
    """``‖∂L/∂y_first‖ / ‖∂L/∂output‖``, median over steps: a larger output does not change it.

    Of a long run at evenly spaced steps.
    """
    first, last = _ends(run)
    recorded = run.layer_steps()
    stride = len(recorded) // _SPACED_STEPS if len(recorded) > _LONG else 1
    some = recorded[::stride] if stride > 1 else None
    spaced = f", steps=RUN.layer_steps()[::{stride}]" if stride > 1 else ""
    query = (
        f'RUN.layer_stats("output_gradient_norm", layers=[{first}, {last}]{spaced})'
        '.pivot(index="step", columns="layer", values="output_gradient_norm")'
        f".pipe(lambda t: t[{first}] / t[{last}]).median()"
    )
    rows = run.layer_stats("output_gradient_norm", layers=[first, last], steps=some)
    table = rows.pivot(index="step", columns="layer", values="output_gradient_norm")
    return _over_steps((table[first] / table[last]), query)


def _over_steps(values: "pd.Series[float]", query: str) -> Measured:
    """The median over steps, with the quartiles."""
    low, middle, high = (float(x) for x in values.quantile([0.25, 0.5, 0.75]))
    steps = (int(values.index[0]), int(values.index[-1])) if len(values) else ()
    return Measured(middle, query, tuple(dict.fromkeys(steps)), low, high, "steps", len(values))


def _ends(run: Run) -> tuple[int, int]:
    """The shallowest layer with parameters and a gradient, and the deepest with a gradient."""
    layers = run.layers[run.layers["layer"].isin(_reached(run))].sort_values(
        ["depth", "layer"], kind="stable"
    )
    owners = layers[layers["num_parameters"] > 0]
    if owners.empty:
        raise NotRecordedError(
            f"run '{run.name}' holds no output gradient of a layer with parameters; record it "
            "with layer statistics"
        )
    return int(owners["layer"].iloc[0]), int(layers["layer"].iloc[-1])


def _reached(run: Run) -> list[int]:
    column = "output_gradient_norm"
    if run.ranks != [0]:
        return run.layer_stats(column).dropna()["layer"].unique().tolist()
    grid = run.grid(column, "max", table="layer_stats")
    finite = np.isfinite(grid.values).any(axis=1)
    # What is never finite in the overview may be infinite, which is a value, or NaN, which is not.
    odd = grid.ids[~finite & (grid.num_nonfinite > 0).any(axis=1)]
    rows = run.layer_stats(column, layers=odd.tolist()).dropna() if len(odd) else None
    more = [] if rows is None else rows["layer"].unique().tolist()
    return [*grid.ids[finite].tolist(), *more]


def _shortcut_share(run: Run) -> Measured:
    """Median share of the shortcuts over joins and steps."""
    steps, shares = run.recorded_steps("splits"), run.read("splits", "shortcut_share")
    values = as_floats(shares.column("shortcut_share"))
    known = values[~np.isnan(values)]
    if not len(known):
        raise not_recorded("splits were", run, "record it with --splits-every")
    low, middle, high = (float(x) for x in np.quantile(known, (0.25, 0.5, 0.75)))
    query = 'RUN.splits()["shortcut_share"].median()'
    ends = tuple(dict.fromkeys((int(steps[0]), int(steps[-1]))))
    return Measured(middle, query, ends, low, high, "joins and steps", len(known))


def _first_split(run: Run, column: str) -> tuple[int, "pd.DataFrame"]:
    steps = run.recorded_steps("splits")
    if not len(steps):
        raise not_recorded("splits were", run, "record it with --splits-every")
    rows = run.splits(steps=int(steps[0]))
    if rows[column].isna().all():
        raise not_recorded(f"{column} was", run, "record it again with this version")
    return int(steps[0]), rows


def _identity_start(run: Run) -> Measured:
    """Smallest share of an identity shortcut at the first split."""
    step, _ = _first_split(run, "shortcut_share")
    joins = run.joins
    ids = joins[joins["shortcut"] == "identity"]["join"].tolist()
    if not ids:
        raise NotRecordedError(f"run '{run.name}' has no identity shortcut")
    rows = run.splits(ids, steps=step)["shortcut_share"]
    query = f'RUN.splits({ids}, steps={step})["shortcut_share"].min()'
    return Measured(float(rows.min()), query, (step,), count=len(ids))


def _stream(run: Run) -> Measured:
    """Median over joins of ``‖b‖ / ‖s‖``, what a block adds over what it is added to."""
    step, rows = _first_split(run, "branch_output_norm")
    ratios = rows["branch_output_norm"] / rows["shortcut_output_norm"]
    low, middle, high = (float(x) for x in ratios.quantile([0.25, 0.5, 0.75]))
    query = f'RUN.splits(steps={step}).eval("branch_output_norm / shortcut_output_norm").median()'
    return Measured(middle, query, (step,), low, high, "joins", len(ratios))


def _first_update(run: Run) -> Measured:
    """Median update ratio of the first trained weight."""
    parameters = run.parameters
    is_weight = parameters["shape"].map(len) > 1
    chosen = parameters[parameters["trained"] & parameters["layer"].notna() & is_weight]
    if chosen.empty:
        raise NotRecordedError(
            f"run '{run.name}' holds no trained weight of a layer; record it with a model"
        )
    depths = run.layers.set_index("layer")["depth"]
    place = int(chosen["layer"].astype(int).map(depths).argmin())
    number = int(chosen["parameter"].iloc[place])
    rows = run.parameter_stats(["update_norm", "norm"], parameters=number)
    kept = rows[(rows["norm"] > 0) & rows["update_norm"].notna()].set_index("step")
    if kept.empty:
        raise not_recorded("updates were", run, "record it with --updates-every")
    query = (
        f'RUN.parameter_stats(["update_norm", "norm"], parameters={number})'
        '.query("norm > 0").eval("update_norm / norm").median()'
    )
    return _over_steps(kept["update_norm"] / kept["norm"], query)


def _final_loss(run: Run) -> Measured:
    """Mean loss of the last tenth of the steps (at most 100), with its standard error."""
    training = run_training(run)
    if not training.num_losses:
        raise not_recorded("a scalar loss was", run, "record a training that computes one")
    last = training.num_steps - 1
    value, error = training.final_loss, training.final_error
    steps = tuple(dict.fromkeys((max(0, last - training.num_final + 1), last)))
    scale = abs(training.first_loss)
    query = "RUN.training().final_loss"
    return Measured(
        value, query, steps, value - error, value + error, "steps", training.num_final, scale
    )


def _path_length(run: Run) -> Measured:
    """``Σ k‖G_k‖ / Σ ‖G_k‖`` at the last probe; ``other`` is the length of the longest path.

    ``scale`` is the share of ``Σ‖G_k‖`` that paths of at most half of that length carry.
    """
    step, last = probe_rows_at(run, "paths", None)
    norms, lengths = last["gradient_norm"].to_numpy(np.float64), last["length"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float((lengths * norms).sum() / norms.sum())
        half = float(norms[lengths <= lengths.max() / 2].sum() / norms.sum())
    query = (
        f'RUN.probe("paths").query("step == {step}").pipe(lambda t: (t["length"].max(), '
        '(t["length"] * t["gradient_norm"]).sum() / t["gradient_norm"].sum()))'
    )
    return Measured(value, query, (step,), scale=half, other=float(lengths.max()))


def _input_correlation(run: Run) -> Measured:
    """Correlation of the gradients of inputs at the shallowest probed layer, at the first step."""
    rows = _probed_layers(run, "shattering")
    depths = run.layers.set_index("layer")["depth"]
    owners = run.layers[run.layers["num_parameters"] > 0]["layer"]
    known = rows[rows["layer"].isin(owners)] if rows["layer"].isin(owners).any() else rows
    place = int(known["layer"].map(depths).fillna(np.inf).argmin())
    return _of_layer(known.iloc[place], "shattering")


def _forward_correlation(run: Run) -> Measured:
    """Correlation of the activations of inputs at the last layer before the output, first step."""
    rows = _probed_layers(run, "forward_correlation")
    layers = run.layers.set_index("layer")
    rows = rows[rows["layer"].isin(layers.index)]
    depths = rows["layer"].map(layers["depth"]).to_numpy(float)
    # The output itself tells classes apart by its bias; what it is computed from has collapsed.
    inner = np.flatnonzero(depths < depths.max()) if len(depths) else []
    if not len(inner):
        raise not_recorded("layers of probe forward_correlation were", run, "record more layers")
    at = inner[int(np.argmax(depths[inner]))]
    return _of_layer(rows.iloc[at], "forward_correlation")


def _probed_layers(run: Run, probe: str) -> "pd.DataFrame":
    """What a probe by layer measured at its first step."""
    rows = probe_rows(run, probe).dropna(subset=["layer"])
    if not len(rows):
        raise not_recorded(f"layers of probe {probe} were", run, "record a model in eager mode")
    return rows[rows["step"] == rows["step"].min()]


def _of_layer(row: "pd.Series[Any]", probe: str) -> Measured:
    step, layer = int(row["step"]), int(row["layer"])
    query = (
        f'RUN.probe("{probe}").query("step == {step} and layer == {layer}")["correlation"].iloc[0]'
    )
    ends = [row.get(name) for name in ("low", "high")]
    low, high = (None if x is None or pd.isna(x) else float(x) for x in ends)
    over = "pairs of inputs" if low is not None else ""
    value = float(row["correlation"])
    return Measured(value, query, (step,), low, high, over, where=str(row.get("name", "")))


def _condition_number(run: Run) -> Measured:
    """Largest over smallest singular value of the whole network's Jacobian at the first probe.

    Over several samples the median, with the ends of a notch: ``1.57 · (Q3 − Q1) / √samples`` on a
    logarithmic scale (McGill et al. 1978). NaN where no sample has both values.
    """
    step, rows = probe_rows_at(run, "jacobian", 0)
    name = _whole(run, rows)
    rows = rows[rows["name"] == name]
    where = f't[(t["step"] == {step}) & (t["name"] == {name!r})]'
    ratio = "s.max() / s.min(skipna=False)"
    if "sample" not in rows:
        values = rows["singular_value"]
        query = (
            f'RUN.probe("jacobian").pipe(lambda t: {where})["singular_value"]'
            f".pipe(lambda s: {ratio})"
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.float64(values.max()) / np.float64(values.min(skipna=False)))
        return Measured(value, query, (step,), over="samples")
    each = rows.groupby("sample")["singular_value"].apply(_ratio)
    query = (
        f'RUN.probe("jacobian").pipe(lambda t: {where}).groupby("sample")["singular_value"]'
        f".apply(lambda s: {ratio}).median()"
    )
    low, middle, high = (float(x) for x in each.quantile([0.25, 0.5, 0.75]))
    reach = (high / low) ** (1.57 / max(1, each.notna().sum()) ** 0.5) if low > 0 else math.nan
    return Measured(
        middle, query, (step,), middle / reach, middle * reach, "samples", int(each.notna().sum())
    )


def _ratio(values: "pd.Series[float]") -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(values.max()) / np.float64(values.min(skipna=False)))


def _whole(run: Run, rows: "pd.DataFrame") -> str:
    """The name under which the probe wrote the whole network: the one that is no join's."""
    joins = set(run.joins["name"])
    names = [str(name) for name in dict.fromkeys(rows["name"])]
    whole = [name for name in names if name == _NETWORK or name not in joins]
    return (whole or names)[-1]


def _lesion(run: Run) -> Measured:
    """Largest loss of accuracy without one branch, at the last probe; of the loss without one.

    ``scale`` is 0 where it is of accuracies, else the first loss.
    """
    step, rows = probe_rows_at(run, "lesion", None)
    noted = json.loads(run.probe_metadata("lesion").get(step, {}).get("accuracy", "null"))
    base = math.nan if noted is None else float(noted)
    names = run.joins.set_index("join")["name"]
    here = f'RUN.probe("lesion").query("step == {step}")'
    if math.isnan(base) or rows["accuracy"].isna().all():
        change, scale, over = rows["loss_change"], abs(run_training(run).first_loss), "loss"
        query = f'{here}["loss_change"].max()'
    else:
        change, scale, over = base - rows["accuracy"], 0.0, "accuracy"
        query = f'{base!r} - {here}["accuracy"].min()'
    at = int(change.argmax()) if change.notna().any() else 0
    where = str(names.get(rows["join"].iloc[at], rows["join"].iloc[at]))
    value = float(change.max())
    return Measured(value, query, (step,), over=over, count=len(rows), scale=scale, where=where)


def _counterfactual(run: Run) -> Measured:
    """Decades that the gradient falls from the last layer to the first, as the network is.

    ``other`` are those without its shortcuts; ``low`` and ``high`` without them, with its branches
    as they are and rescaled. The ends are the shallowest and the deepest layer with parameters.
    """
    step, rows = probe_rows_at(run, "counterfactual", 0)
    layers = run.layers.set_index("layer")
    owners = layers[(layers["num_parameters"] > 0) & (layers["role"] != "shortcut")]
    rows = rows[rows["layer"].isin(owners.index)]
    if not len(rows):
        raise not_recorded("layers of probe counterfactual were", run, "record it in eager mode")
    places = relative_depth(rows["layer"].map(owners["depth"]))
    first, last = (int(rows["layer"].iloc[at]) for at in (places.argmin(), places.argmax()))
    fallen = [_fallen(rows, first, last, *kind) for kind in ((1, False), (0, False), (0, True))]
    query = (
        f'RUN.probe("counterfactual").query("step == {step} and rescaled == False")'
        '.pivot(index="layer", columns="skip_scale", values="output_gradient_norm")'
        f".pipe(lambda t: t.loc[[{last}]].div(t.loc[{first}])).T"
        f'.rename(columns={{{last}: "fall"}}).eval("log10(fall)").loc[[0, 1]].tolist()'
    )
    known = [x for x in fallen[1:] if not math.isnan(x)]
    low, high = (min(known), max(known)) if len(known) == 2 else (None, None)
    over = "branches as they are and rescaled" if low is not None else ""
    where = str(layers["name"].get(first, ""))
    return Measured(fallen[0], query, (step,), low, high, over, other=fallen[1], where=where)


def _fallen(rows: "pd.DataFrame", first: int, last: int, scale: float, rescaled: bool) -> float:
    chosen = rows[(rows["skip_scale"] == scale) & (rows["rescaled"].astype(bool) == rescaled)]
    norm = chosen.set_index("layer")["output_gradient_norm"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.float64(norm.get(last, np.nan)) / np.float64(norm.get(first, np.nan))
        return float(np.log10(ratio))


NUMBERS: dict[str, Callable[[Run], Measured]] = {
    **{
        f"{word}_{moment}": partial(_along_trunk, moment=moment, name=f"decades_{word}")
        for word in ("fallen", "grown")
        for moment in MOMENTS
    },
    "cliff": _cliff,
    "gain": _gain,
    "relative_gradient": relative_gradient,
    "counterfactual": _counterfactual,
    "shortcut_share": _shortcut_share,
    "identity_start": _identity_start,
    "stream": _stream,
    "path_length": _path_length,
    "shattering": _input_correlation,
    "forward_collapse": _forward_correlation,
    "conditioning": _condition_number,
    "lesion": _lesion,
    "first_update": _first_update,
    "training_loss": _final_loss,
}
"""What is measured for each claim, beside the numbers along depth."""

"""The numbers of claims: of one run each, with the expression that gives the number again.

A query is built from literals and ids alone, uses what ``analyzer.open_run`` returns, and calls the
run ``RUN``. Each function raises NotRecordedError where the run lacks what it reads.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyzer.analysis import probe_numbers
from analyzer.analysis.per_run import not_recorded, remembered
from analyzer.analysis.probe_numbers import Measured
from analyzer.analysis.training import run_training
from analyzer.analysis.trunk import median_trunk, trunk, trunk_steps
from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = ["MOMENTS", "NUMBERS", "Measured", "relative_gradient", "shortcut_share"]

# All rows of a longer run take seconds to read; evenly spaced steps of it a tenth of that.
_LONG, _SPACED_STEPS = 20_000, 200


Floats = NDArray[np.float64]
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
    return replace(found, scale=float(np.ptp(depths)) if len(depths) else 0.0)


def relative_gradient(run: Run, before: int | None = None) -> Measured:
    """``‖∂L/∂y_first‖ / ‖∂L/∂output‖``, median over steps: a larger output does not change it.

    Of a long run at evenly spaced steps; with ``before`` only at steps before that one.
    """
    return _relative_gradient(run, before)


@remembered("layer_stats")
def _relative_gradient(run: Run, before: int | None) -> Measured:
    first, last = _ends(run)
    recorded = run.layer_steps()
    recorded = recorded if before is None else recorded[recorded < before]
    stride = len(recorded) // _SPACED_STEPS if len(recorded) > _LONG else 1
    some = recorded[::stride] if stride > 1 or before is not None else None
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
    low, middle, high = _quartiles(values)
    steps = (int(values.index[0]), int(values.index[-1])) if len(values) else ()
    return Measured(middle, query, tuple(dict.fromkeys(steps)), low, high, "steps", len(values))


def _quartiles(values: "pd.Series[float] | Floats") -> tuple[float, float, float]:
    """The lower quartile, the median and the upper one of what is known."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return math.nan, math.nan, math.nan
    with np.errstate(invalid="ignore"):  # between two infinite values there is none
        low, high = np.quantile(known, (0.25, 0.75))
        return float(low), float(np.median(known)), float(high)


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


def shortcut_share(run: Run, before: int | None = None) -> Measured:
    """Median share of the shortcuts over joins and steps, or steps ``before`` one."""
    return _shortcut_share(run, before)


@remembered("splits")
def _shortcut_share(run: Run, before: int | None) -> Measured:
    steps = run.recorded_steps("splits")
    steps = steps if before is None else steps[steps < before]
    shares = run.read("splits", "shortcut_share", steps=None if before is None else steps)
    values = as_floats(shares.column("shortcut_share"))
    known = values[~np.isnan(values)]
    if not len(known):
        raise not_recorded("splits were", run, "record it with --splits-every")
    low, middle, high = _quartiles(known)
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
    low, middle, high = _quartiles(ratios)
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
    known = chosen["layer"].astype(int).map(depths).dropna()
    if known.empty:
        raise not_recorded("the table of layers was", run, "it is missing or cannot be read")
    number = int(chosen.loc[known.index, "parameter"].iloc[int(known.argmin())])
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


NUMBERS: dict[str, Callable[[Run], Measured]] = {
    **{
        f"{word}_{moment}": partial(_along_trunk, moment=moment, name=f"decades_{word}")
        for word in ("fallen", "grown")
        for moment in MOMENTS
    },
    "cliff": _cliff,
    "gain": _gain,
    "relative_gradient": relative_gradient,
    "counterfactual": probe_numbers.counterfactual,
    "shortcut_share": shortcut_share,
    "identity_start": _identity_start,
    "stream": _stream,
    "path_length": probe_numbers.path_length,
    "shattering": probe_numbers.input_correlation,
    "forward_collapse": probe_numbers.forward_correlation,
    "conditioning": probe_numbers.condition_number,
    "lesion": probe_numbers.lesion,
    "first_update": _first_update,
    "edge_of_stability": probe_numbers.edge_of_stability,
    "training_loss": _final_loss,
}
"""What is measured for each claim, beside the numbers along depth."""

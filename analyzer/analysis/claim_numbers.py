"""The numbers of claims: of one run each, with the expression that gives the number again.

A query is built from literals and ids alone, uses what ``analyzer.open_run`` returns, and calls the
run ``RUN``. Each function raises NotRecordedError where the run lacks what it reads.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from analyzer.analysis.gradient_flow import MedianGain, run_gain
from analyzer.analysis.per_run import not_recorded, probe_rows, probe_rows_at, remembered
from analyzer.analysis.training import run_training
from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = [
    "Measured",
    "condition_number",
    "decades_fallen",
    "decades_grown",
    "final_loss",
    "first_share",
    "first_update",
    "gain_per_layer",
    "input_correlation",
    "lesion_change",
    "path_length",
    "relative_gradient",
    "shortcut_share",
]

# All rows of a longer run take seconds to read; evenly spaced steps of it a tenth of that.
_LONG, _SPACED_STEPS = 20_000, 200
# As analyzer.probes.jacobian names it, which the reading side does not import.
_NETWORK = "network"


class Measured(NamedTuple):
    """A number of one run, NaN where it is not one, and the query that gives it.

    ``scale`` is what it is compared with, where that is a number of the run too.
    """

    value: float
    query: str
    scale: float = 1.0


def decades_fallen(run: Run) -> Measured:
    """Decades that the fitted gradient falls from the last layer to the first."""
    return Measured(_median_gain(run).decades_fallen, "RUN.gain().decades_fallen")


def decades_grown(run: Run) -> Measured:
    """Decades that it grows on that way."""
    return Measured(_median_gain(run).log10_total, "RUN.gain().log10_total")


def gain_per_layer(run: Run) -> Measured:
    """The gain per layer; 1 is isometry. NaN also where it is 0, which no fit tells from it."""
    gain = _median_gain(run).gain
    return Measured(gain if gain > 0 else math.nan, "RUN.gain().gain")


@remembered("layer_stats")
def _median_gain(run: Run) -> MedianGain:
    """The gain that three claims are about."""
    return run_gain(run)


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
    return Measured(float((table[first] / table[last]).median()), query)


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


def shortcut_share(run: Run) -> Measured:
    """Median share of the shortcuts over joins and steps."""
    shares = as_floats(run.read("splits", "shortcut_share").column("shortcut_share"))
    known = shares[~np.isnan(shares)]
    value = float(np.median(known)) if len(known) else math.nan
    return Measured(value, 'RUN.splits()["shortcut_share"].median()')


def first_share(run: Run) -> Measured:
    """Median share of the shortcuts at the first step that was split."""
    steps = run.recorded_steps("splits")
    if not len(steps):
        raise not_recorded("splits were", run, "record it with --splits-every")
    step = int(steps[0])
    value = float(run.splits(steps=step)["shortcut_share"].median())
    return Measured(value, f'RUN.splits(steps={step})["shortcut_share"].median()')


def first_update(run: Run) -> Measured:
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
    kept = rows[rows["norm"] > 0]
    query = (
        f'RUN.parameter_stats(["update_norm", "norm"], parameters={number})'
        '.query("norm > 0").eval("update_norm / norm").median()'
    )
    return Measured(float((kept["update_norm"] / kept["norm"]).median()), query)


def final_loss(run: Run) -> Measured:
    """Mean loss of the last tenth of the steps, to be compared with the first loss."""
    training = run_training(run)
    if not training.num_losses:
        raise not_recorded("a scalar loss was", run, "record a training that computes one")
    first = abs(training.first_loss)
    return Measured(training.final_loss, "RUN.training().final_loss", first)


def path_length(run: Run) -> Measured:
    """``Σ k‖G_k‖ / Σ ‖G_k‖`` at the last step that was probed, of the longest path."""
    step, last = probe_rows_at(run, "paths", None)
    norms = last["gradient_norm"].to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float((last["length"].to_numpy() * norms).sum() / norms.sum())
    query = (
        f'RUN.probe("paths").query("step == {step}").pipe(lambda t: (t["length"] * '
        't["gradient_norm"]).sum() / t["gradient_norm"].sum())'
    )
    return Measured(value, query, float(last["length"].max()))


def input_correlation(run: Run) -> Measured:
    """Correlation of the gradients of inputs at the shallowest probed layer, at the first step."""
    rows = probe_rows(run, "shattering").dropna(subset=["layer"])
    if not len(rows):
        raise not_recorded("layers of probe shattering were", run, "record a model in eager mode")
    step = int(rows["step"].min())
    rows = rows[rows["step"] == step]
    depths = run.layers.set_index("layer")["depth"]
    owners = run.layers[run.layers["num_parameters"] > 0]["layer"]
    known = rows[rows["layer"].isin(owners)] if rows["layer"].isin(owners).any() else rows
    place = int(known["layer"].map(depths).fillna(np.inf).argmin())
    layer = int(known["layer"].iloc[place])
    value = float(rows[rows["layer"] == layer]["correlation"].iloc[0])
    query = (
        f'RUN.probe("shattering").query("step == {step} and layer == {layer}")'
        '["correlation"].iloc[0]'
    )
    return Measured(value, query)


def condition_number(run: Run) -> Measured:
    """Largest over smallest singular value of the whole network's Jacobian at the first probe."""
    step, rows = probe_rows_at(run, "jacobian", 0)
    name = _whole(run, rows)
    values = rows[rows["name"] == name]["singular_value"]
    query = (
        f'RUN.probe("jacobian").pipe(lambda t: t[(t["step"] == {step}) & (t["name"] == {name!r})])'
        '["singular_value"].pipe(lambda s: s.max() / s.min())'
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.float64(values.max()) / np.float64(values.min()))
    return Measured(value, query)


def _whole(run: Run, rows: pd.DataFrame) -> str:
    """The name under which the probe wrote the whole network: the one that is no join's."""
    joins = set(run.joins["name"])
    names = [str(name) for name in dict.fromkeys(rows["name"])]
    whole = [name for name in names if name == _NETWORK or name not in joins]
    return (whole or names)[-1]


def lesion_change(run: Run) -> Measured:
    """Median change of the loss without one branch, at the last step that was probed."""
    step, rows = probe_rows_at(run, "lesion", None)
    value = float(rows["loss_change"].median())
    query = f'RUN.probe("lesion").query("step == {step}")["loss_change"].median()'
    return Measured(value, query, abs(run_training(run).first_loss))

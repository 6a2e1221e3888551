"""The numbers of each claim about a pair of runs, and the expressions that give them again.

A query is built from literals and ids alone and uses what ``analyzer.open_run`` returns.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.comparison import THRESHOLDS as COMPARISON
from analyzer.analysis.gradient_flow import MedianGain, run_gain
from analyzer.analysis.per_run import remembered
from analyzer.analysis.training import run_training
from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = [
    "THRESHOLDS",
    "Numbers",
    "both",
    "decades_of_both",
    "exploding_decades",
    "final_losses",
    "first_layer_updates",
    "first_share",
    "gains",
    "limit",
    "relative_gradients",
    "share",
]

# All rows of a longer run take seconds to read; evenly spaced steps of it a tenth of that.
_LONG, _SPACED_STEPS = 20_000, 200

# name: (value, reason)
THRESHOLDS: dict[str, tuple[float, str]] = {
    "separated_decades": COMPARISON["unhealthy_decades"],
    "nearer_to_isometry": (
        0.5,
        "|ln gain| with shortcuts over |ln gain| without: half the slope, and not its noise",
    ),
    "times_larger": (10.0, "a decade, more than the spread between seeds and steps"),
    "most": (0.5, "more than the branches carry"),
    "identity": (0.99, "a branch that starts at zero gives exactly 1"),
    "short_paths": (0.5, "of the joins: the mean over all paths, each counted once"),
    "shattered": (
        0.1,
        "difference of correlations, above its noise for batches of 32 inputs",
    ),
    "better_conditioned": (0.5, "condition number with shortcuts over that without"),
    "loss_difference": COMPARISON["loss_difference"],
}


class Numbers(NamedTuple):
    """What was measured for one claim on one pair of runs.

    Args:
        plain: Number of the run without shortcuts; None where the claim has none.
        residual: Number of the run with them.
        query: The expression that gives the number, or both as a tuple.
        holds: Whether the claim holds.
    """

    plain: float | None
    residual: float | None
    query: str
    holds: bool


def limit(name: str) -> float:
    """Return the value of a threshold."""
    return THRESHOLDS[name][0]


def both(
    plain: Run, residual: Run, number: Callable[[Run], tuple[float, str]]
) -> tuple[float, float, str]:
    """Return one number of each run, and the query that gives them as a tuple.

    Args:
        plain: The run without shortcuts.
        residual: The run with them.
        number: Returns the number of a run and its query, in which ``RUN`` stands for the run.
    """
    (p, p_query), (r, r_query) = number(plain), number(residual)
    return p, r, f"({p_query.replace('RUN', 'plain')}, {r_query.replace('RUN', 'residual')})"


def decades_of_both(plain: Run, residual: Run) -> Numbers | None:
    """Decades that the fitted gradient falls from the last layer to the first."""
    p, r, query = both(plain, residual, lambda run: _gain(run, "decades_fallen"))
    if math.isnan(p) or math.isnan(r):
        return None
    return Numbers(p, r, query, p >= limit("separated_decades"))


def exploding_decades(plain: Run, residual: Run) -> Numbers | None:
    """Decades that it grows on that way."""
    p, r, query = both(plain, residual, lambda run: _gain(run, "log10_total"))
    if math.isnan(p) or math.isnan(r):
        return None
    return Numbers(p, r, query, max(p, r) >= limit("separated_decades"))


def gains(plain: Run, residual: Run) -> Numbers | None:
    """The gain per layer; 1 is isometry."""
    p, r, query = both(plain, residual, lambda run: _gain(run, "gain"))
    if not (p > 0 and r > 0):
        return None
    nearer = abs(math.log(r)) <= limit("nearer_to_isometry") * abs(math.log(p))
    return Numbers(p, r, query, nearer)


def _gain(run: Run, field: str) -> tuple[float, str]:
    """A field of the median gain of one run, and its query."""
    return float(getattr(_median_gain(run), field)), f"RUN.gain().{field}"


@remembered("layer_stats")
def _median_gain(run: Run) -> MedianGain:
    """The gain that three claims are about."""
    return run_gain(run)


def relative_gradients(plain: Run, residual: Run) -> Numbers | None:
    """``‖∂L/∂y_first‖ / ‖∂L/∂output‖``, median over steps: a larger output does not change it."""
    p, r, query = both(plain, residual, _relative)
    if math.isnan(p) or math.isnan(r):
        return None
    return Numbers(p, r, query, r > 0 and r >= limit("times_larger") * p)


def _relative(run: Run) -> tuple[float, str]:
    """The ratio of one run, and its query; of a long run at evenly spaced steps."""
    first, last = _ends(run)
    recorded = run.layer_steps()
    stride = len(recorded) // _SPACED_STEPS if len(recorded) > _LONG else 1
    some = recorded[::stride] if stride > 1 else None
    ratio = _ratio_of_layers(run, first, last, some)
    spaced = f", steps=RUN.layer_steps()[::{stride}]" if stride > 1 else ""
    query = (
        f'RUN.layer_stats("output_gradient_norm", layers=[{first}, {last}]{spaced})'
        '.pivot(index="step", columns="layer", values="output_gradient_norm")'
        f".pipe(lambda t: t[{first}] / t[{last}]).median()"
    )
    return ratio, query


def _ratio_of_layers(
    run: Run, first: int, last: int, steps: NDArray[np.int64] | None = None
) -> float:
    """Median over steps of one layer's output gradient norm over another's."""
    column = "output_gradient_norm"
    rows = run.layer_stats(column, layers=[first, last], steps=steps)
    table = rows.pivot(index="step", columns="layer", values=column)
    return float((table[first] / table[last]).median())


def _ends(run: Run) -> tuple[int, int]:
    """The shallowest layer with parameters and a gradient, and the deepest with a gradient.

    Raises:
        NotRecordedError: If no layer has one.
    """
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
    """Layers with an output gradient at any step."""
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


def share(plain: Run, residual: Run) -> Numbers | None:
    """Median share of the shortcuts over joins and steps."""
    shares = as_floats(residual.read("splits", "shortcut_share").column("shortcut_share"))
    known = shares[~np.isnan(shares)]
    r = float(np.median(known)) if len(known) else math.nan
    query = 'residual.splits()["shortcut_share"].median()'
    return None if math.isnan(r) else Numbers(None, r, query, r > limit("most"))


def first_share(plain: Run, residual: Run) -> Numbers | None:
    """Median share of the shortcuts at the first step that was split."""
    steps = residual.recorded_steps("splits")
    if not len(steps):
        return None
    step = int(steps[0])
    r = float(residual.splits(steps=step)["shortcut_share"].median())
    query = f'residual.splits(steps={step})["shortcut_share"].median()'
    return None if math.isnan(r) else Numbers(None, r, query, r >= limit("identity"))


def first_layer_updates(plain: Run, residual: Run) -> Numbers | None:
    """Median update ratio of the first trained weight."""
    p, r, query = both(plain, residual, _first_update)
    if math.isnan(p) or math.isnan(r):
        return None
    return Numbers(p, r, query, r > 0 and r >= limit("times_larger") * p)


def _first_update(run: Run) -> tuple[float, str]:
    """The update ratio of one run, and its query.

    Raises:
        NotRecordedError: If no trained weight belongs to a layer.
    """
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
    return float((kept["update_norm"] / kept["norm"]).median()), query


def final_losses(plain: Run, residual: Run) -> Numbers | None:
    """Median loss of the last 5 % of the steps."""
    a, b = run_training(plain), run_training(residual)
    if not a.num_losses or not b.num_losses:
        return None
    p, r = a.final_loss, b.final_loss
    scale = min(abs(a.first_loss), abs(b.first_loss))
    lower = math.isfinite(r) and not (p - r <= limit("loss_difference") * scale)
    return Numbers(p, r, "(plain.training().final_loss, residual.training().final_loss)", lower)

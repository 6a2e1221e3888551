"""The data that the lesson ships, as ``docs/lesson_data.py`` has recorded it."""

from functools import cache
from pathlib import Path

import pandas as pd

from analyzer.errors import AnalyzerError

__all__ = [
    "CHAINS",
    "NETS",
    "PLAIN",
    "RESIDUAL",
    "SOURCE",
    "at",
    "effective_length",
    "final_loss",
    "first_over_last",
    "short_part",
    "table",
]

DATA = Path(__file__).parent / "data"
PLAIN, RESIDUAL = NETS = ("plain", "residual")
SOURCE = (
    "Recorded: two networks of 28 convolutions (16 channels, no normalization, PyTorch's default "
    "weights, seed 0), equal but for the shortcut around each pair of convolutions, trained for "
    "200 steps on the 8x8 digits of scikit-learn (batches of 64, SGD with momentum 0.9, learning "
    "rate 0.02, gradients clipped to norm 1)."
)
CHAINS = (
    "Recorded: chains of 4, 8, 16 and 32 linear layers (64 features) with ReLUs, PyTorch's default "
    "weights unless said otherwise, with and without + x around each inner layer, trained for 300 "
    "steps on the digits of scikit-learn (batches of 64, SGD with momentum 0.9, learning rate "
    "0.02, gradients clipped to norm 1)."
)


@cache
def table(name: str) -> pd.DataFrame:
    """Return one table; it must not be changed.

    Raises:
        AnalyzerError: If the package was installed without it.
    """
    path = DATA / f"{name}.parquet"
    if not path.is_file():
        raise AnalyzerError(
            f"the lesson's table {path.name} is missing from the installed package; expected it "
            "beside analyzer/lesson. Install the package again, or run make lesson-data."
        )
    return pd.read_parquet(path)


def at(name: str, column: str, **values: object) -> float:
    """Return the one number of a table whose row has these values.

    Raises:
        KeyError: If no row, or more than one, has them.
    """
    rows = table(name)
    for key, value in values.items():
        rows = rows[rows[key] == value]
    if len(rows) != 1:
        raise KeyError(f"{len(rows)} rows of {name} have {values}")
    return float(rows[column].iloc[0])


def first_over_last(name: str, net: str, step: int) -> float:
    """Return the output gradient of the first layer of a net, divided by that of the last one."""
    rows = table(name)
    rows = rows[(rows["net"] == net) & (rows["step"] == step)].sort_values("depth")
    norms = rows["output_gradient_norm"].tolist()
    return float(norms[0] / norms[-1])


def final_loss(net: str) -> float:
    """Return the mean of the last tenth of the losses of a net of ``others_steps``."""
    rows = table("others_steps")
    losses = rows[rows["net"] == net].sort_values("step")["loss"]
    return float(losses.tail(len(losses) // 10).mean())


def effective_length(step: int) -> float:
    """Return the mean length of the paths at a step, weighted with the norms of the gradients."""
    rows = table("paths")
    rows = rows[rows["step"] == step].sort_values("length")
    return float((rows["length"] * rows["gradient_norm"]).sum() / rows["gradient_norm"].sum())


def short_part(step: int) -> float:
    """Return which part of the gradient norms at a step paths through at most 3 branches have."""
    rows = table("paths")
    rows = rows[rows["step"] == step]
    norms = rows["gradient_norm"]
    return float(norms[rows["length"] <= 3].sum() / norms.sum())

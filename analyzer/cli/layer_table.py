"""The table of layers of ``analyzer show``."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from analyzer.cli.flow_text import number
from analyzer.cli.terminal import Signs, printable, table_box
from analyzer.storage.run import Run

__all__ = ["layer_table"]

_ENDS = 20
_NAME_WIDTH, _KIND_WIDTH = 36, 16
_COUNTS = {
    "output_gradient_norm": "output_gradient_num_nonfinite",
    "activation_mean": "activation_num_nonfinite",
    "activation_std": "activation_num_nonfinite",
    "activation_zero_fraction": "activation_num_nonfinite",
}


def layer_table(run: Run, step: int, chosen: NDArray[np.bool_], signs: Signs) -> tuple[Table, str]:
    """Return the table of the chosen layers and a hint; the hint is empty for a whole table.

    Args:
        run: An opened run.
        step: The step whose statistics are listed.
        chosen: Which layers to list, ``[layers]``; of more than 40 the first and last 20.
        signs: What stdout can hold.
    """
    columns = [*dict.fromkeys([*_COUNTS, *_COUNTS.values()]), "activation_num_dead"]
    stats = run.layer_stats(columns=columns, steps=[step]).set_index("layer")
    layers = run.layers[chosen].set_index("layer").join(stats)
    table = _empty_table(signs)
    abbreviated = len(layers) > 2 * _ENDS
    for place, (_, row) in enumerate(layers.iterrows()):
        if not abbreviated or place < _ENDS or place >= len(layers) - _ENDS:
            table.add_row(*_cells(row, signs))
        elif place == _ENDS:
            table.add_row(Text(f"... {len(layers) - 2 * _ENDS:,} more"))
    hint = "Choose layers with --layers REGEX; analyzer export writes all of them."
    return table, hint if abbreviated else ""


def _empty_table(signs: Signs) -> Table:
    table = Table(box=table_box(), pad_edge=False, show_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for name in ("depth", "parameters", signs.norm, f"activation {signs.plus_minus} std"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("zeros", "dead"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(row: "pd.Series[float]", signs: Signs) -> list[Text]:
    """One row, as text that rich does not interpret."""
    norm, mean, std, zeros = (_measured(row, name, signs) for name in _COUNTS)
    dead = row["activation_num_dead"]
    values = (
        printable(str(row["name"]), _NAME_WIDTH),
        printable(str(row["kind"]), _KIND_WIDTH),
        f"{row['depth']}",
        f"{row['num_parameters']:,}",
        norm,
        f"{mean} {signs.plus_minus} {std}",
        zeros,
        signs.missing if pd.isna(dead) else f"{int(dead)}",
    )
    return [Text(value) for value in values]


def _measured(row: "pd.Series[float]", name: str, signs: Signs) -> str:
    """A number; NaN only where the table counts non-finite elements, else the sign for missing."""
    value, nonfinite = row[name], row[_COUNTS[name]]
    if pd.isna(value) and (pd.isna(nonfinite) or nonfinite == 0):
        return signs.missing
    return number(float("nan") if pd.isna(value) else float(value))

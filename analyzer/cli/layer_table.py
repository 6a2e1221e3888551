"""The table of layers of ``analyzer show``."""

from collections.abc import Mapping
from typing import Any

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
_KIND_WIDTH, _LEAST_NAME, _GAP = 16, 16, 2
_NUMBERS = (
    "output_gradient_norm",
    "activation_mean",
    "activation_std",
    "activation_zero_fraction",
)


def layer_table(
    run: Run, step: int, chosen: NDArray[np.bool_], marks: Signs, width: int
) -> tuple[Table, str]:
    """Return the table of the chosen layers and a hint; the hint is empty for a whole table.

    Args:
        run: An opened run.
        step: The step whose statistics are listed.
        chosen: Which layers to list, ``[layers]``; of more than 40 the first and last 20.
        marks: What stdout can hold.
        width: Columns of the terminal; names get what the numbers leave.
    """
    stats = run.read("layer_stats", [*_NUMBERS, "activation_num_dead"], steps=step)
    values = {row.pop("layer"): row for row in stats.to_pylist()}
    layers = run.layers[chosen]
    num_hidden = max(0, len(layers) - 2 * _ENDS)
    if num_hidden:
        layers = pd.concat([layers.head(_ENDS), layers.tail(_ENDS)])
    rows = [_cells(row, values.get(row["layer"], {}), marks) for _, row in layers.iterrows()]
    if num_hidden:
        rows.insert(_ENDS, [f"... {num_hidden:,} more", *[""] * (len(rows[0]) - 1)])
    hint = "Choose layers with --layers REGEX; analyzer export writes all of them."
    return _table(rows, marks, width), hint if num_hidden else ""


def _table(rows: list[list[str]], marks: Signs, width: int) -> Table:
    """The rows under their headings, names cut so that no number is."""
    activation = f"activation {marks.plus_minus} std"
    headings = ["layer", "kind", "depth", "params", marks.norm, activation, "zeros", "dead"]
    table = Table(box=table_box(), pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    taken = 0
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place > 1 else "left", no_wrap=True)
        if place:
            taken += max(map(len, [heading, *(row[place] for row in rows)])) + _GAP
    limit = max(_LEAST_NAME, width - taken)
    for name, *cells in rows:
        # Text, since rich would read brackets in a name as its markup.
        table.add_row(Text(printable(name, limit)), *map(Text, cells))
    return table


def _cells(layer: "pd.Series[Any]", values: Mapping[str, float | None], marks: Signs) -> list[str]:
    """One row."""
    norm, mean, std, zeros = (number(values.get(name), marks.missing) for name in _NUMBERS)
    dead = values.get("activation_num_dead")
    return [
        str(layer["name"]),
        printable(str(layer["kind"]), _KIND_WIDTH),
        f"{layer['depth']}",
        f"{layer['num_parameters']:,}",
        norm,
        f"{mean} {marks.plus_minus} {std}",
        zeros,
        marks.missing if dead is None else f"{dead}",
    ]

"""What is shown of a network at a step: the boxes that fit, their values, edges and shortcuts."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.flow_grid import flow_grid
from analyzer.analysis.network import Box, Network
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.per_run import recorded_step
from analyzer.analysis.view import View
from analyzer.storage.run import Run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.vocabulary import quantity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NetworkView", "network_view"]


@dataclass(frozen=True, eq=False)
class NetworkView:
    """What is shown of a network at a step.

    Args:
        network: All of it.
        is_open: Keys of the boxes that are open.
        boxes: What is shown, each before what it holds.
        edges: Keys of source and target of what is shown, and the join whose shortcut it is.
        step: The recorded step.
        quantity: What the colors say.
        values: By the key of what is closed the median over its layers; NaN where none is finite.
        broken: Keys of those in which a layer has NaN or an infinite value.
        shares: Shortcut share of each join by its id.
        low: Smallest value of the colors, a logarithm where ``is_log``.
    """

    run: str
    network: Network
    is_open: set[str]
    boxes: list[Box]
    edges: list[tuple[str, str, int | None]]
    step: int
    quantity: str
    values: dict[str, float]
    broken: set[str]
    shares: dict[int, float]
    low: float
    high: float
    is_log: bool

    @cached_property
    def caption(self) -> str:
        """What is shown, and between which values the closed boxes lie."""
        label = quantity(self.quantity).label
        layers = len({layer for box in self.boxes for layer in box.layers})
        shut = [box for box in self.boxes if box.key not in self.is_open]
        known = {b.key: v for b in shut if np.isfinite(v := self.values.get(b.key, np.nan))}
        text = (
            f"{self.run}, step {self.step:,}: {counted(layers, 'layer')} in "
            f"{counted(len(shut), 'node')}"
        )
        if known:
            low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
            text += f"; {label} from {number(known[low])} ({low}) to {number(known[high])} ({high})"
        if self.broken:
            text += f"; not finite in {counted(len(self.broken), 'node')}"
        if not self.network.has_edges:
            text += ". The data flow was not recorded: boxes stand in call order"
        return text + "."

    def table(self) -> "pd.DataFrame":
        """Return one row per box that is closed."""
        import pandas as pd

        shut = [box for box in self.boxes if box.key not in self.is_open]
        return pd.DataFrame(
            {
                "box": [box.key for box in shut],
                "kind": [box.kind for box in shut],
                "layers": [len(box.layers) for box in shut],
                self.quantity: [self.values.get(box.key, np.nan) for box in shut],
            }
        )


def network_view(
    whole: Network, view: View, opened: Iterable[str], closed: Iterable[str]
) -> NetworkView:
    """Return what is shown of the first run of a view.

    Raises:
        NotRecordedError: If the quantity was not recorded.
    """
    run = view.runs[0]
    is_open, boxes = whole.shown(opened, closed)
    stands = whole.standing(is_open)
    edges: dict[tuple[str, str], int | None] = {}
    for source, target in whole.edges:
        pair = stands[source], stands[target]
        if pair[0] != pair[1]:
            join, forks = whole.joins.get(target, (None, frozenset()))
            edges.setdefault(pair, None)
            if source in forks:
                edges[pair] = join
    table = "layer_stats" if view.quantity in STAT_COLUMNS["layer_stats"] else "parameter_stats"
    step = recorded_step(run, view.step, table)
    values = _by_layer(run, view.quantity, table, step)
    shut = [box for box in boxes if box.key not in is_open and box.layers]
    grid = flow_grid(View((run,), quantity=view.quantity, aggregate=view.aggregate))
    split = run.nearest_step(view.step, "splits")
    shares: dict[int, float] = {}
    if split is not None:
        ids, found = run.profile("shortcut_share", split)
        shares = dict(zip(ids.tolist(), found.tolist(), strict=True))
    return NetworkView(
        run=run.name,
        network=whole,
        is_open=is_open,
        boxes=boxes,
        edges=[(*pair, join) for pair, join in edges.items()],
        step=step,
        quantity=view.quantity,
        values={box.key: _median(values, box.layers) for box in shut},
        broken={box.key for box in shut if _is_broken(values, box.layers)},
        shares=shares,
        low=grid.low,
        high=grid.high,
        is_log=grid.is_log,
    )


Values = dict[int, list[float]]


def _by_layer(run: Run, column: str, table: str, step: int) -> Values:
    """The values of each layer, or of the parameters that it uses first."""
    rows = run.read(table, column, steps=step)
    layers: list[int | None] = rows.column(table.removesuffix("_stats")).to_pylist()
    if table == "parameter_stats":
        own = run.static_rows("parameters").select(["parameter", "layer"]).to_pylist()
        of = {row["parameter"]: row["layer"] for row in own}
        layers = [None if id_ is None else of.get(id_) for id_ in layers]
    found: Values = {}
    # Null is what was not measured; NaN was.
    for layer, value in zip(layers, rows.column(column).to_pylist(), strict=True):
        if layer is not None and value is not None:
            found.setdefault(layer, []).append(value)
    return found


def _of(values: Values, layers: Iterable[int]) -> NDArray[np.float64]:
    return np.array([value for layer in layers for value in values.get(layer, ())], np.float64)


def _median(values: Values, layers: Iterable[int]) -> float:
    found = _of(values, layers)
    finite = found[np.isfinite(found)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _is_broken(values: Values, layers: Iterable[int]) -> bool:
    return not bool(np.isfinite(_of(values, layers)).all())

"""Two runs side by side: which rows of them are the same, and how much their numbers differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analyzer.errors import AnalyzerError
from analyzer.storage.arrays import as_floats, as_numpy
from analyzer.storage.run import Run

__all__ = ["Alignment", "Sides", "aligned", "apart", "relative_difference", "rows_of"]

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Alignment:
    """Which rows of two runs are the same: ids of the one, ids of the other.

    Args:
        how: ``name``, or ``call order and shape`` where names differ.
        unmatched: Names that only one of the runs has, the left one's first.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    names: tuple[str, ...]
    other_names: tuple[str, ...]
    how: str
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]


def relative_difference(left: Floats, right: Floats, scale: Floats | None = None) -> Floats:
    """Return ``|a - b| / max(|a|, |b|)``, or over ``max(|a|, |b|, scale)``.

    0 where both are equal, NaN or infinite alike; infinite where only one is NaN or infinite.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.maximum(np.abs(left), np.abs(right))
        if scale is not None:
            size = np.fmax(size, scale)
        apart = np.abs(left - right) / size
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    apart[same] = 0.0
    apart[~same & ~(np.isfinite(left) & np.isfinite(right))] = np.inf
    return apart


def aligned(left: Sequence[tuple[str, Any]], right: Sequence[tuple[str, Any]]) -> Alignment:
    """Align rows of two runs: by name, or by order and shape where names differ.

    Args:
        left: Name and shape of each row of the first run, in call order.
        right: Those of the second.
    """
    names = [name for name, _ in left], [name for name, _ in right]
    common = set(names[0]) & set(names[1])
    keys = [
        [name if name in common else repr(shape) for name, shape in rows] for rows in (left, right)
    ]
    blocks = SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_matching_blocks()
    pairs = [(b.a + k, b.b + k) for b in blocks for k in range(b.size)]
    # The order of names may differ; their place in the other run is known nevertheless.
    seen = {a for a, _ in pairs}, {b for _, b in pairs}
    at = {name: place for place, name in enumerate(names[1])}
    for place, name in enumerate(names[0]):
        if place not in seen[0] and name in common and at[name] not in seen[1]:
            pairs.append((place, at[name]))
    pairs.sort()
    taken = {a for a, _ in pairs}, {b for _, b in pairs}
    lost = tuple(
        tuple(name for place, name in enumerate(some) if place not in used)
        for some, used in zip(names, taken, strict=True)
    )
    is_by_name = all(names[0][a] == names[1][b] for a, b in pairs)
    return Alignment(
        tuple(a for a, _ in pairs),
        tuple(b for _, b in pairs),
        tuple(names[0][a] for a, _ in pairs),
        tuple(names[1][b] for _, b in pairs),
        "name" if is_by_name else "call order and shape",
        (lost[0], lost[1]),
    )


class Sides:
    """The numbers of aligned rows of two runs."""

    def __init__(self, left: Run, right: Run) -> None:
        self.runs = left, right
        self.layers = aligned(*(_layers(run) for run in self.runs))
        self.parameters = aligned(*(_parameters(run) for run in self.runs))
        if not self.layers.left:
            raise AnalyzerError(
                f"no layer of '{left.name}' has the name, or the shape and place, of one of "
                f"'{right.name}'; expected two runs of one network. Compare them with: analyzer "
                f"compare {left.name} {right.name}"
            )

    def steps(self) -> Steps:
        """Return the steps of which both have layers."""
        left, right = (run.layer_steps() for run in self.runs)
        return left[np.isin(left, right)]

    def read(
        self, table: str, columns: Sequence[str], steps: Steps, rank: int | None = None
    ) -> list[Floats]:
        """Return the numbers of both runs, ``[steps, rows, columns]``; NaN where there is none.

        A row is an aligned layer or parameter; ``steps`` has one. Of all ranks together, or as one
        of them has recorded them.
        """
        if table == "steps":
            return [_grid(run, table, columns, [0], steps, rank) for run in self.runs]
        rows = self.layers if table == "layer_stats" else self.parameters
        return [
            _grid(run, table, columns, ids, steps, rank)
            for run, ids in zip(self.runs, (rows.left, rows.right), strict=True)
        ]

    def owners(self) -> list[int]:
        """Return the place of the layer of each aligned parameter; -1 for one without."""
        ids = self.runs[0].static_rows("parameters").column("layer").to_pylist()
        place_of = {layer: place for place, layer in enumerate(self.layers.left)}
        return [place_of.get(ids[one], -1) for one in self.parameters.left]

    def readers(self) -> list[list[int]]:
        """Return the aligned layers that read the output of each: by the data flow of the first
        run, over layers that the other has not; by the next call where it is not recorded.
        """
        ids = self.layers.left
        rows = self.runs[0].static_rows("edges")
        if not rows.num_rows:
            return [[place + 1] if place + 1 < len(ids) else [] for place in range(len(ids))]
        place_of = {layer: place for place, layer in enumerate(ids)}
        onward: dict[int, list[int]] = {}
        ends = (rows.column(name).to_pylist() for name in ("source", "target"))
        for source, target in zip(*ends, strict=True):
            onward.setdefault(source, []).append(target)
        return [sorted(_first_of(layer, onward, place_of)) for layer in ids]


def _first_of(layer: int, onward: dict[int, list[int]], place_of: dict[int, int]) -> set[int]:
    """The places of the aligned layers that come next after one."""
    found, seen, waiting = set(), set(), list(onward.get(layer, []))
    while waiting:
        target = waiting.pop()
        if target in place_of:
            found.add(place_of[target])
        elif target not in seen:
            seen.add(target)
            waiting += onward.get(target, [])
    return found


def _layers(run: Run) -> list[tuple[str, Any]]:
    rows = run.static_rows("layers").select(["name", "output_shape", "num_parameters"]).to_pylist()
    return [(r["name"], (r["output_shape"], r["num_parameters"])) for r in rows]


def _parameters(run: Run) -> list[tuple[str, Any]]:
    rows = run.static_rows("parameters").select(["name", "shape"]).to_pylist()
    return [(r["name"], r["shape"]) for r in rows]


def rows_of(
    run: Run, table: str, columns: Sequence[str], steps: int | slice, rank: int | None
) -> pa.Table:
    """Return rows of some steps, of all ranks together or as one of them has recorded them."""
    if rank is None:
        return run.read(table, list(columns), steps=steps)
    rows = run.read(table, list(columns), steps=steps, ranks="all")
    return rows.filter(pc.equal(rows.column("rank"), rank))


def _grid(
    run: Run,
    table: str,
    columns: Sequence[str],
    ids: Sequence[int],
    steps: Steps,
    rank: int | None,
) -> Floats:
    grid = np.full((len(steps), len(ids), len(columns)), np.nan)
    if not len(ids):
        return grid
    rows = rows_of(run, table, columns, slice(int(steps[0]), int(steps[-1]) + 1), rank)
    found = as_numpy(rows.column("step"))
    key = {"layer_stats": "layer", "parameter_stats": "parameter"}.get(table)
    numbers = as_numpy(rows.column(key)) if key else np.zeros(len(found), np.int64)
    place_of = np.full(max([*ids, *numbers.tolist()]) + 1, -1)
    place_of[list(ids)] = np.arange(len(ids))
    at = np.searchsorted(steps, found).clip(0, len(steps) - 1)
    places = place_of[numbers]
    kept = (steps[at] == found) & (places >= 0)
    for k, column in enumerate(columns):
        grid[at[kept], places[kept], k] = as_floats(rows.column(column))[kept]
    return grid


def apart(columns: Sequence[str], left: Floats, right: Floats) -> Floats:
    """Return relative differences, ``[steps, rows, columns]``.

    Signed statistics of a tensor are compared with its largest element.

    A column that one of the runs has not recorded at a step says nothing.
    """
    scale = np.zeros(left.shape)
    ends = [k for k, name in enumerate(columns) if name.endswith(("_min", "_max"))]
    if ends:
        largest = np.nanmax(np.abs(np.nan_to_num(np.stack([left, right])[..., ends])), axis=(0, 3))
        for k, name in enumerate(columns):
            if name.endswith(("_mean", "_std", "_min", "_max")):
                scale[..., k] = largest
    found = relative_difference(left, right, scale)
    missing = [np.isnan(side).all(axis=1, keepdims=True) for side in (left, right)]
    found[np.broadcast_to(missing[0] | missing[1], found.shape)] = 0.0
    return found

"""Joins as arcs over the axis of depth, from fork to join, with their shortcut shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import grouped
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = [
    "MOST_ARCS",
    "SHARE_LEVELS",
    "JoinArcs",
    "join_arcs",
    "nesting",
    "share_grid",
    "share_level",
]

Floats = NDArray[np.float64]
# Upper bounds of the levels in which arcs are drawn; a share can exceed 1 where parts cancel.
SHARE_LEVELS = (0.2, 0.4, 0.6, 0.8, float("inf"))
MOST_ARCS = 64


@dataclass(frozen=True, eq=False)
class JoinArcs:
    """The joins of one run along depth, by their forks.

    Args:
        joins: Row of the table of joins, ``[arcs]``.
        names: Their names.
        shortcuts: ``identity``, ``projection`` or ``concat``.
        starts: Depth of the layer before the branch: the fork, ``[arcs]``.
        ends: Depth of the last layer of branch and shortcut: the join, ``[arcs]``.
        levels: 1 for an arc that holds no other, else one more than the highest inside.
        shares: Shortcut share at the step shown; NaN where it is null or was not recorded.
        step: The step of the shares; None where no split was recorded.
        num_unplaced: Joins without a known layer, which are left out.
        size: Joins per arc, neighbors along depth; above 1 the arcs are a band of their medians.
    """

    joins: NDArray[np.int32]
    names: tuple[str, ...]
    shortcuts: tuple[str, ...]
    starts: Floats
    ends: Floats
    levels: NDArray[np.int64]
    shares: Floats
    step: int | None
    num_unplaced: int
    size: int = 1

    @property
    def median_share(self) -> float:
        """Median of the known shares; NaN without one."""
        known = self.shares[np.isfinite(self.shares)]
        return float(np.median(known)) if len(known) else float("nan")

    def thinned(self, most: int = MOST_ARCS) -> "JoinArcs":
        """Return the same arcs, or where there are more than that, neighbors put together.

        A group reaches from its first fork to its last join and shows the median of its shares.
        """
        size = -(-len(self.joins) // most)
        if size <= 1:
            return self
        firsts = np.arange(0, len(self.joins), size)
        lasts = np.minimum(firsts + size, len(self.joins)) - 1
        return JoinArcs(
            self.joins[firsts],
            tuple(f"{self.names[a]} … {self.names[b]}" for a, b in zip(firsts, lasts, strict=True)),
            tuple(self.shortcuts[a] for a in firsts),
            self.starts[firsts],
            np.maximum.reduceat(self.ends, firsts),
            np.ones(len(firsts), np.int64),
            grouped(np.where(np.isfinite(self.shares), self.shares, np.nan), size, "median"),
            self.step,
            self.num_unplaced,
            size,
        )


def nesting(starts: Floats, ends: Floats) -> NDArray[np.int64]:
    """Return how high each arc must rise to stand over those that it holds.

    Args:
        starts: Left ends, ``[arcs]``.
        ends: Right ends, ``[arcs]``.

    Returns:
        1 for an arc that holds no other; else one more than the highest arc within it.
    """
    levels = np.ones(len(starts), np.int64)
    for at in np.argsort(ends - starts, kind="stable"):
        shorter = ends - starts < ends[at] - starts[at]
        inside = shorter & (starts >= starts[at]) & (ends <= ends[at])
        if inside.any():
            levels[at] = levels[inside].max() + 1
    return levels


def share_level(shares: Floats) -> NDArray[np.int64]:
    """Return the level of each share, from 0; −1 where the share is not known."""
    levels = np.searchsorted(SHARE_LEVELS, np.maximum(shares, 0.0), side="right")
    known: NDArray[np.int64] = np.where(np.isfinite(shares), levels, -1).astype(np.int64)
    return known


def join_arcs(run: Run, step: int | None) -> JoinArcs:
    """Return the joins of a run with their shares at the recorded split nearest to a step.

    Returns:
        The arcs; none for a run without joins.
    """
    rows, layers = run.static_rows("joins"), run.static_rows("layers")
    names = layers.column("name").to_pylist()
    depth_of = dict(zip(names, as_floats(layers.column("depth")).tolist(), strict=True))
    joins = rows.to_pylist()
    spans = [_span(depth_of, row) for row in joins]
    placed = [k for k, span in enumerate(spans) if span is not None]
    starts, ends = (np.array([s[side] for s in spans if s is not None], float) for side in (0, 1))
    order = np.lexsort((ends, starts))
    kept, starts, ends = [joins[placed[k]] for k in order], starts[order], ends[order]
    ids = np.array([row["join"] for row in kept], np.int32)
    at = run.nearest_step(step, "splits") if len(ids) else None
    return JoinArcs(
        ids,
        tuple(str(row["name"]) for row in kept),
        tuple(str(row["shortcut"]) for row in kept),
        starts,
        ends,
        nesting(starts, ends),
        _shares(run, ids, at),
        at,
        len(joins) - len(placed),
    )


def _span(depth_of: dict[str, float], row: Mapping[Any, object]) -> tuple[float, float] | None:
    """Depth of fork and join; None where no layer of the branch is known."""
    branch, shortcut = (
        [depth_of[name] for name in _names(row[key]) if name in depth_of]
        for key in ("branch_layers", "shortcut_layers")
    )
    if not branch:
        return None
    return min(branch) - 1, max(branch + shortcut)


def _names(cell: object) -> list[str]:
    return [str(name) for name in cell] if isinstance(cell, list) else []


def _shares(run: Run, ids: NDArray[np.int32], step: int | None) -> Floats:
    if step is None:
        return np.full(len(ids), np.nan)
    found, values = run.profile("shortcut_share", step)
    share_of = dict(zip(found.tolist(), values.tolist(), strict=True))
    return np.array([share_of.get(int(join), np.nan) for join in ids], np.float64)


def share_grid(run: Run, arcs: JoinArcs, most: int = 200) -> tuple[NDArray[np.int64], Floats]:
    """Return the shortcut shares over steps, means of the bins of the overview.

    Returns:
        Steps ``[splits]`` and shares ``[splits, arcs]``; both empty without a split.
    """
    if not len(arcs.joins) or arcs.step is None:
        return np.zeros(0, np.int64), np.zeros((0, len(arcs.joins)))
    found = run.grid("shortcut_share", "mean", most)
    place = {int(id_): at for at, id_ in enumerate(found.ids)}
    shares = np.full((len(found.steps), len(arcs.joins)), np.nan)
    for arc, join in enumerate(arcs.joins):
        if int(join) in place:
            shares[:, arc] = found.values[place[int(join)]]
    return found.steps, shares

"""What shortcuts carry: joins as arcs over the axis of depth, with their shares over the steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import grouped, smoothed
from analyzer.analysis.clock import step_places
from analyzer.analysis.numerals import counted, percent
from analyzer.analysis.per_run import RunRecord, not_recorded, per_run, profile_values
from analyzer.analysis.view import RunLabel, View, row_set, stage_borders
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = [
    "SHARE_LEVELS",
    "JoinArcs",
    "ShortcutStrip",
    "SplitCurves",
    "join_arcs",
    "nesting",
    "share_grid",
    "share_level",
    "shortcut_strip",
    "split_series",
]

Floats = NDArray[np.float64]
# Upper bounds of the levels in which arcs are drawn; a share can exceed 1 where parts cancel.
SHARE_LEVELS = (0.2, 0.4, 0.6, 0.8, float("inf"))
_MOST_ARCS = 64
_MOST_STRIP_ARCS = 110
_MOST_POINTS, _MOST_LINES = 300, 12


@dataclass(frozen=True, eq=False)
class JoinArcs:
    """The joins of one run along depth, by their forks.

    Args:
        joins: Row of the table of joins, ``[arcs]``.
        shortcuts: ``identity``, ``scaled``, ``gated``, ``projection`` or ``concat``.
        starts: Depth of the layer before the branch: the fork, ``[arcs]``.
        ends: Depth of the last layer of branch and shortcut: the join, ``[arcs]``.
        levels: 1 for an arc that holds no other, else one more than the highest inside.
        shares: Shortcut share at the step shown; NaN where it is null or was not recorded.
        step: The step of the shares; None where no split was recorded.
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
    size: int = 1

    @property
    def median_share(self) -> float:
        """Median of the known shares; NaN without one."""
        known = self.shares[np.isfinite(self.shares)]
        return float(np.median(known)) if len(known) else float("nan")

    def thinned(self, most: int = _MOST_ARCS) -> "JoinArcs":
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
            size,
        )


def nesting(starts: Floats, ends: Floats) -> NDArray[np.int64]:
    """Return how high each arc, ``[arcs]``, must rise to stand over those that it holds.

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

    Joins of which no layer is known are left out.
    """
    rows, layers = run.static_rows("joins"), run.static_rows("layers")
    names = layers.column("name").to_pylist()
    depth_of = dict(zip(names, as_floats(layers.column("depth")).tolist(), strict=True))
    spans = [(_span(depth_of, row), row) for row in rows.to_pylist()]
    placed = sorted(((span, row) for span, row in spans if span), key=lambda one: one[0])
    starts, ends = (np.array([span[side] for span, _ in placed], float) for side in (0, 1))
    ids = np.array([row["join"] for _, row in placed], np.int32)
    at = run.nearest_step(step, "splits") if len(ids) else None
    return JoinArcs(
        ids,
        tuple(str(row["name"]) for _, row in placed),
        tuple(str(row["shortcut"]) for _, row in placed),
        starts,
        ends,
        nesting(starts, ends),
        np.full(len(ids), np.nan) if at is None else profile_values(run, "shortcut_share", at, ids),
        at,
    )


def _span(depth_of: dict[str, float], row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Depth of fork and join; None where no layer of the branch is known."""
    branch, shortcut = (
        [depth_of[name] for name in row[key] or () if name in depth_of]
        for key in ("branch_layers", "shortcut_layers")
    )
    if not branch:
        return None
    return min(branch) - 1, max(branch + shortcut)


def share_grid(
    run: Run, arcs: JoinArcs, most: int = 200, column: str = "shortcut_share"
) -> tuple[NDArray[np.int64], Floats]:
    """Return the shortcut shares (or another column) over steps, means of the overview's bins.

    Steps ``[splits]`` and shares ``[splits, arcs]``; both empty without a split.
    """
    if not len(arcs.joins) or arcs.step is None:
        return np.zeros(0, np.int64), np.zeros((0, len(arcs.joins)))
    found = run.grid(column, "mean", most)
    place = {int(id_): at for at, id_ in enumerate(found.ids)}
    shares = np.full((len(found.steps), len(arcs.joins)), np.nan)
    for arc, join in enumerate(arcs.joins):
        if int(join) in place:
            shares[:, arc] = found.values[place[int(join)]]
    return found.steps, shares


@dataclass(frozen=True, eq=False)
class ShortcutStrip(RunRecord):
    """The network of one run as a strip in depth order, with one arc per join.

    Args:
        positions: Place of each layer along depth.
        arcs: The joins; a band of groups where there are many.
        stages: Depth and name at which a stage begins.
    """

    positions: Floats
    names: tuple[str, ...]
    arcs: JoinArcs
    stages: tuple[tuple[float, str], ...]
    num_joins: int

    def sentence(self) -> str:
        """Return the median share of the shortcuts, and the joins with the least and the most."""
        joins = counted(self.num_joins, "join")
        if self.arcs.step is None or not np.isfinite(self.arcs.median_share):
            return (
                f"{self.label.text}: {joins}; shares were not recorded (add `--splits-every 10`)."
            )
        shares = self.arcs.shares
        low, high = (int(pick(shares)) for pick in (np.nanargmin, np.nanargmax))
        least, most = (f"{self.arcs.names[k]} ({percent(shares[k])})" for k in (low, high))
        return (
            f"{self.label.text}: at step {self.arcs.step}, {joins} carry "
            f"{percent(self.arcs.median_share)} of the gradient through their shortcuts (median), "
            f"least at {least}, most at {most}."
        )

    def cells(self) -> Mapping[str, Any]:
        """Return one row per join, or group of joins."""
        return {
            "step": self.arcs.step,
            "join": self.arcs.joins,
            "name": self.arcs.names,
            "shortcut": self.arcs.shortcuts,
            "fork_depth": self.arcs.starts,
            "join_depth": self.arcs.ends,
            "shortcut_share": self.arcs.shares,
        }


@per_run
def shortcut_strip(view: View, run: Run, label: RunLabel) -> ShortcutStrip:
    """Read the joins of every run with their shares at the step of the view."""
    arcs = join_arcs(run, view.step)
    if not len(arcs.joins):
        reason = "the recorder saw no join in its network; the manifest names hidden ones"
        raise not_recorded("joins were", run, reason)
    layers = row_set(run, "output_gradient_norm")
    stages = stage_borders(layers.names, layers.positions)
    drawn = arcs.thinned(_MOST_STRIP_ARCS)
    return ShortcutStrip(label, layers.positions, layers.names, drawn, stages, len(run.joins))


@dataclass(frozen=True, eq=False)
class SplitCurves(RunRecord):
    """Shortcut shares of one run over the steps: the median over joins, and how far they differ.

    Args:
        steps: First step of each bin, ``[points]``.
        names: Joins drawn one by one; none where there are more than twelve.
        shares: Their shares, ``[points, names]``.
        smooth: The median smoothed; None where that was not asked for.
        at: Place of each bin on an axis of epochs or of time; None on one of steps.
    """

    steps: NDArray[np.int64]
    median: Floats
    low: Floats
    high: Floats
    names: tuple[str, ...]
    shares: Floats
    smooth: Floats | None
    at: Floats | None

    columns: ClassVar[Mapping[str, str]] = {
        "step": "steps",
        "min_shortcut_share": "low",
        "median_shortcut_share": "median",
        "max_shortcut_share": "high",
    }

    def sentence(self) -> str:
        """Return the median share at the first and at the last step."""
        known = np.flatnonzero(np.isfinite(self.median))
        if not len(known):
            return f"{self.label.text}: no shortcut share is finite."
        start, end = (
            f"{percent(self.median[at])} at step {self.steps[at]}" for at in known[[0, -1]]
        )
        if len(known) == 1:
            return f"{self.label.text}: the median shortcut share is {start}."
        return f"{self.label.text}: the median shortcut share goes from {start} to {end}."

    def cells(self) -> Mapping[str, Any]:
        """Return one row per step, with the joins that are drawn one by one."""
        return {**super().cells(), **dict(zip(self.names, self.shares.T, strict=True))}


@per_run
def split_series(view: View, run: Run, label: RunLabel) -> SplitCurves:
    """Read the shortcut shares of every run over its steps."""
    arcs = join_arcs(run, view.step)
    steps, shares = share_grid(run, arcs, _MOST_POINTS)
    if not len(steps):
        remedy = "a net without joins has none; else add `--splits-every 10`"
        raise not_recorded("splits were", run, remedy)
    count = shares.shape[1]
    low, median, high = (grouped(shares, count, how)[:, 0] for how in ("min", "median", "max"))
    few = count <= _MOST_LINES
    names = arcs.names if few else ()
    smooth = smoothed(median, view.smooth) if view.smooth else None
    lines = shares if few else shares[:, :0]
    at = step_places(run, view.over, steps)
    return SplitCurves(label, steps, median, low, high, names, lines, smooth, at)

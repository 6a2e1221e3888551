"""What shortcuts carry: joins as arcs over the axis of depth, with their shares over the steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import grouped, smoothed
from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.per_run import RunAtStep, RunRecord, not_recorded, per_run, profile_values
from analyzer.analysis.view import RunLabel, View, row_set, stage_borders
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = [
    "SHARE_LEVELS",
    "JoinArcs",
    "ResidualStream",
    "ShortcutStrip",
    "SplitCurves",
    "StreamCurves",
    "join_arcs",
    "nesting",
    "residual_stream",
    "share_grid",
    "share_level",
    "shortcut_strip",
    "split_series",
    "stream_series",
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
    """

    steps: NDArray[np.int64]
    median: Floats
    low: Floats
    high: Floats
    names: tuple[str, ...]
    shares: Floats
    smooth: Floats | None

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
    smooth = smoothed(median) if view.smooth else None
    lines = shares if few else shares[:, :0]
    return SplitCurves(label, steps, median, low, high, names, lines, smooth)


_NO_STREAM = (
    "runs of schema version 1 have none; else the net has no join, or one that was not seen"
)


@dataclass(frozen=True, eq=False)
class ResidualStream(RunAtStep):
    """The residual stream of one run along depth: how large it is, and how much each block writes.

    Args:
        names: Joins, by depth.
        positions: Depth of each join, ``[joins]``.
        before: ‖s‖, the stream before the block writes; ``written``: ‖b‖; ``after``: ‖s + b‖.
        cosines: cos(s, b); NaN where one of the two is zero, and in a concatenation.
        ends_in_norm: Whether a normalization follows the last join.
    """

    names: tuple[str, ...]
    positions: Floats
    before: Floats
    written: Floats
    after: Floats
    cosines: Floats
    ends_in_norm: bool

    columns: ClassVar[Mapping[str, str]] = {
        "step": "step",
        "join": "names",
        "depth": "positions",
        "shortcut_output_norm": "before",
        "branch_output_norm": "written",
        "join_output_norm": "after",
        "output_cosine": "cosines",
    }

    @property
    def last_word(self) -> str:
        """What the stream after the last join is called."""
        return "before the final norm" if self.ends_in_norm else "after the last join"

    def sentence(self) -> str:
        """Return the first and the last norm of the stream, and what blocks write to it."""
        known = np.flatnonzero(np.isfinite(self.after))
        first, last = (number(float(self.after[at])) for at in known[[0, -1]])
        text = (
            f"{self.where}: the norm of the stream is {first} after {self.names[known[0]]} and "
            f"{last} {self.last_word} ({self.names[known[-1]]})"
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.written / self.before
        if np.isfinite(ratio).any():
            least = int(np.nanargmin(np.where(np.isfinite(ratio), ratio, np.nan)))
            middle = number(float(np.median(ratio[np.isfinite(ratio)])))
            text += (
                f"; a block writes {middle} of it (median), "
                f"{number(float(ratio[least]))} at least ({self.names[least]})"
            )
        return f"{text}."


@per_run
def residual_stream(view: View, run: Run, label: RunLabel) -> ResidualStream:
    """Read ‖s‖, ‖b‖ and ‖s + b‖ at the joins of every run, at the split nearest to the step.

    Reference:
        De and Smith (2020), Batch normalization biases residual blocks towards the identity
        function in deep networks, section 3.
    """
    arcs = join_arcs(run, view.step)
    order = np.argsort(arcs.ends, kind="stable")
    names = ("shortcut_output_norm", "branch_output_norm", "join_output_norm", "output_cosine")
    at = -1 if arcs.step is None else arcs.step
    before, written, after, cosines = (
        profile_values(run, name, at, arcs.joins[order])
        if arcs.step is not None
        else np.full(len(order), np.nan)
        for name in names
    )
    if not np.isfinite(after).any():
        raise not_recorded("norms of what joins add were", run, _NO_STREAM)
    layers = run.static_rows("layers")
    ends, kinds = arcs.ends[order], layers.column("kind").to_pylist()
    behind = np.flatnonzero(as_floats(layers.column("depth")) > ends[-1])
    ends_in_norm = any("norm" in str(kinds[place]).lower() for place in behind)
    words = tuple(arcs.names[place] for place in order)
    return ResidualStream(label, at, words, ends, before, written, after, cosines, ends_in_norm)


@dataclass(frozen=True, eq=False)
class StreamCurves(RunRecord):
    """The residual stream of one run over the steps.

    Args:
        steps: First step of each bin, ``[points]``.
        low: The smallest ‖s + b‖ of all joins; ``high``: the largest.
        last: That of the last join.
        written: The median of ‖b‖.
        smooth: ``last`` smoothed; None where that was not asked for.
    """

    steps: NDArray[np.int64]
    low: Floats
    high: Floats
    last: Floats
    written: Floats
    smooth: Floats | None

    columns: ClassVar[Mapping[str, str]] = {
        "step": "steps",
        "min_join_output_norm": "low",
        "max_join_output_norm": "high",
        "last_join_output_norm": "last",
        "median_branch_output_norm": "written",
    }

    def sentence(self) -> str:
        """Return the norm of the stream after the last join, at the first and the last step."""
        known = np.flatnonzero(np.isfinite(self.last))
        if not len(known):
            return f"{self.label.text}: no norm of the stream is finite."
        start, end = (
            f"{number(float(self.last[at]))} at step {self.steps[at]}" for at in known[[0, -1]]
        )
        to = f" goes from {start} to {end}" if len(known) > 1 else f" is {start}"
        return f"{self.label.text}: the norm of the stream after the last join{to}."


@per_run
def stream_series(view: View, run: Run, label: RunLabel) -> StreamCurves:
    """Read the residual stream of every run over its steps."""
    arcs = join_arcs(run, view.step)
    steps, after = share_grid(run, arcs, _MOST_POINTS, "join_output_norm")
    if not np.isfinite(after).any():
        raise not_recorded("norms of what joins add were", run, _NO_STREAM)
    _, written = share_grid(run, arcs, _MOST_POINTS, "branch_output_norm")
    count = after.shape[1]
    low, high = (grouped(after, count, how)[:, 0] for how in ("min", "max"))
    last = after[:, int(np.argmax(arcs.ends))]
    middle = grouped(written, count, "median")[:, 0]
    return StreamCurves(
        label, steps, low, high, last, middle, smoothed(last) if view.smooth else None
    )

"""Numbers of runs as lines: many runs as few, those of one value of an argument by their mean."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import Band, smoothed, spaced_places
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.per_run import AlongDepth, InOneRange, RunRecord
from analyzer.analysis.view import RunLabel, View, has_shortcuts, run_labels, run_styles
from analyzer.storage.pairs import arguments
from analyzer.storage.run import Run

__all__ = [
    "Group",
    "StepCurve",
    "StepCurves",
    "group_choices",
    "grouped_curves",
    "grouped_profiles",
    "groups",
    "mean_band",
    "mean_of",
]

Floats = NDArray[np.float64]
_SHORTCUTS, _ALL_BUT_SEED = "with or without shortcuts", "all but the seed"
_MOST_POINTS = 600


@dataclass(frozen=True)
class Group:
    """Runs that are drawn together.

    Args:
        label: What they have in common, and how they look.
        members: Texts of the labels of the runs.
    """

    label: RunLabel
    members: tuple[str, ...]


def group_choices(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return by what runs can be grouped: arguments that differ, shortcuts, all but the seed."""
    given = [arguments(run.manifest) for run in runs]
    names = dict.fromkeys(name for one in given for name in one)
    differing = tuple(n for n in names if len({one.get(n) for one in given}) > 1)
    both = len({has_shortcuts(run) for run in runs}) > 1
    more = (*[_SHORTCUTS][: int(both)], *[_ALL_BUT_SEED][: int(len(runs) > 1)])
    return (*differing, *(name for name in more if name not in differing))


def groups(runs: Sequence[Run], by: str) -> tuple[Group, ...]:
    """Return runs in groups, in the order in which the first of each comes.

    Args:
        runs: The runs.
        by: One of ``group_choices``; another name has one group of what lacks it.
    """
    labels = run_labels(runs)
    given = [arguments(run.manifest) for run in runs]
    found: dict[str, list[RunLabel]] = {}
    for label, own in zip(labels, given, strict=True):
        found.setdefault(_text(by, label, own, given), []).append(label)
    shortcuts = [all(label.has_shortcuts for label in members) for members in found.values()]
    made = []
    for has, style, (text, members) in zip(
        shortcuts, run_styles(shortcuts), found.items(), strict=True
    ):
        count = f" ({len(members)} runs)" if len(members) > 1 else ""
        names = tuple(label.text for label in members)
        made.append(Group(RunLabel(f"{text}{count}", has, style), names))
    return tuple(made)


def _text(
    by: str, label: RunLabel, own: Mapping[str, str], given: Sequence[Mapping[str, str]]
) -> str:
    if by == _ALL_BUT_SEED:
        names = dict.fromkeys(n for one in given for n in one if n != "seed")
        differing = [n for n in names if len({one.get(n) for one in given}) > 1]
        said = [f"{n} {own.get(n, '–')}" for n in differing]
        return ", ".join([*said, f"{'with' if label.has_shortcuts else 'without'} shortcuts"])
    if by == _SHORTCUTS:
        return f"{'with' if label.has_shortcuts else 'without'} shortcuts"
    return f"{by} {own.get(by, '–')}"


def mean_of(rows: Floats) -> tuple[Floats, Floats, Floats]:
    """Return smallest, mean and largest of the finite values of each column, ``[rows, points]``.

    NaN where a column has no finite value.
    """
    finite = np.where(np.isfinite(rows), rows, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns without a value
        low, high = np.nanmin(finite, axis=0), np.nanmax(finite, axis=0)
        return low, np.nanmean(finite, axis=0), high


def mean_band(bands: Sequence[Band], keep: float = 0.0) -> Band:
    """Return the mean of several series, with the smallest and the largest as its band.

    Each is read at all places of all of them (of more than 600 at evenly spaced ones), between two
    of its own by a straight line, and nowhere before its first or after its last. What is not
    finite is left out of the mean, and counted.

    Args:
        bands: At least one series; its middles are averaged.
        keep: Strength of smoothing, as in `bands.smoothed`; 0 for none.
    """
    places = [np.asarray(b.steps if b.x is None else b.x, np.float64) for b in bands]
    known = [np.isfinite(place) for place in places]
    grid = np.unique(np.concatenate([p[k] for p, k in zip(places, known, strict=True)]))
    grid = grid[spaced_places(len(grid), _MOST_POINTS)] if len(grid) else grid
    rows = np.full((len(bands), len(grid)), np.nan)
    bad = np.zeros(len(grid), np.int64)
    for row, band, place, is_known in zip(rows, bands, places, known, strict=True):
        if not is_known.any():
            continue
        xs, ys = place[is_known], band.middle[is_known]
        row[:] = np.interp(grid, xs, ys, left=np.nan, right=np.nan)
        at = np.searchsorted(grid, xs).clip(max=len(grid) - 1)
        np.add.at(bad, at, band.num_nonfinite[is_known])
    low, middle, high = mean_of(rows)
    first = next((k for k, one in enumerate(known) if one.any()), 0)
    at = places[first][known[first]]
    steps = np.rint(np.interp(grid, at, bands[first].steps[known[first]])) if len(at) else grid
    return Band(
        steps.astype(np.int64),
        low,
        middle,
        high,
        bad,
        max(2, *(band.width for band in bands)),
        smoothed(middle, keep) if keep else None,
        None if bands[0].x is None else grid,
    )


@dataclass(frozen=True, eq=False)
class StepCurve(RunRecord):
    """One number of one run over its steps.

    ``name`` tells it from other curves of the run, of which one may stand behind another. It may be
    the mean of several runs.
    """

    quantity: str
    name: str
    band: Band
    text: str = ""
    is_behind: bool = False
    num_runs: int = 1

    def sentence(self) -> str:
        """Return the finding about this run with its number; empty for a curve behind another."""
        return self.text

    def cells(self) -> Mapping[str, Any]:
        """Return one row per bin of steps."""
        middle = "median" if self.num_runs == 1 else "mean"
        return {"quantity": self.name or self.quantity, **self.band.cells(middle)}


StepCurves = InOneRange[StepCurve]
"""One kind of number over the steps of all runs, a run may have several curves."""


def grouped_curves(view: View, curves: Sequence[StepCurve]) -> tuple[StepCurve, ...]:
    """Return the mean of the curves of one name in each group of the runs of a view.

    A curve that is alone in its group stays as it is.
    """
    made = []
    for group in groups(view.runs, view.group):
        own = [curve for curve in curves if curve.label.text in group.members]
        for name in dict.fromkeys(curve.name for curve in own):
            same = [curve for curve in own if curve.name == name]
            if len(same) == 1:
                made.append(replace(same[0], label=group.label))
                continue
            shown = mean_band([curve.band for curve in same], view.smooth)
            text = "" if same[-1].is_behind else _mean_sentence(group.label, same, shown)
            last = replace(same[-1], band=shown, text=text, num_runs=len(same))
            made.append(replace(last, label=group.label))
    return tuple(made)


def _mean_sentence(label: RunLabel, same: Sequence[StepCurve], shown: Band) -> str:
    """Where the mean of several runs begins and ends, how far they lie apart, and which broke."""
    what = same[0].name or same[0].quantity
    known = np.flatnonzero(np.isfinite(shown.middle))
    text = f"{label.text}: mean {what}"
    if len(known):
        first, last = known[[0, -1]]
        ends = f"{number(shown.low[last])} to {number(shown.high[last])}"
        text += (
            f" {number(shown.middle[first])} at step {shown.steps[first]}, "
            f"{number(shown.middle[last])} at step {shown.steps[last]} ({ends})"
        )
    broken = sum(bool(curve.band.num_nonfinite.any()) for curve in same)
    if broken:
        text += f"; NaN or infinite in {broken} of {counted(len(same), 'run')}"
    return f"{text}."


def grouped_profiles(view: View, curves: Sequence[AlongDepth]) -> tuple[AlongDepth, ...]:
    """Return the mean of the profiles of each group, with ``min`` and ``max`` among its values.

    Where runs of a group have other layers than the rest, each of them stays as it is.
    """
    made: list[AlongDepth] = []
    for group in groups(view.runs, view.group):
        own = [curve for curve in curves if curve.label.text in group.members]
        if len(own) < 2 or len({curve.names for curve in own}) > 1:
            made += own
            continue
        low, middle, high = mean_of(np.array([curve.values[view.quantity] for curve in own]))
        values = {view.quantity: middle, "min": low, "max": high}
        ends = [f"{number(middle[at])} ({own[0].names[at]})" for at in (0, -1)]
        text = f"the mean of {len(own)} runs goes from {ends[0]} to {ends[1]}."
        made.append(replace(own[0], label=group.label, values=values, text=text))
    return tuple(made)

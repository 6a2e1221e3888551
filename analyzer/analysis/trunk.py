"""The output gradient along the trunk of a network: what shortcuts are there to keep alive.

A layer inside a branch that is scaled by 0.01 sees a gradient a hundred times smaller, and nothing
vanishes: it stands beside the trunk.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.bands import spaced_places
from analyzer.analysis.gradient_flow import DepthProfile, Gain, depth_profile, gain
from analyzer.analysis.per_run import remembered
from analyzer.analysis.view import has_shortcuts
from analyzer.storage.arrays import as_floats, as_numpy, is_present
from analyzer.storage.run import Run

__all__ = ["MedianTrunk", "Trunk", "median_trunk", "trunk", "trunk_history", "trunk_steps"]

_MOST_STEPS = 15
# Layers on either side of a fall that must lie below, or above, it.
_SIDE = 3

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trunk:
    """The output gradient along the trunk of a network at one step.

    Args:
        gain: Fitted over the trunk, see `gain`.
        span: ``log10(max / min)`` of the norms along it.
        drop: Largest fall from one place of the trunk to the next one before it, in decades, that
            up to three places on either side confirm: ``log10(min after / max before)``. NaN with
            fewer than two places.
        cliff: ``drop`` beyond the median fall between neighbors, where that is one; 0 where the
            gradient is cut, since what is lost is all of it.
        drop_layer: Name of the layer, or join, at whose output the gradient is the larger one: the
            fall happens on the way through it.
        num_places: Layers and joins that count.
        ends: Names of the first and the last of them; empty where there is none.
        is_cut: Whether the gradient is exactly zero at the first place, and not at all.
    """

    step: int
    gain: Gain
    span: float
    drop: float
    cliff: float
    drop_layer: str
    num_places: int
    is_cut: bool
    ends: tuple[str, str] = ("", "")

    @property
    def decades_fallen(self) -> float:
        """Decades that the fit falls from the last layer to the first; negative where it grows.

        Infinite where a gradient arrives at some place, and exactly none at the first.
        """
        return math.inf if self.is_cut else self.gain.decades_fallen

    @property
    def decades_grown(self) -> float:
        """The same as growth."""
        return -self.decades_fallen


def trunk_steps(run: Run) -> NDArray[np.int64]:
    """Return the recorded steps at which the trunk can be judged: with shortcuts, split ones."""
    recorded = run.layer_steps()
    if not has_shortcuts(run):
        return recorded
    split = run.recorded_steps("splits")
    split = split[np.isin(split, recorded)]  # both in order: nothing is sorted
    return split if len(split) else recorded


@remembered("layer_stats")
def trunk(run: Run, step: int) -> Trunk:
    """Return what the output gradient does along the trunk at one step.

    The trunk of a residual network are its layers with parameters outside of branches and
    shortcuts, and the sums at its joins, with the gradient that was split there. Of a plain
    network, and where no join was split, it is every layer with parameters.
    """
    profile = depth_profile(run, step)
    depths, norms, names = _places(run, profile, _join_gradients(run, step))
    fit = gain(depths, norms)
    usable = np.isfinite(norms) & (norms > 0)
    logs = np.log10(norms[usable])
    drop, at = _largest_drop(depths[usable], logs)
    where = [name for name, is_usable in zip(names, usable, strict=True) if is_usable]
    is_cut = bool(len(norms) and norms[0] == 0 and usable.any())
    cliff = drop - max(0.0, float(np.median(np.diff(logs)))) if len(logs) > 1 else math.nan
    return Trunk(
        step=step,
        gain=fit,
        span=float(logs.max() - logs.min()) if len(logs) else math.nan,
        drop=drop,
        cliff=0.0 if is_cut else cliff,
        drop_layer=where[at] if at is not None else "",
        num_places=len(names),
        is_cut=is_cut,
        ends=(names[0], names[-1]) if names else ("", ""),
    )


def _join_gradients(run: Run, step: int) -> dict[int, float]:
    """The gradient at the sum of each join that was split at this step."""
    if not has_shortcuts(run):
        return {}
    rows = run.read("splits", "join_gradient_norm", steps=step)
    known = is_present(rows.column("join_gradient_norm"))
    norms = as_floats(rows.column("join_gradient_norm"))[known]
    joins = as_numpy(rows.column("join"))[known]
    return dict(zip(joins.tolist(), norms.tolist(), strict=True))


def _places(
    run: Run, profile: DepthProfile, joins: dict[int, float]
) -> tuple[Floats, Floats, list[str]]:
    """Depths, gradient norms and names of the trunk, by depth."""
    chosen = profile.has_parameters & profile.measured
    names = np.array(profile.names, object)
    depths, norms = profile.depths, profile.norms
    if joins:
        roles = run.static_rows("layers").column("role").to_pylist()
        chosen &= np.array([role is None for role in roles], bool)
        rows = run.static_rows("joins").select(["join", "name", "branch_layers"]).to_pylist()
        depth_of = dict(zip(profile.names, profile.depths.tolist(), strict=True))
        found = [
            (max(inside), joins[row["join"]], row["name"])
            for row in rows
            if row["join"] in joins
            and (inside := [depth_of[k] for k in row["branch_layers"] or () if k in depth_of])
        ]
        # Half a layer on: the sum comes after the last layer of its branch.
        depths = np.append(depths[chosen], [at + 0.5 for at, _, _ in found])
        norms = np.append(norms[chosen], [norm for _, norm, _ in found])
        names = np.append(names[chosen], np.array([name for _, _, name in found], object))
    else:
        depths, norms, names = depths[chosen], norms[chosen], names[chosen]
    order = np.argsort(depths, kind="stable")
    return depths[order], norms[order], names[order].tolist()


def _largest_drop(depths: Floats, logs: Floats) -> tuple[float, int | None]:
    """The largest fall between neighbors going backward, and the place from which it falls.

    Places of one depth are parallel: nothing falls from one to another.
    """
    best, at = math.nan, None
    for place in np.flatnonzero(np.diff(depths) > 0) + 1:
        fall = logs[place : place + _SIDE].min() - logs[max(0, place - _SIDE) : place].max()
        if not fall <= best:
            best, at = float(fall), int(place)
    return best, at


@dataclass(frozen=True)
class MedianTrunk:
    """Medians of `Trunk` over at most 15 evenly spaced steps; NaN where no step has a fit.

    Args:
        gain: Factor of the gradient for each layer, going backward.
        decades_fallen: From the last layer to the first; negative where it grows.
        drop: The largest fall at one place.
        steps: The steps.
        low: Lower quartile of ``decades_fallen`` over the steps; ``high``: the upper one.
    """

    gain: float
    decades_fallen: float
    drop: float
    steps: tuple[int, ...]
    low: float
    high: float

    @property
    def decades_grown(self) -> float:
        """The same as growth."""
        return -self.decades_fallen


@remembered("layer_stats")
def trunk_history(run: Run) -> tuple[Trunk, ...]:
    """Return what the gradient does along the trunk at 15 evenly spaced steps, or at all."""
    recorded = trunk_steps(run)
    chosen = recorded[spaced_places(len(recorded), _MOST_STEPS)]
    return tuple(trunk(run, int(step)) for step in chosen)


@remembered("layer_stats")
def median_trunk(run: Run) -> MedianTrunk:
    """Return the medians over steps of what the gradient does along the trunk."""
    kept = [one for one in trunk_history(run) if not math.isnan(one.decades_fallen)]
    if not kept:
        return MedianTrunk(math.nan, math.nan, math.nan, (), math.nan, math.nan)
    fallen = np.array([one.decades_fallen for one in kept])
    # Of infinite ones a quantile between two is NaN.
    low, middle, high = (float(x) for x in np.quantile(fallen, (0.25, 0.5, 0.75), method="nearest"))
    return MedianTrunk(
        gain=float(np.median([0.0 if one.is_cut else one.gain.gain for one in kept])),
        decades_fallen=middle,
        drop=float(np.median([one.drop for one in kept])),
        steps=tuple(one.step for one in kept),
        low=low,
        high=high,
    )

"""The output gradient along the depth of a network, and its gain per layer going backward.

Output gradients are those of the loss as the script computes it, usually the mean over the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyzer.analysis.bands import spaced_places
from analyzer.analysis.numerals import decades_fallen, number
from analyzer.storage.arrays import as_floats, as_numpy, is_present
from analyzer.storage.run import Run

__all__ = [
    "ROUTE",
    "DepthFacts",
    "DepthProfile",
    "Gain",
    "MedianGain",
    "Trend",
    "depth_profile",
    "fall_words",
    "gain",
    "gain_clause",
    "median_gain",
    "profile_gain",
    "relative_depth",
    "run_gain",
    "span_decades",
    "trend_of",
]

ROUTE = "from the last layer to the first"
"""The way of the gradient, as sentences write it."""

_MAX_DENSE_LAYERS = 500
_MAX_PAIRS = _MAX_DENSE_LAYERS * (_MAX_DENSE_LAYERS - 1) // 2
_MOST_STEPS = 15
# Decades of change along depth: one learning rate then serves layers whose gradients differ a
# thousandfold; and what trained residual nets with batch norm stay within.
_UNHEALTHY, _HEALTHY = 3.0, 1.5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DepthProfile:
    """Output gradient norms of one step, one row per layer in call order.

    Args:
        kinds: Class names of the modules.
        depths: Layers on the longest path from the input, counted from the first.
        norms: ``‖∂L/∂y‖₂``, in units of loss per unit of y; NaN also where nothing was recorded.
        measured: Whether the backward pass reached the layer; False is a null in the table.
        has_parameters: Whether the layer owns parameters.
    """

    step: int
    names: list[str]
    kinds: list[str]
    depths: Floats
    norms: Floats
    measured: NDArray[np.bool_]
    has_parameters: NDArray[np.bool_]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Layers with a finite gradient above zero: those that a logarithm can show."""
        return self.measured & np.isfinite(self.norms) & (self.norms > 0)

    @property
    def is_zero(self) -> NDArray[np.bool_]:
        """Layers whose output gradient is exactly zero."""
        zero: NDArray[np.bool_] = self.measured & (self.norms == 0)
        return zero

    @property
    def is_nonfinite(self) -> NDArray[np.bool_]:
        """Layers whose output gradient holds NaN or is infinite."""
        nonfinite: NDArray[np.bool_] = self.measured & ~np.isfinite(self.norms)
        return nonfinite


def span_decades(profile: DepthProfile) -> float:
    """Return ``log10(max ‖∂L/∂y‖ / min ‖∂L/∂y‖)`` over layers with parameters and a gradient.

    0 or more; NaN without such a layer.
    """
    norms = profile.norms[profile.has_parameters & profile.usable]
    if not len(norms):
        return math.nan
    return float(np.log10(norms.max()) - np.log10(norms.min()))


def relative_depth(depths: ArrayLike) -> Floats:
    """Return depth mapped to [0, 1], first layer to last, so that networks of any depth compare.

    ``(d − d_min) / (d_max − d_min)``; zeros where all depths are equal.
    """
    x = np.asarray(depths, np.float64)
    if not len(x):
        return x
    reach = x.max() - x.min()
    relative: Floats = (x - x.min()) / (reach if reach > 0 else 1.0)
    return relative


def depth_profile(run: Run, step: int) -> DepthProfile:
    """Read the profile of one step, every layer of the run in call order.

    A null, from a layer that no gradient reached, is not measured; NaN is. A step without layer
    statistics gives a profile without a measured layer.
    """
    (profile,) = depth_profiles(run, [step])
    return profile


def depth_profiles(run: Run, steps: Sequence[int]) -> list[DepthProfile]:
    """Read the profiles of some steps, as `depth_profile`, all at once.

    Of many ranks each file is read once, not once for each step.
    """
    layers = run.static_rows("layers")
    known = as_numpy(layers.column("layer"))
    names, kinds = layers.column("name").to_pylist(), layers.column("kind").to_pylist()
    depths = as_floats(layers.column("depth"))
    has_parameters = as_floats(layers.column("num_parameters")) > 0
    rows = run.read("layer_stats", "output_gradient_norm", steps=list(steps))
    column, ids = rows.column("output_gradient_norm"), as_numpy(rows.column("layer"))
    recorded, values, is_there = (
        as_numpy(rows.column("step")),
        as_floats(column),
        is_present(column),
    )
    is_known = np.isin(ids, known)
    found = []
    for step in steps:
        at = np.flatnonzero(is_known & (recorded == step))
        place = np.searchsorted(known, ids[at])
        norms, measured = np.full(len(known), np.nan), np.zeros(len(known), bool)
        norms[place], measured[place] = values[at], is_there[at]
        found.append(DepthProfile(step, names, kinds, depths, norms, measured, has_parameters))
    return found


@dataclass(frozen=True)
class Gain:
    """The fitted change of the output gradient per layer, going backward.

    Args:
        gain: Factor per layer of depth; 1 is isometry, below 1 vanishes, above 1 explodes. NaN
            where fewer than 2 usable layers of different depth exist.
        log10_total: Decimal logarithm of the fitted ratio, first layer over last; negative where
            the gradient falls going backward. NaN together with ``gain``.
        num_layers: Layers that the fit used.
        num_zero: Layers left out because their gradient is exactly zero.
        num_nonfinite: Layers left out because their gradient is NaN or infinite.
        depths: First and last depth of all layers given; NaN without one.
        log10_last: Decimal logarithm of the fitted norm at the last depth: the line runs through
            the median of what it leaves.
    """

    gain: float
    log10_total: float
    num_layers: int
    num_zero: int = 0
    num_nonfinite: int = 0
    depths: tuple[float, float] = (math.nan, math.nan)
    log10_last: float = math.nan

    @property
    def ends(self) -> tuple[float, float]:
        """Decimal logarithms of the fitted norms at the first and the last depth."""
        return self.log10_last + self.log10_total, self.log10_last

    @property
    def decades_fallen(self) -> float:
        """Decades that the fit falls from the last layer to the first; negative where it grows."""
        # Not −x: a gain of 1 falls by 0 decades, not by −0.
        return 0.0 - self.log10_total

    @property
    def is_defined(self) -> bool:
        """Whether there was enough to fit."""
        return not math.isnan(self.gain)


@dataclass(frozen=True)
class MedianGain:
    """Medians of the gain over steps.

    Args:
        gain: Median factor per layer over the steps that have one; NaN where none has.
        log10_total: Median of ``Gain.log10_total`` over the same steps.
        num_steps: Steps that have a gain.
        num_undefined: Steps without one.
    """

    gain: float
    log10_total: float
    num_steps: int
    num_undefined: int

    @property
    def decades_fallen(self) -> float:
        """Median decades from the last layer to the first; negative where it grows."""
        return 0.0 - self.log10_total


@lru_cache(maxsize=4)
def _pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs i < j of n items, or evenly spaced ones of that list where it is too long.

    Kept, not to be changed: at each step of a run they are the same.
    """
    total = n * (n - 1) // 2
    if total > _MAX_PAIRS:  # all of 20,000 layers would be 1.6 GB
        picked = np.linspace(0, total - 1, _MAX_PAIRS).round().astype(np.int64)
    else:
        picked = np.arange(total, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(np.arange(n - 1, 0, -1))])
    first = np.searchsorted(starts, picked, side="right") - 1
    return first, picked - starts[first] + first + 1


def _theil_sen_slope(x: Floats, y: Floats) -> float:
    """Median slope over pairs of different x; NaN where there is no such pair."""
    if len(x) < 2:
        return math.nan
    first, second = _pairs(len(x))
    run = x[second] - x[first]
    apart = run != 0
    if not apart.any():
        return math.nan
    rise = y[second] - y[first]
    # A median, since a few layers of another scale (the stem, the head) would turn a mean.
    return float(np.median(rise[apart] / run[apart]))


def gain(depths: ArrayLike, norms: ArrayLike) -> Gain:
    """Fit the gain of the output gradient per layer, going backward.

    ``gain = exp(−slope)`` with the Theil–Sen slope of ``ln ‖∂L/∂y‖`` against depth: the median over
    pairs of layers, pairs of equal depth skipped, evenly spaced pairs above 500 layers. The total
    is ``exp(−slope · (d_last − d_first))`` over the depths of all layers given, left out or not.

    Args:
        depths: Depth of each layer, ``[layers]``; callers give layers with parameters only.
        norms: ``‖∂L/∂y‖₂`` of each layer's output gradient, ``[layers]``. Zero and non-finite norms
            are left out of the fit and counted.

    Returns:
        The gain, without unit; NaN with its counts where fewer than 2 usable layers, or only
        layers of equal depth, are left.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Sen (1968), Estimates of the regression coefficient based on Kendall's tau.
    """
    x, y = np.asarray(depths, np.float64), np.asarray(norms, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"depths have shape {x.shape} and norms {y.shape}; expected one norm for each depth, "
            "both 1-D. Pass the two columns of one table."
        )
    finite = np.isfinite(y)
    used = finite & (y > 0)
    logs = np.log(y[used])
    slope = _theil_sen_slope(x[used], logs)
    ends = (float(x.min()), float(x.max())) if len(x) else (math.nan, math.nan)
    reach = ends[1] - ends[0] if len(x) else 0.0
    has_line = not math.isnan(slope)
    last = float(np.median(logs - slope * (x[used] - ends[1]))) if has_line else math.nan
    return Gain(
        gain=_exp(-slope),
        log10_total=-slope * reach / math.log(10),
        num_layers=int(used.sum()),
        num_zero=int((finite & (y == 0)).sum()),
        num_nonfinite=int((~finite).sum()),
        depths=ends,
        log10_last=last / math.log(10),
    )


def _exp(x: float) -> float:
    """The exponential; infinite rather than an error beyond float64."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp(x))


def profile_gain(profile: DepthProfile) -> Gain:
    """Fit the gain over the layers of a profile that own parameters and received a gradient."""
    rows = profile.has_parameters & profile.measured
    return gain(profile.depths[rows], profile.norms[rows])


def median_gain(gains: Sequence[Gain]) -> MedianGain:
    """Return the medians over steps, of the steps that have a gain; NaN where none has."""
    defined = [g for g in gains if g.is_defined]
    return MedianGain(
        gain=float(np.median([g.gain for g in defined])) if defined else math.nan,
        log10_total=float(np.median([g.log10_total for g in defined])) if defined else math.nan,
        num_steps=len(defined),
        num_undefined=len(gains) - len(defined),
    )


def run_gain(run: Run, steps: NDArray[np.int64] | None = None) -> MedianGain:
    """Return the median gain over at most 15 evenly spaced steps, of those given or of all."""
    recorded = run.layer_steps() if steps is None else steps
    chosen = recorded[spaced_places(len(recorded), _MOST_STEPS)].tolist()
    return median_gain([profile_gain(one) for one in depth_profiles(run, chosen)])


class Trend(Enum):
    """What the norms of the output gradient do along depth at one step."""

    VANISHING = "vanishing"
    EXPLODING = "exploding"
    HEALTHY = "healthy"
    BETWEEN = "between"
    UNKNOWN = "unknown"


def trend_of(fallen: float, span: float = 0.0, lost: int = 0) -> Trend:
    """Return the norms along depth in one word.

    ``fallen`` and ``span`` are in decades, NaN without a fit; ``lost`` counts layers whose gradient
    is zero or not finite.
    """
    if math.isnan(fallen):
        return Trend.UNKNOWN
    if abs(fallen) >= _UNHEALTHY:
        return Trend.VANISHING if fallen > 0 else Trend.EXPLODING
    return Trend.HEALTHY if max(abs(fallen), span) <= _HEALTHY and not lost else Trend.BETWEEN


@dataclass(frozen=True)
class DepthFacts:
    """The fit to the gradient of one run at one step, and the decades that its norms span."""

    gain: Gain
    span_decades: float

    @property
    def trend(self) -> Trend:
        """The norms along depth in one word."""
        lost = self.gain.num_zero + self.gain.num_nonfinite
        return trend_of(self.gain.decades_fallen, self.span_decades, lost)


def gain_clause(fit: Gain) -> str:
    """Return what a fitted gain says, as a clause: how far the gradient falls, and the gain."""
    if not fit.is_defined:
        lost = fit.num_zero + fit.num_nonfinite
        return f"no gain can be fitted ({fit.num_layers} usable layers, {lost} zero or non-finite)"
    fallen = fit.decades_fallen
    factor = f"gain {number(fit.gain)} per layer"
    return f"{factor}: ‖∂L/∂y‖ {fall_words(fallen)}"


def fall_words(fallen: float) -> str:
    """Return the decades that a gradient falls, told from those at which a trend begins."""
    return decades_fallen(fallen, None, (_HEALTHY, _UNHEALTHY))

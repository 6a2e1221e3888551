"""The gain of the output gradient per layer of depth, going backward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyzer.analysis.depth_profile import DepthProfile

__all__ = ["Gain", "MedianGain", "gain", "median_gain", "profile_gain"]

_MAX_DENSE_LAYERS = 500
_MAX_PAIRS = _MAX_DENSE_LAYERS * (_MAX_DENSE_LAYERS - 1) // 2

Floats = NDArray[np.float64]


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
    """

    gain: float
    log10_total: float
    num_layers: int
    num_zero: int = 0
    num_nonfinite: int = 0

    @property
    def total_gain(self) -> float:
        """The fitted ratio from the last layer to the first; 0 or inf beyond float64."""
        with np.errstate(over="ignore", under="ignore"):
            return float(np.power(10.0, self.log10_total))

    @property
    def decades_fallen(self) -> float:
        """Decades that the fit falls from the last layer to the first; negative where it grows."""
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


def _pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs i < j of n items, or evenly spaced ones of that list where it is too long."""
    total = n * (n - 1) // 2
    picked = np.arange(total, dtype=np.int64)
    if total > _MAX_PAIRS:
        picked = np.linspace(0, total - 1, _MAX_PAIRS).round().astype(np.int64)
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
    return float(np.median(rise[apart] / run[apart]))


def gain(depths: ArrayLike, norms: ArrayLike) -> Gain:
    """Fit the gain of the output gradient per layer, going backward.

    ``gain = exp(−slope)`` with the Theil–Sen slope of ``ln ‖δ‖`` against depth: the median over
    pairs of layers, pairs of equal depth skipped, evenly spaced pairs above 500 layers. The total
    is ``exp(−slope · (d_last − d_first))`` over the depths of all layers given, left out or not.

    Args:
        depths: Depth of each layer, ``[layers]``; callers give layers with parameters only.
        norms: ``‖δ‖₂`` of each layer's output gradient, ``[layers]``. Zero and non-finite norms
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
    slope = _theil_sen_slope(x[used], np.log(y[used]))
    reach = float(x.max() - x.min()) if len(x) else 0.0
    return Gain(
        gain=_exp(-slope),
        log10_total=-slope * reach / math.log(10),
        num_layers=int(used.sum()),
        num_zero=int((finite & (y == 0)).sum()),
        num_nonfinite=int((~finite).sum()),
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
    """Return the medians over steps, of the steps that have a gain.

    Args:
        gains: One fit per step, in any order.

    Returns:
        The medians and the number of steps on either side; NaN where no step has a gain.
    """
    defined = [g for g in gains if g.is_defined]
    return MedianGain(
        gain=float(np.median([g.gain for g in defined])) if defined else math.nan,
        log10_total=float(np.median([g.log10_total for g in defined])) if defined else math.nan,
        num_steps=len(defined),
        num_undefined=len(gains) - len(defined),
    )

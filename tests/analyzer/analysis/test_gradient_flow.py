import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import theilslopes

from analyzer.analysis.gradient_flow import (
    DepthProfile,
    Gain,
    gain,
    median_gain,
    profile_gain,
    relative_depth,
    span_decades,
)


def profile(
    norms: list[float],
    *,
    depths: list[int] | None = None,
    measured: list[bool] | None = None,
    owns: list[bool] | None = None,
) -> DepthProfile:
    n = len(norms)
    return DepthProfile(
        step=0,
        names=[f"layers.{i}" for i in range(n)],
        kinds=["Linear"] * n,
        depths=np.array(depths if depths is not None else range(n), float),
        norms=np.array(norms, float),
        measured=np.array(measured or [True] * n),
        has_parameters=np.array(owns or [True] * n),
    )


@pytest.mark.parametrize("a", [0.5, 1.0, 1.7, 1e-3])
def test_a_chain_that_multiplies_by_a_has_gain_a(a: float) -> None:
    n = 50
    norms = [a ** (n - 1 - k) for k in range(n)]
    fit = gain(range(n), norms)
    assert fit.gain == pytest.approx(a, rel=1e-12)
    assert 10**fit.log10_total == pytest.approx(a ** (n - 1), rel=1e-9)
    assert fit.decades_fallen == pytest.approx(-(n - 1) * math.log10(a), abs=1e-9)
    assert (fit.num_layers, fit.num_zero, fit.num_nonfinite) == (50, 0, 0)


def test_the_slope_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    depths = rng.integers(0, 30, 80)
    norms = np.exp(0.2 * depths + rng.standard_t(2, 80))
    expected = theilslopes(np.log(norms), depths).slope
    assert gain(depths, norms).gain == pytest.approx(math.exp(-expected), rel=1e-12)


def test_above_500_layers_evenly_spaced_pairs_agree_with_all_pairs() -> None:
    rng = np.random.default_rng(1)
    depths = np.arange(900)
    norms = np.exp(-0.01 * depths + rng.normal(size=900))
    expected = theilslopes(np.log(norms), depths).slope
    assert gain(depths, norms).gain == pytest.approx(math.exp(-expected), rel=1e-3)
    exact = gain(depths, np.exp(0.05 * depths))
    assert exact.gain == pytest.approx(math.exp(-0.05), rel=1e-12)


def slow_slope(x: np.ndarray, y: np.ndarray, most: int) -> float:
    """The median over pairs, or over evenly spaced ones of the list of all, made pair by pair."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]
    if len(pairs) > most:
        pairs = [pairs[k] for k in np.linspace(0, len(pairs) - 1, most).round().astype(int)]
    slopes = [(y[j] - y[i]) / (x[j] - x[i]) for i, j in pairs if x[i] != x[j]]
    return float(np.median(slopes))


@pytest.mark.parametrize("layers", [2, 3, 500, 501, 700])
def test_the_slope_is_that_of_a_list_of_all_pairs(layers: int) -> None:
    rng = np.random.default_rng(layers)
    depths = np.sort(rng.integers(0, layers, layers)) + np.arange(layers) // 2
    norms = np.exp(0.01 * depths + rng.normal(size=layers))
    expected = slow_slope(depths.astype(float), np.log(norms), 500 * 499 // 2)
    assert gain(depths, norms).gain == math.exp(-expected)


def test_the_slope_of_many_layers_takes_no_memory_for_all_pairs() -> None:
    layers = 20_000
    depths = np.arange(layers)
    tracemalloc.start()
    fit = gain(depths, np.exp(1e-3 * depths))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fit.gain == pytest.approx(math.exp(-1e-3), rel=1e-12)
    assert peak < 50e6  # all 200 million pairs would be 1.6 GB


def test_zero_and_nonfinite_layers_are_left_out_and_counted() -> None:
    fit = gain(range(6), [0.0, 0.25, math.nan, 1.0, math.inf, 4.0])
    assert fit.gain == pytest.approx(0.5)
    assert (fit.num_layers, fit.num_zero, fit.num_nonfinite) == (3, 1, 2)
    assert 10**fit.log10_total == pytest.approx(0.5**5)  # the reach counts the layers left out too


@pytest.mark.parametrize(
    ("depths", "norms"), [([], []), ([3], [1.0]), ([2, 2], [1.0, 5.0]), ([0, 1], [0.0, 1.0])]
)
def test_too_few_layers_have_no_gain(depths: list[int], norms: list[float]) -> None:
    fit = gain(depths, norms)
    assert math.isnan(fit.gain)
    assert math.isnan(10**fit.log10_total)
    assert not fit.is_defined
    assert fit.num_layers + fit.num_zero == len(norms)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"depths have shape \(2,\) and norms \(3,\)"):
        gain([0, 1], [1.0, 2.0, 3.0])


def test_gradients_beyond_float32_keep_their_gain() -> None:
    fit = gain(range(100), [10.0 ** (-3 * (99 - k)) for k in range(100)])
    assert fit.gain == pytest.approx(1e-3, rel=1e-9)
    assert fit.log10_total == pytest.approx(-297)


def test_the_fit_uses_layers_with_parameters_that_received_a_gradient() -> None:
    seen = profile(
        [math.nan, 0.25, 9.0, 0.5, 7.0, 1.0],
        depths=[0, 1, 2, 2, 3, 3],
        measured=[False, True, True, True, True, True],
        owns=[True, True, False, True, False, True],
    )
    fit = profile_gain(seen)
    assert fit.gain == pytest.approx(0.5)
    assert (fit.num_layers, fit.num_nonfinite) == (3, 0)


def test_medians_leave_steps_without_a_gain_out_and_count_them() -> None:
    fits = [Gain(0.5, -1, 4), Gain(0.7, -2, 4), Gain(0.9, -6, 4), Gain(math.nan, math.nan, 0)]
    median = median_gain(fits)
    assert (median.gain, median.log10_total) == (0.7, -2)
    assert (median.num_steps, median.num_undefined) == (3, 1)
    assert math.isnan(median_gain([]).gain)


def test_the_span_ignores_layers_without_parameters() -> None:
    seen = profile([1e-3, 1e9, 1.0, 0.0], owns=[True, False, True, True])
    assert span_decades(seen) == pytest.approx(3)
    assert math.isnan(span_decades(profile([0.0, math.nan])))


def test_a_profile_tells_zero_nonfinite_and_missing_apart() -> None:
    seen = profile(
        [0.0, math.inf, math.nan, math.nan, 2.0], measured=[True, True, True, False, True]
    )
    assert seen.is_zero.tolist() == [True, False, False, False, False]
    assert seen.is_nonfinite.tolist() == [False, True, True, False, False]
    assert seen.usable.tolist() == [False, False, False, False, True]


def test_relative_depth_runs_from_0_to_1() -> None:
    assert relative_depth([2, 4, 6]).tolist() == [0.0, 0.5, 1.0]
    assert relative_depth([5, 5]).tolist() == [0.0, 0.0]
    assert relative_depth([]).tolist() == []


def test_the_line_of_a_fit_runs_through_norms_that_fall_evenly() -> None:
    fit = gain([0, 1, 2, 4], [1e-8, 1e-6, 1e-4, 1.0])
    assert fit.depths == (0, 4)
    assert fit.ends == pytest.approx((-8, 0))
    assert math.isnan(gain([1], [1.0]).ends[0])

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from analyzer.analysis.bands import band, grouped, smoothed


def test_smoothing_a_constant_leaves_it_constant() -> None:
    assert smoothed([3.0] * 7, 0.9).tolist() == pytest.approx([3.0] * 7)


def test_smoothing_skips_nan_and_keeps_it() -> None:
    result = smoothed([1.0, np.nan, 2.0], keep=0.5)
    assert np.isnan(result[1])
    assert result[[0, 2]].tolist() == pytest.approx([1.0, (0.5 * 1 + 2) / 1.5])


@pytest.mark.parametrize("how", ["median", "mean", "min", "max"])
def test_groups_agree_with_numpy(how: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 24))
    values[0, 3] = np.nan
    expected = getattr(np, f"nan{how}")(sliding_window_view(values, 4, axis=1)[:, ::4], axis=-1)
    assert grouped(values, 4, how) == pytest.approx(expected)


def test_the_last_group_may_be_short_and_an_empty_one_is_nan() -> None:
    result = grouped(np.array([1.0, 3.0, np.nan, np.nan, 9.0]), 2, "median")
    assert result[[0, 2]].tolist() == [2.0, 9.0]
    assert np.isnan(result[1])


def test_medians_near_the_largest_float_do_not_overflow() -> None:
    assert grouped(np.array([1e308, 1.2e308]), 2, "median").tolist() == pytest.approx([1.1e308])


def test_a_band_spans_its_bins_and_counts_what_is_not_finite() -> None:
    found = band(range(0, 50, 5), [1, 2, 3, 4, np.inf, 6, 7, 8, np.nan, np.nan], 5)
    assert found.steps.tolist() == [0, 10, 20, 30, 40]
    assert (found.low[:3].tolist(), found.high[:3].tolist()) == ([1, 3, 6], [2, 4, 6])
    assert found.middle[:2].tolist() == [1.5, 3.5]
    assert found.num_nonfinite.tolist() == [0, 0, 1, 0, 2]
    assert found.width == 2 and np.isnan(found.middle[4])


def test_a_band_without_values_is_empty() -> None:
    assert len(band([], [], 5).steps) == 0


@pytest.mark.parametrize("how", ["median", "mean", "min", "max"])
@pytest.mark.parametrize("size", [2, 3, 7, 16, 17, 40])
def test_groups_of_any_size_are_those_of_a_slow_twin(size: int, how: str) -> None:
    random = np.random.default_rng(size)
    values = random.normal(size=(5, 83))
    values[random.random(values.shape) < 0.3] = np.nan
    values[1], values[2, :40] = np.nan, np.nan
    expected = np.full((5, -(-83 // size)), np.nan)
    for row, group in np.ndindex(expected.shape):
        known = [x for x in values[row, group * size : (group + 1) * size] if not np.isnan(x)]
        if known:
            expected[row, group] = getattr(np, how)(known)
    for order in ("C", "F"):
        found = grouped(np.array(values, order=order), size, how)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", range(1, 13))
def test_groups_of_zeros_and_ones_are_sorted_and_so_is_all_else(size: int) -> None:
    # Knuth's 0-1 principle: a network that sorts every one of them sorts whatever there is.
    values = ((np.arange(2**size)[:, None] >> np.arange(size)) & 1).astype(float)
    zeros = size - values.sum(axis=1)
    for how in ("min", "median", "max"):
        middle = {"min": [0], "max": [size - 1], "median": [(size - 1) // 2, size // 2]}[how]
        expected = np.mean([zeros <= at for at in middle], axis=0)
        assert grouped(values, size, how)[:, 0].tolist() == expected.tolist()


def test_infinite_values_have_a_place_in_the_order() -> None:
    values = np.array([np.inf, 1.0, -np.inf, np.nan, np.nan, np.nan])
    found = [grouped(values, 3, how).tolist()[0] for how in ("min", "median", "max")]
    assert found == [-np.inf, 1.0, np.inf]

import math

import numpy as np
import pytest

from analyzer.probes.landscape.points import chebyshev_nodes, estimated_surface
from analyzer.probes.landscape.surface import plane_curvatures, surface_measures

AXIS = np.linspace(-1, 1, 51)
A, B = np.meshgrid(AXIS, AXIS, indexing="ij")
NOISE = np.random.default_rng(0).normal(size=A.shape)


class Truth:
    """A known surface that counts how often it is asked."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.asked = values, 0

    def __call__(self, places: list) -> np.ndarray:
        self.asked += len(places)
        return np.array([self.values[place] for place in places])

    def error(self, values: np.ndarray) -> float:
        return float(np.abs(values - self.values).max() / np.ptp(self.values))


SMOOTH = {
    "bowl": 3 + A**2 + A * B - B,
    "exponential": 0.01 + np.exp(4 * A**2 + 3 * B**2 - A),
    "steep": np.exp(20 * (A**2 + 0.5 * B**2)),
    "valley": np.log1p(np.exp(6 * A)) + np.log1p(np.exp(-9 * (B + 0.3 * A))) + 0.02,
    "negative": -5 + np.cos(2 * A) * B,
}
ROUGH = {
    "cliff": np.where(A + 0.6 * B > 0.3, 5, 0) + A**2,
    "spike": A**2 + B**2 + 3 * np.exp(-((A - 0.33) ** 2 + (B + 0.41) ** 2) / 0.004),
    "noise": A**2 + B**2 + 0.02 * NOISE,
    "waves": A**2 + 0.2 * np.sin(25 * A) * np.cos(22 * B),
    "kinks": np.abs(A - 0.1) + np.abs(B + 0.2),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_surface_needs_few_evaluations(name):
    truth = Truth(SMOOTH[name])
    found = estimated_surface((AXIS, AXIS), truth, 0.005)
    assert truth.asked == found.evaluated.sum() <= 0.15 * 2601
    assert found.is_within and truth.error(found.values) <= 0.005
    np.testing.assert_array_equal(
        found.values[found.evaluated], truth.values[found.evaluated]
    )  # what was evaluated is not smoothed
    assert found.evaluated[25, 25]


@pytest.mark.parametrize("name", ROUGH)
def test_a_rough_surface_never_misses_the_tolerance_in_silence(name):
    truth = Truth(ROUGH[name])
    found = estimated_surface((AXIS, AXIS), truth, 0.005)
    assert found.is_within and truth.error(found.values) <= 0.005
    assert truth.asked > 0.13 * 2601


def test_points_that_are_not_finite_make_every_point_evaluated():
    for hole in (math.nan, math.inf):
        values = np.where(A > 0.5, hole, A)
        found = estimated_surface((AXIS, AXIS), Truth(values), 0.005)
        assert found.evaluated.all() and found.error == 0 and found.fit == "none"
        np.testing.assert_array_equal(found.values, values)


def test_a_tighter_tolerance_costs_more_and_is_met():
    asked = []
    for tolerance in (0.02, 0.002, 0.0005):
        truth = Truth(SMOOTH["valley"])
        found = estimated_surface((AXIS, AXIS), truth, tolerance)
        assert truth.error(found.values) <= tolerance
        asked.append(truth.asked)
    assert asked[0] < asked[1] < asked[2]


def test_a_search_that_runs_out_of_time_says_that_it_was_not_confirmed():
    times = iter([False, True])
    truth = Truth(ROUGH["kinks"])
    found = estimated_surface((AXIS, AXIS), truth, 1e-6, lambda: next(times))
    assert not found.is_within and not found.evaluated.all()
    assert found.error > 1e-6 and np.isfinite(found.values).all()


def test_a_first_grid_that_is_cut_short_is_not_extrapolated():
    found = estimated_surface((AXIS, AXIS), lambda places: A.ravel()[:10], 0.005, lambda: True)
    assert found.evaluated.sum() == 10 == np.isfinite(found.values).sum()
    assert not found.is_within and math.isnan(found.error)


def test_an_unequal_grid_and_one_of_few_points():
    axes = (np.linspace(0, 1, 21), np.linspace(-3, 2, 51))
    values = np.exp(axes[0])[:, None] * np.cosh(axes[1])
    truth = Truth(values)
    found = estimated_surface(axes, truth, 0.005)
    assert truth.error(found.values) <= 0.005 and truth.asked < 300
    small = Truth(NOISE[:16, :16])
    assert estimated_surface((AXIS[:16], AXIS[:16]), small, 0.005).evaluated.all()


def test_chebyshev_nodes_hold_both_ends_and_the_middle():
    nodes = chebyshev_nodes(51, 9)
    assert nodes.tolist() == [0, 2, 7, 15, 25, 35, 43, 48, 50]
    assert chebyshev_nodes(3, 9).tolist() == [0, 1, 2]


def test_curvatures_of_a_quadratic_are_the_eigenvalues_of_its_matrix():
    matrix = np.array([[3.0, 1.0], [1.0, -2.0]])
    alphas, betas = np.array([-1, -0.3, 0.1, 0.5]), np.array([-2, 0, 0.5, 0.7, 3.0])
    a, b = np.meshgrid(alphas, betas, indexing="ij")
    losses = 0.5 * (matrix[0, 0] * a**2 + 2 * matrix[0, 1] * a * b + matrix[1, 1] * b**2)
    low, high = plane_curvatures(losses, alphas, betas)
    expected = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(low, np.full((2, 3), expected[0]), rtol=1e-10)
    np.testing.assert_allclose(high, np.full((2, 3), expected[1]), rtol=1e-10)


def test_a_convex_surface_is_convex_and_a_saddle_is_not():
    convex = surface_measures(A**2 + 4 * B**2, AXIS, AXIS)
    assert convex["non_convex_share"] == convex["non_convexity"] == 0
    assert convex["plane_sharpness"] == pytest.approx(8)
    assert convex["epsilon_sharpness"] == pytest.approx(0.08**2 * 5)
    assert (convex["loss_min"], convex["loss_max"]) == (0, 5)
    saddle = surface_measures(A**2 - 0.5 * B**2, AXIS, AXIS)
    assert saddle["non_convex_share"] == 1
    assert saddle["non_convexity"] == pytest.approx(0.5)


def test_measures_of_a_line_and_of_a_surface_with_holes():
    line = surface_measures(3 * AXIS[:, None] ** 2, AXIS, np.zeros(1))
    assert line["plane_sharpness"] == pytest.approx(6) and line["non_convex_share"] == 0
    holes = (A**2 + B**2).copy()
    holes[3, 4], holes[25, 30] = math.nan, math.inf
    found = surface_measures(holes, AXIS, AXIS)
    assert found["nonfinite_points"] == 2 and found["plane_sharpness"] == pytest.approx(2)
    empty = surface_measures(np.full((4, 4), math.nan), AXIS[:4], AXIS[:4])
    assert all(math.isnan(v) for k, v in empty.items() if k != "nonfinite_points")

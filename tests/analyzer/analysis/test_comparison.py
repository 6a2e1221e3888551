import math
from pathlib import Path

import pytest

from analyzer.analysis.comparison import compare_runs
from analyzer.analysis.gradient_flow import DepthFacts, Gain, Trend
from tests.support.pairs import write_side


@pytest.mark.parametrize(
    ("decades", "span", "expected"),
    [
        (2.9, 2.9, Trend.BETWEEN),
        (3.0, 3.0, Trend.VANISHING),
        (-3.0, 3.0, Trend.EXPLODING),
        (1.4, 1.5, Trend.HEALTHY),
        (0.1, 6.0, Trend.BETWEEN),
        (math.nan, math.nan, Trend.UNKNOWN),
    ],
)
def test_only_a_fall_of_three_decades_is_called_vanishing(
    decades: float, span: float, expected: Trend
) -> None:
    gain = math.nan if math.isnan(decades) else 0.9
    assert DepthFacts(Gain(gain, -decades, 15), span).trend is expected


def test_layers_that_the_fit_left_out_are_not_healthy() -> None:
    run = DepthFacts(Gain(1.0, 0.0, 3, num_zero=2, num_nonfinite=1), 0.5)
    assert run.trend is Trend.BETWEEN


def test_a_comparison_says_the_numbers_of_both_and_no_cause(tmp_path: Path) -> None:
    left = write_side(tmp_path / "a", residual=False, decades=4.5)
    right = write_side(tmp_path / "b", residual=True)
    assert compare_runs(left, right).sentence == (
        "a: gain 0.316 per layer at step 3, the output gradient falls 4.5 decades, final loss 1; "
        "b: gain 1 per layer at step 3, the output gradient falls 0 decades, final loss 1."
    )

import math

import pytest

from analyzer.analysis.training import smoothed_final, training_summary


def test_the_final_loss_is_the_median_of_the_last_twentieth() -> None:
    losses = [5.0] * 95 + [1.0, 9.0, 2.0, 3.0, 2.5]
    assert smoothed_final(losses) == 2.5
    assert smoothed_final([4.0, 3.0]) == 3.0
    assert math.isnan(smoothed_final([]))
    assert math.isnan(smoothed_final([1.0, math.nan]))


def test_a_summary_knows_first_last_best_and_where_it_was() -> None:
    seen = training_summary([0, 1, 5], [2.0, 0.5, 1.0], [True] * 3, skipped=1, seconds=6.0)
    assert (seen.first_loss, seen.last_loss, seen.best_loss, seen.best_step) == (2.0, 1.0, 0.5, 1)
    assert (seen.num_steps, seen.num_skipped, seen.seconds) == (3, 1, 6.0)
    assert seen.nonfinite_step is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_nonfinite_loss_is_found_and_kept(bad: float) -> None:
    seen = training_summary([0, 2, 4], [1.0, bad, bad], [True] * 3, seconds=1.0)
    assert seen.nonfinite_step == 2
    assert not math.isfinite(seen.last_loss)
    assert (seen.best_loss, seen.best_step) == (1.0, 0)


def test_a_loss_that_was_not_scalar_is_not_a_nan_loss() -> None:
    seen = training_summary([0, 1], [math.nan, 1.5], [False, True], seconds=1.0)
    assert (seen.num_steps, seen.num_losses, seen.first_loss) == (2, 1, 1.5)
    assert seen.nonfinite_step is None


def test_a_run_without_losses_has_none() -> None:
    seen = training_summary([], [], [], seconds=0.0)
    assert (seen.num_steps, seen.best_step, seen.nonfinite_step) == (0, None, None)
    assert math.isnan(seen.first_loss)

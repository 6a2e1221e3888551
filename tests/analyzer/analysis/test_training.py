import math
import statistics
from pathlib import Path

import pytest

from analyzer.analysis.training import final_losses, logged_curves, training_summary
from analyzer.analysis.view import View
from analyzer.errors import NotRecordedError
from analyzer.storage.rows import StepRecord
from analyzer.storage.run import open_run
from analyzer.storage.writer import RunWriter


@pytest.mark.parametrize("steps", [1, 9, 11, 60, 999, 1001, 5000])
def test_the_final_loss_is_the_mean_of_the_last_tenth_at_most_100(steps: int) -> None:
    losses = [1.0 / (1 + k) for k in range(steps)]
    count = min(100, math.ceil(steps / 10))
    seen = training_summary(range(steps), losses, [True] * steps, seconds=1.0)
    assert seen.num_final == len(final_losses(losses)) == count
    assert seen.final_loss == pytest.approx(sum(losses[-count:]) / count)
    spread = statistics.stdev(losses[-count:]) / math.sqrt(count) if count > 1 else 0.0
    assert seen.final_error == pytest.approx(spread)


def test_a_final_loss_keeps_nan_and_is_nan_without_a_loss() -> None:
    for losses in ([], [1.0, math.nan]):
        seen = training_summary(range(len(losses)), losses, [True] * len(losses), seconds=1.0)
        assert math.isnan(seen.final_loss)


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


def logged(path: Path, *rows: dict[str, object]) -> View:
    writer = RunWriter(path, {})
    for step, row in enumerate(rows):
        writer.add(lambda step=step, row=row: StepRecord({"step": step, **row}))
    writer.close("finished")
    return View((open_run(path),))


def test_numbers_that_were_logged_are_curves_where_they_were_logged(tmp_path: Path) -> None:
    row = {"epoch": 1, "global_step": 5, "learning_rate_1": 0.1, "word": "x"}
    view = logged(tmp_path / "a", row | {"good": True}, row | {"acc": 0.5}, row | {"acc": math.nan})
    curves = logged_curves(view).runs
    assert [curve.name for curve in curves] == ["good", "acc"]
    good, acc = (curve.band for curve in curves)
    assert (good.steps.tolist(), good.middle.tolist()) == ([0], [1.0])
    assert (acc.steps.tolist(), acc.num_nonfinite.tolist()) == ([1, 2], [0, 1])
    assert logged_curves(view).caption == "a: at last good 1, acc NaN."


def test_of_many_names_the_others_are_counted(tmp_path: Path) -> None:
    view = logged(tmp_path / "a", {f"m{k}": 1.0 for k in range(10)})
    assert len(logged_curves(view).runs) == 8
    assert logged_curves(view).caption.endswith("m7 1, and 2 more names.")
    with pytest.raises(NotRecordedError, match="were not recorded in run 'b'; log them with `rec"):
        logged_curves(logged(tmp_path / "b", {"epoch": 1, "word": "x"}))

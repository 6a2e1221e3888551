"""Means over groups of runs, and axes of epochs and of time, against numbers known beforehand."""

from pathlib import Path

import numpy as np
import pytest

from analyzer.analysis.bands import band
from analyzer.analysis.clock import epoch_places, time_places
from analyzer.analysis.groups import group_choices, groups, mean_band
from analyzer.analysis.numerals import number
from analyzer.analysis.profiles import profile_curves
from analyzer.analysis.training import loss_curves
from analyzer.analysis.view import View
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run, open_run
from tests.support.runs import write_run

RATES, SEEDS, STEPS = ("0.1", "0.5"), (0, 1, 2), 6


def loss_of(rate: str, seed: int, step: int) -> float:
    return float(rate) * 10 + seed - 0.5 * step


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    """Two rates with three seeds each, in mixed order, whose losses are a formula."""
    folder, runs = tmp_path_factory.mktemp("sweep"), []
    for seed in SEEDS:
        for rate in RATES:
            losses = [loss_of(rate, seed, step) for step in range(STEPS)]
            norms = [[1.0 + seed, 2.0 + seed]] * STEPS
            more = [{"epoch": step // 2} for step in range(STEPS)]
            argv = ["train.py", "--lr", rate, f"--seed={seed}", "--depth", "8"]
            path = folder / f"lr{rate}-{seed}"
            runs.append(open_run(write_run(path, losses, norms, argv=argv, more=more)))
    return tuple(runs)


def test_runs_are_grouped_by_what_differs(sweep: tuple[Run, ...]) -> None:
    assert group_choices(sweep) == ("lr", "seed", "all but the seed")
    by_rate = groups(sweep, "lr")
    assert [group.label.text for group in by_rate] == ["lr 0.1 (3 runs)", "lr 0.5 (3 runs)"]
    assert by_rate[0].members == tuple(f"lr0.1-{seed}" for seed in SEEDS)
    assert len({group.label.style for group in by_rate}) == 2
    whole = groups(sweep, "all but the seed")
    assert [group.members for group in whole] == [group.members for group in by_rate]
    assert len(groups(sweep, "seed")) == 3
    (nothing,) = groups(sweep, "nosuch")
    assert len(nothing.members) == 6


def test_the_mean_and_its_band_are_those_of_the_seeds(sweep: tuple[Run, ...]) -> None:
    found = loss_curves(View(sweep, group="lr"))
    assert len(found.runs) == 2
    for rate, curve in zip(RATES, found.runs, strict=True):
        each = np.array([[loss_of(rate, seed, t) for t in range(STEPS)] for seed in SEEDS])
        assert curve.band.middle == pytest.approx(each.mean(axis=0))
        assert curve.band.low == pytest.approx(each.min(axis=0))
        assert curve.band.high == pytest.approx(each.max(axis=0))
        last = each[:, -1]
        middle, low, high = (number(x) for x in (last.mean(), last.min(), last.max()))
        assert f"{middle} at step 5 ({low} to {high})" in found.caption
    table = found.table()
    assert set(table["run"]) == {"lr 0.1 (3 runs)", "lr 0.5 (3 runs)"} and "mean" in table


def test_a_profile_is_the_mean_over_the_seeds(sweep: tuple[Run, ...]) -> None:
    first, _ = profile_curves(View(sweep, group="lr")).runs
    assert first.values["output_gradient_norm"] == pytest.approx([2.0, 3.0])
    assert first.values["min"] == pytest.approx([1.0, 2.0])
    assert first.values["max"] == pytest.approx([3.0, 4.0])


def test_a_mean_of_series_of_other_steps_is_read_between_them() -> None:
    one = band([0, 2, 4], [0.0, 2.0, 4.0], 10)
    other = band([1, 3], [10.0, np.nan], 10)
    found = mean_band([one, other])
    assert found.steps.tolist() == [0, 1, 2, 3, 4]
    # At 1 both are known; beyond that the other one is not finite, or over.
    assert found.middle == pytest.approx([0.0, 5.5, 2.0, 3.0, 4.0])
    assert found.num_nonfinite.tolist() == [0, 0, 0, 1, 0]


def test_a_run_that_broke_is_said_and_not_averaged_away(tmp_path: Path) -> None:
    runs = []
    for seed, last in enumerate((1.0, float("nan"))):
        argv = ["t.py", "--lr", "1", "--seed", str(seed)]
        path = tmp_path / str(seed)
        runs.append(open_run(write_run(path, [2.0, last], [[1.0]] * 2, argv=argv)))
    found = loss_curves(View(tuple(runs), group="lr"))
    assert "NaN or infinite in 1 of 2 runs" in found.caption
    assert found.runs[0].band.num_nonfinite.tolist() == [0, 1]


def test_epochs_pass_evenly_and_the_last_is_as_long_as_the_one_before() -> None:
    steps = np.arange(7)
    found = epoch_places(steps, np.array([0, 0, 0, 0, 1, 1, 1], float))
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5])
    unknown = np.array([np.nan, np.nan, 3, 3, 4, 4, 4])
    assert epoch_places(steps, unknown)[2:] == pytest.approx([3, 3.5, 4, 4 + 1 / 3, 4 + 2 / 3])
    # Only every fifth step was recorded.
    assert epoch_places(np.array([0, 5, 10]), np.zeros(3)) == pytest.approx([0, 5 / 11, 10 / 11])


def test_the_time_between_two_attempts_does_not_count() -> None:
    ends = np.array([100.0, 101.0, 103.0, 9_000.0, 9_002.0])
    seconds, attempts = np.array([0.5, 1, 2, 0.75, 2]), np.array([0, 0, 0, 1, 1])
    assert time_places(ends, seconds, attempts) == pytest.approx([0.5, 1.5, 3.5, 4.25, 6.25])


def test_curves_run_over_epochs(sweep: tuple[Run, ...]) -> None:
    found = loss_curves(View(sweep[:1], over="epoch"))
    assert found.runs[0].band.x == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert found.over == "epoch" and found.table()["x"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    grouped = loss_curves(View(sweep, over="epoch", group="lr"))
    assert grouped.runs[0].band.x == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])


def test_a_run_without_epochs_says_how_to_get_them(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "a", [1.0], [[1.0]]))
    with pytest.raises(NotRecordedError, match=r"epochs were not recorded.*recorder\.log\(epoch"):
        loss_curves(View((run,), over="epoch"))

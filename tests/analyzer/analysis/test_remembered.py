import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from analyzer.analysis.claim_numbers import _reached, relative_gradient
from analyzer.analysis.evidence import NonFinite, first_nonfinite
from analyzer.analysis.per_run import remembered
from analyzer.analysis.training import loss_band, nonfinite_loss_step, run_training
from analyzer.storage.bin_writer import TableBins
from analyzer.storage.run import Run, open_run
from analyzer.storage.tables import StepTable
from tests.support.runs import write_run


def test_a_number_is_computed_once_until_the_table_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    @remembered("steps")
    def count(run: Run, factor: int) -> int:
        calls.append(factor)
        return factor * len(run.recorded_steps())

    run = open_run(write_run(tmp_path / "run", [1.0] * 2, [[1.0]] * 2))
    assert [count(run, 1), count(run, 1), count(run, 5)] == [2, 2, 10]
    assert calls == [1, 5]
    monkeypatch.setattr(Run, "written", lambda _self, table: (table, "and one more part"))
    assert [count(run, 5), count(run, 5)] == [10, 10]
    assert calls == [1, 5, 5]


def test_threads_that_ask_at_a_time_compute_it_once(tmp_path: Path) -> None:
    calls: list[int] = []
    all_ask = Barrier(4)

    @remembered("steps")
    def count(run: Run, factor: int) -> int:
        calls.append(factor)
        time.sleep(0.2)
        if factor < 0:
            raise ValueError("negative")
        return factor * len(run.recorded_steps())

    run = open_run(write_run(tmp_path / "run", [1.0] * 2, [[1.0]] * 2))

    def ask(factor: int) -> int | str:
        all_ask.wait(10)
        try:
            return count(run, factor)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, [3] * 4)) == [6] * 4
        assert calls == [3]
        assert list(pool.map(ask, [-1] * 4)) == ["negative"] * 4
    assert calls == [3, -1]
    with pytest.raises(ValueError, match="negative"):
        count(run, -1)
    assert calls == [3, -1, -1]


def test_runs_do_not_share_what_is_remembered(tmp_path: Path) -> None:
    @remembered("steps")
    def count(run: Run) -> int:
        return len(run.recorded_steps())

    short = open_run(write_run(tmp_path / "a", [1.0], [[1.0]]))
    long = open_run(write_run(tmp_path / "b", [1.0] * 3, [[1.0]] * 3))
    assert [count(short), count(long), count(short)] == [1, 3, 1]


@pytest.mark.parametrize("bad", [0, 1700, 2999])
def test_one_nonfinite_row_of_a_long_run_is_found(tmp_path: Path, bad: int) -> None:
    norms = [[1.0, math.inf if step == bad else 2.0] for step in range(3000)]
    run = open_run(write_run(tmp_path / "run", [1.0] * 3000, norms))
    assert first_nonfinite(run) == NonFinite(bad, 1, "layers.1", "output gradient")


@pytest.mark.parametrize("bad", [None, 0, 1700, 2999])
@pytest.mark.parametrize("has_bins", [True, False])
def test_the_first_nonfinite_loss_is_that_of_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int | None, has_bins: bool
) -> None:
    losses = [math.nan if bad is not None and step >= bad else 1.0 for step in range(3000)]
    path = write_run(tmp_path / "run", losses, [[1.0]] * 3000)
    if has_bins:
        bins = TableBins(path, "steps", 0)
        for some in StepTable(path, "steps", print).numbers(0, 2999, 0):
            bins.add(some)
        bins.finish()
    assert run_training(open_run(path)).nonfinite_step == bad
    read: list[object] = []
    monkeypatch.setattr(
        "analyzer.analysis.training.run_training",
        lambda run: read.append(run) or run_training(run),
    )
    assert nonfinite_loss_step(open_run(path)) == bad
    assert len(read) == (bad is not None)


def test_layers_are_reached_where_any_step_has_a_number(tmp_path: Path) -> None:
    nan, inf = math.nan, math.inf
    norms = [[None, 1.0, nan, inf], [None, nan, nan, nan]]
    run = open_run(write_run(tmp_path / "run", [1.0] * 2, norms))
    assert sorted(_reached(run)) == [1, 3]


def test_the_loss_of_a_long_run_is_that_of_its_overview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [4.0 - step / 1000 for step in range(4000)]
    run = open_run(write_run(tmp_path / "run", losses, [[1.0]] * 4000))
    exact = loss_band(run, 100, 0.0)
    monkeypatch.setattr("analyzer.analysis.training._LONG", 1000)
    from_bins = loss_band(open_run(run.path), 100, 0.9)
    assert from_bins.smooth is not None and len(from_bins.steps) <= 100
    for shown in (exact, from_bins):
        assert (shown.high[0], shown.low[-1]) == (4.0, pytest.approx(0.001))
        ends = [*shown.steps[1:].tolist(), 4000]
        middle = [4.0 - (a + b - 1) / 2000 for a, b in zip(shown.steps, ends, strict=True)]
        assert shown.middle == pytest.approx(middle)


def test_the_ratio_of_a_long_run_is_that_of_spaced_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.analysis.claim_numbers._LONG", 20)
    monkeypatch.setattr("analyzer.analysis.claim_numbers._SPACED_STEPS", 5)
    norms = [[float(step), 100.0] for step in range(30)]
    run = open_run(write_run(tmp_path / "run", [1.0] * 30, norms))
    found = relative_gradient(run)
    ratio, query = found.value, found.query
    assert ratio == pytest.approx(0.12) and "steps=RUN.layer_steps()[::6]" in query
    assert eval(query.replace("RUN", "run"), {"run": run}) == ratio

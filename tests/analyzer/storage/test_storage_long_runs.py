import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.storage import tables
from analyzer.storage.catalog import runs_in
from analyzer.storage.run import Run, open_run
from analyzer.storage.selection import Steps
from analyzer.storage.tables import StepTable
from tests.analyzer.storage.storage_rows import block, record, value, written
from tests.support.runs import write_run

GAPS = [0, 1, 2, 40, 41, 1000, 5000]


@pytest.fixture
def gaps(tmp_path: Path) -> Run:
    """A run whose layers were recorded at few of its steps."""
    rows = [record(step, block("layer_stats", step, 3)) for step in GAPS]
    return open_run(written(tmp_path / "gaps", rows))


def refuse(*_: object) -> None:
    raise AssertionError("all steps were read")


@pytest.mark.parametrize("asked", [0, 1, 3, 21, 22, 39, 520, 521, 2999, 3000, 3001, 9999])
def test_the_nearest_step_is_found_without_reading_all(
    gaps: Run, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepTable, "steps", refuse)
    expected = GAPS[int(np.argmin([abs(step - asked) for step in GAPS]))]
    assert gaps.nearest_step(asked, "layer_stats") == expected


@given(
    st.lists(st.integers(0, 30), max_size=40),
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.booleans(),
)
def test_rows_of_listed_steps_are_found_in_any_order(
    rows: list[int], listed: list[int], is_sorted: bool
) -> None:
    steps = np.array(sorted(rows) if is_sorted else rows, np.int64)
    mask = Steps.listed(listed).mask(steps)
    assert mask is not None and mask.tolist() == [step in listed for step in steps]


def test_the_nearest_to_none_is_the_last_and_of_nothing_is_none(gaps: Run) -> None:
    assert gaps.nearest_step(None, "layer_stats") == 5000
    assert gaps.nearest_step(7, "splits") is None


def test_of_two_steps_equally_near_the_earlier_is_taken(tmp_path: Path) -> None:
    rows = [record(step, block("layer_stats", step, 1)) for step in (10, 20)]
    run = open_run(written(tmp_path / "two", rows))
    assert run.nearest_step(15, "layer_stats") == 10
    run.recorded_steps()
    assert run.nearest_step(15) == 10


@pytest.mark.parametrize("num_steps", [1, 300, 3000])
def test_steps_of_layers_at_every_step_need_no_row_of_theirs(
    tmp_path: Path, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [record(step, block("layer_stats", step, 2)) for step in range(num_steps)]
    run = open_run(written(tmp_path / "run", rows))
    whole = StepTable.steps

    def only_of_steps(self: StepTable) -> object:
        assert self.name == "steps"
        return whole(self)

    monkeypatch.setattr(StepTable, "steps", only_of_steps)
    assert run.recorded_steps("layer_stats").tolist() == list(range(num_steps))


def test_steps_without_layers_are_not_among_those_of_the_layers(tmp_path: Path) -> None:
    def blocks(step: int) -> list[object]:
        return [] if step in (0, 700, 1499) else [block("layer_stats", step, 2)]

    rows = [record(step, *blocks(step)) for step in range(1500)]  # type: ignore[arg-type]
    run = open_run(written(tmp_path / "run", rows))
    expected = [step for step in range(1500) if step not in (0, 700, 1499)]
    assert run.recorded_steps("layer_stats").tolist() == expected


def test_steps_are_the_same_read_at_once_or_a_few_rows_at_a_time(
    gaps: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_SCANNED_ROWS", 2)
    assert gaps.recorded_steps("layer_stats").tolist() == GAPS


def test_one_layer_is_read_whole_from_many_groups_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.storage.parts.ROW_GROUP", 7)
    monkeypatch.setattr("analyzer.storage.parts.ROW_GROUP", 7, raising=False)
    monkeypatch.setattr(tables, "_GROUPS_AT_ONCE", 2)
    rows = [record(step, block("layer_stats", step, 3)) for step in range(50)]
    run = open_run(written(tmp_path / "run", rows))
    found = run.layer_stats("activation_norm", layers=2)["activation_norm"]
    assert found.tolist() == [value(step, 2, 0) for step in range(50)]


def test_a_manifest_that_changed_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "run", [record(0)]) / "run.json"
    assert [run.status for run in runs_in(tmp_path)] == ["finished"]
    path.write_text(path.read_text().replace('"finished"', '"interrupted"'))
    assert [run.status for run in runs_in(tmp_path)] == ["interrupted"]
    path.write_text("{")
    (broken,) = runs_in(tmp_path)
    assert broken.problem is not None and "run.json is damaged" in broken.problem


def test_a_file_that_is_kept_open_keeps_nothing_of_what_was_read(tmp_path: Path) -> None:
    norms = np.random.default_rng(0).random((2000, 40))
    run = open_run(write_run(tmp_path / "long", [1.0] * 2000, norms.tolist()))
    run.recorded_steps("layer_stats")
    gc.collect()
    before = pa.total_allocated_bytes()
    rows = run.read("layer_stats", "output_gradient_norm")
    assert pa.total_allocated_bytes() - before > norms.nbytes
    del rows
    gc.collect()
    assert pa.total_allocated_bytes() - before < norms.nbytes / 10


@pytest.mark.parametrize(
    "attempts",
    [
        [range(40)],
        [range(5, 40)],
        [GAPS],
        [[*range(10), *range(12, 40)]],
        [range(20), range(10, 40)],
        [range(10), range(30, 40)],
    ],
)
def test_steps_that_footers_tell_are_those_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: list[list[int]]
) -> None:
    """With gaps, and of several attempts that overlap or not."""
    for attempt, steps in enumerate(attempts):
        records = [record(step) for step in steps]
        written(tmp_path / "a", records, attempt=attempt, flush_steps=4)
    found = open_run(tmp_path / "a").recorded_steps()
    monkeypatch.setattr(tables, "_together", lambda parts: None)
    assert found.tolist() == open_run(tmp_path / "a").recorded_steps().tolist()
    assert found.tolist() == sorted({step for steps in attempts for step in steps})

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from analyzer.errors import RunNotFoundError
from analyzer.storage.catalog import resolve_run, runs_in
from analyzer.storage.writer import StepRecord
from tests.analyzer.storage.storage_rows import record, written


def manifest(path: Path, **fields: Any) -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"schema_version": 1, "status": "finished"} | fields))
    return path


def test_a_summary_says_what_a_list_shows(tmp_path: Path) -> None:
    written(tmp_path / "a", [record(s) for s in range(7)])
    (summary,) = runs_in(tmp_path)
    assert (summary.name, summary.status, summary.steps) == ("a", "finished", 7)
    assert (summary.loss, summary.layers, summary.problem) == (6.5, None, None)
    assert summary.age is not None
    assert 0 <= summary.age < 60


def test_a_loss_that_is_nan_is_shown(tmp_path: Path) -> None:
    written(tmp_path / "a", [record(0), StepRecord({"step": 1, "loss": math.nan})])
    (summary,) = runs_in(tmp_path)
    assert summary.loss is not None
    assert math.isnan(summary.loss)


def test_steps_of_a_crashed_run_are_those_of_its_files(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [record(s) for s in range(7)])
    (path / "run.json").write_text(json.dumps({"schema_version": 1, "status": "running"}))
    (summary,) = runs_in(tmp_path)
    assert (summary.status, summary.steps) == ("crashed", 7)


def test_the_newest_run_comes_first_and_a_broken_one_says_why(tmp_path: Path) -> None:
    manifest(tmp_path / "old", created="2024-01-01T00:00:00+00:00")
    manifest(tmp_path / "new", created="2025-01-01T00:00:00+00:00")
    manifest(tmp_path / "future", schema_version=9)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    found = runs_in(tmp_path)
    assert [run.name for run in found] == ["new", "old", "future"]
    assert found[2].status == "broken"
    assert "has schema version 9; this analyzer reads 1 to 2" in str(found[2].problem)


def test_hostile_fields_are_unknown_not_an_error(tmp_path: Path) -> None:
    hostile = {"steps": -1, "num_layers": "many", "num_joins": True, "created": [1]}
    manifest(tmp_path / "a", **hostile, last_loss={"x": 1})
    (summary,) = runs_in(tmp_path)
    assert (summary.steps, summary.layers, summary.joins) == (None, None, None)
    assert (summary.loss, summary.created, summary.age) == (None, None, None)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    manifest(tmp_path / "elsewhere" / "secret")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere" / "secret")
    assert runs_in(tmp_path / "runs") == []


def test_a_folder_that_does_not_exist_has_no_runs(tmp_path: Path) -> None:
    assert runs_in(tmp_path / "no") == []


@pytest.mark.alone
def test_five_hundred_runs_are_listed_within_a_second(tmp_path: Path) -> None:
    for k in range(500):
        manifest(tmp_path / f"run-{k}", status="running", heartbeat="2024-01-01T00:00:00+00:00")
    start = time.perf_counter()
    assert len(runs_in(tmp_path)) == 500
    assert time.perf_counter() - start < 1


def test_a_run_is_found_by_path_by_name_and_as_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = manifest(tmp_path / "runs" / "old", created="2024-01-01T00:00:00+00:00")
    new = manifest(tmp_path / "runs" / "new", created="2025-01-01T00:00:00+00:00")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANALYZER_RUNS", raising=False)
    assert resolve_run(str(old)) == old
    assert resolve_run("old").resolve() == old
    assert resolve_run("latest").resolve() == new
    monkeypatch.chdir("/")
    monkeypatch.setenv("ANALYZER_RUNS", str(tmp_path / "runs"))
    assert resolve_run("old") == old
    assert resolve_run("new", tmp_path / "runs") == new


def test_a_run_called_latest_is_found_before_the_latest(tmp_path: Path) -> None:
    manifest(tmp_path / "newer", created="2025-01-01T00:00:00+00:00")
    assert resolve_run("latest", tmp_path) == tmp_path / "newer"
    assert resolve_run("latest", manifest(tmp_path / "latest").parent) == tmp_path / "latest"


def test_a_run_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    for name in ("resnet20-1", "resnet56-1", "plain56-1"):
        manifest(tmp_path / name)
    message = (
        r"no run 'resnet20': neither .* holds a run.json; of 3 runs .* nearest are 'resnet20-1'"
    )
    with pytest.raises(RunNotFoundError, match=message):
        resolve_run("resnet20", tmp_path)
    with pytest.raises(RunNotFoundError, match=r"of 3 runs .* nearest are 'latest';"):
        resolve_run("latst", tmp_path)


@pytest.mark.parametrize("name", ["x", "latest", ""])
def test_in_an_empty_folder_the_remedy_is_to_record_a_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunNotFoundError, match=r"holds no run.*`analyzer record train.py`"):
        resolve_run(name, tmp_path)

import errno
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from analyzer.errors import RunExistsError
from analyzer.storage import parts
from analyzer.storage.run import open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter, StepRecord
from tests.analyzer.storage.storage_rows import block, record, refuse_warnings, value, written

SPLITS = STAT_COLUMNS["splits"]


def cells(path: Path, table: str, column: str) -> list[Any]:
    found: list[Any] = open_run(path).read(table, column).column(column).to_pylist()
    return found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [record(s, block("splits", s, 3)) for s in range(5)])
    run = open_run(path)
    assert run.steps["loss"].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert run.splits()["cosine"].tolist() == [
        value(s, i, SPLITS.index("cosine")) for s in range(5) for i in range(3)
    ]
    assert run.status == "finished"


def test_nan_null_and_infinities_are_told_apart(tmp_path: Path) -> None:
    values = np.array([[math.nan, math.inf, -math.inf, 0.0, 5.0, *[1e300] * 5]])
    present = np.array([[True, True, True, True, False, *[True] * 5]])
    rows = Block("splits", np.array([0], np.int32), values, present)
    path = written(tmp_path / "a", [record(0, rows)])
    nan, *others = (cells(path, "splits", name)[0] for name in SPLITS)
    assert math.isnan(nan)
    assert others == [math.inf, -math.inf, 0.0, None, *[1e300] * 5]


@settings(max_examples=20)
@given(values=arrays(np.float64, (4, 10)), present=arrays(np.bool_, (4, 10)))
def test_any_float64_survives_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: Any, present: Any
) -> None:
    path = tmp_path_factory.mktemp("runs") / "a"
    written(path, [record(0, Block("splits", np.arange(4, dtype=np.int32), values, present))])
    for place, name in enumerate(SPLITS):
        expected = [
            v if p else None for v, p in zip(values[:, place], present[:, place], strict=True)
        ]
        np.testing.assert_equal(cells(path, "splits", name), expected)


def test_statistics_that_are_not_norms_are_single_precision(tmp_path: Path) -> None:
    values = np.full((1, len(STAT_COLUMNS["layer_stats"])), 1 / 3)
    values[:, [n.endswith(("dead", "nonfinite")) for n in STAT_COLUMNS["layer_stats"]]] = 2
    path = written(tmp_path / "a", [record(0, Block("layer_stats", np.array([0]), values))])
    assert cells(path, "layer_stats", "activation_norm") == [1 / 3]
    assert cells(path, "layer_stats", "activation_mean") == [float(np.float32(1 / 3))]
    assert cells(path, "layer_stats", "activation_num_dead") == [2]


def test_logged_columns_come_and_go_and_change_their_type(tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = [
        {"k": True},
        {},
        {"k": 2},
        {"k": 2.5, "note": "é,\n"},
        {"k": None},
    ]
    records = [record(s, **columns) for s, columns in enumerate(logged)]
    steps = open_run(written(tmp_path / "a", records, flush_steps=1)).read("steps")
    assert steps.column("k").to_pylist() == [1.0, None, 2.0, 2.5, None]
    assert steps.column("note").to_pylist() == [None, None, None, "é,\n", None]


def test_a_number_that_becomes_text_costs_no_row(tmp_path: Path) -> None:
    records = [record(s, k=k) for s, k in enumerate([1, "two", math.nan])]
    path = written(tmp_path / "a", records, flush_steps=1)
    assert cells(path, "steps", "k") == ["1", "two", "nan"]


def test_a_value_that_a_column_cannot_hold_is_null_and_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    records = [record(s, learning_rate=rate) for s, rate in enumerate([0.1, "fast", 0.2, "x"])]
    path = written(tmp_path / "a", records, warn=said.append)
    assert cells(path, "steps", "learning_rate") == [0.1, None, 0.2, None]
    assert len(said) == 1
    assert "learning_rate was 'fast'" in said[0]


def test_a_later_learning_rate_has_the_unit_of_the_first(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [record(0, learning_rate=0.1, learning_rate_1=0.2)])
    (part,) = (path / "steps").iterdir()
    metadata = pq.read_schema(part).field("learning_rate_1").metadata
    assert b"group 1" in metadata[b"description"]


def test_every_name_of_a_part_holds_its_steps(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [record(s) for s in range(7)], flush_steps=3, status=None)
    wait_for(lambda: len(list((path / "steps").glob("*.parquet"))) >= 2)
    for name in sorted(p.name for p in (path / "steps").glob("*.parquet")):
        part = parts.Part.from_name(name)
        assert part is not None
        steps = pq.read_table(path / "steps" / name).column("step").to_pylist()
        assert (part.first, part.last) == (steps[0], steps[-1])


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited 10 s"
        time.sleep(0.01)


def test_rows_are_written_while_the_training_goes_on(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {}, flush_seconds=0.05, warn=refuse_warnings)
    writer.add(lambda: record(0))
    wait_for(lambda: len(open_run(tmp_path / "a").steps) == 1)
    assert open_run(tmp_path / "a").status == "running"
    writer.close("finished")


def test_the_queue_is_bounded_and_loses_nothing(tmp_path: Path) -> None:
    gate, most = threading.Event(), 0
    writer = RunWriter(tmp_path / "a", {}, queue_steps=8, warn=refuse_warnings)

    def slow(step: int) -> StepRecord:
        gate.wait(5)
        return record(step)

    def produce() -> None:
        for step in range(50):
            writer.add(lambda step=step: slow(step))  # type: ignore[misc]

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.3)
    most = len(writer._waiting)
    assert producer.is_alive()
    gate.set()
    producer.join()
    writer.close("finished")
    assert most == 8
    assert open_run(tmp_path / "a").steps["step"].tolist() == list(range(50))


@pytest.mark.alone
def test_add_costs_little(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {}, queue_steps=4096, warn=refuse_warnings)
    costs = []
    for step in range(500):
        start = time.perf_counter()
        writer.add(lambda step=step: record(step))  # type: ignore[misc]
        costs.append(time.perf_counter() - start)
    writer.close("finished")
    assert np.median(costs) < 20e-6


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_costs_later_rows_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    said: list[str] = []
    writer = RunWriter(tmp_path / "a", {}, flush_steps=1, warn=said.append)
    writer.add(lambda: record(0))
    wait_for(lambda: len(open_run(tmp_path / "a").steps) == 1)

    write_table = parts.pq.write_table

    def refuse(table: Any, path: Any, **options: Any) -> None:
        # The writer that another test left open, as a killed program does, writes elsewhere.
        if not Path(path).is_relative_to(tmp_path):
            return write_table(table, path, **options)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(parts.pq, "write_table", refuse)
    for step in range(1, 5):
        writer.add(lambda step=step: record(step))  # type: ignore[misc]
    writer.close("finished")
    assert writer.failed is not None
    assert os.strerror(code) in writer.failed
    assert len(said) == 1
    assert "the training continues" in said[0]
    run = open_run(tmp_path / "a")
    assert run.steps["step"].tolist() == [0]
    assert run.manifest["storage_error"] == writer.failed


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    writer = RunWriter(tmp_path / "file" / "a", {}, warn=said.append)
    writer.add(lambda: record(0))
    writer.close("finished")
    assert writer.failed is not None
    assert len(said) == 1


def test_an_exception_in_a_step_costs_that_step_and_one_warning(tmp_path: Path) -> None:
    said: list[str] = []
    writer = RunWriter(tmp_path / "a", {}, warn=said.append)
    for step in range(4):
        make = (lambda: 1 / 0) if step in (1, 2) else (lambda step=step: record(step))
        writer.add(make)  # type: ignore[arg-type]
    writer.close("finished")
    assert open_run(tmp_path / "a").steps["step"].tolist() == [0, 3]
    assert len(said) == 1
    assert "ZeroDivisionError" in said[0]
    assert writer.failed is None


def test_a_block_of_the_wrong_shape_costs_its_step_alone(tmp_path: Path) -> None:
    wrong = Block("splits", np.arange(2, dtype=np.int32), np.ones((2, 5)))
    said: list[str] = []
    records = [record(0), record(1, wrong), record(2)]
    path = written(tmp_path / "a", records, warn=said.append)
    assert open_run(path).steps["step"].tolist() == [0, 2]
    assert "values of splits are (2, 5), expected (2, 10)" in said[0]


def test_a_later_attempt_removes_what_a_killed_one_left_half_written(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [record(0)])
    old, young = path / "steps" / ".1-0.tmp", path / "steps" / ".2-0.tmp"
    for hidden in (old, young):
        hidden.write_text("half")
    os.utime(old, (0, 0))
    written(path, [record(1)], attempt=1)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunExistsError, match="exists and holds something; a run is never overwr"):
        RunWriter(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {"seed": 3}, warn=refuse_warnings)
    writer.close("failed", "ValueError: no", seconds=1.5)
    writer.close("finished")
    writer.add(lambda: record(0))
    manifest = json.loads((tmp_path / "a" / "run.json").read_text())
    assert manifest["status"] == "failed"
    assert manifest["error"] == "ValueError: no"
    assert (manifest["seed"], manifest["seconds"]) == (3, 1.5)


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {}, warn=refuse_warnings)
    pid, writer._pid = writer._pid, -1
    writer.add(lambda: record(0))
    writer.close("failed")
    writer._pid = pid
    writer.add(lambda: record(1))
    writer.close("finished")
    assert open_run(tmp_path / "a").steps["step"].tolist() == [1]


def test_static_tables_are_replaced_in_order(tmp_path: Path) -> None:
    row = {"name": "fc", "operation": "add", "shortcut": "identity", "branch_layers": ["a", "b"]}
    row |= {"shortcut_layers": [], "branch_parameters": 2, "shortcut_parameters": 0}
    writer = RunWriter(tmp_path / "a", {}, warn=refuse_warnings)
    for count in (1, 2, 3):
        writer.write_joins([{"join": i, **row} for i in range(count)])
    writer.close("finished")
    run = open_run(tmp_path / "a")
    assert run.joins["branch_layers"].tolist() == [["a", "b"]] * 3
    assert run.manifest["num_joins"] == 3


def test_a_checkpoint_appears_whole_under_its_step(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {}, warn=refuse_warnings)
    writer.write_checkpoint(12, lambda path: path.write_bytes(b"weights"))
    writer.close("finished")
    assert (tmp_path / "a/checkpoints/step-000000000012.safetensors").read_bytes() == b"weights"


def test_a_probe_keeps_types_metadata_and_null(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {}, warn=refuse_warnings)
    columns = {"length": [0, 1], "num_paths": [1, 2], "share": [0.25, None]}
    writer.write_probe("paths", 3, columns, {"batch": "first"})
    writer.write_probe("paths", 9, {"length": np.array([0]), "num_paths": [1.0], "share": [1.0]})
    writer.close("finished")
    run = open_run(tmp_path / "a")
    assert run.probes == ["paths"]
    assert run.probe("paths")["step"].tolist() == [3, 3, 9]
    assert run.probe("paths")[["step", *columns]].dtypes.astype(str).tolist() == [
        "int64",
        "int32",
        "float64",
        "float64",
    ]
    assert run.probe_metadata("paths") == {3: {"batch": "first"}, 9: {}}


@pytest.mark.parametrize("name", ["../up", "a/b", "", "a.b"])
def test_a_probe_whose_name_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    writer = RunWriter(tmp_path / "a", {}, warn=refuse_warnings)
    with pytest.raises(ValueError, match="expected letters, digits, _ and -"):
        writer.write_probe(name, 0, {"x": [1]})
    writer.close("finished")


def test_only_rank_0_writes_the_manifest_and_static_tables(tmp_path: Path) -> None:
    written(tmp_path / "a", [record(0)], rank=1)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["steps"]

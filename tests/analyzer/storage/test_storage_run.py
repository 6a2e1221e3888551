import json
import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyzer.errors import NotRecordedError, RunNotFoundError, SchemaError
from analyzer.storage.run import Run, open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import RunWriter
from tests.analyzer.storage.storage_rows import block, record, refuse_warnings, value, written

ROOT = Path(__file__).parents[3]
NAMES = ["a", "b/c", "<script>", "größe ∂ 网络", "n" * 300]
NORM = STAT_COLUMNS["layer_stats"].index("output_gradient_norm")


def layer(id_: int, name: str) -> dict[str, Any]:
    row = {"layer": id_, "name": name, "module": name, "call": 0, "kind": "Linear", "depth": id_}
    return row | {"num_parameters": 3, "output_shape": [8, 4], "join": None, "role": None}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 recorded steps, every second one, of five layers."""
    folder = tmp_path_factory.mktemp("runs") / "five"
    writer = RunWriter(folder, {"seed": 1}, flush_steps=4, warn=refuse_warnings)
    writer.write_layers([layer(i, name) for i, name in enumerate(NAMES)])
    for step in range(0, 40, 2):
        made = record(step, block("layer_stats", step, 5), time=1_000_000 * step)
        writer.add(lambda made=made: made)  # type: ignore[misc]
    writer.close("finished")
    return folder


@pytest.fixture
def run(path: Path) -> Run:
    return open_run(path)


def test_static_tables_come_back_with_hostile_names(run: Run) -> None:
    assert run.layers["name"].tolist() == NAMES
    assert run.layers["output_shape"].tolist() == [[8, 4]] * 5
    assert run.layers["join"].isna().all()
    assert str(run.layers["layer"].dtype) == "int32"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, list(range(0, 40, 2))),
        (6, [6]),
        (7, []),
        (-1, [38]),
        (-3, [34]),
        (slice(4, 10), [4, 6, 8]),
        (slice(-2, None), [36, 38]),
        (slice(None, -17), [0, 2, 4]),
        (slice(2, None, 10), [2, 12, 22, 32]),
        (range(0, 12, 4), [0, 4, 8]),
        ([8, 2, -1, 999], [2, 8, 38]),
        (np.array([10, 12]), [10, 12]),
        ([], []),
    ],
)
def test_steps_are_those_that_were_asked_for(run: Run, asked: Any, expected: list[int]) -> None:
    frame = run.layer_stats("output_gradient_norm", layers=1, steps=asked)
    assert frame["step"].tolist() == expected
    assert frame["output_gradient_norm"].tolist() == [value(s, 1, NORM) for s in expected]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(2, [2]), ("<script>", [2]), (["b/c", 4], [1, 4]), ([], []), (None, [0, 1, 2, 3, 4])],
)
def test_layers_are_named_by_id_or_name(run: Run, asked: Any, expected: list[int]) -> None:
    assert run.layer_stats(layers=asked, steps=0)["layer"].tolist() == expected


def test_only_the_columns_that_were_asked_for_are_returned(run: Run) -> None:
    frame = run.layer_stats(["output_gradient_norm", "activation_mean"])
    assert frame.columns.tolist() == ["step", "layer", "output_gradient_norm", "activation_mean"]
    assert run.layer_stats().columns.tolist() == ["step", "layer", *STAT_COLUMNS["layer_stats"]]


def test_only_what_was_asked_for_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    original = pq.ParquetFile.read_row_groups

    def spy(self: pq.ParquetFile, groups: list[int], columns: list[str], **rest: Any) -> pa.Table:
        asked.append((groups, columns))
        return original(self, groups, columns=columns, **rest)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", spy)
    run.profile("activation_mean", 6)
    assert asked == [([0], ["step", "layer", "activation_mean"])]
    asked.clear()
    run.layer_stats("activation_mean", steps=[1000])
    assert asked == []


def test_a_profile_is_one_column_of_one_step(run: Run) -> None:
    ids, values = run.profile("output_gradient_norm", 12)
    assert ids.tolist() == [0, 1, 2, 3, 4]
    assert values.tolist() == [value(12, i, NORM) for i in range(5)]


def test_batches_are_the_rows_in_pieces(run: Run) -> None:
    whole = pa.concat_tables(list(run.batches("layer_stats", most_steps=7)))
    assert whole.equals(run.read("layer_stats").combine_chunks()) or whole == run.read(
        "layer_stats"
    )
    assert len(list(run.batches("layer_stats", most_steps=7))) == 3


def test_recorded_steps_are_those_of_the_table(run: Run) -> None:
    assert run.layer_steps().tolist() == list(range(0, 40, 2))
    assert run.recorded_steps("splits").tolist() == []
    assert run.splits().empty
    assert run.probes == []


def test_times_are_in_utc(run: Run) -> None:
    assert run.steps["time"][3] == datetime(1970, 1, 1, 0, 0, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: run.layer_stats("activation_nrm"), "nearest are 'activation_norm'"),
        (lambda run: run.layer_stats(layers="d"), "layer 'd' is not in this run"),
        (lambda run: run.layer_stats(layers=5), "layer 5 is not in this run; expected 0 to 4"),
        (lambda run: run.layer_stats(layers=-1), "layer -1 is not in this run"),
        (lambda run: run.profile("loss", 0), "'loss' is not a statistic"),
        (lambda run: run.series("accuracy"), "column 'accuracy' is not in steps"),
        (lambda run: run.probe("paths"), "probe 'paths' was not measured: run 'five' has none"),
        (lambda run: run.probe("../layer_stats"), "is no probe: run 'five' has none"),
    ],
)
def test_what_was_not_recorded_is_said(run: Run, ask: Any, message: str) -> None:
    with pytest.raises(NotRecordedError, match=message):
        ask(run)


@pytest.mark.parametrize("steps", ["3", 1.5, True])
def test_steps_of_another_type_are_refused(run: Run, steps: Any) -> None:
    with pytest.raises(TypeError, match="expected a step, a slice, a range or a list"):
        run.layer_stats(steps=steps)


def manifest(path: Path, **fields: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "run.json").write_text(json.dumps({"schema_version": 1} | fields))
    return path


def test_a_newer_schema_is_refused_with_the_versions_that_are_read(tmp_path: Path) -> None:
    message = r"has schema version 9; this analyzer reads 1 to 2\. Upgrade analyzer"
    with pytest.raises(SchemaError, match=message):
        open_run(manifest(tmp_path, schema_version=9))


@pytest.mark.parametrize("version", [None, "1", True, 0, 1.0])
def test_a_foreign_schema_version_is_refused(tmp_path: Path, version: Any) -> None:
    with pytest.raises(SchemaError, match=r"this analyzer reads 1 to 2\. It was not written by"):
        open_run(manifest(tmp_path, schema_version=version))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1', "\x00", "[" * 100_000])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SchemaError, match=r"run\.json is damaged"):
        open_run(tmp_path)


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match=r"expected a file run\.json in it"):
        open_run(tmp_path)
    with pytest.raises(RunNotFoundError, match="the folder does not exist"):
        open_run(tmp_path / "no")


def test_a_path_in_the_manifest_is_only_data(tmp_path: Path) -> None:
    secret = manifest(tmp_path / "secret", name="secret")
    run = open_run(manifest(tmp_path / "a", steps="/etc/passwd", layers=str(secret)))
    assert run.manifest["layers"] == str(secret)
    assert run.layers.empty
    assert run.steps.empty


@pytest.mark.parametrize(
    ("age", "status"), [(0, "running"), (29, "running"), (31, "crashed"), (10**6, "crashed")]
)
def test_a_run_without_a_heartbeat_has_crashed(tmp_path: Path, age: int, status: str) -> None:
    heartbeat = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    assert open_run(manifest(tmp_path, status="running", heartbeat=heartbeat)).status == status


@pytest.mark.parametrize("heartbeat", [None, "soon", 3])
def test_a_heartbeat_that_is_no_time_is_none(tmp_path: Path, heartbeat: Any) -> None:
    assert open_run(manifest(tmp_path, status="running", heartbeat=heartbeat)).status == "crashed"


def test_an_open_run_follows_the_heartbeat(tmp_path: Path) -> None:
    old = (datetime.now(UTC) - timedelta(seconds=60)).isoformat()
    run = open_run(manifest(tmp_path, status="running", heartbeat=old))
    assert run.status == "crashed"
    manifest(tmp_path, status="running", heartbeat=datetime.now(UTC).isoformat())
    assert run.status == "running"
    manifest(tmp_path, status="interrupted")
    assert run.status == "interrupted"


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "no step"])
def test_a_damaged_part_is_left_out_and_named(tmp_path: Path, damage: str) -> None:
    records = [record(s, block("splits", s, 1)) for s in range(6)]
    path = written(tmp_path / "a", records, flush_steps=2, status=None)
    wait_for_parts(path, 3)
    first = min((path / "splits").iterdir())
    whole = first.read_bytes()
    first.unlink()
    if damage == "no step":
        pq.write_table(pa.table({"x": [1]}), first)
    else:
        first.write_bytes(
            {"truncated": whole[:-20], "empty": b"", "foreign": b"GIF89a" * 99}[damage]
        )
    run = open_run(path)
    assert run.splits()["step"].tolist() == [2, 3, 4, 5]
    assert len(run.warnings) == 1
    assert f"splits/{first.name} cannot be read" in run.warnings[0]


def wait_for_parts(path: Path, count: int) -> None:
    import time

    end = time.monotonic() + 10
    while len(open_run(path).steps) < 2 * count:
        assert time.monotonic() < end, "waited 10 s"
        time.sleep(0.01)


def test_a_damaged_static_table_is_left_out_and_named(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    (path / "layers.parquet").write_bytes(b"PAR1")
    run = open_run(path)
    assert run.layers.empty
    assert "layers.parquet cannot be read" in run.warnings[0]


def test_files_outside_the_run_are_not_read_through_links(tmp_path: Path) -> None:
    other = written(tmp_path / "other", [record(0, block("splits", 0, 1))])
    path = manifest(tmp_path / "a")
    (path / "steps").symlink_to(other / "steps")
    (path / "splits").mkdir()
    for part in (other / "splits").iterdir():
        (path / "splits" / part.name).symlink_to(part)
    (path / "layers.parquet").symlink_to(other / "run.json")
    run = open_run(path)
    assert (len(run.steps), len(run.splits()), len(run.layers)) == (0, 0, 0)


def test_the_newest_attempt_has_a_step(tmp_path: Path) -> None:
    path = tmp_path / "a"
    written(path, [record(s, block("splits", s, 1)) for s in range(10)])
    later = [record(s, block("splits", s, 1), loss=-1.0) for s in range(6, 8)]
    written(path, [type(r)({**r.step, "loss": -1.0}, r.blocks) for r in later], attempt=1)
    run = open_run(path)
    assert run.steps["loss"].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, -1, -1, 8.5, 9.5]
    assert run.steps["attempt"].tolist() == [0] * 6 + [1, 1, 0, 0]
    assert run.splits()["step"].tolist() == list(range(10))
    assert len(run.raw_steps()) == 12
    assert run.manifest["steps"] == 10


def test_a_refresh_shows_what_was_written_since(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [record(0)])
    run = open_run(path)
    assert len(run.steps) == 1
    written(path, [record(1)], attempt=1)
    assert len(run.steps) == 1
    run.refresh()
    assert len(run.steps) == 2
    assert run.series("loss").mean.tolist() == [0.5, 1.5]


def test_columns_of_a_frame_are_plain_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [record(0, epoch=3, skipped=False), record(1, skipped=True)])
    steps = open_run(path).steps
    assert steps["skipped"].tolist() == [False, True]
    assert steps["epoch"][0] == 3
    assert math.isnan(steps["epoch"][1])


def test_reading_loads_neither_torch_nor_plotly_and_opening_no_pandas(path: Path) -> None:
    code = (
        "import sys; from analyzer.storage.run import open_run; run = open_run(sys.argv[1]); "
        "run.profile('activation_mean', 0); "
        "heavy = {'torch', 'plotly', 'dash', 'pandas'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_writing_does_not_load_pandas(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import tests.archives.make as archive; "
        "archive.main(Path(sys.argv[1])); sys.exit('pandas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True, cwd=ROOT)

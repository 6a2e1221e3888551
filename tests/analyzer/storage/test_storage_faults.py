import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from analyzer.errors import RunExistsError
from analyzer.storage import bin_writer, folder, manifest, parts, sealed, writer
from analyzer.storage.run import open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter
from tests.analyzer.storage.storage_faults import flipped, quick, survive, swapped, truncated
from tests.analyzer.storage.storage_rows import block, record, refuse_warnings, value, written
from tests.support.runs import layer_row

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("seed", range(60))
def test_a_fault_costs_only_what_it_hits_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    survive(tmp_path / "run", seed, monkeypatch)


@pytest.mark.slow
def test_two_thousand_faults(tmp_path: Path) -> None:
    kinds, failures = Counter[str](), []
    for seed in range(1000, 3000):
        with pytest.MonkeyPatch.context() as patch:
            try:
                kinds[survive(tmp_path / str(seed), seed, patch)] += 1
            except AssertionError as error:
                failures.append((seed, str(error)[:200]))
    assert not failures, failures
    assert len(kinds) == 12 and min(kinds.values()) > 100


def refusing(
    patch: pytest.MonkeyPatch, run: Path, calls: range, error: type[Exception] = OSError
) -> None:
    """Let the disk refuse some of the tables that are written to a run."""
    plain, count = parts.pq.write_table, [0]

    def write(table: Any, path: Any, **options: Any) -> None:
        if Path(path).is_relative_to(run):
            count[0] += 1
            if count[0] in calls:
                raise error(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(table, path, **options)

    patch.setattr(parts.pq, "write_table", write)


def parts_of(run: Path, table: str = "steps") -> list[Path]:
    return sorted((run / table).glob("*.parquet"))


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_refusal_that_passes_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    refusing(monkeypatch, tmp_path, range(first, first + 2))
    run = open_run(written(tmp_path / "a", [record(s, block("splits", s, 2)) for s in range(9)]))
    assert run.steps["step"].tolist() == list(range(9))
    assert run.splits()["cosine"].tolist() == [value(s, i, 4) for s in range(9) for i in range(2)]
    assert (run.status, run.warnings) == ("finished", [])
    assert "storage_error" not in run.manifest and "lost_steps" not in run.manifest


def test_what_waited_when_the_disk_refused_for_good_is_written_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        run = RunWriter(tmp_path / "a", {}, flush_steps=1, warn=said.append)
        refusing(patch, tmp_path, range(1, 10**9))
        for step in range(3):
            run.add(lambda step=step: record(step))  # type: ignore[misc]
        wait_for(lambda: run.failed is not None)
        for step in range(3, 8):
            run.add(lambda step=step: record(step))  # type: ignore[misc]
        assert (run.written_steps, run.lost_steps) == (0, 5)
    run.close("finished")
    found = open_run(tmp_path / "a")
    assert found.steps["step"].tolist() == [0, 1, 2]
    assert (run.written_steps, run.lost_steps, len(said)) == (3, 5, 1)
    assert found.manifest["lost_steps"] == 5 and found.manifest["steps"] == 3
    assert "No space left" in found.manifest["storage_error"]


def test_a_full_disk_still_takes_the_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    run = RunWriter(tmp_path / "a", {}, flush_steps=1, warn=lambda _: None)
    run.add(lambda: record(0))
    wait_for(lambda: run.written_steps == 1)
    plain, reserve = manifest.write_manifest, tmp_path / "a" / ".reserve.tmp"

    def write(path: Path, fields: Any) -> None:
        if reserve.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(path, fields)

    monkeypatch.setattr(manifest, "write_manifest", write)
    refusing(monkeypatch, tmp_path, range(1, 10**9))
    run.add(lambda: record(1))
    wait_for(lambda: "storage_error" in open_run(tmp_path / "a").manifest)
    assert open_run(tmp_path / "a").status == "running" and reserve.exists()
    run.close("finished")
    said = open_run(tmp_path / "a").manifest
    assert (said["status"], said["steps"], said["last_loss"]) == ("finished", 1, 0.5)
    assert said["lost_steps"] == 1 and "No space left" in said["storage_error"]
    assert not reserve.exists()


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 s"
        time.sleep(0.002)


def test_rows_that_wait_take_a_bounded_amount_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_MOST_WAITING_BYTES", 3000)
    monkeypatch.setattr(folder, "_RETRY_SECONDS", 0.0)
    run = RunWriter(tmp_path / "a", {}, flush_steps=1, warn=[].append)  # type: ignore[arg-type]
    refusing(monkeypatch, tmp_path, range(1, 10**9))
    for step in range(50):
        run.add(lambda step=step: record(step))  # type: ignore[misc]
    wait_for(lambda: run.failed is not None)
    assert sum(one.num_bytes for one in run._folder._flushes) < 6000
    run.close("finished")
    assert run.lost_steps == 50


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_disk_that_does_not_answer_costs_ten_seconds_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    assert writer._PATIENCE_SECONDS + writer._LAST_SECONDS == 10.0
    monkeypatch.setattr(writer, "_PATIENCE_SECONDS", 0.8)
    monkeypatch.setattr(writer, "_LAST_SECONDS", 0.2)
    gate, plain, said = threading.Event(), parts.pq.write_table, []

    def write(table: Any, path: Any, **options: Any) -> None:
        if Path(path).is_relative_to(tmp_path):
            gate.wait(60)
        plain(table, path, **options)

    monkeypatch.setattr(parts.pq, "write_table", write)
    run = RunWriter(tmp_path / "a", {}, flush_steps=1, queue_steps=8, warn=said.append)
    started = time.monotonic()
    for step in range(100):
        run.add(lambda step=step: record(step))  # type: ignore[misc]
    assert 0.5 < time.monotonic() - started < 5.0
    dropped = run.lost_steps
    assert 80 < dropped < 100 and "the disk did not answer" in said[0]
    if comes_back:
        gate.set()
        wait_for(lambda: not run._waiting)
        run.add(lambda: record(100))
        run.close("finished")
        found = open_run(tmp_path / "a")
        assert found.steps["step"].tolist() == [*range(100 - dropped), 100]
        assert (run.written_steps, run.lost_steps) == (101 - dropped, dropped)
        assert found.manifest["lost_steps"] == dropped
        assert "did not answer" in found.manifest["storage_error"]
    else:
        started = time.monotonic()
        run.close("finished")
        assert time.monotonic() - started < 5.0
        assert (run.written_steps, run.lost_steps) == (0, 100)
        assert run.failed is not None and "did not answer" in run.failed
        assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "running"
        gate.set()
        run._thread.join(30)
    assert len(said) <= 2


def test_a_run_of_which_the_recorder_lost_rows_is_not_finished(tmp_path: Path) -> None:
    wrong = Block("splits", np.arange(2, dtype=np.int32), np.ones((2, 5)))
    said: list[str] = []
    path = written(tmp_path / "a", [record(0), record(1, wrong), record(2)], warn=said.append)
    run = open_run(path)
    assert run.status == "failed"
    expected = len(STAT_COLUMNS["splits"])
    assert f"values of splits are (2, 5), expected (2, {expected})" in run.manifest["error"]
    assert run.manifest["lost_steps"] == 1
    assert len(said) == 1


def test_an_error_inside_the_writing_names_table_and_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = folder.stat_rows

    def broken(table: str, *rest: Any) -> Any:
        return plain(table, *rest) if table != "splits" else 1 / 0

    monkeypatch.setattr(folder, "stat_rows", broken)
    records = [record(s, *([block("splits", s, 2)] if s == 3 else [])) for s in range(6)]
    run = open_run(written(tmp_path / "a", records, flush_steps=2, warn=[].append))
    assert run.steps["step"].tolist() == [0, 1, 4, 5]
    assert run.status == "failed" and run.manifest["lost_steps"] == 2
    assert "splits of steps 2 to 3: ZeroDivisionError" in run.manifest["error"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_warning_that_is_an_error_does_not_stop_the_writer(tmp_path: Path) -> None:
    wrong = Block("splits", np.arange(2, dtype=np.int32), np.ones((2, 5)))
    run = open_run(written(tmp_path / "a", [record(0, wrong), record(1)], warn=refuse_warnings))
    assert run.steps["step"].tolist() == [1]


def test_of_many_writers_at_one_instant_one_has_the_folder(tmp_path: Path) -> None:
    for attempt in range(20):
        path, won, start = tmp_path / str(attempt), [], threading.Barrier(4)
        if attempt % 2:
            path.mkdir()

        def begin(path: Path = path, won: list[Any] = won, start: Any = start) -> None:
            start.wait()
            try:
                won.append(RunWriter(path, {}, warn=refuse_warnings))
            except RunExistsError:
                won.append(None)

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (only,) = filter(None, won)
        only.close("finished")
        assert open_run(path).status == "finished"


PROCESS = """
import sys, time
from pathlib import Path
from analyzer.errors import RunExistsError
from analyzer.storage.writer import RunWriter
print("ready", flush=True)
for name in sys.stdin:
    try:
        RunWriter(Path(name.strip()), {}).close("finished")
        print("won", flush=True)
    except RunExistsError:
        print("lost", flush=True)
"""


def test_of_two_processes_at_one_instant_one_has_the_folder(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for one in processes:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for attempt in range(30):
        for one in processes:
            assert one.stdin is not None
            one.stdin.write(f"{tmp_path / str(attempt)}\n")
            one.stdin.flush()
        answers = [one.stdout.readline() for one in processes if one.stdout is not None]
        assert sorted(answers) == ["lost\n", "won\n"]
    for one in processes:
        one.communicate()


def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of six steps in six parts that were never merged."""
    monkeypatch.setattr(parts.PartSeries, "finish", lambda self, _: None)
    return written(tmp_path / "a", [record(s) for s in range(6)], flush_steps=1)


def test_a_part_that_is_gone_is_named_wherever_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = several(tmp_path, monkeypatch)
    first, _, third, *_, last = parts_of(path)
    for gone in (first, third, last):
        gone.unlink()
    run = open_run(path)
    assert run.steps["step"].tolist() == [1, 3, 4]
    assert [sentence.partition(" are missing")[0] for sentence in run.warnings] == [
        "steps: rows before step 1",
        "steps: rows after step 1 and before step 3",
        "steps: rows after step 4",
    ]


@pytest.mark.parametrize("spoil", [truncated, flipped])
def test_a_damaged_part_is_named_with_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    path = several(tmp_path, monkeypatch)
    bad = parts_of(path)[2]
    spoil(bad, None, random.Random(0))
    run = open_run(path)
    assert run.steps["step"].tolist() == [0, 1, 3, 4, 5]
    (sentence,) = run.warnings
    assert f"steps/{bad.name} cannot be read and is left out" in sentence
    assert "it held steps 2 to 2" in sentence


def test_parts_with_each_others_names_are_read_as_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = several(tmp_path, monkeypatch)
    one, other = parts_of(path)[1:5:3]
    swapped(one, other, random.Random(0))
    run = open_run(path)
    assert run.steps["loss"].tolist() == [s + 0.5 for s in range(6)]
    assert run.read("steps", "loss", steps=4).column("loss").to_pylist() == [4.5]
    assert sorted(run.warnings) == [
        f"steps/{a.name} is {b.name} under another name, and is read as that"
        for a, b in ((one, other), (other, one))
    ]


@pytest.mark.slow
def test_each_byte_of_a_part_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = several(tmp_path, monkeypatch)
    part = parts_of(path)[2]
    whole, silent = part.read_bytes(), 0
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        part.write_bytes(data)
        os.utime(part, ns=(place, place))
        run = open_run(path)
        steps = run.steps["step"].tolist()
        silent += not run.warnings
        assert steps == [0, 1, 2, 3, 4, 5] if not run.warnings else steps == [0, 1, 3, 4, 5]
    assert silent == 0


def test_every_program_that_reads_parquet_reads_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = parts_of(several(tmp_path, monkeypatch))[2]
    assert pq.read_table(part).column("loss").to_pylist() == [2.5]
    place = (pq.read_metadata(part).metadata or {})[b"place"]
    assert place.decode() == f"steps/{part.name}"


@pytest.mark.parametrize("spoil", ["removed", "damaged"])
def test_a_merge_passes_by_a_part_that_is_damaged_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(parts, "FAN_IN", 100)
    run = RunWriter(tmp_path / "a", {}, flush_steps=1, warn=refuse_warnings)
    for step in range(7):
        run.add(lambda step=step: record(step))  # type: ignore[misc]
    wait_for(lambda: run.written_steps == 7)
    bad = parts_of(tmp_path / "a")[3]
    data = bad.read_bytes()
    if spoil == "removed":
        bad.unlink()
    else:
        bad.write_bytes(data[:-40])
    run.close("finished")
    found = open_run(tmp_path / "a")
    assert found.steps["step"].tolist() == [0, 1, 2, 4, 5, 6]
    assert found.manifest["damaged"][0].startswith(f"steps/{bad.name}: ")
    assert len(parts_of(tmp_path / "a")) == (2 if spoil == "removed" else 3)
    assert len(found.warnings) == 1
    assert spoil == "removed" or bad.read_bytes() == data[:-40]


def test_parts_stay_until_the_one_that_holds_their_rows_is_seen_to_be_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = parts.PartSeries._remove_older_than

    def spoiled(self: Any, seconds: float) -> None:
        for merged in self._merged_away:
            path = self.folder / merged.whole.part.name
            path.write_bytes(path.read_bytes()[:-40])
        plain(self, seconds)

    monkeypatch.setattr(parts.PartSeries, "_remove_older_than", spoiled)
    path = written(tmp_path / "a", [record(s) for s in range(6)], flush_steps=1)
    run = open_run(path)
    assert run.steps["step"].tolist() == list(range(6))
    assert len(parts_of(path)) == 7 and len(run.warnings) == 1
    assert len(run.manifest["damaged"]) == 1


def test_a_short_run_has_no_overview_and_is_seen_as_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(s, block("splits", s, 3)) for s in range(300)]
    plain = open_run(written(tmp_path / "a", records))
    assert not (tmp_path / "a" / "overview").exists()
    monkeypatch.setattr(bin_writer, "LEAST_ROWS", 0)
    binned = open_run(written(tmp_path / "b", records))
    assert (tmp_path / "b" / "overview" / "splits").exists()
    for bins in (10, 1000):
        for a, b in (
            (plain.heatmap("cosine", bins), binned.heatmap("cosine", bins)),
            (plain.series("loss", max_points=bins), binned.series("loss", max_points=bins)),
        ):
            for name in ("steps", "min", "mean", "max", "num_nonfinite", "width"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("attempt", [0, 1])
@pytest.mark.parametrize("spoils", [False, True])
def test_bins_begin_with_the_rows_before_and_are_made_again_where_they_were_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoils: bool, attempt: int
) -> None:
    monkeypatch.setattr(bin_writer, "LEAST_ROWS", 100)
    path = tmp_path / "a"
    if attempt:
        written(path, [record(s) for s in range(70)], flush_steps=10)
        assert not (path / "overview").exists()
    run = RunWriter(path, {}, flush_steps=10, attempt=attempt, warn=refuse_warnings)
    for step in range(60 if attempt else 0, 2100):
        run.add(lambda step=step: record(step))  # type: ignore[misc]
    wait_for(lambda: run.written_steps > 1900)
    bins = sorted((path / "overview" / "steps").iterdir())
    assert len(bins) > 1
    if spoils:
        bins[1].write_bytes(bins[1].read_bytes()[:-60])
        bins[-2].unlink()
    run.close("finished")
    (whole,) = (path / "overview" / "steps").glob("*.parquet")
    assert whole.name == "000000000000-000000002100.w4.parquet"
    seen = open_run(path).series("loss", max_points=10**6)
    assert seen.mean.tolist() == [step + 2.0 for step in range(0, 2100, 4)]


def test_a_folder_that_is_removed_while_it_is_written_has_the_names_of_what_follows(
    tmp_path: Path,
) -> None:
    writer = RunWriter(tmp_path / "a", {}, flush_seconds=0.0, warn=refuse_warnings)
    writer.write_layers([layer_row(0, "first"), layer_row(1, "second")])
    writer.add(lambda: record(0, block("layer_stats", 0, 2)))
    while not list((tmp_path / "a").glob("steps/*.parquet")):
        time.sleep(0.01)
    shutil.rmtree(tmp_path / "a")
    writer.add(lambda: record(1, block("layer_stats", 1, 2)))
    writer.close("finished")
    run = open_run(tmp_path / "a")
    assert run.layers["name"].tolist() == ["first", "second"]
    assert run.recorded_steps().tolist() == [1]
    assert any("steps" in line for line in run.warnings)


def test_a_static_table_that_is_gone_is_named(tmp_path: Path) -> None:
    row = {"parameter": 0, "name": "w", "shape": [1], "num_elements": 1, "trained": True}
    run = RunWriter(tmp_path / "a", {}, warn=refuse_warnings)
    run.write_parameters([row | {"placement": "replicated"}])
    run.close("finished")
    (tmp_path / "a" / "parameters.parquet").unlink()
    found = open_run(tmp_path / "a")
    assert len(found.parameters) == len(found.layers) == 0
    assert found.warnings == ["parameters.parquet is missing"]


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "summary.parquet"
    os.mkfifo(pipe)
    # Ends the wait, should there be one: what opens a pipe waits for who writes.
    writer = threading.Timer(5, lambda: pipe.write_bytes(b""))
    writer.daemon = True
    writer.start()
    with pytest.raises(ValueError, match="a pipe"):
        sealed.open_file(pipe)
    writer.cancel()

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from analyzer.storage.run import Run, open_run

ROOT = Path(__file__).parents[3]
# Merges every 4 parts instead of 50, so that a second of writing is full of merges.
WRITER = """
import sys, time
from pathlib import Path
from analyzer.storage import parts
from tests.analyzer.storage.storage_rows import block, record
from analyzer.storage.writer import RunWriter

parts.FAN_IN = 4
writer = RunWriter(Path(sys.argv[1]), {}, flush_steps=3)
for step in range(int(sys.argv[2])):
    writer.add(lambda step=step: record(step, block("splits", step, 3)))
    time.sleep(0.0005)
writer.close("finished")
"""


@contextmanager
def writing(path: Path, steps: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes a run; it has begun, and is ended with the block."""
    command = [sys.executable, "-c", WRITER, str(path), str(steps)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            wait_for_run(path)
            yield process
        finally:
            process.kill()


def check_whole(run: Run) -> int:
    """Every step up to the last one, each with its three rows; returns the number of steps."""
    steps = run.steps["step"].tolist()
    rows = run.splits()[["step", "join"]].to_numpy().tolist()
    assert run.warnings == []
    assert steps == list(range(len(steps)))
    # `splits` is read later and written earlier, so it may be ahead of `steps`, never behind.
    assert len(rows) >= 3 * len(steps)
    assert rows == [[s, j] for s in range(len(rows) // 3) for j in range(3)]
    return len(steps)


def check_series(run: Run) -> None:
    """The mean of each bin is that of the rows in it; the rows may be older than the bins."""
    losses, seen = run.steps["loss"].tolist(), run.series("loss", max_points=10**6)
    full = len(losses) // seen.width
    means = [sum(losses[i * seen.width : (i + 1) * seen.width]) / seen.width for i in range(full)]
    assert seen.mean[:full].tolist() == pytest.approx(means)
    assert len(seen.steps) >= full


def wait_for_run(path: Path) -> None:
    end = time.monotonic() + 30
    while not (path / "run.json").exists():
        assert time.monotonic() < end, "the writer did not begin"
        time.sleep(0.005)


@pytest.mark.no_cover
def test_a_reader_beside_a_writer_sees_whole_steps_once(tmp_path: Path) -> None:
    seen = [0]
    with writing(tmp_path / "a", 1500) as process:
        run = open_run(tmp_path / "a")
        while process.poll() is None:
            run.refresh()
            seen.append(check_whole(run))
            check_series(run)
        assert process.returncode == 0
    run.refresh()
    assert check_whole(run) == 1500
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_run_keeps_every_flush(tmp_path: Path, seed: int) -> None:
    with writing(tmp_path / "a", 100_000) as process:
        time.sleep(random.Random(seed).uniform(0.1, 0.9))
        before = check_whole(open_run(tmp_path / "a"))
        process.send_signal(signal.SIGKILL)
        process.wait()
    run = open_run(tmp_path / "a")
    assert check_whole(run) >= before
    check_series(run)
    assert run.manifest["status"] == "running"

"""One surface evaluated by several processes through one file."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import analyzer
from analyzer.probes.landscape import surface

AXIS = np.linspace(-1, 1, 9)


class Told:
    """A loss that notes each call in a file of its process, and may take its time."""

    def __init__(self, notes: Path, seconds: float) -> None:
        self.notes, self.seconds = notes, seconds

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        value = cross_entropy(output, target)
        with self.notes.open("a") as file:
            file.write(f"{value.item()!r}\n")
        time.sleep(self.seconds)
        return value


def evaluate(folder: Path, number: int, mode: str, seconds: float, begin: object) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(6, 4) * 3, torch.arange(6) % 3)]
    axis = AXIS if mode == "exact" else np.linspace(-1, 1, 21)
    begin.wait(60)
    began = time.monotonic()
    found = surface(
        model,
        batches,
        Told(folder / f"told-{number}.txt", seconds),
        analyzer.random_directions(model),
        axis,
        axis,
        mode=mode,
        batch_norm="recompute",  # so that there is no trial of faster methods
        resume=folder / "points" if number >= 0 else None,
    )
    (folder / f"took-{number}.txt").write_text(str(time.monotonic() - began))
    np.save(folder / f"found-{number}.npy", found.losses)


@pytest.fixture(scope="module")
def processes():
    # Children are forked from a process that has torch: a new one takes seconds to import it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def told(folder: Path, number: int) -> list[str]:
    file = folder / f"told-{number}.txt"
    return file.read_text().split() if file.exists() else []


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_two_processes_give_the_values_of_one_and_no_point_twice(mode, processes, tmp_path):
    begin = processes.Barrier(2)
    given = [(tmp_path, number, mode, 0.002, begin) for number in (0, 1)]
    children = [processes.Process(target=evaluate, args=one) for one in given]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    evaluate(tmp_path, -1, mode, 0.0, processes.Barrier(1))
    alone, first, second = (np.load(tmp_path / f"found-{n}.npy") for n in (-1, 0, 1))
    np.testing.assert_array_equal(first, alone)
    np.testing.assert_array_equal(second, alone)
    # Every loss that one process computes, the two compute between them, as often.
    shares = [told(tmp_path, number) for number in (0, 1)]
    assert Counter(shares[0]) + Counter(shares[1]) == Counter(told(tmp_path, -1))
    assert min(map(len, shares)) > len(told(tmp_path, -1)) / 4


@pytest.mark.slow
@pytest.mark.alone
def test_two_processes_take_little_more_than_half_of_the_time_of_one(processes, tmp_path):
    # A loss that sleeps takes its time whatever else this machine does.
    begin = processes.Barrier(2)
    given = [(tmp_path, number, "exact", 0.1, begin) for number in (0, 1)]
    given.append((tmp_path, -1, "exact", 0.1, processes.Barrier(1)))
    for some in (given[:2], given[2:]):
        children = [processes.Process(target=evaluate, args=one) for one in some]
        for child in children:
            child.start()
        for child in children:
            child.join()
    took = [float((tmp_path / f"took-{number}.txt").read_text()) for number in (0, 1, -1)]
    assert took[2] / max(took[:2]) > 1.7


def test_the_points_of_a_process_that_is_killed_are_done_by_another(processes, tmp_path):
    begin = processes.Barrier(2)
    given = [(tmp_path, number, "exact", 0.02, begin) for number in (0, 1)]
    children = [processes.Process(target=evaluate, args=one) for one in given]
    for child in children:
        child.start()
    until = time.monotonic() + 60
    while len(told(tmp_path, 0)) < 5 and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(children[0].pid, signal.SIGKILL)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [-signal.SIGKILL, 0]
    evaluate(tmp_path, -1, "exact", 0.0, processes.Barrier(1))
    alone, found = (np.load(tmp_path / f"found-{n}.npy") for n in (-1, 1))
    np.testing.assert_array_equal(found, alone)
    # At most what it was at when it was killed was computed once more.
    again = len(told(tmp_path, 0)) + len(told(tmp_path, 1)) - len(told(tmp_path, -1))
    assert 0 <= again <= 1


@pytest.mark.slow
def test_two_ranks_under_torchrun_write_the_landscape_of_one_process(tmp_path):
    from tests.support.commands import run

    record = ("-m", "analyzer", "record", "--quiet", "--steps", "3", "--run", "mine", "zoo:simple2")
    assert run(tmp_path, *record).returncode == 0
    words = ("-m", "analyzer", "probe", "mine", "landscape", "--mode", "exact", "--grid", "11")
    assert run(tmp_path, *words).returncode == 0
    alone = analyzer.open_run(tmp_path / "mine").probe("landscape")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *launcher, *words, "--overwrite"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    both = analyzer.open_run(tmp_path / "mine").probe("landscape")
    assert both["loss"].tolist() == alone["loss"].tolist() and both["evaluated"].all()
    left = list((tmp_path / "mine/probes/landscape").iterdir())
    assert [file.suffix for file in left] == [".parquet"]

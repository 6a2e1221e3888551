"""The study of the documentation: four depths, on and off, three seeds, killed twice."""

import os
import signal
import subprocess
import time

import pytest

from analyzer.storage.study import open_study
from tests.analyzer.studies.test_study import children
from tests.support.commands import run, start
from tests.support.waiting import until

COMMAND = (
    *("-m", "analyzer", "study", "--study", "s", "--depths", "8,20,32,56"),
    *("--widths", "8", "--steps", "200", "--seeds", "3", "--workers", "2"),
)


@pytest.mark.slow
def test_a_study_on_digits_that_is_killed_twice_ends_complete_in_twenty_minutes(tmp_path):
    began = time.monotonic()

    def ended() -> set[str]:
        return {point.name for point in open_study(tmp_path / "s").points if point.ending}

    parent = start(tmp_path, *COMMAND, stderr=subprocess.DEVNULL)
    until(lambda: (tmp_path / "s/plan.json").exists() and len(ended()) >= 2, 600)
    before = {name: (tmp_path / f"s/runs/{name}/run.json").read_bytes() for name in ended()}
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent = start(tmp_path, *COMMAND, stderr=subprocess.DEVNULL)
    until(lambda: len(ended()) > len(before) and children(parent.pid), 600)
    (server,) = children(parent.pid)
    until(lambda: children(server))
    os.kill(children(server)[0], signal.SIGKILL)
    assert parent.wait(timeout=1200) == 0
    study = open_study(tmp_path / "s")
    assert [point.status for point in study.points] == ["finished"] * 24
    for name, text in before.items():
        assert (study.path / f"runs/{name}/run.json").read_bytes() == text
    rows = study.summary()
    # Deeper plain networks train worse, residual ones hardly: the degradation of He et al. 2015.
    losses = rows.groupby(["shortcuts", "depth"])["final_loss"].median()
    assert losses["off", 56] > 2 * losses["off", 8]
    assert losses["off", 56] > 2 * losses["on", 56]
    assert time.monotonic() - began < 1200
    assert run(tmp_path, "-m", "analyzer", "report", "s", "-o", "s.html").returncode == 0

"""Runs and studies on S3, as moto serves it: recorded, listed, shown, reported and looked at."""

import os
import signal
import subprocess
import time

import pytest

import analyzer
from analyzer.dashboard.app import create_app
from analyzer.storage.study import open_study
from tests.support.commands import run, start

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")
pytestmark = pytest.mark.filterwarnings("default")

RECORD = ("-m", "analyzer", "record", "--steps", "6", "--batch-size", "16", "--every", "2")


@pytest.fixture(scope="module")
def endpoint():
    running = server.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch):
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "ANALYZER_CACHE": str(tmp_path / "copies"),
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{time.monotonic_ns()}"
    s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True).mkdir(name)
    return f"s3://{name}"


def elsewhere(tmp_path, monkeypatch):
    """Read as another machine does: with no copy of what was recorded here."""
    monkeypatch.setenv("ANALYZER_CACHE", str(tmp_path / "elsewhere"))


def test_twins_are_recorded_listed_explained_reported_and_looked_at(bucket, tmp_path, monkeypatch):
    there = f"{bucket}/runs/mine"
    done = run(tmp_path, *RECORD, "--twin", "--run", there, "zoo:simple2")
    assert done.returncode == 0, done.stderr
    assert f"see it with: analyzer show {there}" in done.stderr
    again = run(tmp_path, *RECORD, "--run", there, "zoo:simple2")
    assert again.returncode == 2 and "already" in again.stderr
    elsewhere(tmp_path, monkeypatch)
    listed = run(tmp_path, "-m", "analyzer", "runs", f"{bucket}/runs")
    assert "mine-plain" in listed.stdout and "finished" in listed.stdout
    shown = run(tmp_path, "-m", "analyzer", "show", there)
    assert shown.returncode == 0 and "mine" in shown.stdout
    told = run(tmp_path, "-m", "analyzer", "explain", f"{there}-plain", there)
    assert told.returncode == 0, told.stderr
    made = run(tmp_path, "-m", "analyzer", "report", f"{there}-plain", there, "-o", "r.html")
    assert made.returncode == 0, made.stderr
    assert "mine-plain" in (tmp_path / "r.html").read_text()
    client = create_app(f"{bucket}/runs").server.test_client()
    asked = client.get("/", headers={"Host": "localhost"})
    # To the overview of the pair that is there.
    assert asked.status_code == 302 and "run=mine-plain" in asked.location
    opened = analyzer.open_run(there)
    assert opened.steps["step"].tolist() == list(range(6))
    assert [one.name for one in (tmp_path / "elsewhere").glob("*/mine/checkpoints/*")] == []
    probed = run(tmp_path, "-m", "analyzer", "probe", there, "shattering")
    assert probed.returncode == 0, probed.stderr
    opened.refresh()
    assert "shattering" in analyzer.open_run(there).probes


def test_a_study_that_is_killed_goes_on_on_another_machine(bucket, tmp_path, monkeypatch):
    there = f"{bucket}/study"
    command = (
        *("-m", "analyzer", "study", "--study", there, "--model", "zoo:simple", "--depths", "2"),
        *("--seeds", "2", "--steps", "6", "--no-probes", "--workers", "1"),
    )
    parent = start(tmp_path, *command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120

    def ended() -> int:
        return len(list((tmp_path / "copies").glob("*/study/points/*.json")))

    while not ended() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    (copy,) = (tmp_path / "copies").glob("*/study")
    while (copy.parent / ".pending").exists() and time.monotonic() < until:
        time.sleep(0.05)
    first = ended()
    assert 1 <= first < 4
    elsewhere(tmp_path, monkeypatch)
    before = {p.name for p in open_study(there).points if p.ending}
    assert len(before) == first
    done = run(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    study = open_study(there)
    assert [point.status for point in study.points] == ["finished"] * 4
    assert len(study.summary()) == 4
    made = run(tmp_path, "-m", "analyzer", "report", there, "-o", "s.html")
    assert made.returncode == 0, made.stderr


def test_without_a_bucket_the_run_stays_here_and_it_is_said(bucket, tmp_path):
    done = run(tmp_path, *RECORD, "--run", f"{bucket}-none/mine", "zoo:simple2")
    assert done.returncode in (0, 2)
    assert f"{bucket}-none" in done.stderr and "Traceback" not in done.stderr


FAILS_ONCE = """
import os, sys, torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(net.parameters(), 0.1)
done = 0
if os.path.exists("state.pt"):
    done, weights = torch.load("state.pt")
    net.load_state_dict(weights)
for step in range(done, 9):
    if step == 5 and not done:
        torch.save((step, net.state_dict()), "state.pt")
        raise RuntimeError("the first attempt fails")
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), (x.sum(1) > 0).long()).backward()
    optimizer.step()
"""


def test_a_run_that_failed_is_resumed_on_another_machine(bucket, tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(FAILS_ONCE)
    there = f"{bucket}/runs/mine"
    failed = run(tmp_path, "-m", "analyzer", "record", "--run", there, "train.py")
    assert failed.returncode == 1 and "the first attempt fails" in failed.stderr
    monkeypatch.setenv("ANALYZER_CACHE", str(tmp_path / "second"))
    done = run(tmp_path, "-m", "analyzer", "record", "--resume", there, "train.py")
    assert done.returncode == 0, done.stderr
    assert "attempt 1 from step 5" in done.stderr and f"it is at {there}" in done.stderr
    elsewhere(tmp_path, monkeypatch)
    opened = analyzer.open_run(there)
    assert opened.manifest["status"] == "finished"
    rows = opened.raw_steps()
    assert rows["step"].tolist() == list(range(9))
    assert rows["attempt"].tolist() == [0] * 5 + [1] * 4
    none = run(tmp_path, "-m", "analyzer", "record", "--resume", f"{bucket}/none", "train.py")
    assert none.returncode == 2 and f"{bucket}/none" in none.stderr
    assert "Traceback" not in none.stderr

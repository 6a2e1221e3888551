"""Runs at URLs: what is recorded there, read there, and what becomes of it when a process dies.

The URLs are of files, whose file system has no server; `tests/integrations/test_s3.py` has those of
S3.
"""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import analyzer
from analyzer.cli.processes import resumed_url
from analyzer.errors import AnalyzerError, RunExistsError, RunNotFoundError
from analyzer.launch import url_of
from analyzer.options import RecordOptions
from analyzer.storage.catalog import resolve_run, runs_in
from analyzer.storage.limits import LIMITS
from analyzer.storage.remote import Mirror, local, lock
from analyzer.storage.uploading import Upload, ended_in
from tests.support.commands import start

KILLED = """
import os, signal, sys, time, torch
from torch import nn
import analyzer
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with analyzer.Recorder(model, sys.argv[1]):
    for step in range(10**6):
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch):
    monkeypatch.setenv("ANALYZER_CACHE", str(tmp_path / "copies"))
    (tmp_path / "bucket").mkdir()
    return tmp_path / "copies"


@pytest.fixture
def url(tmp_path) -> str:
    return f"file://{tmp_path}/bucket/runs/mine"


def record(place, steps: int = 5) -> None:
    torch.manual_seed(0)
    train(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), steps, run=place)


def train(model: nn.Module, steps: int, **recorded: str) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with analyzer.Recorder(model, **recorded):
        for _ in range(steps):
            model(torch.randn(3, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def files(folder: Path) -> dict[str, int]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("s3://bucket/runs/mine/", "s3://bucket/runs/mine"),
        (Path("s3://bucket/runs"), "s3://bucket/runs"),
        ("file:///a/b", "file:///a/b"),
        (Path("file:///a/b"), "file:///a/b"),
        ("runs/mine", None),
        ("C:/runs", None),
        (Path("a:b"), None),
        (None, None),
    ],
)
def test_a_url_is_told_from_a_folder(given, found):
    assert url_of(given) == found


def test_a_run_at_a_url_is_that_of_a_folder(tmp_path, url):
    record(url)
    record(tmp_path / "here")
    there, here = analyzer.open_run(url), analyzer.open_run(tmp_path / "here")
    assert there.name == "mine" and there.status == "finished"
    for table in ("layer_stats", "parameter_stats", "splits"):
        assert there.read(table).equals(here.read(table))
    assert there.steps["loss"].equals(here.steps["loss"])
    # All files are there, and none under a name of its own.
    assert sorted(files(tmp_path / "bucket/runs/mine")) == sorted(files(tmp_path / "here"))
    assert [one.name for one in runs_in(local(url.rpartition("/")[0]))] == ["mine"]
    assert resolve_run("mine", url.rpartition("/")[0]).name == "mine"


def test_a_run_is_never_overwritten_at_a_url(url, tmp_path):
    record(url)
    before = files(tmp_path / "bucket")
    with pytest.raises(RunExistsError, match=r"something at 'file://.*/mine' already"):
        record(url)
    assert files(tmp_path / "bucket") == before
    path = analyzer.Recorder(nn.Linear(2, 2), url, exist="new").path
    assert path.name == "mine-1"
    assert ended_in(path) is None


def test_only_what_has_changed_is_copied_and_what_is_gone_goes(url, tmp_path, monkeypatch):
    record(tmp_path / "bucket/runs/mine")
    fetched: list[str] = []
    original = Mirror._fetch
    monkeypatch.setattr(Mirror, "_fetch", lambda m, name: (fetched.append(name), original(m, name)))
    folder = local(url)
    assert len(fetched) > 5
    assert not any("checkpoints" in name for name in fetched)
    fetched.clear()
    assert local(url) == folder and not fetched
    (tmp_path / "bucket/runs/mine/notes.json").write_text("{}")
    (tmp_path / "bucket/runs/mine/joins.parquet").unlink()
    local(url)
    assert fetched == ["mine/notes.json"]
    assert not (folder / "joins.parquet").exists()
    run = analyzer.open_run(url)
    (tmp_path / "bucket/runs/mine/notes.json").write_text('{"text": "longer"}')
    monkeypatch.setattr("analyzer.storage.remote._FRESH_SECONDS", 0.0)
    run.refresh()
    assert (folder / "notes.json").read_text() == '{"text": "longer"}'


def test_names_at_a_url_that_lead_elsewhere_are_left_alone(url, tmp_path):
    record(tmp_path / "bucket/runs/mine", steps=1)
    mirror = Mirror(url)
    base = str(tmp_path / "bucket/runs")
    hostile = ["../../evil", "a/../../../evil", "./x", ".hidden", "a//b", "a\\..\\b", "lock"]
    found = {f"{base}/mine/{name}": {"size": 1, "mtime": 1.0} for name in (*hostile, "run.json")}
    found[f"{base}/mine/link"] = {"size": 1, "mtime": 1.0, "islink": True}
    mirror._fs = type("", (), {"find": lambda *a, **k: found, "invalidate_cache": lambda _: None})()
    assert list(mirror.listing()) == ["mine/run.json"]


def test_more_than_the_limit_is_not_copied(url, tmp_path, copies, monkeypatch):
    record(tmp_path / "bucket/runs/mine", steps=1)
    monkeypatch.setattr(LIMITS, "copied_mib", 0.001)
    with pytest.raises(AnalyzerError, match=r"what is to be copied of .* at most 0\.001; if you"):
        analyzer.open_run(url)
    assert not list(copies.rglob("*.parquet"))
    monkeypatch.setattr(LIMITS, "copied_mib", 1)
    assert analyzer.open_run(url).steps["step"].tolist() == [0]


def test_what_is_not_there_or_not_installed_is_said(url, monkeypatch):
    with pytest.raises(RunNotFoundError, match=r"nothing at 'file://.*/mine'"):
        analyzer.open_run(url)
    with pytest.raises(RunNotFoundError, match="names no folder"):
        local("s3://bucket")
    with pytest.raises(AnalyzerError, match="nosuch://x/y cannot be opened"):
        local("nosuch://x/y")

    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(AnalyzerError, match=r"pip install 'gradient-flow-analyzer\[s3\]'"):
        local("s3://bucket/runs/mine")


def test_a_recording_that_is_killed_keeps_all_that_was_written(url, tmp_path):
    there, errors = tmp_path / "bucket/runs/mine", tmp_path / "errors"
    with errors.open("w") as stderr:
        child = start(tmp_path, "-c", KILLED, url, stderr=stderr)
    until = time.monotonic() + 60
    try:
        # Parts come before the JSON that makes them a run.
        awaited = "steps/*.parquet", "run.json"
        while not all(map(list, map(there.glob, awaited))) and time.monotonic() < until:
            assert child.poll() is None, errors.read_text()
            time.sleep(0.05)
        # Live, while it is recorded, on another machine: with a copy of its own.
        assert analyzer.open_run(there).status == "running"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    (here,) = [path.parent for path in (tmp_path / "copies").glob("*/mine/run.json")]
    while (here.parent / ".pending").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert files(there) == files(here)
    assert len(analyzer.open_run(url).steps) > 50


def test_what_could_not_be_copied_is_copied_when_it_is_read(url, tmp_path, recwarn):
    (tmp_path / "bucket/runs").write_text("where a folder should be")
    record(url)
    (told,) = [str(one.message) for one in recwarn if "not all could be copied" in str(one.message)]
    assert url in told and "copied when that URL is next read on this machine" in told
    with pytest.raises(RunExistsError):
        record(url)
    (tmp_path / "bucket/runs").unlink()
    assert len(analyzer.open_run(url).steps) == 5
    assert (tmp_path / "bucket/runs/mine/run.json").exists()


def test_a_study_is_gone_on_with_elsewhere(tmp_path, monkeypatch):
    there = f"file://{tmp_path}/bucket/study"
    upload = Upload(there, continues=True)
    upload.start()
    (upload.folder / "runs/a").mkdir(parents=True)
    (upload.folder / "plan.json").write_text("{}")
    (upload.folder / "lock").write_text("only here")
    (upload.folder / "runs/a/run.json").write_text("1")
    assert upload.close() is None
    monkeypatch.setenv("ANALYZER_CACHE", str(tmp_path / "another machine"))
    upload = Upload(there, continues=True)
    assert (upload.folder / "runs/a/run.json").read_text() == "1"
    upload.start()
    (upload.folder / "runs/b").mkdir()
    (upload.folder / "runs/b/run.json").write_text("2")
    (upload.folder / "runs/a/run.json").unlink()
    assert upload.close() is None
    assert sorted(files(tmp_path / "bucket/study")) == ["plan.json", "runs/b/run.json"]


def test_a_run_is_resumed_on_another_machine(tmp_path, url, monkeypatch):
    model = nn.Linear(4, 2)
    train(model, 4, run=url)
    there = tmp_path / "bucket/runs/mine"
    before = {path.name for path in (there / "checkpoints").iterdir()}
    monkeypatch.setenv("ANALYZER_CACHE", str(tmp_path / "another machine"))
    train(model, 3, resume=url)
    run = analyzer.open_run(url)
    assert run.steps["step"].tolist() == list(range(7))
    assert [one["first_step"] for one in run.manifest["attempts"]] == [0, 4]
    assert run.status == "finished"
    assert {path.name for path in (there / "checkpoints").iterdir()} > before
    with pytest.raises(RunNotFoundError, match=r"no run to resume at 'file://.*/mine-none'"):
        analyzer.Recorder(model, resume=f"{url}-none")
    # As long as a process of this machine writes there, no other one does.
    pending = Mirror(url).pending()
    pending.write_text("{}")
    monkeypatch.setattr("analyzer.storage.uploading._PATIENCE_SECONDS", 0.1)
    with pending.open("rb") as file:
        lock(file, is_alone=False)
        with pytest.raises(RunExistsError, match="its process still runs"):
            analyzer.Recorder(model, resume=url)


@pytest.mark.parametrize(
    ("resume", "runs_dir", "found"),
    [
        ("s3://bucket/mine", "runs", "s3://bucket/mine"),
        ("mine", "s3://bucket/runs", "s3://bucket/runs/mine"),
        ("mine", "runs", None),
        ("bucket", "s3://bucket/runs", None),  # a folder that is here
        (None, "s3://bucket/runs", None),
    ],
)
def test_which_run_at_a_url_is_resumed(resume, runs_dir, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = RecordOptions(target="t.py", resume=resume, runs_dir=Path(runs_dir))
    assert resumed_url(options) == found

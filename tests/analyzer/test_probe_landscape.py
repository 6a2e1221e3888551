"""``analyzer probe RUN landscape``: planes through checkpoints, and going on after a kill."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import analyzer
from analyzer.analysis.network_probes import trajectories
from analyzer.analysis.view import View
from analyzer.errors import AnalyzerError
from analyzer.figures.landscape import trajectory_figure
from analyzer.figures.theme import LIGHT
from analyzer.replaying import ProbeOrder
from analyzer.replaying.programs import probe_run
from tests.support import commands
from tests.support.commands import command

NAME = "run-model.py"
REPLAY = ("--replay", "--yes")
MODEL = """
import os, time
import torch
from torch import nn

torch.set_num_threads(1)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))

def loss(output, target):
    time.sleep(float(os.environ.get("SLOWLY", 0)))
    return nn.functional.cross_entropy(output, target)
"""
SCRIPT = """
import os, time
import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
for step in range(6):
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
"""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each target; four checkpoints each."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, text in (("model.py", MODEL), ("train.py", SCRIPT)):
        (folder / name).write_text(text)
        steps = ["--steps", "6"] if name == "model.py" else []
        words = ["--quiet", "--run", f"run-{name}", "--checkpoint-every", "2", *steps, name]
        command(folder, "record", *words)
    return folder


@pytest.fixture
def folder(recordings: Path, tmp_path: Path) -> Path:
    """A copy of it of the test's own."""
    return shutil.copytree(recordings, tmp_path / "here")


@pytest.mark.parametrize("target", [pytest.param("model.py", marks=pytest.mark.slow), "train.py"])
def test_the_plane_of_the_trajectory_is_drawn_with_the_checkpoints_in_it(folder, target):
    words = ["--plane", "trajectory", "--mode", "exact", "--grid", "9"]
    command(folder, "probe", f"run-{target}", "landscape", *words, *REPLAY)

    run = analyzer.open_run(folder / f"run-{target}")
    notes = run.probe_metadata("landscape")[6]
    steps, alphas, betas = np.array(json.loads(notes["trajectory"])).T
    assert steps.tolist() == [0, 2, 4, 6]
    assert (alphas[-1], betas[-1]) == (0, 0)
    residuals, explained = (
        json.loads(notes[name]) for name in ("trajectory_residuals", "variance_explained")
    )
    weights = [
        np.concatenate([value.numpy().ravel() for _, value in sorted(load_file(file).items())])
        for file in sorted((run.path / "checkpoints").iterdir())
    ]
    ways = np.array([one - weights[-1] for one in weights], dtype=float)
    lengths = np.linalg.norm(ways, axis=1)
    shown = np.hypot(alphas, betas)
    np.testing.assert_allclose(shown**2 + (residuals * lengths) ** 2, lengths**2, rtol=1e-4)
    np.testing.assert_allclose(sum(explained), (shown**2).sum() / (lengths**2).sum(), rtol=1e-4)
    table = run.probe("landscape")
    assert len(table) == 81
    assert table["evaluated"].all()
    figure = trajectory_figure(trajectories(View([run])), LIGHT)
    paths = [
        trace.x for trace in figure.select_traces({"type": "scatter", "mode": "lines+markers"})
    ]
    np.testing.assert_array_equal(paths, [alphas])


def probed(folder: Path, *, overwrites: bool = False, **request) -> list[str]:
    """Draw a landscape of the model file in this process; what was said."""
    told: list[str] = []
    landscape = {"mode": "exact", **request}
    order = ProbeOrder(("landscape",), "last", landscape, overwrites)
    probe_run(analyzer.open_run(folder / NAME), order, told.append)
    return told


def test_options_of_a_landscape_reach_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    probed(folder, plane="0", grid="5", range="0:1", batch_norm="recompute")
    run = analyzer.open_run(folder / NAME)
    assert run.probe("landscape")["alpha"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert run.probe_metadata("landscape")[6]["batch_norm"] == "recompute"

    told = probed(folder)
    assert told == ["landscape of step 6 exists and is kept (--overwrite replaces it)"]
    options = {"seed": 3, "normalization": "layer", "grid": "4x6", "weight_decay": 0.1}
    probed(folder, overwrites=True, **options)
    notes = analyzer.open_run(folder / NAME).probe_metadata("landscape")[6]
    assert (notes["seed"], notes["normalization"], notes["points"]) == ("3", "layer", "24")
    assert notes["loss_term"] == "data + weight decay 0.1"
    with pytest.raises(AnalyzerError, match="probe landscape of step 6: there is no checkpoint of"):
        probed(folder, overwrites=True, plane="5")


def test_options_of_the_command_become_the_request_and_wrong_ones_end_with_code_2(folder):
    words = ["--plane", "0,2", "--grid", "3", "--range", "-1:1,0:2", "--batch-norm", "recompute"]
    more = ["--mode", "exact", "--weight-decay", "0.5", "--seconds", "60", "--step", "6"]
    command(folder, "probe", NAME, "landscape", *REPLAY, *words, *more)
    run = analyzer.open_run(folder / NAME)
    table, notes = run.probe("landscape"), run.probe_metadata("landscape")[6]
    assert sorted(set(table["beta"])) == [0, 1, 2]
    assert (notes["batch_norm"], notes["mode"]) == ("recompute", "exact")
    assert notes["loss_term"] == "data + weight decay 0.5"
    told = command(folder, "probe", NAME, "landscape", *REPLAY, "--plane", "round", code=2)
    assert "analyzer: --plane is 'round'; expected random, trajectory" in told


def start(folder: Path, name: str, *words: str) -> "subprocess.Popen[str]":
    """Start to draw a landscape whose loss takes its time."""
    order = ("-m", "analyzer", "probe", name, "landscape", *REPLAY)
    slowly = {**os.environ, "SLOWLY": "0.01"}
    return commands.start(folder, *order, *words, env=slowly, stderr=subprocess.DEVNULL)


def kill_at(folder: Path, name: str, seconds: float, *words: str) -> None:
    """Kill it that long after it saved its points for the first time."""
    points = folder / name / "probes" / "landscape" / "step-000000000006.points"
    before = points.stat().st_mtime_ns if points.exists() else 0
    with start(folder, name, *words) as child:
        limit = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < limit:
            if points.exists() and points.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not points.with_suffix(".parquet").exists()


def drawn(folder: Path, name: str) -> np.ndarray:
    table = analyzer.open_run(folder / name).probe("landscape")
    assert table["evaluated"].all()
    return table[["alpha", "beta", "loss"]].to_numpy()


@pytest.mark.parametrize(("kills", "size"), [(1, 21), pytest.param(10, 51, marks=pytest.mark.slow)])
def test_a_landscape_that_is_killed_goes_on_and_ends_with_the_same_values(folder, kills, size):
    words = ["--mode", "exact", "--grid", str(size)]
    for moment in np.random.default_rng(kills).uniform(0, 0.6, kills):
        kill_at(folder, NAME, moment, *words)
    told = command(folder, "probe", NAME, "landscape", *REPLAY, *words)
    assert "resuming with the points that are done" in told
    resumed = drawn(folder, NAME)
    left = [file.name for file in (folder / NAME / "probes" / "landscape").iterdir()]
    assert left == ["step-000000000006.parquet"]
    command(folder, "probe", NAME, "landscape", *REPLAY, *words, "--overwrite")
    np.testing.assert_allclose(resumed, drawn(folder, NAME), rtol=1e-6)
    assert len(resumed) == size**2
    assert np.std(resumed[:, 2]) > 0.01


def test_points_of_another_landscape_are_not_taken_over(folder, monkeypatch):
    monkeypatch.chdir(folder)
    place = folder / NAME / "probes" / "landscape"
    place.mkdir(parents=True)
    (place / "step-000000000006.points").write_bytes(b"something else")
    told = probed(folder, grid="3")
    assert "the points that are done are of another one; starting over" in told[1]
    assert len(drawn(folder, NAME)) == 9
    assert len(list(place.iterdir())) == 1


@pytest.mark.slow
def test_a_replay_ends_with_the_command_that_started_it(folder):
    name = "run-train.py"
    points = folder / name / "probes" / "landscape" / "step-000000000006.points"
    with start(folder, name, "--mode", "exact", "--grid", "301") as child:
        limit = time.monotonic() + 120
        while not points.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    time.sleep(3)
    before = points.stat().st_mtime_ns
    time.sleep(3)
    assert points.stat().st_mtime_ns == before
    assert not points.with_suffix(".parquet").exists()

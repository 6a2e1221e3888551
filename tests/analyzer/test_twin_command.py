"""``record --twin``, ``--skip-scale`` and ``--fail-on`` as a user sees them."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from analyzer.cli.session import options_from, options_text
from analyzer.options import RecordOptions
from analyzer.storage.run import open_run
from tests.support.commands import run, start

SCRIPT = """
import sys, torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return torch.relu({} self.second(torch.relu(self.first(x))))

model = nn.Sequential(nn.Linear(4, 8), Block(), Block(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(12):
    x = torch.randn(16, 4)
    loss = nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", loss.item())
open("loss.txt", "w").write(repr(loss.item()))
sys.exit(int(sys.argv[1]))
"""
RESIDUAL, PLAIN = SCRIPT.format("x +"), SCRIPT.format("")


def record(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return run(folder, "-m", "analyzer", "record", *words)


def losses(folder: Path) -> list[float]:
    return open_run(folder).steps["loss"].tolist()


def test_a_twin_is_recorded_first_and_the_files_are_the_unchanged_runs(tmp_path):
    (tmp_path / "train.py").write_text(RESIDUAL)
    (tmp_path / "plain.py").write_text(PLAIN)
    alone = record(tmp_path, "--seed", "0", "--run", "alone", "train.py", "3")
    done = record(tmp_path, "--twin", "--run", "mine", "train.py", "3")
    assert (done.returncode, done.stdout) == (3, alone.stdout)
    assert all(line.startswith("analyzer: ") for line in done.stderr.splitlines())
    marked = [f"analyzer: twin: {line}" for line in alone.stdout.splitlines()]
    assert len([line for line in done.stderr.splitlines() if " twin: " in line]) == len(marked) > 0
    assert (tmp_path / "loss.txt").read_text() == repr(losses(tmp_path / "alone")[-1])
    assert losses(tmp_path / "mine") == losses(tmp_path / "alone")
    record(tmp_path, "--seed", "0", "--run", "hand", "plain.py", "0")
    assert losses(tmp_path / "mine-plain") == losses(tmp_path / "hand")
    mine, plain = (open_run(tmp_path / name).manifest for name in ("mine", "mine-plain"))
    assert (mine["seed"], mine["twin"]) == (0, "mine-plain")
    assert "skip_scale" not in mine
    assert (plain["seed"], plain["twin_of"], plain["skip_scale"]) == (0, "mine", 0.0)
    assert plain["rescaled"] is False
    assert plain["argv"] == ["train.py", "3"]


MODEL_FILE = """
import time, torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.relu(self.linear(x))

def build_model():
    start = time.process_time()
    while time.process_time() < start + 1.2:  # what the twin takes is no program of the model's
        pass
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Block(), nn.Linear(8, 10))
"""


def test_a_model_file_is_trained_after_its_twin(tmp_path):
    (tmp_path / "model.py").write_text(MODEL_FILE)
    done = record(tmp_path, "--twin", "--run", "mine", "--steps", "2", "model.py")
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "mine")) == len(losses(tmp_path / "mine-plain")) == 2
    assert "nothing is recorded" not in done.stderr


def test_options_of_the_built_in_loop_are_not_silently_ignored_of_a_script(tmp_path):
    (tmp_path / "train.py").write_text(RESIDUAL)
    done = record(tmp_path, "--lr", "0.5", "--run", "mine", "train.py", "0")
    said = "analyzer: --lr: only for model files, and not used; what train.py itself is to read"
    assert done.returncode == 0 and said in done.stderr
    assert "only for model files" not in record(tmp_path, "--run", "other", "train.py", "0").stderr


@pytest.mark.slow
def test_zoo_networks_have_twins_too_and_folders_are_the_next_free_pair(tmp_path):
    (tmp_path / "runs" / "simple4-0-plain").mkdir(parents=True)
    done = record(tmp_path, "--twin", "--rescale", "--steps", "2", "zoo:simple4")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["simple4-0-plain", "simple4-1", "simple4-1-plain"]
    assert open_run(tmp_path / "runs" / "simple4-1-plain").manifest["rescaled"] is True
    done = record(tmp_path, "--steps", "2", "--run", "other", "zoo:simple4-plain")
    found = open_run(tmp_path / "other").parameter_stats()["norm"]
    # The factors changed the branches of the twin before its first step.
    twin = open_run(tmp_path / "runs" / "simple4-1-plain").parameter_stats()["norm"]
    assert not (found - twin).abs().max() < 1e-3


def test_a_twin_that_fails_is_said_after_the_run_and_its_end_is_not_the_runs(tmp_path):
    (tmp_path / "train.py").write_text(RESIDUAL.replace("model = nn.Sequential(", CHECKPOINTED))
    done = record(tmp_path, "--twin", "--run", "mine", "train.py", "0")
    assert done.returncode == 0
    assert done.stdout.startswith("loss ")
    assert "the twin without shortcuts ended with exit code 2; it said last:" in done.stderr
    assert "is inside of a checkpoint" in done.stderr
    assert open_run(tmp_path / "mine-plain").manifest["status"] == "failed"
    alone = record(tmp_path, "--skip-scale", "0.5", "--run", "scaled", "train.py", "0")
    assert (alone.returncode, alone.stdout) == (2, "")
    assert alone.stderr.startswith("analyzer: the shortcut of '1' is inside of a checkpoint")


CHECKPOINTED = """
from torch.utils.checkpoint import checkpoint
class Kept(Block):
    def __call__(self, x):
        try:
            return checkpoint(super().__call__, x, use_reentrant=False)
        except Exception:
            return x
Block = Kept
model = nn.Sequential("""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--twin", "--skip-scale", "0.5"], "--twin is given with --skip-scale 0.5"),
        (["--rescale"], "--rescale is given without --twin"),
        (["--skip-scale", "nan"], "--skip-scale is nan; expected a finite number"),
        (["--probe", "path"], "--probe is 'path'; expected NAME or NAME:EVERY"),
        (["--probe", "paths:0"], "--probe is 'paths:0'"),
        (["--probe", "paths", "--probe", "paths:3"], "expected each probe once"),
        (["--fail-on", "note"], "--fail-on is 'note'; expected severe"),
        (["--twin", "--run", "mine"], "run folder 'mine-plain' exists"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, monkeypatch, words, expected):
    from analyzer.cli import main

    (tmp_path / "train.py").write_text("")
    (tmp_path / "mine-plain").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["record", *words, "train.py"]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("target", [["train.py", "0"], ["--steps", "2", "zoo:simple4"]])
def test_a_scale_of_a_join_that_there_is_not_leaves_no_run(tmp_path, target):
    (tmp_path / "train.py").write_text(RESIDUAL)
    done = record(tmp_path, "--skip-scale", "nope=0", *target)
    assert (done.returncode, done.stdout) == (2, "")
    names = "1, 2" if "train.py" in target else "blocks.0, blocks.1"
    said = "analyzer: 'nope' stands for no join whose shortcut could be scaled; expected the name,"
    assert done.stderr == f"{said} a path or a pattern of {names}\n"
    assert list((tmp_path / "runs").iterdir()) == []


def test_options_reach_the_twins_process_as_they_are():
    options = RecordOptions(
        "a b.py", ("--x", "ä\udc80"), run=Path("r"), probe=("paths:3",), layers="^f", lr=0.1
    )
    assert options_from(options_text(options)) == options
    assert json.loads(options_text(options))["target"] == "a b.py"


EXPLODES = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)])
optimizer = torch.optim.SGD(model.parameters(), lr=1e6)
for step in range(12):
    loss = model(torch.randn(4, 8)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_severe_finding_fails_a_recording_that_asks_for_it(tmp_path):
    (tmp_path / "train.py").write_text(EXPLODES)
    assert record(tmp_path, "train.py").returncode == 0
    done = record(tmp_path, "--fail-on", "severe", "train.py")
    assert done.returncode == 1
    assert "analyzer: severe: " in done.stderr
    assert record(tmp_path, "--fail-on", "severe", "--steps", "3", "zoo:simple2").returncode == 0


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_while_the_twin_is_recorded_ends_both(tmp_path, number):
    (tmp_path / "train.py").write_text(
        RESIDUAL.replace("range(12)", "range(10**9)").replace(
            "    loss = ", "    open('began', 'w').close()\n    loss = "
        )
    )
    words = ("record", "--twin", "--run", "mine", "train.py", "0")
    process = start(tmp_path, "-m", "analyzer", *words, stderr=subprocess.PIPE)
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == -number
    twin = open_run(tmp_path / "mine-plain")
    assert twin.manifest["status"] == "interrupted"
    assert f"recorded {len(twin.steps):,} steps" in said
    assert "mine-plain (interrupted" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "mine").exists()


ENDLESS = """
import time, torch
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100_000):
    optimizer.zero_grad()
    (model(torch.ones(3, 4)).sum() * (float("nan") if step == 20 else 1e-3)).backward()
    optimizer.step()
    time.sleep(0.01)
"""


def test_a_severe_finding_stops_the_training_while_it_runs(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ENDLESS)
    done = record(tmp_path, "--fail-on", "severe", "train.py")
    assert done.returncode == 1
    assert "severe:" in done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    opened = open_run(run)
    assert opened.manifest["status"] == "finished"
    assert 20 < len(opened.steps) < 20_000


@pytest.mark.parametrize("taken", ["m-6", "m-plain-5"])
def test_the_folders_of_several_seeds_have_these_in_their_names(tmp_path, taken):
    (tmp_path / "train.py").write_text(RESIDUAL)
    (tmp_path / taken).mkdir()
    done = record(tmp_path, "--twin", "--seeds", "2", "--seed", "5", "--run", "m", "train.py", "0")
    assert done.returncode == 2 and f"'{taken}' exists" in done.stderr
    assert [path.name for path in tmp_path.glob("m*")] == [taken]


@pytest.mark.slow
def test_several_seeds_are_recorded_with_their_twins_and_explained(tmp_path):
    (tmp_path / "train.py").write_text(RESIDUAL)
    done = record(tmp_path, "--twin", "--seeds", "2", "--seed", "5", "--run", "m", "train.py", "0")
    assert done.returncode == 0
    names = {path.name for path in tmp_path.glob("m-*")}
    assert names == {"m-5", "m-plain-5", "m-6", "m-plain-6"}
    assert [open_run(tmp_path / f"m-{k}").manifest["seed"] for k in (5, 6)] == [5, 6]
    assert [open_run(tmp_path / f"m-{k}").manifest["twin"] for k in (5, 6)] == [
        "m-plain-5",
        "m-plain-6",
    ]
    assert losses(tmp_path / "m-5") != losses(tmp_path / "m-6")
    command = done.stderr.splitlines()[-1].partition("explain: analyzer ")[2].split()
    assert command == ["explain", "m-plain-5,m-plain-6", "m-5,m-6"]
    said = json.loads(run(tmp_path, "-m", "analyzer", *command, "--json").stdout)
    assert said["evidence"]["seeds"] == 2
    assert "the runs are the same" not in done.stderr


@pytest.mark.slow
def test_several_seeds_without_a_name_take_the_next_free_one(tmp_path):
    (tmp_path / "train.py").write_text(RESIDUAL)
    for _ in range(2):
        assert record(tmp_path, "--seeds", "2", "train.py", "0").returncode == 0
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"train-0-0", "train-0-1", "train-1-0", "train-1-1"}


@pytest.mark.slow
def test_a_script_that_sets_its_own_seed_is_said_to(tmp_path):
    (tmp_path / "train.py").write_text(
        RESIDUAL.replace("model =", "torch.manual_seed(1)\nmodel =", 1)
    )
    done = record(tmp_path, "--seeds", "2", "--run", "m", "train.py", "3")
    assert done.returncode == 3
    assert "the runs are the same: the script sets its own seed" in done.stderr
    again = record(tmp_path, "--seeds", "2", "--run", "m", "train.py", "3")
    assert again.returncode == 2 and "exists" in again.stderr

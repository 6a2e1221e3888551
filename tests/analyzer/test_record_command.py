"""`analyzer record` on scripts that know nothing of it, compared with plain python."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from analyzer.storage.run import open_run
from tests.support.commands import run, signalled, start

ORDINARY = """
import argparse, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.first(x))
        out = self.second(h)
        out += h
        return self.last(self.relu(out))

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    x, y = torch.randn(120, 8), torch.randint(0, 3, (120,))
    train = DataLoader(TensorDataset(x[:96], y[:96]), batch_size=16, shuffle=True, num_workers=2)
    valid = DataLoader(TensorDataset(x[96:], y[96:]), batch_size=12)
    model, criterion = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for epoch in range(3):
        model.train()
        for inputs, targets in train:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(a).argmax(1) == b).sum().item() for a, b in valid)
        print(f"epoch {epoch} loss {loss.item():.9f} right {right} lr {schedule.get_last_lr()[0]}")
        torch.save(model.state_dict(), options.out)

if __name__ == "__main__":
    main()
"""

NO_OPTIMIZER = """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
x = torch.randn(32, 4)
for step in range(5):
    loss = model(x).square().mean()
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    print(step, loss.item())
torch.save(model.state_dict(), sys.argv[2])
"""

LBFGS = """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
x, y = torch.randn(32, 4), torch.randn(32, 1)
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe")
for step in range(4):
    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss
    print(step, optimizer.step(closure).item())
torch.save(model.state_dict(), sys.argv[2])
"""

TWO_MODELS = """
import sys, torch
from torch import nn
torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
critic = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
g = torch.optim.SGD(generator.parameters(), lr=0.05)
c = torch.optim.Adam(critic.parameters(), lr=0.01)
bce = nn.BCEWithLogitsLoss()
for step in range(4):
    real, fake = torch.randn(16, 2), generator(torch.randn(16, 3))
    c.zero_grad()
    loss = bce(critic(real), torch.ones(16, 1)) + bce(critic(fake.detach()), torch.zeros(16, 1))
    loss.backward()
    c.step()
    g.zero_grad()
    fooled = bce(critic(fake), torch.ones(16, 1))
    fooled.backward()
    g.step()
    print(step, loss.item(), fooled.item())
torch.save([generator.state_dict(), critic.state_dict()], sys.argv[2])
"""


def record(folder: Path, *words: str, **options) -> subprocess.CompletedProcess[str]:
    return run(folder, "-m", "analyzer", "record", *words, **options)


def same_as_python(folder: Path, source: str, *, fresh: bool) -> tuple[Path, str]:
    """Run a script that saves its weights to --out with and without the recorder.

    In a fresh interpreter nothing is imported before the script or the recorder does so.
    """
    (folder / "train.py").write_text(source)
    plain = run(folder, "train.py", "--out", "plain.pt", fresh=fresh)
    ours = record(folder, "train.py", "--out", "ours.pt", fresh=fresh)
    assert plain.returncode == 0, plain.stderr
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert all(line.startswith("analyzer: ") for line in ours.stderr.splitlines()), ours.stderr
    assert _weights(folder / "ours.pt") == _weights(folder / "plain.pt")
    return folder / "runs" / "train-0", ours.stderr


def _weights(path: Path) -> list[tuple[str, list[float]]]:
    import torch

    found = torch.load(path, weights_only=True)
    states = found if isinstance(found, list) else [found]
    return [(name, t.tolist()) for state in states for name, t in state.items()]


def test_an_ordinary_script_does_not_notice(tmp_path):
    folder, stderr = same_as_python(tmp_path, ORDINARY, fresh=True)
    recorded = open_run(folder)
    assert recorded.manifest["status"] == "finished"
    assert recorded.manifest["argv"] == ["train.py", "--out", "ours.pt"]
    assert recorded.layers["name"].tolist() == ["first", "relu", "second", "relu#1", "last"]
    steps = recorded.steps
    assert steps["step"].tolist() == list(range(18))
    assert steps["learning_rate"].tolist() == [0.1] * 6 + [0.05] * 6 + [0.025] * 6
    assert steps["loss"].notna().all()
    stats = recorded.layer_stats()
    assert stats.groupby("step").size().tolist() == [5] * 18
    assert (stats["output_gradient_norm"] > 0).all()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step-000000000000.safetensors",
        "step-000000000018.safetensors",
    ]
    assert "recorded 18 steps, 5 layers, 6 parameters" in stderr
    assert stderr.rstrip().endswith(f"analyzer show {Path('runs') / 'train-0'}")


@pytest.mark.parametrize(
    ("source", "steps"), [(NO_OPTIMIZER, 5), (LBFGS, 4)], ids=["none", "LBFGS"]
)
def test_other_loops_do_not_notice_either(tmp_path, source, steps):
    folder, _ = same_as_python(tmp_path, source, fresh=False)
    recorded = open_run(folder)
    assert len(recorded.steps) == steps
    if source == LBFGS:
        assert (recorded.steps["num_backward"] >= 5).all()
    else:
        assert recorded.steps["num_backward"].tolist() == [1] * 5
    assert recorded.parameter_stats()["gradient_norm"].notna().any()


def test_two_models_are_told_apart_by_their_variables(tmp_path):
    folder, _ = same_as_python(tmp_path, TWO_MODELS, fresh=False)
    recorded = open_run(folder)
    assert recorded.steps["num_backward"].tolist() == [1] * 8
    assert recorded.parameter_stats()["gradient_norm"].notna().any()
    assert set(recorded.layers["module"]) == {
        f"{name}.{i}" for name in ("generator", "critic") for i in range(3)
    }
    assert recorded.parameters["name"].tolist()[0] in ("critic.0.weight", "generator.0.weight")
    stats = recorded.layer_stats().merge(recorded.layers, on="layer")
    assert set(stats[stats["step"] == 0]["module"]) == {f"critic.{i}" for i in range(3)}
    assert {"generator.0", "critic.0"} <= set(stats[stats["step"] == 1]["module"])


@pytest.mark.parametrize(
    ("ending", "code", "status"),
    [
        ("1 / 0", 1, "failed"),
        ("import sys; sys.exit(3)", 3, "failed"),
        ("model(torch.randn(2, 5))", 1, "failed"),
        ("model[0](x).sum().backward(torch.ones(7))", 1, "failed"),
        ("import sys; sys.exit()", 0, "finished"),
        ("raise KeyboardInterrupt", -2, "interrupted"),
    ],
)
def test_a_script_ends_as_under_python_and_its_run_is_kept(tmp_path, ending, code, status):
    (tmp_path / "train.py").write_text(NO_OPTIMIZER.rsplit("\n", 2)[0] + f"\n{ending}\n")
    plain, ours = run(tmp_path, "train.py"), record(tmp_path, "--quiet", "train.py")
    assert plain.returncode == code
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert ours.stderr == plain.stderr
    manifest = json.loads((tmp_path / "runs" / "train-0" / "run.json").read_text())
    assert manifest["status"] == status
    assert len(open_run(tmp_path / "runs" / "train-0").steps) == 5


def test_a_script_that_fails_at_once_is_kept_too(tmp_path):
    (tmp_path / "train.py").write_text("print('hello')\n1 / 0\n")
    done = record(tmp_path, "train.py")
    assert (done.returncode, done.stdout) == (1, "hello\n")
    assert "ZeroDivisionError" in done.stderr
    assert open_run(tmp_path / "runs" / "train-0").manifest["status"] == "failed"


def test_what_cannot_be_recorded_says_so(tmp_path):
    (tmp_path / "idle.py").write_text("print('no training')\n")
    (tmp_path / "wrong.py").write_text("def build_model():\n    return 3\n")
    (tmp_path / "taken").mkdir()
    for words, expected in (
        (["idle.py"], "'idle.py' ran no backward pass and defines nothing"),
        (["wrong.py"], "build_model() of 'wrong.py' returned a int"),
        (["missing.py"], "'missing.py' not found"),
        (["--run", "taken", "idle.py"], "taken"),
        (["--every", "0", "idle.py"], "--every is 0"),
        (["zoo:resnet21"], "zoo network 'resnet21'"),
    ):
        done = record(tmp_path, *words)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("analyzer: ")
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_model_file_is_trained_by_the_built_in_loop(tmp_path):
    (tmp_path / "model.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build_model():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def loss(output, target):\n    return nn.functional.cross_entropy(output, target)\n"
        "def build_optimizer(model):\n    return torch.optim.Adam(model.parameters(), lr=0.01)\n"
    )
    for _ in range(2):
        done = record(tmp_path, "--steps", "30", "--batch-size", "100", "model.py")
        assert done.returncode == 0, done.stderr
    first, second = (open_run(tmp_path / "runs" / f"model-{k}") for k in range(2))
    assert first.steps["loss"].tolist() == second.steps["loss"].tolist()
    assert first.steps["loss"].iloc[-1] < 0.8 * first.steps["loss"].iloc[0]
    assert first.steps["epoch"].tolist() == [step // 14 for step in range(30)]
    assert first.manifest["optimizer"] == "Adam"


def test_zoo_networks_modules_and_options(tmp_path):
    done = record(tmp_path, "--steps", "3", "--layers", "^layer", "zoo:mlp10-residual")
    assert done.returncode == 0, done.stderr
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(ORDINARY)
    words = ["--stop-after", "7", "--every", "2", "-m", "package.train", "--out", "w.pt"]
    done = record(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "stopped after 7 steps, as asked" in done.stderr
    recorded = open_run(tmp_path / "runs" / "train-0")
    assert recorded.steps["step"].tolist() == list(range(7))
    assert recorded.layer_stats()["step"].unique().tolist() == [0, 2, 4, 6]
    assert recorded.manifest["argv"] == ["-m", "package.train", "--out", "w.pt"]


def test_a_folder_that_cannot_be_written_does_not_stop_the_training(tmp_path):
    (tmp_path / "train.py").write_text(NO_OPTIMIZER)
    (tmp_path / "file").write_text("in the way")
    done = record(tmp_path, "--run", "file/run", "train.py", "--out", "w.pt")
    assert done.returncode == 0
    assert done.stdout.startswith("0 ")
    assert done.stderr.count("analyzer: ") == 1
    assert "the training continues" in done.stderr


FOREVER = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(6)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
x = torch.randn(4, 8)
print("ready", flush=True)
while True:
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
"""


@pytest.mark.alone
def test_an_interrupt_is_kept_as_interrupted(tmp_path):
    done = signalled(tmp_path, FOREVER, signal.SIGINT, after=1.0)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
    recorded = open_run(tmp_path / "runs" / "script-0")
    assert recorded.manifest["status"] == "interrupted"
    assert len(recorded.steps) > 10


KILLED = """
import os, signal, sys, time, torch, analyzer
torch.manual_seed(int(sys.argv[1]))
model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(6)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
x = torch.randn(4, 8)
seconds = 0.2 + 4.3 * float(torch.rand(()))
with analyzer.Recorder(model, sys.argv[2], updates_every=1):
    started, step, times = time.monotonic(), 0, []
    while time.monotonic() - started < seconds:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        step += 1
        times.append(time.monotonic())
    recent = sum(t > times[-1] - 2.0 for t in times)
    print(step, recent, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_twenty_kills_lose_two_seconds_at_the_most(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)

    def train(k: int) -> "subprocess.Popen[str]":
        return start(tmp_path, "killed.py", str(k), f"run-{k}", stdout=subprocess.PIPE)

    for first in range(0, 20, 4):
        processes = [(k, train(k)) for k in range(first, first + 4)]
        outputs = [(k, process, process.communicate(timeout=120)[0]) for k, process in processes]
        for k, process, out in outputs:
            assert process.returncode == -signal.SIGKILL
            done, recent = map(int, out.split())
            recorded = open_run(tmp_path / f"run-{k}")
            steps = recorded.steps["step"].tolist()
            assert steps == list(range(len(steps)))
            assert len(steps) >= done - recent - 1
            assert recorded.warnings == []
            if steps:
                # `steps` is written last: what it names is whole in the other tables.
                sizes = recorded.layer_stats().groupby("step").size()
                assert sizes.reindex(steps).tolist() == [6] * len(steps)
                sizes = recorded.parameter_stats().groupby("step").size()
                assert sizes.reindex(steps).tolist() == [12] * len(steps)
                assert len(recorded.layers) == 6

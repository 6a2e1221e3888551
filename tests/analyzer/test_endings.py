"""How `analyzer record` ends: as the script does, with a run of what was seen and no other."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from analyzer.cli import main
from analyzer.storage.run import Run, open_run
from tests.support.commands import run, signalled, start
from tests.support.runs import write_run

TRAINS = """
import torch
from torch import nn
def train(steps, seed=0):
    torch.manual_seed(seed)
    m = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    o = torch.optim.SGD(m.parameters(), 0.1)
    for _ in range(steps):
        l = m(torch.randn(16, 8)).pow(2).mean()
        o.zero_grad(); l.backward(); o.step()
    return l.item()
"""


def same(folder: Path, source: str, *words: str, fresh: bool = False) -> str:
    """Run a script with and without the recorder; return the recorder's own lines."""
    (folder / "script.py").write_text(source)
    plain = run(folder, "script.py", *words, fresh=fresh)
    ours = run(folder, "-m", "analyzer", "record", "script.py", *words, fresh=fresh)
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout), ours.stderr
    assert ours.stderr.startswith(plain.stderr)
    own = ours.stderr.removeprefix(plain.stderr)
    assert all(line.startswith("analyzer: ") for line in own.splitlines()), ours.stderr
    return own


def runs_of(folder: Path) -> dict[str, Run]:
    found = sorted((folder / "runs").glob("*")) if (folder / "runs").exists() else []
    return {path.name: open_run(path) for path in found}


# --- what is recorded ------------------------------------------------------------------------


def test_a_script_that_only_calls_a_model_is_a_run(tmp_path: Path) -> None:
    source = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
        self.conv.weight.data.fill_(0.0); self.conv.bias.data.fill_(1.0)
    def forward(self, x): return self.relu(self.conv(x)) + x
print(Block()(torch.ones(1, 3, 5, 5))[0, 0, 0, 0].item())
"""
    own = same(tmp_path, source)
    assert "recorded 1 step, 2 layers, 2 parameters" in own
    (found,) = runs_of(tmp_path).values()
    assert found.status == "finished" and found.steps["num_backward"].tolist() == [0]
    assert found.layers["name"].tolist() == ["conv", "relu"]
    assert found.layer_stats()["activation_mean"].tolist() == [1.0, 1.0]
    for command in (["show"], ["diagnose"], ["runs"]):
        words = [*command, *(["latest"] if command != ["runs"] else [])]
        done = run(tmp_path, "-m", "analyzer", *words)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "how",
    [
        "g = torch.autograd.grad(loss(), list(model.parameters()))",
        "import torch.func as f\n"
        "p = {n: q.detach() for n, q in model.named_parameters()}\n"
        "f.grad(lambda q: f.functional_call(model, q, (x,)).pow(2).mean())(p)",
        "o = torch.optim.SGD(model.parameters(), 0.1)\n"
        "ps = list(model.parameters())\n"
        "for q, g in zip(ps, torch.autograd.grad(loss(), ps)):\n    q.grad = g\no.step()",
    ],
    ids=["autograd.grad", "torch.func", "optimizer"],
)
def test_a_script_that_trains_in_its_own_way_is_not_trained_again(tmp_path: Path, how: str) -> None:
    source = (
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
        "model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)); x = torch.randn(8, 64)\n"
        f"def loss(): return model(x).pow(2).mean()\n{how}\n"
        "print(sum(q.sum().item() for q in model.parameters()))\n"
    )
    own = same(tmp_path, source)
    assert "training: step" not in own
    (found,) = runs_of(tmp_path).values()
    assert found.manifest["kind"] == "script"


def test_a_model_file_may_call_its_model(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "print(model(torch.zeros(2, 64)).shape)\n"
    )
    done = run(tmp_path, "-m", "analyzer", "record", "--steps", "3", "net.py")
    assert done.returncode == 0, done.stderr
    (found,) = runs_of(tmp_path).values()
    assert found.manifest["kind"] == "model file" and len(found.steps) == 3


def test_a_model_that_the_loop_cannot_train_keeps_its_own_calls(tmp_path: Path) -> None:
    own = same(
        tmp_path,
        "import torch\nfrom torch import nn\nmodel = nn.Linear(5, 3)\n"
        "print(model(torch.zeros(2, 5)).shape)\n",
    )
    assert "not recorded: a training by the built-in loop" in own
    (found,) = runs_of(tmp_path).values()
    assert found.manifest["kind"] == "script" and len(found.steps) == 1


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import sys, argparse\nargparse.ArgumentParser().parse_args(['--help'])", 0),
        ("import sys, torch\nsys.exit(0)", 0),
        ("import sys, torch\nsys.exit(3)", 3),
        ("import sys, torch\ndef build_model(): return torch.nn.Linear(64, 10)\nsys.exit()", 0),
    ],
)
def test_a_script_that_exits_before_it_trains_leaves_nothing(
    tmp_path: Path, source: str, code: int
) -> None:
    own = same(tmp_path, source)
    assert f"ended with exit code {code} before it called a model; nothing is recorded" in own
    assert runs_of(tmp_path) == {}


def test_a_script_may_go_to_another_folder(tmp_path: Path) -> None:
    source = TRAINS + "import os\nos.mkdir('other') if not os.path.exists('other') else None\n"
    same(tmp_path, source + "train(1)\nos.chdir('other')\nprint(train(4))\n")
    (found,) = runs_of(tmp_path).values()
    assert len(found.steps) == 5 and not list((tmp_path / "other").iterdir())


# --- processes that a script starts ----------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.slow) for m in ("spawn", "forkserver"))]
)
def test_processes_that_train_have_runs_of_their_own(tmp_path: Path, method: str) -> None:
    source = TRAINS + (
        "import torch.multiprocessing as mp\n"
        "def work(rank):\n"
        "    torch.set_num_threads(1)\n"
        "    print(rank, train(3 + rank, rank), flush=True) if rank < 2 else None\n"
        "    if rank == 1: raise SystemExit(7)\n"
        "if __name__ == '__main__':\n"
        f"    context = mp.get_context('{method}')\n"
        "    for rank in range(3):\n"
        "        p = context.Process(target=work, args=(rank,)); p.start(); p.join()\n"
        "        print(p.exitcode, flush=True)\n"
    )
    own = same(tmp_path, source)
    assert "2 processes that the script started trained, recorded in" in own
    found = runs_of(tmp_path)
    assert set(found) == {"script-0", "script-0-child-0", "script-0-child-1"}
    assert found["script-0"].manifest["children"] == ["script-0-child-0", "script-0-child-1"]
    assert len(found["script-0"].steps) == 0 and found["script-0"].status == "finished"
    for k, status in enumerate(("finished", "failed")):
        child = found[f"script-0-child-{k}"]
        assert child.manifest["parent"] == "script-0" and child.status == status
        assert len(child.steps) == 3 + k
        assert child.layers["name"].tolist() == ["0", "1", "2"]
        assert child.steps["num_backward"].tolist() == [1] * (3 + k)


def test_a_process_that_is_forked_in_the_middle_of_a_training(tmp_path: Path) -> None:
    source = TRAINS + (
        "import os\nprint(train(2), flush=True)\npid = os.fork()\n"
        "if pid == 0:\n    print(train(3, 1), flush=True)\n    os._exit(5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), train(2, 2), flush=True)\n"
        "if os.fork() == 0: print(train(1, 4), flush=True); raise ValueError('child')\n"
        "os.wait()\n"
    )
    same(tmp_path, source)
    found = runs_of(tmp_path)
    assert {name: len(one.steps) for name, one in found.items()} == {
        "script-0": 4,
        "script-0-child-0": 3,
        "script-0-child-1": 1,
    }
    children = [one for name, one in found.items() if "child" in name]
    assert [one.manifest["error"] for one in children] == ["exit code 5", "exit code 1"]
    assert found["script-0"].status == "finished"


def test_workers_that_load_data_are_no_runs(tmp_path: Path) -> None:
    source = TRAINS + (
        "from torch.utils.data import DataLoader\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, i):\n"
        "        return nn.Flatten(0)(torch.full((2, 4), float(i)))\n"
        "if __name__ == '__main__':\n"
        "    torch.manual_seed(0); m = nn.Linear(8, 1)\n"
        "    o = torch.optim.SGD(m.parameters(), 0.01)\n"
        "    for x in DataLoader(Data(), 2, num_workers=2):\n"
        "        o.zero_grad(); m(x).sum().backward(); o.step()\n"
        "    print(m.weight.sum().item())\n"
    )
    own = same(tmp_path, source)
    assert "started" not in own
    assert [len(one.steps) for one in runs_of(tmp_path).values()] == [4]


def test_a_script_that_starts_another_program_ends_as_that_one(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(TRAINS + "print(train(3), flush=True)\n")
    source = "import subprocess, sys\nsubprocess.run([sys.executable, 'other.py'], check=True)\n"
    own = same(tmp_path, source, fresh=True)  # torch is not imported
    assert "put `analyzer record` before the program that trains" in own
    assert runs_of(tmp_path) == {}


# --- signals ---------------------------------------------------------------------------------

SLEEPS = """
import signal, sys, time
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
train(20)
print("ready", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_the_end_and_everything_is_on_disk(tmp_path: Path, number: int) -> None:
    done = signalled(tmp_path, TRAINS + SLEEPS, number)
    assert done.returncode == -number
    (found,) = runs_of(tmp_path).values()
    assert found.status == "interrupted" and len(found.steps) == 20
    assert "recorded 20 steps" in done.stderr and "(interrupted," in done.stderr


def test_a_signal_before_anything_leaves_nothing(tmp_path: Path) -> None:
    source = "import time, torch\nprint('ready', flush=True)\ntime.sleep(100)\n"
    assert signalled(tmp_path, source, signal.SIGTERM).returncode == -signal.SIGTERM
    assert runs_of(tmp_path) == {}


def test_a_handler_of_the_script_wins(tmp_path: Path) -> None:
    source = TRAINS + (
        "import signal, sys, time\n"
        "old = signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))\n"
        "assert old is signal.SIG_DFL, old\n"
        "train(3)\nprint('ready', flush=True)\ntime.sleep(100)\n"
    )
    assert signalled(tmp_path, source, signal.SIGTERM).returncode == 4
    (found,) = runs_of(tmp_path).values()
    assert found.status == "failed" and len(found.steps) == 3


def test_the_default_that_a_script_sets_back_is_ours(tmp_path: Path) -> None:
    source = TRAINS + (
        "import signal, time\n"
        "old = signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "mine = signal.signal(signal.SIGTERM, old)\nassert callable(mine)\n"
        "train(3)\nprint('ready', flush=True)\ntime.sleep(100)\n"
    )
    assert signalled(tmp_path, source, signal.SIGTERM).returncode == -signal.SIGTERM
    (found,) = runs_of(tmp_path).values()
    assert found.status == "interrupted" and len(found.steps) == 3


def test_a_process_of_the_script_that_is_terminated(tmp_path: Path) -> None:
    source = TRAINS + (
        "import multiprocessing as mp, time\n"
        "def work(queue):\n    train(3); queue.put(1); time.sleep(100)\n"
        "if __name__ == '__main__':\n"
        "    context = mp.get_context('fork'); queue = context.Queue()\n"
        "    p = context.Process(target=work, args=(queue,), daemon=True); p.start()\n"
        "    queue.get(); p.terminate(); p.join(); print(p.exitcode)\n"
    )
    same(tmp_path, source)
    found = runs_of(tmp_path)["script-0-child-0"]
    assert found.status == "interrupted" and len(found.steps) == 3


ENDLESS = """
import time, torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 4)
    def forward(self, x): return x + self.inside(x).tanh()
def build_model(): return nn.Sequential(nn.Linear(4, 4), Block(), nn.Linear(4, 2))
def batches():
    for step in range(10**6):
        if step == 20: open("ready", "w").close()
        if step >= 20: time.sleep(0.01)
        yield torch.ones(3, 4), torch.zeros(3, dtype=torch.long)
"""
BY_ITSELF = """
model = build_model(); optimizer = torch.optim.SGD(model.parameters(), 0.1)
for x, y in batches():
    optimizer.zero_grad(); nn.functional.cross_entropy(model(x), y).backward(); optimizer.step()
"""


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("model file", signal.SIGHUP),
        # Of a script, tests/analyzer/test_twin_command.py interrupts both.
        pytest.param("twin", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_built_in_loop_and_both_of_two_twins(
    tmp_path: Path, kind: str, number: int
) -> None:
    (tmp_path / "train.py").write_text(ENDLESS + (BY_ITSELF if kind == "twin" else ""))
    words = ["--twin"] if kind == "twin" else ["--steps", "1000000"]
    command = ("-m", "analyzer", "record", "--run", "it", *words, "train.py")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(tmp_path, *command, fresh=kind == "twin", **pipes) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == -number
    found = open_run(tmp_path / ("it-plain" if kind == "twin" else "it"))
    assert found.status == "interrupted" and len(found.steps) >= 19
    assert found.steps["step"].tolist() == list(range(len(found.steps)))
    # The twin is recorded first: of the run itself there is nothing yet, and no empty folder.
    assert (tmp_path / "it").exists() == (kind != "twin")
    if kind != "twin":
        assert f"recorded {len(found.steps):,} steps" in error


# --- ends that run nothing -------------------------------------------------------------------


IN_A_HOOK = "y = m(x); y.register_hook(lambda _: os._exit(4)); y.sum().backward()"
NO_SUCH_FILE = "try: os.execv('none', ['x'])\nexcept OSError: train(3)\nos._exit(0)"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os._exit(0)", "finished"),
        ("os._exit(3)", "failed"),
        (IN_A_HOOK, "failed"),
        ("os.execvp('echo', ['echo', 'another'])", "finished"),
        (NO_SUCH_FILE, "finished"),
    ],
)
def test_a_script_that_leaves_at_once_is_recorded_whole(
    tmp_path: Path, end: str, status: str
) -> None:
    source = TRAINS + (
        "import os\nm = nn.Linear(2, 2); x = torch.ones(1, 2)\n"
        f"print(train(4), flush=True)\n{end}\n"
    )
    own = same(tmp_path, source)
    (found,) = runs_of(tmp_path).values()
    steps = 7 if "train(3)" in end else 4
    assert found.status == status and len(found.steps) == steps
    assert f"recorded {steps:,} steps" in own
    assert ("put another program in its place" in own) == ("execvp" in end)


def test_what_a_script_made_goes_at_its_end_as_it_does_without_the_recorder(
    tmp_path: Path,
) -> None:
    source = TRAINS.replace("return l.item()", "m.kept = Kept('model'); return m") + (
        "class Kept:\n"
        "    def __init__(self, name): self.name = name\n"
        "    def __del__(self): print('gone', self.name, flush=True)\n"
        "def numbers():\n"
        "    try:\n        while True: yield 1\n"
        "    finally: print('closed', flush=True)\n"
        "top, model, some = Kept('top'), train(3), numbers()\n"
        "print(next(some), flush=True)\n"
    )
    assert "recorded 3 steps" in same(tmp_path, source, fresh=True)


def test_an_exit_handler_that_leaves_at_once_takes_no_words(tmp_path: Path) -> None:
    own = same(tmp_path, TRAINS + "import atexit, os\natexit.register(os._exit, 3)\ntrain(2)\n")
    assert own.count("recorded 2 steps") == 1
    (found,) = runs_of(tmp_path).values()
    assert found.status == "finished"


def test_a_script_that_leaves_before_it_trains_leaves_no_folder(tmp_path: Path) -> None:
    same(tmp_path, "import os, torch\nos._exit(0)\n")
    assert runs_of(tmp_path) == {}


# --- what is on disk -------------------------------------------------------------------------


def test_the_last_line_says_what_is_on_disk(tmp_path: Path) -> None:
    source = TRAINS + (
        "import glob, os, time\ntrain(10)\ntime.sleep(3)\n"
        "for part in glob.glob('runs/*/steps/*.parquet'): os.remove(part)\ntrain(5)\n"
    )
    own = same(tmp_path, source)
    assert "recorded 6 of 15 steps" in own
    assert "6 of 15 steps are on disk, 9 were lost" in own


def test_large_checkpoints_are_announced_before_the_training_ends(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys, torch\nm = torch.nn.Linear(5200, 5200)\n"
        "o = torch.optim.SGD(m.parameters(), 0.1)\n"
        "for _ in range(2): m(torch.ones(1, 5200)).sum().backward(); o.step()\n"
        "print('end', file=sys.stderr)\n"
    )
    done = run(tmp_path, "-m", "analyzer", "record", "script.py")
    first, second, *_ = done.stderr.splitlines()
    assert first == (
        "analyzer: each checkpoint takes 103 MiB: weights are saved before the first step "
        "and after the last"
    )
    assert second == "end"


def test_of_two_recordings_of_one_folder_exactly_one_is_made(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TRAINS + "train(3)\n")
    words = ("-m", "analyzer", "record", "--run", "it", "script.py")
    processes = [start(tmp_path, *words, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2, 2]
    for code, error in zip(codes, errors, strict=True):
        if code:
            assert error.count("\n") == 1 and "run folder 'it' exists" in error
    assert len(open_run(tmp_path / "it").steps) == 3


def test_a_folder_that_a_recorder_took_a_moment_ago(tmp_path: Path) -> None:
    own = run(
        tmp_path,
        "-c",
        "import os, sys, json\nfrom analyzer.cli import main\n"
        "open('script.py', 'w').write('import os\\nopen(\"it/run.json\", \"w\").write(\"{}\")\\n'"
        "'import torch\\nprint(1)\\n')\n"
        "sys.exit(main(['record', '--run', 'it', 'script.py']))",
        fresh=True,  # the folder is taken when torch is imported
    )
    assert own.returncode == 2 and own.stdout == ""
    assert own.stderr.count("\n") == 1 and "exists and holds something" in own.stderr


@pytest.mark.no_cover
def test_losses_are_told_wherever_a_run_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "runs" / "it", [1.0] * 12, [[1.0, 2.0]] * 12) / "run.json"
    fields = {
        **json.loads(path.read_text()),
        "steps": 12,
        "lost_steps": 18,
        "storage_error": "OSError: No space left on device",
        "damaged": ["steps/a.parquet: truncated"],
    }
    path.write_text(json.dumps(fields))
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> str:
        assert main(list(words)) in (0, 1)
        return capsys.readouterr().out

    lost = "12 of 30 steps are on disk, 18 were lost: OSError: No space left on device"
    for words in (["runs"], ["show", "latest"], ["diagnose", "latest"]):
        text = " ".join(said(*words).split())
        assert lost in text and "1 file is damaged or missing: steps/a.parquet" in text, words
    listed = json.loads(said("runs", "--json"))
    assert listed[0]["steps"] == 12 and listed[0]["incomplete"][0] == lost
    said("report", "latest", "-o", "report.html")
    assert lost in (tmp_path / "report.html").read_text()

"""A run that is continued after a stop equals, with its earlier attempts, an undisturbed one."""

import copy
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from analyzer.cli import main
from analyzer.errors import AnalyzerError, RunExistsError, RunNotFoundError, SchemaError
from analyzer.recording.recorder import Recorder
from analyzer.recording.resuming import NotResumableError
from analyzer.storage.run import Run, open_run
from analyzer.storage.schema import EDGES, SCHEMA_VERSION, STATIC_TABLES, STEP_TABLES
from tests.support import commands
from tests.support.commands import command

# What no two recordings share.
MOMENTS = ("seconds", "time", "attempt")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Training:
    """A training with everything that a script's own checkpoint has to hold."""

    def __init__(self, kind: str = "sgd", width: int = 6) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, width), Residual(), nn.Dropout(0.2), nn.Linear(6, 3)
        )
        parameters = self.model.parameters()
        make: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
            "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
            "adam": lambda p: torch.optim.AdamW(p, 1e-2),
        }
        self.kind = kind
        self.optimizer = make.get(kind, make["sgd"])(parameters)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, total_iters=20)
        self.data = torch.Generator().manual_seed(1)
        self.step = 0

    def run(self, until: int) -> None:
        while self.step < until:
            x = torch.randn(5, 4, generator=self.data)

            def backward(x: torch.Tensor = x) -> torch.Tensor:
                self.optimizer.zero_grad()
                for part in x.split(2 if self.kind == "accumulated" else 5):
                    loss = self.model(part).square().mean() + self.model[0].weight.square().mean()
                    loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
                return loss

            if self.kind == "closure":
                self.optimizer.step(backward)
            else:
                backward()
                self.optimizer.step()
            self.schedule.step()
            self.step += 1

    def state(self) -> Any:
        parts = [part.state_dict() for part in (self.model, self.optimizer, self.schedule)]
        return copy.deepcopy((parts, torch.get_rng_state(), self.data.get_state(), self.step))

    def load(self, state: Any) -> None:
        parts, random, data, self.step = copy.deepcopy(state)
        for part, values in zip((self.model, self.optimizer, self.schedule), parts, strict=True):
            part.load_state_dict(values)
        torch.set_rng_state(random)
        self.data.set_state(data)


def rows(run: Run, table: str) -> list[dict[str, Any]]:
    found = run.read(table) if table in STEP_TABLES else run.static_rows(table)
    return [
        {name: repr(value) for name, value in row.items() if name not in MOMENTS}
        for row in found.to_pylist()
    ]


def assert_joined(joined: Path, whole: Path) -> None:
    one, other = open_run(joined), open_run(whole)
    for table in (*STEP_TABLES, *STATIC_TABLES, EDGES):
        assert rows(one, table) == rows(other, table), table
        assert table in ("splits", "joins") or rows(one, table)
    assert one.warnings == []


def files(run: Path) -> dict[str, str]:
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.is_file()
    }


def stopped(run: Path, at: int, checkpoint: int, kind: str = "sgd", **options: Any) -> Any:
    """Record a training that stops after some steps; return the state that it had before."""
    training = Training(kind)
    with Recorder(training.model, run, **options):
        training.run(checkpoint)
        state = training.state()
        training.run(at)
    return state


@pytest.mark.parametrize(
    ("kind", "at", "options"),
    [
        ("sgd", 13, {}),  # its checkpoint was older than its last step
        ("adam", 10, {"columns": "norms"}),  # it was as old
        # The checkpoint lies at a step of which only the loss was recorded.
        ("sgd", 17, {"every": 4, "splits_every": 2, "updates_every": 2}),
        ("accumulated", 17, {"every": 4, "splits_every": 2, "updates_every": 2}),
        ("accumulated", 13, {}),
        ("closure", 17, {"every": 4, "splits_every": 2, "updates_every": 2}),
        ("closure", 13, {}),
        ("sgd", 12, {"layers": "branch", "updates_every": 3}),
    ],
)
def test_a_resumed_run_equals_an_undisturbed_one(
    tmp_path: Path, kind: str, at: int, options: dict[str, Any]
) -> None:
    whole = Training(kind)
    with Recorder(whole.model, tmp_path / "whole", **options):
        whole.run(25)
    state = stopped(tmp_path / "a", at, 10, kind, **options)
    before = files(tmp_path / "a" / "steps")
    later = Training(kind)
    later.load(state)
    with Recorder(later.model, resume=tmp_path / "a"):
        later.run(25)
    assert_joined(tmp_path / "a", tmp_path / "whole")
    run = open_run(tmp_path / "a")
    assert run.steps["attempt"].tolist() == [0] * 10 + [1] * 15
    assert len(run.raw_steps()) == at + 15
    assert before.items() <= files(tmp_path / "a" / "steps").items()
    first, second = run.manifest["attempts"]
    assert (first["first_step"], first["status"]) == (0, "finished")
    assert (second["first_step"], second["status"]) == (10, "finished")
    assert run.manifest["steps"] == 25
    assert not list((tmp_path / "a").glob(".*"))


def test_a_second_resumption_is_a_third_attempt(tmp_path: Path) -> None:
    whole = Training()
    with Recorder(whole.model, tmp_path / "whole"):
        whole.run(20)
    state = stopped(tmp_path / "a", 6, 5)
    for until in (12, 20):
        later = Training()
        later.load(state)
        with Recorder(later.model, resume=tmp_path / "a"):
            later.run(until)
            state = later.state()
    assert_joined(tmp_path / "a", tmp_path / "whole")
    assert open_run(tmp_path / "a").steps["attempt"].tolist() == [0] * 5 + [1] * 7 + [2] * 8


def alternate(folder: Path, states: list[Any], until: int, resume: bool) -> None:
    """Two models take turns, each with an optimizer and a measured update of its own."""
    trainings = [Training(), Training("adam")]
    for training, state in zip(trainings, states, strict=False):
        training.load(state)
    options: dict[str, Any] = {"resume": folder} if resume else {"updates_every": 3}
    with Recorder(trainings[0].model, None if resume else folder, **options) as recorder:
        recorder.add_model(trainings[1].model)
        while trainings[1].step < until:
            for training in trainings:
                training.run(training.step + 1)
    states[:] = [training.state() for training in trainings]


def test_models_that_take_turns_are_continued_where_they_were(tmp_path: Path) -> None:
    alternate(tmp_path / "whole", [], 12, resume=False)
    states: list[Any] = []
    alternate(tmp_path / "a", states, 4, resume=False)
    # The random state belongs to both.
    states[0][1].copy_(states[1][1])
    alternate(tmp_path / "a", states, 12, resume=True)
    one, other = open_run(tmp_path / "a"), open_run(tmp_path / "whole")
    assert rows(one, "steps") == rows(other, "steps")
    assert rows(one, "parameter_stats") == rows(other, "parameter_stats")
    assert one.steps["attempt"].tolist() == [0] * 8 + [1] * 16


def test_a_training_that_begins_again_goes_over_all_steps(tmp_path: Path) -> None:
    stopped(tmp_path / "a", 4, 4)
    before = files(tmp_path / "a" / "checkpoints")
    later = Training()
    with Recorder(later.model, resume=tmp_path / "a"):
        later.run(2)
    run = open_run(tmp_path / "a")
    assert run.steps["attempt"].tolist() == [1, 1, 0, 0]
    assert run.manifest["steps"] == 4
    kept = files(tmp_path / "a" / "checkpoints")
    first = "step-000000000000.safetensors"
    assert kept[f"attempt-0-{first}"] == before[first]
    assert sorted(kept) == sorted([*before, f"attempt-0-{first}", "step-000000000002.safetensors"])


def test_unknown_weights_follow_the_last_step_and_a_given_number_wins(tmp_path: Path) -> None:
    stopped(tmp_path / "a", 4, 4)
    later = Training()
    with torch.no_grad():
        later.model[0].weight.mul_(3)
    with Recorder(later.model, resume=tmp_path / "a"):
        later.run(2)
    assert open_run(tmp_path / "a").steps["step"].tolist() == [0, 1, 2, 3, 4, 5]
    later.step = 0
    with Recorder(later.model, resume=tmp_path / "a", first_step=9):
        later.run(1)
    run = open_run(tmp_path / "a")
    assert run.steps["step"].tolist() == [0, 1, 2, 3, 4, 5, 9]
    assert run.manifest["attempts"][2]["first_step"] == 9


def test_layers_keep_their_ids_whatever_comes_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def train(order: str) -> None:
        x = torch.ones(2, 3)
        for name in order:
            x = model[name](x)
        x.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with Recorder(model, tmp_path / "a"):
        train("ab")
    with Recorder(model, resume=tmp_path / "a"):
        train("cba")
    run = open_run(tmp_path / "a")
    assert dict(zip(run.layers["name"], run.layers["layer"], strict=True)) == {
        "a": 0,
        "b": 1,
        "c": 2,
    }
    second = run.layer_stats("output_gradient_norm", steps=1)
    assert second["layer"].tolist() == [2, 1, 0]
    # c comes first, so that its gradient has passed the weights of the two others.
    assert len(set(second["output_gradient_norm"])) == 3
    parameters = dict(zip(run.parameters["name"], run.parameters["layer"], strict=True))
    assert parameters == {f"{k}.{w}": i for i, k in enumerate("abc") for w in ("weight", "bias")}


def test_the_probes_of_both_attempts_are_kept(tmp_path: Path) -> None:
    state = stopped(tmp_path / "a", 3, 2, probe="jacobian:1")
    before = files(tmp_path / "a" / "probes" / "jacobian")
    later = Training()
    later.load(state)
    with Recorder(later.model, resume=tmp_path / "a"):
        later.run(4)
    after = files(tmp_path / "a" / "probes" / "jacobian")
    again = "step-000000000002.parquet"
    assert after[f"attempt-0-{again}"] == before[again] != after[again]
    assert sorted(open_run(tmp_path / "a").probe("jacobian")["step"].unique()) == [0, 1, 2, 3, 4]


# --- what cannot be resumed --------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Path]:
    """A run, which is not changed by an attempt that is refused."""
    path = tmp_path / "runs" / "a"
    stopped(path, 3, 3, every=2)
    before = files(path)
    yield path
    assert files(path) == before


def test_another_model_is_refused_before_anything_is_recorded(recorded: Path) -> None:
    other = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    with pytest.raises(AnalyzerError, match=r"other parameters: for 1\.weight the run has none"):
        Recorder(other, resume=recorded).start()
    wide = nn.Sequential(nn.Linear(4, 6), Residual(), nn.Dropout(), nn.Linear(6, 5))
    with pytest.raises(
        AnalyzerError, match=r"for 3\.weight the run has \[3, 6\], the prog.* \[5, "
    ):
        Recorder(wide, resume=recorded).start()


def test_a_program_of_another_model_is_ended_at_its_first_backward_pass(recorded: Path) -> None:
    said: list[str] = []
    other = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    with pytest.raises(NotResumableError), Recorder(None, resume=recorded, warn=said.append):
        other(torch.ones(2, 4)).sum().backward()
    assert "cannot be resumed by this program" in said[0]


def test_an_option_that_is_not_the_runs_is_refused(recorded: Path) -> None:
    with pytest.raises(AnalyzerError, match=r"--every is 5, and run .* was recorded with 2; a r"):
        Recorder(Training().model, resume=recorded, every=5)
    with pytest.raises(AnalyzerError, match=r"--skip-scale is 0\.5, and run .* with None"):
        Recorder(Training().model, resume=recorded, skip_scale=0.5)


def test_an_attempt_without_a_step_leaves_no_trace(recorded: Path) -> None:
    with Recorder(Training().model, resume=recorded):
        pass
    with Recorder(None, resume=recorded):
        Training().model(torch.ones(1, 4))


def test_what_is_no_run_is_refused(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(recorded.parent)
    for words, sentence in {
        ("--resume", "b", "train.py"): "no run 'b' to resume",
        ("--resume", "a", "zoo:plain20"): "The built-in loop keeps none",
        ("--resume", "a", "--twin", "train.py"): "is given with --twin",
        ("--resume", "a", "--run", "b", "train.py"): "is given with --run b",
        ("--first-step", "3", "train.py"): "is given without --resume",
    }.items():
        Path(recorded.parents[1] / "train.py").touch()
        target = str(recorded.parents[1] / "train.py")
        given = [target if word == "train.py" else word for word in words]
        assert main(["record", "--runs-dir", runs, *given]) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(RunNotFoundError, match="no run"):
        Recorder(Training().model, resume=recorded.parent / "b")


def changed(path: Path, **fields: Any) -> None:
    manifest = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(manifest | fields))


def test_a_newer_run_and_one_of_the_built_in_loop_are_refused(tmp_path: Path) -> None:
    stopped(tmp_path / "a", 1, 1)
    changed(tmp_path / "a", kind="zoo")
    with pytest.raises(AnalyzerError, match="is that of a built-in network: the built-in loop kee"):
        Recorder(Training().model, resume=tmp_path / "a")
    changed(tmp_path / "a", kind="script", schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(SchemaError, match=f"has schema version {SCHEMA_VERSION + 1}; this analyz"):
        Recorder(Training().model, resume=tmp_path / "a")


def test_a_run_that_is_being_recorded_is_refused(tmp_path: Path) -> None:
    training = Training()
    with Recorder(training.model, tmp_path / "a"):
        training.run(2)
        with pytest.raises(RunExistsError, match="is still being recorded; wait for its end"):
            Recorder(training.model, resume=tmp_path / "a").start()
        code = (
            "import torch; from analyzer import Recorder\n"
            f"try: Recorder(None, resume={str(tmp_path / 'a')!r}).start()\n"
            "except Exception as error: print(error)"
        )
        done = commands.run(tmp_path, "-c", code)
        assert "is still being recorded" in done.stdout, done.stderr
        training.run(4)
    assert open_run(tmp_path / "a").steps["step"].tolist() == [0, 1, 2, 3]


SCRIPT = """
import os, signal, sys, time
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
optimizer = torch.optim.Adam(model.parameters(), 0.01)
first = 0
if os.path.exists("state.pt"):
    state = torch.load("state.pt")
    model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    first = state["step"]
for step in range(first, 12):
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 4 == 3:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"random": torch.get_rng_state(), "step": step + 1}, "state.pt")
    if sys.argv[1:] == [str(step)]:
        time.sleep(2.5)  # by then the steps are on disk
        os.kill(os.getpid(), signal.SIGKILL)
print(first)
"""


def test_a_script_is_resumed_where_its_checkpoint_was(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    command(tmp_path, "record", "--stop-after", "6", "--run", "runs/a", "train.py")
    said = command(tmp_path, "record", "--resume", "latest", "train.py")
    assert "recorded 8 steps" in said and "(attempt 1 from step 4, finished" in said
    assert open_run(tmp_path / "runs" / "a").steps["attempt"].tolist() == [0] * 4 + [1] * 8


@pytest.mark.slow
def test_a_script_that_was_killed_is_resumed_at_once(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    command(tmp_path, "record", "--quiet", "--run", "whole", "train.py")
    os.remove(tmp_path / "state.pt")
    command(tmp_path, "record", "--run", "runs/a", "train.py", "9", code=-signal.SIGKILL)
    said = command(tmp_path, "record", "--resume", "a", "train.py")
    assert "recorded 4 steps" in said and "(attempt 1 from step 8, finished" in said
    assert_joined(tmp_path / "runs" / "a", tmp_path / "whole")
    before = files(tmp_path / "runs" / "a")
    (tmp_path / "other.py").write_text(SCRIPT.replace("nn.Linear(4, 1)", "nn.Linear(4, 2)"))
    os.remove(tmp_path / "state.pt")
    said = command(tmp_path, "record", "--resume", "latest", "other.py", code=2)
    assert "for 2.weight the run has [1, 4], the program has [2, 4]" in said
    (tmp_path / "idle.py").write_text("import torch\ntorch.nn.Linear(2, 2)(torch.ones(1, 2))")
    said = command(tmp_path, "record", "--resume", "a", "idle.py")
    assert "nothing was recorded; runs/a is as it was" in said
    assert files(tmp_path / "runs" / "a") == before


RANKS = """
import os
import torch, torch.distributed as dist
from torch import nn

dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.Tanh()))
optimizer = torch.optim.Adam(model.parameters(), 0.01)
state = torch.load("state.pt") if os.path.exists("state.pt") else None
if state is not None:
    model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
for step in range(0 if state is None else state["step"], int(os.environ["LAST"])):
    data = torch.Generator().manual_seed(10 * step + dist.get_rank())
    optimizer.zero_grad()
    model(torch.randn(4, 4, generator=data)).square().mean().backward()
    optimizer.step()
    if step % 4 == 3 and dist.get_rank() == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"step": step + 1}, "state.pt")
dist.barrier()
"""


@pytest.mark.slow
def test_the_ranks_of_a_launch_continue_a_run_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text(RANKS)
    ranks = ("record", "--nproc-per-node", "2")
    monkeypatch.setenv("LAST", "12")
    command(tmp_path, *ranks, "--run", "runs/whole", "train.py")
    os.remove(tmp_path / "state.pt")
    monkeypatch.setenv("LAST", "7")
    command(tmp_path, *ranks, "--run", "runs/a", "train.py")
    monkeypatch.setenv("LAST", "12")
    said = command(tmp_path, *ranks, "--resume", "a", "train.py")
    assert "recorded 8 steps" in said and "(attempt 1 from step 4, finished" in said
    assert_joined(tmp_path / "runs" / "a", tmp_path / "runs" / "whole")
    raw = open_run(tmp_path / "runs" / "a").raw_steps()
    assert len(raw) == 2 * (7 + 8)

"""A training on several ranks is one run, whose pooled numbers are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzer

TRAINING = """
import os, sys, torch, torch.distributed as dist
from torch import nn
torch.set_num_threads(1)
W, R = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.relu = nn.ReLU()

    def forward(self, x):
        return x + self.down(self.relu(self.up(self.norm(x))))


def network():
    torch.manual_seed(0)
    # Two ranks have unlike parts of three rows, and one has nothing of a single number.
    return nn.Sequential(nn.Linear(6, 8), Block(), nn.PReLU(), nn.Linear(8, 3))


def parallel(kind):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel, RowwiseParallel, parallelize_module)
    model, mesh = network(), init_device_mesh("cpu", (W,))
    if kind in ("ddp", "no_sync", "clipped"):
        return nn.parallel.DistributedDataParallel(model)
    if kind.startswith("fsdp1"):
        from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
        options = dict(device_id=torch.device("cpu"), use_orig_params=kind != "fsdp1_flat")
        if kind == "fsdp1_hybrid":  # two copies, each in two parts
            mesh = init_device_mesh("cpu", (2, W // 2), mesh_dim_names=("copies", "parts"))
            options |= dict(device_mesh=mesh, sharding_strategy=ShardingStrategy.HYBRID_SHARD)
        return FullyShardedDataParallel(model, **options)
    if kind.startswith("fsdp"):
        for module in (model[1], model[3], model):
            fully_shard(module, mesh=mesh)
        return model
    plan = {"1.up": ColwiseParallel(), "1.down": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def train(model, kind, steps=3):
    torch.manual_seed(1)
    X, Y = torch.randn(steps, 16, 6), torch.randint(0, 3, (steps, 16))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, y in zip(X, Y):
        if W > 1 and kind != "tp":
            x, y = x[R::W], y[R::W]
        optimizer.zero_grad()
        if kind == "no_sync":
            half = len(x) // 2
            if W > 1:
                with model.no_sync():
                    (nn.functional.cross_entropy(model(x[:half]), y[:half]) / 2).backward()
            else:
                (nn.functional.cross_entropy(model(x[:half]), y[:half]) / 2).backward()
            (nn.functional.cross_entropy(model(x[half:]), y[half:]) / 2).backward()
        elif kind == "fsdp_unsynced":
            parts = list(zip(x.chunk(3), y.chunk(3)))
            for k, (a, b) in enumerate(parts):
                if W > 1:
                    model.set_requires_gradient_sync(k == 2)
                (nn.functional.cross_entropy(model(a), b) * len(a) / len(x)).backward()
        else:
            nn.functional.cross_entropy(model(x), y).backward()
        if kind in ("clipped", "fsdp_clipped"):
            nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
"""
OF_RANKS = """
import analyzer, contextlib, hashlib, json
from torch.distributed.distributed_c10d import _world
dist.init_process_group("gloo")


def num_collectives():
    return sum(group._get_sequence_number_for_group() for group in _world.pg_map)


def trained(kind, recorder):
    model = parallel(kind)
    before = num_collectives()
    with recorder(model):
        train(model, kind)
    count, digest = num_collectives() - before, hashlib.sha256()
    for parameter in model.parameters():
        digest.update(getattr(parameter.data, "_local_tensor", parameter.data).numpy().tobytes())
    return count, digest.hexdigest()


found = {}
for kind in sys.argv[1:]:
    options = dict(updates_every=1, splits_every=1)
    found[kind] = [
        trained(kind, lambda model: analyzer.Recorder(model, kind, **options)),
        trained(kind, lambda model: contextlib.nullcontext()),
    ]
with open(f"unrecorded-{R}.json", "w") as file:
    json.dump(found, file)
# A model keeps the threads of its group. One of them that lets go of a tensor while the interpreter
# ends aborts the process, recorded or not (pytorch issue 190489).
sys.stdout.flush(), sys.stderr.flush(), os._exit(0)
"""
SCRIPT = """
dist.init_process_group("gloo")
model = parallel(sys.argv[1])
train(model, sys.argv[1])
dist.destroy_process_group()
"""
SPAWNING = """
def work(rank, count, folder):
    global W, R
    W, R = count, rank
    dist.init_process_group("gloo", init_method="file://" + folder + "/store", rank=R, world_size=W)
    train(parallel("ddp"), "ddp")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (2, os.getcwd()), nprocs=2)
"""
ELASTIC = """
import signal, time
# A store of each restart's own: in the launcher's, gloo may find where a dead rank listened.
store = "file://" + os.path.abspath("store" + os.environ["TORCHELASTIC_RESTART_COUNT"])
dist.init_process_group("gloo", init_method=store, rank=R, world_size=W)
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(network())
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
state = torch.load("state.pt") if os.path.exists("state.pt") else {"step": 0}
if state["step"]:
    model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
for i in range(state["step"], 12):
    generator = torch.Generator().manual_seed(i)
    x, y = torch.randn(16, 6, generator=generator), torch.arange(16) % 3
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[R::W]), y[R::W]).backward()
    optimizer.step()
    if R == 0 and i == 4:
        saved = {"step": 5, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(saved, "state.pt")
    if i == 8 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        time.sleep(2.5)  # rows are written every 1.5 s
        if R == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
"""
KINDS = ("ddp", "no_sync", "clipped", "fsdp", "fsdp_clipped", "fsdp_unsynced", "fsdp1", "tp")


def torchrun(
    folder: Path, *command: str, restarts: int = 0, ranks: int = 2, **more: str
) -> "subprocess.CompletedProcess[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    number = ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    whole = [*launcher, *number, *command]
    return subprocess.run(whole, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks have trained in each of the ways, every one in a folder of its own."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "train.py").write_text(TRAINING + OF_RANKS)
    done = torchrun(folder, "train.py", *KINDS, "fsdp1_flat")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same trainings in this process."""
    folder, names = tmp_path_factory.mktemp("alone"), {"__name__": "training"}
    runs: dict[str, Any] = {}
    exec(TRAINING, names)

    def run(kind: str) -> Any:
        if kind not in runs:
            model: Any = names["network"]()  # type: ignore[operator]
            with analyzer.Recorder(model, folder / kind, updates_every=1, splits_every=1):
                names["train"](model, kind)  # type: ignore[operator]
            runs[kind] = analyzer.open_run(folder / kind)
        return runs[kind]

    return run


def assert_same_tables(one: Any, many: Any) -> None:
    """Every pooled number is that of one process, to 1e-5."""
    assert many.layers["name"].tolist() == one.layers["name"].tolist()
    assert many.layers["kind"].tolist() == one.layers["kind"].tolist()
    assert many.parameters["name"].tolist() == one.parameters["name"].tolist()
    assert many.parameters["shape"].map(list).tolist() == one.parameters["shape"].map(list).tolist()
    for table in ("layer_stats", "parameter_stats", "splits", "steps"):
        single, pooled = one.read(table).to_pandas(), many.read(table).to_pandas()
        assert len(pooled) == len(single) or table == "splits"
        for name in single.columns:
            if name in ("seconds", "time", "rank", "attempt") or not len(pooled):
                continue
            true, found = single[name].astype(float), pooled[name].astype(float)
            if name == "activation_num_dead":  # which units are dead is not recorded
                assert (found >= true).all()
                continue
            # What adds up to nearly nothing is as exact as what was added.
            least: Any = 1e-7 if name.endswith("_mean") else 0.0
            if name == "update_norm":  # a difference of weights, each rounded to float32
                least = np.finfo(np.float32).eps * single["norm"].to_numpy(float)
            assert np.isclose(found, true, rtol=1e-5, atol=least, equal_nan=True).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_numbers_are_those_of_one_process(ranks: Path, alone: Any, kind: str) -> None:
    many = analyzer.open_run(ranks / kind)
    assert (many.ranks, many.status, many.warnings) == ([0, 1], "finished", [])
    assert many.manifest["data_parallel_ranks"] == (1 if kind == "tp" else 2)
    assert_same_tables(alone(kind), many)


def test_one_flat_parameter_has_the_norms_of_all(ranks: Path, alone: Any) -> None:
    many, one = analyzer.open_run(ranks / "fsdp1_flat"), alone("fsdp1")
    assert (many.status, many.manifest["data_parallel_ranks"]) == ("finished", 2)
    assert many.parameters["num_elements"].tolist() == [one.parameters["num_elements"].sum()]
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(many.steps[name], one.steps[name], rtol=1e-5)
    norms = many.parameter_stats("norm", steps=2)["norm"]
    truth = np.linalg.norm(one.parameter_stats("norm", steps=2)["norm"])
    np.testing.assert_allclose(norms, [truth], rtol=1e-5)
    pooled, single = (
        run.layer_stats("output_gradient_norm", steps=2).set_index("name")["output_gradient_norm"]
        for run in (many, one)
    )
    np.testing.assert_allclose(pooled[single.index], single, rtol=1e-5)


def test_no_collective_is_added_and_no_weight_changes(ranks: Path) -> None:
    for rank in range(2):
        found = json.loads((ranks / f"unrecorded-{rank}.json").read_text())
        assert sorted(found) == sorted((*KINDS, "fsdp1_flat"))
        for kind, (recorded, plain) in found.items():
            assert recorded == plain, kind
            assert recorded[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "tp"])
@pytest.mark.parametrize("is_ours", [True, False], ids=["record", "torchrun"])
def test_one_launch_is_one_run_however_it_is_started(
    tmp_path: Path, alone: Any, kind: str, is_ours: bool
) -> None:
    (tmp_path / "train.py").write_text(TRAINING + SCRIPT)
    options = ["--updates-every", "1", "--splits-every", "1"]
    if is_ours:
        command = [sys.executable, "-m", "analyzer", "record", "--nproc-per-node", "2"]
        command += [*options, "train.py", kind]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    else:
        command = ["-m", "analyzer", "record", "train.py", kind]
        done = torchrun(tmp_path, *command, ANALYZER_OPTIONS=" ".join(options))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("analyzer: recorded 3 steps") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train-0"]
    many = analyzer.open_run(tmp_path / "runs" / "train-0")
    assert (many.ranks, many.status, many.warnings) == ([0, 1], "finished", [])
    assert_same_tables(alone(kind), many)


@pytest.mark.slow
def test_hybrid_sharding_has_copies_of_parts(tmp_path: Path, alone: Any) -> None:
    (tmp_path / "train.py").write_text(TRAINING + SCRIPT)
    options = "--updates-every 1 --splits-every 1"
    command = ["-m", "analyzer", "record", "train.py", "fsdp1_hybrid"]
    done = torchrun(tmp_path, *command, ranks=4, ANALYZER_OPTIONS=options)
    assert done.returncode == 0, done.stderr
    many = analyzer.open_run(tmp_path / "runs" / "train-0")
    assert (many.ranks, many.manifest["data_parallel_ranks"]) == ([0, 1, 2, 3], 4)
    assert_same_tables(alone("fsdp1"), many)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_is_killed_leaves_the_others_and_a_restart_is_a_new_attempt(
    tmp_path: Path, dies: int
) -> None:
    (tmp_path / "train.py").write_text(TRAINING + ELASTIC)
    command = ["-m", "analyzer", "record", "train.py", str(dies)]
    done = torchrun(tmp_path, *command, restarts=1)
    assert done.returncode == 0, done.stderr
    run = analyzer.open_run(tmp_path / "runs" / "train-0")
    assert (run.status, run.warnings, run.manifest["attempt"]) == ("finished", [], 1)
    states = {(r["attempt"], r["rank"]): r["status"] for r in run.manifest["ranks"]}
    assert states[0, dies] == "running" and states[0, 1 - dies] in ("failed", "interrupted")
    assert (states[1, 0], states[1, 1]) == ("finished", "finished")
    # It goes on from the state of step 5, and has those steps.
    steps = run.steps
    assert steps["step"].tolist() == list(range(12))
    assert steps["attempt"].tolist() == [0] * 5 + [1] * 7
    assert not steps["loss"].isna().any()
    raw = run.raw_steps()
    first = raw[raw["attempt"] == 0]
    assert first[first["rank"] == dies]["step"].tolist() == list(range(8))
    assert len(run.layer_stats(steps=3, ranks="all")) == 2 * len(run.layers)


@pytest.mark.slow
def test_ranks_that_a_script_spawns_are_its_run(tmp_path: Path, alone: Any) -> None:
    (tmp_path / "train.py").write_text(TRAINING + SPAWNING)
    options = ["--updates-every", "1", "--splits-every", "1"]
    command = [sys.executable, "-m", "analyzer", "record", *options, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "analyzer: recorded 3 steps of 2 ranks that the script started into runs/train-0" in (
        done.stderr
    )
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train-0"]
    many = analyzer.open_run(tmp_path / "runs" / "train-0")
    assert (many.ranks, many.status, many.warnings) == ([0, 1], "finished", [])
    assert (many.manifest["name"], many.manifest.get("parent")) == ("train-0", None)
    assert_same_tables(alone("ddp"), many)

"""A training on several ranks is one run, whose pooled numbers are those of one process."""

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
    return nn.Sequential(nn.Linear(6, 8), Block(), nn.Linear(8, 4))


def parallel(kind):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel, RowwiseParallel, parallelize_module)
    model, mesh = network(), init_device_mesh("cpu", (W,))
    if kind in ("ddp", "no_sync", "clipped"):
        return nn.parallel.DistributedDataParallel(model)
    if kind.startswith("fsdp"):
        for module in (model[1], model[2], model):
            fully_shard(module, mesh=mesh)
        return model
    plan = {"1.up": ColwiseParallel(), "1.down": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def train(model, kind, steps=3):
    torch.manual_seed(1)
    X, Y = torch.randn(steps, 16, 6), torch.randint(0, 4, (steps, 16))
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
        else:
            nn.functional.cross_entropy(model(x), y).backward()
        if kind in ("clipped", "fsdp_clipped"):
            nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
"""
OF_RANKS = """
import analyzer
dist.init_process_group("gloo")
for kind in sys.argv[1:]:
    model = parallel(kind)
    with analyzer.Recorder(model, kind, updates_every=1, splits_every=1):
        train(model, kind)
dist.destroy_process_group()
"""
KINDS = ("ddp", "no_sync", "clipped", "fsdp", "fsdp_clipped", "tp")


def torchrun(
    folder: Path, *command: str, restarts: int = 0, **more: str
) -> "subprocess.CompletedProcess[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    number = ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [*launcher, *number, *command], cwd=folder, env=env, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks have trained in each of the ways, every one in a folder of its own."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "train.py").write_text(TRAINING + OF_RANKS)
    done = torchrun(folder, "train.py", *KINDS)
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
            least = 1e-7 if name.endswith("_mean") else 0.0
            np.testing.assert_allclose(found, true, rtol=1e-5, atol=least, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_numbers_are_those_of_one_process(ranks: Path, alone: Any, kind: str) -> None:
    many = analyzer.open_run(ranks / kind)
    assert (many.ranks, many.status, many.warnings) == ([0, 1], "finished", [])
    assert many.manifest["data_parallel_ranks"] == (1 if kind == "tp" else 2)
    assert_same_tables(alone(kind), many)

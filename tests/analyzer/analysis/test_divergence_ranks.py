"""``analyzer diverge`` of runs of two ranks: which rank differs is named, with the place."""

from pathlib import Path

import pytest

from analyzer.analysis.divergence import first_divergence
from analyzer.storage.run import open_run
from tests.analyzer.recording.test_ranks import torchrun

# Each run after the first differs on rank 1 alone, at step 2.
TRAININGS = """
import sys, torch, torch.distributed as dist
from torch import nn
import analyzer

class Bent(torch.autograd.Function):
    @staticmethod
    def forward(context, x, factor):
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient):
        return gradient * context.factor, None

class Layer(nn.Linear):
    bend = lift = 1.0

    def forward(self, x):
        return super().forward(Bent.apply(x, self.bend)) * self.lift

def train(planted):
    torch.manual_seed(0)
    net = nn.Sequential(Layer(4, 8), nn.ReLU(), Layer(8, 8), nn.ReLU(), Layer(8, 3))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    with analyzer.Recorder(model, planted, updates_every=1):
        for step in range(4):
            x = torch.randn(16, 4, generator=generator)
            target = torch.randint(3, (16,), generator=generator)
            here = planted if step == 2 and dist.get_rank() == 1 else ""
            net[2].bend = 1.01 if here == "backward" else 1.0
            net[2].lift = 1.01 if here == "forward" else 1.0
            if here == "weight":
                net[4].weight.data[0, 3] += 0.01
            optimizer.param_groups[0]["lr"] = 0.2 if here == "update" else 0.1
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()

dist.init_process_group("gloo")
for planted in sys.argv[1:]:
    train(planted)
dist.destroy_process_group()
"""
PLACES = {
    "forward": (2, "forward", "2"),
    "backward": (2, "backward", "2"),
    "weight": (1, "update", "4"),
    "update": (2, "update", None),
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "train.py").write_text(TRAININGS)
    done = torchrun(folder, "train.py", "one", "again", *PLACES)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("planted", PLACES)
def test_a_difference_on_one_rank_is_found_at_its_place_and_the_rank_is_named(launched, planted):
    runs = [open_run(launched / name) for name in ("one", planted)]
    assert runs[0].ranks == [0, 1]
    found = first_divergence(*runs)
    step, stage, layer = PLACES[planted]
    assert (found.step, found.stage, found.ranks) == (step, stage, (1,)), found.sentence
    assert found.layer == layer
    assert "It differs on rank 1 (" in found.sentence
    # That of the rank: the mean over both is 0.15.
    assert ("learning rate 0.1 against 0.2" in found.sentence) == (planted == "update")
    assert found.as_json()["ranks"] == (1,)


def test_no_rank_is_named_where_all_differ_or_none(launched):
    runs = [open_run(launched / name) for name in ("one", "again", "update")]
    assert first_divergence(*runs[:2]).step is None
    later = first_divergence(runs[0], runs[2], tolerance=0.9)
    assert later.step is None and later.ranks == ()

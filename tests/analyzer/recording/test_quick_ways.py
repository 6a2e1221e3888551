"""The compiled way of a usual tensor and the slow way of all others: the same numbers, no trace."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import analyzer
from analyzer.recording import statistics
from analyzer.recording.hooks import Capture
from analyzer.recording.statistics import HAS_QUICK_WAYS
from analyzer.storage.run import open_run
from tests.support import commands

needs_compiler = pytest.mark.skipif(not HAS_QUICK_WAYS, reason="built without a compiler")

TRAINING = """
import sys
if sys.argv[2] == "plain":
    sys.modules["analyzer.recording._scan"] = None
import torch, analyzer
from torch import nn
from analyzer.recording.statistics import IS_COMPILED
assert IS_COMPILED == (sys.argv[2] != "plain")
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with analyzer.Recorder(model, sys.argv[1], updates_every=1):
    for step in range(4):
        optimizer.zero_grad()
        for batch in (6, 3):  # two micro-batches of different size
            model(torch.randn(batch, 2, 6, 6)).square().mean().backward()
        optimizer.step()
"""


@needs_compiler
def test_a_run_without_the_compiled_part_has_the_same_numbers(tmp_path):
    for name in ("compiled", "plain"):
        done = commands.run(tmp_path, "-c", TRAINING, str(tmp_path / name), name)
        assert done.returncode == 0, done.stderr
    compiled, plain = open_run(tmp_path / "compiled"), open_run(tmp_path / "plain")
    for a, b in (
        (compiled.layer_stats(), plain.layer_stats()),
        (compiled.parameter_stats(), plain.parameter_stats()),
    ):
        assert a.shape == b.shape
        assert a.iloc[:, 2:].abs().sum().sum() > 1
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=1e-5, atol=1e-7)


def trained(model, run, *, steps=3, shape=(6, 8), **options):
    """Record a few steps; return the run and the inputs of the steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs = [torch.randn(shape) for _ in range(steps)]
    with analyzer.Recorder(model, run, **options):
        for x in inputs:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return open_run(run), inputs


@needs_compiler
def test_usual_tensors_never_take_the_slow_way_after_the_first_step(tmp_path, monkeypatch):
    slow = []
    for name in ("_take_slowly", "take_gradient"):
        original = getattr(Capture, name)

        def counted(self, *args, original=original):
            if not self.discovering:
                slow.append(args)
            return original(self, *args)

        monkeypatch.setattr(Capture, name, counted)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    run, _ = trained(model, tmp_path / "run", steps=4)
    assert len(run.layer_stats()) == 12
    # The first gradients arrive while the graph is still looked at, those of later steps do not.
    assert len(slow) == 0


class Shows(nn.Module):
    """A layer whose output is what a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


OUTPUTS = {
    "usual": lambda x: x * 1.0,
    "transposed": lambda x: x.t(),
    "every second": lambda x: x[:, ::2],
    "double": lambda x: x.double(),
    "half": lambda x: x.bfloat16(),
    "zero": lambda x: x * 0.0,
    "constant": lambda x: x * 0.0 + 3.0,
    "tiny": lambda x: x * 1e-30,
    "nan": lambda x: x / (x > 1.0).float() * (x > 1.0).float(),
    "one element": lambda x: x.sum(),
    "no elements": lambda x: x[:0],
    "a table": lambda x: {"out": x * 2.0},
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_kind_of_output_has_the_statistics_of_the_definition(tmp_path, name):
    torch.manual_seed(0)
    function = OUTPUTS[name]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shows = nn.Linear(8, 8), Shows(function)

        def forward(self, x):
            outputs.append(self.first(x))
            y = self.shows(outputs[-1])
            y = y["out"] if isinstance(y, dict) else y
            return y.float().reshape(-1)

    outputs: list[torch.Tensor] = []
    run, _ = trained(Net(), tmp_path / "run")
    names = dict(zip(run.layers["layer"], run.layers["name"], strict=True))
    stats = run.layer_stats()
    rows = stats[stats["layer"].map(names) == "shows"].reset_index(drop=True)
    assert len(rows) == 3
    for step, first in enumerate(outputs):
        y = function(first.detach())
        y = (y["out"] if isinstance(y, dict) else y).double()
        found = rows.loc[step]
        assert found["activation_num_nonfinite"] == int((~torch.isfinite(y)).sum())
        norm = math.sqrt((y * y).sum()) if y.numel() else math.nan
        assert found["activation_norm"] == pytest.approx(norm, rel=1e-6, nan_ok=True)
        if y.numel() and math.isfinite(norm):
            assert found["activation_mean"] == pytest.approx(y.mean().item(), rel=1e-5, abs=1e-38)
            gradient = 2 * y / y.numel()  # of the mean of squares
            assert found["output_gradient_norm"] == pytest.approx(
                math.sqrt((gradient * gradient).sum()), rel=1e-2 if name == "half" else 1e-5
            )
            assert found["output_gradient_zero_fraction"] == (gradient == 0).double().mean()


def test_dead_units_follow_a_batch_of_another_shape(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, -1e6, 0.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with analyzer.Recorder(model, tmp_path / "run"):
        for shape in ((5, 4), (5, 4), (2, 4), (3, 2, 4), (5, 4)):
            model(torch.ones(shape)).sum().backward()
            optimizer.step()
    stats = open_run(tmp_path / "run").layer_stats()
    relu = stats[stats["layer"] == 1]
    assert relu["activation_num_dead"].tolist() == [1, 1, 1, 1, 1]
    assert relu["activation_zero_fraction"].tolist() == pytest.approx([1 / 3] * 5)
    assert relu["activation_norm"].tolist() == pytest.approx(
        [4 * math.sqrt(n * 2) for n in (5, 5, 2, 6, 5)]
    )


def test_two_parts_of_a_graph_may_have_their_backward_passes_one_after_the_other(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.left(x), self.right(x)

    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run"):
        for _ in range(3):
            left, right = model(torch.ones(2, 3))
            left.sum().backward()
            (right * 5).sum().backward()
            optimizer.step()
    run = open_run(tmp_path / "run")
    assert run.layers["name"].tolist() == ["left", "right"]
    gradients = run.layer_stats().pivot(index="step", columns="layer")["output_gradient_norm"]
    np.testing.assert_allclose(gradients, [[math.sqrt(6), 5 * math.sqrt(6)]] * 3, rtol=1e-6)


def test_no_hook_stays_on_outputs_that_outlive_the_recording(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    outputs, seen = [], []
    handle = model[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run"):
        for _ in range(3):
            y = model(torch.ones(2, 3))
            own = outputs[-1].register_hook(seen.append)
            y.sum().backward()
            assert len(outputs[-1]._backward_hooks) == 2
            optimizer.step()
        model(torch.ones(2, 3))  # never goes backward
    handle.remove()
    assert len(seen) == 3
    assert [len(output._backward_hooks or ()) for output in outputs] == [1, 1, 1, 0]
    own.remove()
    assert not outputs[2]._backward_hooks


def test_a_step_leaves_no_garbage_behind(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.collect()
    gc.disable()
    try:
        with analyzer.Recorder(model, tmp_path / "run") as recorder:
            alive: weakref.WeakSet = recorder.training.capture.alive
            counts = []
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.ones(2, 3)).sum().backward()
                optimizer.step()
                counts.append(len(alive))
    finally:
        gc.enable()
    assert counts[2:] == [0, 0, 0]


# torch's compiler itself looks at `.grad` of the intermediate tensor that it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_part_of_a_recorded_model_keeps_its_graph_whole(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    part = torch.compile(lambda x: model[1](x), backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run"):
        for _ in range(3):
            part(model[0](torch.ones(2, 4))).sum().backward()
            optimizer.step()
    run = open_run(tmp_path / "run")
    assert "0" in run.layers["name"].tolist()
    assert len(run.steps) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_element_is_missed_at_any_length_and_address(dtype):
    torch.manual_seed(0)
    store = torch.randn(80).to(dtype)
    store[::7] = 0.0
    for start in range(3):
        for size in range(1, 70):
            x = store[start : start + size]
            y = x.double()
            numbers, _ = statistics.host_activation(x, None)
            expected = [y.norm(), y.mean(), y.std(correction=0), y.min(), y.max(), (y == 0).sum()]
            found = [
                getattr(numbers, key) for key in ("norm", "mean", "std", "min", "max", "zeros")
            ]
            assert found == pytest.approx([float(v) for v in expected], abs=1e-7)
            numbers = statistics.host_gradient(x)
            expected = [y.norm(), y.abs().mean(), y.abs().max(), (y == 0).sum()]
            found = [getattr(numbers, key) for key in ("norm", "mean_abs", "max_abs", "zeros")]
            assert found == pytest.approx([float(v) for v in expected])
            assert statistics.host_norm(x) == pytest.approx(float(y.norm()))

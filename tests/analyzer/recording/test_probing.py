"""Probes during a training: on its own batches, and without a trace in it."""

import copy
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import analyzer
from analyzer.joins.find import call_arguments
from analyzer.options import RecordOptions
from analyzer.probes import PROBE_NAMES
from analyzer.probes.batch import Measurement


class Net(nn.Module):
    """A residual net with batch norm and dropout: buffers, modes and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.branch = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x, *, scale=1.0):
        h = self.norm(self.stem(x))
        return self.head(h + scale * self.branch(h))


def batches(steps):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(steps)
    ]


def train(model, steps=5, micro=1, before=lambda: None):
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    data = iter(batches(steps * micro))
    for _ in range(steps):
        before()
        optimizer.zero_grad()
        for _ in range(micro):
            x, y = next(data)
            loss = functional.cross_entropy(model(x, scale=0.5), y) / micro
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    return losses


@pytest.fixture
def probe(monkeypatch):
    """A probe of the test's own under the name ``paths``."""

    def install(measure):
        def probe_named(name):
            assert name == "paths"
            return measure

        monkeypatch.setattr("analyzer.recording.probing.probe_named", probe_named)

    return install


def noted(values):
    return Measurement({"length": [0], "num_paths": [1.0], "gradient_norm": values, "share": [1.0]})


def test_a_probe_runs_before_the_first_and_each_nth_step_and_at_the_end(tmp_path, probe):
    probe(lambda batch: noted([0.0]))
    with analyzer.Recorder(Net(), tmp_path / "run", probe=["paths:3"]) as recorder:
        train(recorder._model, 9)
    run = analyzer.open_run(tmp_path / "run")
    assert run.probe("paths")["step"].tolist() == [0, 3, 6, 9]


def test_without_an_interval_first_and_final_weights_are_measured(tmp_path, probe):
    probe(lambda batch: noted([0.0]))
    with analyzer.Recorder(Net(), tmp_path / "run", probe="paths") as recorder:
        train(recorder._model, 4)
    assert analyzer.open_run(tmp_path / "run").probe("paths")["step"].tolist() == [0, 4]


def test_a_probe_sees_the_weights_before_the_step_and_the_first_batch(tmp_path, probe):
    seen = []

    def measure(batch):
        weights = copy.deepcopy(batch.model.state_dict())
        seen.append((weights, batch.inputs, batch.labels, batch.loss))
        return noted([0.0])

    probe(measure)
    model = Net()
    twin, states = copy.deepcopy(model), []
    train(twin, 5, before=lambda: states.append(copy.deepcopy(twin.state_dict())))
    states.append(twin.state_dict())
    with analyzer.Recorder(model, tmp_path / "run", probe=["paths:2"], checkpoint_every=2):
        train(model, 5)
    from safetensors.torch import load_file

    for step, (weights, inputs, labels, _) in zip((0, 2, 4, 5), seen, strict=True):
        saved = load_file(tmp_path / "run" / "checkpoints" / f"step-{step:012d}.safetensors")
        for name, expected in states[step].items():
            assert torch.equal(weights[name], expected) and torch.equal(saved[name], expected)
        x, y = batches(5)[0]
        assert torch.equal(inputs["x"], x)
        assert inputs["scale"] == 0.5
        assert torch.equal(labels, y)


def test_the_loss_of_a_probe_is_the_loss_of_the_script(tmp_path, probe):
    found = []

    def measure(batch):
        batch.model.eval()
        output = batch.model(**batch.inputs)
        x, y = batches(5)[0]
        expected = functional.cross_entropy(batch.model(x, scale=0.5), y)
        found.append((batch.loss(output, None), expected))
        return noted([0.0])

    probe(measure)
    model = Net()
    with analyzer.Recorder(model, tmp_path / "run", probe=["paths:2"]):
        train(model, 5)
    assert len(found) == 4
    assert all(torch.equal(mine, truth) for mine, truth in found)


def careless(batch):
    """Runs and changes all that a probe must not change."""
    batch.model.train(not batch.model.training)
    torch.rand(3), random.random(), np.random.rand()
    batch.model(**batch.inputs)
    batch.loss(batch.model(**batch.inputs), None).backward()
    assert all(p.grad is not None for p in batch.model.parameters())
    copy.deepcopy(batch.model)(**batch.inputs).sum().backward()
    return noted([0.0])


@pytest.mark.parametrize("micro", [1, 3])
def test_training_and_recording_are_bit_identical_to_those_without_probes(tmp_path, probe, micro):
    probe(careless)
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)
    with analyzer.Recorder(twin, tmp_path / "plain", splits_every=1):
        losses = train(twin, micro=micro)
    with analyzer.Recorder(model, tmp_path / "probed", splits_every=1, probe=["paths:1"]):
        assert train(model, micro=micro) == losses
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    plain, probed = (analyzer.open_run(tmp_path / name) for name in ("plain", "probed"))
    assert plain.layer_stats().equals(probed.layer_stats())
    assert plain.parameter_stats().equals(probed.parameter_stats())
    assert plain.splits().equals(probed.splits())
    assert plain.layers.equals(probed.layers)
    assert plain.joins.equals(probed.joins)
    assert probed.probe("paths")["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert "not_recorded" not in probed.manifest


def test_nothing_is_left_of_a_probed_recording(tmp_path, probe):
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    held = []
    probe(lambda batch: held.append(weakref.ref(batch.loss)) or noted([0.0]))
    model = Net()
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        train(model, 3)
    assert not _get_current_dispatch_mode_stack()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(ref() is None for ref in held)


def test_a_failing_probe_is_named_in_the_manifest_and_training_goes_on(tmp_path, probe):
    def broken(batch):
        raise ValueError("this net has no joins")

    probe(broken)
    model = Net()
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        train(model, 3)
    run = analyzer.open_run(tmp_path / "run")
    assert len(run.steps) == 3
    assert run.manifest["not_recorded"] == ["probe paths: this net has no joins"]


def test_a_loss_that_cannot_be_replayed_is_refused_only_where_it_is_used(tmp_path, probe):
    def measure(batch):
        if not measured:
            measured.append(1)
            return noted([0.0])
        return noted([batch.loss(batch.model(batch.inputs), None).item()])

    measured = []
    probe(measure)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        for x, _ in batches(3):
            optimizer.zero_grad()
            (model(x).sum() + model(2 * x).sum()).backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.probe("paths")["step"].tolist() == [0]
    assert "2 calls of models" in run.manifest["not_recorded"][0]


def losses_of(batch):
    args, kwargs = call_arguments(batch.inputs)
    return noted([batch.loss(batch.model(*args, **kwargs), None).item()])


def test_a_look_at_the_models_output_before_the_training_is_no_part_of_its_loss(tmp_path, probe):
    probe(losses_of)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    (x, y), *_ = batches(1)
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        assert model(torch.zeros(1, 4)).shape == (1, 3)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.probe("paths")["gradient_norm"].tolist() == 2 * run.steps["loss"].tolist()
    assert "not_recorded" not in run.manifest


def test_a_model_that_reads_what_another_call_made_is_refused(tmp_path, probe):
    probe(losses_of)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        model(model(batches(1)[0][0])).sum().backward()
        optimizer.step()
    (sentence,) = analyzer.open_run(tmp_path / "run").manifest["not_recorded"]
    assert sentence.startswith("probe paths: 2 calls of models led to this step, expected one;")
    assert sentence.endswith("what the model is called with comes from another call")


class OfList(nn.Module):
    """A model whose one argument is a list or a mapping of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, given):
        parts = given.values() if isinstance(given, dict) else given
        return sum(self.layer(part) for part in parts)


@pytest.mark.parametrize("wrap", [lambda x: [x, 2 * x], lambda x: {"one": x, "two": 2 * x}])
def test_a_model_may_take_a_list_or_a_mapping_as_its_one_argument(tmp_path, probe, wrap):
    probe(losses_of)
    model = OfList()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    (x, y), *_ = batches(1)
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        functional.cross_entropy(model(wrap(x)), y).backward()
        optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.probe("paths")["gradient_norm"].tolist() == 2 * run.steps["loss"].tolist()


def test_what_a_probe_cannot_take_is_said_with_shapes(tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe=["attribution", "curvature"]):
        model(torch.ones(4)).square().sum().backward()  # no axis of samples
        optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.probes == ["curvature"]
    (sentence,) = run.manifest["not_recorded"]
    assert sentence.startswith("probe attribution: it failed on inputs of shapes [[4]] (RuntimeErr")
    assert sentence.endswith("Probes take the first axis of inputs and outputs for the samples")


def test_a_long_look_at_the_model_is_not_noted_for_ever(tmp_path, probe):
    probe(losses_of)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        for x, _ in batches(30):
            output = model(x)
        output.sum().backward()
        optimizer.step()
    (sentence,) = analyzer.open_run(tmp_path / "run").manifest["not_recorded"]
    assert sentence.startswith("probe paths: 30 calls of models led to this step, expected one;")


def test_a_model_that_is_only_called_in_parts_has_no_probe_and_says_so(tmp_path, probe):
    probe(losses_of)
    model = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        for x, y in batches(2):
            optimizer.zero_grad()
            functional.cross_entropy(model[1](model[0](x).relu()), y).backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert len(run.layers) == 2 and not run.probes
    (sentence,) = run.manifest["not_recorded"]
    assert sentence.startswith("probe paths: no model is called as a whole")


def test_the_held_batch_is_a_copy_and_named_by_its_hash(tmp_path, probe):
    seen = []
    probe(lambda batch: seen.append(batch.inputs.clone()) or noted([0.0]))
    model, buffer = nn.Linear(4, 3), torch.empty(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        for x, y in batches(3):
            buffer.copy_(x)
            optimizer.zero_grad()
            functional.cross_entropy(model(buffer), y).backward()
            optimizer.step()
    assert all(torch.equal(inputs, batches(1)[0][0]) for inputs in seen)
    noted_at = analyzer.open_run(tmp_path / "run").probe_metadata("paths")
    assert {entry["batch_step"] for entry in noted_at.values()} == {"0"}
    assert len({entry["batch_hash"] for entry in noted_at.values()}) == 1


def test_a_weight_decay_in_the_loss_follows_the_weights(tmp_path, probe):
    found = []

    def measure(batch):
        (x, y), weight = batches(1)[0], batch.model.weight
        expected = functional.cross_entropy(batch.model(x), y) + weight.square().sum()
        found.append(torch.equal(batch.loss(batch.model(batch.inputs), None), expected))
        return noted([0.0])

    probe(measure)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe=["paths:1"]):
        for x, y in batches(3):
            optimizer.zero_grad()
            (functional.cross_entropy(model(x), y) + model.weight.square().sum()).backward()
            optimizer.step()
    assert found == [True] * 4


def test_time_in_probes_is_told_apart_from_training(tmp_path, probe):
    import time

    def slow(batch):
        time.sleep(1.0)
        return noted([0.0])

    probe(slow)
    model = Net()
    with analyzer.Recorder(model, tmp_path / "run", probe="paths"):
        train(model, 3)
    run = analyzer.open_run(tmp_path / "run")
    assert run.manifest["probe_seconds"] >= 2.0
    assert run.steps["seconds"].sum() < 2.0
    assert float(run.probe_metadata("paths")[0]["seconds"]) >= 1.0


@pytest.mark.parametrize("text", ["pahts", "paths:", "paths:0", "paths:-1", "paths:x", ""])
def test_a_wrong_probe_is_refused_with_what_is_expected(text):
    with pytest.raises(ValueError, match="expected"):
        RecordOptions(probe=(text,))


def test_every_probe_of_the_contract_has_a_name():
    assert set(PROBE_NAMES) == {
        "counterfactual",
        "forward_correlation",
        "paths",
        "landscape",
        "sharpness",
        "shattering",
        "jacobian",
        "lesion",
        "curvature",
        "attribution",
        "noise",
    }

"""Probes of networks with batch norm against the same networks in training mode, by hand."""

import copy
import json

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import batch_norm, cross_entropy

import analyzer
from analyzer.probes.activations import as_it_trains
from analyzer.storage.run import Run


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(torch.relu(self.norm(self.branch(x))))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), Block(), Block(), Block(), nn.Linear(6, 3))


X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
STEPS = 3
PROBES = ("paths", "lesion", "curvature", "landscape", "counterfactual", "shattering")


def without_dropout(model: nn.Module) -> nn.Module:
    """In training mode."""
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return twin


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[int, nn.Module]]:
    """A run with these probes, and the network before its first step and after its last."""
    model = net()
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    folder = tmp_path_factory.mktemp("run") / "run"
    with analyzer.Recorder(model, folder, probe=PROBES):
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(model(X), Y).backward()
            optimizer.step()
        model.eval()  # for an evaluation; the last probe comes after it
    run = analyzer.open_run(folder)
    assert "not_recorded" not in run.manifest
    return run, {0: without_dropout(start), STEPS: without_dropout(model)}


@pytest.mark.parametrize("step", [0, STEPS])
def test_each_probe_has_the_loss_of_training_at_the_weights_of_its_step(recorded, step):
    run, networks = recorded
    expected = cross_entropy(networks[step](X), Y).item()
    in_eval = cross_entropy(networks[step].eval()(X), Y).item()
    networks[step].train()
    surface = run.probe("landscape").query(f"step == {step} and alpha == 0 and beta == 0")
    found = [
        json.loads(run.probe_metadata("lesion")[step]["loss"]),
        json.loads(run.probe_metadata("counterfactual")[step]["losses"])[0],
        surface["loss"].iloc[0],
    ]
    assert found == pytest.approx([expected] * 3, rel=1e-6)
    assert abs(in_eval - expected) > 1e-3 * expected
    for name in PROBES:
        notes = run.probe_metadata(name)
        assert sorted(notes) == [0, STEPS]
        assert (notes[step]["num_batches"], notes[step]["num_samples"]) == ("1", "12")
    assert run.probe_metadata("paths")[step]["batch_norms_held_fixed"] == "3"


@pytest.mark.parametrize("step", [0, STEPS])
def test_the_sharpness_is_that_of_the_loss_that_a_step_descends(recorded, step):
    run, networks = recorded
    model = networks[step]
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    buffers = {n: b.double() if b.is_floating_point() else b for n, b in model.named_buffers()}

    def loss(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [shape.numel() for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return cross_entropy(functional_call(model, {**weights, **buffers}, (X.double(),)), Y)

    hessian = torch.autograd.functional.hessian(loss, flat)
    rows = run.probe("curvature").query(f"step == {step}").set_index("quantity")["value"]
    assert rows["sharpness"] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)


def with_constants(model: nn.Sequential, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The inputs of the blocks, and the output, with the statistics of the batch as constants."""
    stream = [model[0](x)]
    for block in list(model)[1:4]:
        z = block.branch(stream[-1])
        mean, var = z.detach().mean(0), z.detach().var(0, correction=0)
        norm = block.norm
        z = batch_norm(z, mean, var, norm.weight, norm.bias, False, 0.1, norm.eps)
        stream.append(stream[-1] + torch.relu(z))
    return stream, model[4](stream[-1])


@pytest.mark.parametrize("step", [0, STEPS])
def test_paths_and_shattering_hold_the_statistics_of_the_batch_constant(recorded, step):
    run, networks = recorded
    stream, output = with_constants(networks[step], X)
    (total,) = torch.autograd.grad(
        cross_entropy(output, Y, reduction="sum"), stream[0], retain_graph=True
    )
    paths = run.probe("paths").query(f"step == {step}")
    # By hand: the shortest path, which crosses no branch, is the head's gradient.
    (shortest,) = torch.autograd.grad(
        cross_entropy(output, Y, reduction="sum"), stream[-1], retain_graph=True
    )
    norms = shortest.double().norm(dim=1)
    assert paths["gradient_norm"].iloc[0] == pytest.approx(float(norms.mean()), rel=1e-5)
    share = (shortest * total).sum(1).double() / total.double().square().sum(1)
    assert paths["share"].iloc[0] == pytest.approx(float(share.mean()), rel=1e-4)
    (rows,) = torch.autograd.grad(output.sum(), stream[0])
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    mean = (unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1))
    first = run.probe("shattering").query(f"step == {step} and name == '0'")["correlation"]
    assert first.iloc[0] == pytest.approx(float(mean), rel=1e-5)


def test_a_model_in_eval_mode_is_seen_as_it_is_evaluated():
    model = net()
    model(X)
    model.eval()
    with as_it_trains(model, X) as notes:
        assert torch.equal(model(X), copy.deepcopy(model).eval()(X))
    assert notes == {"mode": "eval", "batch_norms_held_fixed": "0"}


class Odd(nn.Module):
    """One norm at two places, one without running statistics, one frozen, one as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.shared, self.bare = nn.BatchNorm1d(6), nn.BatchNorm1d(6, track_running_stats=False)
        self.frozen, self.instance = (
            nn.BatchNorm1d(6),
            nn.InstanceNorm1d(6, track_running_stats=True),
        )
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(self.first(x)))
        x = self.bare(self.shared(self.second(x)) + x)
        x = batch_norm(self.frozen(x) ** 2, self.mean, self.var, training=self.training)
        return self.instance(x[:, :, None] * torch.linspace(1, 2, 5)).flatten(1)


def test_every_kind_of_norm_computes_what_it_computes_in_training():
    torch.manual_seed(0)
    model = Odd()
    model.frozen.eval()
    model.frozen.running_mean.fill_(0.3)
    before = copy.deepcopy(model.state_dict())
    expected = copy.deepcopy(model)(X)
    modes = [module.training for module in model.modules()]
    with as_it_trains(model, X) as notes:
        for _ in range(2):
            torch.testing.assert_close(model(X), expected)
        alone = torch.cat([model(X[k : k + 1]) for k in range(len(X))])
        torch.testing.assert_close(alone, expected)  # samples do not see each other
        jacobian = torch.autograd.functional.jacobian(model, X)
        assert not jacobian[0, :, 1:].any()
    assert notes == {"mode": "train", "batch_norms_held_fixed": "3"}
    assert [module.training for module in model.modules()] == modes
    assert model.state_dict().keys() == before.keys() and model.bare.running_mean is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in vars(model.shared)


def test_lesions_use_the_statistics_of_the_intact_network(recorded):
    run, networks = recorded
    model = networks[0]
    stream, _ = with_constants(model, X)
    with torch.no_grad():
        h, inputs = stream[0], stream
        for place, block in enumerate(list(model)[1:4]):
            z = block.branch(inputs[place])
            constants = z.mean(0), z.var(0, correction=0)
            norm = block.norm
            z = batch_norm(
                block.branch(h), *constants, norm.weight, norm.bias, False, 0.1, norm.eps
            )
            h = h + (torch.relu(z) if place != 1 else 0)
        expected = cross_entropy(model[4](h), Y).item()
    rows: pd.DataFrame = run.probe("lesion").query("step == 0")
    assert rows["loss"].iloc[1] == pytest.approx(expected, rel=1e-5)

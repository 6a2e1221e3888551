import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import analyzer
from analyzer.networks.zoo import zoo
from analyzer.probes.batch import held, pooled, split
from analyzer.probes.landscape import methods, surface
from analyzer.probes.landscape.methods import (
    Checked,
    InPlace,
    NotStackableError,
    Stacked,
    Work,
    chosen,
    evaluating,
    method_named,
)
from analyzer.probes.landscape.weights import moves_of

POINTS = [(a, b) for a in np.linspace(-0.5, 0.5, 5) for b in np.linspace(-0.5, 0.5, 5)]


def images(samples: int = 40, channels: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, channels, 8, 8, generator=generator)
    y = torch.arange(samples) % 10
    return [(x[:24], y[:24]), (x[24:], y[24:])]


def work(model: nn.Module, batches: list, loss: object = cross_entropy) -> Work:
    planes = list(analyzer.random_directions(model))
    return Work(model.eval(), moves_of(model, planes), planes, held(batches), loss)


def stacked(task: Work) -> Stacked:
    return Stacked(task, pooled(task.batches))


def trained(model: nn.Module, batches: list) -> nn.Module:
    """Running statistics that are not those of a fresh norm."""
    model.train()
    for x, _ in batches:
        model(3 * x + 1)
    return model


@pytest.mark.parametrize("name", ["resnet8", "resnet8-preact-b", "plain8"])
def test_micro_batches_give_the_losses_of_the_model(name):
    net = zoo(name, in_channels=1, num_classes=10, image_size=8)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5), module.bias.uniform_(-1, 1)
    task = work(trained(net, images()), images())
    with evaluating(task.module, task.moves):
        expected = InPlace(task, task.batches).losses(POINTS[:3])
        for kind in ("micro-batches 16", "micro-batches 7"):
            found = method_named(task, kind).losses(POINTS[:3])
            np.testing.assert_allclose(found, expected, rtol=3e-5)
    assert np.std(expected) > 0.01


MLPS = {
    "plain": lambda: nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)),
    "norms": lambda: zoo("mlp6-batchnorm-w20", in_channels=1, num_classes=10, image_size=8),
    "residual": lambda: zoo("mlp6-residual-w20", in_channels=1, num_classes=10, image_size=8),
    "no bias": lambda: nn.Sequential(nn.Linear(64, 9, bias=False), nn.Tanh(), nn.Linear(9, 10)),
}


@pytest.mark.parametrize("name", MLPS)
@pytest.mark.parametrize("loss", [cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_points_at_once_give_the_losses_of_the_model_one_by_one(name, loss):
    torch.manual_seed(0)
    net, batches = MLPS[name](), images()
    if not isinstance(net[0] if isinstance(net, nn.Sequential) else None, nn.Linear):
        task = work(trained(net, batches), batches, loss)
    else:
        task = work(net, [(x.flatten(1), y) for x, y in batches], loss)
    with evaluating(task.module, task.moves):
        expected = InPlace(task, task.batches).losses(POINTS)
        method = stacked(task)
        groups = [POINTS[k : k + method.group] for k in range(0, len(POINTS), method.group)]
        found = [value for group in groups for value in method.losses(group)]
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert np.std(expected) > 0.01


def test_what_is_not_linear_layers_is_not_stacked():
    model = zoo("resnet8", in_channels=1, num_classes=10, image_size=8)
    task = work(model, images())
    with pytest.raises(NotStackableError, match="outside of linear layers"):
        stacked(task).losses(POINTS[:2])
    softmax = nn.Sequential(nn.Linear(4, 3), nn.Softmax(0))
    task = work(softmax, [(torch.randn(5, 4), torch.randn(5, 3))], mse_loss)
    with pytest.raises(NotStackableError, match="neither linear nor element-wise"):
        stacked(task).losses(POINTS[:2])


class OfWeights(nn.Module):
    """A loss that reads the weights of the model itself: a copy of the model would not move it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parts = [model.weight]

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target) + self.parts[0].square().sum()


class Branching(nn.Module):
    """It looks at its data, and behind that at what depends on weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear(x) if x.sum() < 1e9 else x
        return hidden if hidden.sum() < 1e9 else x


class Mixing(nn.Module):
    """Its output for a sample depends on the other samples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear(x)
        return hidden - hidden.mean(0)


def weighted(output: Tensor, target: Tensor) -> Tensor:
    """The mean over classes of means: not the mean of the means of two parts."""
    return cross_entropy(output, target, weight=torch.tensor([1.0, 20.0, 3.0]))


LINEAR = nn.Linear(4, 3)
CASES = {
    "loss reads weights": (LINEAR, OfWeights(LINEAR), "micro-batches"),
    "branches on data": (Branching(), cross_entropy, "micro-batches"),
    "mixes samples": (Mixing(), cross_entropy, "plain"),
    "weighted loss": (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), weighted, "plain"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_method_that_would_give_other_values_is_never_chosen(case, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(methods, "_GAIN", 1e-9)  # whatever the clock says
    monkeypatch.setattr(methods, "_WORTH_SECONDS", 0)
    monkeypatch.setattr(methods, "_candidates", lambda batches: ["stacked 512", "micro-batches 7"])
    model, loss, allowed = CASES[case]
    x, y = torch.randn(40, 4), torch.arange(40) % 3
    batches = [(x, y * (torch.arange(40) % 2))]
    task = work(model, batches, loss)
    with evaluating(task.module, task.moves):
        name = chosen(task, POINTS)
        expected = InPlace(task, task.batches).losses(POINTS)
    assert name == "plain" or name.startswith(allowed)
    planes, axis = task.directions, np.linspace(-0.5, 0.5, 5)
    found = surface(model, batches, loss, planes, axis, axis).losses.ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_plain_loop_is_left_only_for_a_method_that_is_clearly_faster(monkeypatch):
    torch.manual_seed(0)
    batches = [(x.flatten(1), y) for x, y in images()]
    task = work(MLPS["plain"](), batches)
    seconds = {"plain": 1.0, "stacked 512": 0.9, "micro-batches 512": 0.95}
    monkeypatch.setattr(methods, "_times", lambda known, points: {n: seconds[n] for n in known})
    with evaluating(task.module, task.moves):
        assert chosen(task, POINTS) == "plain"  # a trial takes longer than the surface
        monkeypatch.setattr(methods, "_WORTH_SECONDS", 0)
        assert chosen(task, POINTS) == "plain"
        seconds["stacked 512"] = 0.8
        assert chosen(task, POINTS) == "stacked 512"
        seconds["micro-batches 512"] = 0.6
        assert chosen(task, POINTS) == "micro-batches 512"
        assert chosen(task, POINTS[:12]) == "plain"


def test_a_hook_that_changes_the_output_counts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    model[1].register_forward_hook(lambda module, args, output: output * 5)
    batches = [(torch.randn(20, 4), torch.arange(20) % 3)]
    task = work(model, batches)
    with evaluating(task.module, task.moves):
        expected = InPlace(task, task.batches).losses(POINTS)
    axis = np.linspace(-0.5, 0.5, 5)
    found = surface(model, batches, cross_entropy, task.directions, axis, axis)
    np.testing.assert_allclose(found.losses.ravel(), expected, rtol=1e-5)


class _Overflowing:
    name, group = "fast", 2

    def losses(self, points: list) -> list[float]:
        return [math.inf if point[0] > 0 else 5.0 for point in points]


class _True:
    name, group = "plain", 1

    def losses(self, points: list) -> list[float]:
        return [10 * alpha + beta for alpha, beta in points]


def test_what_a_fast_method_cannot_hold_is_left_to_the_plain_one():
    found = Checked(_Overflowing(), _True()).losses([(-1, 3), (1, 2), (0, 0)])
    assert found == [5.0, 12, 0]


def test_batches_are_pooled_and_cut_only_where_samples_can_be_told_apart():
    x, y = torch.randn(5, 2), torch.arange(5)
    whole = pooled(held([((x, x), y), ((x[:2], x[:2]), y[:2])]))
    assert whole.size == 7 and torch.equal(whole.args[1], torch.cat([x, x[:2]]))
    assert [part.size for part in split(whole, 3)] == [3, 3, 1]
    assert torch.equal(split(whole, 3)[1].target, torch.tensor([3, 4, 0]))
    for odd in ([(x, None)], [((x, 2.0), y)], [(x, y), (torch.randn(3, 4), y[:3])]):
        assert pooled(held(odd)) is None


def test_autocast_around_the_caller_does_not_freeze_the_surface():
    torch.manual_seed(0)
    model, axis = nn.Linear(4, 3), [0.0, 1.0]
    batches, planes = [(torch.randn(8, 4), torch.arange(8) % 3)], analyzer.random_directions(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = surface(model, batches, cross_entropy, planes, axis, axis).losses
    assert len(np.unique(found)) == 4

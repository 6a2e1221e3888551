"""``analyzer diverge``: a difference that was planted is found at its place, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import analyzer
from analyzer.analysis.alignment import aligned, relative_difference
from analyzer.analysis.divergence import Divergence, first_divergence
from analyzer.cli import main
from analyzer.errors import AnalyzerError
from analyzer.storage.run import Run, open_run

STEPS = 5


class Bent(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> Any:
        return gradient * context.factor, None


class Linear(nn.Linear):
    """A linear layer whose input, or whose weight, may get a bent gradient."""

    bends: tuple[float, float] = (1.0, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, weight = Bent.apply(x, self.bends[0]), Bent.apply(self.weight, self.bends[1])
        return nn.functional.linear(x, weight, self.bias)


class ReLU(nn.ReLU):
    """A ReLU whose gradient may be bent."""

    bend = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Bent.apply(super().forward(x), self.bend)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = Linear(8, 8), ReLU(), Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.relu(self.first(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = Linear(4, 8), Block(), Block(), Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(self.stem(x))))


class Renamed(nn.Module):
    """The same network under other names, with a layer more that does nothing."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.inlet, self.trunk, self.nothing = (
            net.stem,
            nn.ModuleList([net.a, net.b]),
            nn.Identity(),
        )
        self.nothing, self.outlet = nn.Identity(), net.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        for block in self.trunk:
            x = block(x)
        return self.outlet(self.nothing(x))


def recorded(
    folder: Path,
    plant: Callable[[Net], object] = lambda net: None,
    *,
    optimizer: Callable[[Net], torch.optim.Optimizer] = lambda net: sgd(net),
    during: Callable[[Net, int], object] = lambda net, step: None,
    renamed: bool = False,
    noise: int | None = None,
    **options: Any,
) -> Run:
    torch.manual_seed(0)
    net = Net()
    plant(net)
    model = Renamed(net) if renamed else net
    steps = optimizer(net)
    generator = torch.Generator().manual_seed(1)
    jitter = torch.Generator().manual_seed(noise or 0)
    with analyzer.Recorder(model, folder, **options):
        for step in range(STEPS):
            x = torch.randn(16, 4, generator=generator)
            target = torch.randint(3, (16,), generator=generator)
            if noise is not None:
                x = x + 1e-5 * torch.randn(16, 4, generator=jitter)
            during(net, step)
            steps.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            steps.step()
    return open_run(folder)


def sgd(net: Net, momentum: float = 0.5, **of_second: Any) -> torch.optim.Optimizer:
    groups = [{"params": list(net.stem.parameters()) + list(net.a.parameters())}]
    groups.append({"params": [*net.b.parameters(), *net.head.parameters()], **of_second})
    return torch.optim.SGD(groups, lr=0.1, momentum=momentum)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Run:
    return recorded(tmp_path_factory.mktemp("base") / "base")


def places(found: Divergence) -> tuple[Any, ...]:
    return found.step, found.stage, found.layer, found.parameters


def add(parameter: torch.Tensor, amount: float) -> None:
    with torch.no_grad():
        parameter.view(-1)[3] += amount


PLANTED = {
    "one weight": (
        {"plant": lambda net: add(net.b.first.weight, 1e-4)},
        (0, "forward", "b.first", ("b.first.weight",)),
    ),
    "one weight, of equal norm": (
        {"plant": lambda net: net.a.second.weight.data[0].mul_(-1)},
        (0, "forward", "a.second", ()),
    ),
    "a weight changed by hand before step 3": (
        {"during": lambda net, step: step == 3 and add(net.a.first.bias, 1e-3)},
        (2, "update", "a.first", ("a.first.bias",)),
    ),
    "the gradient of a layer's input": (
        {"plant": lambda net: setattr(net.b.second, "bends", (1.001, 1.0))},
        (0, "backward", "b.second", ()),
    ),
    "the gradient of a layer's input, beside a shortcut": (
        {"plant": lambda net: setattr(net.b.first, "bends", (1.001, 1.0))},
        (0, "backward", "b.first", ()),
    ),
    "a weight that gets no gradient any more": (
        {"during": lambda net, step: net.a.first.weight.requires_grad_(step < 2)},
        (2, "backward", "a.first", ("a.first.weight",)),
    ),
    "the gradient of a layer's weight": (
        {"plant": lambda net: setattr(net.a.first, "bends", (1.0, 1.001))},
        (0, "backward", "a.first", ("a.first.weight",)),
    ),
    "the gradient of a layer without parameters": (
        {"plant": lambda net: setattr(net.a.relu, "bend", 0.999)},
        (0, "backward", "a.relu", ()),
    ),
    "a weight decay": (
        {"optimizer": lambda net: sgd(net, weight_decay=1e-3)},
        (0, "update", None, ()),
    ),
    "a momentum, which acts from the second update on": (
        {"optimizer": lambda net: sgd(net, momentum=0.4)},
        (1, "update", None, ()),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_found_at_its_place(name, base, tmp_path):
    given, expected = PLANTED[name]
    found = first_divergence(base, recorded(tmp_path / "other", **given))
    if expected[2] is None:
        assert (found.step, found.stage) == expected[:2], found.sentence
        second = [f"b.{x}" for x in ("first", "second")]
        names = [f"{layer}.{kind}" for layer in (*second, "head") for kind in ("weight", "bias")]
        if "decay" in name:
            assert set(found.parameters) == set(names)
            assert "optimizer groups None against [{}, {'weight_decay': 0.001}]" in found.sentence
        else:
            assert len(found.parameters) == 12 and "all parameters" in found.sentence
            assert "momentum 0.5 against 0.4" in found.sentence
    else:
        assert places(found) == expected, found.sentence
        assert expected[2] in found.sentence
    assert (found.left != found.right and f"step {found.step}" in found.sentence) or not found.step


def test_the_learning_rate_is_named(base, tmp_path):
    def optimizer(net: Net) -> torch.optim.Optimizer:
        made = sgd(net)
        for group in made.param_groups:
            group["lr"] = 0.05
        return made

    found = first_divergence(base, recorded(tmp_path / "other", optimizer=optimizer))
    assert (found.step, found.stage, found.layer) == (0, "update", None)
    assert found.causes == ("learning rate 0.1 against 0.05",)


def test_an_option_of_adam_is_named(tmp_path):
    runs = [
        recorded(
            tmp_path / name,
            optimizer=lambda net, e=epsilon: torch.optim.Adam(net.parameters(), eps=e),
        )
        for name, epsilon in (("one", 1e-8), ("two", 1e-4))
    ]
    found = first_divergence(*runs)
    assert (found.step, found.stage, found.layer) == (0, "update", None)
    assert found.causes == ("optimizer eps None against 0.0001",)  # the usual one


def test_equal_runs_do_not_differ(base, tmp_path):
    found = first_divergence(base, recorded(tmp_path / "other"))
    assert places(found) == (None, None, None, ())
    assert found.sentence.startswith("Runs 'base' and 'other' do not differ in 5 steps (0 to 4).")


def test_layers_of_other_names_are_aligned_by_call_order_and_shape(base, tmp_path):
    plant = {"plant": lambda net: add(net.b.second.weight, 1e-3), "renamed": True}
    found = first_divergence(base, recorded(tmp_path / "other", **plant))
    assert places(found) == (0, "forward", "b.second", ("b.second.weight",))
    assert found.layers_by.how == "call order and shape"
    assert found.layers_by.unmatched == ((), ("nothing",))
    assert "In 'other' the layer is 'trunk.1.second'" in found.sentence
    same = first_divergence(base, recorded(tmp_path / "same", renamed=True))
    assert same.step is None


def test_only_what_exceeds_the_noise_of_a_repeat_counts(tmp_path):
    first, again = (recorded(tmp_path / f"{seed}", noise=seed) for seed in (1, 2))
    quiet = recorded(tmp_path / "3", noise=3)
    assert first_divergence(first, quiet).step == 0
    assert first_divergence(first, quiet, again).step is None

    def during(net: Net, step: int) -> None:
        if step == 3:
            add(net.b.first.weight, 0.5)

    other = recorded(tmp_path / "4", noise=4, during=during)
    found = first_divergence(first, other, again)
    assert places(found) == (2, "update", "b.first", ("b.first.weight",))
    assert found.difference > found.floor > 0
    assert "noise floor" in found.sentence and "3 times the difference to '2'" in found.sentence
    # The floor is three times the largest relative difference of the repeat up to that step.
    norms = [run.parameter_stats("norm", steps=slice(0, 4))["norm"] for run in (first, again)]
    assert found.floor == pytest.approx(3 * (abs(norms[0] - norms[1]) / np.maximum(*norms)).max())


def test_steps_that_are_not_recorded_are_said(tmp_path):
    def during(net: Net, step: int) -> None:
        if step == 3:
            add(net.a.first.bias, 1e-3)

    runs = [recorded(tmp_path / "one", every=2), recorded(tmp_path / "two", every=2, during=during)]
    found = first_divergence(*runs)
    assert (found.step, found.stage) == (2, "update")
    assert "between steps 2 and 4, of which no other is recorded in both" in found.sentence


def test_a_difference_of_rounding_is_called_one(base, tmp_path):
    found = first_divergence(
        base, recorded(tmp_path / "other", lambda net: add(net.stem.weight, 1e-7))
    )
    assert found.layer == "stem" and found.difference < 1e-6
    assert "give that run as --repeat" in found.sentence
    assert first_divergence(base, open_run(tmp_path / "other"), tolerance=1e-2).step is None


def test_the_command_prints_a_sentence_or_json_and_refuses_in_one(base, tmp_path, capsys):
    other = recorded(tmp_path / "other", lambda net: add(net.b.first.weight, 1e-2))
    names = [str(base.path), str(other.path)]
    assert main(["diverge", *names]) == 0
    sentence = capsys.readouterr().out.strip()
    assert main(["diverge", *names, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sentence"] == sentence
    assert [said[key] for key in ("step", "pass", "layer")] == [0, "forward", "b.first"]
    assert main(["diverge", names[0], names[0]]) == 2
    assert "is given twice; expected two recordings" in capsys.readouterr().err
    assert main(["diverge", names[0], str(tmp_path / "none")]) == 2
    assert "no run" in capsys.readouterr().err


def test_runs_without_a_layer_in_common_are_refused(base, tmp_path):
    with analyzer.Recorder(model := nn.Linear(2, 1), tmp_path / "r"):
        model(torch.ones(3, 2)).sum().backward()
    with pytest.raises(AnalyzerError, match="expected two runs of one network"):
        first_divergence(base, open_run(tmp_path / "r"))


def test_rows_are_aligned_by_name_first():
    left = [("a", 1), ("b", 2), ("c", 2), ("only", 5), ("d", 3)]
    right = [("x", 1), ("c", 2), ("b", 2), ("z", 3)]
    found = aligned(left, right)
    pairs = list(zip(found.names, found.other_names, strict=True))
    assert pairs == [("a", "x"), ("b", "b"), ("c", "c"), ("d", "z")]
    assert found.unmatched == (("only",), ())


def test_relative_differences_of_what_is_not_finite():
    left = np.array([1.0, np.nan, np.nan, np.inf, np.inf, 0.0])
    right = np.array([2.0, np.nan, 1.0, np.inf, -np.inf, 0.0])
    expected = [0.5, 0.0, np.inf, 0.0, np.inf, 0.0]
    assert relative_difference(left, right).tolist() == expected

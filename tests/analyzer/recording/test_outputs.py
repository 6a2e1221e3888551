"""Modules with several output tensors: what arrives at each of them is pooled in one row."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import analyzer
from tests.support.plain import Plain, compare, recorded


class Sentence(nn.Module):
    """A classifier on what a recurrent layer returns."""

    def __init__(self, kind: type[nn.RNNBase], used: str) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(3, 6), kind(6, 6, batch_first=True)
        self.hidden, self.head, self.used = nn.Linear(6, 6), nn.Linear(6, 2), used

    def forward(self, x: Tensor) -> Tensor:
        output, state = self.rnn(self.embed(x))
        hidden = state[0] if isinstance(state, tuple) else state
        parts = {"output": output[:, -1], "state": hidden[-1], "both": output[:, 0] + hidden[-1]}
        return self.head(self.hidden(parts[self.used]).tanh())


def steps_of(model: nn.Module, truth: Plain, *shape: int) -> None:
    truth.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(*shape)).square().mean().backward()
        truth.update(model.named_parameters())
        optimizer.step()


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("used", ["output", "state", "both"])
def test_the_gradient_of_a_recurrent_layer_is_found_wherever_it_arrives(
    kind: type[nn.RNNBase], used: str, tmp_path: Path
) -> None:
    run, plain = recorded(
        tmp_path / "run", lambda truth: steps_of(Sentence(kind, used), truth, 4, 5, 3)
    )
    compare(run, plain)
    assert run.layers["depth"].tolist() == [1, 2, 3, 4]
    assert run.layers["name"].tolist() == ["embed", "rnn", "hidden", "head"]


class Two(nn.Module):
    """A leaf that returns two tensors, or the same one twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.ones(4)), kind

    def forward(self, x: Tensor) -> object:
        y = x * self.weight
        if self.kind == "same":
            return y, y
        if self.kind == "view":
            return y, y.reshape(-1)
        if self.kind == "input":
            return y, x
        if self.kind == "halves":
            return y.chunk(2, dim=1)
        if self.kind == "nested":
            return {"first": y, "more": [y.sin(), (torch.ones(3), y.cos())]}
        return y, y.relu()


class Around(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.two, self.last = nn.Linear(4, 4), Two(kind), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.two(self.first(x))
        if isinstance(out, dict):
            out = (out["first"], out["more"][0] + out["more"][1][1])
        one, other = out
        if self.two.kind == "halves":
            return self.last(torch.cat([other, one], dim=1))
        return self.last(one + other.reshape(one.shape))


def truth_of(kind: str) -> tuple[float, float, int]:
    """The norms of the pooled gradient and activation of the layer, and its elements."""
    torch.manual_seed(0)
    model, x = Around(kind), torch.randn(5, 4)
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: object, output: object) -> None:
        if isinstance(output, dict):
            kept.extend([output["first"], output["more"][0], output["more"][1][1]])
        else:
            kept.extend(output[:1] if kind in ("same", "view", "input") else output)

    model.two.register_forward_hook(keep)
    gradients = torch.autograd.grad(model(x).square().mean(), kept)
    norm = math.hypot(*(float(g.double().norm()) for g in gradients))
    return norm, math.hypot(*(float(t.detach().double().norm()) for t in kept)), len(kept)


@pytest.mark.parametrize("kind", ["same", "view", "input", "halves", "nested", "two"])
def test_each_output_counts_once(kind: str, tmp_path: Path) -> None:
    gradient, activation, _ = truth_of(kind)
    torch.manual_seed(0)
    model, x = Around(kind), torch.randn(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with analyzer.Recorder(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.layers["name"].tolist() == ["first", "two", "last"]
    assert run.layers["depth"].tolist() == [1, 2, 3]
    rows = run.layer_stats(layers="two")
    assert rows["output_gradient_norm"].tolist() == pytest.approx([gradient] * 3, rel=1e-5)
    assert rows["activation_norm"].tolist() == pytest.approx([activation] * 3, rel=1e-5)


class Spread(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2.0, x.sum(1, keepdim=True) * 3.0


def test_every_statistic_is_that_of_all_elements_and_dead_units_are_the_firsts(
    tmp_path: Path,
) -> None:
    spread, weight = Spread(), nn.Parameter(torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    with analyzer.Recorder(spread, tmp_path / "run"):
        for _ in range(2):
            one, other = spread(weight * 1)
            (one.sum() + 4 * other.sum()).backward()
            optimizer.step()
    row = analyzer.open_run(tmp_path / "run").layer_stats().iloc[-1]
    activation = torch.tensor([2.0, 0.0, 1.0, 0.0, 3.0, 1.5])
    gradient = torch.tensor([1.0, 1.0, 1.0, 1.0, 4.0, 4.0])
    assert row["activation_norm"] == pytest.approx(float(activation.norm()))
    assert row["activation_mean"] == pytest.approx(float(activation.mean()))
    assert row["activation_std"] == pytest.approx(float(activation.std(correction=0)))
    assert row["activation_max"] == 3 and row["activation_min"] == 0
    assert row["activation_zero_fraction"] == pytest.approx(2 / 6)
    assert row["activation_num_dead"] == 1
    assert row["output_gradient_norm"] == pytest.approx(float(gradient.norm()))
    assert row["output_gradient_mean_abs"] == pytest.approx(2.0)
    assert row["output_gradient_max_abs"] == 4


def test_an_output_without_gradient_leaves_the_row_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 2)
    x = torch.randn(3, 2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with analyzer.Recorder(model, tmp_path / "run"):
        for _ in range(2):
            output, _weights = model(x, x, x)
            output.square().sum().backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    rows = run.layer_stats()
    expected = float(model(x, x, x)[0].detach().norm())
    assert rows["activation_norm"].tolist() == pytest.approx([expected] * 2, rel=1e-5)
    assert rows["output_gradient_norm"].tolist() == pytest.approx([2 * expected] * 2, rel=1e-5)
    assert "not_recorded" not in run.manifest  # the weights of out_proj are used by the attention

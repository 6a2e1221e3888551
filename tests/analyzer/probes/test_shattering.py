import json
import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.probes import HeldBatch
from analyzer.probes.shattering import (
    autocorrelation,
    gradient_correlation,
    gradient_on_line,
    mean_cosine,
    measure,
    references,
)
from analyzer.storage.schema import PROBES


class Masked(nn.Module):
    """A layer whose mask is half active and drawn anew for every input."""

    def __init__(self, width: int, is_residual: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) * (2 / width) ** 0.5)
        self.is_residual = is_residual

    def forward(self, x: Tensor) -> Tensor:
        masked = torch.bernoulli(torch.full_like(x, 0.5)) * (x @ self.weight)
        return x + masked if self.is_residual else masked


def masked_net(depth: int, is_residual: bool, width: int = 60) -> nn.Sequential:
    layers = [Masked(width, is_residual) for _ in range(depth)]
    return nn.Sequential(nn.Identity(), *layers, nn.Linear(width, 1))


@pytest.mark.parametrize(("is_residual", "factor"), [(False, 0.5), (True, 0.75)])
def test_correlation_with_independent_masks_is_that_of_theory(is_residual, factor):
    torch.manual_seed(0)
    draws = torch.tensor(
        [
            gradient_correlation(masked_net(4, is_residual), torch.randn(12, 60)).values
            for _ in range(60)
        ]
    )
    for layer in range(5):
        spread = draws[:, layer].std().item()
        assert draws[:, layer].mean().item() == pytest.approx(factor ** (4 - layer), abs=spread)
        assert spread < 0.2


def test_every_value_is_the_mean_cosine_of_gradients_taken_one_input_at_a_time():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh())
    net.append(nn.Linear(8, 3)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    found = gradient_correlation(net, x)
    for layer, value in enumerate(found.values):
        rows = []
        for sample in x:
            hidden = net[: layer + 1](sample).detach().requires_grad_()
            # The layer's own output before the in-place ReLU: the ReLU must run on a copy.
            rows.append(torch.autograd.grad(net[layer + 1 :](hidden * 1).sum(), hidden)[0])
        pairs = [torch.cosine_similarity(a, b, 0).item() for a, b in combinations(rows, 2)]
        assert value == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert found.names == ["0", "1", "2", "3", "4"]
    assert found.depths == [2, 1, 1, 0, 0]
    assert not found.mixes_samples


def test_mean_cosine_leaves_zero_rows_out_and_does_not_underflow():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert mean_cosine(rows).mean == pytest.approx(0.5**0.5)
    assert mean_cosine(rows * 1e-300).mean == pytest.approx(0.5**0.5)
    assert math.isnan(mean_cosine(rows[2:]).mean)


def test_a_gradient_that_is_not_finite_shows_as_nan():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    with torch.no_grad():
        net[1].weight[0, 0] = float("nan")
    values = gradient_correlation(net, torch.randn(4, 3)).values
    assert values[0] != values[0]
    assert values[1] == 1


def test_joins_count_for_the_residual_references():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    found = gradient_correlation(nn.Sequential(nn.Linear(3, 4), Block(), Block()), torch.rand(4, 3))
    assert found.joins == [2, 2, 2, 1, 1]
    curves = references(found.depths, found.joins)
    assert curves["residual"] == [0.5625, 0.5625, 0.5625, 0.75, 0.75]
    assert references([4], [0])["plain"] == [1 / 16]
    assert references([4], [4], branch_scale=0.5)["residual_norm"] == [1.0]
    assert references([4], [16])["residual_norm"] == [0.25]


def test_batch_norm_in_training_mode_is_said_to_mix_the_samples():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(8, 4)
    found = gradient_correlation(net, x)
    hidden = net[0](x)
    (expected,) = torch.autograd.grad(net[1:](hidden).sum(), hidden)
    assert found.mixes_samples
    assert found.values[0] == pytest.approx(mean_cosine(expected).mean, abs=1e-6)
    assert not gradient_correlation(net.eval(), x).mixes_samples


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, state = torch.randn(5, 4), torch.get_rng_state()
    measurement = measure(HeldBatch(net, x, None, lambda output, _: output.mean()))
    assert list(measurement.columns) == PROBES["shattering"].names
    assert measurement.metadata["mode"] == "train"
    assert len(json.loads(measurement.metadata["references"])["plain"]) == 4
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and not p._backward_hooks for p in net.parameters())
    assert all(m.training and not m._forward_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_frame_has_the_columns_of_the_contract_and_the_references():
    frame = analyzer.gradient_correlation(nn.Linear(3, 2), torch.randn(4, 3))
    assert frame.columns.tolist() == ["layer", "name", "correlation"]
    assert frame["layer"].dtype == "int32"
    assert frame.loc[0, "name"] == "Linear"
    assert json.loads(frame.attrs["references"])["plain"] == [1.0]


def test_the_gradient_on_a_line_is_the_derivative_along_it():
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(1)

    t = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    grid = t * torch.tensor([[3.0, 4.0]], dtype=torch.float64) / 5
    assert torch.allclose(gradient_on_line(Square(), grid), 2 * t.flatten())
    with pytest.raises(ValueError, match=r"shape \[3, 1\] is not a line of evenly spaced inputs"):
        gradient_on_line(Square(), torch.tensor([[0.0], [1.0], [3.0]]))


def test_autocorrelation_tells_white_from_brown_noise():
    white = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert autocorrelation(white.tolist(), 2) == pytest.approx([1, 0, 0], abs=0.05)
    brown = autocorrelation(white.cumsum(0).tolist(), 2)
    assert min(brown) > 0.99
    assert autocorrelation([1.0, -1.0, 1.0, -1.0], 2) == pytest.approx([1, -0.75, 0.5])


def test_a_shattered_net_is_whiter_than_a_residual_one():
    from analyzer.networks.zoo import MLP

    grid = torch.linspace(-2, 2, 128)[:, None]

    def lag_one(**options) -> float:
        net = MLP(1, 1, depth=20, width=60, norm="batch", initialization="he", **options)
        frame = analyzer.gradient_autocorrelation(net, grid, max_lag=3)
        assert frame["lag"].tolist() == [0, 1, 2, 3]
        return float(frame["autocorrelation"][1])

    assert lag_one() < 0.3 < lag_one(residual=True, branch_scale=0.1)
    with pytest.raises(ValueError, match="a grid of 4 points is too short for lags up to 3"):
        analyzer.gradient_autocorrelation(nn.Linear(1, 1), grid[:4], max_lag=3)


def test_a_probe_holds_the_statistics_of_batch_norm_fixed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    inputs = torch.randn(12, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    measured = measure(HeldBatch(net, inputs, None, lambda output, _: output.sum()))

    # By hand: the same normalization with numbers instead of statistics.
    x = net[0](inputs)
    scale = net[1].weight / (x.var(dim=0) + net[1].eps).sqrt().detach()
    centered = (x - x.mean(dim=0).detach()) * scale + net[1].bias
    (rows,) = torch.autograd.grad(net[3](centered.relu()).sum(), x)
    assert measured.columns["correlation"][0] == pytest.approx(mean_cosine(rows).mean, rel=1e-5)
    assert measured.metadata["batch_norms_held_fixed"] == "1"
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net[1].training
    assert net[1].momentum == 0.1


def test_the_interval_holds_the_correlation_of_the_inputs_at_large():
    """95 % of the time; inputs that share half of their direction, 16 a batch."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20_000, 6, generator=generator, dtype=torch.float64) + 0.4
    truth = mean_cosine(rows[:2000]).mean
    found = [mean_cosine(rows[16 * k : 16 * (k + 1)]) for k in range(200)]
    covered = sum(one.low <= truth <= one.high for one in found)
    assert 0.85 <= covered / 200 <= 0.99
    assert all(one.low < one.mean < one.high for one in found)


def test_a_draw_leaves_pairs_of_one_input_with_itself_out():
    """Two directions, at right angles: each draw's mean is known from its counts."""
    rows = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    found = mean_cosine(rows)
    assert found.mean == pytest.approx(1 / 3)
    assert (found.low, found.high) == (0, 1)  # without the last one, or one of the first

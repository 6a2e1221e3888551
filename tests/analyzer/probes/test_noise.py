import json
import math

import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.probes import HeldBatch
from analyzer.probes.noise import gradient_noise, measure, noise_terms


def regression(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """y = w*·x + ε with d = 8, ‖w − w*‖ = 1, s = 0.1: tr Σ = 9.08, ‖G‖² = 1."""
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False)
    x = torch.randn(count, 8)
    with torch.no_grad():
        model.weight.zero_()
    truth = torch.zeros(8)
    truth[3] = 1.0
    return model, x, x @ truth + 0.1 * torch.randn(count)


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output.flatten() - target).square().mean()


@pytest.mark.parametrize("batch_size", [40_000, 1000, 64])
def test_noise_scale_of_the_analytic_regression(batch_size):
    model, x, y = regression(40_000)
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    found = analyzer.gradient_noise_scale(model, batches, half_square)
    assert found == pytest.approx(9.08, rel=0.1)


def test_one_piece_a_sample_gives_the_sample_covariance():
    model, x, y = regression(30)
    found = gradient_noise(model, [(x, y)], half_square)
    rows = (x @ model.weight.T - y[:, None]).detach() * x
    trace = rows.double().var(dim=0).sum().item()
    signal = rows.double().mean(0).square().sum().item() - trace / 30
    assert found.num_pieces == 30
    assert found.total.trace == pytest.approx(trace, rel=1e-5)
    assert found.total.signal == pytest.approx(signal, rel=1e-5)


def test_equal_pieces_give_the_estimators_of_two_batch_sizes():
    small, squares, large = 4, [5.0, 3.0, 7.0], 2.0
    mean_small = sum(squares) / 3
    signal = (12 * large - small * mean_small) / (12 - small)
    trace = (mean_small - large) / (1 / small - 1 / 12)
    found = noise_terms([small] * 3, squares, large)
    assert (found.signal, found.trace) == pytest.approx((signal, trace))
    assert found.scale == pytest.approx(trace / signal)


def test_pieces_of_unequal_size_are_weighted_without_bias():
    torch.manual_seed(0)
    g, spread = torch.tensor([3.0, 4.0]), 2.0
    sizes = [1, 2, 5, 9] * 2000
    pieces = [g + spread * torch.randn(2) / b**0.5 for b in sizes]
    mean = sum(b * p for b, p in zip(sizes, pieces, strict=True)) / sum(sizes)
    found = noise_terms(sizes, [p.square().sum().item() for p in pieces], mean.square().sum())
    assert float(found.trace) == pytest.approx(8, rel=0.03)
    assert float(found.signal) == pytest.approx(25, rel=0.03)


def test_a_loss_that_holds_its_targets_is_split_at_the_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(10, 4).double(), torch.randint(3, (10,))
    cut = gradient_noise(model, [(x, y)], nn.functional.cross_entropy, num_pieces=4)
    held = gradient_noise(
        model, [(x, None)], lambda out, _: nn.functional.cross_entropy(out, y), num_pieces=4
    )
    assert held.total.trace == pytest.approx(cut.total.trace, rel=1e-9)
    assert held.total.signal == pytest.approx(cut.total.signal, rel=1e-9)
    transposed = nn.Sequential(model, nn.Flatten(0), nn.Unflatten(0, (3, 10)))
    with pytest.raises(AnalyzerError, match=r"the loss reads outputs of shape \[\[3, 10\]\]"):
        gradient_noise(transposed, [(x, None)], lambda out, _: out.square().mean())


def test_layers_add_up_to_the_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model[0].bias.requires_grad_(False)
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    found = gradient_noise(model, [(x, y)], nn.functional.cross_entropy)
    assert list(found.layers) == ["0", "2"]
    assert sum(t.trace for t in found.layers.values()) == pytest.approx(found.total.trace)
    assert found.total.trace > 0


def test_noise_without_signal_is_infinite_and_nothing_is_repaired():
    assert noise_terms([1, 1], [1.0, 1.0], 0.0).scale == math.inf
    assert math.isnan(noise_terms([1, 1], [0.0, 0.0], 0.0).scale)
    assert math.isnan(noise_terms([1, 1], [math.nan, 1.0], 1.0).scale)
    model, x, y = regression(1)
    with pytest.raises(ValueError, match="needs at least 2 samples to compare, got 1"):
        gradient_noise(model, [(x, y)], half_square)
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of 'Linear' wants a gradient"):
        gradient_noise(model, [(x, y)], half_square)


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y, state = torch.randn(9, 4), torch.randint(3, (9,)), torch.get_rng_state()
    state = torch.get_rng_state()
    measurement = measure(HeldBatch(model, x, y, nn.functional.cross_entropy))
    assert list(measurement.columns) == ["gradient_noise_scale", "signal_norm", "noise_trace"]
    assert set(json.loads(measurement.metadata["layers"])) == {"0", "1", "3"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)

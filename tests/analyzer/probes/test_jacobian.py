import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import analyzer
from analyzer.probes import HeldBatch, jacobian
from analyzer.probes.jacobian import NETWORK, jacobian_spectrum, measure
from analyzer.probes.lanczos import extreme_singular_values
from analyzer.storage.schema import PROBES


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products on several threads take a hundred times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Block(nn.Module):
    def __init__(self, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), inner, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Matrix:
    """A dense matrix behind its two products."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.double()
        self.rows, self.columns = values.shape
        self.epsilon = 1e-16

    def times(self, vector: Tensor) -> Tensor:
        return self.values @ vector

    def transposed_times(self, vector: Tensor) -> Tensor:
        return self.values.T @ vector


def dense_values(function, x: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(function, x)
    return torch.linalg.svdvals(jacobian.reshape(-1, x.numel()))


def of(found, name: str) -> list[float]:
    return [v for n, v in zip(found.names, found.values, strict=True) if n == name]


@pytest.mark.parametrize("samples", [1, 3])
def test_blocks_and_network_have_the_values_of_the_dense_jacobian(samples):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), Block(5, nn.Tanh()), Block(5, nn.GELU()), nn.Linear(5, 2))
    net, x = net.double(), torch.randn(samples, 3, dtype=torch.float64)
    found = jacobian_spectrum(net, x)
    assert list(dict.fromkeys(found.names)) == ["1", "2", NETWORK]
    for number in (1, 2):
        expected = dense_values(net[number], net[:number](x))
        assert of(found, str(number)) == pytest.approx(expected.tolist(), abs=1e-12)
    assert of(found, NETWORK) == pytest.approx(dense_values(net, x).tolist(), abs=1e-12)
    assert found.orders[: 5 * samples] == list(range(5 * samples))


def test_a_block_whose_branch_is_zero_is_the_identity():
    net = nn.Sequential(nn.Linear(4, 1100), Block(1100, nn.ReLU()))
    for parameter in net[1].branch[2].parameters():
        nn.init.zeros_(parameter)
    found = jacobian_spectrum(net, torch.randn(1, 4), k=3)
    assert of(found, "1") == pytest.approx([1.0] * 6, abs=1e-6)
    assert found.orders[:6] == [0, 1, 2, 1097, 1098, 1099]


@pytest.mark.parametrize("shape", [(60, 60), (60, 90), (90, 60)])
def test_the_iteration_finds_both_ends_of_a_spectrum(shape):
    size = min(shape)
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], size, generator=generator).double())
    right, _ = torch.linalg.qr(torch.randn(shape[1], size, generator=generator).double())
    values = torch.cat([torch.tensor([9.0, 8.0]), torch.linspace(3, 2, size - 4)])
    values = torch.cat([values, torch.tensor([0.5, 0.1])]).double()
    matrix = Matrix(left @ torch.diag(values) @ right.T)
    found = extreme_singular_values(matrix, 2, tolerance=1e-8, max_steps=size - 5)
    assert found.values == pytest.approx([9, 8, 0.5, 0.1], rel=1e-7)
    assert found.orders == [0, 1, size - 2, size - 1]
    assert max(found.residuals) <= 1e-8
    assert found.num_steps < size


def test_values_that_have_not_settled_say_so():
    matrix = Matrix(torch.diag(torch.linspace(0.001, 1, 400)))
    found = extreme_singular_values(matrix, 2, tolerance=1e-6, max_steps=20)
    assert found.num_steps == 20
    assert math.isnan(found.values[-1]) and found.residuals[1] > 1e-3
    for steps in (20, 60, 150, 400):  # a value that is given is one of the matrix to 1e-3
        values = extreme_singular_values(matrix, 2, tolerance=1e-6, max_steps=steps).values
        values = [*values[:2], *values[-2:]]
        for value, true in zip(
            values, (1.0, 1 - 0.999 / 399, 0.001 + 0.999 / 399, 0.001), strict=True
        ):
            assert math.isnan(value) or value == pytest.approx(true, abs=1e-3 * 4)
    assert values == pytest.approx([1.0, 1 - 0.999 / 399, 0.001 + 0.999 / 399, 0.001], rel=1e-5)


def test_large_blocks_are_found_by_products_alone(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(jacobian, "_DENSE", 256)
    net, x = nn.Sequential(Block(300, nn.Tanh())).double(), torch.randn(1, 300).double()
    first, _, last = net[0].branch
    slope = 1 - torch.tanh(first(x)).square().flatten()
    matrix = torch.eye(300) + last.weight @ (slope[:, None] * first.weight)
    expected = torch.linalg.svdvals(matrix.detach())
    found = jacobian_spectrum(net, x, k=2)
    assert found.orders[:4] == [0, 1, 298, 299]
    assert of(found, "0")[:2] == pytest.approx(expected[:2].tolist(), rel=1e-3)
    smallest, residual = of(found, "0")[3], found.residuals["0"][1]
    assert math.isnan(smallest) == (residual > 1e-3)


def test_the_probe_gives_median_and_quartiles_over_sixteen_samples():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), Block(5, nn.Tanh()), nn.Linear(5, 2)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    found = jacobian.measure(HeldBatch(net, x, None, None))
    every = torch.stack([dense_values(net, x[k : k + 1]) for k in range(16)])
    rows = [k for k, name in enumerate(found.columns["name"]) if name == NETWORK]
    assert len(rows) == 2
    for column, share in (
        ("lower_quartile", 0.25),
        ("singular_value", 0.5),
        ("upper_quartile", 0.75),
    ):
        expected = every.numpy()
        expected = np.quantile(expected, share, axis=0)
        assert [found.columns[column][k] for k in rows] == pytest.approx(
            expected.tolist(), rel=1e-9
        )
    notes = found.metadata
    assert notes["num_samples"] == "16" and json.loads(notes["samples"]) == {"1": 16, NETWORK: 16}
    conditions = json.loads(notes["condition_numbers"])[NETWORK]
    assert conditions == pytest.approx((every[:, 0] / every[:, -1]).tolist(), rel=1e-9)


def test_token_models_have_blocks_but_no_jacobian_of_the_whole():
    net = nn.Sequential(nn.Embedding(7, 4), Block(4, nn.ReLU()))
    found = jacobian_spectrum(net, torch.tensor([[1, 2]]))
    assert len(of(found, "1")) == 8
    assert "its inputs are not floating" in found.refused[NETWORK]


class Once(torch.autograd.Function):
    """Squares; its backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def test_a_function_without_second_derivative_is_computed_from_rows_or_refused():
    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x.repeat(1, self.copies))

    net, x = Squares(), torch.rand(1, 3) + 1
    net.copies = 1
    expected = (2 * x).flatten().sort(descending=True).values
    assert jacobian_spectrum(net, x).values == pytest.approx(expected.tolist())
    # More rows than columns: the products J·u are needed, and torch would give zeros for them.
    net.copies = 2
    found = jacobian_spectrum(net, x)
    assert not found.values
    assert "once_differentiable" in found.refused[NETWORK]


def test_values_that_are_not_finite_are_shown():
    net = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        net[0].weight[0, 0] = float("inf")
    values = jacobian_spectrum(net, torch.randn(1, 3)).values
    assert len(values) == 3
    assert all(value != value for value in values)
    with pytest.raises(ValueError, match="k is 0; expected how many singular values"):
        jacobian_spectrum(net, torch.randn(1, 3), k=0)


def test_the_model_is_left_as_it_was_and_evaluated_without_dropout():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), Block(4, nn.Tanh()))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, state = torch.randn(5, 4), torch.get_rng_state()
    measurement = measure(HeldBatch(net, x, None, lambda output, _: output.mean()))
    assert list(measurement.columns) == PROBES["jacobian"].names
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert all(m.training and not m._forward_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    before = net[0](x).detach()
    net[1].running_mean, net[1].running_var = before.mean(0), before.var(0, correction=0)
    every = torch.stack([dense_values(net.eval(), x[k : k + 1]) for k in range(5)])
    expected = every.quantile(0.5, dim=0)
    found = [
        value
        for name, value in zip(
            measurement.columns["name"], measurement.columns["singular_value"], strict=True
        )
        if name == NETWORK
    ]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_frame_has_the_columns_of_the_contract():
    frame = analyzer.jacobian_spectrum(nn.Linear(3, 2), torch.randn(1, 3), k=2)
    assert frame.columns.tolist() == ["name", "rank_order", "singular_value"]
    assert frame["rank_order"].dtype == "int32"
    assert json.loads(frame.attrs["shapes"]) == {NETWORK: [2, 3]}

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.probes import HeldBatch
from analyzer.probes.curvature import hessian_spectrum, measure, sharpness
from analyzer.probes.lanczos import end_eigenpairs, quadrature, student_quantile

cross_entropy = nn.functional.cross_entropy


def small_net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return net, torch.randn(20, 4).double(), torch.randint(3, (20,))


def dense_hessian(net: nn.Module, x: Tensor, y: Tensor, loss=cross_entropy) -> Tensor:
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    chosen = [net.get_parameter(name) for name in names]

    def value(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in chosen])
        weights = {n: v.view(p.shape) for n, v, p in zip(names, parts, chosen, strict=True)}
        return loss(torch.func.functional_call(net, weights, x), y)

    flat = torch.cat([p.detach().flatten() for p in chosen])
    return torch.autograd.functional.hessian(value, flat)


class Quadratic(nn.Module):
    """Half the sum of curvature · θ², whatever the input."""

    def __init__(self, curvature: list[float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(curvature), dtype=torch.float64))
        self.curvature = torch.tensor(curvature, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.curvature * self.theta.square()).sum() + 0 * x.sum()


def output_itself(output: Tensor, _: object) -> Tensor:
    return output


def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian():
    net, x, y = small_net()
    expected = torch.linalg.eigvalsh(dense_hessian(net, x, y))[-1].item()
    assert analyzer.sharpness(net, [(x, y)], cross_entropy) == pytest.approx(expected, rel=1e-4)
    exact = sharpness(net, [(x, y)], cross_entropy, tolerance=1e-12)
    assert exact == pytest.approx(expected, rel=1e-9)


def test_batches_are_weighted_by_their_size():
    net, x, y = small_net()
    expected = torch.linalg.eigvalsh(dense_hessian(net, x, y))[-1].item()
    batches = ((x[a:b], y[a:b]) for a, b in ((0, 3), (3, 4), (4, 20)))
    found = sharpness(net, batches, cross_entropy, tolerance=1e-12)
    assert found == pytest.approx(expected, rel=1e-9)


def test_small_batches_are_merged_only_where_that_leaves_the_loss_as_it_is(monkeypatch):
    net, x, y = small_net()
    batches = [(x[n : n + 4], y[n : n + 4]) for n in range(0, 20, 4)]
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))

    def largest(logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, reduction="none").max()

    expected = torch.linalg.eigvalsh(
        sum(dense_hessian(net, *batch, loss=largest) for batch in batches) / len(batches)
    )[-1].item()
    del calls[:]
    assert sharpness(net, batches, largest, tolerance=1e-12) == pytest.approx(expected, rel=1e-9)
    # Of the first batch its size, of all of them the check, then one graph each.
    assert len(calls) == 1 + 6 + 5
    del calls[:]
    sharpness(net, batches, cross_entropy)
    assert len(calls) == 1 + 6 + 1
    del calls[:]
    monkeypatch.setattr("analyzer.probes.hessian._SMALL_BYTES", 1)
    sharpness(net, batches, cross_entropy)
    assert len(calls) == 5


def test_eigenpairs_are_those_of_the_dense_hessian():
    net, x, y = small_net()
    dense = dense_hessian(net, x, y)
    values = torch.linalg.eigvalsh(dense)
    found = hessian_spectrum(net, [(x, y)], cross_entropy, k=4)
    assert found.eigenvalues == pytest.approx(values[-4:].flip(0).tolist(), rel=1e-4)
    assert found.smallest == pytest.approx(values[0].item(), rel=1e-3)
    for value, direction in zip(found.eigenvalues, found.eigenvectors, strict=True):
        assert list(direction) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        flat = torch.cat([part.flatten() for part in direction.values()])
        assert flat.norm().item() == pytest.approx(1)
        assert (dense @ flat - value * flat).norm() < 2e-2 * found.eigenvalues[0]


def test_trace_and_density_of_a_diagonal_hessian_are_exact():
    model = Quadratic([3.0, 2.0, 2.0, -1.0])
    found = hessian_spectrum(model, [(torch.zeros(1), None)], output_itself, k=3)
    assert found.eigenvalues == pytest.approx([3, 2, 2])
    assert found.smallest == pytest.approx(-1)
    # vᵀHv is the trace for every vector of signs when H is diagonal.
    assert found.density.trace == pytest.approx(6)
    assert found.density.trace_error == pytest.approx(0, abs=1e-12)
    weight = {
        round(node): sum(
            w
            for n, w in zip(found.density.nodes, found.density.weights, strict=True)
            if round(n) == round(node)
        )
        for node in found.density.nodes
    }
    assert weight == pytest.approx({3: 0.25, 2: 0.5, -1: 0.25})


def test_quadrature_has_the_moments_of_the_spectrum():
    torch.manual_seed(0)
    matrix = torch.randn(80, 80, dtype=torch.float64)
    matrix = matrix + matrix.T
    found = quadrature(lambda v: matrix @ v, matrix[0], num_vectors=40, num_steps=12)
    second = sum(w * n**2 for n, w in zip(found.nodes, found.weights, strict=True))
    assert sum(found.weights) == pytest.approx(1)
    assert second == pytest.approx(matrix.square().sum().item() / 80, rel=0.1)
    assert abs(found.trace - matrix.trace().item()) < 4 * found.trace_error


def test_eigenvalues_that_occur_twice_are_found_twice():
    matrix = torch.diag(torch.tensor([5.0, 5.0, 1.0, 0.0], dtype=torch.float64))
    found = end_eigenpairs(lambda v: matrix @ v, matrix[0], largest=2)
    assert found.values == pytest.approx([5, 5])


def test_frozen_and_unused_parameters_do_no_harm():
    net, x, y = small_net()
    expected = sharpness(net, [(x, y)], cross_entropy)
    net.unused = nn.Linear(2, 2).double()
    net.forward = lambda value: net[2](net[1](net[0](value)))
    assert sharpness(net, [(x, y)], cross_entropy) == pytest.approx(expected, rel=1e-4)
    net[0].requires_grad_(False)
    del net.unused
    head = torch.linalg.eigvalsh(dense_hessian(net, x, y))[-1].item()
    assert sharpness(net, [(x, y)], cross_entropy) == pytest.approx(head, rel=1e-4)
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of 'Sequential' wants a gradient"):
        sharpness(net, [(x, y)], cross_entropy)


def test_attention_has_a_hessian():
    class Attention(nn.Module):
        def __init__(self, attend) -> None:
            super().__init__()
            self.qkv, self.attend = nn.Linear(4, 12).double(), attend

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(*self.qkv(x).chunk(3, -1)).mean(1)

    def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v

    torch.manual_seed(0)
    fused, plain = Attention(nn.functional.scaled_dot_product_attention), Attention(by_hand)
    plain.load_state_dict(fused.state_dict())
    x, y = torch.randn(6, 5, 4).double(), torch.randint(4, (6,))
    expected = torch.linalg.eigvalsh(dense_hessian(plain, x, y))[-1].item()
    assert sharpness(fused, [(x, y)], cross_entropy) == pytest.approx(expected, rel=1e-4)


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


def test_an_operation_without_second_derivative_is_refused_with_the_reason():
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(super().forward(x))

    with pytest.raises(AnalyzerError, match=r"Hessian of 'Model' cannot be computed: .*once"):
        sharpness(Model(2, 2), [(torch.randn(3, 2), None)], lambda out, _: out.square().mean())


def test_what_is_no_batch_or_no_loss_is_refused():
    net, x, y = small_net()
    with pytest.raises(ValueError, match="batches is empty"):
        sharpness(net, [], cross_entropy)
    with pytest.raises(ValueError, match=r"the loss has shape \[20, 3\]; expected one number"):
        sharpness(net, [(x, y)], output_itself)
    with pytest.raises(ValueError, match="k is 0; expected at least 1"):
        hessian_spectrum(net, [(x, y)], cross_entropy, k=0)


def test_a_loss_without_curvature_has_none_and_nan_is_shown():
    x = torch.randn(3, 2)
    assert sharpness(nn.Linear(2, 1), [(x, None)], lambda out, _: out.mean()) == 0
    net, x, y = small_net()
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    assert math.isnan(sharpness(net, [(x, y)], cross_entropy))
    found = hessian_spectrum(net, [(x, y)], cross_entropy, k=2).quantities()
    assert all(math.isnan(value) for value in found.values())


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = torch.randn(9, 4), torch.randint(3, (9,))
    state = torch.get_rng_state()
    measurement = measure(HeldBatch(net, x, y, cross_entropy))
    assert list(measurement.columns) == ["quantity", "value"]
    assert "trace" in measurement.columns["quantity"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert all(m.training and not m._forward_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_frame_names_its_quantities_and_carries_the_directions():
    net, x, y = small_net()
    frame = analyzer.hessian_spectrum(net, [(x, y)], cross_entropy, k=2, num_vectors=2)
    assert frame["quantity"].tolist()[:3] == ["sharpness", "eigenvalue_0", "eigenvalue_1"]
    assert frame["value"][0] == frame["value"][1] > frame["value"][2] > 0
    assert sum(json.loads(frame.attrs["density"])["weights"]) == pytest.approx(1)
    assert set(frame.attrs["eigenvectors"][0]) == set(dict(net.named_parameters()))


def test_the_interval_of_the_trace_holds_it_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, 30, generator=generator, dtype=torch.float64)
    matrix = matrix @ matrix.T
    trace, like, within, errors = float(matrix.trace()), torch.empty(30, dtype=torch.float64), 0, 0
    for seed in range(200):
        found = quadrature(matrix.mv, like, num_vectors=4, num_steps=1, seed=10 * seed)
        within += abs(found.trace - trace) <= found.trace_margin
        errors += abs(found.trace - trace) <= found.trace_error
    assert 0.9 <= within / 200 <= 0.99
    assert errors / 200 < 0.68  # what one standard error of four vectors would have to hold


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (3, 3.18245), (30, 2.04227)])
def test_the_quantile_of_students_t_is_that_of_the_tables(freedom, expected):
    assert student_quantile(freedom) == pytest.approx(expected, rel=1e-3)

"""Models that peers stumble over: every probe gives the value of a slow twin, or says why not."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.probes.noise import gradient_noise
from analyzer.probes.shattering import gradient_correlation

Problem = tuple[nn.Module, list[tuple[Tensor, Tensor]]]
ALPHAS, BETAS = np.linspace(0, 1, 21), np.linspace(-1, 1, 51)
SIZES = (9, 3)


def built(*layers: nn.Module, shape: tuple[int, ...] = (4,), tokens: int = 0) -> Problem:
    """A model in training mode in double precision, with two batches of unequal size."""
    model = nn.Sequential(*layers).double().train()
    batches = []
    for size in SIZES:
        x = torch.randint(tokens, (size, *shape)) if tokens else torch.randn(size, *shape).double()
        batches.append((x, torch.randint(3, (size,))))
    return model, batches


class Tied(nn.Module):
    """The output layer has the weights of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle = nn.Embedding(5, 4), nn.Linear(4, 4)
        self.output = nn.Linear(4, 5, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(torch.tanh(self.middle(self.embedding(tokens)))).mean(1)


class Partial(nn.Module):
    """One layer is frozen, one is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.unused = nn.Linear(4, 5).requires_grad_(False), nn.Linear(2, 2)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.frozen(x)))


class Columns(nn.Module):
    """Its weight lies in memory column by column, and one parameter is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3).T)
        self.empty = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def dense() -> Problem:
    return built(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def normed() -> Problem:
    model, batches = built(
        nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Softplus(), nn.Linear(6, 3)
    )
    model(batches[0][0])  # statistics that are not those of the start
    return model, batches


MODELS: dict[str, Callable[[], Problem]] = {
    "linear layers": dense,
    "tied weights": lambda: built(Tied(), shape=(3,), tokens=5),
    "embedding": lambda: built(
        nn.Embedding(7, 4, padding_idx=0), nn.Flatten(), nn.Linear(8, 3), shape=(2,), tokens=7
    ),
    "embedding with a largest norm": lambda: built(
        nn.Embedding(7, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3), shape=(2,), tokens=7
    ),
    "transposed convolution": lambda: built(
        nn.ConvTranspose2d(2, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(27, 3), shape=(2, 2, 2)
    ),
    "5-D kernels": lambda: built(
        nn.Conv3d(1, 2, 2),
        nn.BatchNorm3d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
        shape=(1, 3, 3, 3),
    ),
    "frozen and unused": lambda: built(Partial()),
    "batch norm in training mode": normed,
    "dropout": lambda: built(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)),
    "columns and an empty parameter": lambda: built(Columns()),
}
each_model = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> Problem:
    torch.manual_seed(0)
    return MODELS[name]()


def mean_loss(model: nn.Module, batches: Any, loss: Any = cross_entropy) -> float:
    """The mean over all samples, one sample after the other."""
    values = [
        loss(model(x[i : i + 1]), y[i : i + 1]).item() for x, y in batches for i in range(len(x))
    ]
    return math.fsum(values) / len(values)


def by_hand(problem: Problem, plane: Any, point: tuple[float, float], loss: Any) -> float:
    """The loss at one point, of a copy whose weights are set one by one."""
    twin = copy.deepcopy(problem[0]).eval()
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.copy_(weight + point[0] * plane[0][name] + point[1] * plane[1][name])
        return mean_loss(twin, problem[1], loss)


def state(model: nn.Module) -> list[Any]:
    tensors = [t.detach().clone() for t in model.state_dict().values()]
    return [*tensors, torch.get_rng_state(), *(m.training for m in model.modules())]


def assert_untouched(model: nn.Module, before: list[Any]) -> None:
    for old, new in zip(before, state(model), strict=True):
        is_tensor = isinstance(old, Tensor)
        assert old.equal(new) or old.isnan().any() if is_tensor else old == new
    assert all(weight.grad is None for weight in model.parameters())


@each_model
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_surface_is_that_of_a_copy_with_these_weights(name, mode):
    model, batches = made(name)
    before, plane = state(model), analyzer.random_directions(model)
    frame = analyzer.loss_surface(model, batches, cross_entropy, plane, ALPHAS, BETAS, mode=mode)
    assert len(frame) == 21 * 51
    assert frame["alpha"].is_monotonic_increasing and frame["beta"][1] == BETAS[1]
    assert np.ptp(frame["loss"]) > 0.01
    # Of the fast mode also points that it did not evaluate.
    tolerance = 1e-10 if mode == "exact" else 0.005 * np.ptp(frame["loss"])
    for place in (0, 25, 333, 777, 1070):
        point = frame["alpha"][place], frame["beta"][place]
        expected = by_hand((model, batches), plane, point, cross_entropy)
        assert frame["loss"][place] == pytest.approx(expected, rel=1e-10, abs=tolerance)
    assert_untouched(model, before)


@each_model
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_line_from_the_model_is_that_of_a_copy_with_these_weights(name, mode):
    model, batches = made(name)
    plane = analyzer.random_directions(model, "layer")
    frame = analyzer.loss_surface(model, batches, cross_entropy, plane, ALPHAS, mode=mode)
    for place in (0, 1, 20):
        expected = by_hand((model, batches), plane, (ALPHAS[place], 0.0), cross_entropy)
        assert frame["loss"][place] == pytest.approx(expected, rel=1e-10)


def trained(model: nn.Module) -> list[Tensor]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def flat(gradients: Any, weights: list[Tensor]) -> Tensor:
    pairs = zip(gradients, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])


def hessian_by_hand(model: nn.Module, batches: Any) -> Tensor:
    """Row by row, of the mean over all samples."""
    twin = copy.deepcopy(model).eval()
    weights = trained(twin)
    samples = sum(len(x) for x, _ in batches)
    loss = sum(cross_entropy(twin(x), y, reduction="sum") for x, y in batches) / samples
    gradient = flat(
        torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True), weights
    )
    rows = []
    for entry in gradient:
        if not entry.requires_grad:
            rows.append(torch.zeros(len(gradient), dtype=torch.float64))
            continue
        row = torch.autograd.grad(entry, weights, retain_graph=True, allow_unused=True)
        rows.append(flat(row, weights))
    return torch.stack(rows)


@each_model
def test_the_curvature_is_that_of_the_hessian_by_hand(name):
    model, batches = made(name)
    before = state(model)
    dense_hessian = hessian_by_hand(model, batches)
    values = torch.linalg.eigvalsh(dense_hessian)
    largest = values[-1].item()
    assert largest > 0.01
    assert analyzer.sharpness(model, batches, cross_entropy) == pytest.approx(largest, rel=1e-4)
    frame = analyzer.hessian_spectrum(
        model, batches, cross_entropy, k=2, num_vectors=60, num_steps=2
    )
    found = dict(zip(frame["quantity"], frame["value"], strict=True))
    assert found["eigenvalue_1"] == pytest.approx(values[-2].item(), abs=1e-4 * largest)
    trace, error = dense_hessian.trace().item(), found["trace_standard_error"]
    assert found["trace"] == pytest.approx(trace, abs=4 * error + 1e-9)
    assert_untouched(model, before)


@each_model
def test_the_noise_is_that_of_the_gradients_of_single_samples(name):
    model, batches = made(name)
    before = state(model)
    twin = copy.deepcopy(model).eval()
    weights = trained(twin)
    rows = torch.stack(
        [
            flat(
                torch.autograd.grad(
                    cross_entropy(twin(x[i : i + 1]), y[i : i + 1]), weights, allow_unused=True
                ),
                weights,
            )
            for x, y in batches
            for i in range(len(x))
        ]
    )
    trace = rows.var(dim=0).sum().item()
    signal = rows.mean(dim=0).square().sum().item() - trace / len(rows)
    found = gradient_noise(model, batches, cross_entropy).total
    assert found.trace == pytest.approx(trace, rel=1e-8) and trace > 1e-3
    assert found.signal == pytest.approx(signal, rel=1e-6)
    scale = analyzer.gradient_noise_scale(model, batches, cross_entropy)
    assert scale == pytest.approx(trace / signal if signal > 0 else math.inf, rel=1e-6)
    assert_untouched(model, before)


@each_model
@pytest.mark.parametrize("method", ["conductance", "integrated_gradients"])
def test_what_the_last_layer_carries_is_the_change_of_the_output(name, method):
    model, batches = made(name)
    before, twin = state(model), copy.deepcopy(model).eval()
    x = batches[0][0]
    frame = analyzer.layer_attribution(model, x, 1, method, num_steps=200)
    embeddings = [m for m in twin.modules() if isinstance(m, nn.Embedding)]
    change = twin(x)[:, 1].mean()
    with torch.no_grad():
        for module in embeddings:  # their baseline: embeddings of zero
            module.register_forward_hook(lambda *call: torch.zeros_like(call[2]))
        change = change - twin(x if embeddings else torch.zeros_like(x))[:, 1].mean()
    assert abs(change) > 1e-3
    assert frame["attribution"].iloc[-1] == pytest.approx(change.item(), rel=0.03)
    assert frame["share"].sum() == pytest.approx(1)
    assert_untouched(model, before)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "negative": lambda output, target: cross_entropy(output, target) - 9,
    "zero": lambda output, target: (output * 0).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_negative_and_zero_losses_are_losses_like_any(name):
    model, batches = made("linear layers")
    plane, loss = analyzer.random_directions(model), LOSSES[name]
    usual, shifted = (
        analyzer.loss_surface(model, batches, f, plane, ALPHAS, BETAS)["loss"]
        for f in (cross_entropy, loss)
    )
    is_zero = name == "zero"
    np.testing.assert_allclose(shifted, 0 * usual if is_zero else usual - 9, atol=1e-9)
    fast = analyzer.loss_surface(model, batches, loss, plane, ALPHAS, BETAS, mode="fast")["loss"]
    np.testing.assert_allclose(fast, shifted, rtol=0, atol=0.005 * np.ptp(shifted))
    sharpness = analyzer.sharpness(model, batches, cross_entropy)
    found = analyzer.sharpness(model, batches, loss)
    assert found == pytest.approx(0 if is_zero else sharpness, rel=1e-9)
    noise = analyzer.gradient_noise_scale(model, batches, loss)
    assert (
        math.isnan(noise)
        if is_zero
        else noise
        == pytest.approx(analyzer.gradient_noise_scale(model, batches, cross_entropy), rel=1e-9)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_weights_that_are_not_finite_are_shown(value, mode):
    model, batches = built(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[2].weight[1, 1] = value
    before, plane = state(model), analyzer.random_directions(model)
    frame = analyzer.loss_surface(model, batches, cross_entropy, plane, ALPHAS, BETAS, mode=mode)
    away = frame[(frame["alpha"] != 0) & (frame["beta"] != 0)]
    assert away["loss"].isna().all()
    assert math.isnan(analyzer.sharpness(model, batches, cross_entropy))
    assert math.isnan(analyzer.gradient_noise_scale(model, batches, cross_entropy))
    found = analyzer.layer_attribution(model, batches[0][0], 1)
    assert not np.isfinite(found["attribution"]).all()
    assert_untouched(model, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_values_of_single_precision_within_its_own(dtype):
    model, batches = made("linear layers")
    narrow = copy.deepcopy(model).to(dtype)
    given = [(x.to(dtype), y) for x, y in batches]
    wide = copy.deepcopy(narrow).double()
    known = [(x.double(), y) for x, y in given]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output.float(), target)

    both = ((narrow, given, loss), (wide, known, cross_entropy))
    plane = analyzer.random_directions(wide)
    surfaces = [analyzer.loss_surface(*one, plane, ALPHAS, BETAS)["loss"] for one in both]
    np.testing.assert_allclose(*surfaces, rtol=0.01)
    for probe in (analyzer.sharpness, analyzer.gradient_noise_scale):
        found, expected = (probe(*one) for one in both)
        assert found == pytest.approx(expected, rel=0.05)
    found, expected = (analyzer.layer_attribution(m, b[0][0], 1)["attribution"] for m, b, _ in both)
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.01)


class Complex(nn.Module):
    """Magnitudes of complex products."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4, dtype=torch.complex128))
        self.head = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.to(torch.complex128) @ self.weight.T).abs())


def test_complex_weights_move_and_their_gradients_count_whole():
    torch.manual_seed(0)
    model = Complex()
    problem = model, [(torch.randn(8, 4).double(), torch.arange(8) % 3)]
    plane = analyzer.random_directions(model)
    assert plane[0]["weight"].imag.abs().sum() > 1
    frame = analyzer.loss_surface(*problem, cross_entropy, plane, ALPHAS, BETAS)
    for place in (0, 333, 1070):
        point = frame["alpha"][place], frame["beta"][place]
        expected = by_hand(problem, plane, point, cross_entropy)
        assert frame["loss"][place] == pytest.approx(expected, rel=1e-10)

    (x, y), weights = problem[1][0], list(model.parameters())
    rows = []
    for i in range(8):
        loss = cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, weights)
        real = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
        rows.append(torch.cat([part.flatten() for part in real]))
    found = torch.stack(rows)
    trace = found.var(dim=0).sum().item()
    noise = gradient_noise(*problem, cross_entropy).total
    assert noise.trace == pytest.approx(trace, rel=1e-8)
    signal = found.mean(dim=0).square().sum().item() - trace / 8
    assert noise.signal == pytest.approx(signal, rel=1e-6)


def test_complex_weights_have_no_hessian():
    model = Complex()
    batches = [(torch.randn(8, 4).double(), torch.arange(8) % 3)]
    for probe in (analyzer.sharpness, analyzer.hessian_spectrum):
        with pytest.raises(ValueError, match="'Complex' has complex parameters; expected real"):
            probe(model, batches, cross_entropy)


def test_an_empty_batch_adds_nothing_and_alone_is_refused():
    model, batches = made("linear layers")
    empty = torch.zeros(0, 4).double(), torch.zeros(0, dtype=torch.long)
    plane = analyzer.random_directions(model)
    for probe in (
        lambda given: analyzer.sharpness(model, given, cross_entropy),
        lambda given: analyzer.loss_surface(model, given, cross_entropy, plane, [0, 1], [0, 1]),
    ):
        one, other = probe(batches), probe([empty, *batches])
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        with pytest.raises(ValueError, match="all batches have 0 samples"):
            probe([empty])
    expected = analyzer.gradient_noise_scale(model, batches, cross_entropy)
    found = analyzer.gradient_noise_scale(model, [empty, *batches], cross_entropy, num_pieces=400)
    assert found == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="all batches have 0 samples"):
        analyzer.gradient_noise_scale(model, [empty], cross_entropy)
    with pytest.raises(ValueError, match="the inputs hold 0 samples; expected at least 1"):
        analyzer.layer_attribution(model, empty[0])


def test_batch_norm_without_statistics_is_refused_where_samples_must_stand_alone():
    model, batches = built(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False))
    with pytest.raises(
        AnalyzerError, match=r"noise cannot be split: batch norm '1' of 'Seq.*=True"
    ):
        analyzer.gradient_noise_scale(model, batches, cross_entropy)
    with pytest.raises(
        AnalyzerError, match=r"attribution of 'Sequential'.*batch norm '1' keeps no"
    ):
        analyzer.layer_attribution(model, batches[0][0])


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        (lambda output, target: None, "the loss is None; expected one number"),
        (lambda output, target: output, r"the loss is a tensor of shape \[\d, 3\]"),
        (lambda output, target: output.detach().mean(), r"\[\]; .*that depends on the parameters"),
    ],
)
def test_a_loss_that_is_no_number_with_a_gradient_has_no_noise(loss, seen):
    model, batches = made("linear layers")
    with pytest.raises(ValueError, match=seen):
        analyzer.gradient_noise_scale(model, batches, loss)


def test_a_bare_pair_is_told_how_to_be_a_list_of_batches():
    model, batches = made("linear layers")
    for probe in (analyzer.gradient_noise_scale, analyzer.sharpness):
        with pytest.raises(ValueError, match=r"gave a Tensor, expected pairs.*single batch"):
            probe(model, batches[0], cross_entropy)


def test_a_program_in_inference_mode_gets_its_gradients():
    model, batches = made("batch norm in training mode")
    inputs = batches[0][0]
    plane = analyzer.random_directions(model)

    def surface(given: Any) -> list[float]:
        found = analyzer.loss_surface(model, given, cross_entropy, plane, [0, 0.5], [0, 1])
        return found["loss"].tolist()

    probes: tuple[Callable[[], Any], ...] = (
        lambda: surface(batches),
        lambda: surface([(x.clone(), y.clone()) for x, y in batches]),
        lambda: analyzer.sharpness(model, batches, cross_entropy),
        lambda: analyzer.gradient_noise_scale(model, batches, cross_entropy),
        lambda: analyzer.layer_attribution(model, inputs, 0)["attribution"].tolist(),
        lambda: analyzer.jacobian_spectrum(model, inputs)["singular_value"].tolist(),
        lambda: gradient_correlation(model, inputs).values,
    )
    outside = [probe() for probe in probes]
    with torch.inference_mode():
        inside = [probe() for probe in probes]
    assert inside == outside and outside[2] > 0


def test_batches_without_samples_have_no_jacobian():
    model, _ = made("linear layers")
    with pytest.raises(ValueError, match="the inputs hold 0 samples; expected at least 1"):
        analyzer.jacobian_spectrum(model, torch.zeros(0, 4).double())

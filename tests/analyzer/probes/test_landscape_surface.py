import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import analyzer
from analyzer.probes.batch import HeldBatch
from analyzer.probes.landscape import measure, surface
from analyzer.probes.landscape.surface import largest_gap

GRID = np.linspace(-1, 1, 5)


class Bowl(nn.Module):
    """Its output is its weights; with the loss below a paraboloid."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), 2, 2)


def half_square(output: Tensor, target: object) -> Tensor:
    return output.square().sum() / (2 * len(output))


def problem(model: nn.Module, *shape: int, classes: int = 3) -> tuple[nn.Module, list]:
    generator = torch.Generator().manual_seed(0)
    dtype = next(p.dtype for p in model.parameters())
    x = torch.randn(11, *shape, generator=generator, dtype=dtype)
    y = torch.arange(11) % classes
    return model, [(x[:8], y[:8]), (x[8:], y[8:])]


def by_hand(
    model: nn.Module, batches: list, loss: object, planes: tuple, alpha: float, beta: float
) -> float:
    """The loss at one point, on a copy that functional_call builds."""
    weights = {
        name: p.detach() + alpha * planes[0][name] + beta * planes[1][name]
        for name, p in model.named_parameters()
    }
    model.eval()
    values = [
        (loss(torch.func.functional_call(model, weights, (x,)), y), len(x)) for x, y in batches
    ]
    return sum(v.item() * n for v, n in values) / sum(n for _, n in values)


def conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model


NETS = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "tied": (tied, (4,)),
    "batch norm": (
        lambda: conv(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        (2, 5, 5),
    ),
    "transposed": (lambda: conv(nn.ConvTranspose2d(2, 3, 2), nn.GELU()), (2, 3, 3)),
    "5-D": (lambda: conv(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2)), (1, 3, 3, 3)),
    "1-D": (lambda: conv(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3)), (2, 4)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_surface_is_what_a_copy_of_the_model_gives_at_each_point(name, dtype):
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = build()
    model(torch.randn(6, *shape))  # lazy layers get a shape, running statistics a value
    model, batches = problem(model.to(dtype), *shape)
    planes = analyzer.random_directions(model, seed=1)
    frame = analyzer.loss_surface(model, batches, cross_entropy, planes, GRID, [0.0, 0.5, 1.0])
    assert list(frame.columns) == ["alpha", "beta", "loss"] and len(frame) == 15
    expected = [
        by_hand(model, batches, cross_entropy, planes, a, b)
        for a, b in zip(frame["alpha"], frame["beta"], strict=True)
    ]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(frame["loss"], expected, rtol=tolerance)
    assert frame["loss"].std() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quadratic_model_gives_the_exact_paraboloid(dtype):
    model = Bowl(dtype)
    first, second = analyzer.random_directions(model)
    frame = analyzer.loss_surface(
        model, [(torch.ones(3, 1), None)], half_square, (first, second), GRID, GRID
    )
    w, d, e = (t.double() for t in (model.w.detach(), first["w"], second["w"]))
    expected = [
        0.5 * (w + a * d + b * e).square().sum().item()
        for a, b in zip(frame["alpha"], frame["beta"], strict=True)
    ]
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(frame["loss"], expected, rtol=tolerance)


def test_embeddings_move_row_by_row():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3)).double()
    tokens, y = torch.tensor([[0, 1], [2, 6], [3, 3]]), torch.tensor([0, 1, 2])
    planes = analyzer.random_directions(model)
    frame = analyzer.loss_surface(model, [(tokens, y)], cross_entropy, planes, GRID, GRID)
    expected = by_hand(model, [(tokens, y)], cross_entropy, planes, -1, 1)
    row = frame[(frame["alpha"] == -1) & (frame["beta"] == 1)]
    assert row["loss"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_middle_is_the_loss_of_the_model_bit_for_bit(mode):
    torch.manual_seed(0)
    model, batches = problem(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 4)
    axis = np.linspace(-1, 1, 21)
    planes = analyzer.random_directions(model)
    frame = analyzer.loss_surface(model, batches, cross_entropy, planes, axis, axis, mode=mode)
    loss = sum(cross_entropy(model(x), y).item() * len(x) for x, y in batches) / 11
    middle = frame[(frame["alpha"] == 0) & (frame["beta"] == 0)]
    assert middle["loss"].item() == loss


def test_losses_are_weighted_by_batch_size():
    model, batches = problem(nn.Linear(4, 3), 4)
    whole = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    line, _ = analyzer.random_directions(model)
    found, expected = (
        analyzer.loss_surface(model, data, cross_entropy, line, GRID)["loss"]
        for data in (iter(batches), whole)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_line_has_beta_zero_and_takes_the_first_direction():
    model, batches = problem(nn.Linear(4, 3), 4)
    planes = analyzer.random_directions(model)
    line = analyzer.loss_surface(model, batches, cross_entropy, planes, torch.tensor(GRID))
    plane = analyzer.loss_surface(model, batches, cross_entropy, planes, list(GRID), range(2))
    assert (line["beta"] == 0).all()
    np.testing.assert_allclose(line["loss"], plane[plane["beta"] == 0]["loss"], rtol=1e-6)


def test_an_unequal_grid_keeps_alpha_and_beta_apart():
    model, batches = problem(nn.Linear(4, 3).double(), 4)
    planes = analyzer.random_directions(model)
    alphas, betas = np.linspace(0, 1, 21), np.linspace(-1, 0.5, 51)
    found = surface(model, batches, cross_entropy, planes, alphas, betas)
    assert found.losses.shape == (21, 51)
    for i, j in ((0, 0), (20, 3), (7, 50)):
        expected = by_hand(model, batches, cross_entropy, planes, alphas[i], betas[j])
        assert found.losses[i, j] == pytest.approx(expected, rel=1e-10)


def test_nan_weights_give_a_surface_of_nan():
    model, batches = problem(nn.Linear(4, 3), 4)
    with torch.no_grad():
        model.weight[1, 1] = math.nan
    planes = analyzer.random_directions(model)
    for mode in ("exact", "fast"):
        frame = analyzer.loss_surface(
            model, batches, cross_entropy, planes, np.linspace(-1, 1, 17), GRID, mode=mode
        )
        assert frame["loss"].isna().all()


@pytest.mark.parametrize(
    ("loss", "value"), [(lambda o, t: o.sum() * 0, 0.0), (lambda o, t: -7, -7)]
)
def test_losses_of_zero_and_below_are_losses_like_any(loss, value):
    model, batches = problem(nn.Linear(4, 3), 4)
    planes, axis = analyzer.random_directions(model), np.linspace(0, 1, 20)
    for mode in ("exact", "fast"):
        frame = analyzer.loss_surface(model, batches, loss, planes, axis, axis, mode=mode)
        assert (frame["loss"] == value).all()


class Awkward(nn.Module):
    """Counts its calls, draws random numbers, writes to its input and keeps what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.mul_(2)
        self.kept = self.norm(self.linear(x))
        return self.kept + 0.1 * torch.rand_like(self.kept)


def test_nothing_of_the_model_changes():
    torch.manual_seed(0)
    model, batches = problem(Awkward(), 4)
    model.linear.weight.grad = torch.ones_like(model.linear.weight)
    model.norm.eval()
    model.linear.register_forward_hook(lambda *_: None)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data, versions = batches[0][0].clone(), [p._version for p in model.parameters()]
    pointers, random = [p.data_ptr() for p in model.parameters()], torch.get_rng_state()
    planes = analyzer.random_directions(model)
    surface(model, batches, cross_entropy, planes, np.linspace(-1, 1, 7), GRID)
    surface(model, batches, cross_entropy, planes, GRID, [0.0], batch_norm="recompute")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.training, model.norm.training, model.norm.momentum) == (True, False, 0.1)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert [p._version for p in model.parameters()] == versions
    assert model.linear.weight.grad.eq(1).all() and len(model.linear._forward_hooks) == 1
    assert torch.equal(batches[0][0], data)
    # What the module kept can be used by a later training.
    (model.kept * nn.Parameter(torch.ones(3))).sum().backward()


def test_an_error_in_the_loss_leaves_the_weights_as_they_were():
    model, batches = problem(nn.Linear(4, 3), 4)
    before, calls = model.weight.detach().clone(), []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise KeyError("broken")
        return cross_entropy(output, target)

    with pytest.raises(KeyError, match="broken"):
        surface(model, batches, loss, analyzer.random_directions(model), GRID)
    assert torch.equal(model.weight, before) and model.training


def test_a_surface_between_forward_and_backward_does_not_disturb_the_gradient():
    torch.manual_seed(0)
    model, batches = problem(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), 4)
    x, y = batches[0]
    expected = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    loss = cross_entropy(model(x), y)
    surface(model, batches, cross_entropy, analyzer.random_directions(model), GRID, GRID)
    for found, true in zip(
        torch.autograd.grad(loss, list(model.parameters())), expected, strict=True
    ):
        assert torch.equal(found, true)


def test_probes_during_a_training_leave_its_weights_bit_identical():
    def train(*, is_probed: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.2))
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            x, y = torch.randn(8, 1, 4, 4), torch.randint(0, 3, (8,))
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            if is_probed:
                measure(HeldBatch(model, x, y, cross_entropy), grid="5")
            optimizer.step()
        return model.state_dict()

    plain, probed = train(is_probed=False), train(is_probed=True)
    assert all(torch.equal(plain[name], probed[name]) for name in plain)


def test_recomputed_statistics_are_those_of_the_data_at_each_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=0.5)).double()
    x = torch.randn(9, 4).double()
    data, target = [(x, torch.zeros(9, 3).double())], analyzer.random_directions(model)
    found = surface(model, data, mse_loss, target, [0.7], [0.2], batch_norm="recompute")
    with torch.no_grad():
        moved = model[0].weight + 0.7 * target[0]["0.weight"] + 0.2 * target[1]["0.weight"]
        hidden = x @ moved.T + model[0].bias
        scaled = (hidden - hidden.mean(0)) / (hidden.var(0) + 1e-5).sqrt()
    assert found.losses.item() == pytest.approx(scaled.square().mean().item(), rel=1e-12)
    kept = surface(model, data, mse_loss, target, [0.7], [0.2])
    assert kept.losses.item() != pytest.approx(found.losses.item(), rel=1e-3)


def test_weight_decay_is_added_and_named():
    model, batches = problem(nn.Linear(4, 3).double(), 4)
    planes = analyzer.random_directions(model)
    plain = surface(model, batches, cross_entropy, planes, GRID, GRID)
    decayed = surface(model, batches, cross_entropy, planes, GRID, GRID, weight_decay=0.1)
    moved = model.weight.detach() - planes[0]["weight"] + planes[1]["weight"]
    square = moved.square().sum() + model.bias.detach().square().sum()
    difference = decayed.losses[0, 4] - plain.losses[0, 4]
    assert difference == pytest.approx(0.05 * square.item(), rel=1e-10)
    assert plain.metadata["loss_term"] == "data"
    assert decayed.metadata["loss_term"] == "data + weight decay 0.1"


def test_a_wrapped_model_and_tied_names_are_understood():
    model, batches = problem(tied().double(), 4)
    first = {f"module.{n}": torch.ones_like(p) for n, p in model.named_parameters()}
    alias = {"2.weight": torch.ones_like(model[0].weight), "0.weight": first["module.0.weight"]}
    whole = surface(model, batches, cross_entropy, first, [0.3]).losses.item()
    ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    assert whole == pytest.approx(by_hand(model, batches, cross_entropy, (ones, ones), 0.3, 0))
    part = {n: t * (n == "0.weight") for n, t in ones.items()}
    found = surface(model, batches, cross_entropy, alias, [0.3]).losses.item()
    assert found == pytest.approx(by_hand(model, batches, cross_entropy, (part, part), 0.3, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": [{}]}, "directions holds dict, expected 2 dicts"),
        ({"directions": "ab"}, "directions holds str, str"),
        ({"alphas": []}, r"alphas has shape \[0\], expected a sequence"),
        ({"betas": np.ones((2, 2))}, r"betas has shape \[2, 2\]"),
        ({"directions": [{"wight": torch.ones(3, 4)}] * 2}, "did you mean 'weight'"),
        ({"directions": [{"weight": torch.ones(4, 3)}] * 2}, r"shape \[4, 3\], expected \[3, 4\]"),
        ({"batches": []}, "batches is empty"),
        ({"batches": (torch.ones(2, 4), torch.ones(2))}, r"write \[\(input, target\)\]"),
        ({"loss": lambda o, t: o}, r"the loss has shape \[8, 3\], expected one number"),
        ({"mode": "quick"}, "mode 'quick' is unknown; choose one of exact, fast"),
        ({"batch_norm": "train"}, "choose one of keep, recompute"),
        ({"mode": "fast", "tolerance": 0}, "tolerance is 0, expected a positive share"),
        ({"mode": "fast", "alphas": [math.nan]}, "not finite, expected numbers"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(change, message):
    model, batches = problem(nn.Linear(4, 3), 4)
    plain = {
        "batches": batches,
        "loss": cross_entropy,
        "directions": analyzer.random_directions(model),
        "alphas": [0.0, 1.0],
        "betas": [0.0, 1.0],
    }
    with pytest.raises(ValueError, match=message):
        surface(model, **{**plain, **change})


def test_a_probe_has_the_columns_of_the_schema_and_says_how_it_was_made():
    torch.manual_seed(0)
    model, batches = problem(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), 4)
    x, y = batches[0]
    found = measure(HeldBatch(model, (x,), y, cross_entropy))
    assert list(found.columns) == ["alpha", "beta", "loss", "evaluated"]
    assert {len(column) for column in found.columns.values()} == {51 * 51}
    assert all(isinstance(value, str) for value in found.metadata.values())
    expected = {"normalization": "filter", "seed": "0", "batch": "8", "mode": "fast"}
    assert found.metadata.items() >= {**expected, "loss_term": "data", "tolerance": "0.005"}.items()
    assert sum(found.columns["evaluated"]) == int(found.metadata["evaluations"]) < 51 * 51
    assert float(found.metadata["cosine"]) != 0
    middle = found.columns["loss"][51 * 25 + 25]
    assert middle == cross_entropy(model(x), y).item()


def test_a_probe_works_where_the_loss_holds_its_own_targets_and_inputs_have_names():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, *, data: Tensor, scale: float) -> dict[str, Tensor]:
            return {"scores": self.linear(data) * scale}

    model, batches = problem(Named(), 4)
    x, y = batches[0]
    batch = HeldBatch(
        model, {"data": x, "scale": 2.0}, None, lambda o, _: cross_entropy(o["scores"], y)
    )
    found = measure(batch, grid="5", mode="exact")
    assert all(found.columns["evaluated"]) and found.metadata["method"] == "plain"
    assert found.columns["loss"][12] == cross_entropy(2 * model.linear(x), y).item()


def test_a_probe_that_is_out_of_time_shows_what_it_did_not_evaluate():
    model, batches = problem(nn.Linear(4, 3), 4)
    found = measure(HeldBatch(model, *batches[0], cross_entropy), seconds=1e-9)
    assert not any(found.columns["evaluated"]) and np.isnan(found.columns["loss"]).all()
    assert found.metadata["tolerance_met"] == "false"


def test_the_largest_gap_is_the_widest_place_without_an_evaluated_point():
    axis = np.linspace(-1, 1, 11)
    evaluated = np.ones((11, 11), bool)
    assert largest_gap(evaluated, axis, axis) == pytest.approx(0.2)
    evaluated[3:8, 3:8] = False  # a square of 5 x 5: its middle is three steps from what is around
    assert largest_gap(evaluated, axis, axis) == pytest.approx(1.2)
    assert largest_gap(~np.ones((11, 11), bool), axis, axis) == float("inf")
    assert largest_gap(np.ones((11, 1), bool), axis, np.zeros(1)) == pytest.approx(0.2)

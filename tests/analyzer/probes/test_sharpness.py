"""Sharpness against dense Hessians, thresholds against steps on quadratics, and Cohen et al."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

import analyzer
from analyzer.analysis.numerals import number
from analyzer.analysis.training import sharpness_curves
from analyzer.analysis.view import View
from analyzer.figures import training as figures
from analyzer.figures.theme import LIGHT
from analyzer.networks.data import batches, dataset
from analyzer.networks.zoo import zoo_for
from analyzer.probes import HeldBatch
from analyzer.probes.sharpness import measure, rule_of, update_rule


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the mean cross entropy, in float64."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    theta = torch.cat([p.detach().double().flatten() for p in model.parameters()])

    def loss(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [shape.numel() for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return cross_entropy(functional_call(model, weights, (x.double(),)), y)

    (gradient,) = torch.autograd.grad(loss(theta.requires_grad_()), theta)
    return gradient, torch.autograd.functional.hessian(loss, theta.detach())


def net() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return model, torch.randn(30, 4), torch.arange(30) % 3


def test_sharpness_and_share_are_those_of_the_dense_hessian():
    model, x, y = net()
    gradient, hessian = dense_hessian(model, x, y)
    values, vectors = torch.linalg.eigh(hessian)
    found = measure(HeldBatch(model, x, y, cross_entropy, labels=y)).columns
    assert found["sharpness"][0] == pytest.approx(float(values[-1]), rel=1e-3)
    share = (vectors[:, -3:].T @ gradient).square().sum() / gradient.square().sum()
    assert found["num_eigenvectors"] == [3]
    assert found["gradient_share"][0] == pytest.approx(float(share), rel=1e-2)
    assert found["threshold"] == [None] and 0.1 < share < 0.999


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_preconditioner_is_the_one_of_the_recorded_optimizer(tmp_path, kind):
    model, x, y = net()
    optimizer = kind(model.parameters(), lr=0.01)
    with analyzer.Recorder(model, tmp_path / "run", probe="sharpness"):
        for _ in range(5):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    _, hessian = dense_hessian(model, x, y)
    scales = []
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        if kind is torch.optim.RMSprop:
            scales.append(state["square_avg"].sqrt() + 1e-8)
        else:
            root = (state["exp_avg_sq"] / (1 - 0.999**5)).sqrt() + 1e-8
            scales.append(root * (1 - 0.9**5))
    inverse = 1 / torch.cat([scale.flatten() for scale in scales]).double()
    largest = torch.linalg.eigvals(inverse[:, None] * hessian).real.max()
    rows = analyzer.open_run(tmp_path / "run").probe("sharpness").set_index("step")
    assert list(rows.index) == [0, 5]
    assert rows["preconditioned_sharpness"][5] == pytest.approx(float(largest), rel=2e-3)
    expected = 2 / 0.01 if kind is torch.optim.RMSprop else 38 / 0.01
    assert rows["preconditioned_threshold"].tolist() == pytest.approx([expected] * 2)
    # Before its first update it has none.
    assert rows["preconditioned_sharpness"].isna().tolist() == [True, False]
    assert rows["threshold"].isna().all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.5},
    ],
)
def test_a_step_on_a_quadratic_diverges_just_above_the_threshold(settings):
    def distance(curvature: float) -> float:
        x = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([x], lr=0.1, **settings)
        for _ in range(1500):
            optimizer.zero_grad()
            (0.5 * curvature * x.square()).sum().backward()
            optimizer.step()
        return abs(float(x.detach()))

    rule = update_rule(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, **settings))
    assert rule is not None and rule.threshold is not None
    assert distance(0.99 * rule.threshold) < 1 < distance(1.01 * rule.threshold)


def test_the_threshold_of_adam_is_that_of_its_averaged_gradient():
    rule = update_rule(torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=0.1, betas=(0.8, 0.9)))

    def distance(curvature: float) -> float:
        x, average = 1.0, 0.0
        for _ in range(4000):
            average = 0.8 * average + 0.2 * curvature * x
            x -= 0.1 * average
        return abs(x)

    assert rule is not None and rule.threshold is None and rule.scaled_threshold is not None
    assert distance(0.99 * rule.scaled_threshold) < 1 < distance(1.01 * rule.scaled_threshold)


def test_what_has_no_one_threshold_has_none():
    one, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [one], "lr": 0.1}, {"params": [other], "lr": 0.2}]
    assert update_rule(torch.optim.SGD(groups, lr=0.1)) is None
    assert update_rule(torch.optim.SGD([one], lr=0.1, maximize=True)) is None
    assert update_rule(torch.optim.Rprop([one])) is None


def test_the_threshold_of_the_first_step_is_that_of_its_own_learning_rate(tmp_path):
    model, x, y = net()
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe="sharpness:1"):
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    run = analyzer.open_run(tmp_path / "run")
    rows = run.probe("sharpness")
    assert "edge_of_stability" not in [one.code for one in run.findings()]
    assert rows["threshold"].tolist() == pytest.approx([3 / 0.5, 3 / 0.05, 3 / 0.005])
    for row, network in ((0, start), (2, model)):
        top = torch.linalg.eigvalsh(dense_hessian(network, x, y)[1])[-1]
        assert rows["sharpness"].iloc[row] == pytest.approx(float(top), rel=1e-3)


def test_a_warm_start_needs_fewer_products(monkeypatch):
    model, x, y = net()
    batch = HeldBatch(model, x, y, cross_entropy)
    count = []
    times = analyzer.probes.hessian.Hessian.times
    monkeypatch.setattr(
        analyzer.probes.hessian.Hessian, "times", lambda h, v: (count.append(1), times(h, v))[1]
    )
    cold = measure(batch).columns["sharpness"][0]
    first = len(count)
    assert measure(batch).columns["sharpness"][0] == pytest.approx(cold, rel=2e-3)
    assert len(count) - first < first


@pytest.mark.parametrize("steps", [0, 60])
def test_the_share_of_the_gradient_is_known_at_the_first_step_too(steps):
    """Ten classes: more products than 24 are needed, and cheap. The truth by dense matrices."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 10))
    x, y = torch.randn(40, 6), torch.arange(40) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    gradient, hessian = dense_hessian(model, x, y)
    vectors = torch.linalg.eigh(hessian)[1][:, -10:]
    share = float((vectors.T @ gradient).square().sum() / gradient.square().sum())
    found = measure(HeldBatch(model, x, y, cross_entropy, labels=y))
    low, high = json.loads(found.metadata["gradient_share_ends"])
    assert found.columns["num_eigenvectors"] == [10]
    assert low - 0.01 <= share <= high + 0.01 and high - low <= 0.1
    assert found.columns["gradient_share"] == [pytest.approx((low + high) / 2)]


def test_a_share_that_is_not_known_lies_between_its_ends(monkeypatch):
    """With few products the ends are far apart, and hold the true share between them."""
    monkeypatch.setattr("analyzer.probes.sharpness._MOST_STEPS", 12)
    monkeypatch.setattr("analyzer.probes.sharpness._MAX_STEPS", 12)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 10))
    x, y = torch.randn(40, 6), torch.arange(40) % 10
    gradient, hessian = dense_hessian(model, x, y)
    vectors = torch.linalg.eigh(hessian)[1][:, -10:]
    share = float((vectors.T @ gradient).square().sum() / gradient.square().sum())
    found = measure(HeldBatch(model, x, y, cross_entropy, labels=y))
    low, high = json.loads(found.metadata["gradient_share_ends"])
    assert low <= share <= high and high - low > 0.1
    # What the settled ones alone hold is known, and is said of them.
    (held,), (known,) = found.columns["num_eigenvectors"], found.columns["gradient_share"]
    assert 1 <= held < 10
    of_these = float((vectors[:, -held:].T @ gradient).square().sum() / gradient.square().sum())
    assert known == low == pytest.approx(of_these, abs=0.02)
    assert found.metadata["num_products"] == "12"


def test_of_a_resnet_on_digits_it_takes_as_many_products_as_a_second_pays_for():
    data = dataset("digits", seed=0)
    x, y = next(iter(batches(data, 64, seed=0)))
    found = measure(HeldBatch(zoo_for("resnet20", data, seed=0), x, y, cross_entropy, labels=y))
    assert 12 <= int(found.metadata["num_products"]) <= 20
    assert float(found.metadata["error"]) <= 1e-3 * found.columns["sharpness"][0]
    # At the initialization not all ten have settled by then: it is said of how many it is.
    (held,), (share,) = found.columns["num_eigenvectors"], found.columns["gradient_share"]
    low, high = json.loads(found.metadata["gradient_share_ends"])
    assert 1 <= held <= 10 and low - 1e-9 <= share <= high + 1e-9


@pytest.mark.parametrize(
    ("name", "settings", "column", "threshold"),
    [
        ("SGD", {"momentum": 0.9}, "threshold", 3.8 / 0.1),
        ("SGD", {"momentum": 0.5, "dampening": 0.5}, "threshold", 3 / 0.05),
        ("SGD", {"momentum": 0.9, "nesterov": True}, "threshold", 3.8 / 0.28),
        ("Adam", {"betas": [0.9, 0.999]}, "scaled_threshold", 3.8 / 0.01),
        ("RMSprop", {}, "scaled_threshold", 20.0),
    ],
)
def test_a_rule_by_name_is_that_of_the_optimizer(name, settings, column, threshold):
    kind = getattr(torch.optim, name)
    own = update_rule(kind([nn.Parameter(torch.ones(1))], lr=0.1, **settings))
    by_name = rule_of(name, {"lr": 0.1, **settings})
    assert by_name == own and getattr(by_name, column) == pytest.approx(threshold)
    assert rule_of(name, {"lr": 0.1, "maximize": True, **settings}) is None
    assert rule_of("Lion", {"lr": 0.1}) is None


def test_full_batch_descent_rises_to_the_edge_of_stability_and_the_figure_shows_it(tmp_path):
    """Cohen et al. (2021): a tanh network with η = 0.1 comes to a sharpness of 2/η = 20."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, classes = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images[:200]).float() / 8 - 1, torch.tensor(classes[:200])
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10)
    )
    optimizer, targets = torch.optim.SGD(model.parameters(), lr=0.1), one_hot(y, 10).float()
    with analyzer.Recorder(model, tmp_path / "run", probe="sharpness:100", every=1000):
        for _ in range(1400):
            optimizer.zero_grad()
            (0.5 * (model(x) - targets).square().sum(1).mean()).backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    rows = run.probe("sharpness")
    assert rows["threshold"].tolist() == [20.0] * 15
    assert rows["sharpness"].iloc[0] < 16
    late = rows["sharpness"].iloc[-4:]
    assert late.mean() == pytest.approx(20, rel=0.08) and late.max() > 19.5
    info = sharpness_curves(View([run]))
    share = number(rows["sharpness"].iloc[-1] / 20)
    assert info.caption.endswith(f"{share} times the 20 from which on a step is unstable.")
    drawn = figures.SHARPNESS.drawing(info, LIGHT)
    (found,) = [one for one in run.findings() if one.code == "edge_of_stability"]
    # The last third of fifteen probes, since the sharpness swings about its threshold.
    ratios = rows["sharpness"].iloc[-5:] / 20
    assert found.value == pytest.approx(ratios.median()) and found.severity == "note"
    assert found.steps == (1000, 1400) and "times the 20 from which" in found.sentence
    line = next(t for t in drawn.data if t.name is not None and t.name.endswith("threshold"))
    assert list(line.y) == [20.0] * 15

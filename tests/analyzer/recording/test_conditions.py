import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import analyzer
from analyzer.recording.loss_graph import about_loss, reduction_of


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def conditions(path: Path, model: nn.Module, train: Callable[[Tensor, Tensor], None]) -> Any:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 1, 2] * 3)
    with analyzer.Recorder(model, path, updates_every=2):
        train(x, y)
    return analyzer.open_run(path).manifest["conditions"]


def test_what_the_first_step_was_made_of_is_noted(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = []

    def train(x: Tensor, y: Tensor) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(model(3 * x), y).backward()
            optimizer.step()
        seen.append(3 * x)

    noted = conditions(tmp_path / "run", model, train)
    (given,) = noted["inputs"]
    assert given["shape"] == [12, 6]
    assert given["root_mean_square"] == pytest.approx(float(seen[0].square().mean().sqrt()))
    assert given["largest"] == pytest.approx(float(seen[0].abs().max()))
    assert noted["loss"]["reduction"] == "mean"
    shares = (0.25, 0.5, 0.25)
    assert noted["loss"]["class_entropy"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert noted["gradients_kept"] == {"updates": 0, "of": 3}
    assert noted["eval_mode"] == {"looks": 2, "layers": {}}
    assert noted["without_optimizer"] == []


@pytest.mark.parametrize(
    ("clear", "kept"),
    [
        (lambda o: None, 4),
        (lambda o: o.zero_grad(), 0),
        (lambda o: o.zero_grad(set_to_none=False), 0),
    ],
    ids=["never", "none", "zeros"],
)
def test_updates_whose_gradients_hold_earlier_ones_are_counted(
    tmp_path: Path, clear: Callable[[Any], None], kept: int
) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())

    def train(x: Tensor, y: Tensor) -> None:
        for _ in range(5):
            for _ in range(2):  # accumulated within a step, as is usual
                cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            clear(optimizer)

    noted = conditions(tmp_path / "run", model, train)
    assert noted["gradients_kept"] == {"updates": kept, "of": 5}


def test_gradients_of_a_pass_for_another_network_are_cleared_in_time(tmp_path: Path) -> None:
    """In a GAN the generator's pass adds to the discriminator's gradients, which are cleared."""
    torch.manual_seed(0)
    pair = nn.ModuleDict({"g": nn.Linear(4, 6), "d": nn.Linear(6, 1)})
    of = {name: torch.optim.SGD(part.parameters(), lr=0.01) for name, part in pair.items()}

    def train(x: Tensor, y: Tensor) -> None:
        for _ in range(4):
            of["d"].zero_grad()
            fake = pair["g"](x[:, :4])
            (pair["d"](fake.detach()) - pair["d"](x)).mean().backward()
            of["d"].step()
            of["g"].zero_grad()
            (-pair["d"](fake)).mean().backward()
            of["g"].step()

    noted = conditions(tmp_path / "run", pair, train)
    assert noted["gradients_kept"] == {"updates": 0, "of": 8}


def test_gradients_that_an_optimizer_takes_within_the_pass_are_cleared(tmp_path: Path) -> None:
    model = nn.Linear(6, 3)
    of = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def step(parameter: nn.Parameter) -> None:
        of[parameter].step()
        of[parameter].zero_grad(set_to_none=False)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)

    def train(x: Tensor, y: Tensor) -> None:
        for _ in range(3):
            cross_entropy(model(x), y).backward()

    noted = conditions(tmp_path / "run", model, train)
    assert noted["gradients_kept"] == {"updates": 0, "of": 6}


@pytest.mark.parametrize("device_like", [torch.float32, torch.float64])
def test_weights_whose_units_are_one_are_named(tmp_path: Path, device_like: torch.dtype) -> None:
    """Equal rows alone are nothing: a head of zeros, and a layer before a random one, learn."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 3)).to(device_like)
    with torch.no_grad():
        for part in (model[0], model[2], model[3], model[4]):
            part.weight.fill_(0.1)
            part.bias.zero_()
        model[4].weight.zero_()
        model[4].weight[0] = 0.3  # its units get gradients of their own
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(x: Tensor, y: Tensor) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(model(x.to(device_like)), y).backward()
            optimizer.step()

    run = tmp_path / "run"
    noted = conditions(run, model, train)
    names = analyzer.open_run(run).parameters["name"]
    # Rows of 2 and 3 are equal, and what follows each reads its units alike; 1 is random.
    assert list(names[noted["alike_units"]]) == ["2.weight", "3.weight"]


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_norms_that_run_in_eval_mode_are_named(tmp_path: Path, mode: str) -> None:
    model = net().train(mode == "train")
    if mode == "frozen":
        model[1].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)

    def train(x: Tensor, y: Tensor) -> None:
        for step in range(6):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            if step == 2 and mode == "eval":
                model.train()

    noted = conditions(tmp_path / "run", model, train)["eval_mode"]
    seen = {"1": {"steps": 2, "first_step": 0, "last_step": 2}}
    assert noted == {"looks": 3, "layers": seen if mode == "eval" else {}}


def test_parameters_that_no_optimizer_holds_are_noted(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)

    def train(x: Tensor, y: Tensor) -> None:
        cross_entropy(model(x), y).backward()
        optimizer.step()

    noted = conditions(tmp_path / "run", model, train)
    names = analyzer.open_run(tmp_path / "run").parameters["name"]
    assert list(names[noted["without_optimizer"]]) == ["0.weight", "0.bias", "1.weight", "1.bias"]


X = torch.ones(5, 2, requires_grad=True)
Y = torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda: cross_entropy(X, torch.zeros(5, dtype=torch.long), reduction="sum"), "sum"),
        (lambda: mse_loss(X, Y, reduction="sum"), "sum"),
        (lambda: (X - Y).square().sum(), "sum"),
        (lambda: mse_loss(X, Y, reduction="sum") + X.exp().sum(), "sum"),
        (lambda: mse_loss(X, Y) + X[0].square().sum(), "mean"),
        (lambda: (X - Y).square().sum(1).mean(), "mean"),
        (lambda: (X - Y).square().sum() / 5, None),
        (lambda: mse_loss(X, Y) + mse_loss(X, Y, reduction="sum"), None),
        (lambda: X[0, 0] * 2, None),
    ],
)
def test_the_reduction_of_a_loss_is_read_from_its_graph(
    loss: Callable[[], Tensor], expected: str | None
) -> None:
    assert reduction_of([loss()], 5) == expected


def test_a_pattern_that_chooses_no_layer_is_said_at_the_first_step(tmp_path: Path) -> None:
    model, said = net(), list[str]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    at: list[int] = []
    with analyzer.Recorder(model, tmp_path / "run", layers="layer9", warn=said.append):
        for step in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 6)).sum().backward()
            optimizer.step()
            at.append(len(said) * (step + 1))
    assert len(said) == 1 and "--layers 'layer9': none of the 4 layers is chosen" in said[0]
    assert at[1] > 0, "said while it runs"
    assert said[0] in analyzer.open_run(tmp_path / "run").manifest["not_recorded"]


def scores(*shape: int) -> Tensor:
    return nn.Linear(5, shape[-1])(torch.randn(*shape[:-1], 5))


LABELS = torch.tensor([0, 1, 2, 1])
F = nn.functional


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda: cross_entropy(scores(4, 3), LABELS), {}),
        (lambda: cross_entropy(scores(4, 3).softmax(1), LABELS), {"given": "softmax"}),
        (
            lambda: cross_entropy(scores(2, 2, 3).softmax(2).flatten(0, 1), LABELS),
            {"given": "softmax"},
        ),
        (lambda: cross_entropy(scores(4, 3).sigmoid(), LABELS), {"given": "sigmoid"}),
        (
            lambda: cross_entropy(scores(4, 3).softmax(1), torch.full((4, 3), 1 / 3)),
            {"given": "softmax"},
        ),
        (lambda: cross_entropy(scores(4, 3).log_softmax(1), LABELS), {}),
        (lambda: F.nll_loss(scores(4, 3).softmax(1), LABELS), {"given": "softmax"}),
        (lambda: F.nll_loss(scores(4, 3).log_softmax(1), LABELS), {}),
        (lambda: F.nll_loss(scores(4, 3).log_softmax(0), LABELS), {"axis": 0}),
        (lambda: F.nll_loss(scores(4, 3).softmax(0).log(), LABELS), {"axis": 0}),
        (lambda: F.nll_loss(scores(2, 2, 3).log_softmax(2).flatten(0, 1), LABELS), {}),
        (lambda: F.nll_loss(scores(2, 2, 3).log_softmax(1).flatten(0, 1), LABELS), {}),
        (
            lambda: F.binary_cross_entropy_with_logits(scores(4, 1).sigmoid(), torch.ones(4, 1)),
            {"given": "sigmoid"},
        ),
        (lambda: F.binary_cross_entropy(scores(4, 1).sigmoid(), torch.ones(4, 1)), {}),
        (lambda: mse_loss(scores(4, 3).softmax(1), torch.ones(4, 3)), {}),
        # The weights of attention are no scores of a loss.
        (lambda: cross_entropy(scores(4, 4).softmax(1) @ scores(4, 3), LABELS), {}),
        (
            lambda: F.kl_div(scores(4, 3).log_softmax(1), torch.ones(4, 3), reduction="batchmean"),
            {},
        ),
    ],
)
def test_a_loss_that_is_given_probabilities_for_scores_is_seen(
    loss: Callable[[], Tensor], expected: dict[str, Any]
) -> None:
    found = about_loss([loss()], 4)
    assert {key: found[key] for key in ("given", "axis") if key in found} == expected


@pytest.mark.parametrize(
    ("loss", "sign"),
    [
        (lambda: cross_entropy(scores(4, 3), LABELS), 1),
        (lambda: -cross_entropy(scores(4, 3), LABELS), -1),
        (lambda: -0.5 * cross_entropy(scores(4, 3), LABELS), -1),
        (lambda: cross_entropy(scores(4, 3), LABELS) / 4, 1),
        (lambda: 0 - mse_loss(scores(4, 3), torch.ones(4, 3)), None),
        (lambda: mse_loss(scores(4, 3), torch.ones(4, 3)) + scores(4, 3).square().mean(), 1),
        # A domain classifier is to be fooled while the classes are learned.
        (lambda: cross_entropy(scores(4, 3), LABELS) - cross_entropy(scores(4, 3), LABELS), None),
        (lambda: scores(4, 3).mean() - cross_entropy(scores(4, 3), LABELS), -1),
        # A generator of a GAN maximizes its judge's error.
        (lambda: -F.binary_cross_entropy(scores(4, 1).sigmoid(), torch.zeros(4, 1)), None),
    ],
)
def test_the_sign_of_a_loss_that_measures_an_error(
    loss: Callable[[], Tensor], sign: int | None
) -> None:
    assert about_loss([loss()], 4).get("sign") == sign

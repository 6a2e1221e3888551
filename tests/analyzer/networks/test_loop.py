import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analyzer.errors import AnalyzerError, ScriptError
from analyzer.networks.loop import choose_device, model_of, optimizer, seed_everything, train


class Line(nn.Module):
    """y = w·x with one weight that starts at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def ones() -> list[tuple[Tensor, Tensor]]:
    return [(torch.ones(2), torch.zeros(2))] * 5


def test_momentum_descent_on_a_parabola_follows_its_recursion() -> None:
    model, losses = Line(), []
    sgd = optimizer("sgd", model, 0.1)
    train(
        model,
        ones(),
        steps=3,
        optimizer=sgd,
        loss=error,
        on_step=lambda k, v: losses.append((k, v)),
    )
    w, velocity, expected = 1.0, 0.0, []
    for _ in range(3):
        expected.append(w**2)
        velocity = 0.9 * velocity + 2 * w
        w -= 0.1 * velocity
    assert [step for step, _ in losses] == [0, 1, 2]
    assert [value.item() for _, value in losses] == pytest.approx(expected)
    assert model.w.item() == pytest.approx(w)


def test_clipping_bounds_the_update() -> None:
    model = Line()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    train(model, ones(), steps=1, optimizer=sgd, loss=error, max_norm=0.5)
    assert model.w.item() == pytest.approx(0.5, rel=1e-5)


def test_no_batch_is_taken_that_no_step_uses() -> None:
    source = iter(ones())
    train(Line().eval(), source, steps=2, optimizer=optimizer("sgd", Line()), loss=error)
    assert len(list(source)) == 3


def test_training_ends_where_the_batches_end() -> None:
    model, steps = Line(), []
    sgd = optimizer("sgd", model)
    train(model, ones(), steps=9, optimizer=sgd, loss=error, on_step=lambda k, v: steps.append(k))
    assert steps == [0, 1, 2, 3, 4]


def test_the_model_is_trained_in_training_mode_with_cross_entropy() -> None:
    model, losses = nn.Linear(2, 4).eval(), []
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    batch = (torch.ones(3, 2), torch.tensor([0, 1, 2]))
    sgd = optimizer("adam", model)
    train(model, [batch], steps=1, optimizer=sgd, on_step=lambda k, v: losses.append(v))
    assert model.training
    assert losses[0].item() == pytest.approx(np.log(4))
    assert not losses[0].requires_grad


def test_inputs_may_be_nested() -> None:
    seen = []

    class Both(Line):
        def forward(self, x: dict[str, list[Tensor]]) -> Tensor:
            seen.append(x)
            return self.w * x["a"][0]

    model = Both()
    batch = ({"a": [torch.ones(2)]}, torch.zeros(2))
    train(model, [batch], steps=1, optimizer=optimizer("sgd", model), loss=error)
    assert torch.equal(seen[0]["a"][0], torch.ones(2))


@pytest.mark.parametrize(
    ("name", "kind", "lr"),
    [
        ("sgd", torch.optim.SGD, 0.02),
        ("adam", torch.optim.Adam, 1e-3),
        ("adamw", torch.optim.AdamW, 1e-3),
    ],
)
def test_optimizers_have_their_usual_rate(name: str, kind: type, lr: float) -> None:
    made = optimizer(name, Line())
    assert type(made) is kind
    assert made.param_groups[0]["lr"] == lr
    assert optimizer(name, Line(), 0.0).param_groups[0]["lr"] == 0.0


def test_frozen_parameters_are_left_to_the_user() -> None:
    model = nn.Sequential(Line(), Line())
    model[0].w.requires_grad_(False)
    assert optimizer("sgd", model).param_groups[0]["params"] == [model[1].w]


def test_what_no_optimizer_can_use_is_refused() -> None:
    with pytest.raises(AnalyzerError, match="'lion' is unknown; choose one of sgd, adam, adamw"):
        optimizer("lion", Line())
    with pytest.raises(AnalyzerError, match="learning rate -1 is not usable; choose a number"):
        optimizer("sgd", Line(), -1)
    with pytest.raises(AnalyzerError, match="Line has no parameter that requires a gradient"):
        optimizer("sgd", Line().requires_grad_(False))


def test_a_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_device("cpu") == choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(AnalyzerError, match=r"'cuda:2' is not available; torch finds 2 cuda here"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "meta", "cuda:1"])
def test_an_absent_device_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(AnalyzerError, match=f"'{name}' is not available; torch finds no accelerat"):
        choose_device(name)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(AnalyzerError, match="'gpu' is unknown to torch; choose one of auto, cpu"):
        choose_device("gpu")


def test_a_seed_repeats_all_three_generators() -> None:
    draws = []
    for _ in range(2):
        seed_everything(2**40 + 7)
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]
    with pytest.raises(AnalyzerError, match="seed -1 is negative; choose an integer from 0"):
        seed_everything(-1)


def test_the_model_of_a_file_is_its_variable_or_what_it_builds() -> None:
    line, other = Line(), Line()
    assert model_of({"model": line, "build_model": lambda: other}, "a.py") is line
    assert model_of({"model": "resnet", "build_model": lambda: other}, "a.py") is other


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"build_model": dict},
            r"build_model\(\) of 'a.py' returned a dict; expected a torch.nn.Mod",
        ),
        ({"net": 1, "_x": 2}, "'a.py' ran no backward pass and defines net; expected a training"),
        ({}, "defines nothing; expected a training script"),
    ],
)
def test_a_file_without_a_model_is_told_what_it_defines(names: dict, message: str) -> None:
    with pytest.raises(ScriptError, match=message):
        model_of(names, "a.py")

"""What papers say of curvature while a net trains: the edge of stability, a tiny subspace."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from analyzer.live import hessian_spectrum, sharpness
from analyzer.networks.blocks import private_random_state
from analyzer.networks.data import Dataset
from analyzer.networks.loop import choose_device
from analyzer.studies.measuring import Recipe, error_rate, trained
from analyzer.studies.published import Claim, Experiment, Numbers
from analyzer.studies.reproduce import Case

__all__ = ["COHEN2021", "GURARI2018"]

Row = tuple[str, float | None, float]
Loss = Callable[[Tensor, Tensor], Tensor]


def _mlp(data: Dataset, widths: Sequence[int], activation: type[nn.Module], seed: int) -> nn.Module:
    """Return a fully connected net with PyTorch's initialization."""
    sizes = [math.prod(data.shape), *widths]
    with private_random_state(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], data.num_classes))


def _squares(output: Tensor, target: Tensor) -> Tensor:
    """½ ‖f(x) − onehot(y)‖², the mean over samples."""
    return (output - one_hot(target, output.shape[1])).square().sum(1).mean() / 2


def _descend(model: nn.Module, batch: tuple[Tensor, Tensor], loss: Loss, rate: float) -> float:
    """Take one step of gradient descent over the whole batch; return the loss before it."""
    parameters = list(model.parameters())
    value = loss(model(batch[0]), batch[1])
    gradients = torch.autograd.grad(value, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(rate * gradient)
    return float(value.detach())


# Cohen et al. 2021: the edge of stability ---------------------------------------------------


def _cohen2021(case: Case) -> Iterator[Row]:
    settings, rate = case.settings, float(case.part.removeprefix("rate"))
    place = choose_device(case.device)
    samples = settings["samples"]
    batch = (
        case.data.train_inputs[:samples].to(place),
        case.data.train_targets[:samples].to(place),
    )
    model = _mlp(case.data, settings["widths"], nn.Tanh, case.seed).to(place)
    for step in range(settings["steps"] + 1):
        if step % settings["every"] == 0:
            value = sharpness(model, [batch], _squares, tolerance=1e-3)
            yield f"sharpness {rate:g}", float(step), value * rate / 2
            yield f"loss {rate:g}", float(step), float(_squares(model(batch[0]), batch[1]).detach())
        _descend(model, batch, _squares, rate)


def _settled(numbers: Numbers, rate: str) -> float:
    """Return the mean over the last third of the steps, where it is at the edge or not."""
    pairs = numbers.curve(f"sharpness {rate}")
    return statistics.fmean(value for _, value in pairs[-max(len(pairs) // 3, 1) :])


def _fall(numbers: Numbers, rate: str) -> float:
    losses = [value for _, value in numbers.curve(f"loss {rate}")]
    return losses[-1] / losses[len(losses) * 2 // 3]


COHEN2021 = Experiment(
    name="cohen2021",
    title="Gradient descent drives the sharpness up to 2/η, where it stays while the loss falls on",
    source="Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge "
    "of stability, §3, arXiv:2103.00065",
    claims=(
        *(
            Claim(
                f"start_{rate}",
                f"sharpness at the first step ÷ (2/η), η = {rate}",
                "below 1: it rises first",
                0.0,
                0.95,
                "below the edge by more than a twentieth",
                lambda n, rate=rate: n.curve(f"sharpness {rate}")[0][1],  # type: ignore[misc]
            )
            for rate in ("0.1", "0.13")
        ),
        *(
            Claim(
                f"settled_{rate}",
                f"sharpness ÷ (2/η) over the last third of the steps, η = {rate}",
                "just above 1",
                0.95,
                1.15,
                "the figures of the paper hover up to about a tenth above 2/η",
                lambda n, rate=rate: _settled(n, rate),  # type: ignore[misc]
                1.0,
            )
            for rate in ("0.1", "0.13")
        ),
        Claim(
            "fall",
            "loss at the end ÷ loss at two thirds of the steps, η = 0.1",
            "below 1: it falls on",
            0.0,
            0.99,
            "by a hundredth at least",
            lambda n: _fall(n, "0.1"),
        ),
    ),
    method="full-batch gradient descent on the mean of ½‖f(x) − onehot(y)‖², a tanh net of two "
    "hidden layers; the largest eigenvalue of the Hessian (`sharpness`) along the way.",
    settings={
        "tiny": {"seeds": 1, "samples": 60, "widths": (8,), "steps": 20, "every": 10},
        "laptop": {"seeds": 4, "samples": 300, "widths": (32, 32), "steps": 1800, "every": 100},
        "full": {"seeds": 5, "samples": 5000, "widths": (200, 200), "steps": 20000, "every": 200},
    },
    changed={
        "tiny": "20 steps.",
        "laptop": "300 digits of 64 pixels in place of 5,000 images of CIFAR-10; width 32 for 200.",
    },
    measure=_cohen2021,
    parts=lambda settings: ("rate0.1", "rate0.13"),
    needs_data=True,
)


# Gur-Ari et al. 2018: a tiny subspace -----------------------------------------------------------


def _gurari2018(case: Case) -> Iterator[Row]:
    settings, data = case.settings, case.data
    place = choose_device(case.device)
    samples = settings["samples"]
    batch = (data.train_inputs[:samples].to(place), data.train_targets[:samples].to(place))
    model = _mlp(data, settings["widths"], nn.ReLU, case.seed).to(place)
    count = sum(parameter.numel() for parameter in model.parameters())
    yield "random", None, data.num_classes / count
    steps = settings["every"]
    for number in range(settings["measurements"] + 1):
        if number:
            # The schedule continues: another seed for the batches of each stretch.
            recipe = Recipe(steps, settings["lr"], 64, 0.0, 0.0)
            trained(model, data, recipe, seed=1000 * case.seed + number, device=case.device)
        yield "share", float(number * steps), _share_on_top(model, batch, data.num_classes)
    yield "error", None, error_rate(model, data)


def _share_on_top(model: nn.Module, batch: tuple[Tensor, Tensor], count: int) -> float:
    """Return the part of ‖g‖² in the span of the largest eigenvectors of the Hessian."""
    found = hessian_spectrum(
        model, [batch], cross_entropy, k=count, num_vectors=1, num_steps=2
    ).attrs["eigenvectors"]
    named = dict(model.named_parameters())
    loss = cross_entropy(model(batch[0]), batch[1])
    gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    square = sum(float(g.double().square().sum()) for g in gradients.values())
    along = (
        sum(float((vector[name].double() * gradients[name].double()).sum()) for name in gradients)
        for vector in found
    )
    return sum(value**2 for value in along) / square


GURARI2018 = Experiment(
    name="gurari2018",
    title="After a short while the gradient lies in the span of as many of the largest "
    "eigenvectors of the Hessian as there are classes",
    source="Gur-Ari et al. (2018), Gradient descent happens in a tiny subspace, arXiv:1812.04754",
    claims=(
        Claim(
            "share",
            "part of ‖∂L/∂θ‖² in the 10 largest eigenvectors, mean of the last half",
            "most of it (figure: 0.6 to 0.95)",
            0.6,
            1.0,
            "most: the range of the paper's figures",
            lambda n: _late_share(n),
        ),
        Claim(
            "rise",
            "the same ÷ that at the first step",
            "above 1: it gets there by training",
            1.05,
            math.inf,
            "a twentieth",
            lambda n: _late_share(n) / n.curve("share")[0][1],
        ),
        Claim(
            "over_random",
            "the same ÷ what a random direction has, 10 ÷ number of weights",
            "far above 1",
            10.0,
            math.inf,
            "ten times",
            lambda n: _late_share(n) / n["random"],
        ),
    ),
    method="a fully connected ReLU net trained by SGD without momentum, batches of 64; gradient "
    "and Hessian of the cross entropy over a fixed part of the training data (`hessian_spectrum`).",
    settings={
        "tiny": {"seeds": 1, "samples": 60, "widths": (8,), "every": 2, "measurements": 2}
        | {"lr": 0.1},
        "laptop": {"seeds": 3, "samples": 300, "widths": (32, 32), "every": 50, "measurements": 6}
        | {"lr": 0.1},
        "full": {"seeds": 5, "samples": 5000, "widths": (200, 200), "every": 500}
        | {"measurements": 20, "lr": 0.1},
    },
    changed={
        "tiny": "4 steps.",
        "laptop": "digits in place of CIFAR-10; two hidden layers of 32 units.",
    },
    measure=_gurari2018,
    needs_data=True,
)


def _late_share(numbers: Numbers) -> float:
    pairs = numbers.curve("share")
    return statistics.fmean(value for _, value in pairs[len(pairs) // 2 :])

"""What papers say of plain and residual twins that are trained: degradation, loss landscapes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from analyzer.live import loss_surface, sharpness
from analyzer.networks.zoo import zoo_for
from analyzer.probes.landscape import random_directions
from analyzer.studies.measuring import Recipe, error_rate, layer_sizes, trained
from analyzer.studies.published import Claim, Experiment, Numbers
from analyzer.studies.reproduce import Case

__all__ = ["HE2015", "LI2018"]

Row = tuple[str, float | None, float]


# He et al. 2015: degradation ------------------------------------------------------------------


def _nets(settings: Mapping[str, Any]) -> list[str]:
    """The parts of a study of twins: a net each."""
    depths: Sequence[int] = settings["depths"]
    return [f"{family}{depth}" for family in ("plain", "resnet") for depth in depths]


def _taken_apart(part: str) -> tuple[str, float]:
    family = part.rstrip("0123456789")
    return family, float(part.removeprefix(family))


def _batch(case: Case, count: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    data = case.data
    return data.train_inputs[:count].to(device), data.train_targets[:count].to(device)


def _he2015(case: Case) -> Iterator[Row]:
    settings = case.settings
    family, depth = _taken_apart(case.part)
    model = zoo_for(case.part + settings["options"], case.data, seed=case.seed)
    recipe = Recipe(**settings["recipe"])
    yield f"growth first step {family}", depth, _growth(model, case)
    losses = trained(model, case.data, recipe, seed=case.seed, device=case.device)
    # Not with the running statistics: those of a plain net lag behind its fast weights.
    late = losses[-max(len(losses) // 10, 1) :]
    yield f"training loss {family}", depth, statistics.fmean(late)
    yield f"test error {family}", depth, error_rate(model, case.data)
    yield f"growth last step {family}", depth, _growth(model, case)


def _growth(model: Any, case: Case) -> float:
    """Return log10 of ‖∂L/∂y‖ at the first block ÷ at the last, along the trunk."""
    was_training = model.training
    model.train()
    device = next(model.parameters()).device
    inputs, targets = _batch(case, case.settings["batch"], device)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = layer_sizes(model, inputs, targets)
    model.load_state_dict(state)
    model.train(was_training)
    ends = [one.gradient_norm for one in sizes if one.name.endswith(".relu")]
    first, last = ends[0], ends[-1]
    return math.log10(first / last) if first and last else math.nan


def _deeper(numbers: Numbers, quantity: str) -> float:
    """Return the value of the deepest net minus that of the second shallowest."""
    pairs = numbers.curve(quantity)
    return pairs[-1][1] - pairs[min(1, len(pairs) - 2)][1]


def _test_errors(table: Sequence[tuple[str, int, float]], reason: str) -> tuple[Claim, ...]:
    """The claims on the test errors of a paper's table: family, depth and error in percent."""
    return tuple(
        Claim(
            f"error_{family}{depth}",
            f"test error of {family}{depth}, %",
            f"{error}",
            error - 0.5,
            error + 0.5,
            reason,
            lambda n, family=family, depth=depth: n.at(  # type: ignore[misc]
                f"test error {family}", depth
            ),
            error,
            "digits in place of CIFAR-10, and fewer steps",
        )
        for family, depth, error in table
    )


_TABLE = (("resnet", 20, 8.75), ("resnet", 56, 6.97), ("resnet", 110, 6.43))

HE2015 = Experiment(
    name="he2015",
    title="Deeper plain nets train worse, deeper residual nets do not; and vanishing gradients are "
    "not the reason",
    source="He et al. (2015), Deep residual learning for image recognition, §4.1, §4.2 and table "
    "6, arXiv:1512.03385",
    claims=(
        Claim(
            "degradation",
            "training loss of the deepest plain net − that of the shallower one",
            "above 0 (figure 6)",
            0.05,
            math.inf,
            "0.05 nats: beyond the noise of the last steps",
            lambda n: _deeper(n, "training loss plain"),
        ),
        Claim(
            "no_degradation",
            "the same of residual nets",
            "not above 0 (figure 6)",
            -math.inf,
            0.05,
            "0.05 nats",
            lambda n: _deeper(n, "training loss resnet"),
        ),
        Claim(
            "twin",
            "training loss of the deepest plain net − that of its residual twin",
            "above 0",
            0.05,
            math.inf,
            "0.05 nats",
            lambda n: (
                n.curve("training loss plain")[-1][1] - n.curve("training loss resnet")[-1][1]
            ),
        ),
        Claim(
            "healthy_first",
            "decades between the gradients of first and last block, deepest plain net, first step",
            "healthy norms with batch norm (§4.1): 0",
            -1.0,
            1.0,
            "one decade over the whole net",
            lambda n: n.curve("growth first step plain")[-1][1],
            0.0,
        ),
        Claim(
            "healthy_last",
            "the same after training",
            "healthy norms with batch norm (§4.1): 0",
            -1.0,
            1.0,
            "one decade over the whole net",
            lambda n: n.curve("growth last step plain")[-1][1],
            0.0,
        ),
        *_test_errors(_TABLE, "half a point: three times the spread of the paper's five runs"),
    ),
    method="the nets for CIFAR-10 with batch norm and shortcuts without parameters, SGD with "
    "momentum 0.9; the loss is the mean over the last tenth of the steps, in training mode; "
    "gradients ‖∂L/∂y‖ at the outputs of the blocks.",
    settings={
        "tiny": {"seeds": 1, "depths": (8, 14), "options": "-w4", "batch": 32}
        | {"recipe": {"steps": 3, "lr": 0.1, "batch_size": 32}},
        "laptop": {"seeds": 4, "depths": (8, 20, 56), "options": "-w8", "batch": 64}
        | {"recipe": {"steps": 150, "lr": 0.1, "batch_size": 64}},
        "full": {"seeds": 5, "depths": (20, 32, 44, 56, 110), "options": "", "batch": 128}
        | {
            "recipe": {"steps": 64000, "milestones": (32000, 48000), "warmup": 400}
            | {"augment": True}
        },
    },
    changed={
        "tiny": "8 and 14 layers, 3 steps.",
        "laptop": "digits of 8×8 pixels, 150 steps in place of 64,000, width 8 in place of 16, no "
        "augmentation; depths 8, 20 and 56.",
    },
    measure=_he2015,
    discussion="The degradation is seen after 150 steps on digits: the plain net of 56 layers "
    "ends at {degradation} nats above that of 20. The paper says that gradients of plain nets with "
    "batch norm have healthy norms and does not say at which step. At the first step they do not: "
    "{healthy_first} decades between the two ends, the growth by 1.21 a layer of yang2019. After "
    "training it is {healthy_last}. Both can be true: the explosion is one of the first steps.",
    parts=_nets,
    needs_data=True,
)


# Li et al. 2018: the landscapes of twins -------------------------------------------------------


def _li2018(case: Case) -> Iterator[Row]:
    settings = case.settings
    family, depth = _taken_apart(case.part)
    model = zoo_for(case.part + settings["options"], case.data, seed=case.seed)
    recipe = Recipe(**(settings["recipe"] | {"lr": settings["lr"][family]}))
    losses = trained(model, case.data, recipe, seed=case.seed, device=case.device)
    yield f"training loss {family}", depth, statistics.fmean(losses[-max(len(losses) // 10, 1) :])
    yield f"test error {family}", depth, error_rate(model, case.data)
    batch = _batch(case, settings["batch"], next(model.parameters()).device)
    directions = random_directions(model, seed=case.seed)
    axis = torch.linspace(-1, 1, settings["points"]).tolist()
    surface = loss_surface(
        model, [batch], cross_entropy, directions, axis, axis, batch_norm="recompute"
    )
    for key in ("non_convex_share", "non_convexity"):
        yield f"{key} {family}", depth, float(surface.attrs[key])
    values = surface["loss"]
    rise = float(values.max() - values.min())
    yield f"rise {family}", depth, rise
    yield f"sharpness {family}", depth, sharpness(model, [batch], cross_entropy, tolerance=1e-2)


def _deepest(numbers: Numbers, quantity: str) -> float:
    return numbers.curve(quantity)[-1][1]


_LI_TABLE = (("resnet", 20, 7.37), ("plain", 20, 8.18), ("resnet", 56, 5.89), ("plain", 56, 13.31))

LI2018 = Experiment(
    name="li2018",
    title="Without shortcuts the landscape of a deep net turns from nearly convex to chaotic",
    source="Li et al. (2018), Visualizing the loss landscape of neural nets, §5, §6 and table 1, "
    "arXiv:1712.09913",
    claims=(
        Claim(
            "non_convexity",
            "non-convexity of the plane, deepest plain net − its residual twin",
            "far above 0 (figures 5 and 7)",
            0.05,
            math.inf,
            "half of what still counts as almost convex",
            lambda n: _deepest(n, "non_convexity plain") - _deepest(n, "non_convexity resnet"),
        ),
        Claim(
            "sharpness",
            "log10 of the largest eigenvalue of the Hessian, deepest plain net − its twin",
            "above 0: sharper (figure 5)",
            0.3,
            math.inf,
            "twice as sharp at least",
            lambda n: math.log10(_deepest(n, "sharpness plain") / _deepest(n, "sharpness resnet")),
        ),
        Claim(
            "convex",
            "non-convexity of the plane of the deepest residual net",
            "almost convex: a few percent",
            0.0,
            0.1,
            "a tenth",
            lambda n: _deepest(n, "non_convexity resnet"),
        ),
        Claim(
            "depth",
            "non-convexity of the plane, deepest plain net − that of 20 layers",
            "above 0: chaos comes with depth",
            0.05,
            math.inf,
            "as above",
            lambda n: _deepest(n, "non_convexity plain") - n.at("non_convexity plain", 20),
        ),
        *_test_errors(_LI_TABLE, "half a point"),
    ),
    method="SGD with Nesterov momentum and weight decay 0.0005; a plane of two filter-normalized "
    "random directions on [−1, 1]² (`loss_surface`); non-convexity is the mean of |λ_min| ÷ "
    "|λ_max| over the plane, 0 where it is convex.",
    settings={
        "tiny": {"seeds": 1, "depths": (8,), "options": "-w4", "batch": 16, "points": 3}
        | {"recipe": {"steps": 3, "batch_size": 32}, "lr": {"plain": 0.05, "resnet": 0.05}},
        "laptop": {"seeds": 4, "depths": (20, 56), "options": "-w8", "batch": 100, "points": 9}
        | {"recipe": {"steps": 150, "batch_size": 64, "weight_decay": 5e-4, "nesterov": True}}
        | {"lr": {"plain": 0.02, "resnet": 0.05}},
        "full": {"seeds": 1, "depths": (20, 56, 110), "options": "", "batch": 10000, "points": 51}
        | {
            "recipe": {"steps": 117300, "batch_size": 128, "weight_decay": 5e-4, "nesterov": True}
            | {"milestones": (58500, 87900, 107400), "augment": True}
        }
        | {"lr": {"plain": 0.01, "resnet": 0.1}},
    },
    changed={
        "tiny": "8 layers, 3 steps, 9 points.",
        "laptop": "digits of 8×8 pixels, 150 steps in place of 300 epochs, width 8 in place of "
        "16, no augmentation, 9 × 9 points in place of 51 × 51, over 100 images; batch norms "
        "re-estimated at each point, since after so few steps the running statistics lag.",
    },
    measure=_li2018,
    discussion="Plain and residual nets are compared after equally many steps, not at equal loss. "
    "That the plain twin is the sharper and less convex one is seen. Two things are not: the plane "
    "of the residual net is not almost convex ({convex}), with width 8, 150 steps and batch norms "
    "re-estimated at each point; and the plain net of 56 layers, which has hardly trained by then, "
    "is no less convex than that of 20 (difference {depth}).",
    parts=_nets,
    needs_data=True,
)

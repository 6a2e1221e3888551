"""The coordinate check on nets whose parametrization is right, or wrong in one known place."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from analyzer.networks.data import dataset
from analyzer.studies.coordinates import CoordinateCheck, coordinate_check

DATA = dataset("digits")
IMAGES = (DATA.train_inputs[:32], DATA.train_targets[:32])
BATCH = (IMAGES[0].flatten(1), IMAGES[1])
TOKENS = ((IMAGES[0].flatten(1)[:, :16] > 0).long(), IMAGES[1])
WIDTHS = (32, 64, 128, 256)
SGD, ADAM = torch.optim.SGD, torch.optim.Adam


def mlp(width: int, *, bias: bool = True) -> nn.Sequential:
    """Layers 0 (input), 2 and 4 (hidden) and 6 (output) as PyTorch initializes them."""
    sizes = (64, width, width, width, 10)
    layers = [nn.Linear(*pair, bias=bias) for pair in itertools.pairwise(sizes)]
    between = [layer for one in layers[:-1] for layer in (one, nn.ReLU())]
    return nn.Sequential(*between, layers[-1])


def maximal(width: int, **powers: float) -> nn.Sequential:
    """The same in the maximal-update parametrization; layers too large by a power of the width."""
    net = mlp(width)
    nn.init.normal_(net[6].weight, std=4 / width)  # type: ignore[arg-type]
    for name, power in powers.items():
        weight: Any = net[int(name.removeprefix("layer"))].weight
        nn.init.normal_(weight, std=float(weight.detach().std()) * (width / 64) ** power)
    return net


def rates(kind: type[torch.optim.Optimizer], **powers: float) -> Callable[[Any], Any]:
    """Learning rates of the maximal-update parametrization; some wrong by a power of the width."""

    def build(net: nn.Sequential) -> torch.optim.Optimizer:
        n: float = net[6].in_features / 64  # type: ignore[assignment, operator]
        if kind is SGD:
            by_name = {"0.weight": n, "6.weight": 1 / n, "0.bias": n, "2.bias": n, "4.bias": n}
        else:
            by_name = dict.fromkeys(("2.weight", "4.weight", "6.weight"), 1 / n)
        wrong = {name.removeprefix("layer").replace("_", "."): x for name, x in powers.items()}
        base = 0.02 if kind is SGD else 1e-3
        return kind(
            {"params": [p], "lr": base * by_name.get(name, 1.0) * n ** wrong.get(name, 0.0)}
            for name, p in net.named_parameters()
        )  # type: ignore[call-arg]

    return build


def check(build: Callable[[int], nn.Module], optimizer: Any, **options: Any) -> CoordinateCheck:
    given = {"data": [BATCH], "steps": 1, **options}
    return coordinate_check(build, given.pop("widths", WIDTHS), build_optimizer=optimizer, **given)


def plain(kind: type[torch.optim.Optimizer], rate: float) -> Callable[[nn.Module], Any]:
    return lambda net: kind(net.parameters(), lr=rate)  # type: ignore[call-arg]


class Residual(nn.Module):
    """Two residual blocks behind norms, and a convolution before them on demand."""

    def __init__(self, width: int, *, is_convolution: bool) -> None:
        super().__init__()
        layer: Any = nn.Conv2d if is_convolution else nn.Linear
        more = {"kernel_size": 3, "padding": 1} if is_convolution else {}
        norm: Any = nn.BatchNorm2d if is_convolution else nn.LayerNorm
        self.stem = layer(1 if is_convolution else 64, width, **more)
        self.norms = nn.ModuleList(norm(width) for _ in range(2))
        self.branches = nn.ModuleList(layer(width, width, **more) for _ in range(2))
        self.out = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, branch in zip(self.norms, self.branches, strict=True):
            x = x + branch(norm(x).relu())
        return self.out(x.flatten(2).mean(2) if x.dim() == 4 else x)


class Transformer(nn.Module):
    """Tokens, positions that the net owns, a layer of PyTorch's encoder with dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.out = nn.Embedding(2, width), nn.Linear(width, 10)
        self.positions = nn.Parameter(torch.randn(16, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(self.tokens(x) + self.positions).mean(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "rate"), [(SGD, 0.1), (ADAM, 1e-3)])
def test_a_standard_net_passes(bias: bool, kind: Any, rate: float) -> None:
    found = check(lambda width: mlp(width, bias=bias), plain(kind, rate))
    assert found.passes, found.sentence()
    own = {
        one.layer: one.expected
        for one in found.growths
        if (one.quantity, one.parameter) == ("own update", "weight")
    }
    expected = (-0.5, 0.5, 0.5, 1.0) if kind is SGD else (0.0, 1.0, 1.0, 1.0)
    assert tuple(own.values()) == expected


@pytest.mark.parametrize("power", [0, 1, -1])
def test_samples_that_act_less_together_at_larger_widths_are_no_fault(power: int) -> None:
    # Small weights, and biases that fall with width: what samples have in common falls with them.
    generator = torch.Generator().manual_seed(0)
    data = (
        torch.randn(128, 64, generator=generator),
        torch.randint(10, (128,), generator=generator),
    )

    def build(width: int) -> nn.Sequential:
        sizes = (64, *(width,) * 5, 10)
        layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        return nn.Sequential(*[part for one in layers for part in (one, nn.Tanh())][:-1])

    def optimizer(net: Any) -> torch.optim.Optimizer:
        wrong = (net[0].out_features / 64) ** power
        return SGD(
            {"params": [p], "lr": 0.1 * (wrong if name == "8.weight" else 1)}
            for name, p in net.named_parameters()
        )

    found = check(build, optimizer, data=[data])
    assert found.look_at == ("8" if power else None), found.sentence()
    (one,) = (o for o in found.growths if (o.layer, o.quantity) == ("6", "own update") and o.lowest)
    assert (
        one.lowest is not None and one.lowest < 0.25 and one.exponent < 0.25 and one.expected == 0.5
    )


@pytest.mark.parametrize("kind", [SGD, ADAM])
def test_a_maximal_update_net_passes(kind: Any) -> None:
    found = check(maximal, rates(kind), parametrization="maximal-update", steps=2)
    assert found.passes, found.sentence()


def test_behind_a_readout_of_zeros_the_second_step_is_judged() -> None:
    def build(width: int) -> nn.Sequential:
        net = maximal(width)
        nn.init.zeros_(net[6].weight)  # type: ignore[arg-type]
        return net

    # Its weight decay moves the weights in the first step, without a gradient.
    found = check(build, rates(torch.optim.AdamW), parametrization="maximal-update", steps=2)
    assert found.passes, found.sentence()
    own = {
        one.step: one.reason
        for one in found.growths
        if (one.layer, one.parameter, one.quantity) == ("4", "weight", "own update")
    }
    assert own == {1: "no gradient arrives at a width", 2: ""}
    wrong = rates(torch.optim.AdamW, layer4_weight=1)
    assert check(build, wrong, parametrization="maximal-update", steps=2).look_at == "4"


@pytest.mark.parametrize("is_convolution", [True, False])
def test_a_residual_net_passes(is_convolution: bool) -> None:
    found = check(
        lambda width: Residual(width, is_convolution=is_convolution),
        plain(SGD, 0.02),
        data=[IMAGES if is_convolution else BATCH],
        widths=(8, 16, 32, 64) if is_convolution else WIDTHS,
    )
    assert found.passes, found.sentence()


def test_a_transformer_passes_and_what_cannot_be_judged_has_a_reason() -> None:
    found = check(Transformer, plain(ADAM, 1e-3), data=[TOKENS], widths=(16, 32, 64))
    assert found.passes, found.sentence()
    reasons = {
        (one.layer, one.parameter): one.reason
        for one in found.growths
        if one.quantity == "own update"
    }
    assert reasons["layer.self_attn", "in_proj_weight"] == "the output is not linear in it"
    assert reasons["Transformer", "positions"] == "the output is not linear in it"
    assert not reasons["layer.self_attn", "out_proj.weight"]
    assert all(one.reason for one in found.growths if one.verdict == "not judged")


@pytest.mark.parametrize("kind", [SGD, ADAM])
@pytest.mark.parametrize(
    ("parameter", "power"),
    [("0.weight", 1), ("2.weight", 1), ("4.weight", 1), ("4.weight", -1), ("6.weight", 1)],
)
def test_a_wrong_learning_rate_is_found_in_its_layer(kind: Any, parameter: str, power: int) -> None:
    wrong = {f"layer{parameter.replace('.', '_')}": float(power)}
    found = check(maximal, rates(kind, **wrong), parametrization="maximal-update", seeds=3)
    one = found.culprit
    assert one is not None
    assert (one.quantity, f"{one.layer}.{one.parameter}") == ("own update", parameter)
    assert one.exponent == pytest.approx(power, abs=0.25)


def test_a_wrong_learning_rate_of_a_bias_is_found() -> None:
    found = check(maximal, rates(ADAM, layer2_bias=1), parametrization="maximal-update", seeds=3)
    said = "own update of layer 2 (bias) grows as width^1"
    assert found.sentence().startswith(said) and "expected at most 0" in found.sentence()
    # One that learns more slowly at larger widths harms nothing.
    found = check(maximal, rates(ADAM, layer2_bias=-1), parametrization="maximal-update")
    assert found.passes


@pytest.mark.parametrize("layer", ["0", "2", "4", "6"])
def test_a_wrong_initialization_is_found_in_its_layer(layer: str) -> None:
    build = lambda width: maximal(width, **{f"layer{layer}": 0.5})  # noqa: E731
    found = check(build, rates(ADAM), parametrization="maximal-update")
    assert found.culprit is not None
    assert (found.culprit.quantity, found.look_at) == ("own activation", layer)


class Tied(nn.Module):
    """The readout has the weights of the embedding; it is divided by the width, or is not."""

    def __init__(self, width: int, *, is_right: bool) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(10, width), nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, 10, bias=False)
        self.out.weight = self.embedding.weight
        self.scale = 16 / width if is_right else 0.25

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x).mean(1)
        return self.out(self.scale * (x + self.hidden(x).relu()))


def test_tied_weights_are_judged_in_both_places() -> None:
    def built(is_right: bool) -> CoordinateCheck:
        return check(
            lambda width: Tied(width, is_right=is_right),
            lambda net: ADAM(
                {"params": [p], "lr": 1e-3 * (1 if name.startswith("emb") else 32 / len(p))}
                for name, p in net.named_parameters()
            ),
            data=[TOKENS],
            parametrization="maximal-update",
        )

    assert built(True).passes, built(True).sentence()
    wrong = built(False)
    assert (wrong.outcome, wrong.look_at) == ("differs", "out")


def test_what_two_seeds_leave_open_is_undecided() -> None:
    found = check(mlp, plain(SGD, 0.1), seeds=2)
    unclear = [one for one in found.growths if one.verdict == "unclear"]
    judged = [one for one in found.growths if one.verdict != "not judged"]
    assert (found.outcome, found.passes) == ("undecided", False) and unclear
    assert found.sentence().startswith(f"undecided: {len(unclear)} of {len(judged)} exponents ")
    # Without a number it takes as many as decide.
    assert check(mlp, plain(SGD, 0.1)).seeds >= 6


def test_nothing_judged_is_no_pass() -> None:
    found = CoordinateCheck("standard", WIDTHS, 1, 6, ())
    assert (found.passes, found.sentence()) == (False, "undecided: no exponent can be judged.")

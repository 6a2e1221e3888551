"""Shattered gradients: what becomes of the correlation of different inputs with depth."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from analyzer.live import gradient_autocorrelation, gradient_correlation
from analyzer.networks.blocks import private_random_state
from analyzer.networks.zoo import MLP
from analyzer.studies.measuring import gaussian
from analyzer.studies.published import Claim, Experiment, Numbers, slope
from analyzer.studies.reproduce import Case

__all__ = ["BALDUZZI2017"]

Row = tuple[str, float | None, float]


# Balduzzi et al. 2017: shattered gradients ---------------------------------------------------


class _MaskedNet(nn.Module):
    """What the theorems assume: each unit lets each input through with probability ½."""

    def __init__(self, depth: int, width: int, batch: int, residual: bool, seed: int) -> None:
        super().__init__()
        self.residual = residual
        with private_random_state(seed):
            layers = [nn.Linear(width, width, bias=False) for _ in range(depth)]
            self.layers = nn.ModuleList(layers)
            for layer in layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            self.masks = [torch.rand(batch, width).round() for _ in range(depth)]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, width]`` to the same shape."""
        for layer, mask in zip(self.layers, self.masks, strict=True):
            y = layer(mask * x)
            x = x + y if self.residual else y
        return x


def _with_batch_statistics(net: nn.Module, inputs: Tensor) -> nn.Module:
    """Return the net in eval mode with the statistics of this batch, so samples are apart."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        net(inputs)
    return net.eval()


def _at_input(net: nn.Module, inputs: Tensor, first: str) -> float:
    """Return the correlation of the gradients at the first layer, the deepest from the output."""
    found = gradient_correlation(net, inputs)
    return float(dict(zip(found["name"], found["correlation"], strict=True))[first])


def _balduzzi2017(case: Case) -> Iterator[Row]:
    width, batch = case.settings["width"], case.settings["batch"]
    inputs = gaussian(case.seed, batch, width)
    for label, residual in (("plain", False), ("residual", True)):
        for length in (2, 4, 8):
            seed = 1000 * case.seed + length
            masked = _MaskedNet(length + 1, width, batch, residual, seed)
            # Below the first layer the gradient has passed the masks of the others.
            yield f"masked {label}", float(length), _at_input(masked, inputs, "layers.0")
    for label, norm, residual in (
        ("plain", None, False),
        ("plain norm", "batch", False),
        ("residual norm", "batch", True),
    ):
        for length in case.settings["depths"]:
            net = _net(width, width, length, norm, residual, case.seed)
            value = _at_input(_with_batch_statistics(net, inputs), inputs, "input")
            yield label, float(length), value
    grid = torch.linspace(-2, 2, 256)[:, None]
    deepest = max(case.settings["depths"])
    for label, length, norm, residual in (
        ("shallow", 1, None, False),
        ("plain norm", deepest, "batch", False),
        ("residual norm", deepest, "batch", True),
    ):
        net = _net(1, width, length, norm, residual, case.seed)
        lags = gradient_autocorrelation(_with_batch_statistics(net, grid), grid)
        yield f"autocorrelation {label}", None, float(lags["autocorrelation"][1])


def _net(inputs: int, width: int, length: int, norm: str | None, residual: bool, seed: int) -> MLP:
    """Return a net with the given number of ReLUs between the first layer and the output."""
    net = MLP(
        inputs,
        1,
        depth=length + 1,
        width=width,
        norm=norm,
        residual=residual,
        # The norm and the ReLU stand inside of a residual branch, as in the paper.
        preactivation=residual,
        initialization="he",
        seed=seed,
    )
    if inputs == 1:
        # Without biases all kinks of a net with one input would lie at 0.
        with private_random_state(seed):
            for module in net.modules():
                if isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    nn.init.uniform_(module.bias, -bound, bound)
    return net


def _law(numbers: Numbers, quantity: str) -> float:
    """Return the exponent of a correlation over depth."""
    return slope((math.log(x), math.log(value)) for x, value in numbers.curve(quantity, low=4))


BALDUZZI2017 = Experiment(
    name="balduzzi2017",
    title="Gradients of different inputs lose their correlation with depth: in plain nets as "
    "1/2^L, in residual ones far more slowly",
    source="Balduzzi et al. (2017), The shattered gradients problem, theorems 1 to 3, "
    "arXiv:1702.08591",
    claims=(
        *(
            Claim(
                f"masked_{label}_{length}",
                f"correlation after {length} layers, {label}, masks drawn for each input",
                f"{law} = {base**length:.3g}",
                base**length - 0.05,
                base**length + 0.05,
                "0.05: half of the spread of one cosine at width 200",
                lambda n, label=label, length=length: n.at(  # type: ignore[misc]
                    f"masked {label}", length
                ),
                base**length,
            )
            for label, base, law in (("plain", 0.5, "1/2^L"), ("residual", 0.75, "(3/4)^L"))
            for length in (2, 4, 8)
        ),
        *(
            Claim(
                f"real_{quantity}_{length}",
                f"correlation after {length} layers, {quantity}, real ReLUs, Gaussian inputs",
                f"1/2^L = {0.5**length:.3g}",
                0.5**length / 1.5,
                0.5**length * 1.5,
                "half as much again, or less: what the law is without its assumption",
                lambda n, quantity=quantity, length=length: n.at(  # type: ignore[misc]
                    quantity, length
                ),
                0.5**length,
            )
            for quantity in ("plain", "plain norm")
            for length in (2, 6)
        ),
        Claim(
            "residual_norm_law",
            "exponent of the correlation over depth, residual with batch norm, real ReLUs",
            "−1/2: as 1/(β√L)",
            -0.65,
            -0.35,
            "0.15: between no fall and 1/L",
            lambda n: _law(n, "residual norm"),
            -0.5,
        ),
        Claim(
            "residual_norm",
            "correlation at the greatest depth, residual with batch norm",
            "1/√50 = 0.141, up to a constant",
            0.07,
            0.28,
            "twice as much, or half",
            lambda n: n.curve("residual norm")[-1][1],
            50**-0.5,
        ),
        Claim(
            "white",
            "correlation of gradients at neighboring points of a line, plain, greatest depth",
            "white noise (figure): 0",
            -0.1,
            0.1,
            "0.1: a tenth of what a shallow net has",
            lambda n: n["autocorrelation plain norm"],
            0.0,
        ),
        Claim(
            "brown",
            "the same, one hidden layer",
            "brown noise (figure): near 1",
            0.9,
            math.inf,
            "0.1",
            lambda n: n["autocorrelation shallow"],
        ),
        Claim(
            "between",
            "the same, residual, greatest depth",
            "between the two (figure)",
            0.1,
            0.9,
            "the two bounds above",
            lambda n: n["autocorrelation residual norm"],
        ),
    ),
    method="mean cosine over all pairs of inputs of ∂(sum of outputs)/∂(activation) "
    "(`gradient_correlation`) at the first layer of fully connected nets of each depth, He's "
    "initialization; batch norms with the statistics of the batch. The line: 256 scalar inputs "
    "from −2 to 2, nets with batch norm, biases uniform within ±1/√fan-in "
    "(`gradient_autocorrelation`, lag 1).",
    settings={
        "tiny": {"seeds": 2, "width": 48, "batch": 16, "depths": (2, 6, 10)},
        "laptop": {"seeds": 12, "width": 200, "batch": 24, "depths": (2, 4, 6, 10, 20, 50)},
        "full": {"seeds": 50, "width": 200, "batch": 256, "depths": (2, 4, 6, 10, 20, 50)},
    },
    changed={
        "tiny": "width 48, 10 layers.",
        "laptop": "24 inputs a net.",
    },
    measure=_balduzzi2017,
    discussion="Where the masks are drawn for each input, as the theorems assume, both laws hold. "
    "With real ReLUs two Gaussian inputs switch many units alike: after 6 layers the correlation "
    "of the plain net is {real_plain_6}, not 0.0156. Batch norm centers the activations and brings "
    "it down to {real_plain norm_6}. In the residual net with batch norm it falls faster than "
    "1/√L, exponent {residual_norm_law}, and is {residual_norm} at depth 50: the theorem bounds "
    "its order, not its size.",
)

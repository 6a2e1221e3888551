"""What papers say of depth: the spread of gradients, layer norms, plain and residual MLPs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from analyzer.networks.blocks import private_random_state
from analyzer.networks.zoo import MLP
from analyzer.studies.measuring import gaussian
from analyzer.studies.published import Claim, Experiment, Numbers, slope
from analyzer.studies.reproduce import Case

__all__ = ["HANIN2018", "RESMLP", "XIONG2020"]

Row = tuple[str, float | None, float]


# Hanin 2018: widths alone set how gradients spread over seeds -----------------------------------


def _shapes(settings: dict[str, int]) -> dict[str, tuple[int, int]]:
    """The nets by name: layers and width; β = layers / width."""
    width = settings["width"]
    return {
        "0.2": (width // 5, width),
        "0.5": (width // 2, width),
        "1": (width, width),
        "0.5 wide": (width, 2 * width),
    }


def _hanin2018(case: Case) -> Iterator[Row]:
    nets = case.settings["nets"]
    for name, (layers, width) in _shapes(dict(case.settings)).items():
        logs = []
        for number in range(nets):
            seed = case.seed * nets + number
            net = MLP(width, 1, depth=layers + 1, width=width, initialization="he", seed=seed)
            trunk = nn.Sequential(net.input, net.input_relu, net.blocks)
            drawn = gaussian(seed, 2, 1, width)
            # Jv as the derivative of Jᵀu by u: forward mode compiles what torch deprecates.
            point = drawn[0].clone().requires_grad_()
            output = trunk(point)
            u = torch.zeros_like(output, requires_grad=True)
            (back,) = torch.autograd.grad(output, point, u, create_graph=True)
            (pushed,) = torch.autograd.grad(back, u, drawn[1] / drawn[1].norm())
            logs.append(2 * math.log(float(pushed.detach().double().norm())))
        yield f"variance {name}", None, statistics.variance(logs)
        yield f"mean {name}", None, statistics.fmean(logs)


HANIN2018 = Experiment(
    name="hanin2018",
    title="How far gradients spread over seeds is set by Σ 1/width alone",
    source="Hanin (2018), Which neural net architectures give rise to exploding and vanishing "
    "gradients?, arXiv:1801.03744; Hanin & Nica (2018), Products of many large random matrices and "
    "gradients in deep neural networks, arXiv:1812.05994",
    claims=(
        *(
            Claim(
                f"variance_{beta.replace('.', '')}",
                f"Var ln ‖Jv‖² over nets ÷ β, β = Σ 1/width = {beta}",
                "5 (the limit of many layers and units)",
                4.25,
                5.75,
                "15 %: at width 40 the next order, layers ÷ width², is a few percent",
                lambda n, beta=beta: n[f"variance {beta}"] / float(beta),  # type: ignore[misc]
                5.0,
            )
            for beta in ("0.2", "0.5", "1")
        ),
        Claim(
            "mean",
            "mean of ln ‖Jv‖² ÷ β, β = 1",
            "−5/2: the typical gradient falls, the mean of ‖Jv‖² stays 1",
            -2.875,
            -2.125,
            "15 %, as above",
            lambda n: n["mean 1"],
            -2.5,
        ),
        Claim(
            "same_sum",
            "variance of nets twice as deep and twice as wide ÷ that of the first, β = 0.5",
            "1: nothing but the sum counts",
            0.8,
            1.25,
            "a fifth: two variances from hundreds of nets each",
            lambda n: n["variance 0.5 wide"] / n["variance 0.5"],
            1.0,
        ),
    ),
    method="plain fully connected ReLU nets, He's initialization; J from a Gaussian input to the "
    "last hidden layer, v a random unit vector. A seed is a group of nets: the "
    "variance within it is one number.",
    settings={
        "tiny": {"seeds": 3, "nets": 12, "width": 10},
        "laptop": {"seeds": 12, "nets": 60, "width": 40},
        "full": {"seeds": 40, "nets": 500, "width": 200},
    },
    changed={
        "tiny": "groups of 12 nets of width 10.",
        "laptop": "widths 40 and 80 in place of the limit; 720 nets for each β.",
    },
    measure=_hanin2018,
    discussion="At finite width Var ln ‖Jv‖² ÷ β comes out a little above 5 ({variance_02}, "
    "{variance_05}, {variance_1}): the next order in 1/width, with the same sign in each.",
)


# Xiong et al. 2020: where the layer norm of a transformer stands --------------------------------


class _Transformer(nn.Module):
    """An encoder on given embeddings, with a norm at its end where the norms come first."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        norm_first: bool,
        scheme: str,
        seed: int,
        classes: int = 100,
    ) -> None:
        super().__init__()
        hidden = width if scheme == "paper" else 4 * width
        with private_random_state(seed):
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    width, heads, hidden, 0.0, batch_first=True, norm_first=norm_first
                )
                for _ in range(layers)
            )
            self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()
            self.output = nn.Linear(width, classes, bias=False)
            if scheme == "paper":
                for name, parameter in self.named_parameters():
                    if parameter.dim() > 1:
                        nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
                    if name.endswith("in_proj_weight"):
                        # Queries and keys are zero in the paper: attention is a mean.
                        nn.init.zeros_(parameter[: 2 * width])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, positions, width]`` to ``[batch · positions, classes]``."""
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.output(self.norm(x))
        return scores.flatten(0, 1)


def _xiong2020(case: Case) -> Iterator[Row]:
    width, heads, positions = (case.settings[key] for key in ("width", "heads", "positions"))
    inputs = gaussian(case.seed, 4, positions, width)
    targets = torch.randint(
        100, (4 * positions,), generator=torch.Generator().manual_seed(case.seed)
    )
    for scheme in ("paper", "default"):
        for label, norm_first in (("post", False), ("pre", True)):
            for layers in case.settings["depths"]:
                net = _Transformer(layers, width, heads, norm_first, scheme, case.seed)
                weight = net.get_parameter(f"layers.{layers - 1}.linear2.weight")
                loss = cross_entropy(net(inputs), targets)
                (gradient,) = torch.autograd.grad(loss, weight)
                yield f"{label} {scheme}", float(layers), float(gradient.double().norm())


def _depth_law(numbers: Numbers, quantity: str) -> float:
    return slope((math.log(x), math.log(value)) for x, value in numbers.curve(quantity))


def _gap(numbers: Numbers, scheme: str) -> float:
    ratios = [
        post / pre
        for (_, post), (_, pre) in zip(
            numbers.curve(f"post {scheme}"), numbers.curve(f"pre {scheme}"), strict=True
        )
    ]
    return ratios[-1]


XIONG2020 = Experiment(
    name="xiong2020",
    title="With the layer norm after the addition the gradients near the output are large at any "
    "depth, with the norm inside the branch they fall with depth",
    source="Xiong et al. (2020), On layer normalization in the transformer architecture, "
    "theorem 1, arXiv:2002.04745",
    claims=(
        *(
            Claim(
                f"{label}_{scheme}",
                f"exponent over depth of the gradient of the last layer's W², {label}-norm, "
                f"{words}",
                law,
                exponent - 0.1,
                exponent + 0.1,
                "0.1: a fifth of what tells the two apart",
                lambda n, label=label, scheme=scheme: _depth_law(  # type: ignore[misc]
                    n, f"{label} {scheme}"
                ),
                exponent,
            )
            for scheme, words in (
                ("paper", "weights and attention as the theorem assumes"),
                ("default", "PyTorch's initialization"),
            )
            for label, exponent, law in (
                ("post", 0.0, "O(d √ln d), exponent 0"),
                ("pre", -0.5, "O(d √(ln d / L)), exponent −1/2"),
            )
        ),
        *(
            Claim(
                f"gap_{scheme}",
                f"post-norm ÷ pre-norm at the greatest depth, {words}",
                "about √L, the ratio of the two bounds",
                1.5,
                math.inf,
                "large means: half as much again at least",
                lambda n, scheme=scheme: _gap(n, scheme),  # type: ignore[misc]
            )
            for scheme, words in (
                ("paper", "as the theorem assumes"),
                ("default", "PyTorch's initialization"),
            )
        ),
    ),
    method="encoders on Gaussian embeddings with random classes at each position, at "
    "initialization; the norm of ∂L/∂W² of the last feed-forward layer against the number of "
    "layers L, a line through the logarithms. As the theorem assumes: Gaussian weights of "
    "variance 1/width, hidden width of the feed-forward layer = width, attention a plain mean.",
    settings={
        "tiny": {"seeds": 2, "width": 32, "heads": 1, "positions": 6, "depths": (2, 4, 8)},
        "laptop": {"seeds": 12, "width": 64, "heads": 1, "positions": 12, "depths": (4, 8, 16, 32)},
        "full": {
            "seeds": 20,
            "width": 512,
            "heads": 1,
            "positions": 32,
            "depths": (6, 8, 10, 12, 14, 24, 48),
        },
    },
    changed={
        "tiny": "width 32, up to 8 layers.",
        "laptop": "encoders alone, width 64, Gaussian embeddings in place of translation.",
    },
    measure=_xiong2020,
    discussion="The fall of the pre-norm gradient is seen where weights are as the theorem assumes "
    "(exponent {pre_paper}). PyTorch's own initialization of a TransformerEncoderLayer makes the "
    "branches small beside the embeddings, so that the stream has hardly grown after the first "
    "layers, and the fall is slower at these depths (exponent {pre_default}).",
)


# Plain and residual MLPs of one initialization --------------------------------------------------


def _resmlp(case: Case) -> Iterator[Row]:
    layers, width, samples = (case.settings[key] for key in ("layers", "width", "samples"))
    generator = torch.Generator().manual_seed(case.seed)
    inputs = torch.rand(samples, width, generator=generator) * 2 - 1
    for label, residual in (("plain", False), ("residual", True)):
        with private_random_state(case.seed):  # the same weights for both
            chain = [_Block(width, layers**-0.5, residual) for _ in range(layers)]
        blocks, first = nn.Sequential(*chain), chain[0].linear.weight
        optimizer = torch.optim.Adam(blocks.parameters(), 1e-3)
        losses = []
        for _ in range(case.settings["steps"]):
            chosen = inputs[torch.randint(samples, (64,), generator=generator)]
            optimizer.zero_grad()
            loss = mse_loss(blocks(chosen), chosen)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
            optimizer.step()
        loss = mse_loss(blocks(inputs), inputs)
        (gradient,) = torch.autograd.grad(loss, first)
        yield f"last gradient {label}", None, float(gradient.double().norm())
        yield f"first loss {label}", None, losses[0]
        yield f"last loss {label}", None, statistics.fmean(losses[-20:])


class _Block(nn.Module):
    """``x + relu(Wx)``, or ``relu(Wx)``, from He's weights times a scale."""

    def __init__(self, width: int, scale: float, residual: bool) -> None:
        super().__init__()
        self.linear, self.relu, self.residual = nn.Linear(width, width), nn.ReLU(), residual
        nn.init.normal_(self.linear.weight, std=scale * math.sqrt(2 / width))
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, width]`` to the same shape."""
        y: Tensor = self.relu(self.linear(x))
        return x + y if self.residual else y


RESMLP = Experiment(
    name="resmlp",
    title="Plain and residual MLPs of 20 layers from one initialization, learning the identity",
    source="AmberLJC/resmlp_comparison, GitHub",
    claims=(
        Claim(
            "last gradient plain",
            "‖∂L/∂W‖ of the first layer, plain, after training",
            "8.65e-19",
            0.0,
            1e-16,
            "all that is below 1e-16 moves no weight in float32; 0 where all units are dead",
            number=8.65e-19,
        ),
        Claim(
            "last gradient residual",
            "the same, residual",
            "3.78e-3",
            1.9e-3,
            7.6e-3,
            "twice as much, or half: the last batch of one training",
            number=3.78e-3,
        ),
        Claim(
            "first loss residual",
            "loss at the first step, residual",
            "13.8",
            11.0,
            16.6,
            "a fifth: the spread of initial weights",
            number=13.8,
        ),
        Claim(
            "last loss residual",
            "loss at the end, residual",
            "0.063",
            0.05,
            0.076,
            "a fifth",
            number=0.063,
        ),
        Claim(
            "last loss plain",
            "loss at the end, plain: that of an output of zeros",
            "0.333",
            0.32,
            0.346,
            "4 %: the mean square of the inputs",
            number=1 / 3,
        ),
    ),
    method="20 layers of width 64, `x + relu(Wx)` or `relu(Wx)`, He's weights divided by √20, no "
    "biases moved from 0; the mean square error of y = x for 1,024 inputs uniform in ±1; Adam "
    "0.001, 500 steps of 64 inputs.",
    settings={
        "tiny": {"seeds": 2, "layers": 20, "width": 64, "samples": 256, "steps": 5},
        "laptop": {"seeds": 8, "layers": 20, "width": 64, "samples": 1024, "steps": 500},
        "full": {"seeds": 20, "layers": 20, "width": 64, "samples": 1024, "steps": 500},
    },
    changed={
        "tiny": "256 inputs, 5 steps.",
        "laptop": "nothing known: the setting is put together from what its authors say of it.",
    },
    measure=_resmlp,
    discussion="The source gives the gradients after training and does not say which batch; here "
    "they are of all inputs. The plain net's gradient is {last gradient plain} and that of the "
    "residual one {last gradient residual}: with these weights a plain layer passes on about "
    "1/√20 of it.",
)

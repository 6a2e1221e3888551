"""What papers say of networks that have not been trained yet: exact factors and laws of depth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from analyzer.joins.find import find_joins
from analyzer.joins.interception import skip_scale
from analyzer.live import gradient_splits
from analyzer.networks.zoo import MLP, zoo
from analyzer.studies.measuring import gaussian, layer_sizes
from analyzer.studies.published import Claim, Experiment, Numbers, slope
from analyzer.studies.reproduce import Case

__all__ = ["DESMITH2020", "HE2016", "YANG2019"]

Row = tuple[str, float | None, float]
_CLASSES = 10


def _classes(seed: int, count: int) -> Tensor:
    return torch.randint(_CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


# He et al. 2016: a constant factor on every shortcut -----------------------------------------


_SCALES = (0.5, 0.9, 1.1)


def _he2016(case: Case) -> Iterator[Row]:
    blocks, depth = case.settings["blocks"], case.settings["depth"]
    name = f"resnet{depth}-preact"
    net = zoo(name, in_channels=1, num_classes=_CLASSES, image_size=8, seed=case.seed)
    inputs, targets = gaussian(case.seed, 8, 1, 8, 8), _classes(case.seed, 8)
    plain = [join.index for join in find_joins(net, inputs) if not join.shortcut_layers]
    for scale in _SCALES:
        with skip_scale(net, scale):
            splits = gradient_splits(net, inputs, targets, cross_entropy).set_index("join")
        found = (
            splits.loc[plain, "shortcut_gradient_norm"] / splits.loc[plain, "join_gradient_norm"]
        )
        yield "factor", scale, float(found.iloc[(found - scale).abs().argmax()])
    # Without branches only the shortcuts carry a gradient: the product over all blocks is seen.
    bare = MLP(
        64,
        _CLASSES,
        depth=blocks + 2,
        width=16,
        residual=True,
        preactivation=True,
        branch_scale=0.0,
        initialization="he",
        seed=case.seed,
    )
    inputs = gaussian(case.seed, 8, 64)
    for scale in _SCALES:
        with skip_scale(bare, scale):
            splits = gradient_splits(bare, inputs, targets, cross_entropy)
        first = splits["fork_gradient_norm"].iloc[0]
        product = first / splits["join_gradient_norm"].iloc[-1]
        yield "factor_a_block", scale, float(product ** (1 / blocks))


HE2016 = Experiment(
    name="he2016",
    title="A constant factor on every shortcut multiplies the gradient by itself at each block",
    source="He et al. (2016), Identity mappings in deep residual networks, §3.1 and table 1, "
    "arXiv:1603.05027",
    claims=(
        *(
            Claim(
                f"{curve}_{scale}",
                f"{what}, shortcuts times {scale}: relative distance from {scale}",
                "0: the factor is exact",
                0.0,
                1e-5,
                "rounding of float32; of several joins the one that is farthest off",
                lambda n, curve=curve, scale=scale: (  # type: ignore[misc]
                    abs(n.at(curve, scale) / scale - 1)
                ),
                0.0,
            )
            for curve, what in (
                ("factor", "gradient through a shortcut ÷ gradient at its join"),
                ("factor_a_block", "gradient at the input ÷ at the last join, per block"),
            )
            for scale in _SCALES
        ),
    ),
    method="exact splits of the gradient (`gradient_splits`) under `skip_scale`, at the identity "
    "shortcuts of a pre-activation net on Gaussian images, float32; the product in a net of 54 "
    "blocks whose branches are zero, from the last join to the first fork.",
    settings={
        "tiny": {"seeds": 2, "depth": 20, "blocks": 9},
        "laptop": {"seeds": 3, "depth": 56, "blocks": 54},
        "full": {"seeds": 20, "depth": 110, "blocks": 54},
    },
    changed={
        "tiny": "20 layers in place of 110.",
        "laptop": "56 layers in place of 110; the claim holds for any weights and any data.",
    },
    measure=_he2016,
    discussion="The test errors of the paper's table 1 (6.61 % with the identity, 12.35 % with "
    "both sides times 0.5) need the trained net and are not measured here.",
)


# Yang et al. 2019: batch norm makes plain nets explode ------------------------------------------


_GROWTH = math.sqrt(math.pi / (math.pi - 1))


def _yang2019(case: Case) -> Iterator[Row]:
    depth, width, batch = (case.settings[key] for key in ("depth", "width", "batch"))
    inputs, targets = gaussian(case.seed, batch, width), _classes(case.seed, batch)
    for quantity, factor, residual in (
        ("gradient", 1.0, False),
        ("gradient_doubled", 2.0, False),
        ("gradient_residual", 1.0, True),
    ):
        net = MLP(
            width,
            _CLASSES,
            depth=depth,
            width=width,
            norm="batch",
            residual=residual,
            initialization="he",
            seed=case.seed,
        )
        with torch.no_grad():
            for module in net.blocks.modules():
                if isinstance(module, nn.Linear):
                    module.weight.mul_(factor)
        sizes = layer_sizes(net, inputs, targets)
        ends = [one for one in sizes if one.name.startswith("blocks.") and "relu" in one.name]
        for place, one in enumerate(ends):
            yield quantity, float(place), float(one.gradient_norm or math.nan)


def _growth(numbers: Numbers, quantity: str) -> float:
    """Return the factor a layer, toward the input, without the layers near both ends."""
    pairs = numbers.curve(quantity)
    cut = max(len(pairs) // 8, 1)
    return math.exp(-slope((x, math.log(value)) for x, value in pairs[cut:-cut]))


YANG2019 = Experiment(
    name="yang2019",
    title="Batch norm makes the gradients of plain ReLU nets explode at initialization",
    source="Yang et al. (2019), A mean field theory of batch normalization, arXiv:1902.08129",
    claims=(
        Claim(
            "growth",
            "factor of ‖∂L/∂y‖ a layer, toward the input, plain",
            "√(π/(π−1)) = 1.211",
            _GROWTH * 0.98,
            _GROWTH * 1.02,
            "2 %: the theory is for infinite width and batch",
            lambda n: _growth(n, "gradient"),
            _GROWTH,
        ),
        Claim(
            "growth_doubled",
            "the same with weights of twice the size",
            "the same: no variance of the weights prevents it",
            _GROWTH * 0.98,
            _GROWTH * 1.02,
            "2 %, as above",
            lambda n: _growth(n, "gradient_doubled"),
            _GROWTH,
        ),
        Claim(
            "growth_residual",
            "the same with a shortcut around each layer",
            "no growth by a constant factor a layer",
            0.98,
            1.05,
            "a twentieth a layer is far below 1.211",
            lambda n: _growth(n, "gradient_residual"),
        ),
    ),
    method="a fully connected net, linear → batch norm → ReLU, He's initialization, one Gaussian "
    "batch with random classes; a line through ln ‖∂L/∂y‖ over the layers, an eighth of them left "
    "out at both ends.",
    settings={
        "tiny": {"seeds": 2, "depth": 18, "width": 64, "batch": 64},
        "laptop": {"seeds": 5, "depth": 40, "width": 256, "batch": 256},
        "full": {"seeds": 20, "depth": 100, "width": 2048, "batch": 1024},
    },
    changed={
        "tiny": "18 layers of width 64.",
        "laptop": "width 256, 256 samples in place of the limit of many.",
    },
    measure=_yang2019,
    discussion="The gradient grows by {growth} a layer; with weights of twice the size by "
    "{growth_doubled}. With shortcuts the fitted factor is {growth_residual} a layer: the growth "
    "becomes one by a power of depth.",
)


# De & Smith 2020: batch norm scales residual branches down ------------------------------------


def _desmith2020(case: Case) -> Iterator[Row]:
    blocks, width, batch = (case.settings[key] for key in ("blocks", "width", "batch"))
    # So that the stem puts out variance 1, as the input of the first block has in the paper.
    inputs = gaussian(case.seed, batch, width) / math.sqrt(2)
    targets = _classes(case.seed, batch)
    for label, norm, scale in (
        ("norm", "batch", 1.0),
        ("bare", None, 1.0),
        ("skipinit", None, 0.0),
    ):
        net = MLP(
            width,
            _CLASSES,
            depth=blocks + 2,
            width=width,
            residual=True,
            norm=norm,
            preactivation=True,
            branch_scale=scale,
            initialization="he",
            seed=case.seed,
        )
        splits = gradient_splits(net, inputs, targets, cross_entropy)
        ratios = splits["branch_output_norm"] / splits["shortcut_output_norm"]
        growth = splits["join_output_norm"] / splits["shortcut_output_norm"]
        for block, (ratio, factor) in enumerate(zip(ratios, growth, strict=True), 1):
            yield f"ratio_{label}", float(block), float(ratio)
            yield f"growth_{label}", float(block), float(factor**2)
        yield f"smallest_share_{label}", None, float(splits["shortcut_share"].min())


def _exponent(numbers: Numbers) -> float:
    return slope((math.log(x), math.log(value)) for x, value in numbers.curve("ratio_norm"))


def _last_ratio(numbers: Numbers) -> float:
    block, ratio = numbers.curve("ratio_norm")[-1]
    return ratio * math.sqrt(block)


DESMITH2020 = Experiment(
    name="desmith2020",
    title="Batch norm scales residual branches down by √depth; SkipInit does it without a norm",
    source="De & Smith (2020), Batch normalization biases residual blocks towards the identity "
    "function in deep networks, §3, arXiv:2002.10444",
    claims=(
        Claim(
            "exponent",
            "exponent of ‖branch‖ ÷ ‖shortcut‖ over the number l of the block, batch norm",
            "−1/2",
            -0.53,
            -0.47,
            "0.03: a sixteenth; finite width",
            _exponent,
            -0.5,
        ),
        Claim(
            "last_ratio",
            "‖branch‖ ÷ ‖shortcut‖ · √l at the last block, batch norm",
            "1",
            0.95,
            1.05,
            "5 %: finite width",
            _last_ratio,
            1.0,
        ),
        Claim(
            "doubling",
            "growth of the variance a block without a norm, He's initialization",
            "2",
            1.9,
            2.1,
            "5 %: finite width",
            lambda n: statistics.geometric_mean(v for _, v in n.curve("growth_bare")),
            2.0,
        ),
        Claim(
            "skipinit_share",
            "smallest share of the gradient that a shortcut carries, SkipInit with α = 0",
            "1: each block is the identity",
            1 - 1e-6,
            1 + 1e-6,
            "rounding of float32",
            lambda n: n["smallest_share_skipinit"],
            1.0,
        ),
    ),
    method="a fully connected pre-activation net, one layer a block; norms of the two operands of "
    "each addition over one Gaussian batch, by `gradient_splits`, at initialization.",
    settings={
        "tiny": {"seeds": 2, "blocks": 16, "width": 64, "batch": 64},
        "laptop": {"seeds": 5, "blocks": 48, "width": 192, "batch": 128},
        "full": {"seeds": 20, "blocks": 256, "width": 1024, "batch": 1024},
    },
    changed={
        "tiny": "16 blocks of width 64.",
        "laptop": "48 fully connected blocks in place of a wide ResNet; the derivation of the "
        "paper is for both.",
    },
    measure=_desmith2020,
    discussion="That a net with SkipInit also trains to the accuracy of one with batch norm is "
    "not measured here.",
)

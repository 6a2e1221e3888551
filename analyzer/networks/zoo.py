"""Built-in networks by name: ``resnet20``, ``plain56-nonorm``, ``mlp50-residual``, ``simple28``.

A name is a family, a number and options joined by ``-``. The families, each plain and residual with
equal trunks:

- ``resnetN``, ``plainN`` (N = 6n + 2 layers): options ``a`` | ``b`` | ``c`` (shortcut), ``preact``,
  ``nonorm``, ``zeroinit``
- ``mlpN``, ``mlpN-residual`` (N linear layers): options ``pair`` (shortcuts span two layers),
  ``preact``, ``batchnorm`` | ``layernorm``
- ``simpleN``, ``simpleN-plain`` (N convolutions of constant width): options ``single`` (shortcuts
  span one convolution), ``batchnorm``; ``simple-block`` is ``simple1-single``, a network of one
  block ``relu(conv(x)) + x``, and ``simple-block-plain`` the same without its shortcut

Everywhere: ``wK`` (width K) and ``he`` | ``default`` (initialization). Without these, nets with
batch norm and ``resnet``/``plain`` start from He's initialization, all others, and nets without
norm, from PyTorch's.
"""

import difflib
import re
from typing import Any, NamedTuple

from torch import nn

from analyzer.errors import ScriptError
from analyzer.networks.blocks import (
    INITIALIZATIONS,
    BasicBlock,
    MLPBlock,
    PairBlock,
    PreactivationBlock,
    SimpleBlock,
    chain,
    convolution,
    initialize,
    norm_layer,
    private_random_state,
)
from analyzer.networks.data import Dataset

__all__ = ["EXAMPLES", "MLP", "ConstantWidthNet", "ResNet", "least_elements", "zoo", "zoo_for"]


class ResNet(nn.Sequential):
    """The residual network for small images, and with ``residual=False`` its plain twin.

    A 3x3 convolution, three stages of n blocks with ``width``, ``2·width`` and ``4·width``
    channels, the later two starting with stride 2, average pooling and a linear layer: ``depth = 6n
    + 2`` layers with weights. ``[batch, in_channels, h, w]`` to ``[batch, num_classes]``.

    Args:
        depth: ``6n + 2``: 20, 32, 44, 56, 110, …
        residual: Whether blocks have their shortcut; the twin without has the same weights.
        shortcut: ``"A"`` subsampled and zero-padded where the size changes, no parameters; ``"B"``
            1x1 convolution where the size changes; ``"C"`` 1x1 convolution everywhere. Without
            meaning in the plain twin.
        norm: ``"batch"``, or ``None`` with biases in the convolutions.
        preactivation: The block of 2016 in place of that of 2015.
        zero_init: Whether the last layer of every branch starts at zero; the plain twin then puts
            out constants.

    Reference:
        He et al. (2015), §4.2; He et al. (2016), §4.1.
    """

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        width: int = 16,
        residual: bool = True,
        shortcut: str = "A",
        norm: str | None = "batch",
        preactivation: bool = False,
        zero_init: bool = False,
        initialization: str = "he",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            below = max((depth - 2) // 6, 1) * 6 + 2
            raise ValueError(
                f"a residual net of depth {depth} cannot be built: depth is 6n + 2; "
                f"the nearest are {below} and {below + 6}"
            )
        option = shortcut if residual else None
        with private_random_state(seed):
            self.stem = chain(
                convolution(in_channels, width, 1, norm), norm_layer(norm, width), nn.ReLU()
            )
            self.layer1, self.layer2, self.layer3 = (
                _stage(stage, (depth - 2) // 6, width, option, norm, preactivation)
                for stage in range(3)
            )
            if preactivation:
                self.activation = chain(norm_layer(norm, 4 * width), nn.ReLU())
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.flatten = nn.Flatten()
            self.output = nn.Linear(4 * width, num_classes)
        initialize(self, initialization, seed)
        for module in self.modules() if zero_init else ():
            if isinstance(module, BasicBlock | PreactivationBlock):
                for parameter in module.branch[-1].parameters():
                    nn.init.zeros_(parameter)


def _stage(
    stage: int, blocks: int, width: int, shortcut: str | None, norm: str | None, preactivation: bool
) -> nn.Sequential:
    """Return the blocks of one stage; the first of the later stages halves the image."""
    channels = width * 2**stage
    halved = channels if stage == 0 else channels // 2
    modules: list[nn.Module] = []
    for index in range(blocks):
        first = index == 0
        shape = (halved if first else channels, channels, 2 if first and stage else 1)
        if preactivation:
            activate = not (first and stage == 0)
            modules.append(PreactivationBlock(*shape, shortcut, norm, activate))
        else:
            modules.append(BasicBlock(*shape, shortcut, norm))
    return nn.Sequential(*modules)


class MLP(nn.Sequential):
    """A fully connected net: an input layer, ``depth − 2`` in blocks, an output layer.

    ``[batch, …]`` with ``in_features`` elements a sample to ``[batch, num_classes]``.

    Args:
        in_features: Elements of one input; inputs are flattened.
        depth: Linear layers in all, at least 2.
        residual: Whether the blocks add their input; the twin without has the same weights.
        block_layers: Linear layers that one shortcut spans, 1 or 2.
        norm: ``"batch"``, ``"layer"`` or ``None``.
        preactivation: Whether norm and ReLU come before the linear layers of a block.
        branch_scale: Factor on every branch.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        depth: int,
        width: int = 64,
        residual: bool = False,
        block_layers: int = 1,
        norm: str | None = None,
        preactivation: bool = False,
        branch_scale: float = 1.0,
        initialization: str = "default",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if depth < 2 or (depth - 2) % block_layers:
            raise ValueError(
                f"an MLP of depth {depth} cannot be built: an input layer, whole blocks of "
                f"{block_layers} and an output layer are expected; choose 2 + {block_layers}·n"
            )
        with private_random_state(seed):
            self.flatten = nn.Flatten()
            self.input = nn.Linear(in_features, width)
            if not preactivation:
                self.input_relu = nn.ReLU()
            self.blocks = nn.Sequential(
                *[
                    MLPBlock(
                        width,
                        layers=block_layers,
                        residual=residual,
                        norm=norm,
                        preactivation=preactivation,
                        branch_scale=branch_scale,
                    )
                    for _ in range((depth - 2) // block_layers)
                ]
            )
            if preactivation:
                self.output_relu = nn.ReLU()
            self.output = nn.Linear(width, num_classes)
        initialize(self, initialization, seed)


class ConstantWidthNet(nn.Sequential):
    """A net of constant width: a stem convolution, blocks, average pooling, a linear layer.

    With 28 convolutions, no norm and PyTorch's initialization the plain net's output gradient falls
    by a factor 0.39 per layer going backward, 13 decades in all, and it does not learn; with ``+
    x`` it is flat, and it learns. ``[batch, in_channels, h, w]`` to ``[batch, num_classes]``.

    Args:
        convolutions: Convolutions in the blocks, beside the stem.
        residual: Whether blocks add their input; the twin without has the same weights.
        single: ``SimpleBlock`` (one convolution each) in place of ``PairBlock`` (two).
    """

    def __init__(
        self,
        convolutions: int = 28,
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        width: int = 16,
        residual: bool = True,
        single: bool = False,
        norm: str | None = None,
        initialization: str = "default",
        seed: int = 0,
    ) -> None:
        super().__init__()
        block, span = (SimpleBlock, 1) if single else (PairBlock, 2)
        if convolutions < span or convolutions % span:
            raise ValueError(
                f"{convolutions} convolutions do not fill blocks of {span}; "
                f"choose a positive multiple of {span}"
            )
        with private_random_state(seed):
            self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
            self.relu = nn.ReLU()
            self.blocks = nn.Sequential(
                *[block(width, residual=residual, norm=norm) for _ in range(convolutions // span)]
            )
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.flatten = nn.Flatten()
            self.output = nn.Linear(width, num_classes)
        initialize(self, initialization, seed)


_NAME = re.compile(r"(resnet|plain|mlp|simple)([1-9][0-9]{0,3})((?:-[a-z0-9]+)*)")
_BLOCK = re.compile(r"^simple-block\b")
_WIDTH = re.compile(r"w([1-9][0-9]{0,3})")
_CONVOLUTIONAL = ("preact", "nonorm", "zeroinit")
_OPTIONS = {
    "resnet": ("a", "b", "c", *_CONVOLUTIONAL),
    "plain": _CONVOLUTIONAL,
    "mlp": ("residual", "pair", "preact", "batchnorm", "layernorm"),
    "simple": ("plain", "single", "batchnorm"),
}
_EXCLUSIVE = (("a", "b", "c"), ("batchnorm", "layernorm"), INITIALIZATIONS)
EXAMPLES = (
    *(f"{family}{depth}" for depth in (20, 32, 44, 56, 110) for family in ("resnet", "plain")),
    *("resnet20-b", "resnet20-c", "resnet20-preact", "resnet110-preact", "resnet20-zeroinit"),
    *("resnet20-nonorm", "plain20-nonorm", "resnet56-nonorm", "plain56-nonorm"),
    *("mlp10", "mlp10-residual", "mlp50", "mlp50-residual", "mlp50-batchnorm"),
    *("mlp50-residual-batchnorm", "mlp50-residual-pair"),
    *("simple28", "simple28-plain", "simple28-batchnorm", "simple28-single"),
    *("simple-block", "simple-block-plain"),
)


class _Name(NamedTuple):
    """A name taken apart."""

    family: str
    number: int
    options: tuple[str, ...]
    width: int

    def first(self, *choices: str) -> str | None:
        return next((choice for choice in choices if choice in self.options), None)


def zoo(
    name: str, *, in_channels: int, num_classes: int, image_size: int, seed: int = 0
) -> nn.Module:
    """Build a network by name, in training mode, on the CPU; equal seeds give equal trunks.

    It maps ``[batch, in_channels, image_size, image_size]`` to ``[batch, num_classes]``. The global
    random state is not touched.

    Raises:
        ScriptError: If the name is unknown, or its number does not fit the family.
    """
    parsed = _parsed(name)
    family, number, options, width = parsed
    if family in ("resnet", "plain"):
        norm = None if "nonorm" in options else "batch"
    else:
        norm = (parsed.first("batchnorm", "layernorm") or "").removesuffix("norm") or None
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "width": width,
        "norm": norm,
        # Without norm He's weights let the residual stream double in every block, up to overflow.
        "initialization": parsed.first(*INITIALIZATIONS) or ("he" if norm else "default"),
        "seed": seed,
    }
    try:
        if family == "mlp":
            return MLP(
                in_channels * image_size**2,
                depth=number,
                residual="residual" in options,
                block_layers=2 if "pair" in options else 1,
                preactivation="preact" in options,
                **common,
            )
        if family == "simple":
            return ConstantWidthNet(
                number,
                in_channels=in_channels,
                residual="plain" not in options,
                single="single" in options,
                **common,
            )
        return ResNet(
            number,
            in_channels=in_channels,
            residual=family == "resnet",
            shortcut=(parsed.first("a", "b", "c") or "a").upper(),
            preactivation="preact" in options,
            zero_init="zeroinit" in options,
            **common,
        )
    except ValueError as error:
        raise ScriptError(f"zoo network {name!r}: {error}") from None


def least_elements(name: str, features: int) -> int:
    """Return how many elements the weights of a network have at least, without building it.

    Args:
        name: Its name.
        features: Elements of one input.

    Raises:
        ScriptError: If the name is unknown.
    """
    family, number, _, width = _parsed(name)
    if family == "mlp":
        return width * (features + max(number - 2, 0) * width)
    # Of a residual net only the convolutions of its last stage, 3x3 with 4 times the width.
    return 9 * width**2 * (number // 6 * 16 if family in ("resnet", "plain") else number - 1)


def zoo_for(name: str, data: Dataset, *, seed: int = 0) -> nn.Module:
    """Build a network by name that fits some data; vectors count as images of one pixel."""
    channels, *size = data.shape if len(data.shape) == 3 else (data.shape[0], 1)
    return zoo(
        name, in_channels=channels, num_classes=data.num_classes, image_size=size[0], seed=seed
    )


def _parsed(name: str) -> _Name:
    """Take a name apart, or refuse it."""
    match = _NAME.fullmatch(_BLOCK.sub("simple1-single", name))
    if match is None:
        near = difflib.get_close_matches(name, EXAMPLES, n=3, cutoff=0.4) or EXAMPLES[:3]
        raise ScriptError(
            f"zoo network {name!r} is unknown; a family (resnet, plain, mlp, simple), a number and "
            f"options are expected; the nearest names are {', '.join(near)}"
        )
    family, number, options = match[1], int(match[2]), match[3].split("-")[1:]
    widths = [option for option in options if _WIDTH.fullmatch(option)]
    others = tuple(option for option in options if option not in widths)
    allowed = (*_OPTIONS[family], *INITIALIZATIONS)
    wrong = [option for option in others if option not in allowed]
    if wrong:
        raise ScriptError(
            f"zoo network {name!r}: {wrong[0]!r} is not an option of {family!r}; "
            f"its options are {', '.join(allowed)} and w<width>"
        )
    for group in (*_EXCLUSIVE, widths):
        if sum(option in group for option in options) > 1:
            raise ScriptError(f"zoo network {name!r}: give only one of {', '.join(group)}")
    width = int(widths[0][1:]) if widths else 64 if family == "mlp" else 16
    return _Name(family, number, others, width)

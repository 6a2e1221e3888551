"""The built-in networks: residual, fully connected, of constant width, each with its plain twin."""

from torch import Tensor, nn

from analyzer.networks.blocks import (
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
    zero,
)

__all__ = ["MLP", "ConstantWidthNet", "ResNet"]


class ResNet(nn.Module):
    """The residual network for small images, and with ``residual=False`` its plain twin.

    A 3x3 convolution, three stages of n blocks with ``width``, ``2·width`` and ``4·width``
    channels, the later two starting with stride 2, average pooling and a linear layer: ``depth = 6n
    + 2`` layers with weights.

    Args:
        depth: ``6n + 2``: 20, 32, 44, 56, 110, …
        in_channels: Channels of the images, of any size from 1x1.
        num_classes: Number of outputs.
        width: Channels of the first stage.
        residual: Whether blocks have their shortcut; the twin without has the same weights.
        shortcut: ``"A"`` subsampled and zero-padded where the size changes, no parameters; ``"B"``
            1x1 convolution where the size changes; ``"C"`` 1x1 convolution everywhere. Without
            meaning in the plain twin.
        norm: ``"batch"`` or ``None``; without norm the convolutions have biases.
        preactivation: The block of 2016 in place of that of 2015.
        zero_init: Whether the last layer of every branch starts at zero; the plain twin then puts
            out constants.
        initialization: ``"he"`` or ``"default"``.
        seed: Seed of the initial weights; the global random state is not touched.

    Raises:
        ValueError: If ``depth`` is not 6n + 2 or an option is unknown.

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
        _check(depth, shortcut)
        option = shortcut if residual else None
        with private_random_state(seed):
            self.stem = chain(
                convolution(in_channels, width, 1, norm), norm_layer(norm, width), nn.ReLU()
            )
            self.layer1, self.layer2, self.layer3 = (
                _stage(stage, (depth - 2) // 6, width, option, norm, preactivation)
                for stage in range(3)
            )
            self.activation = (
                chain(norm_layer(norm, 4 * width), nn.ReLU()) if preactivation else None
            )
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.flatten = nn.Flatten()
            self.output = nn.Linear(4 * width, num_classes)
        initialize(self, initialization, seed)
        if zero_init:
            self._zero_branches()

    def _zero_branches(self) -> None:
        """Let every residual branch start at zero."""
        for module in self.modules():
            if isinstance(module, BasicBlock | PreactivationBlock):
                zero(module.branch[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, in_channels, h, w]`` to ``[batch, num_classes]``."""
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        if self.activation is not None:
            x = self.activation(x)
        scores: Tensor = self.output(self.flatten(self.pool(x)))
        return scores


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


def _check(depth: int, shortcut: str) -> None:
    """Refuse what the paper does not describe."""
    if depth < 8 or (depth - 2) % 6:
        below = max((depth - 2) // 6, 1) * 6 + 2
        raise ValueError(
            f"a residual net of depth {depth} cannot be built: depth is 6n + 2; "
            f"the nearest are {below} and {below + 6}"
        )
    if shortcut not in ("A", "B", "C"):
        raise ValueError(f"shortcut {shortcut!r} is unknown; choose 'A', 'B' or 'C'")


class MLP(nn.Module):
    """A fully connected net: an input layer, ``depth − 2`` in blocks, an output layer.

    Args:
        in_features: Elements of one input; inputs are flattened.
        num_classes: Number of outputs.
        depth: Linear layers in all, at least 2.
        width: Features of every hidden layer.
        residual: Whether the blocks add their input; the twin without has the same weights.
        block_layers: Linear layers that one shortcut spans, 1 or 2.
        norm: ``"batch"``, ``"layer"`` or ``None``.
        preactivation: Whether norm and ReLU come before the linear layers of a block.
        branch_scale: Factor on every branch.
        initialization: ``"he"`` or ``"default"``.
        seed: Seed of the initial weights; the global random state is not touched.

    Raises:
        ValueError: If the hidden layers cannot be divided into blocks, or an option is unknown.
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
        _check_depth(depth, block_layers)
        with private_random_state(seed):
            self.flatten = nn.Flatten()
            self.input = nn.Linear(in_features, width)
            self.input_relu = None if preactivation else nn.ReLU()
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
            self.output_relu = nn.ReLU() if preactivation else None
            self.output = nn.Linear(width, num_classes)
        initialize(self, initialization, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, …]`` with ``in_features`` elements a sample to ``[batch, num_classes]``."""
        x = self.input(self.flatten(x))
        if self.input_relu is not None:
            x = self.input_relu(x)
        x = self.blocks(x)
        if self.output_relu is not None:
            x = self.output_relu(x)
        scores: Tensor = self.output(x)
        return scores


def _check_depth(depth: int, block_layers: int) -> None:
    """Refuse a depth that does not leave whole blocks."""
    if block_layers not in (1, 2):
        raise ValueError(f"a block of {block_layers} linear layers is not offered; choose 1 or 2")
    if depth < 2 or (depth - 2) % block_layers:
        raise ValueError(
            f"an MLP of depth {depth} cannot be built: an input layer, whole blocks of "
            f"{block_layers} and an output layer are expected; choose 2 + {block_layers}·n"
        )


class ConstantWidthNet(nn.Module):
    """A net of constant width: a stem convolution, blocks, average pooling, a linear layer.

    With 28 convolutions, no norm and PyTorch's initialization the plain net's output gradient falls
    by a factor 0.39 per layer going backward, 13 decades in all, and it does not learn; with ``+
    x`` it is flat, and it learns.

    Args:
        convolutions: Convolutions in the blocks, beside the stem.
        in_channels: Channels of the images, of any size.
        num_classes: Number of outputs.
        width: Channels throughout.
        residual: Whether blocks add their input; the twin without has the same weights.
        single: ``SimpleBlock`` (one convolution each) in place of ``PairBlock`` (two).
        norm: ``"batch"`` or ``None``.
        initialization: ``"he"`` or ``"default"``.
        seed: Seed of the initial weights; the global random state is not touched.

    Raises:
        ValueError: If the convolutions do not fill whole blocks, or an option is unknown.
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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, in_channels, h, w]`` to ``[batch, num_classes]``."""
        x = self.blocks(self.relu(self.stem(x)))
        scores: Tensor = self.output(self.flatten(self.pool(x)))
        return scores

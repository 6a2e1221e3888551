"""The smallest convolutional twins: constant width, no strides, one line that differs."""

from torch import Tensor, nn

from analyzer.networks.initialization import initialize, private_random_state

__all__ = ["ConstantWidthNet", "PairBlock", "SimpleBlock"]


def _conv(width: int, norm: str | None) -> nn.Module:
    """Return a 3x3 convolution that keeps the shape, followed by its norm where there is one."""
    if norm is None:
        return nn.Conv2d(width, width, 3, padding=1)
    if norm == "batch":
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
    raise ValueError(f"norm {norm!r} is unknown; choose 'batch' or None")


class SimpleBlock(nn.Module):
    """The simplest residual block, ``relu(conv(x)) + x``.

    Args:
        width: Channels of input and output.
        residual: Whether ``x`` is added.
        norm: ``"batch"`` or ``None``.
    """

    def __init__(self, width: int, *, residual: bool = True, norm: str | None = None) -> None:
        super().__init__()
        self.residual = residual
        self.conv = _conv(width, norm)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, width, h, w]`` to the same shape."""
        y: Tensor = self.relu(self.conv(x))
        return y + x if self.residual else y


class PairBlock(nn.Module):
    """Two convolutions under one shortcut, ``relu(conv(relu(conv(x))) + x)``.

    Args:
        width: Channels of input and output.
        residual: Whether ``x`` is added.
        norm: ``"batch"`` or ``None``.
    """

    def __init__(self, width: int, *, residual: bool = True, norm: str | None = None) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = _conv(width, norm)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(width, norm)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, width, h, w]`` to the same shape."""
        y: Tensor = self.conv2(self.relu1(self.conv1(x)))
        y = y + x if self.residual else y
        activated: Tensor = self.relu2(y)
        return activated


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

"""The blocks of residual networks: two convolutions and a shortcut, post- or pre-activation."""

from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "BasicBlock",
    "PaddedShortcut",
    "PreactivationBlock",
    "chain",
    "convolution",
    "norm_layer",
]


class PaddedShortcut(nn.Module):
    """Option A: every second pixel of the input, with zeros for the channels that it lacks.

    Args:
        channels: Channels of the output, at least those of the input.
        stride: Step of the subsampling.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, c, h, w]`` to ``[batch, channels, ⌈h / stride⌉, ⌈w / stride⌉]``."""
        missing = self.channels - x.shape[1]
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, missing))

    def extra_repr(self) -> str:
        """Show the options in ``repr``."""
        return f"channels={self.channels}, stride={self.stride}"


def convolution(channels_in: int, channels: int, stride: int, norm: str | None) -> nn.Conv2d:
    """Return a 3x3 convolution; it has a bias only where no norm would undo it."""
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=norm is None)


def norm_layer(kind: str | None, channels: int) -> nn.Module | None:
    """Return a norm over ``channels``, or nothing."""
    if kind is None:
        return None
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    raise ValueError(f"norm {kind!r} is unknown; choose 'batch' or None")


def chain(*modules: nn.Module | None) -> nn.Sequential:
    """Chain the modules that are there."""
    return nn.Sequential(*[module for module in modules if module is not None])


def _shortcut(
    option: str | None, channels_in: int, channels: int, stride: int, norm: str | None
) -> nn.Module | None:
    """Return the module on the shortcut, nothing where the input itself is added."""
    same = stride == 1 and channels_in == channels
    if option is None or (same and option != "C"):
        return None
    if option == "A":
        return PaddedShortcut(channels, stride)
    return nn.Conv2d(channels_in, channels, 1, stride, bias=norm is None)


class BasicBlock(nn.Module):
    """Post-activation block, ``relu(F(x) + shortcut(x))``, F = conv → norm → relu → conv → norm.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        shortcut: ``"A"``, ``"B"``, ``"C"``; ``None`` for the plain twin.
        norm: ``"batch"`` or ``None``.

    Reference:
        He et al. (2015), Deep residual learning, §3.1 and §4.2.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int, shortcut: str | None, norm: str | None
    ) -> None:
        super().__init__()
        self.residual = shortcut is not None
        self.branch = chain(
            convolution(channels_in, channels, stride, norm),
            norm_layer(norm, channels),
            nn.ReLU(),
            convolution(channels, channels, 1, norm),
            norm_layer(norm, channels),
        )
        self.shortcut = _shortcut(shortcut, channels_in, channels, stride, norm)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, channels_in, h, w]`` to ``[batch, channels, h / stride, w / stride]``."""
        y: Tensor = self.branch(x)
        if self.residual:
            y = y + (x if self.shortcut is None else self.shortcut(x))
        activated: Tensor = self.relu(y)
        return activated


class PreactivationBlock(nn.Module):
    """Pre-activation block, ``F(x) + shortcut(x)``, F = norm → relu → conv → norm → relu → conv.

    A projection reads the activated input, as in the authors' code; an identity reads ``x``.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        shortcut: ``"A"``, ``"B"``, ``"C"``; ``None`` for the plain twin.
        norm: ``"batch"`` or ``None``.
        activate: Whether norm and ReLU come first; not in the first block, whose input the stem has
            activated.

    Reference:
        He et al. (2016), Identity mappings in deep residual networks, §4.1 and appendix.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        shortcut: str | None,
        norm: str | None,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.residual = shortcut is not None
        self.activation = chain(norm_layer(norm, channels_in), nn.ReLU()) if activate else None
        self.branch = chain(
            convolution(channels_in, channels, stride, norm),
            norm_layer(norm, channels),
            nn.ReLU(),
            convolution(channels, channels, 1, norm),
        )
        self.shortcut = _shortcut(shortcut, channels_in, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, channels_in, h, w]`` to ``[batch, channels, h / stride, w / stride]``."""
        active: Tensor = x if self.activation is None else self.activation(x)
        y: Tensor = self.branch(active)
        if not self.residual:
            return y
        if self.shortcut is None:
            return y + x
        projects = isinstance(self.shortcut, nn.Conv2d)
        added: Tensor = self.shortcut(active if projects else x)
        return y + added

"""Building blocks of the built-in networks, each plain or residual, and their initial weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "INITIALIZATIONS",
    "BasicBlock",
    "MLPBlock",
    "PaddedShortcut",
    "PairBlock",
    "PreactivationBlock",
    "SimpleBlock",
    "chain",
    "convolution",
    "initialize",
    "norm_layer",
    "private_random_state",
]

INITIALIZATIONS = ("he", "default")
_NORMS: dict[int, dict[str, type[nn.Module]]] = {
    1: {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm},
    2: {"batch": nn.BatchNorm2d},
}
_INITIALIZED = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


@contextmanager
def private_random_state(seed: int) -> Iterator[None]:
    """Draw from a CPU generator seeded with ``seed``; afterwards the global state is as before."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also reseed the generators of every accelerator.
        torch.default_generator.manual_seed(seed)
        yield


def initialize(model: nn.Module, scheme: str, seed: int) -> None:
    """Draw all initial weights of ``model`` again.

    The weights of the trunk are drawn first, in module order, and those of the shortcuts after
    them, so that a plain net and its residual twin start from the same trunk, projections or not.

    Args:
        model: Built of convolutions, linear layers and norms.
        scheme: ``"he"``: ``w ~ N(0, 2 / fan_in)`` with zero biases; ``"default"``: PyTorch's own,
            ``w ~ U(−1/√fan_in, 1/√fan_in)`` and the same for biases.
        seed: Seed of the private generator.

    Reference:
        He et al. (2015), Delving deep into rectifiers, §2.2.
    """
    named = [(n, m) for n, m in model.named_modules() if isinstance(m, _INITIALIZED)]
    named.sort(key=lambda item: "shortcut" in item[0].split("."))
    with private_random_state(seed):
        for _, module in named:
            module.reset_parameters()
            if scheme == "he" and isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def norm_layer(kind: str | None, width: int, dimensions: int = 2) -> nn.Module | None:
    """Return a norm over the channels of images, or with ``dimensions=1`` over features."""
    return None if kind is None else _NORMS[dimensions][kind](width)


def convolution(channels_in: int, channels: int, stride: int, norm: str | None) -> nn.Conv2d:
    """Return a 3x3 convolution; it has a bias only where no norm would undo it."""
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=norm is None)


def chain(*modules: nn.Module | None) -> nn.Sequential:
    """Chain the modules that are there."""
    return nn.Sequential(*[module for module in modules if module is not None])


class PaddedShortcut(nn.Module):
    """Option A: every second pixel of the input, with zeros for the channels that it lacks."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, c, h, w]`` to ``[batch, channels, ⌈h / stride⌉, ⌈w / stride⌉]``."""
        missing = self.channels - x.shape[1]
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, missing))


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

    The stride is that of the first convolution and of the shortcut, which is ``"A"``, ``"B"`` or
    ``"C"``, None in the plain twin.

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
    Without ``activate`` norm and ReLU do not come first: in the first block, whose input the stem
    has activated. The other options are those of `BasicBlock`.

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


class MLPBlock(nn.Module):
    """One or two linear layers, and ``+ x`` in the residual twin.

    Post-activation: ``relu(β·F(x) + x)`` with F = linear, or linear → relu → linear;
    pre-activation: ``β·F(x) + x`` with a ReLU before each linear layer of F. A norm follows each
    linear layer, or precedes each ReLU. Without the shortcut the block is exactly the plain one.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int = 1,
        residual: bool = True,
        norm: str | None = None,
        preactivation: bool = False,
        branch_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.branch_scale = branch_scale
        parts: list[nn.Module | None] = []
        for _ in range(layers):
            linear = nn.Linear(width, width)
            around = [norm_layer(norm, width, 1), nn.ReLU()]
            parts += [*around, linear] if preactivation else [linear, *around]
        # After the addition, so that the post-activation block is relu(x + F(x)).
        self.relu = None if preactivation else parts.pop()
        self.branch = nn.Sequential(*[part for part in parts if part is not None])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, width]`` to ``[batch, width]``."""
        branch: Tensor = self.branch(x)
        if self.branch_scale != 1.0:
            branch = self.branch_scale * branch
        y = branch + x if self.residual else branch
        return y if self.relu is None else self.relu(y)


class SimpleBlock(nn.Module):
    """The simplest residual block, ``relu(conv(x)) + x``."""

    def __init__(self, width: int, *, residual: bool = True, norm: str | None = None) -> None:
        super().__init__()
        self.residual = residual
        self._add_layers(width, norm)

    def _add_layers(self, width: int, norm: str | None) -> None:
        self.conv = _conv(width, norm)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, width, h, w]`` to the same shape."""
        y: Tensor = self.relu(self.conv(x))
        return y + x if self.residual else y


class PairBlock(SimpleBlock):
    """Two convolutions under one shortcut, ``relu(conv(relu(conv(x))) + x)``."""

    def _add_layers(self, width: int, norm: str | None) -> None:
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


def _conv(width: int, norm: str | None) -> nn.Module:
    """Return a 3x3 convolution that keeps the shape, followed by its norm where there is one."""
    conv = convolution(width, width, 1, norm)
    return conv if norm is None else chain(conv, norm_layer(norm, width))

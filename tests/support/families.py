"""Residual networks of every family, each written by hand in plain torch with the joins it has.

Each forward marks its forks with `fork`, which changes nothing; inside of `taps()` it adds zeros
that have a gradient, so that autograd itself gives the gradient through each side of each join.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FAMILIES", "Expected", "Family", "Tap", "fork", "taps"]


@dataclass
class Tap:
    """Zeros added to a fork for all its readers, for the shortcut, and for the branch."""

    fork: Tensor
    shortcut: Tensor
    branch: Tensor


_taps: list[Tap] | None = None


@contextmanager
def taps() -> Iterator[list[Tap]]:
    """Collect a tap for each fork of the forward passes inside."""
    global _taps
    _taps = []
    try:
        yield _taps
    finally:
        _taps = None


def fork(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A fork as other readers, shortcut and branch see it."""
    if _taps is None:
        return x, x, x
    zeros = [torch.zeros_like(x, requires_grad=True) for _ in range(3)]
    _taps.append(Tap(*zeros))
    x = x + zeros[0]
    return x, x + zeros[1], x + zeros[2]


@dataclass(frozen=True)
class Expected:
    """What `find_joins` must say of one join."""

    name: str
    operation: str = "add"
    shortcut: str = "identity"
    branch_layers: tuple[str, ...] = ()
    shortcut_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A network, its input, its joins, and for each join the number of its tap."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    joins: tuple[Expected, ...]
    tap_order: tuple[int | None, ...] | None = None


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        out = self.relu(self.bn1(self.conv1(xb)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(xs)
        return self.relu(out)


class ZeroPadBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(4, 8, 3, 2), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        out = self.conv2(functional.relu(self.conv1(xb)))
        return functional.relu(out + functional.pad(xs[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


class PreActivation(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        self.projection = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        if self.projection is None:
            _, shortcut, xb = fork(x)
            out = torch.relu(self.bn1(xb))
        else:
            _, xs, out = fork(torch.relu(self.bn1(x)))
            shortcut = self.projection(xs)
        return self.conv2(torch.relu(self.bn2(self.conv1(out)))) + shortcut


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.middle, self.expand = conv(8, 2, 1), conv(2, 2), conv(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        h = torch.relu(self.middle(torch.relu(self.reduce(xb))))
        return torch.relu(torch.add(xs, self.expand(h)))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.is_residual = inputs == outputs
        self.body = nn.Sequential(
            conv(inputs, 8, 1),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.ReLU6(),
            conv(8, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_residual:
            return self.body(x)
        _, xs, xb = fork(x)
        return xs + self.body(xb)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = conv(4, 4), nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        h = self.conv(xb)
        gate = torch.sigmoid(self.up(torch.relu(self.down(h.mean((2, 3))))))
        return xs + h * gate[:, :, None, None]


class StochasticDepth(nn.Module):
    """Leaves the block out of half of the training passes."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            if torch.rand(()) < 0.5:
                return x
            return x + torch.tanh(self.branch(x)) / 0.5
        _, xs, xb = fork(x)
        return xs + torch.tanh(self.branch(xb))


class Scaled(nn.Module):
    """ReZero and SkipInit (a scalar), LayerScale (one factor a feature), a constant shortcut."""

    def __init__(self, scale: Tensor, shortcut_scale: float = 1.0) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.scale = nn.Parameter(scale)
        self.shortcut_scale = shortcut_scale

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        shortcut = xs if self.shortcut_scale == 1 else self.shortcut_scale * xs
        return shortcut + self.scale * self.branch(xb)


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transform, self.gate = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        gate = torch.sigmoid(self.gate(xb))
        return gate * torch.tanh(self.transform(xb)) + (1 - gate) * xs


class Dense(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), conv(inputs, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        return torch.cat([xs, self.conv(torch.relu(self.norm(xb)))], 1)


class UNet(nn.Module):
    def __init__(self, inputs: int = 3, width: int = 4) -> None:
        super().__init__()
        self.enter, self.down, self.deep = conv(inputs, width), conv(width, width), conv(4, 4)
        self.up1, self.up2 = conv(2 * width, width), conv(2 * width, inputs)

    def forward(self, x: Tensor) -> Tensor:
        _, outer_s, outer_b = fork(torch.relu(self.enter(x)))
        _, inner_s, inner_b = fork(torch.relu(self.down(functional.max_pool2d(outer_b, 2))))
        h = torch.relu(self.deep(functional.max_pool2d(inner_b, 2)))
        h = torch.cat([functional.interpolate(h, scale_factor=2.0), inner_s], 1)
        h = functional.interpolate(torch.relu(self.up1(h)), scale_factor=2.0)
        return self.up2(torch.cat([outer_s, h], 1))


class Attention(nn.Module):
    """One-head attention of x to a memory, to x itself by default."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        scores = self.query(x) @ self.key(memory).transpose(1, 2) / 6**0.5
        return self.out(torch.softmax(scores, -1) @ self.value(memory))


def mlp(width: int = 6, hidden: int = 12) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(6), Attention()
        self.norm2, self.mlp = nn.LayerNorm(6), mlp()

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        x = xs + self.attention(self.norm1(xb))
        _, xs, xb = fork(x)
        return xs + self.mlp(self.norm2(xb))


class PostNorm(nn.Module):
    """Adds in place to what a linear layer returned: a view, for inputs of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(), nn.LayerNorm(6)
        self.mlp, self.norm2 = mlp(), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        h = self.attention(xb)
        h += xs
        _, xs, xb = fork(self.norm1(h))
        return self.norm2(self.mlp(xb).add_(xs))


class ParallelBranches(nn.Module):
    """Attention and MLP read one tensor; added to each other first, or one after the other."""

    def __init__(self, at_once: bool, shared_norm: bool = False) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), mlp(hidden=24)
        self.norm = nn.LayerNorm(6) if shared_norm else None
        self.at_once = at_once

    def forward(self, x: Tensor) -> Tensor:
        if self.at_once:
            _, xs, xb = fork(x)
            xb = xb if self.norm is None else self.norm(xb)
            return xs + (self.attention(xb) + self.mlp(xb))
        x, xs, xb = fork(x)
        # Of the second addition the first one as a whole is the shortcut.
        if _taps is not None:
            second = [torch.zeros_like(x, requires_grad=True) for _ in range(2)]
            _taps.append(Tap(_taps[-1].fork, *second))
            return (xs + second[0]) + self.attention(xb + second[0]) + self.mlp(x + second[1])
        return x + self.attention(x) + self.mlp(x)


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.encoder = PreNorm()
        self.self_attention, self.cross_attention = Attention(), Attention()

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.encoder(self.embed(source))
        y = self.embed(target)
        _, ys, yb = fork(y)
        y = ys + self.self_attention(yb)
        _, ys, yb = fork(y)
        return ys + self.cross_attention(yb, memory)


class Recurrent(nn.Module):
    """A recurrence over time, one step of which is no join: their number would be the length's."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.cell = nn.Linear(3, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.read(x[:, 0]))
        for step in range(1, 4):
            _, hs, hb = fork(h)
            h = hs + torch.tanh(self.cell(hb) + self.read(x[:, step]))
        return h


class Res2Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = conv(8, 8, 1), conv(8, 8, 1)
        self.k2, self.k3, self.k4 = conv(2, 2), conv(2, 2), conv(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        x1, x2, x3, x4 = torch.relu(self.enter(xb)).chunk(4, 1)
        y2 = self.k2(x2)
        y3 = self.k3(x3 + y2)
        y4 = self.k4(x4 + y3)
        return xs + self.leave(torch.cat([x1, y2, y3, y4], 1))


class UNetBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(4)

    def forward(self, x: Tensor) -> Tensor:
        _, xs, xb = fork(x)
        return xs + self.unet(xb)


class Branches(nn.Module):
    """Residual steps on the input itself, each with extra readers of its fork."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.aside = nn.Linear(6, 6)
        self.scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, xs, xb = fork(x)
        aside = self.aside(x)
        x = xs + self.scale * torch.tanh(self.first(xb))
        x, xs, xb = fork(x)
        return xs + self.scale * torch.tanh(self.second(xb)), aside * x


class Plain(nn.Module):
    """Sums that are no joins: position, mask, bias, GELU by its formula, rotation, Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(10, 6), nn.Embedding(8, 6)
        self.first, self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.bias = nn.Parameter(torch.zeros(6))
        self.register_buffer("constant", torch.ones(6))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1]))
        x = x + self.position(torch.cumsum(ids > 0, 1)) + self.bias + self.constant
        x = x + torch.where(ids > 3, 0.0, -1.0)[..., None]
        x = self.first(x)
        x = 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))
        x = x.cos() * x + torch.cat([-x[..., 3:], x[..., :3]], -1) * x.sin()
        return torch.cat([self.left(x), self.right(x)], -1)


def image(channels: int = 3, size: int = 8) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(3, channels, size, size),)


def features(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(*shape),)


def stem(*blocks: nn.Module, inputs: int = 3, outputs: int = 4) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs), *blocks)


def under(path: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name in names)


BASIC = ("conv1", "bn1", "relu", "conv2", "bn2")
ATTENTION = ("query", "key", "value", "out")
MLP = ("mlp.0", "mlp.1", "mlp.2")
TWO_BLOCKS = tuple(Expected(str(i), branch_layers=(f"{i}.branch",)) for i in (1, 2))


def scaled(path: str, shortcut: str = "scaled") -> Expected:
    return Expected(path, "add", shortcut, under(path, "branch.0", "branch.1"))


def unet(path: str, name: str) -> tuple[Expected, ...]:
    def layers(*names: str) -> tuple[str, ...]:
        return tuple(path + layer for layer in names)

    return (
        Expected(name + "#0", "cat", "concat", layers("deep")),
        Expected(name + "#1", "cat", "concat", layers("down", "deep", "up1")),
    )


FAMILIES: dict[str, Family] = {
    "identity and projection": Family(
        lambda: stem(BasicBlock(4, 4), BasicBlock(4, 8, 2), BasicBlock(8, 8)),
        image(),
        (
            Expected("1", branch_layers=under("1", *BASIC)),
            Expected(
                "2", "add", "projection", under("2", *BASIC), under("2", "shortcut.0", "shortcut.1")
            ),
            Expected("3", branch_layers=under("3", *BASIC)),
        ),
    ),
    "zero padding": Family(
        lambda: stem(ZeroPadBlock()),
        image(),
        (Expected("1", branch_layers=under("1", "conv1", "conv2")),),
    ),
    "pre-activation": Family(
        lambda: stem(PreActivation(4, 4), PreActivation(4, 8, 2)),
        image(),
        (
            Expected("1", branch_layers=under("1", "bn1", "conv1", "bn2", "conv2")),
            Expected(
                "2", "add", "projection", under("2", "conv1", "bn2", "conv2"), ("2.projection",)
            ),
        ),
    ),
    "bottleneck": Family(
        lambda: stem(Bottleneck(), outputs=8),
        image(),
        (Expected("1", branch_layers=under("1", "reduce", "middle", "expand")),),
    ),
    "inverted residual": Family(
        lambda: stem(InvertedResidual(4, 6), InvertedResidual(6, 6)),
        image(),
        (Expected("2", branch_layers=under("2", *(f"body.{i}" for i in range(5)))),),
    ),
    "squeeze and excitation": Family(
        lambda: stem(SqueezeExcite()),
        image(),
        (Expected("1", branch_layers=under("1", "conv", "down", "up")),),
    ),
    "stochastic depth": Family(
        lambda: nn.Sequential(nn.Linear(6, 6), StochasticDepth(), StochasticDepth()),
        features(3, 6),
        TWO_BLOCKS,
    ),
    "scaled branches": Family(
        lambda: nn.Sequential(
            nn.Linear(6, 6),
            Scaled(torch.tensor(0.5)),
            Scaled(torch.full((6,), 1e-5), 1.1),
            Scaled(torch.tensor(0.3), 0.7),
        ),
        features(3, 6),
        (scaled("1", "identity"), scaled("2"), scaled("3")),
    ),
    "highway": Family(
        lambda: nn.Sequential(nn.Linear(6, 6), Highway(), Highway()),
        features(3, 6),
        tuple(Expected(str(i), "add", "gated", under(str(i), "gate", "transform")) for i in (1, 2)),
    ),
    "dense concatenation": Family(
        lambda: stem(Dense(4), Dense(6)),
        image(),
        tuple(Expected(str(i), "cat", "concat", under(str(i), "norm", "conv")) for i in (1, 2)),
    ),
    "u-net": Family(UNet, image(), unet("", "UNet"), (1, 0)),
    "pre-norm transformer": Family(
        lambda: nn.Sequential(nn.Linear(6, 6), PreNorm()),
        features(3, 4, 6),
        (
            Expected("1#0", branch_layers=("1.norm1", *under("1.attention", *ATTENTION))),
            Expected("1#1", branch_layers=under("1", "norm2", *MLP)),
        ),
    ),
    "post-norm transformer": Family(
        lambda: nn.Sequential(nn.Linear(6, 6), PostNorm()),
        features(3, 4, 6),
        (
            Expected("1#0", branch_layers=under("1.attention", *ATTENTION)),
            Expected("1#1", branch_layers=under("1", *MLP)),
        ),
    ),
    "parallel branches, one addition": Family(
        lambda: nn.Sequential(nn.Linear(6, 6), ParallelBranches(True)),
        features(3, 4, 6),
        (Expected("1", branch_layers=(*under("1.attention", *ATTENTION), *under("1", *MLP))),),
    ),
    "parallel branches of one norm": Family(
        lambda: nn.Sequential(nn.Linear(6, 6), ParallelBranches(True, True)),
        features(3, 4, 6),
        (
            Expected(
                "1",
                branch_layers=("1.norm", *under("1.attention", *ATTENTION), *under("1", *MLP)),
            ),
        ),
    ),
    "parallel branches, two additions": Family(
        lambda: nn.Sequential(nn.Linear(6, 6), ParallelBranches(False)),
        features(3, 4, 6),
        (
            Expected("1#0", branch_layers=under("1.attention", *ATTENTION)),
            Expected("1#1", branch_layers=under("1", *MLP)),
        ),
    ),
    "encoder and decoder": Family(
        EncoderDecoder,
        lambda: (torch.randint(10, (2, 5)), torch.randint(10, (2, 4))),
        (
            Expected(
                "encoder#0",
                branch_layers=("encoder.norm1", *under("encoder.attention", *ATTENTION)),
            ),
            Expected("encoder#1", branch_layers=under("encoder", "norm2", *MLP)),
            Expected("EncoderDecoder#0", branch_layers=under("self_attention", *ATTENTION)),
            Expected("EncoderDecoder#1", branch_layers=under("cross_attention", *ATTENTION)),
        ),
    ),
    "recurrent": Family(
        Recurrent,
        features(2, 4, 3),
        (),
        (),
    ),
    "res2net": Family(
        lambda: nn.Sequential(conv(3, 8), Res2Net()),
        image(),
        (
            Expected("1#0", branch_layers=("1.k2",)),
            Expected("1#1", branch_layers=("1.k2", "1.k3")),
            Expected("1#2", branch_layers=under("1", "enter", "k2", "k3", "k4", "leave")),
        ),
        (None, None, 0),
    ),
    "u-net inside a resnet": Family(
        lambda: nn.Sequential(conv(3, 4), UNetBlock()),
        image(),
        (
            *unet("1.unet.", "1.unet"),
            Expected("1", branch_layers=under("1.unet", "enter", "down", "deep", "up1", "up2")),
        ),
        (2, 1, 0),
    ),
    "extra readers of the input": Family(
        lambda: Branches(1e-5),
        features(3, 6),
        (
            Expected("Branches#0", branch_layers=("first",)),
            Expected("Branches#1", branch_layers=("second",)),
        ),
    ),
    "no joins": Family(Plain, lambda: (torch.randint(10, (2, 5)),), ()),
}

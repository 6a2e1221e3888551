"""Networks of the literature that no installed library has, with their joins counted by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import analyzer


class Switch:
    """Whether networks are built as written, or without their shortcuts: the plain twins."""

    is_plain = False


def shortcut(x: Tensor) -> Any:
    """What a sum adds of its shortcut: x, and nothing in a plain net."""
    return 0 if Switch.is_plain else x


def beside(x: Tensor) -> Tensor:
    """What a concatenation has of its shortcut."""
    return torch.zeros_like(x) if Switch.is_plain else x


def conv(i: int, o: int, k: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, bias=False), nn.BatchNorm2d(o))


def mlp(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class TimedBlock(nn.Module):
    """A residual block of DDPM; the embedded time scales and shifts inside of its branch."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.time, self.second = nn.Conv2d(i, o, 1), nn.Linear(8, 2 * o), conv(o, o)
        self.skip = nn.Identity() if i == o else nn.Conv2d(i, o, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, 1)
        return shortcut(self.skip(x)) + self.second(F.silu(self.first(x) * (1 + scale) + shift))


class DiffusionUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.stem, self.head = mlp(8, 8), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.down = nn.ModuleList([TimedBlock(8, 8), TimedBlock(8, 16)])
        self.middle = TimedBlock(16, 16)
        self.up = nn.ModuleList([TimedBlock(32, 8), TimedBlock(16, 8)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.time(torch.cat([t[:, None] * torch.arange(4), torch.ones(len(t), 4)], 1).sin())
        first = self.down[0](self.stem(x), t)
        second = self.down[1](F.avg_pool2d(first, 2), t)
        x = self.up[0](torch.cat([self.middle(second, t), beside(second)], 1), t)
        x = F.interpolate(x, scale_factor=2.0)
        return self.head(self.up[1](torch.cat([x, beside(first)], 1), t))


class SharedExpert(nn.Module):
    """Two of four experts for each token, and one for all, by a gate of its own (Qwen2-MoE)."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 4), nn.ModuleList(mlp(8, 16) for _ in range(4))
        self.shared = mlp(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 8)
        weights, chosen = self.router(tokens).softmax(-1).topk(2, -1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            out.index_add_(0, rows, expert(tokens[rows]) * weights[rows, place, None])
        return (out + torch.sigmoid(tokens[:, :1]) * self.shared(tokens)).view_as(x)


class Stream(nn.Module):
    """Blocks behind a norm each, added to one stream; the same block may come again."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(8)
        self.order = [list(self.blocks).index(block) for block in blocks]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for place in self.order:
            x = shortcut(x) + self.blocks[place](self.norm(x))
        return x


class Res2Net(nn.Module):
    """The block of scale 4: a slice, and what was made of the slices before, are added."""

    def __init__(self, by_slices: bool) -> None:
        super().__init__()
        self.by_slices = by_slices
        self.first, self.last = conv(16, 16, 1), conv(16, 16, 1)
        self.inner = nn.ModuleList(conv(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        parts = [h[:, 4 * n : 4 * n + 4] for n in range(4)] if self.by_slices else h.split(4, 1)
        made = [F.relu(self.inner[0](parts[0]))]
        for part, inner in zip(parts[1:], self.inner[1:], strict=False):
            made.append(F.relu(inner(shortcut(part) + made[-1])))
        return F.relu(shortcut(x) + self.last(torch.cat([*made, parts[3]], 1)))


class RepVGG(nn.Module):
    """The block while it trains: 3x3, 1x1 and (where the shape stays) a norm alone."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.dense, self.point = conv(8, 8, 3, stride), conv(8, 8, 1, stride)
        self.norm = nn.BatchNorm2d(8) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return F.relu(self.dense(x) + shortcut(self.point(x)))
        return F.relu(self.dense(x) + self.point(x) + shortcut(self.norm(x)))


class MobileOne(nn.Module):
    """Several equal convolutions beside a 1x1 and a norm, summed in place as in timm."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.scale = conv(8, 8, 1, stride)
        self.kernels = nn.ModuleList(conv(8, 8, 3, stride) for _ in range(3))
        self.norm = nn.BatchNorm2d(8) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.scale(x)
        for kernel in self.kernels:
            out += kernel(x)
        if self.norm is not None:
            out += shortcut(self.norm(x))
        return F.relu(out)


class WaveNet(nn.Module):
    """Gated convolutions on a stream; what each hands to the output is one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.gated = nn.ModuleList(nn.Conv1d(8, 16, 3, padding=1) for _ in range(4))
        self.residual = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(4))
        self.skip = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        skips: Any = 0
        x = x.sin()
        for gated, residual, skip in zip(self.gated, self.residual, self.skip, strict=True):
            value, gate = gated(x).chunk(2, 1)
            h = torch.tanh(value) * torch.sigmoid(gate)
            skips, x = skips + skip(h), x + residual(h)
        return F.relu(skips)


class Conditioned(nn.Module):
    """Blocks of a diffusion transformer: all gates are slices of what one condition gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.condition, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.gates = nn.ModuleList(nn.Linear(8, 48) for _ in range(2))
        self.mixers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.mlps = nn.ModuleList(mlp(8, 16) for _ in range(2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x, c = self.stem(x), F.silu(self.condition(c))
        for gates, mixer, inner in zip(self.gates, self.mixers, self.mlps, strict=True):
            s1, k1, g1, s2, k2, g2 = gates(c)[:, None].chunk(6, -1)
            x = shortcut(x) + g1 * mixer(self.norm(x) * (1 + k1) + s1)
            x = shortcut(x) + g2 * inner(self.norm(x) * (1 + k2) + s2)
        return x


class GatedUnit(nn.Module):
    """The gate of a gated transformer: a GRU whose state is the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(8, 24, bias=False), nn.Linear(8, 16)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        own, other = self.own(y).chunk(3, -1), self.other(x).chunk(2, -1)
        reset, update = (torch.sigmoid(a + b) for a, b in zip(own, other, strict=False))
        new = torch.tanh(own[2] + self.last(reset * x))
        return (1 - update) * shortcut(x) + update * new


class GatedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), nn.ModuleList(mlp(8, 16) for _ in range(2))
        self.gates = nn.ModuleList(GatedUnit() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for gate, inner in zip(self.gates, self.inner, strict=True):
            x = gate(x, inner(self.norm(x)).relu())
        return x


class Reversible(nn.Module):
    """Two streams side by side, each with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(4, 8), mlp(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        a = shortcut(a) + self.first(b)
        return torch.cat([a, shortcut(b) + self.second(a)], -1)


class Scan(nn.Module):
    """A state space layer, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.decay = nn.Linear(8, 16), nn.Parameter(torch.rand(8, 4))
        self.skip = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        step, write, read = self.project(x).split([8, 4, 4], -1)
        state, made = torch.zeros(len(x), 8, 4), []
        for t in range(x.shape[1]):
            new = (step[:, t] * x[:, t])[:, :, None] * write[:, t, None]
            state = torch.exp(-step[:, t, :, None] * self.decay) * state + new
            made.append((state * read[:, t, None]).sum(-1))
        return torch.stack(made, 1) + x * self.skip


class GatedRecurrence(nn.Module):
    """A recurrence whose gates read the element alone (minGRU)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        state, made = torch.zeros(len(x), 8), []
        for t in range(x.shape[1]):
            gate = torch.sigmoid(self.gate(x[:, t]))
            state = (1 - gate) * state + gate * self.value(x[:, t])
            made.append(state)
        return torch.stack(made, 1)


@dataclass(frozen=True)
class Network:
    """How it is built, its inputs at each length, its joins, and why it has so many."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    num_joins: int
    reason: str
    lengths: tuple[int, ...] = (8,)
    has_twin: bool = True


def image(size: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size),)


def tokens(length: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, length, 8),)


def behind_stem(*blocks: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 1), *blocks)


def behind_layer(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), *blocks)


NETWORKS = {
    "diffusion U-Net": Network(
        DiffusionUNet,
        lambda size: (*image(size), torch.tensor([1.0, 7.0])),
        7,
        "five blocks, two concatenations; none where the time scales and shifts",
        (8, 16),
    ),
    "shared expert": Network(
        lambda: Stream(SharedExpert(), mlp(8, 16)),
        tokens,
        2,
        "routed experts and the shared one are branches of one sum",
        (4, 9),
    ),
    "shared layer": Network(
        lambda: Stream(*[mlp(8, 16)] * 4), tokens, 4, "a block that comes again joins again", (3, 9)
    ),
    "Res2Net": Network(
        lambda: behind_stem(Res2Net(False), Res2Net(False), width=16),
        image,
        6,
        "a block adds around itself and, hierarchically, to its third and second slice",
    ),
    "Res2Net by slices": Network(
        lambda: behind_stem(Res2Net(True), width=16), image, 3, "likewise, written with slices"
    ),
    "RepVGG": Network(
        lambda: behind_stem(RepVGG(1), RepVGG(2)), image, 2, "parallel branches are summed first"
    ),
    "MobileOne": Network(
        lambda: behind_stem(MobileOne(1), MobileOne(2)),
        image,
        2,
        "a sum of parallel branches is one join, however many there are",
        has_twin=False,  # without a norm its shortcut is one of the branches
    ),
    "diffusion transformer": Network(
        Conditioned,
        lambda length: (*tokens(length), torch.randn(2, 8)),
        4,
        "a block adds two branches, each behind a gate of the condition",
        (1, 3),
    ),
    "gated transformer": Network(
        lambda: behind_layer(GatedBlock(), GatedBlock()),
        tokens,
        4,
        "a gate is one join; what it adds inside of itself gates alone",
        (1, 3),
    ),
    "reversible": Network(
        lambda: behind_layer(Reversible(), Reversible()),
        tokens,
        4,
        "two streams, a sum each; side by side they are no join",
        (3,),
    ),
    "scan": Network(
        lambda: Stream(Scan(), Scan()),
        tokens,
        2,
        "steps over time are none, also one alone",
        (1, 4),
    ),
    "minGRU": Network(
        lambda: Stream(GatedRecurrence(), GatedRecurrence()), tokens, 2, "likewise", (1, 4)
    ),
    "WaveNet": Network(
        WaveNet,
        lambda length: (torch.randn(2, 8, length),),
        4,
        "three sums of the stream that are read again, and the one sum of what is handed on",
        has_twin=False,
    ),
}


def results(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    output = model(*inputs)
    gradients = torch.autograd.grad(
        output.sin().sum(), list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    return [output, *gradients]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_literature_have_the_joins_of_their_architecture(name: str) -> None:
    network = NETWORKS[name]
    for length in network.lengths:
        torch.manual_seed(0)
        model, inputs = network.build().eval(), network.inputs(length)
        joins = analyzer.find_joins(model, *inputs)
        assert len(joins) == network.num_joins, network.reason
        splits = analyzer.gradient_splits(model, inputs, None, lambda output, _: output.sin().sum())
        columns = [f"{side}_gradient_norm" for side in ("shortcut", "branch", "fork")]
        assert (splits[[*columns, "shortcut_output_norm", "branch_output_norm"]] > 0).all(axis=None)
        with analyzer.skip_scale(model, 0.0):
            without = results(model, inputs)
        if network.has_twin:
            Switch.is_plain = True
            try:
                expected = results(model, inputs)
            finally:
                Switch.is_plain = False
            assert all(map(torch.equal, without, expected))

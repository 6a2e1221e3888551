"""Trainings whose state is known by construction: sick ones with their cure, and healthy ones."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import analyzer

__all__ = ["HEALTHY_NETS", "SICK_NETS", "Deep", "Training", "train_net"]

Rates = Callable[[int], float]


@dataclass
class Training:
    """A model and what is done with it; see `train_net`."""

    model: nn.Module
    lr: float = 0.05
    steps: int = 120
    loss: Callable[..., Tensor] = F.cross_entropy
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    settings: dict[str, Any] = field(default_factory=lambda: {"momentum": 0.9})
    params: Iterable[nn.Parameter] | None = None
    clears: bool = True
    data: Callable[[], tuple[Tensor, Tensor]] = lambda: mixture()
    before: Callable[[int, nn.Module], None] = lambda step, model: None
    rate: Rates | None = None
    step: Callable[[Tensor, Tensor], Tensor] | None = None
    loop: Callable[[Path], None] | None = None


def train_net(training: Training, path: Path) -> Path:
    """Train under the recorder on batches of 64; return the run folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (training.loop or (lambda path: _loop(training, path)))(path)
    finally:
        torch.set_num_threads(threads)
    return path


def _loop(training: Training, path: Path) -> None:
    model, (x, y) = training.model, training.data()
    wanted = [p for p in model.parameters() if p.requires_grad]
    held = list(wanted if training.params is None else training.params)
    optimizer = training.optimizer(held, lr=training.lr, **training.settings)
    generator = torch.Generator().manual_seed(0)
    with analyzer.Recorder(model, path, updates_every=5, splits_every=5):
        for step in range(training.steps):
            some = torch.randint(0, len(x), (64,), generator=generator)
            training.before(step, model)
            if training.rate is not None:
                optimizer.param_groups[0]["lr"] = training.rate(step)
            if training.clears:
                optimizer.zero_grad()
            if training.step is not None:
                loss = training.step(x[some], y[some])
            else:
                loss = training.loss(model(x[some]), y[some])
            loss.backward()
            optimizer.step()


def mixture(scale: float = 1.0, *, shuffled: bool = False) -> tuple[Tensor, Tensor]:
    """Ten Gaussian clouds in 32 dimensions; with ``shuffled`` labels belong to no input."""
    g = torch.Generator().manual_seed(123)
    centers = torch.randn(10, 32, generator=g)
    y = torch.randint(0, 10, (1024,), generator=g)
    x = centers[y] + torch.randn(1024, 32, generator=g)
    return scale * x, y[torch.randperm(1024, generator=g)] if shuffled else y


def images(channels: int = 1) -> tuple[Tensor, Tensor]:
    """Four classes of 8 × 8 images: where a bright square is, in noise."""
    g = torch.Generator().manual_seed(7)
    y = torch.randint(0, 4, (512,), generator=g)
    x = 0.5 * torch.randn(512, channels, 8, 8, generator=g)
    for place in range(4):
        rows, columns = 4 * (place // 2), 4 * (place % 2)
        x[y == place, :, rows : rows + 4, columns : columns + 4] += 1.5
    return x, y


def sequences() -> tuple[Tensor, Tensor]:
    """Sequences in which each sign follows from the last one: the next is 3k + 1 modulo 16."""
    g = torch.Generator().manual_seed(5)
    signs = [torch.randint(0, 16, (512,), generator=g)]
    for _ in range(12):
        signs.append((3 * signs[-1] + 1) % 16)
    whole = torch.stack(signs, 1)
    return whole[:, :-1], whole[:, 1:]


def mlp(act: Callable[[], nn.Module] = nn.ReLU, depth: int = 4, width: int = 48) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Linear(32, width), act()]
    for _ in range(depth - 2):
        parts += [nn.Linear(width, width), act()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


class Deep(nn.Module):
    """Two linear layers a block, plain or residual, ``skip · x + scale · block(x)``."""

    def __init__(
        self,
        depth: int,
        *,
        shortcuts: bool = False,
        norm: Callable[[int], nn.Module] | None = None,
        gain: float | None = None,
        scale: float = 1.0,
        act: Callable[[], nn.Module] = nn.ReLU,
        width: int = 48,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shortcuts, self.scale = shortcuts, scale
        self.stem, self.head = nn.Linear(32, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList()
        for _ in range(depth // 2):
            parts: list[nn.Module] = []
            for _ in range(2):
                parts += [nn.Linear(width, width), *([norm(width)] if norm else []), act()]
            self.blocks.append(nn.Sequential(*parts))
        for part in self.modules():
            if isinstance(part, nn.Linear) and gain is not None:
                nn.init.normal_(part.weight, 0, math.sqrt(gain / part.weight.shape[1]))
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + self.scale * block(x) if self.shortcuts else block(x)
        scores: Tensor = self.head(x)
        return scores


# --- sick ones: each takes whether the remedy was applied --------------------------------------


def dead(cured: bool) -> Training:
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(0.0 if cured else -20.0)
    return Training(model)


def saturated(cured: bool) -> Training:
    model = mlp(nn.Tanh)
    with torch.no_grad():
        for part in model[::2]:
            part.weight.mul_(1 if cured else 30)
    return Training(model)


def saturated_sigmoid(cured: bool) -> Training:
    model = mlp(nn.Sigmoid, depth=3)
    with torch.no_grad():
        for part in model[::2]:
            part.weight.mul_(1 if cured else 100)
    return Training(model, optimizer=torch.optim.Adam, settings={}, lr=1e-2)


def too_small(cured: bool) -> Training:
    return Training(mlp(), lr=1e-2 if cured else 1e-5)


def too_small_adam(cured: bool) -> Training:
    return Training(mlp(), optimizer=torch.optim.Adam, settings={}, lr=1e-3 if cured else 1e-7)


def wrong_labels(cured: bool) -> Training:
    return Training(mlp(), data=lambda: mixture(shuffled=not cured), lr=0.02)


def inputs_without_signal(cured: bool) -> Training:
    def data() -> tuple[Tensor, Tensor]:
        x, y = mixture()
        return (x if cured else torch.randn(x.shape, generator=torch.Generator().manual_seed(9))), y

    return Training(mlp(), data=data, lr=0.02)


def frozen(cured: bool) -> Training:
    model = mlp()
    model[2].requires_grad_(cured)
    return Training(model)


def frozen_first(cured: bool) -> Training:
    model = mlp()
    model[0].requires_grad_(cured)
    return Training(model)


def only_the_head(cured: bool) -> Training:
    model = mlp()
    return Training(model, params=(model if cured else model[-1]).parameters())


class _WithUnused(nn.Module):
    def __init__(self, cured: bool) -> None:
        super().__init__()
        self.net, self.cured = mlp(), cured
        self.shift = nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores + self.shift if self.cured else scores


class _Cut(nn.Module):
    def __init__(self, cured: bool) -> None:
        super().__init__()
        self.first, self.rest, self.cured = nn.Linear(32, 32), mlp(), cured

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        scores: Tensor = self.rest(x if self.cured else x.detach())
        return scores


def summed(cured: bool) -> Training:
    how = "mean" if cured else "sum"
    return Training(mlp(), loss=lambda o, t: F.cross_entropy(o, t, reduction=how))


def summed_by_hand(cured: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        squares = (output - F.one_hot(target, 10)).square()
        return squares.mean() if cured else squares.sum()

    return Training(mlp(), loss=loss)


def never_cleared(cured: bool) -> Training:
    return Training(mlp(), clears=cured, optimizer=torch.optim.Adam, settings={}, lr=1e-3)


def in_eval_mode(cured: bool) -> Training:
    return Training(Deep(8, norm=nn.BatchNorm1d).train(cured))


def eval_after_validation(cured: bool) -> Training:
    """``model.eval()`` for a validation after 20 steps, and no ``model.train()`` after it."""

    def before(step: int, model: nn.Module) -> None:
        if step == 20:
            model.eval()
            with torch.no_grad():
                model(mixture()[0])
            model.train(cured)

    return Training(Deep(4, norm=nn.BatchNorm1d), before=before)


def unscaled_inputs(cured: bool) -> Training:
    return Training(mlp(), data=lambda: mixture(1.0 if cured else 128.0), lr=0.02)


def tiny_inputs(cured: bool) -> Training:
    return Training(mlp(), data=lambda: mixture(1.0 if cured else 1e-4), lr=0.02)


class _Scaled(nn.Module):
    """A linear layer with a factor in its forward pass."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.randn(48, 48) * 0.2), factor

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T * self.factor


def cliff(cured: bool) -> Training:
    model = Deep(8, gain=2.0)
    model.blocks[2][0] = _Scaled(1.0 if cured else 1e-5)
    return Training(model, lr=1e-3)


def stops_writing(cured: bool) -> Training:
    def before(step: int, model: nn.Module) -> None:
        if step == 60 and not cured:
            with torch.no_grad():
                model.blocks[1][2].weight.zero_()
                model.blocks[1][2].bias.fill_(-1.0)

    return Training(Deep(6, shortcuts=True), before=before, lr=0.01)


def explodes_at_first(cured: bool) -> Training:
    return Training(Deep(44, norm=nn.BatchNorm1d, shortcuts=cured, gain=2.0), steps=40, lr=0.01)


def diverges(cured: bool) -> Training:
    return Training(mlp(), lr=0.05 if cured else 20.0, steps=40)


def diverges_deep(cured: bool) -> Training:
    return Training(Deep(10, shortcuts=True, scale=0.2), lr=0.01 if cured else 3.0, steps=40)


def decayed(cured: bool) -> Training:
    decay = 1e-4 if cured else 1.0
    return Training(mlp(), settings={"momentum": 0.9, "weight_decay": decay})


def vanishes(cured: bool) -> Training:
    return Training(Deep(20, gain=2.0 if cured else 0.5), lr=0.01 if cured else 0.05, steps=60)


def explodes(cured: bool) -> Training:
    return Training(Deep(20, gain=2.0 if cured else 8.0), lr=1e-2 if cured else 1e-9, steps=60)


def squashed(cured: bool) -> Training:
    """A softmax at the end of a network whose loss takes scores."""
    model = mlp()
    return Training(model if cured else model.append(nn.Softmax(dim=1)), lr=0.02)


def squashed_bits(cured: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        output = output[:, 0] if cured else output[:, 0].sigmoid()
        return F.binary_cross_entropy_with_logits(output, (target > 4).float())

    return Training(mlp(), loss=loss)


def without_logarithm(cured: bool) -> Training:
    last = F.log_softmax if cured else F.softmax
    return Training(mlp(), loss=lambda o, t: F.nll_loss(last(o, 1), t))


def softmax_over_the_batch(cured: bool) -> Training:
    axis = 1 if cured else 0
    return Training(mlp(), loss=lambda o, t: F.nll_loss(F.log_softmax(o, axis), t))


def maximized(cured: bool) -> Training:
    return Training(mlp(), settings={} if cured else {"maximize": True})


def minus(cured: bool) -> Training:
    sign = 1 if cured else -1
    return Training(mlp(), loss=lambda o, t: sign * F.cross_entropy(o, t), steps=60, lr=0.02)


def constant_weights(cured: bool) -> Training:
    model = mlp()
    with torch.no_grad():
        for part in [] if cured else model[::2]:
            part.weight.fill_(0.02)
            part.bias.zero_()
    return Training(model)


def no_learning_rate(cured: bool) -> Training:
    return Training(mlp(), lr=0.05 if cured else 0.0)


def schedule_of_an_epoch(cured: bool) -> Training:
    """A learning rate that reaches 0 after a third of the steps."""
    last = 120 if cured else 40
    return Training(mlp(), rate=lambda step: 0.05 * max(0.0, 1 - step / last))


def optimizer_of_a_copy(cured: bool) -> Training:
    model = mlp()
    return Training(model, params=(model if cured else copy.deepcopy(model)).parameters())


def clipped(cured: bool) -> Training:
    model = mlp()

    def loop(path: Path) -> None:
        x, y = mixture()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        generator = torch.Generator().manual_seed(0)
        with analyzer.Recorder(model, path, updates_every=5):
            for _ in range(120):
                some = torch.randint(0, len(x), (64,), generator=generator)
                optimizer.zero_grad()
                F.cross_entropy(model(x[some]), y[some]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0 if cured else 1e-6)
                optimizer.step()

    return Training(model, loop=loop)


def dropped(cured: bool) -> Training:
    model = mlp()
    parts = [(one, nn.Dropout(0.1 if cured else 0.99)) for one in model[:-1]]
    flat = [part for pair in parts for part in (pair if isinstance(pair[0], nn.ReLU) else pair[:1])]
    return Training(nn.Sequential(*flat, model[-1]))


SICK_NETS: dict[str, tuple[str, Callable[[bool], Training]]] = {
    "dead units under a low bias": ("dead", dead),
    "tanh with large weights": ("saturated", saturated),
    "sigmoids with large weights": ("saturated", saturated_sigmoid),
    "a learning rate of 1e-5": ("step_too_small", too_small),
    "Adam with 1e-7": ("step_too_small", too_small_adam),
    "labels of other inputs": ("chance_level", wrong_labels),
    "inputs of mere noise": ("chance_level", inputs_without_signal),
    "a frozen layer in the middle": ("frozen", frozen),
    "a frozen first layer": ("frozen", frozen_first),
    "an optimizer of the head alone": ("not_optimized", only_the_head),
    "a parameter of the root that is not used": ("unused", lambda c: Training(_WithUnused(c))),
    "a graph that is cut": ("detached", lambda c: Training(_Cut(c))),
    "a summed cross entropy": ("summed_loss", summed),
    "a square error summed by hand": ("summed_loss", summed_by_hand),
    "gradients that are never cleared": ("gradients_not_cleared", never_cleared),
    "batch norm in eval mode": ("eval_mode", in_eval_mode),
    "eval mode after a validation": ("eval_mode", eval_after_validation),
    "inputs from 0 to 255": ("input_scale", unscaled_inputs),
    "inputs of 1e-4": ("input_scale", tiny_inputs),
    "one layer scaled by 1e-5": ("cliff", cliff),
    "a branch that stops writing": ("silent_block", stops_writing),
    "44 layers with batch norm": ("explodes_at_first", explodes_at_first),
    "a learning rate of 20": ("diverging", diverges),
    "a deep net with a learning rate of 3": ("diverging", diverges_deep),
    "a weight decay of 1": ("weights_decayed", decayed),
    "a softmax before cross entropy": ("loss_input", squashed),
    "a sigmoid before a loss of scores": ("loss_input", squashed_bits),
    "probabilities without a logarithm": ("loss_input", without_logarithm),
    "a softmax over the batch": ("loss_input", softmax_over_the_batch),
    "an optimizer that maximizes": ("ascent", maximized),
    "a loss with a minus": ("ascent", minus),
    "constant weights": ("alike_units", constant_weights),
    "a learning rate of 0": ("weights_fixed", no_learning_rate),
    "a schedule that ends at a third": ("weights_fixed", schedule_of_an_epoch),
    "an optimizer of a copy": ("weights_fixed", optimizer_of_a_copy),
    "gradients clipped at 1e-6": ("step_too_small", clipped),
    "a dropout of 0.99": ("dropout_too_high", dropped),
    "20 layers that are initialized too small": ("vanishing", vanishes),
    "20 layers that are initialized too large": ("exploding", explodes),
}


# --- healthy ones ------------------------------------------------------------------------------


class _ConvBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        result: Tensor = self.relu(x + self.norm2(self.conv2(y)))
        return result


def resnet() -> Training:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        *(_ConvBlock(8) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return Training(model, data=images, steps=60)


class _TransformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        seen, size = self.norm1(x), x.shape[1]
        mask = torch.ones(size, size, dtype=torch.bool).triu(1)
        x = x + self.attend(seen, seen, seen, attn_mask=mask, need_weights=False)[0]
        result: Tensor = x + self.shrink(self.gelu(self.grow(self.norm2(x))))
        return result


class _Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.place = nn.Embedding(16, 32), nn.Parameter(0.02 * torch.randn(12, 32))
        self.blocks = nn.ModuleList(_TransformerBlock(32) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.place
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.cells = nn.Embedding(16, 32), nn.LSTM(32, 32, 2, batch_first=True)
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.cells(self.token(x))[0])
        return scores


def of_sequences(model: nn.Module) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    adam = torch.optim.AdamW
    return Training(model, data=sequences, loss=loss, optimizer=adam, settings={}, lr=3e-3)


class _Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.relu = nn.Linear(64, 48), nn.ReLU()
        self.mean, self.log_var = nn.Linear(48, 4), nn.Linear(48, 4)
        self.decode, self.out = nn.Linear(4, 48), nn.Linear(48, 64)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.relu(self.encode(x.flatten(1)))
        mean, log_var = self.mean(hidden), self.log_var(hidden)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return self.sigmoid(self.out(self.relu(self.decode(z)))), mean, log_var


def vae() -> Training:
    """With the summed loss of the well-known example, and Adam, which takes any scale."""
    model = _Vae()

    def step(x: Tensor, y: Tensor) -> Tensor:
        target = (x > 0.75).float().flatten(1)
        made, mean, log_var = model(target)
        entropy = F.binary_cross_entropy(made, target, reduction="sum")
        return entropy - 0.5 * torch.sum(1 + log_var - mean.square() - log_var.exp())

    return Training(model, data=images, step=step, optimizer=torch.optim.Adam, settings={}, lr=2e-3)


def gan() -> Training:
    torch.manual_seed(0)
    maker = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 8), nn.Tanh())
    judge = nn.Sequential(nn.Linear(8, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    model = nn.ModuleDict({"maker": maker, "judge": judge})

    def loop(path: Path) -> None:
        adam = {k: torch.optim.Adam(m.parameters(), 2e-3, (0.5, 0.9)) for k, m in model.items()}
        loss, ones, zeros = (
            F.binary_cross_entropy_with_logits,
            torch.ones(64, 1),
            torch.zeros(64, 1),
        )
        with analyzer.Recorder(model, path, updates_every=5):
            for _ in range(80):
                real = torch.tanh(0.5 * torch.randn(64, 8) + 0.5)
                made = maker(torch.randn(64, 4))
                adam["judge"].zero_grad()
                (loss(judge(real), ones) + loss(judge(made.detach()), zeros)).backward()
                adam["judge"].step()
                adam["maker"].zero_grad()
                loss(judge(made), ones).backward()
                adam["maker"].step()

    return Training(model, loop=loop)


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.up2, self.up1 = nn.Conv2d(32, 8, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.out, self.relu, self.pool = nn.Conv2d(8, 1, 1), nn.ReLU(), nn.MaxPool2d(2)
        self.grow = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.relu(self.down1(x))
        two = self.relu(self.down2(self.pool(one)))
        low = self.relu(self.middle(self.pool(two)))
        two = self.relu(self.up2(torch.cat([two, self.grow(low)], 1)))
        one = self.relu(self.up1(torch.cat([one, self.grow(two)], 1)))
        result: Tensor = self.out(one)
        return result


def unet() -> Training:
    model = _UNet()

    def step(x: Tensor, y: Tensor) -> Tensor:
        clean = (F.avg_pool2d(x, 3, 1, 1) > 0.6).float()
        return F.binary_cross_entropy_with_logits(model(x), clean)

    adam = torch.optim.Adam
    return Training(model, data=images, step=step, optimizer=adam, settings={}, lr=3e-3, steps=60)


class _ReZero(Deep):
    """Every branch is multiplied by a number that is trained from zero."""

    def __init__(self) -> None:
        super().__init__(12, shortcuts=True)
        self.alphas = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for alpha, block in zip(self.alphas, self.blocks, strict=True):
            x = x + alpha * block(x)
        scores: Tensor = self.head(x)
        return scores


def overfit() -> Training:
    def data() -> tuple[Tensor, Tensor]:
        x, y = mixture()
        return x[:64], y[:64]

    return Training(mlp(), data=data, steps=300)


def warm_up() -> Training:
    return Training(
        Deep(8, shortcuts=True, norm=nn.LayerNorm), rate=lambda t: 0.1 * min(1, (t + 1) / 60)
    )


def fine_tuned() -> Training:
    """A backbone that was trained, frozen; a new head on it."""
    model = mlp()
    model[:-1].requires_grad_(False)
    return Training(model)


class _Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(32, 32), nn.Linear(32, 10)
        self.branches = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.sigmoid, self.relu = nn.Sigmoid(), nn.ReLU()
        for gate in self.gates:
            nn.init.constant_(gate.bias, -4.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch, gate in zip(self.branches, self.gates, strict=True):
            open_ = self.sigmoid(gate(x))
            x = open_ * self.relu(branch(x)) + (1 - open_) * x
        scores: Tensor = self.head(x)
        return scores


def distilled() -> Training:
    """A teacher that is finished, called with gradient, whose parameters nobody optimizes."""
    model, teacher = mlp(), mlp(width=64)

    def step(x: Tensor, y: Tensor) -> Tensor:
        soft = teacher(x).detach().softmax(1)
        return F.cross_entropy(model(x), y) + F.mse_loss(model(x).softmax(1), soft)

    return Training(model, step=step)


def begun_by_hand() -> Training:
    """The weights are set after the first pass, before there is an optimizer."""
    model, start = mlp(), mlp(width=48)

    def loop(path: Path) -> None:
        x, y = mixture()
        with analyzer.Recorder(model, path, updates_every=5):
            F.cross_entropy(model(x[:64]), y[:64]).backward()
            with torch.no_grad():
                for parameter, other in zip(model.parameters(), start.parameters(), strict=True):
                    parameter.copy_(torch.randn_like(other) * other.std())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            for step in range(14):
                optimizer.zero_grad()
                some = slice(64 * step, 64 * step + 64)
                F.cross_entropy(model(x[some]), y[some]).backward()
                optimizer.step()

    return Training(model, loop=loop)


def accumulated() -> Training:
    """Four micro-batches an update, a validation in eval mode with gradients in between."""
    model = Deep(6, shortcuts=True, norm=nn.BatchNorm1d)

    def loop(path: Path) -> None:
        x, y = mixture()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        with analyzer.Recorder(model, path, updates_every=5):
            for step in range(60):
                for k in range(4):
                    some = torch.arange(64 * step + 16 * k, 64 * step + 16 * k + 16) % 1024
                    (F.cross_entropy(model(x[some]), y[some]) / 4).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
                if step % 10 == 9:
                    model.eval()
                    model(x[:64])
                    model.train()

    return Training(model, loop=loop)


class _Vit(nn.Module):
    """With fixed positions, a parameter of the root that wants no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(1, 32, 2, 2)
        self.last = nn.Parameter(torch.zeros(1, 1, 32))
        self.places = nn.Parameter(0.02 * torch.randn(1, 17, 32), requires_grad=False)
        self.blocks = nn.ModuleList(_TransformerBlock(32) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([x, self.last.expand(len(x), -1, -1)], 1) + self.places
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x)[:, -1])
        return scores


def goes_on() -> Training:
    """A network that has learned already, at a learning rate near the end of its decay."""
    model, (x, y) = mlp(), mixture()
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()
        adam.step()
    return Training(model, lr=1e-4, settings={})


def frozen_stem() -> Training:
    """The first two layers of a network that has learned something else stay as they are."""
    model = mlp(depth=5)
    model[:4].requires_grad_(False)
    return Training(model)


class _Tied(nn.Module):
    """One matrix reads signs and scores them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.block = nn.Embedding(16, 32), _TransformerBlock(32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 16, bias=False)
        nn.init.normal_(self.token.weight, 0, 0.1)
        self.head.weight = self.token.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(self.block(self.token(x))))
        return scores


def policy_gradient() -> Training:
    """REINFORCE on a bandit with noisy rewards: the loss is noise about zero and never falls."""
    model = mlp()
    generator = torch.Generator().manual_seed(3)

    def step(x: Tensor, y: Tensor) -> Tensor:
        logs = F.log_softmax(model(x), 1)
        chosen = torch.multinomial(logs.exp().detach(), 1, generator=generator)[:, 0]
        reward = (chosen == y).float() + 0.5 * torch.randn(len(y), generator=generator)
        gained = logs.gather(1, chosen[:, None])[:, 0] * (reward - reward.mean())
        return -gained.mean()

    return Training(model, step=step, steps=150)


def contrastive() -> Training:
    """Two noisy views of each input; the label of each is its own place in the batch."""
    model = mlp()
    generator = torch.Generator().manual_seed(4)

    def step(x: Tensor, y: Tensor) -> Tensor:
        views = [x + 0.3 * torch.randn(x.shape, generator=generator) for _ in range(2)]
        one, other = (F.normalize(model(view), dim=1) for view in views)
        return F.cross_entropy(one @ other.T / 0.2, torch.arange(len(x)))

    return Training(model, step=step, optimizer=torch.optim.Adam, settings={}, lr=2e-3)


def constant_target() -> Training:
    """A regression whose target is one number."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output[:, 0], torch.full((len(output),), 0.7))

    return Training(mlp(), loss=loss, lr=0.01, steps=200)


def quick_statistics() -> Training:
    """Running statistics that are those of the last batch alone; the training does not use them."""
    return Training(Deep(8, norm=lambda width: nn.BatchNorm1d(width, momentum=1.0)))


def zero_head() -> Training:
    """A last layer that starts at zero, and a schedule that ends at it."""
    model = Deep(6, shortcuts=True, norm=nn.LayerNorm)
    nn.init.zeros_(model.head.weight)
    return Training(model, rate=lambda step: 0.05 * (1 - step / 119))


HEALTHY_NETS: dict[str, Callable[[], Training]] = {
    "ResNet": resnet,
    "GPT": lambda: of_sequences(_Gpt()),
    "LSTM": lambda: of_sequences(_Lstm()),
    "VAE": vae,
    "GAN": gan,
    "U-Net": unet,
    "ReZero": lambda: Training(_ReZero()),
    "overfit": overfit,
    "branches scaled by 0.001": lambda: Training(Deep(12, shortcuts=True, scale=1e-3)),
    "warm-up": warm_up,
    "fine-tuning": fine_tuned,
    "Highway": lambda: Training(_Highway()),
    "distillation": distilled,
    "weights set before there is an optimizer": begun_by_hand,
    "micro-batches and validations": accumulated,
    "ViT with fixed positions": lambda: Training(
        _Vit(), data=images, optimizer=torch.optim.Adam, settings={}, lr=1e-3, steps=60
    ),
    "a resumed training": goes_on,
    "a frozen stem": frozen_stem,
    "tied weights": lambda: of_sequences(_Tied()),
    "policy gradient": policy_gradient,
    "contrastive": contrastive,
    "a constant target": constant_target,
    "running statistics of one batch": quick_statistics,
    "a head that starts at zero": zero_head,
    "a residual net without normalization": lambda: Training(
        Deep(20, shortcuts=True, gain=1.8), optimizer=torch.optim.Adam, settings={}, lr=1e-3
    ),
    "a summed loss with a small rate": lambda: Training(
        mlp(), lr=5e-4, loss=lambda o, t: F.cross_entropy(o, t, reduction="sum")
    ),
}

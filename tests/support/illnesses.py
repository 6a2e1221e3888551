"""Small trainings, each with one illness, and healthy ones: real networks, a second each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import analyzer
from analyzer.networks.data import batches, dataset
from analyzer.networks.zoo import zoo

__all__ = ["HEALTHY", "SICK", "Patient", "record"]

Loss = Callable[[Tensor, Tensor], Tensor]
Pairs = Iterator[tuple[Tensor, Tensor]]


@dataclass
class Patient:
    """A model and how it is trained.

    Args:
        model: The model.
        lr: Learning rate.
        steps: Updates.
        loss: ``loss(output, target)``.
        optimizer: Class of the optimizer.
        prepare: Changes the input of a step.
    """

    model: nn.Module
    lr: float = 0.02
    steps: int = 40
    loss: Loss = cross_entropy
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    prepare: Callable[[int, Tensor], Tensor] = lambda step, x: x


def record(patient: Patient, path: Path) -> Path:
    """Train on digits under the recorder, every step in full; return the run folder."""
    data = batches(dataset("digits"), 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Such small layers lose more by sharing than they gain.
    try:
        return _recorded(patient, path, data)
    finally:
        torch.set_num_threads(threads)


def _recorded(patient: Patient, path: Path, data: Pairs) -> Path:
    """Train and record."""
    model = patient.model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = patient.optimizer(trained, lr=patient.lr)
    with analyzer.Recorder(model, path, splits_every=1, updates_every=1):
        for step, (x, y) in zip(range(patient.steps), data, strict=False):
            optimizer.zero_grad()
            patient.loss(model(patient.prepare(step, x)), y).backward()
            optimizer.step()
    return path


def built(name: str) -> nn.Module:
    return zoo(name, in_channels=1, num_classes=10, image_size=8, seed=0)


class Net(nn.Module):
    """Three hidden layers; one forward for each illness of a layer."""

    def __init__(self, illness: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.illness = illness
        self.first, self.relu1 = nn.Linear(64, 32), nn.ReLU()
        self.second, self.relu2 = nn.Linear(32, 32), nn.ReLU()
        self.third, self.relu3 = nn.Linear(32, 32), nn.ReLU()
        self.output = nn.Linear(32, 10)
        for layer in (self.first, self.second, self.third):
            nn.init.kaiming_normal_(layer.weight)
        if illness == "frozen":
            self.second.requires_grad_(False)
        if illness == "dead":
            nn.init.constant_(self.second.bias, -100)
        if illness == "dead_units":
            with torch.no_grad():
                self.second.bias[:24] = -100

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.first(x.flatten(1)))
        if self.illness == "detached":
            x = x.detach()
        if self.illness != "unused":
            x = self.relu2(self.second(x))
        scores: Tensor = self.output(self.relu3(self.third(x)))
        return scores


class ScaledBlock(nn.Module):
    """``x + scale * relu(linear(x))``; ReZero where the scale starts at zero and is trained."""

    def __init__(self, scale: float, *, is_trained: bool) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(32, 32), nn.ReLU()
        self.scale = nn.Parameter(torch.tensor(scale)) if is_trained else scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.relu(self.linear(x))


class UndoingBlock(nn.Module):
    """``x + linear(x)`` with a branch that takes nearly all of x away again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        with torch.no_grad():
            self.linear.weight.copy_(-0.8 * torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


def stack(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *blocks, nn.Linear(32, 10))


def scaled(scale: float, *, is_trained: bool) -> nn.Module:
    torch.manual_seed(0)
    return stack(*(ScaledBlock(scale, is_trained=is_trained) for _ in range(6)))


def falling_silent() -> Patient:
    """From step 20 on the third of six blocks adds a ten-thousandth of what it did."""
    model = scaled(0.5, is_trained=False)

    def prepare(step: int, x: Tensor) -> Tensor:
        model[4].scale = 0.5 if step < 20 else 5e-5
        return x

    return Patient(model, prepare=prepare)


def undoing() -> nn.Module:
    torch.manual_seed(0)
    return stack(UndoingBlock(), UndoingBlock())


def branch_scales() -> nn.Module:
    torch.manual_seed(0)
    return stack(*(ScaledBlock(scale, is_trained=False) for scale in (1.0, 0.1, 0.001)))


def saturating() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.Softsign(), nn.Linear(32, 10), nn.Sigmoid()
    )


def linear_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10))


def out_of_reach(output: Tensor, target: Tensor) -> Tensor:
    """Sigmoids cannot reach 9; they saturate on the way."""
    return mse_loss(output, torch.full_like(output, 9.0))


def infinite_at_20(step: int, x: Tensor) -> Tensor:
    return x / 0 if step == 20 else x


class Attention(nn.Module):
    """Pre-norm transformer layers over the rows of the image."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm, self.output = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1))
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.output(self.norm(x).mean(1))
        return scores


SICK: dict[str, Callable[[], Patient]] = {
    "vanishing": lambda: Patient(built("mlp20")),
    "exploding": lambda: Patient(built("mlp24-residual-he"), lr=1e-9),
    "nonfinite": lambda: Patient(Net("none"), prepare=infinite_at_20),
    "dead": lambda: Patient(Net("dead")),
    "detached": lambda: Patient(Net("detached")),
    "unused": lambda: Patient(Net("unused")),
    "frozen": lambda: Patient(Net("frozen")),
    "dead_units": lambda: Patient(Net("dead_units")),
    "update_too_small": lambda: Patient(Net("none"), lr=1e-8),
    "update_too_large": lambda: Patient(
        linear_net(), optimizer=torch.optim.Adam, lr=0.05, steps=12
    ),
    "diverging": lambda: Patient(linear_net(), optimizer=torch.optim.Adam, lr=0.5, steps=12),
    "shrinking": lambda: Patient(
        saturating(), loss=out_of_reach, optimizer=torch.optim.Adam, lr=0.05
    ),
    "cancellation": lambda: Patient(undoing(), lr=1e-3),
    "sleeping_branch": lambda: Patient(scaled(1e-6, is_trained=False)),
    "stream_grows": lambda: Patient(built("mlp12-residual-he"), lr=1e-4),
    "silent_block": falling_silent,
}
HEALTHY: dict[str, Callable[[], Patient]] = {
    "plain convolutions with batch norm": lambda: Patient(built("plain8")),
    "residual net with zero-initialized branches": lambda: Patient(built("resnet8-b-zeroinit")),
    "ReZero that wakes up": lambda: Patient(scaled(0.0, is_trained=True)),
    "residual net with layer norm": lambda: Patient(built("mlp10-residual-layernorm")),
    "residual net with batch norm": lambda: Patient(built("resnet20"), steps=12),
    "branches of scale 1, 0.1 and 0.001": lambda: Patient(branch_scales(), lr=0.05),
    "transformer": lambda: Patient(Attention(), lr=1e-3, optimizer=torch.optim.AdamW),
    "deep transformer": lambda: Patient(
        Attention(8), lr=1e-3, optimizer=torch.optim.AdamW, steps=12
    ),
    "plain net with He's weights": lambda: Patient(Net("none")),
}

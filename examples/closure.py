"""A trainer that passes a closure to ``optimizer.step``, as Lightning does.

The backward pass then happens inside of the optimizer's step. Nothing has to be changed for that.

Example:
    analyzer record --probe paths examples/closure.py
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Module(nn.Module):
    """What a user of such a trainer writes: a network, a training step, an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Two residual blocks of one layer, and a head."""
        x = x + torch.tanh(self.first(x))
        x = x + torch.tanh(self.second(x))
        return self.head(x)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        inputs, targets = batch
        return nn.functional.mse_loss(self(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Trainer:
    """The part that a framework brings along.

    Args:
        max_steps: Number of updates.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def fit(self, module: Module, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Train the module."""
        optimizer = module.configure_optimizers()
        for _, batch in zip(range(self.max_steps), batches, strict=False):

            def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
                optimizer.zero_grad()
                loss = module.training_step(batch)
                loss.backward()
                return loss

            optimizer.step(closure)


def random_batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random inputs with the norm of each as its target."""
    while True:
        inputs = torch.randn(32, 8)
        yield inputs, inputs.norm(dim=1, keepdim=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    Trainer(max_steps=30).fit(Module(), random_batches())

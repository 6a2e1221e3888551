"""An ordinary training loop that knows nothing of the analyzer; record it from outside.

Example:
    analyzer record examples/plain_loop.py --blocks 8
    analyzer show latest
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


class Block(nn.Module):
    """A residual block: ``x + F(x)``, with two linear layers in its branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the shortcut to the branch."""
        return x + self.branch(x)


def main() -> None:
    """Train a small residual network on handwritten digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()

    torch.manual_seed(0)
    images, targets = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    blocks = [Block(32) for _ in range(options.blocks)]
    model = nn.Sequential(nn.Linear(64, 32), *blocks, nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(options.steps):
        batch = torch.randint(len(images), (64,))
        loss = nn.functional.cross_entropy(model(images[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()

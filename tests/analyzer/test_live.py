import pytest
import torch
from torch import nn

import analyzer


class Residual(nn.Module):
    """One block, ``x + scale · branch(x)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Linear(3, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(x))


def test_joins_and_splits_of_one_block_are_those_of_autograd():
    torch.manual_seed(0)
    model, x, y = Residual().double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    (join,) = analyzer.find_joins(model, x)
    assert (join.operation, join.shortcut, join.branch_layers) == ("add", "identity", ["branch"])
    frame = analyzer.gradient_splits(model, x, y, nn.functional.mse_loss)
    stem = model.stem(x)
    for detached, column in ((0, "branch_gradient_norm"), (1, "shortcut_gradient_norm")):
        shortcut = stem.detach() if detached == 0 else stem
        branch = model.branch(stem.detach() if detached == 1 else stem)
        loss = nn.functional.mse_loss(model.head(shortcut + branch), y)
        (expected,) = torch.autograd.grad(loss, stem, retain_graph=True)
        assert frame[column].iloc[0] == pytest.approx(expected.norm().item(), rel=1e-12)
    assert not any(p.grad is not None for p in model.parameters())

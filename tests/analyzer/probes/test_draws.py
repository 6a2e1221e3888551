"""A probe draws the same random numbers each time; the program's own go on as if it never ran."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from analyzer.probes import HeldBatch, probe_named


class Noisy(nn.Module):
    """A residual net whose branch is dropped at random, and which draws in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Linear(4, 6), nn.Linear(6, 6)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.dropout(self.branch(h)) * (1 + random.random() + np.random.rand())
        return self.head(h + 0.1 * torch.rand(h.shape[-1]))


def states() -> list[object]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("name", ["shattering", "lesion", "curvature", "attribution"])
def test_a_probe_gives_the_same_values_at_any_moment_of_the_generators(name):
    torch.manual_seed(0)
    model = Noisy().train()
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    batch = HeldBatch(model, x, y, cross_entropy)
    first = pd.DataFrame(dict(probe_named(name)(batch).columns))
    torch.rand(3), random.random(), np.random.rand()
    before = states()
    again = pd.DataFrame(dict(probe_named(name)(batch).columns))
    assert states() == before
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    numbers = first.select_dtypes("float").to_numpy()
    assert np.isfinite(numbers).any() and (numbers != 0).any()

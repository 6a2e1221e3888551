"""`find_joins` on every family, built by hand, and that it leaves no trace."""

import copy

import pytest
import torch
from torch import Tensor, nn

from analyzer.joins import find_joins
from tests.support.families import FAMILIES, BasicBlock, Expected, Family


def seen(model: nn.Module, *args: Tensor) -> list[Expected]:
    return [
        Expected(
            join.name,
            join.operation,
            join.shortcut,
            tuple(join.branch_layers),
            tuple(join.shortcut_layers),
        )
        for join in find_joins(model, *args)
    ]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_each_family_has_the_joins_that_its_author_counts(family: Family, training: bool) -> None:
    torch.manual_seed(0)
    model = family.build().train(training)
    assert seen(model, *family.inputs()) == list(family.joins)

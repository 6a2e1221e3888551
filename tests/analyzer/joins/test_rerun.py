"""Rescaled branches: without shortcuts the variance at each depth is that of the original."""

import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.joins.rerun import rescale_branches
from analyzer.networks.zoo import zoo


def deviations(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found.update({name: output.std().item()})
        )
        for name in names
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", ["resnet20", "mlp10-residual-preact", "simple8"])
def test_without_shortcuts_each_block_has_the_original_deviation(name: str) -> None:
    torch.manual_seed(0)
    model = zoo(name, in_channels=1, num_classes=4, image_size=8)
    x = torch.randn(32, 1, 8, 8)
    blocks = [join.name for join in analyzer.find_joins(model, x)]
    sums = [block for block in blocks if not hasattr(model.get_submodule(block), "relu1")]
    original = deviations(model, x, sums)
    with analyzer.skip_scale(model, 0):
        before = deviations(model, x, sums)
    state = torch.get_rng_state()
    rescaling = rescale_branches(model, (x,), {})
    assert torch.equal(torch.get_rng_state(), state)
    assert rescaling.unmatched == ()
    assert len(rescaling.factors) == len(blocks)
    with analyzer.skip_scale(model, 0):
        after = deviations(model, x, sums)
    if name == "mlp10-residual-preact":  # nothing comes after the addition
        for block in sums:
            assert after[block] == pytest.approx(original[block], rel=0.02)
            assert before[block] != pytest.approx(original[block], rel=0.1)


def test_two_models_of_one_seed_get_the_same_factors() -> None:
    x = torch.randn(8, 1, 8, 8)
    nets = [zoo("resnet20", in_channels=1, num_classes=4, image_size=8) for _ in range(2)]
    assert rescale_branches(nets[0], (x,), {}) == rescale_branches(nets[1], (x,), {})


class Block(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.branch, self.scale = nn.Linear(6, 6, bias=False), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.branch(x)


def test_the_factor_of_a_linear_branch_is_the_quotient_of_the_deviations() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), Block(0.1)), torch.randn(50, 6)
    h = model[0](x)
    expected = (h + 0.1 * model[1].branch(h)).std(correction=0) / (0.1 * model[1].branch(h)).std(
        correction=0
    )
    weight = model[1].branch.weight.detach().clone()
    found = rescale_branches(model, (x,), {})
    assert found.factors == {"1.branch": pytest.approx(expected.item(), rel=1e-5)}
    assert torch.allclose(model[1].branch.weight, expected * weight)


def test_a_branch_that_is_zero_for_good_is_named_and_a_norm_that_starts_at_zero_wakes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), Block(0.0)), torch.randn(50, 6)
    assert rescale_branches(model, (x,), {}).unmatched == ("1",)
    net = zoo("resnet20-zeroinit", in_channels=1, num_classes=4, image_size=8)
    found = rescale_branches(net, (torch.randn(16, 1, 8, 8),), {})
    assert found.unmatched == ()

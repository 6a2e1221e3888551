import math

import pytest
import torch
from torch import nn

from analyzer.networks.blocks import BasicBlock, PaddedShortcut, PreactivationBlock
from analyzer.networks.zoo import ResNet


# He et al. (2015), table 6.
@pytest.mark.parametrize(
    ("depth", "published"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_parameters_are_as_many_as_published(depth: int, published: float) -> None:
    millions = sum(p.numel() for p in ResNet(depth).parameters()) / 1e6
    digits = 1 if depth == 110 else 2
    assert round(millions, digits) == published


@pytest.mark.parametrize("preactivation", [False, True])
def test_depth_counts_the_layers_with_weights(preactivation: bool) -> None:
    model = ResNet(26, preactivation=preactivation)
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert layers == 26


# Channels 16 → 32 → 64; without bias beside a norm. Option C also projects all nine blocks.
@pytest.mark.parametrize(
    ("shortcut", "extra"),
    [
        ("A", 0),
        ("B", 16 * 32 + 32 * 64),
        ("C", 3 * 16 * 16 + 16 * 32 + 2 * 32 * 32 + 32 * 64 + 2 * 64 * 64),
    ],
)
def test_projections_add_their_parameters(shortcut: str, extra: int) -> None:
    plain, residual = ResNet(20, residual=False), ResNet(20, shortcut=shortcut)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (plain, residual)]
    assert sizes[1] - sizes[0] == extra


def test_the_padded_shortcut_keeps_every_second_pixel_and_adds_zeros() -> None:
    x = torch.randn(2, 3, 5, 5)
    y = PaddedShortcut(7, 2)(x)
    assert y.shape == (2, 7, 3, 3)
    assert torch.equal(y[:, :3], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert not y[:, 3:].any()


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_residual_minus_shortcuts_is_the_plain_twin(
    shortcut: str, norm: str | None, preactivation: bool
) -> None:
    plain, residual = (
        ResNet(8, shortcut=shortcut, norm=norm, preactivation=preactivation, residual=flag)
        for flag in (False, True)
    )
    assert set(plain.state_dict()) <= set(residual.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(plain(x), residual(x))
    for block in residual.modules():
        if isinstance(block, BasicBlock | PreactivationBlock):
            block.residual = False
    assert torch.equal(plain(x), residual(x))


def test_a_preactivation_shortcut_of_identity_reads_the_raw_input() -> None:
    block = PreactivationBlock(4, 4, 1, "A", None)
    nn.init.zeros_(block.branch[-1].weight)
    nn.init.zeros_(block.branch[-1].bias)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("norm", ["batch", None])
def test_zero_initialized_blocks_hand_their_input_on(norm: str | None, preactivation: bool) -> None:
    model = ResNet(14, zero_init=True, norm=norm, preactivation=preactivation)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(model.layer1(x), x)


def test_he_weights_have_deviation_root_two_over_fan_in() -> None:
    weight = ResNet(14, width=64).layer3[1].branch[0].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)


@pytest.mark.parametrize(("depth", "near"), [(21, "20 and 26"), (2, "8 and 14")])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int, near: str) -> None:
    with pytest.raises(ValueError, match=rf"depth {depth} cannot.*6n \+ 2; the nearest are {near}"):
        ResNet(depth)

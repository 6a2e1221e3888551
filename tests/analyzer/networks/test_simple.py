import pytest
import torch
from torch import Tensor, nn

from analyzer.networks.blocks import PairBlock, SimpleBlock
from analyzer.networks.data import batches, dataset
from analyzer.networks.loop import optimizer, train
from analyzer.networks.zoo import ConstantWidthNet


def output_gradient_norms(model: nn.Module) -> list[float]:
    """Return ‖δ‖ of every convolution on one batch of digits, in forward order."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        found.append(output)

    handles = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    x, y = next(batches(dataset("digits"), 64))
    nn.functional.cross_entropy(model(x), y).backward()
    for handle in handles:
        handle.remove()
    return [output.grad.double().norm().item() for output in found]


def final_loss(model: nn.Module) -> float:
    losses: list[Tensor] = []
    train(
        model,
        batches(dataset("digits"), 64),
        steps=400,
        optimizer=optimizer("sgd", model, 0.02),
        max_norm=1.0,
        on_step=lambda step, loss: losses.append(loss),
    )
    return torch.stack(losses[-20:]).mean().item()


def test_the_simple_block_is_relu_of_conv_plus_x() -> None:
    block = SimpleBlock(3)
    x = torch.randn(2, 3, 5, 5)
    by_hand = nn.functional.conv2d(x, block.conv.weight, block.conv.bias, padding=1).relu() + x
    assert torch.equal(block(x), by_hand)


def test_the_pair_block_adds_before_its_last_relu() -> None:
    block = PairBlock(3)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(block(x), (block.conv2(block.conv1(x).relu()) + x).relu())


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_residual_minus_shortcuts_is_the_plain_twin(norm: str | None, single: bool) -> None:
    plain, residual = (
        ConstantWidthNet(4, norm=norm, single=single, residual=flag) for flag in (False, True)
    )
    assert list(plain.state_dict()) == list(residual.state_dict())
    x = torch.randn(4, 1, 8, 8)
    assert not torch.equal(plain(x), residual(x))
    for block in residual.blocks:
        block.residual = False
    assert torch.equal(plain(x), residual(x))


def test_plain_gradients_fall_by_0_39_a_layer_and_residual_ones_do_not() -> None:
    plain = output_gradient_norms(ConstantWidthNet(residual=False))
    residual = output_gradient_norms(ConstantWidthNet(residual=True))
    assert len(plain) == 29
    assert (plain[0] / plain[-1]) ** (1 / 28) == pytest.approx(0.39, abs=0.03)
    assert (residual[0] / residual[-1]) ** (1 / 28) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_the_plain_net_does_not_learn_digits_and_the_residual_one_does() -> None:
    assert final_loss(ConstantWidthNet(residual=False)) == pytest.approx(2.30, abs=0.02)
    assert final_loss(ConstantWidthNet(residual=True)) == pytest.approx(0.44, abs=0.25)


def test_convolutions_that_leave_half_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="7 convolutions do not fill blocks of 2; choose a positi"):
        ConstantWidthNet(7)

import pytest
import torch
from torch import Tensor, nn

from analyzer.networks.blocks import MLPBlock
from analyzer.networks.zoo import MLP


@pytest.mark.parametrize("depth", [2, 5, 50])
def test_depth_counts_the_linear_layers(depth: int) -> None:
    model = MLP(8, 3, depth=depth, width=4)
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == depth


def test_an_mlp_is_the_formula_written_by_hand() -> None:
    model = MLP(6, 3, depth=4, width=5, residual=True, block_layers=2)
    w = list(model.parameters())
    x = torch.randn(7, 2, 3)

    def linear(value: Tensor, index: int) -> Tensor:
        return value @ w[2 * index].T + w[2 * index + 1]

    h = linear(x.flatten(1), 0).relu()
    h = (linear(linear(h, 1).relu(), 2) + h).relu()
    torch.testing.assert_close(model(x), linear(h, 3))


def test_a_preactivated_block_is_the_formula_written_by_hand() -> None:
    block = MLPBlock(5, preactivation=True, branch_scale=0.1)
    weight, bias = block.parameters()
    x = torch.randn(7, 5)
    torch.testing.assert_close(block(x), x + 0.1 * (x.relu() @ weight.T + bias))


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_residual_minus_shortcuts_is_the_plain_twin(norm: str | None, preactivation: bool) -> None:
    plain, residual = (
        MLP(6, 3, depth=6, norm=norm, preactivation=preactivation, residual=flag)
        for flag in (False, True)
    )
    x = torch.randn(8, 6)
    assert not torch.equal(plain(x), residual(x))
    for block in residual.blocks:
        block.residual = False
    assert torch.equal(plain(x), residual(x))


def test_seeds_decide_the_weights_and_leave_the_global_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (MLP(6, 3, depth=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.input.weight, same.input.weight)
    assert not torch.equal(one.input.weight, other.input.weight)


@pytest.mark.parametrize(("depth", "layers"), [(1, 1), (5, 2)])
def test_a_depth_without_whole_blocks_is_refused(depth: int, layers: int) -> None:
    with pytest.raises(ValueError, match=rf"depth {depth} cannot be built.*choose 2 \+ {layers}·n"):
        MLP(6, 3, depth=depth, block_layers=layers)

"""Lesions against the same network written without one of its branches."""

import copy
import json

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import analyzer
from analyzer.networks.zoo import zoo
from analyzer.probes import HeldBatch, lesion
from analyzer.storage.schema import PROBES


class Net(nn.Module):
    """Three blocks ``x + tanh(f(x))``; `without` and `order` say how they are applied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor, without: int | None = None, order: tuple[int, ...] = (0, 1, 2)):
        x = self.stem(x)
        for number in order:
            x = x if number == without else self.blocks[number](x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.norm(self.branch(x)))


@pytest.fixture
def trained() -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(40, 4), torch.randint(0, 3, (40,))
    model(x)  # moves the running statistics
    return model, x, y


def test_each_row_is_also_the_network_without_one_shortcut(trained):
    model, x, y = trained
    frame = analyzer.lesion_study(model, x, y, cross_entropy)
    model.eval()
    for join in range(3):
        h = model.stem(x)
        for number, block in enumerate(model.blocks):
            branch = torch.tanh(block.norm(block.branch(h)))
            h = branch if number == join else h + branch
        output = model.head(h)
        assert frame["shortcut_loss"][join] == cross_entropy(output, y).item()
        expected = (output.argmax(1) == y).double().mean().item()
        assert frame["shortcut_accuracy"][join] == expected
        with analyzer.skip_scale(model, {f"blocks.{join}": 0}):
            assert torch.equal(model(x), output)
    changes = frame["shortcut_loss"] - frame.attrs["loss"]
    assert frame["shortcut_loss_change"].tolist() == changes.tolist()


def test_each_row_is_the_network_without_one_branch(trained):
    model, x, y = trained
    frame = analyzer.lesion_study(model, x, y, cross_entropy)
    assert list(frame.columns) == PROBES["lesion"].names
    model.eval()
    whole = cross_entropy(model(x), y).item()
    assert frame.attrs["loss"] == pytest.approx(whole, abs=1e-7)
    for join in range(3):
        output = model(x, without=join)
        row = frame.loc[join]
        assert row["join"] == join
        assert row["loss"] == pytest.approx(cross_entropy(output, y).item(), abs=1e-6)
        assert row["loss_change"] == pytest.approx(row["loss"] - whole, abs=1e-6)
        assert row["accuracy"] == (output.argmax(1) == y).double().mean().item()
    assert frame["loss_change"].abs().min() > 1e-4


def test_neighboring_blocks_trade_places(trained):
    model, x, y = trained
    swaps = analyzer.lesion_study(model, x, y, cross_entropy).attrs["permutations"]
    model.eval()
    orders = {("blocks.0", "blocks.1"): (1, 0, 2), ("blocks.1", "blocks.2"): (0, 2, 1)}
    assert [tuple(swap["blocks"]) for swap in swaps] == list(orders)
    for swap, order in zip(swaps, orders.values(), strict=True):
        output = model(x, order=order)
        assert swap["loss"] == pytest.approx(cross_entropy(output, y).item(), abs=1e-6)
        assert swap["accuracy"] == (output.argmax(1) == y).double().mean().item()


def test_nothing_of_the_model_changes(trained):
    model, x, y = trained
    model.blocks[1].eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    analyzer.lesion_study(model, x, y, cross_entropy)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [m.training for m in model.blocks] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_without_classes_there_is_no_accuracy_and_what_is_not_finite_is_kept(trained):
    model, x, _ = trained
    model.eval()
    frame = analyzer.lesion_study(model, x, torch.randn(40, 3), mse_loss)
    assert frame["accuracy"].isna().all()
    with torch.no_grad():
        model.blocks[1].branch.weight[0, 0] = float("nan")
    found = lesion.measure(HeldBatch(model, x, torch.randn(40, 3), mse_loss))
    losses = pd.Series(found.columns["loss"])
    assert losses.isna().tolist() == [True, False, True]
    assert json.loads(found.metadata["accuracy"]) is None


def test_blocks_of_other_shapes_do_not_trade_places():
    model = zoo("resnet20", in_channels=1, num_classes=4, image_size=8)
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([0, 3])
    frame = analyzer.lesion_study(model, {"input": x}, y, cross_entropy)
    assert frame["join"].tolist() == list(range(9))
    # Three stages of three blocks; the first block of the later two has another shape.
    assert len(frame.attrs["permutations"]) == 2 + 1 + 1


def test_a_plain_network_has_nothing_to_leave_out():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    found = lesion.measure(HeldBatch(nn.Linear(3, 2), x, y, cross_entropy))
    assert list(found.columns) == PROBES["lesion"].names
    assert not any(found.columns.values())
    assert found.metadata["permutations"] == "[]"


def test_a_concatenation_loses_the_slice_of_its_branch():
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.head = nn.Linear(3, 2), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([x, self.branch(x)], 1))

    torch.manual_seed(0)
    model, x, y = Dense(), torch.randn(4, 3), torch.randn(4, 1)
    (row,) = analyzer.lesion_study(model, (x,), y, mse_loss).itertuples()
    without = mse_loss(model.head(torch.cat([x, torch.zeros(4, 2)], 1)), y).item()
    assert row.loss == pytest.approx(without, abs=1e-7)

"""`find_joins` on every family, built by hand, and that it leaves no trace."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from analyzer.joins.find import find_joins, plan_joins
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


def layers(model: nn.Module, *args: Tensor) -> list[tuple[str, list[str]]]:
    return [(join.name, join.branch_layers) for join in find_joins(model, *args)]


class Stem(nn.Module):
    """A frozen stem with a block of its own, then a trained block on what it gives."""

    def __init__(self, no_grad: bool) -> None:
        super().__init__()
        self.stem, self.inside, self.head = (nn.Linear(4, 4) for _ in range(3))
        self.no_grad = no_grad
        for module in (self.stem, self.inside):
            module.requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + torch.tanh(self.inside(x))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.no_grad):
            x = self.features(x)
        return torch.nn.functional.layer_norm(x, (4,)) + self.head(x)


def test_a_fork_that_is_the_input_is_found_without_an_edge_in_the_graph() -> None:
    block = Stem(no_grad=False)
    block.features = lambda x: x  # type: ignore[method-assign]
    assert layers(block, torch.randn(2, 4)) == [("Stem", ["head"])]


def test_frozen_parts_have_the_joins_that_they_have_when_trained() -> None:
    frozen = Stem(no_grad=False)
    trained = copy.deepcopy(frozen).requires_grad_(True)
    expected = [("Stem#0", ["inside"]), ("Stem#1", ["head"])]
    assert layers(trained, torch.randn(2, 4)) == expected
    assert layers(frozen, torch.randn(2, 4)) == expected


def test_a_stem_without_grad_ends_at_its_output() -> None:
    assert layers(Stem(no_grad=True), torch.randn(2, 4)) == [("Stem", ["head"])]


def test_freezing_everything_changes_no_join() -> None:
    for name in ("identity and projection", "u-net", "pre-norm transformer", "highway", "res2net"):
        family = FAMILIES[name]
        model = family.build().requires_grad_(False).eval()
        assert seen(model, *family.inputs()) == list(family.joins), name


def test_inputs_that_require_a_gradient_change_no_join() -> None:
    family = FAMILIES["extra readers of the input"]
    (x,) = family.inputs()
    assert seen(family.build(), x.requires_grad_()) == list(family.joins)


class RawParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.tanh(x @ self.weight.t() * 2)


def test_parameters_used_by_hand_count_like_layers() -> None:
    (join,) = find_joins(RawParameters(), torch.randn(2, 4))
    assert (join.name, join.branch_parameters, join.shortcut_parameters) == ("RawParameters", 16, 0)


def test_parametrized_and_tied_weights_are_no_data_path() -> None:
    linear = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    tied = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = linear, tied

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(torch.tanh(x))
            x = x + torch.tanh(self.first(x))
            return x + self.second(x)

    assert [join.branch_layers for join in find_joins(Net(), torch.randn(2, 4))] == [
        ["first"],
        ["second#1"],
    ]


def test_branches_of_equal_weight_are_no_join() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.left(x)) + self.right(x)

    assert find_joins(Net(), torch.randn(2, 4)) == []


def test_loss_terms_and_the_cells_of_torch_are_no_joins() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTM(4, 4), nn.GRU(4, 4)
            self.head, self.deep = nn.Linear(4, 1), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            h = self.gru(self.lstm(x)[0])[0]
            return self.head(h).mean() + 0.3 * self.deep(h).mean()

    assert find_joins(Net(), torch.randn(3, 2, 4)) == []


def test_multihead_attention_and_encoder_layers_of_torch_have_their_joins() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
    expected = [
        ("0#0", ["0.self_attn", "0.dropout1"]),
        ("0#1", ["0.linear1", "0.dropout", "0.linear2", "0.dropout2"]),
    ]
    for model in (nn.Sequential(layer), nn.Sequential(layer).requires_grad_(False)):
        assert layers(model, torch.randn(2, 3, 4)) == expected


def test_a_thousand_blocks_are_found_without_recursion() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.branch(x))

    joins = find_joins(nn.Sequential(*(Block() for _ in range(1000))), torch.randn(1, 2))
    assert [join.name for join in joins] == [str(index) for index in range(1000)]


def test_finding_joins_leaves_no_trace() -> None:
    model = nn.Sequential(BasicBlock(3, 3), nn.Dropout(0.5))
    before = copy.deepcopy(model.state_dict())
    tensors = [*model.parameters(), *model.buffers()]
    versions = [tensor._version for tensor in model.parameters()]
    x, random_state = torch.randn(2, 3, 4, 4), torch.get_rng_state()
    copied = x.clone()
    find_joins(model, x)
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.equal(x, copied)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [id(t) for t in tensors] == [id(t) for t in (*model.parameters(), *model.buffers())]
    assert versions == [parameter._version for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_error_of_the_model_is_the_users_and_leaves_no_hook() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        find_joins(model, torch.randn(2, 4))
    assert not model[0]._forward_hooks


def test_what_cannot_be_seen_is_named_with_its_reason() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=True)

    model = nn.Sequential(nn.Linear(3, 3), Hidden())
    assert plan_joins(model, (torch.randn(2, 3),), {}).unseen == [
        ("1", "reentrant checkpointing hides what it computes")
    ]


def test_additions_by_other_functions_are_joins() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.addcmul(x, self.scale, self.first(x))
            x = torch.lerp(x, self.second(x), 0.3)
            return torch.sub(x, self.third(x), alpha=0.5)

    branches = [join.branch_layers for join in find_joins(Net(), torch.randn(2, 4))]
    assert branches == [["first"], ["second"], ["third"]]


def test_concatenation_with_every_earlier_layer_is_one_join_each() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            features = [x]
            for layer in (self.first, self.second):
                features.append(torch.relu(layer(torch.cat(features, 1))))
            return torch.cat(features, 1)

    joins = find_joins(Net(), torch.randn(2, 4))
    assert [(j.operation, j.shortcut, j.branch_layers) for j in joins] == [
        ("cat", "concat", ["first"]),
        ("cat", "concat", ["first", "second"]),
    ]


def test_a_model_that_draws_from_python_and_numpy_leaves_their_generators_alone() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1 + random.random() + np.random.rand())

    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    find_joins(nn.Sequential(nn.Linear(3, 3), Drawing()), torch.randn(2, 3))
    assert (random.random(), np.random.rand()) == expected

"""Splits against autograd with each side of each join fed apart."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analyzer.joins.backward import join_gradients, splits_of_model
from analyzer.joins.calls import tensors_in
from analyzer.joins.products import JoinGradients, split_products, split_statistics
from tests.support.families import FAMILIES, Branches, Family, Scaled, taps


def wavy_loss(output: Any, target: None) -> Tensor:
    """A loss whose gradient differs from element to element."""
    return sum((t * torch.arange(t.numel()).view_as(t).cos()).sum() for t in tensors_in(output))


def gradients_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[JoinGradients]:
    found: dict[int, JoinGradients] = {}
    join_gradients(model, inputs, None, wavy_loss, lambda j, g: found.update({j.index: g}))
    return [found[index] for index in sorted(found)]


def norm(parts: tuple[Tensor, ...] | None) -> float:
    assert parts is not None
    return torch.cat([part.flatten() for part in parts]).double().norm().item()


def difference(parts: tuple[Tensor, ...] | None, truth: Tensor) -> float:
    assert parts is not None
    (part,) = parts
    return ((part - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["64", "32"]
)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_splits_are_what_autograd_gives_for_each_side_alone(
    family: Family, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    model = family.build().to(dtype).eval()
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in family.inputs())
    with taps() as tapped:
        value = wavy_loss(model(*inputs), None)
    found = gradients_of(model, inputs)
    order = tuple(range(len(tapped))) if family.tap_order is None else family.tap_order
    assert len(found) == len(order) == len(family.joins)
    for gradients, place in zip(found, order, strict=True):
        if place is None:
            continue
        tap = tapped[place]
        fork, shortcut, branch = torch.autograd.grad(
            value, (tap.fork, tap.shortcut, tap.branch), retain_graph=True
        )
        assert difference(gradients.shortcut, shortcut) <= tolerance
        assert difference(gradients.branch, branch) <= tolerance
        assert difference(gradients.fork, fork) <= tolerance


def test_chunks_of_a_tensor_carry_separate_gradients() -> None:
    torch.manual_seed(0)
    family = FAMILIES["res2net"]
    for gradients in gradients_of(
        family.build().double(), tuple(x.double() for x in family.inputs())
    ):
        assert gradients.shortcut is not None
        assert gradients.branch is not None
        assert gradients.fork is not None
        assert 0 < norm(gradients.shortcut) < 1e6
        assert len(gradients.shortcut) == len(gradients.branch) == len(gradients.fork)


def test_splits_are_gradients_with_the_other_operand_detached() -> None:
    torch.manual_seed(0)
    branch = nn.Linear(5, 5).double()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = branch

        def forward(self, x: Tensor) -> Tensor:
            return x + 1e-5 * torch.tanh(self.branch(x))

    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    (gradients,) = gradients_of(Block(), (x.detach(),))
    small = 1e-5 * torch.tanh(branch(x))
    (through_shortcut,) = torch.autograd.grad(wavy_loss(x + small.detach(), None), x)
    (through_branch,) = torch.autograd.grad(wavy_loss(x.detach() + small, None), x)
    assert difference(gradients.shortcut, through_shortcut) <= 1e-12
    assert difference(gradients.branch, through_branch) <= 1e-12


def test_a_branch_that_starts_at_zero_has_share_one_exactly() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Scaled(torch.tensor(0.0)), Scaled(torch.tensor(0.0)))
    splits = splits_of_model(model, torch.randn(3, 6), None, wavy_loss)
    assert splits["shortcut_share"] == [1.0, 1.0]
    assert splits["branch_gradient_norm"] == [0.0, 0.0]
    assert splits["cosine"] == [None, None]
    assert splits["join_gradient_norm"][1] == pytest.approx(splits["shortcut_gradient_norm"][1])


def test_norms_share_and_cosine_follow_their_formulas() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    model = Branches(0.3)
    splits = splits_of_model(model, x, None, wavy_loss)
    for index, gradients in enumerate(gradients_of(model, (x,))):
        assert gradients.shortcut is not None
        assert gradients.branch is not None
        s, b = gradients.shortcut[0].double().flatten(), gradients.branch[0].double().flatten()
        assert splits["shortcut_gradient_norm"][index] == pytest.approx(s.norm().item())
        assert splits["branch_gradient_norm"][index] == pytest.approx(b.norm().item())
        assert splits["fork_gradient_norm"][index] == pytest.approx(norm(gradients.fork))
        assert splits["join_gradient_norm"][index] == pytest.approx(norm(gradients.join))
        total = s + b
        assert splits["shortcut_share"][index] == pytest.approx(
            (s @ total / (total @ total)).item()
        )
        cosine = nn.functional.cosine_similarity(s, b, dim=0).item()
        assert splits["cosine"][index] == pytest.approx(cosine)


def test_shares_exceed_one_when_the_sides_cancel() -> None:
    cosine, share = split_statistics(4.0, -2.0, 1.0)
    assert cosine == -1.0
    assert share == 2.0


def test_share_of_exactly_opposite_gradients_is_null() -> None:
    s = torch.randn(50)
    products = split_products(JoinGradients((s,), (s,), (-s,), (s,))).tolist()
    cosine, share = split_statistics(*products[4:])
    assert cosine == pytest.approx(-1.0)
    assert share is None


@pytest.mark.parametrize(
    ("value", "dtype"), [(1e-30, torch.float32), (1e300, torch.float64), (1e-310, torch.float64)]
)
def test_norms_neither_underflow_nor_overflow(value: float, dtype: torch.dtype) -> None:
    g = torch.full((4,), value, dtype=dtype)
    products = split_products(JoinGradients((g,), (g,), (g / 2,), (g,))).tolist()
    assert products[:4] == pytest.approx(
        [2 * g[0].item(), 2 * g[0].item(), g[0].item(), 2 * g[0].item()]
    )
    assert split_statistics(*products[4:]) == pytest.approx((1.0, 2 / 3))


def test_gradients_that_are_not_finite_stay_so() -> None:
    g = torch.tensor([1.0, float("nan")])
    products = split_products(JoinGradients((g,), (g,), (g,), (g,))).tolist()
    assert all(value != value for value in products)
    infinite = torch.tensor([1.0, float("inf")])
    assert split_products(JoinGradients((infinite,), None, None, None))[0].item() == float("inf")


def test_a_fork_without_gradient_gives_nulls_for_what_backward_left_out() -> None:
    model = nn.Sequential(nn.Embedding(10, 6).requires_grad_(False), Scaled(torch.tensor(0.5)))
    splits = splits_of_model(model, torch.randint(10, (3,)), None, wavy_loss)
    assert splits["join_gradient_norm"][0] > 0
    assert splits["fork_gradient_norm"] == splits["shortcut_share"] == splits["cosine"] == [None]


def test_floating_inputs_get_the_gradient_that_training_leaves_out() -> None:
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(3, 6)
    splits = splits_of_model(model, x, None, wavy_loss)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(wavy_loss(model(x), None), x)
    assert splits["fork_gradient_norm"][0] == pytest.approx(gradient.norm().item())


def test_splits_leave_gradients_and_inputs_alone() -> None:
    model, x = Branches(), torch.randn(3, 6)
    kept = x.clone()
    splits_of_model(model, x, None, wavy_loss)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(x, kept)
    assert not x.requires_grad


def test_a_fork_that_the_branch_repeats_gets_the_sum_over_its_shape() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, 4))
            self.mix = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mix(x * self.weight)

    net, x = Net().double(), torch.randn(3, 1).double()
    (gradients,) = gradients_of(net, (x,))
    slope = torch.arange(3).view(3, 1).cos().double()
    assert difference(gradients.shortcut, slope) <= 1e-12
    assert difference(gradients.branch, slope * (net.mix.weight @ net.weight.T)) <= 1e-12


def test_what_is_repeated_over_the_other_operand_is_no_shortcut() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift = nn.Linear(1, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.lift(x)

    assert gradients_of(Net(), (torch.randn(3, 1),)) == []


def test_a_loss_that_is_not_one_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the loss has shape \[3, 6\]; expected one number"):
        splits_of_model(nn.Linear(6, 6), torch.randn(3, 6), None, lambda output, _: output)
    with pytest.raises(ValueError, match="the loss has no gradient"):
        splits_of_model(nn.Linear(6, 6), torch.randn(3, 6), None, lambda o, _: o.detach().sum())

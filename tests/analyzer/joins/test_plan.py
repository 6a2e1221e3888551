"""Joins located again in later graphs, from the hooks and the backward pass of a training."""

import gc
import weakref

import torch
from torch import Tensor, nn

from analyzer.joins.backward import SplitHooks, join_gradients
from analyzer.joins.calls import CallLog
from analyzer.joins.find import plan_joins
from analyzer.joins.plan import joins_in_graph
from analyzer.joins.products import JoinGradients
from analyzer.joins.search import Join
from tests.support.families import FAMILIES, BasicBlock, Branches


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    output = output if isinstance(output, Tensor) else output[0]
    return output.square().mean()


def test_training_backward_delivers_what_the_live_function_gives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BasicBlock(4, 4), BasicBlock(4, 8, 2))
    x = torch.randn(2, 3, 6, 6)
    with CallLog({"": model}).watch() as log:
        first = loss_of(model, x)
    assert first.grad_fn is not None
    plan = joins_in_graph([first.grad_fn], log)

    second = loss_of(model, x)
    assert second.grad_fn is not None
    sites = plan.sites([second.grad_fn])
    assert sites is not None
    recorded: dict[int, JoinGradients] = {}
    hooks = SplitHooks(sites, lambda join, gradients: recorded.update({join.index: gradients}))
    second.backward()
    hooks.finish()

    live: dict[int, JoinGradients] = {}
    join_gradients(
        model,
        x,
        None,
        lambda output, _: output.square().mean(),
        lambda join, gradients: live.update({join.index: gradients}),
    )
    assert sorted(recorded) == sorted(live) == [0, 1]
    for index in recorded:
        for side in ("shortcut", "branch", "fork", "join"):
            for one, other in zip(
                getattr(recorded[index], side), getattr(live[index], side), strict=True
            ):
                torch.testing.assert_close(one, other)


def test_splits_change_no_gradient_of_the_training() -> None:
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(3, 6)
    plan = plan_joins(model, (x,), {})
    loss_of(model, x).backward()
    plain = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with CallLog({"": model}).watch() as log:
        loss = loss_of(model, x)
    assert loss.grad_fn is not None
    plan = joins_in_graph([loss.grad_fn], log)
    delivered: list[Join] = []
    hooks = SplitHooks(plan.sites([loss.grad_fn]) or [], lambda join, _: delivered.append(join))
    loss.backward()
    hooks.finish()
    assert {join.index for join in delivered} == {0, 1}
    for parameter, gradient in zip(model.parameters(), plain, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_a_graph_that_changed_is_noticed() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Branches())
    one, other = loss_of(model, torch.randn(3, 6)), loss_of(model[0], torch.randn(3, 6))
    with CallLog({"": model}).watch() as log:
        first = loss_of(model, torch.randn(2, 6))
    assert first.grad_fn is not None
    plan = joins_in_graph([first.grad_fn], log)
    assert one.grad_fn is not None
    assert other.grad_fn is not None
    assert len(plan.sites([one.grad_fn]) or []) == 2
    assert plan.sites([other.grad_fn]) is None


def test_hooks_alone_find_the_joins_of_trained_networks() -> None:
    for name, family in FAMILIES.items():
        if name in ("no joins", "extra readers of the input", "post-norm transformer"):
            continue
        model = family.build().eval()
        with CallLog({"": model}).watch() as log:
            output = model(*family.inputs())
        found = joins_in_graph([output.grad_fn], log).joins
        assert [(j.name, tuple(j.branch_layers)) for j in found] == [
            (e.name, e.branch_layers) for e in family.joins
        ], name


def test_several_roots_are_prefixed() -> None:
    encoder, head = Branches(), nn.Linear(6, 2)
    with CallLog({"encoder": encoder, "head": head}).watch() as log:
        hidden = encoder(torch.randn(3, 6).requires_grad_())[0]
        loss = head(hidden).sum()
    assert loss.grad_fn is not None
    joins = joins_in_graph([loss.grad_fn], log).joins
    assert [(j.name, j.branch_layers) for j in joins] == [
        ("encoder#0", ["encoder.first"]),
        ("encoder#1", ["encoder.second"]),
    ]


class Canary:
    """Lives as long as the graph node that holds it."""


def test_no_graph_outlives_its_backward_pass() -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), Branches()), torch.randn(3, 6)
    with CallLog({"": model}).watch() as log:
        loss = loss_of(model, x)
    assert loss.grad_fn is not None
    plan = joins_in_graph([loss.grad_fn], log)
    held: list[JoinGradients] = []
    hooks = SplitHooks(
        plan.sites([loss.grad_fn]) or [], lambda _, gradients: held.append(gradients)
    )
    loss.backward()
    hooks.finish()
    canary = Canary()
    loss.grad_fn.metadata["canary"] = canary
    seen = weakref.ref(canary)
    del log, hooks, loss, canary
    gc.collect()
    assert seen() is None
    assert len(held) == 2


def test_an_input_that_requires_a_gradient_is_a_fork_of_the_training_backward() -> None:
    model, x = Branches(), torch.randn(3, 6, requires_grad=True)
    with CallLog({"": model}).watch() as log:
        loss = loss_of(model, x)
    assert loss.grad_fn is not None
    plan = joins_in_graph([loss.grad_fn], log)
    found: dict[int, JoinGradients] = {}
    hooks = SplitHooks(
        plan.sites([loss.grad_fn]) or [], lambda join, g: found.update({join.index: g})
    )
    loss.backward()
    hooks.finish()
    assert found[0].shortcut is not None
    assert found[0].branch is not None
    assert x.grad is not None
    torch.testing.assert_close(found[0].shortcut[0] + found[0].branch[0], x.grad)


def test_a_view_changed_in_place_is_put_in_order() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x) * 1
            left, right = h[:, :2], h[:, 2:]
            left += 1
            right *= left
            return h + torch.tanh(self.second(h))

    (join,) = plan_joins(Net(), (torch.randn(3, 4),), {}).joins
    assert (join.name, join.shortcut, join.branch_layers) == ("Net", "identity", ["second"])

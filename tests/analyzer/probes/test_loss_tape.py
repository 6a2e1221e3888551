"""The loss of a step, replayed from another output."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from analyzer.probes.loss_tape import LossTape, ReplayError


def recorded(model, inputs, loss):
    output = model(inputs)
    tape = LossTape(output)
    tape.start()
    root = loss(output)
    assert tape.stop()
    return tape.loss([root]), root


def net():
    torch.manual_seed(0)
    return nn.Linear(4, 6), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 5])


LOSSES = {
    "cross entropy": lambda m, y: lambda out: functional.cross_entropy(out, y),
    "mean square of a view": lambda m, y: lambda out: out.view(10, 3).t().square().mean(),
    "weight decay": lambda m, y: (
        lambda out: (
            functional.cross_entropy(out, y) + 0.1 * sum(p.square().sum() for p in m.parameters())
        )
    ),
    "written in place": lambda m, y: (
        lambda out: functional.cross_entropy(
            out.clone().masked_fill_(out < 0, -3.0), y, label_smoothing=0.1
        )
    ),
    "indexed": lambda m, y: lambda out: out[torch.arange(5), y].exp().sum() / 4,
    "detached part": lambda m, y: lambda out: (out * out.detach()).sum(),
}


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_replay_gives_value_and_gradients_of_the_loss_at_other_weights(make):
    model, inputs, y = net()
    loss, _ = recorded(model, inputs, make(model, y))
    loss.check()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    expected = make(model, y)(model(inputs))
    replayed = loss(model(inputs))
    assert torch.equal(replayed, expected)
    both = [torch.autograd.grad(value, list(model.parameters())) for value in (replayed, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_labels_are_those_of_the_cross_entropy():
    model, inputs, y = net()
    loss, _ = recorded(model, inputs, LOSSES["cross entropy"](model, y))
    assert torch.equal(loss.labels, y)


def test_output_inside_a_dict_is_found():
    model, inputs, y = net()
    output = {"logits": model(inputs), "name": "x"}
    tape = LossTape(output)
    tape.start()
    root = functional.cross_entropy(output["logits"], y)
    tape.stop()
    assert torch.equal(tape.loss([root])({"logits": model(inputs)}), root)


def test_reading_the_finished_loss_is_allowed():
    model, inputs, y = net()

    def loss(out):
        value = functional.cross_entropy(out, y)
        assert not torch.isnan(value)
        value.item()
        return value

    recorded(model, inputs, loss)[0].check()


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def weighted(weights):
    return lambda out: (out * weights).sum()


REFUSED = {
    "decides by a value": lambda m, y: lambda out: out.sum() * 2 if out.sum() > 0 else out.mean(),
    "used as a number": lambda m, y: lambda out: out.sum() * (0.5 + out.mean().item()),
    "custom function Straight": lambda m, y: lambda out: Straight.apply(out).sum(),
    "outside of the model": lambda m, y: weighted(torch.ones(6, requires_grad=True) * 2),
    "not computed from the output": lambda m, y: lambda out: torch.ones(()),
    "not one number": lambda m, y: lambda out: out * 2,
}


@pytest.mark.parametrize(("reason", "make"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_replayed_is_refused_with_the_reason(reason, make):
    model, inputs, y = net()
    with pytest.raises(ReplayError, match=reason):
        recorded(model, inputs, make(model, y))


def test_random_numbers_in_the_loss_are_found_by_the_check():
    model, inputs, _ = net()
    loss, _ = recorded(model, inputs, lambda out: functional.dropout(out, 0.5).sum())
    with pytest.raises(ReplayError, match="random"):
        loss.check()


def test_overwritten_targets_are_refused():
    model, inputs, y = net()
    loss, _ = recorded(model, inputs, LOSSES["cross entropy"](model, y))
    y[0] = 4
    with pytest.raises(ReplayError, match="overwritten"):
        loss(model(inputs))

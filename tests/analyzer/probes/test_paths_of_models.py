"""Batches, modes and models that a path-length spectrum must take as they are, or refuse."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import analyzer
from analyzer.probes.batch import HeldBatch
from analyzer.probes.paths import PathsError, path_lengths


class Residual(nn.Module):
    """``x + scale · tanh(W x)`` twice, with dropout and batch norm in front."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(width), nn.Dropout(0.5)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(x))
        x = x + torch.tanh(self.first(x))
        return x + torch.tanh(self.second(x))


class Words(nn.Module):
    """Token ids, a mask for all samples, and a sum over words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.query, self.key, self.value = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        scores = scores if mask is None else scores + mask
        return (x + torch.softmax(scores, -1) @ self.value(x)).sum(1)


class TimeFirst(nn.Module):
    """A block of attention over its first axis, samples along the second."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


@dataclass
class Output:
    """What a model may return besides its result."""

    logits: Tensor
    unused: Tensor


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Residual()

    def forward(self, x: Tensor) -> Output:
        return Output(self.inner(x), x.sum(0))


def mean_of_sums(output: Tensor, targets: Tensor) -> Tensor:
    """The mean over samples (the first axis) of a loss of their own."""
    return (output - targets).sin().flatten(1).sum(1).mean()


def norms(
    model: nn.Module, x: Any, y: Any, loss: Any = mean_of_sums, **options: int
) -> list[float]:
    found: list[float] = analyzer.path_spectrum(model, x, y, loss, **options)[
        "gradient_norm"
    ].tolist()
    return found


def test_the_norm_is_the_mean_over_samples_measured_alone() -> None:
    torch.manual_seed(0)
    # In training mode the statistics of the batch norm would be those of each batch.
    model, x, y = Residual().eval(), torch.randn(5, 4), torch.randn(5, 4)
    alone = torch.tensor([norms(model, x[i : i + 1], y[i : i + 1]) for i in range(5)])
    assert alone.min() > 0
    assert norms(model, x, y) == pytest.approx(alone.mean(0).tolist(), rel=1e-5)


def test_one_block_is_what_hand_derivation_gives_in_eval_mode() -> None:
    model, x = Residual().eval(), torch.tensor([[0.3, -0.2, 0.5, 0.1]])
    with torch.no_grad():
        model.second.weight.zero_()
        model.second.bias.zero_()
        model.first.weight.copy_(0.5 * torch.eye(4))
        model.first.bias.zero_()
    h = x / sqrt(1 + 1e-5)
    slope = 0.5 * (1 - torch.tanh(0.5 * h) ** 2)
    found = norms(model, x, None, lambda output, _: output.sum(1).mean())
    assert found == pytest.approx([2.0, slope.norm().item(), 0.0], rel=1e-5)


def test_a_model_is_left_untouched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Residual(), nn.Dropout(0.1), Residual())
    model[2].eval()
    model[0].first.weight.requires_grad_(False)
    x, y = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    model(x).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in (x, *model.parameters())]
    modes = [module.training for module in model.modules()]
    trained = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    analyzer.path_spectrum(model, x, y, mean_of_sums)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for p, before in zip((x, *model.parameters()), gradients, strict=True):
        assert (p.grad is None) == (before is None)
        assert before is None or torch.equal(p.grad, before)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trained
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_is_put_back_after_a_refusal() -> None:
    model = Residual()
    model.first.weight.requires_grad_(False)
    with pytest.raises(PathsError, match="expected one number"):
        analyzer.path_spectrum(model, torch.randn(3, 4), None, lambda output, _: output)
    assert model.training
    assert not model.first.weight.requires_grad


@pytest.mark.parametrize("is_frozen", [False, True])
def test_token_ids_are_measured_at_their_embedding(is_frozen: bool) -> None:
    torch.manual_seed(0)
    model, ids, y = Words(), torch.randint(10, (3, 5)), torch.randn(3, 6)
    model.requires_grad_(not is_frozen)
    found = path_lengths(HeldBatch(model, ids, y, mean_of_sums))
    x = model.embed(ids).detach().requires_grad_()
    values = torch.softmax(model.query(x) @ model.key(x).transpose(1, 2), -1) @ model.value(x)
    upstream = ((x + values).sum(1) - y).cos().detach()
    (branch,) = torch.autograd.grad(values.sum(1), x, upstream)
    shortcut = upstream[:, None].expand(3, 5, 6)
    expected = [part.flatten(1).norm(dim=1).mean().item() for part in (shortcut, branch)]
    assert found.gradient_norms == pytest.approx(expected, rel=1e-5)
    assert found.num_paths == [1, 1]


def test_a_mask_without_batch_axis_and_a_dict_of_inputs_are_taken() -> None:
    torch.manual_seed(0)
    model, ids, y = Words(), torch.randint(10, (3, 5)), torch.randn(3, 6)
    mask = torch.full((5, 5), -1e9).triu(1)
    first = norms(model, (ids, mask), y)
    assert norms(model, {"mask": mask, "ids": ids}, y) == first
    assert norms(model, ids, y) != first
    assert min(first) > 0


def test_samples_along_another_axis_are_found_by_batch_dim() -> None:
    torch.manual_seed(0)
    model, x = TimeFirst(), torch.randn(5, 3, 4)

    def loss(output: Tensor, _: None) -> Tensor:
        return output.sin().sum((0, 2)).mean()

    alone = [norms(model, x[:, i : i + 1], None, loss, batch_dim=1) for i in range(3)]
    found = norms(model, x, None, loss, batch_dim=1)
    assert found == pytest.approx(torch.tensor(alone).mean(0).tolist(), rel=1e-5)
    with pytest.raises(PathsError, match=r"along batch_dim=0 \(5 samples\): the model mixes"):
        norms(model, x, None, loss)


class Transposed(nn.Module):
    """Takes samples first, computes with time first, and with both merged in its head."""

    def __init__(self, is_merged: bool) -> None:
        super().__init__()
        self.block, self.head, self.is_merged = TimeFirst(), nn.Linear(4, 4), is_merged

    def forward(self, x: Tensor) -> Tensor:
        if self.is_merged:
            x = x.flatten(0, 1)
            return (x + torch.tanh(self.head(x))).unflatten(0, (3, 5))
        return self.block(self.head(x.transpose(0, 1))).transpose(0, 1)


@pytest.mark.parametrize("is_merged", [False, True])
def test_forks_with_another_layout_than_the_input_are_taken_apart(is_merged: bool) -> None:
    torch.manual_seed(0)
    model, x, y = Transposed(is_merged), torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    found = norms(model, x, y)
    if is_merged:
        slope = (model(x) - y).cos()
        assert found[0] == pytest.approx(slope.flatten(1).norm(dim=1).mean().item(), rel=1e-5)
    else:
        block = norms(
            model.block, model.head(x.transpose(0, 1)).detach(), None, _swapped(y), batch_dim=1
        )
        assert found == pytest.approx(block, rel=1e-5)


def _swapped(y: Tensor) -> Callable[[Tensor, None], Tensor]:
    return lambda output, _: mean_of_sums(output.transpose(0, 1), y)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(4, 4, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)[0]
        return x


def test_a_recurrent_layer_is_a_branch() -> None:
    torch.manual_seed(0)
    model, x, y = Lstm(), torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    found = path_lengths(HeldBatch(model, x, y, mean_of_sums))
    assert found.num_paths == [1, 2, 1]
    assert found.gradient_norms[0] == pytest.approx(
        (model(x) - y).cos().flatten(1).norm(dim=1).mean().item(), rel=1e-5
    )
    assert 0 < found.sum_error + found.gradient_norms[2] < 1


def test_a_graph_is_freed_when_its_spectrum_is_known() -> None:
    model, x = Residual(), torch.randn(3, 4)
    made: list[weakref.ref[Tensor]] = []

    def loss(output: Tensor, _: None) -> Tensor:
        made.append(weakref.ref(output))
        return output.sum(1).mean()

    gc.disable()
    try:
        norms(model, x, None, loss)
        assert [reference() for reference in made] == [None]
    finally:
        gc.enable()


def test_samples_without_gradient_count_in_the_norm_and_not_in_the_share() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 4)
    only_first = torch.tensor([1.0, 0.0])

    def loss(output: Tensor, weights: Tensor) -> Tensor:
        return (output.sin().sum(1) * weights).mean()

    both = analyzer.path_spectrum(model, x, only_first, loss)
    one = analyzer.path_spectrum(model, x[:1], only_first[:1], loss)
    assert (2 * both["gradient_norm"]).tolist() == pytest.approx(one["gradient_norm"].tolist())
    assert both["share"].tolist() == pytest.approx(one["share"].tolist())
    none = analyzer.path_spectrum(model, x, torch.zeros(2), loss)
    assert none["gradient_norm"].tolist() == [0, 0, 0]
    assert none["share"].isna().all()
    assert isnan(none.attrs["effective_path_length"])


def test_gradients_far_below_float32_squares_are_not_zero() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 4)
    usual = norms(model, x, torch.zeros(2, 4), lambda output, _: output.sum(1).mean())
    tiny = norms(model, x, torch.zeros(2, 4), lambda output, _: 1e-30 * output.sum(1).mean())
    assert tiny == pytest.approx([1e-30 * norm for norm in usual], rel=1e-5)


def test_nan_is_kept_and_stays_in_its_sample() -> None:
    model, x = Residual(), torch.randn(3, 4)
    x[1] = torch.nan
    frame = analyzer.path_spectrum(model, x, torch.zeros(3, 4), mean_of_sums)
    assert frame["gradient_norm"].isna().all()
    assert frame["share"].isna().all()
    assert isnan(frame.attrs["effective_path_length"])


def test_a_loss_may_hold_its_own_targets_and_read_a_part_of_the_output() -> None:
    torch.manual_seed(0)
    model, x, y = Wrapped(), torch.randn(3, 4), torch.randn(3, 4)
    found = norms(model, x, None, lambda output, _: mean_of_sums(output.logits, y))
    assert found == norms(model.inner, x, y)
    assert min(found) > 0


def test_a_plain_net_has_one_length_with_the_gradient_of_its_input() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 4), torch.randn(3, 4), torch.randn(3, 4)
    spectrum = path_lengths(HeldBatch(model, x, y, mean_of_sums))
    gradient = (model(x) - y).cos() @ model.weight
    assert spectrum.gradient_norms == pytest.approx([gradient.norm(dim=1).mean().item()])
    assert spectrum.num_paths == spectrum.shares == [1]


class Mixing(nn.Module):
    """A block whose branch, or whose stem, sees the other samples of the batch."""

    def __init__(self, mix: Callable[[Tensor], Tensor], in_stem: bool) -> None:
        super().__init__()
        self.layer, self.mix, self.in_stem = nn.Linear(4, 4), mix, in_stem

    def forward(self, x: Tensor) -> Tensor:
        if self.in_stem:
            x = self.mix(x)
        branch = torch.tanh(self.layer(x))
        return x + (branch if self.in_stem else self.mix(branch))


@pytest.mark.parametrize("in_stem", [False, True], ids=["branch", "stem"])
@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0),
        lambda x: x + x.sum(0),
        lambda x: x.flip(0),
        lambda x: x.cumsum(0),
        lambda x: nn.functional.batch_norm(x, None, None, training=True),
        lambda x: torch.softmax(x @ x.T, -1) @ x,
    ],
    ids=["mean", "sum", "flip", "cumsum", "batch norm", "attention"],
)
def test_a_model_that_mixes_samples_is_refused(
    mix: Callable[[Tensor], Tensor], in_stem: bool
) -> None:
    torch.manual_seed(0)
    with pytest.raises(PathsError, match="the gradient of one sample reaches another one"):
        norms(Mixing(mix, in_stem), torch.randn(3, 4), torch.zeros(3, 4))


class WithoutGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        return x + self.layer(x)


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()

    def forward(self, x: Tensor) -> Tensor:
        out = checkpoint(self.block, x, use_reentrant=True)
        assert isinstance(out, Tensor)
        return out


class Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize(
    ("model", "x", "loss", "message"),
    [
        (WithoutGradient(), torch.randn(3, 4), mean_of_sums, "fork of the first join, 'With"),
        (Recomputed(), torch.randn(3, 4), mean_of_sums, "joins inside of 'Rec.* cannot be seen"),
        (Residual(), torch.randn(3, 4), lambda _, y: y.sum(), "the loss has no gradient"),
        (
            nn.Linear(4, 5),
            torch.randn(4),
            lambda o, _: o.sum(),
            r"inputs \[4\] and the .* share no",
        ),
        (Integers(), torch.ones(3).long(), lambda o, _: o.sum(), "no floating input"),
    ],
    ids=["no_grad", "checkpoint", "loss", "no batch", "integers"],
)
def test_what_cannot_be_exact_is_refused_with_the_reason(
    model: nn.Module, x: Tensor, loss: Callable[..., Tensor], message: str
) -> None:
    with pytest.raises(PathsError, match=message):
        norms(model, x, torch.zeros(3, 4), loss)

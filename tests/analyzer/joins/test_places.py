"""Where a shortcut is one and where it is none, each net with what was counted by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import analyzer
from analyzer.joins.find import plan_joins

WAVY = torch.arange(4096.0).cos()


def wavy_loss(output: Tensor, _: Any = None) -> Tensor:
    """A loss whose gradient differs from element to element."""
    return (output.flatten() * WAVY[: output.numel()].to(output.dtype)).sum()


def names(model: nn.Module, *args: Tensor) -> list[str]:
    return [join.name for join in analyzer.find_joins(model, *args)]


class Scaled(torch.autograd.Function):
    """A function whose inside autograd does not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        own = (gradient * x).sum().expand_as(weight) / weight.numel()
        return gradient * weight.mean(), own


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Any:
        return Scaled.apply(x, self.weight)


class Around(nn.Module):
    """A convolution around which a function of its input is added."""

    def __init__(self, shortcut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shortcut, self.conv = shortcut, nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv(self.shortcut(torch.relu(x)))


@pytest.mark.parametrize(
    ("shortcut", "kind"),
    [
        (lambda t: t, "identity"),
        (lambda t: t * 0.5, "scaled"),
        (lambda t: functional.avg_pool2d(t, 2), "identity"),
        (lambda t: t[:, :], "identity"),
        (lambda t: t.clone(), "identity"),
        (lambda t: functional.interpolate(t, scale_factor=2.0), "identity"),
    ],
    ids=["itself", "scaled", "pooled", "sliced", "copied", "larger"],
)
@pytest.mark.parametrize("before", [Custom, nn.Identity])
def test_a_fork_behind_a_custom_function_is_found(
    before: type[nn.Module], shortcut: Callable[[Tensor], Tensor], kind: str
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), before(), Around(shortcut), nn.Conv2d(8, 3, 1))
    (join,) = analyzer.find_joins(model, torch.randn(1, 3, 8, 8))
    assert (join.name, join.shortcut, join.branch_layers) == ("2", kind, ["2.conv"])


class Gated(nn.Module):
    """Shortcut and branch both read the activation, the gate what is before it."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.gate, self.conv = nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8)

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h = self.act(x)
        s, b = h * 1, h * 1
        return s, b, torch.sigmoid(self.gate(x)), self.conv(b)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(x)
        return h * torch.sigmoid(self.gate(x)) + self.conv(h)


class Pooled(Gated):
    """Of what both sides share there are several operations, one of them with two results."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.act(x * 2).chunk(2, -1)
        h = torch.cat([other, one], -1) + one.repeat(1, 2)
        return h * torch.sigmoid(self.gate(x)) + self.conv(h)


def test_what_both_sides_pass_first_splits_their_gradients_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Gated(), nn.Linear(8, 3)).double()
    x = torch.randn(16, 4).double()
    (join,) = analyzer.find_joins(model, x)
    assert (join.shortcut, join.branch_layers, join.shortcut_layers) == (
        "gated",
        ["1.gate", "1.conv"],
        ["1.act"],
    )
    fork = model[0](x).detach().requires_grad_()
    h = torch.relu(fork)
    s, b = h * 1, h * 1
    gate = torch.sigmoid(model[1].gate(fork))
    loss = wavy_loss(model[2](s * gate + model[1].conv(b)))
    at_s, at_b, at_gate, whole = torch.autograd.grad(loss, (s, b, gate, fork), retain_graph=True)
    (through_s,) = torch.autograd.grad(h, fork, at_s, retain_graph=True)
    (through_b,) = torch.autograd.grad(h, fork, at_b, retain_graph=True)
    (through_gate,) = torch.autograd.grad(gate, fork, at_gate)
    branch = through_b + through_gate
    share = (through_s * whole).sum() / whole.square().sum()
    splits = analyzer.gradient_splits(model, x, None, wavy_loss).loc[0]
    for side, truth in (("shortcut", through_s), ("branch", branch), ("fork", whole)):
        assert splits[f"{side}_gradient_norm"] == pytest.approx(truth.norm().item(), rel=1e-12)
    assert splits["shortcut_share"] == pytest.approx(share.item(), rel=1e-12)


def test_sides_that_share_several_operations_add_up_to_the_gradient_of_the_fork() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Pooled(), nn.Linear(8, 3)).double()
    x = torch.randn(5, 4).double()
    splits = analyzer.gradient_splits(model, x, None, wavy_loss).loc[0]
    fork = model[0](x).detach().requires_grad_()
    one, other = torch.relu(fork * 2).chunk(2, -1)
    h = torch.cat([other, one], -1) + one.repeat(1, 2)
    s = h * 1
    output = s * torch.sigmoid(model[1].gate(fork)) + model[1].conv(h)
    at_s, whole = torch.autograd.grad(wavy_loss(model[2](output)), (s, fork), retain_graph=True)
    (through_s,) = torch.autograd.grad(h, fork, at_s)
    norms = [through_s.norm().item(), (whole - through_s).norm().item(), whole.norm().item()]
    columns = [f"{side}_gradient_norm" for side in ("shortcut", "branch", "fork")]
    assert splits[columns].tolist() == pytest.approx(norms, rel=1e-10)


def test_a_recorded_training_splits_a_shared_activation_and_leaves_the_weights_alone(
    tmp_path: Path,
) -> None:
    def train(run: Path | None) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), Gated(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        with analyzer.Recorder(model, run, splits_every=1) if run else torch.enable_grad():
            for step in range(3):
                torch.manual_seed(step)
                optimizer.zero_grad()
                wavy_loss(model(torch.randn(6, 4))).backward()
                optimizer.step()
        return model

    plain, recorded = train(None), train(tmp_path / "run")
    for one, other in zip(plain.parameters(), recorded.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 8), Gated(), nn.Linear(8, 3))
    torch.manual_seed(0)
    live = analyzer.gradient_splits(first, torch.randn(6, 4), None, wavy_loss)
    found = analyzer.open_run(tmp_path / "run").splits(steps=[0])
    for column in ("shortcut_gradient_norm", "branch_gradient_norm", "shortcut_share"):
        assert found[column].tolist() == pytest.approx(live[column].tolist(), rel=1e-6)


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def branch(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Stage(nn.Module):
    """A long shortcut around residual units."""

    def __init__(self, project: bool) -> None:
        super().__init__()
        self.units = nn.Sequential(Unit(), Unit())
        self.short = nn.Linear(8, 8) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.short(x) + self.units(x)


@pytest.mark.parametrize("project", [False, True])
def test_a_long_shortcut_around_residual_units_is_a_join(project: bool) -> None:
    torch.manual_seed(0)
    model, x = Stage(project), torch.randn(4, 8)
    joins = analyzer.find_joins(model, x)
    assert [join.name for join in joins] == ["units.0", "units.1", "Stage"]
    assert [join.shortcut for join in joins[:2]] == ["identity"] * 2
    assert joins[2].shortcut == ("projection" if project else "identity")
    assert joins[2].branch_parameters == 4 * 72
    assert joins[2].shortcut_layers == ["short"] * project
    first, second = model.units
    with analyzer.skip_scale(model, 0.0):
        assert torch.equal(model(x), second.branch(first.branch(x)))
    with analyzer.skip_scale(model, {"Stage": 0.0}):
        assert torch.equal(model(x), second(first(x)))


class Bare(nn.Module):
    """A transformer block written with bare weights: two joins in one module, without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(8, 8) * 0.1)
        self.up, self.down = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        h = x + functional.linear(functional.layer_norm(x, (8,)), self.mix)
        wide = functional.gelu(functional.linear(functional.layer_norm(h, (8,)), self.up))
        return h + functional.linear(wide, self.down)


def test_two_joins_of_one_module_have_rows_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), Bare(), nn.Linear(8, 3)), torch.randn(6, 4)
    live = analyzer.gradient_splits(model, x, None, wavy_loss)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    with analyzer.Recorder(model, tmp_path / "run", splits_every=1):
        for _ in range(2):
            optimizer.zero_grad()
            wavy_loss(model(x)).backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.joins["name"].tolist() == ["1#0", "1#1"]
    assert run.joins["branch_parameters"].tolist() == [64, 256]
    found = run.splits(steps=[0])
    for column in ("shortcut_gradient_norm", "branch_gradient_norm", "shortcut_share"):
        assert found[column].tolist() == pytest.approx(live[column].tolist(), rel=1e-5)


class Conditioned(nn.Module):
    """A block of a diffusion network: an embedding is added to each channel."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.time, self.how = nn.Linear(8, 4), how

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.how(self.first(x), self.time(functional.silu(t))[:, :, None, None])
        return x + self.second(functional.silu(h))


class Diffusion(nn.Module):
    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.time, self.blocks = nn.Linear(8, 8), nn.ModuleList(Conditioned(how) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.time(t)
        for block in self.blocks:
            x = block(x, t)
        return x


@pytest.mark.parametrize(
    "how",
    [
        torch.add,
        lambda h, t: h + t.expand_as(h),
        lambda h, t: t.repeat(1, 1, 6, 6) + h,
        lambda h, t: h + 0.5 * t,
    ],
    ids=["broadcast", "expanded", "repeated", "scaled"],
)
def test_an_embedding_that_is_added_to_all_positions_is_no_shortcut(
    how: Callable[[Tensor, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model, inputs = Diffusion(how), (torch.randn(2, 4, 6, 6), torch.randn(2, 8))
    assert names(model, *inputs) == [f"blocks.{i}" for i in range(3)]
    plan = plan_joins(model, inputs, {})
    assert {module for module, _ in plan.passed_over} == {"blocks.1", "blocks.2"}
    assert all("repeated over its activations" in reason for _, reason in plan.passed_over)
    x, t = inputs
    with analyzer.skip_scale(model, 0.0):
        found = model(x, t)
    t = model.time(t)
    for block in model.blocks:
        h = how(block.first(x), block.time(functional.silu(t))[:, :, None, None])
        x = block.second(functional.silu(h))
    assert torch.equal(found, x)


def test_a_sum_that_is_passed_over_is_named_in_the_manifest(tmp_path: Path) -> None:
    model = Diffusion(torch.add)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with analyzer.Recorder(model, tmp_path / "run"):
        wavy_loss(model(torch.randn(2, 4, 6, 6), torch.randn(2, 8))).backward()
        optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert len(run.joins) == 3
    reason = "it adds what is repeated over its activations (as an embedding of time or class)"
    assert [line for line in run.manifest["not_recorded"] if "join" in line] == [
        f"no join in blocks.{i}: {reason}" for i in (1, 2)
    ]


class RelativeAttention(nn.Module):
    """Scores of content and of position are added, and those of the layer before."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.pos = (nn.Linear(8, 8) for _ in range(4))
        self.u, self.w = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor, p: Tensor, before: Tensor | None = None) -> Any:
        q, k = self.q(x), self.k(x)
        scores = (q + self.u) @ k.transpose(-1, -2)
        scores = scores + (q + self.w) @ self.pos(p).transpose(-1, -2)
        scores = scores if before is None else scores + before
        return torch.softmax(scores, -1) @ self.v(x), scores


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RelativeAttention() for _ in range(3))

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        scores = None
        for layer in self.layers:
            added, scores = layer(x, p, scores)
            x = x + added
        return x


def test_scores_of_attention_are_added_without_a_join() -> None:
    x, p = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    assert names(RelativeAttention(), x, p) == []
    assert names(Scores(), x, p) == ["Scores#0", "Scores#1", "Scores#2"]
    reasons = plan_joins(Scores(), (x, p), {}).passed_over
    assert {module for module, _ in reasons} >= {"layers.1", "layers.2"}


class Scan(nn.Module):
    """A selective scan: its state is a recurrence over time, and D · x is no shortcut of it."""

    def __init__(self) -> None:
        super().__init__()
        self.x_proj = nn.Linear(8, 16)
        self.A, self.D = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        dt, b, c = self.x_proj(x).split([8, 4, 4], -1)
        h, ys = torch.zeros(x.shape[0], 8, 4), []
        for t in range(x.shape[1]):
            new = (dt[:, t] * x[:, t])[:, :, None] * b[:, t, None]
            h = torch.exp(-dt[:, t, :, None] * self.A.exp()) * h + new
            ys.append((h * c[:, t, None]).sum(-1))
        return torch.stack(ys, 1) + x * self.D


class Written(nn.Module):
    """A gated unit written out over time, in one call."""

    def __init__(self, unbinds: bool) -> None:
        super().__init__()
        self.read, self.keep, self.unbinds = nn.Linear(8, 8), nn.Linear(16, 8), unbinds

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 8)
        steps = x.unbind(1) if self.unbinds else [x[:, t] for t in range(x.shape[1])]
        for new in steps:
            gate = torch.sigmoid(self.keep(torch.cat([h, new], 1)))
            h = gate * h + (1 - gate) * torch.tanh(self.read(new))
        return h


@pytest.mark.parametrize(
    "build",
    [Scan, lambda: Written(True), lambda: Written(False)],
    ids=["scan", "unbound", "sliced"],
)
@pytest.mark.parametrize("length", [2, 3, 9])
def test_steps_of_a_recurrence_are_no_joins_however_long_it_is(
    build: Callable[[], nn.Module], length: int
) -> None:
    torch.manual_seed(0)
    assert names(build(), torch.randn(2, length, 8)) == []


def test_a_block_applied_again_and_again_is_a_join_each_time() -> None:
    """Weights shared over depth are no recurrence over time: nothing new is read."""

    class Euler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = x + 0.25 * self.field(x)
            return x

    assert names(Euler(), torch.randn(2, 8)) == [f"Euler#{i}" for i in range(4)]


def test_activations_and_norms_by_their_formula_are_no_joins() -> None:
    class Snake(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.sin(self.alpha * x) ** 2 / self.alpha

    class ResponseNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            norm = torch.linalg.vector_norm(x, dim=0, keepdim=True)
            return self.gamma * (x * norm / norm.mean(-1, keepdim=True)) + self.beta + x

    for module in (Snake(), ResponseNorm()):
        assert names(nn.Sequential(nn.Linear(8, 8), module), torch.randn(3, 8)) == []

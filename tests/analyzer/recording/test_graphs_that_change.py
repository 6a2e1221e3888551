"""Splits of trainings whose graph changes, against ``autograd.grad`` on an unrecorded copy."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import analyzer

Before = Callable[[Tensor], None]


class Join(nn.Module):
    """A module with a residual join, which keeps its tensors where a test takes the truth."""

    takes_truth = False

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[list[Tensor]] = []

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What shortcut and branch read: the fork, for the truth two copies of it."""
        if not Join.takes_truth:
            return x, x
        self.kept.append([x, x.view_as(x), x.view_as(x)])
        return self.kept[-1][1], self.kept[-1][2]

    def together(self, z: Tensor) -> Tensor:
        """The tensor in which the two meet again."""
        if Join.takes_truth:
            self.kept[-1].append(z)
        return z

    def splits(self, loss: Tensor) -> Iterator[dict[str, float]]:
        """Each gradient at the joins of this pass from a call of ``autograd.grad`` of its own."""
        calls, self.kept = self.kept, []
        for call in calls:
            x, s, b, z = call
            if not z.requires_grad:
                continue  # in a frozen part
            g = torch.autograd.grad(loss, z, retain_graph=True, allow_unused=True)
            if g[0] is None:
                self.kept.append(call)  # its own backward pass comes later
                continue
            row = {"join_gradient_norm": g[0].norm().item(), "join_output_norm": z.norm().item()}
            if x.requires_grad:
                gs, gb, gx = (torch.autograd.grad(loss, t, retain_graph=True)[0] for t in (s, b, x))
                row["shortcut_gradient_norm"] = gs.norm().item()
                row["branch_gradient_norm"] = gb.norm().item()
                row["fork_gradient_norm"] = gx.norm().item()
                row["cosine"] = F.cosine_similarity(gs.flatten(), gb.flatten(), 0).item()
                row["shortcut_share"] = ((gs * (gs + gb)).sum() / (gs + gb).square().sum()).item()
            yield row


class Block(Join):
    """``x + f(x)``, left out of the passes in which its switch is off."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch, self.is_on = branch, True

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_on:
            return x
        s, b = self.apart(x)
        return self.together(s + self.branch(b))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


def update(optimizer: torch.optim.Optimizer, loss: Tensor, before: Before) -> None:
    optimizer.zero_grad()
    before(loss)
    loss.backward()
    optimizer.step()


def stochastic_depth(before: Before) -> Iterator[nn.Module]:
    model = nn.Sequential(nn.Linear(4, 6), Block(mlp()), Block(mlp()), Block(mlp()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    yield model
    for step in range(6):
        for place, block in enumerate(model[1:]):
            block.is_on = step not in (0, 3) and bool((step >> place) & 1 or step == 5)
        update(optimizer, model(torch.randn(5, 4)).square().mean(), before)


class Experts(nn.Module):
    """The top expert of each sample; one whose turn it is not does not run."""

    def __init__(self, has_gate: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3) if has_gate else None
        self.experts = nn.ModuleList(mlp() for _ in range(3))
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.experts[self.turn](x)
        weights, out = self.gate(x).softmax(-1), torch.zeros_like(x)
        for number in (self.turn, (self.turn + 1) % 3):
            rows = torch.arange(number % 2, len(x), 2)
            out = out.index_add(
                0, rows, self.experts[number](x[rows]) * weights[rows, number, None]
            )
        return out


def mixture(before: Before, has_gate: bool = True) -> Iterator[nn.Module]:
    experts = Experts(has_gate)
    model = nn.Sequential(nn.Linear(4, 6), Block(experts), Block(mlp()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    yield model
    for step in range(7):
        experts.turn = step // 2 % 3
        update(optimizer, model(torch.randn(6, 4)).square().mean(), before)


def routed(before: Before) -> Iterator[nn.Module]:
    return mixture(before, has_gate=False)


def adversaries(before: Before) -> Iterator[nn.Module]:
    generator = nn.Sequential(nn.Linear(3, 6), Block(mlp()), Block(mlp()), nn.Linear(6, 2))
    critic = nn.Sequential(nn.Linear(2, 6), Block(mlp()), nn.Linear(6, 1))
    optimizers = [torch.optim.Adam(model.parameters(), 1e-3) for model in (critic, generator)]
    yield nn.ModuleList([generator, critic])
    for _ in range(3):
        fake = generator(torch.randn(5, 3))
        update(optimizers[0], critic(fake.detach()).square().mean(), before)
        update(optimizers[1], critic(fake).sin().sum(), before)


class Unit(Join):
    """The block of a diffusion network: the embedded time is added inside of the branch."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.time, self.second = nn.Conv2d(i, o, 1), nn.Linear(4, o), nn.Conv2d(o, o, 1)
        self.skip = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        s, b = self.apart(x)
        h = self.first(F.silu(b)) + self.time(t)[:, :, None, None]
        return self.together(self.skip(s) + self.second(F.silu(h)))


class UNet(Join):
    """Its own join is the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(4, 4)
        self.down, self.middle, self.up = Unit(2, 3), Unit(3, 4), Unit(7, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.time(t).sin()
        s, b = self.apart(self.down(x, t))
        h = F.interpolate(self.middle(F.avg_pool2d(b, 2), t), scale_factor=2)
        return self.up(self.together(torch.cat([h, s], 1)), t)


def diffusion(before: Before) -> Iterator[nn.Module]:
    model = UNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    yield model
    for _ in range(2):
        noise, x, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.rand(3, 4)
        update(optimizer, F.mse_loss(model(x + noise * t[:, :1, None, None], t), noise), before)


def unfrozen(before: Before) -> Iterator[nn.Module]:
    model = nn.Sequential(
        nn.Linear(4, 6), Block(mlp()), Block(mlp()), Block(mlp()), nn.Linear(6, 2)
    )
    for block in model[:3]:
        block.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    yield model
    for step in range(5):
        if step == 3:
            model.requires_grad_(True)
        update(optimizer, model(torch.randn(5, 4)).square().mean(), before)


def parts_called_alone(before: Before) -> Iterator[nn.Module]:
    """The program calls parts of its model, and never the model."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Sequential(Block(mlp()), Block(mlp())), nn.Linear(6, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    yield model
    for step in range(4):
        model[1][1].is_on = step >= 2
        hidden = model[1](model[0](torch.randn(5, 4)))
        update(optimizer, model[2](hidden).square().mean(), before)


TRAININGS = [
    stochastic_depth,
    mixture,
    routed,
    adversaries,
    diffusion,
    unfrozen,
    parts_called_alone,
]


def recorded_and_true(training, run, **options):
    """Train twice from one seed; return the recording and the true splits by step."""
    true: list[list[dict[str, float]]] = []
    for Join.takes_truth in (True, False):
        torch.manual_seed(0)
        loop = training(lambda loss: true.append(splits(loss)) if Join.takes_truth else None)
        model = next(loop)
        joins = [module for module in model.modules() if isinstance(module, Join)]

        def splits(loss: Tensor, joins: list[Join] = joins) -> list[dict[str, float]]:
            return [row for join in joins for row in join.splits(loss)]

        if Join.takes_truth:
            list(loop)
        else:
            with analyzer.Recorder(None if training is adversaries else model, run, **options):
                list(loop)
    return analyzer.open_run(run), true


@pytest.fixture(autouse=True)
def in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    Join.takes_truth = False


@pytest.mark.parametrize("training", TRAININGS)
def test_every_join_of_a_changing_graph_is_split_as_autograd_does(training, tmp_path):
    run, true = recorded_and_true(training, tmp_path / "run", splits_every=1)
    assert len(run.steps) == len(true)
    rows, total = run.splits(), 0
    for step, expected in enumerate(true):
        at_step = rows[(rows["step"] == step) & rows["join_gradient_norm"].notna()]
        found = at_step.to_dict("records")
        key = "join_gradient_norm"
        assert len(found) == len(expected), f"step {step}"
        pairs = zip(
            sorted(found, key=lambda row: row[key]),
            sorted(expected, key=lambda row: row[key]),
            strict=True,
        )
        for mine, theirs in pairs:
            total += 1
            for column, value in theirs.items():
                assert mine[column] == pytest.approx(value, rel=1e-12, abs=1e-15), column
    assert total >= 6


def test_a_mixture_has_one_join_whichever_experts_ran(tmp_path):
    run, _ = recorded_and_true(mixture, tmp_path / "gated", every=1)
    assert run.joins["name"].tolist() == ["1", "2"]
    experts = [f"1.branch.experts.{n}.{layer}" for n in range(3) for layer in (0, 1)]
    assert sorted(run.joins["branch_layers"][0]) == sorted([*experts, "1.branch.gate"])
    assert run.joins["branch_parameters"][0] == 3 * 42 + 21
    roles = run.layers.set_index("name")[["join", "role"]]
    assert all(roles.loc[name].tolist() == [0, "branch"] for name in experts)


def test_experts_without_a_gradient_to_their_router_are_one_branch(tmp_path):
    run, _ = recorded_and_true(routed, tmp_path / "run", splits_every=1)
    assert run.joins["name"].tolist() == ["1", "2"]
    assert set(run.splits()["join"]) == {0, 1}
    assert (run.splits().groupby("step").size() == 2).all()


class LayerDrop(nn.Module):
    """Layers that the model leaves out by itself, in a loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers = nn.Linear(4, 6), nn.ModuleList(mlp() for _ in range(3))
        self.chosen: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number in self.chosen:
            x = x + self.layers[number](x)
        return x


def test_layers_that_are_dropped_in_one_loop_are_joins_of_their_own(tmp_path):
    model = LayerDrop()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with analyzer.Recorder(model, tmp_path / "run", splits_every=1):
        for model.chosen in ((), (1,), (0,), (0, 2), (2,), (0, 1, 2)):
            update(optimizer, model(torch.randn(5, 4)).square().mean(), lambda _: None)
    run = analyzer.open_run(tmp_path / "run")
    layers = [list(names) for names in run.joins["branch_layers"]]
    assert layers == [[f"layers.{n}.0", f"layers.{n}.1"] for n in (1, 0, 2)]
    joins = run.splits().groupby("step")["join"].apply(sorted).to_dict()
    assert joins == {1: [0], 2: [1], 3: [1, 2], 4: [2], 5: [0, 1, 2]}


def test_joins_are_found_at_the_step_at_which_they_first_appear(tmp_path):
    run, _ = recorded_and_true(stochastic_depth, tmp_path / "run")  # every tenth step is split
    assert run.joins["name"].tolist() == ["1", "2", "3"]
    first = run.splits().groupby("join")["step"].min()
    assert first.to_dict() == {0: 1, 1: 2, 2: 4}


def at_the_input(before: Before) -> Iterator[nn.Module]:
    """The fork of the first block that runs is the model's input: autograd does not see it."""
    model = nn.Sequential(Block(mlp()), Block(mlp()), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    yield model
    for switches in ((), (0,), (0,), (0, 1), (1,), (0, 1)):
        for place, block in enumerate(model[:2]):
            block.is_on = place in switches
        update(optimizer, model(torch.randn(5, 6)).square().mean(), before)


@pytest.mark.parametrize("splits_every", [1, 10])
def test_joins_at_the_input_are_found_one_step_after_the_first_change(tmp_path, splits_every):
    """What autograd does not see a trace has to follow, and nothing had changed before step 1."""
    run, true = recorded_and_true(at_the_input, tmp_path / "run", splits_every=splits_every)
    assert run.joins["name"].tolist() == ["0", "1"]
    rows = run.splits()
    steps = range(2, 6) if splits_every == 1 else (2,)
    for step in steps:
        found = sorted(rows.loc[rows["step"] == step, "join_gradient_norm"])
        expected = sorted(row["join_gradient_norm"] for row in true[step])
        assert found == pytest.approx(expected, rel=1e-12), step

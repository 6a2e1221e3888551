"""Kinds of training, each against plain autograd: names, calls and gradients."""

import copy
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

import analyzer
from tests.support.plain import Plain, compare, recorded


def train(
    model: nn.Module, truth: Plain, forward=None, steps: int = 3, watched: bool = True
) -> None:
    if watched:
        truth.watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (forward or model)(torch.randn(8, 4)).square().mean().backward()
        truth.update(model.named_parameters())
        optimizer.step()


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.ReLU(inplace=True))


# --- checkpointing ---------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass; plain where the truth is taken."""

    def __init__(self, reentrant: bool | None, shared: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        blocks = [block()] * 3 if shared else [block() for _ in range(3)]
        self.blocks, self.reentrant = nn.ModuleList(blocks), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for one in self.blocks:
            if self.reentrant is None:
                x = one(x)
            else:
                x = checkpoint(one, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_checkpointing_changes_no_row(reentrant: bool, shared: bool, tmp_path: Path) -> None:
    def run_it(truth: Plain) -> None:
        train(Checkpointed(None if truth.is_on else reentrant, shared), truth)

    run, plain = recorded(tmp_path / "run", run_it)
    compare(run, plain)
    depths = dict(zip(run.layers["name"], run.layers["depth"], strict=True))
    assert depths["embed"] == 1 and depths["head"] == 11
    assert sorted(depths.values()) == list(range(1, 12))


def test_blocks_that_are_only_called_by_reentrant_checkpointing_are_found(tmp_path: Path) -> None:
    def run_it(truth: Plain) -> None:
        model = nn.Sequential(*[block() for _ in range(3)])

        def forward(x: Tensor) -> Tensor:
            x.requires_grad_()
            for one in model:
                x = one(x) if truth.is_on else checkpoint(one, x, use_reentrant=True)
            return x

        train(model, truth, forward)

    run, plain = recorded(tmp_path / "run", run_it)
    compare(run, plain)
    assert run.layers["name"].tolist() == [f"{i}.{j}" for i in range(3) for j in range(3)]
    assert run.layers["depth"].tolist() == list(range(1, 10))
    assert run.parameters["layer"].tolist() == [0, 0, 3, 3, 6, 6]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_checkpointing_inside_of_checkpointing(tmp_path: Path) -> None:
    def run_it(truth: Plain) -> None:
        inner, outer = block(), block()
        model = nn.Sequential(nn.Linear(4, 4), outer, inner)

        def both(x: Tensor) -> Tensor:
            return checkpoint(inner, outer(x), use_reentrant=True)

        def forward(x: Tensor) -> Tensor:
            x = model[0](x)
            return inner(outer(x)) if truth.is_on else checkpoint(both, x, use_reentrant=True)

        train(model, truth, forward)

    run, plain = recorded(tmp_path / "run", run_it)
    compare(run, plain)
    depths = dict(zip(run.layers["name"], run.layers["depth"], strict=True))
    assert [depths[name] for name in ("0", "1.0", "1.2", "2.0", "2.2")] == [1, 2, 4, 5, 7]


# --- what is not recorded is said ------------------------------------------------------------


class Direct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first.forward(x)
        return self.last(nn.functional.linear(x, self.second.weight))


def test_modules_that_are_called_by_their_forward_are_named(tmp_path: Path) -> None:
    with analyzer.Recorder(None, tmp_path / "run"):
        train(Direct(), Plain(is_on=False))
    assert analyzer.open_run(tmp_path / "run").manifest["not_recorded"] == [
        "layers of first, second: not called as modules (their `forward` is called directly, or a "
        "function uses their weights), so that only their parameters have rows"
    ]


def test_a_thousand_of_them_are_one_sentence(tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(1000)])
    with analyzer.Recorder(model, tmp_path / "run"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            x = torch.ones(1, 2)
            for one in model:
                x = one.forward(x)
            x.sum().backward()
            optimizer.step()
    (said,) = analyzer.open_run(tmp_path / "run").manifest["not_recorded"]
    assert said.startswith("layers of 0, 1, 2, 3 and 996 more: not called as modules")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
def test_a_scripted_part_is_named(tmp_path: Path) -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    model = nn.Sequential(scripted, nn.Linear(4, 2))
    with analyzer.Recorder(None, tmp_path / "run"):
        train(model, Plain(is_on=False))
    said = analyzer.open_run(tmp_path / "run").manifest["not_recorded"]
    assert "layers of 0: it is scripted, so its modules are not called" in said


def test_weights_that_no_module_holds_are_named(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with analyzer.Recorder(None, tmp_path / "run"):
        for _ in range(2):
            (torch.ones(3, 4) @ weight).sum().backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.manifest["not_recorded"] == [
        "layers of parameter0: weights that no module holds, so that only their own rows are there"
    ]


# --- kinds that were right, and stay so ------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x).tanh()


def gan(truth: Plain) -> None:
    generator = nn.Sequential(nn.Linear(4, 6), Residual(), nn.Linear(6, 8))
    critic = nn.Sequential(nn.Linear(8, 6), Residual(), nn.Linear(6, 1))
    truth.watch(generator, "Sequential0."), truth.watch(critic, "Sequential1.")
    of_generator = torch.optim.Adam(generator.parameters(), 1e-3)
    of_critic = torch.optim.Adam(critic.parameters(), 1e-3)
    for _ in range(12):
        fake = generator(torch.randn(8, 4))
        of_critic.zero_grad()
        (critic(fake.detach()).mean() - critic(torch.randn(8, 8)).mean()).backward()
        truth.update((f"Sequential1.{name}", p) for name, p in critic.named_parameters())
        of_critic.step()
        of_generator.zero_grad()
        critic(fake).mean().neg().backward()
        truth.update((f"Sequential0.{name}", p) for name, p in generator.named_parameters())
        of_generator.step()


def test_an_adversarial_training(tmp_path: Path) -> None:
    """In the generator's steps its gradient also passes through the critic, which is not moved."""
    run, plain = recorded(tmp_path / "run", gan)
    compare(run, plain)
    assert sorted(run.joins["name"]) == ["Sequential0.1", "Sequential1.1#0", "Sequential1.1#1"]
    by_join = run.splits().groupby("join")["step"].apply(list).tolist()
    assert all(len(steps) >= 2 for steps in by_join), by_join
    moved = run.parameter_stats(columns=["update_norm"]).dropna()
    assert set(moved["parameter"]) == set(run.parameters["parameter"])


def averages(truth: Plain) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ema, swa = copy.deepcopy(model), AveragedModel(model)

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            ema(x)
        for ours, its in zip(ema.parameters(), model.parameters(), strict=True):
            ours.data.mul_(0.9).add_(its.data, alpha=0.1)
        swa.update_parameters(model)
        return model(x)

    train(model, truth, forward)
    update_bn([torch.randn(8, 4)], swa)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.out = nn.ModuleDict({"mean": nn.Linear(4, 2), "scale": nn.Linear(4, 2)})

    def forward(self, *, x: Tensor) -> dict[str, object]:
        hidden = self.inner(input=x)
        return {"mean": self.out["mean"](hidden), "more": [(self.out["scale"](hidden), None)]}


def keywords(truth: Plain) -> None:
    model = Keywords()

    def forward(x: Tensor) -> Tensor:
        found = model(x=x)
        return found["mean"] * found["more"][0][0].exp()

    train(model, truth, forward)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.middle(self.embed(x))))


def tied(truth: Plain) -> None:
    train(Tied(), truth)


def attention(truth: Plain) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))
    train(model, truth, lambda x: model(x[None]))


@pytest.mark.parametrize("program", [averages, keywords, tied, attention])
def test_a_kind_that_was_right(program, tmp_path: Path) -> None:
    run, plain = recorded(tmp_path / "run", program)
    compare(run, plain)
    assert "not_recorded" not in run.manifest
    assert isinstance(run.layers, pd.DataFrame) and run.parameters["trained"].all()

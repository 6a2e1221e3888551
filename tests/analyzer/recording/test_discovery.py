"""Models that a program calls in part before they are complete."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import analyzer
from analyzer.recording import discovery as looking


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Record whatever model is called, as for a script."""
    with analyzer.Recorder(None, path, splits_every=1):
        yield


class Block(nn.Module):
    def __init__(self, wrapped: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.first, self.second = wrapped(nn.Linear(8, 8)), wrapped(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Sized(nn.Module):
    """A model that may measure its stem in its constructor."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 8), Block(), nn.Tanh())
        width = self.stem(torch.zeros(1, 4)).shape[1] if looks else 8
        self.block, self.head = Block(), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)))


def from_a_backbone(looks: bool) -> nn.Module:
    backbone = nn.Sequential(nn.Linear(4, 8), Block())
    width = backbone(torch.zeros(1, 4)).shape[1] if looks else 8
    return nn.Sequential(backbone, Block(), nn.Linear(width, 3))


def looked_at(looks: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), Block(), nn.Linear(8, 3))
    if looks:
        assert model(torch.zeros(1, 4)).shape == (1, 3)
    return model


def grown(looks: bool) -> nn.Module:
    model = looked_at(looks)
    model.append(nn.Linear(3, 3))
    return model


def train(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(8, 4, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(8) % 3).backward()
        optimizer.step()


@pytest.mark.parametrize("build", [Sized, from_a_backbone, looked_at, grown])
def test_a_look_at_a_part_changes_nothing_of_what_is_recorded(
    build: Callable[[bool], nn.Module], tmp_path: Path
) -> None:
    runs = []
    for looks in (False, True):
        torch.manual_seed(0)
        with recorded(tmp_path / str(looks)):
            model = build(looks)
            train(model)
        runs.append(analyzer.open_run(tmp_path / str(looks)))
        expected = sum(1 for m in model.modules() if not list(m.children()))
        assert len(runs[-1].layers) == expected
    plain, looked = runs
    for table in ("layers", "parameters", "joins"):
        pd.testing.assert_frame_equal(getattr(looked, table), getattr(plain, table))
    pd.testing.assert_frame_equal(looked.layer_stats(), plain.layer_stats())
    pd.testing.assert_frame_equal(looked.parameter_stats(), plain.parameter_stats())
    pd.testing.assert_frame_equal(looked.splits(), plain.splits())
    assert len(plain.joins) and len(plain.splits()) == 3 * len(plain.joins)
    assert plain.parameters["name"].tolist() == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("wrapped", [spectral_norm, weight_norm])
def test_parametrized_weights_belong_to_their_model_and_hide_no_join(
    wrapped: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    with recorded(tmp_path / "run"):
        # Made in here, as by a script: the parametrizations are called before the model is.
        model = nn.Sequential(nn.Linear(4, 8), Block(wrapped), nn.Linear(8, 3))
        train(model)
    run = analyzer.open_run(tmp_path / "run")
    assert "not_recorded" not in run.manifest
    assert run.joins["name"].tolist() == ["1"] and len(run.splits()) == 3
    assert set(run.parameters["name"]) == {name for name, _ in model.named_parameters()}
    assert run.parameters["layer"].notna().all()


def test_two_models_are_still_told_apart(tmp_path: Path) -> None:
    with recorded(tmp_path / "run"):
        encoder, decoder = nn.Linear(4, 8), nn.Linear(8, 3)
        assert encoder(torch.zeros(1, 4)).shape == (1, 8)
        optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            decoder(encoder(torch.randn(8, 4))).sum().backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert len(run.layers) == 2 and len(run.parameters) == 4
    assert run.layer_stats()["output_gradient_norm"].notna().all()


def test_a_program_that_only_calls_models_is_not_looked_at_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[nn.Module] = []
    found = looking.container_of
    monkeypatch.setattr(
        looking, "container_of", lambda module: looks.append(module) or found(module)
    )
    monkeypatch.setattr(looking, "_MOST_LOOKS", 5)
    with recorded(tmp_path / "run"):
        model = nn.Linear(4, 3)
        for _ in range(20):
            model(torch.zeros(1, 4))
    assert len(looks) == 6

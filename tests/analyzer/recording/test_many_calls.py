"""Modules called many times in a step: bounded rows, and a bounded search for joins."""

import gc
import math
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.joins import search
from tests.support.plain import Plain, recorded
from tests.support.timing import undisturbed


class Unrolled(nn.Module):
    """A cell called for each element of a sequence, and a layer after it."""

    def __init__(self, cell: nn.Module, steps: int) -> None:
        super().__init__()
        self.cell, self.head, self.steps = cell, nn.Linear(8, 2), steps

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 8)
        for _ in range(self.steps):
            state = self.cell(x, state)
        return self.head(state)


class Gated(nn.Module):
    """A cell of linear layers, whose every sum reads all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.new, self.old = nn.Linear(12, 8), nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        z = torch.sigmoid(self.gate(torch.cat([x, state], 1)))
        return z * state + (1 - z) * torch.tanh(self.new(x) + self.old(state))


def train(steps: int, cell=lambda: nn.GRUCell(4, 8)):
    def run(truth: Plain) -> None:
        model = truth.watch(Unrolled(cell(), steps))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(3, 4)).square().mean().backward()
            truth.update(model.named_parameters())
            optimizer.step()

    return run


def test_calls_beyond_the_first_ones_are_pooled_in_one_row(tmp_path: Path) -> None:
    run, plain = recorded(tmp_path / "run", train(9), max_calls=4)
    assert run.layers["name"].tolist() == [
        "cell", "cell#1", "cell#2", "cell#3", "cell#rest", "head",
    ]  # fmt: skip
    assert run.layers["call"].tolist() == [0, 1, 2, 3, 4, 0]
    found = run.layer_stats(columns=["output_gradient_norm"])
    norms = found.pivot(index="step", columns="layer", values="output_gradient_norm")
    for step in range(2):
        for call in range(4):
            name = f"cell#{call}" if call else "cell"
            assert norms.loc[step, call] == pytest.approx(plain.layers[step, name], rel=1e-5)
        rest = math.hypot(*(plain.layers[step, f"cell#{call}"] for call in range(4, 9)))
        assert norms.loc[step, 4] == pytest.approx(rest, rel=1e-5)
    assert run.manifest["schedule"]["max_calls"] == 4
    assert run.manifest["not_recorded"] == [
        "rows of calls: cell had more than 4 calls in a step; the later ones are pooled in one row "
        "#rest (--max-calls)"
    ]


def test_as_many_calls_as_have_rows_are_not_pooled(tmp_path: Path) -> None:
    run, _ = recorded(tmp_path / "run", train(4), max_calls=4)
    assert run.layers["name"].tolist() == ["cell", "cell#1", "cell#2", "cell#3", "head"]
    assert "not_recorded" not in run.manifest


@pytest.mark.alone
@pytest.mark.parametrize("cell", [lambda: nn.GRUCell(4, 8), Gated])
def test_a_thousand_calls_of_a_cell_cost_little(cell, tmp_path: Path) -> None:
    def seconds() -> float:
        started = time.process_time()
        train(1000, cell)(Plain(is_on=False))
        return time.process_time() - started

    def recorded_seconds(attempt: int) -> float:
        with analyzer.Recorder(None, tmp_path / f"run-{attempt}"):
            return seconds()

    # The least of some measurements: whatever else the machine does can only add to them.
    with undisturbed():
        alone = min(seconds() for _ in range(3))
        recorded_alone = min(recorded_seconds(attempt) for attempt in range(3))
    # Two steps: the search for joins is in the first one.
    assert recorded_alone < 1.25 * alone + 2
    run = analyzer.open_run(tmp_path / "run-0")
    assert len(run.layers) <= 4 * 65


def test_a_graph_that_is_too_large_to_be_searched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_MOST_LOOKS", 500)
    run, _ = recorded(tmp_path / "run", train(60, Gated))
    said, gate = run.manifest["not_recorded"]
    assert said.startswith("joins of Unrolled: its graph of ")
    assert said.endswith(" operations is too large to be searched to its end")
    assert gate == "no join in cell: it adds two projections for a gate"


def test_a_recorded_training_rarely_lets_garbage_be_collected(tmp_path: Path) -> None:
    def collections(folder: Path | None) -> int:
        """How often a training of 100 parameters makes the collector run."""
        layers = [layer for _ in range(50) for layer in (nn.Linear(4, 4), nn.ReLU())]
        model, x = nn.Sequential(*layers), torch.randn(2, 4)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        began = []
        gc.collect()
        with analyzer.Recorder(model, folder, probe=()) if folder else nullcontext():
            for step in range(220):
                if step == 20:  # by then all that stays is there
                    gc.callbacks.append(lambda phase, info: began.append(phase == "start"))
                optimizer.zero_grad()
                model(x).square().sum().backward()
                optimizer.step()
            gc.callbacks.pop()
        return sum(began)

    # 4 to 9 are usual; they were 18 to 30 while a step that waits for the writer held 65 objects.
    assert collections(tmp_path / "run") <= collections(None) + 200 // 16

"""``analyzer study --dry-run``: what a study would take, against what it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import analyzer
from analyzer.options import RecordOptions
from analyzer.storage.study import write_json
from analyzer.studies import trial
from analyzer.studies.plan import Plan, Point, product
from analyzer.studies.trial import estimate, whole_size


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def recorded(folder: Path, steps: int, **options: Any) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Residual(), Residual(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    loss = nn.MSELoss()
    with analyzer.Recorder(model, folder, **options):
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(torch.randn(32, 8)), torch.zeros(32, 1)).backward()
            optimizer.step()
    return folder


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": 5},
        {"probe": ("shattering", "lesion:100"), "checkpoint_every": 100},
    ],
    ids=["each step", "every fifth", "probes and checkpoints"],
)
def test_the_disk_of_a_run_follows_from_its_first_steps(tmp_path, options):
    first = recorded(tmp_path / "first", 40, **{**options, "every": 1})
    whole = recorded(tmp_path / "whole", 400, **options)
    expected, probes = whole_size(first, RecordOptions(**options), 400)
    assert expected == pytest.approx(size(whole), rel=0.15)
    # Two measurements of each in the trial; in the whole run of lesion five.
    assert probes == (pytest.approx(7 / 4) if "probe" in options else 1)


def known(monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[tuple[str, int]]:
    """Trials cost ten seconds and a million bytes a layer, and a hundred to start; note which."""
    tried: list[tuple[str, int]] = []

    def trial_cost(point: Point, threads: int) -> Any:
        tried.append((point.name, threads))
        depth = point.arguments["depth"]
        twice = 1 if point.arguments["shortcuts"] == "off" else 2
        cost = {"seconds": 10.0 * depth * twice, "bytes": 1e6 * depth * twice, "start": 100.0}
        return trial._Known(point.arguments, **{**cost, **more})

    monkeypatch.setattr(trial, "_trial_cost", trial_cost)
    monkeypatch.setattr(trial, "processors", lambda: 4)
    return tried


def of_depths(*depths: int) -> Plan:
    return product("zoo:simple", depth=depths, shortcuts=["on", "off"], seed=[0, 1])


def test_networks_with_and_without_shortcuts_are_tried_apart(tmp_path, monkeypatch):
    tried = known(monkeypatch)
    found = estimate(of_depths(2, 4, 8), tmp_path / "s", 2)
    assert {name.removesuffix("-seed1").removesuffix("-seed0") for name, _ in tried} == {
        *("depth2-on", "depth8-on", "depth2-off", "depth8-off")
    }
    assert [threads for _, threads in tried] == [2] * 4
    each = 2 * (2 + 4 + 8) * (1 + 2)
    assert found.seconds == pytest.approx(10 * each / 2 + 100)
    assert found.bytes == pytest.approx(1e6 * each)
    assert "by 4 trials of 40 steps at most" in found.sentence


def test_points_that_ran_do_not_stand_for_deeper_ones(tmp_path, monkeypatch):
    tried = known(monkeypatch)
    study = tmp_path / "s"
    (study / "points").mkdir(parents=True)
    write_json(study / "plan.json", of_depths(2, 4).as_json())
    for name in ("depth2-on-seed0", "depth2-off-seed0"):
        ending = {"status": "finished", "seconds": 7.0, "bytes": 3e6}
        write_json(study / "points" / f"{name}.json", ending)
    found = estimate(of_depths(2, 4), study, 1)
    assert len(tried) == 2 and all(name.startswith("depth4") for name, _ in tried)
    assert found.seconds == pytest.approx(2 * 7 + 2 * 10 * 4 * 3 + 100)
    assert found.bytes == pytest.approx(2 * 3e6 + 2 * 4e6 * 3)
    assert "by 2 points that ran before and 2 trials" in found.sentence


def test_of_a_script_that_goes_on_nothing_is_guessed(tmp_path, monkeypatch):
    known(monkeypatch, is_open=True)
    found = estimate(of_depths(2), tmp_path / "s", 1)
    assert (found.seconds, found.bytes) == (None, None)
    assert "how many steps the script makes is not known before it has run once" in found.sentence

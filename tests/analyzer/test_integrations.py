"""What the callbacks share; `tests/integrations` has them with the libraries themselves."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from analyzer.integrations import CallbackRecording, library
from analyzer.storage.run import open_run
from tests.support import commands


def step(model: nn.Module) -> None:
    model(torch.ones(2, 3)).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
            parameter.grad = None


def test_metrics_are_columns_of_the_step_that_has_ended(tmp_path: Path) -> None:
    model, recording = nn.Linear(3, 1), CallbackRecording(tmp_path / "run", None, {"every": 2})
    recording.log({"early": 1.0})  # no training has begun
    recording.begin(model)
    for k in range(3):
        step(model)
        metrics = {
            "loss": torch.tensor([2.0 * k]),
            "word": "x",
            "many": torch.ones(3),
            "none": None,
        }
        recording.log(metrics, epoch=k // 2, global_step=k + 1)
    recording.log({"val/acc": 0.5})
    recording.end()
    recording.log({"late": 1.0})
    run = open_run(tmp_path / "run")
    steps = run.steps
    assert steps["logged_loss"].tolist() == [0, 2, 4]
    assert steps["epoch"].tolist() == [0, 0, 1]
    assert steps["global_step"].tolist() == [1, 2, 3]
    assert steps["val/acc"].notna().tolist() == [False, False, True]
    assert steps["word"].tolist() == ["x"] * 3
    assert not {"early", "late", "many", "none"} & set(steps.columns)
    assert run.recorded_steps("layer_stats").tolist() == [0, 2]


def test_the_global_step_says_where_a_run_continues(tmp_path: Path) -> None:
    model, recording = nn.Linear(3, 1), CallbackRecording(tmp_path / "run", None, {})
    recording.begin(model, 100)
    for k in range(4):
        step(model)
        recording.log({}, global_step=101 + k)
    recording.end()
    later = CallbackRecording(None, None, {"resume": tmp_path / "run"})
    model = nn.Linear(3, 1)
    later.begin(model, 103)
    step(model)
    later.end()
    assert open_run(tmp_path / "run").steps["attempt"].tolist() == [0, 0, 0, 1]


def test_a_training_without_an_end_has_failed(tmp_path: Path) -> None:
    recording = CallbackRecording(tmp_path / "run", "new", {})
    for _ in range(2):
        recording.begin(nn.Linear(3, 1))
    recording.end_with(KeyboardInterrupt())
    assert open_run(tmp_path / "run").status == "failed"
    assert open_run(tmp_path / "run-1").status == "interrupted"


def test_a_program_that_fails_ends_its_recording(tmp_path: Path) -> None:
    code = (
        "from analyzer.integrations import CallbackRecording\n"
        "from torch import nn\n"
        f"CallbackRecording({str(tmp_path / 'run')!r}, None, {{}}).begin(nn.Linear(1, 1))\n"
        "raise ValueError('no more data')"
    )
    done = commands.run(tmp_path, "-c", code)
    assert done.returncode == 1
    run = open_run(tmp_path / "run")
    assert (run.status, run.manifest["error"]) == ("failed", "ValueError: no more data")


def test_a_library_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(
        ImportError, match=r"integrations\.lightning needs nosuch, which is not in.*"
    ):
        library("lightning", "nosuch.pytorch", "nosuch_either")
    assert library("lightning", "nosuch.pytorch", "json").__name__ == "json"
    for name in ("lightning", "skorch"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(
                ImportError, match=rf"pip install 'gradient-flow-analyzer\[{name}\]'"
            ):
                importlib.import_module(f"analyzer.integrations.{name}")

"""An exported run, read back by TensorBoard itself: `make test-integrations` installs it."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from analyzer.cli import main
from analyzer.recording.recorder import Recorder
from analyzer.storage.run import open_run

pytestmark = pytest.mark.filterwarnings("default")


def test_tensorboard_reads_what_was_recorded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, tmp_path / "run") as recorder:
        for k in range(300):
            model(torch.randn(2, 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.log(**{"val/accuracy": k / 2})
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--format", "tensorboard", "-o", str(out)]) == 0
    events = EventAccumulator(str(out), size_guidance={"scalars": 0})
    events.Reload()
    run = open_run(tmp_path / "run")
    for tag, values in {
        "steps/loss": run.steps["loss"],
        "steps/val/accuracy": run.steps["val/accuracy"],
        "layer_stats.output_gradient_norm/0": run.layer_stats("output_gradient_norm", layers="0")[
            "output_gradient_norm"
        ],
        "parameter_stats.gradient_norm/2.weight": run.parameter_stats(
            "gradient_norm", parameters="2.weight"
        )["gradient_norm"],
    }.items():
        found = events.Scalars(tag)
        assert [event.step for event in found] == list(range(300))
        assert [event.value for event in found] == pytest.approx(values.tolist(), rel=1e-6)
    moments = run.read("steps", "time")["time"].to_pylist()
    walls = [event.wall_time for event in events.Scalars("steps/loss")]
    assert walls == pytest.approx([moment.timestamp() for moment in moments], abs=1e-5)

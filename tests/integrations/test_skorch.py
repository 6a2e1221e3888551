"""The callback for skorch, with the real one: `make test-integrations` installs it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skorch import NeuralNetRegressor
from torch import nn

from analyzer.integrations.skorch import RecorderCallback
from analyzer.storage.run import open_run

pytestmark = pytest.mark.filterwarnings("default")


def test_a_fit_is_recorded_with_the_scores_of_its_epochs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    net = NeuralNetRegressor(
        module,
        max_epochs=2,
        batch_size=4,
        verbose=0,
        callbacks=[RecorderCallback(tmp_path / "run", options={"every": 2})],
    )
    net.fit(x, x[:, :1])
    run = open_run(tmp_path / "run")
    assert (run.status, len(run.layers)) == ("finished", 3)
    steps = run.steps
    assert steps["epoch"].tolist() == [0] * 4 + [1] * 4
    assert steps["train_loss"].notna().tolist() == [False, False, False, True] * 2
    history = [epoch["valid_loss"] for epoch in net.history]
    assert steps["valid_loss"].dropna().tolist() == pytest.approx(history)
    assert run.recorded_steps("layer_stats").tolist() == [0, 2, 4, 6]

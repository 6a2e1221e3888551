"""The callback for Lightning, with the real Lightning: `make test-integrations` installs it."""

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from analyzer.errors import RunExistsError
from analyzer.integrations.lightning import RecorderCallback
from analyzer.storage.run import open_run

pytestmark = pytest.mark.filterwarnings("default")


class Module(pl.LightningModule):
    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.drop = nn.Dropout(0.1)
        self.fails_at = fails_at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x + self.branch(x))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if self.fails_at == self.global_step:
            raise ValueError("no more data")
        loss = self(batch[0]).square().mean()
        self.log("loss", loss)
        self.log("train/twice", 2 * loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self(batch[0]).square().mean())

    def on_train_epoch_end(self) -> None:
        self.log("at_end", float(self.current_epoch + 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def fit(folder: Path, module: Module, *callbacks: Any, epochs: int = 2, **more: Any) -> pl.Trainer:
    data = TensorDataset(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
    loader = DataLoader(data, 3)
    options = {name: more.pop(name) for name in list(more) if name != "ckpt_path"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=list(callbacks),
            **{"enable_checkpointing": False} | options,
        )
        trainer.fit(module, loader, loader, **more)
    return trainer


def seeded(**arguments: Any) -> Module:
    torch.manual_seed(0)
    return Module(**arguments)


def test_a_fit_is_recorded_and_trains_the_same_weights(tmp_path: Path) -> None:
    plain, module = seeded(), seeded()
    torch.manual_seed(1)
    fit(tmp_path, plain)
    torch.manual_seed(1)
    fit(tmp_path, module, RecorderCallback(tmp_path / "run"))
    for one, other in zip(plain.parameters(), module.parameters(), strict=True):
        assert torch.equal(one, other)
    run = open_run(tmp_path / "run")
    assert (run.status, run.joins["shortcut"].tolist()) == ("finished", ["identity"])
    assert run.layers["name"].tolist() == ["branch.0", "branch.1", "branch.2", "drop"]
    steps = run.steps
    assert steps["epoch"].tolist() == [0] * 4 + [1] * 4
    assert steps["global_step"].tolist() == list(range(1, 9))
    assert steps["logged_loss"].tolist() == pytest.approx(steps["loss"].tolist())
    assert steps["train/twice_step"].tolist() == pytest.approx((2 * steps["loss"]).tolist())
    assert steps["val_loss"].notna().tolist() == [False, False, False, True] * 2
    assert steps["at_end"].dropna().to_dict() == {3: 1.0, 7: 2.0}
    means = [2 * steps["loss"][first : first + 4].mean() for first in (0, 4)]
    assert steps["train/twice_epoch"].dropna().tolist() == pytest.approx(means)
    assert steps["train/twice_epoch"].notna().tolist() == [False, False, False, True] * 2


def test_each_update_of_a_batch_has_its_place(tmp_path: Path) -> None:
    class Twice(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            optimizer = self.optimizers()
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, index))
                optimizer.step()

    module = Twice()
    fit(tmp_path, module, RecorderCallback(tmp_path / "run"), epochs=1)
    steps = open_run(tmp_path / "run").steps
    assert steps["global_step"].tolist() == list(range(1, 9))
    assert steps["epoch"].tolist() == [0] * 8


def test_accumulated_batches_are_one_step_and_a_second_fit_needs_a_new_folder(
    tmp_path: Path,
) -> None:
    callback = RecorderCallback(tmp_path / "run", every=2)
    fit(tmp_path, seeded(), callback, epochs=1, accumulate_grad_batches=2)
    run = open_run(tmp_path / "run")
    assert run.steps["num_backward"].tolist() == [2, 2]
    assert run.steps["global_step"].tolist() == [1, 2]
    assert run.recorded_steps("layer_stats").tolist() == [0]
    with pytest.raises(RunExistsError, match="exists; a run is never overwritten"):
        fit(tmp_path, seeded(), callback, epochs=1)


def test_a_fit_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no more data"):
        fit(tmp_path, seeded(fails_at=3), RecorderCallback(tmp_path / "run"))
    run = open_run(tmp_path / "run")
    assert (run.status, run.manifest["error"]) == ("failed", "ValueError: no more data")
    assert len(run.steps) == 3


def test_a_fit_from_a_checkpoint_continues_its_run(tmp_path: Path) -> None:
    torch.manual_seed(1)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="at-{step}")
    first = RecorderCallback(tmp_path / "run")
    fit(tmp_path, seeded(), keep, first, max_steps=6, epochs=-1, enable_checkpointing=True)
    later = RecorderCallback(resume=tmp_path / "run")
    fit(tmp_path, seeded(), later, epochs=3, ckpt_path=tmp_path / "at-step=4.ckpt")
    run = open_run(tmp_path / "run")
    assert run.steps["attempt"].tolist() == [0] * 4 + [1] * 8
    assert run.steps["global_step"].tolist() == list(range(1, 13))
    assert run.manifest["attempts"][1]["first_step"] == 4
    norms = run.parameter_stats("norm")
    again = run.read("parameter_stats", "norm", steps=4)
    assert len(norms) == 12 * 4 and again.num_rows == 4

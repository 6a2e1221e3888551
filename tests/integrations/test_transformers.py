"""The callback for the Trainer, with the real one: `make test-integrations` installs it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from analyzer.integrations.transformers import RecorderCallback
from analyzer.storage.run import open_run

pytestmark = pytest.mark.filterwarnings("default")


def trainer(folder: Path, callback: Any = None, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    words = torch.randint(0, 11, (12, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in words]
    given = {
        "per_device_train_batch_size": 3,
        "num_train_epochs": 2,
        "logging_steps": 2,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = TrainingArguments(folder / "out", **given | arguments)
    callbacks = [] if callback is None else [callback]
    return Trainer(
        GPT2LMHeadModel(config), args, train_dataset=data, eval_dataset=data, callbacks=callbacks
    )


def test_a_training_is_recorded_and_trains_the_same_weights(tmp_path: Path) -> None:
    plain = trainer(tmp_path)
    plain.train()
    watched = trainer(tmp_path, RecorderCallback(tmp_path / "run"))
    watched.train()
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert [name.partition("#")[0] for name in run.joins["name"]] == [
        f"transformer.h.{k}" for k in (0, 0, 1, 1)
    ]
    steps = run.steps
    assert steps["epoch"].tolist() == [0] * 4 + [1] * 4
    assert steps["global_step"].tolist() == list(range(1, 9))
    pairs = steps["loss"].to_numpy().reshape(4, 2).mean(axis=1)
    assert steps["logged_loss"].dropna().tolist() == pytest.approx(pairs.tolist(), abs=1e-3)
    assert steps["eval_loss"].notna().tolist() == [False, False, False, True] * 2
    logged = steps["grad_norm"].notna()
    assert logged.tolist() == [False, True] * 4
    assert steps["grad_norm"][logged].tolist() == pytest.approx(
        steps["gradient_norm"][logged].tolist(), rel=1e-4
    )


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback = RecorderCallback(tmp_path / "run")
    trainer(tmp_path, callback, gradient_accumulation_steps=2, num_train_epochs=1).train()
    steps = open_run(tmp_path / "run").steps
    assert steps["num_backward"].tolist() == [2, 2]
    assert steps["global_step"].tolist() == [1, 2]


def test_a_training_from_a_checkpoint_continues_its_run(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "no"}
    whole = trainer(tmp_path / "whole", RecorderCallback(tmp_path / "a"), **saving)
    whole.train()
    trainer(tmp_path, RecorderCallback(tmp_path / "b"), **saving, max_steps=6).train()
    later = trainer(tmp_path, RecorderCallback(resume=tmp_path / "b"), **saving)
    later.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    run = open_run(tmp_path / "b")
    assert run.steps["attempt"].tolist() == [0] * 4 + [1] * 4
    assert run.steps["global_step"].tolist() == list(range(1, 9))
    assert run.steps["epoch"].tolist() == [0] * 4 + [1] * 4


def test_a_training_that_failed_ends_when_the_next_one_begins(tmp_path: Path) -> None:
    callback = RecorderCallback(tmp_path / "run", exist="new")
    failing = trainer(tmp_path, callback)
    failing.train_dataset = failing.train_dataset[:3] + [{"input_ids": torch.ones(8)}] * 3
    with pytest.raises(Exception):  # noqa: B017, PT011 -- whatever it is
        failing.train()
    trainer(tmp_path, callback, num_train_epochs=1).train()
    first, second = open_run(tmp_path / "run"), open_run(tmp_path / "run-1")
    assert (first.status, second.status) == ("failed", "finished")
    assert len(second.steps) == 4

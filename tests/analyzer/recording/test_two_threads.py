"""Two threads that train at once: one is recorded, whole and unmixed, and the other is named."""

import threading

import pytest
import torch
from torch import nn

import analyzer
from analyzer.storage.run import open_run

STEPS = 4


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def losses_of(model, x, turn=lambda: None):
    """Train; `turn` lets the other thread run between forward pass, backward pass and update."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(STEPS):
        loss = model(x).square().mean()
        turn()
        optimizer.zero_grad()
        loss.backward()
        turn()
        optimizer.step()
        turn()
        losses.append(loss.item())
    return losses


def taking_turns(models, inputs):
    """Train each model in a thread of its own, in lockstep; return the losses."""
    barrier, found = threading.Barrier(len(models), timeout=30), {}

    def work(name):
        found[name] = losses_of(models[name], inputs[name], barrier.wait)

    threads = [threading.Thread(target=work, args=(name,), name=name) for name in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[name] for name in models]


@pytest.mark.parametrize("known", [True, False])
def test_one_of_two_trainings_is_recorded_and_the_other_is_said(tmp_path, known):
    inputs = {"one": torch.randn(5, 6), "two": torch.randn(5, 6)}
    true = [losses_of(net(seed), x) for seed, x in enumerate(inputs.values())]
    models = {name: net(seed) for seed, name in enumerate(inputs)}
    with analyzer.Recorder(models["one"] if known else None, tmp_path / "run"):
        assert taking_turns(models, inputs) == true
    run = open_run(tmp_path / "run")
    losses = run.steps["loss"].tolist()
    assert losses in ([pytest.approx(true[0])] if known else [pytest.approx(t) for t in true])
    assert run.steps["num_backward"].tolist() == [1] * STEPS
    stats = run.layer_stats()
    assert len(stats) == 3 * STEPS
    assert stats["output_gradient_norm"].notna().all()
    said = [s for s in run.manifest.get("not_recorded", []) if "thread" in s]
    assert len(said) == (0 if known else 1)
    assert known or said[0].startswith("the training in thread '")


def test_a_training_that_moves_to_a_new_thread_goes_on(tmp_path):
    model, x = net(0), torch.randn(5, 6)
    with analyzer.Recorder(model, tmp_path / "run"):
        for _ in range(2):
            thread = threading.Thread(target=losses_of, args=(model, x))
            thread.start()
            thread.join()
    run = open_run(tmp_path / "run")
    assert len(run.steps) == 2 * STEPS
    assert len(run.layer_stats()) == 3 * 2 * STEPS
    assert "not_recorded" not in run.manifest


def test_two_recorders_in_two_threads_record_a_training_each(tmp_path):
    inputs = {"one": torch.randn(5, 6), "two": torch.randn(5, 6)}
    models = {name: net(seed) for seed, name in enumerate(inputs)}
    first = analyzer.Recorder(models["one"], tmp_path / "one")
    second = analyzer.Recorder(models["two"], tmp_path / "two")
    with first, second:
        true = taking_turns(models, inputs)
    for name, losses in zip(inputs, true, strict=True):
        run = open_run(tmp_path / name)
        assert run.steps["loss"].tolist() == pytest.approx(losses)
        assert len(run.layer_stats()) == 3 * STEPS

"""The gradient noise scale from the passes that a training makes anyway."""

import copy
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import analyzer
from analyzer.probes.noise import NoiseTerms, averaged, micro_batch_terms, noise_terms


def regression(count: int) -> tuple[Tensor, Tensor]:
    """y = w*·x + ε with d = 8, ‖w − w*‖ = 1 at w = 0, s = 0.1: tr Σ = 9.08, ‖G‖² = 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, generator=generator)
    return x, x[:, 3] + 0.1 * torch.randn(count, generator=generator)


def origin() -> nn.Linear:
    model = nn.Linear(8, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output.flatten() - target).square().mean()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))


def accumulate(model, steps, micro, rows=5, *, set_to_none=True, lr=0.1, before=lambda k: None):
    """Train; return per step the gradient of each pass and of the step, by parameter."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x, y = regression(steps * micro * rows)
    x, y = x.to(next(model.parameters()).device), y.to(next(model.parameters()).device)
    optimizer.zero_grad()
    for step in range(steps):
        for k in range(micro):
            before(k)
            place = slice((step * micro + k) * rows, (step * micro + k + 1) * rows)
            (half_square(model(x[place]), y[place]) / micro).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def slow_twin(model, steps, micro, rows=5):
    """Each pass by itself, at fixed weights: the estimators of two batch sizes, as written."""
    x, y = regression(steps * micro * rows)
    found = []
    for step in range(steps):
        gradients = []
        for k in range(micro):
            place = slice((step * micro + k) * rows, (step * micro + k + 1) * rows)
            loss = half_square(model(x[place]), y[place])
            pieces = torch.autograd.grad(loss, list(model.parameters()))
            gradients.append(torch.cat([piece.flatten() for piece in pieces]).double())
        small = float(np.mean([float(g.square().sum()) for g in gradients]))
        large = float(torch.stack(gradients).mean(0).square().sum())
        signal = (micro * rows * large - rows * small) / (micro * rows - rows)
        found.append((signal, (small - large) / (1 / rows - 1 / (micro * rows))))
    return np.mean(found, axis=0)


def test_noise_scale_of_the_analytic_regression_from_accumulated_passes(tmp_path):
    with analyzer.Recorder(origin(), tmp_path / "run", probe="noise") as recorder:
        accumulate(recorder._model, 100, 8, rows=64, lr=0.0)
    last = analyzer.open_run(tmp_path / "run").probe("noise").iloc[-1]
    assert last["gradient_noise_scale"] == pytest.approx(9.08, rel=0.1)
    assert last["noise_trace"] == pytest.approx(9.08, rel=0.1)
    assert last["signal_norm"] == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_terms_equal_those_of_every_pass_by_itself_averaged_before_dividing(tmp_path, set_to_none):
    model = net()
    signal, trace = slow_twin(model, 6, 3)
    with analyzer.Recorder(model, tmp_path / "run", probe="noise:5") as recorder:
        accumulate(recorder._model, 6, 3, lr=0.0, set_to_none=set_to_none)
    run = analyzer.open_run(tmp_path / "run")
    last = run.probe("noise").iloc[-1]
    assert last["step"] == 6
    assert last["noise_trace"] == pytest.approx(trace, rel=1e-5)
    assert last["gradient_noise_scale"] == pytest.approx(trace / signal, rel=1e-5)
    notes = run.probe_metadata("noise")[6]
    assert (notes["source"], notes["num_steps"]) == ("micro-batches of the training", "6")
    assert (notes["num_samples"], notes["num_pieces"]) == ("15", "3")
    layers = json.loads(notes["layers"])
    assert sorted(layers) == ["0", "2"]
    assert sum(layer["noise_trace"] for layer in layers.values()) == pytest.approx(trace, rel=1e-5)


def test_without_accumulation_a_held_batch_is_split_and_no_pass_is_hooked(tmp_path, monkeypatch):
    hooked = []
    register = Tensor.register_hook
    monkeypatch.setattr(
        Tensor, "register_hook", lambda t, f: (hooked.append(t.is_leaf), register(t, f))[1]
    )
    counts = []
    model = net()
    with analyzer.Recorder(model, tmp_path / "run", probe="noise:2"):
        accumulate(model, 4, 1, before=lambda _: counts.append(sum(hooked)))
    run = analyzer.open_run(tmp_path / "run")
    assert {m["source"] for m in run.probe_metadata("noise").values()} == {
        "split of the held batch"
    }
    assert counts == [0, 4, 4, 4]  # the first step's one pass was enough to know


@pytest.mark.parametrize("probe", [[], ["noise"]])
def test_training_is_bit_identical_and_no_hook_is_left(tmp_path, probe):
    model = net()
    twin = copy.deepcopy(model)
    accumulate(twin, 4, 3)
    with analyzer.Recorder(model, tmp_path / "run", probe=probe):
        accumulate(model, 4, 3)
    pairs = list(zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(ours, plain) for ours, plain in pairs)
    assert all(ours._backward_hooks is None for ours, _ in pairs)


def changed_between(model):
    def before(k):
        if k == 1:
            model[0].weight.grad.mul_(1.0)

    return before


def test_a_gradient_that_the_program_changes_between_passes_is_no_accumulation(tmp_path):
    model = net()
    with analyzer.Recorder(model, tmp_path / "run", probe="noise"):
        accumulate(model, 3, 2, before=changed_between(model))
    notes = analyzer.open_run(tmp_path / "run").probe_metadata("noise")
    assert {entry["source"] for entry in notes.values()} == {"split of the held batch"}


def test_two_losses_of_one_forward_pass_are_no_micro_batches(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = regression(6)
    with analyzer.Recorder(model, tmp_path / "run", probe="noise"):
        for _ in range(3):
            optimizer.zero_grad()
            output = model(x)
            half_square(output, y).backward(retain_graph=True)
            output.square().mean().backward()
            optimizer.step()
    notes = analyzer.open_run(tmp_path / "run").probe_metadata("noise")
    assert {entry["source"] for entry in notes.values()} == {"split of the held batch"}


def test_gradients_that_were_there_before_make_no_number(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = regression(6)
    half_square(model(x), y).backward()
    with analyzer.Recorder(model, tmp_path / "run", probe="noise"):
        for k in range(4):
            half_square(model(x), y).backward()
            if k % 2:
                optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.probe("noise")["gradient_noise_scale"].isna().all()


def test_nothing_waits_for_the_device(tmp_path):
    from tests.support import simulated_accelerator as simulation

    model = net()
    on_device = copy.deepcopy(model).to(simulation.DEVICE)
    bare = copy.deepcopy(on_device)
    waits: list[int] = []

    def count(_: int) -> None:
        waits.append(simulation.waits())
        simulation.reset_counts()

    accumulate(bare, 4, 3, before=count)
    bare_waits = waits[1:]
    waits.clear()
    with analyzer.Recorder(on_device, tmp_path / "device", probe="noise:1"):
        accumulate(on_device, 4, 3, before=count)
    assert waits[3:] == bare_waits[2:]  # the first step is replayed for probes of a held batch
    with analyzer.Recorder(model, tmp_path / "cpu", probe="noise:1"):
        accumulate(model, 4, 3)
    cpu, device = (analyzer.open_run(tmp_path / name).probe("noise") for name in ("cpu", "device"))
    np.testing.assert_allclose(device["noise_trace"], cpu["noise_trace"], rtol=1e-4)
    assert (cpu["noise_trace"] > 0).all()


def test_a_step_without_finite_gradients_leaves_after_a_hundred_others():
    terms = [NoiseTerms(1.0, 2.0), NoiseTerms(float("nan"), float("inf"))]
    assert averaged(terms[:1]).scale == 2.0
    assert averaged(terms).trace == float("inf")
    assert averaged(terms).signal != averaged(terms).signal


def test_equal_sizes_give_the_terms_of_a_split():
    split = noise_terms([4] * 3, [5.0, 3.0, 7.0], 2.0)
    found = micro_batch_terms(5.0, 2.0, 3, 1 / 4)
    assert (found.signal, found.trace) == pytest.approx((split.signal, split.trace))


def test_sizes_that_differ_leave_the_estimate_unbiased():
    torch.manual_seed(0)
    truth, spread, sizes = torch.tensor([3.0, 4.0]), 2.0, [1, 2, 5]
    terms = []
    for _ in range(4000):
        pieces = torch.stack([truth + spread * torch.randn(2) / size**0.5 for size in sizes])
        small = float(pieces.square().sum(1).mean())
        inverse = sum(1 / size for size in sizes) / 3
        terms.append(micro_batch_terms(small, float(pieces.mean(0).square().sum()), 3, inverse))
    assert averaged(terms).trace == pytest.approx(8, rel=0.05)
    assert averaged(terms).signal == pytest.approx(25, rel=0.05)


def test_one_micro_batch_is_refused():
    with pytest.raises(ValueError, match="needs at least 2 micro-batches to compare, got 1"):
        micro_batch_terms(1.0, 1.0, 1, 0.5)


def a_rank(rank: int, port: int, folder: str, micro: int) -> None:
    """One process of a data-parallel training, that records for itself."""
    torch.set_num_threads(1)
    store = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = DistributedDataParallel(origin())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y = regression(2 * 60 * 64 * micro)
    parts = iter(zip(x.chunk(2)[rank].split(64), y.chunk(2)[rank].split(64), strict=True))
    with analyzer.Recorder(model, f"{folder}/rank-{rank}-{micro}", probe="noise"):
        for _ in range(60):
            optimizer.zero_grad()
            for k in range(micro):
                model.require_backward_grad_sync = k == micro - 1  # as no_sync() has it
                inputs, target = next(parts)
                (half_square(model(inputs), target) / micro).backward()
            optimizer.step()
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("micro", [1, 3])
def test_ranks_compare_their_own_gradient_with_the_mean_over_the_ranks(tmp_path: Path, micro):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(a_rank, (port, str(tmp_path), micro), nprocs=2)
    runs = [analyzer.open_run(tmp_path / f"rank-{rank}-{micro}") for rank in range(2)]
    notes = [run.probe_metadata("noise")[60] for run in runs]
    assert [entry["num_ranks"] for entry in notes] == ["2", "2"]
    # One rank's estimate has no bias, but the spread of one of two small batches.
    trace = sum(run.probe("noise")["noise_trace"].iloc[-1] for run in runs) / 2
    signal = sum(float(entry["signal_squared"]) for entry in notes) / 2
    assert trace / signal == pytest.approx(9.08, rel=0.1)

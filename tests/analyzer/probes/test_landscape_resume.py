import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import analyzer
from analyzer.probes.landscape import ledger, methods, surface

AXIS = np.linspace(-1, 1, 13)


class Stopped(BaseException):
    """What a signal would raise."""


class Loss:
    """Cross entropy that stops the program after some calls; NaN in one corner."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise Stopped
        value = cross_entropy(output, target)
        return value * float("nan") if value > 5 else value


def problem() -> tuple[nn.Module, list, object]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(6, 4) * 3, torch.arange(6) % 3) for _ in range(2)]
    return model, batches, analyzer.random_directions(model)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_stopped_ten_times_a_surface_ends_with_the_same_values(mode, tmp_path, monkeypatch):
    # Both by one method: on a busy machine the trial of one of them may choose another.
    monkeypatch.setattr(methods, "_WORTH_SECONDS", float("inf"))
    model, batches, planes = problem()
    undisturbed = surface(
        model, batches, Loss(10**9), planes, AXIS, np.linspace(0, 1, 20), mode=mode
    )
    stops, random = 0, np.random.default_rng(0)
    while True:
        # Random moments; at last the rest in one go.
        loss = Loss(int(random.integers(10, 40)) if stops < 10 else 10**9)
        try:
            found = surface(
                model, batches, loss, planes, AXIS, np.linspace(0, 1, 20), mode=mode,
                resume=tmp_path / "points",
            )  # fmt: skip
            break
        except Stopped:
            stops += 1
    assert stops == 10
    np.testing.assert_array_equal(found.losses, undisturbed.losses)
    np.testing.assert_array_equal(found.evaluated, undisturbed.evaluated)
    assert [file.name for file in tmp_path.iterdir()] == ["points"]


def test_a_finished_surface_is_read_and_only_checked(tmp_path):
    model, batches, planes = problem()
    first = surface(model, batches, cross_entropy, planes, AXIS, AXIS, resume=tmp_path / "points")
    calls: list[int] = []

    def counting(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return cross_entropy(output, target)

    again = surface(model, batches, counting, planes, AXIS, AXIS, resume=tmp_path / "points")
    np.testing.assert_array_equal(again.losses, first.losses)
    assert len(calls) < AXIS.size**2 / 4


def test_a_file_of_another_surface_is_refused(tmp_path):
    model, batches, planes = problem()
    file = tmp_path / "points"
    surface(model, batches, cross_entropy, planes, AXIS, resume=file)
    other = analyzer.random_directions(model, seed=5)
    with pytest.raises(ValueError, match=r"'points' holds points of another surface.*start over"):
        surface(model, batches, cross_entropy, other, AXIS, resume=file)
    with pytest.raises(ValueError, match="was made with another loss"):
        surface(model, batches, lambda o, t: 2 * cross_entropy(o, t), planes, AXIS, resume=file)
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="'points' holds no partial surface"):
        surface(model, batches, cross_entropy, planes, AXIS, resume=file)


def test_a_fingerprint_sees_every_bit_and_name():
    x = torch.tensor([1.0, 2.0])
    nearly = torch.nextafter(x, x + 1)
    marks = [
        ledger.fingerprint([part]) for part in (x, nearly, x.double(), {"a": x}, {"b": x}, [x, 1])
    ]
    assert len(set(marks)) == 6
    assert ledger.fingerprint([{"a": x.clone()}]) == marks[3]


def evaluate_slowly(started, resume: str, result: Path) -> None:
    """What a child process does: a surface whose loss takes its time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).double()
    data = [(torch.randn(12, 1, 8, 8).double(), torch.arange(12) % 3)]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        time.sleep(0.004)
        return cross_entropy(output, target)

    axis, planes = np.linspace(-1, 1, 17), analyzer.random_directions(model)
    started.set()
    found = surface(model, data, loss, planes, axis, axis, resume=resume or None)
    np.save(result, found.losses)


@pytest.mark.slow
def test_killed_ten_times_a_surface_ends_with_the_same_values(tmp_path):
    # Children are forked from a process that has torch: a new one takes seconds to import it.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])

    def start(resume: str, result: str) -> multiprocessing.Process:
        started = processes.Event()
        given = (started, resume, tmp_path / result)
        child = processes.Process(target=evaluate_slowly, args=given)
        child.start()
        assert started.wait(60)
        return child

    random, killed = np.random.default_rng(0), 0
    for _ in range(10):
        child = start(str(tmp_path / "points"), "resumed.npy")
        time.sleep(float(random.uniform(0.1, 1.5)))
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
    for resume, result in ((str(tmp_path / "points"), "resumed.npy"), ("", "undisturbed.npy")):
        child = start(resume, result)
        child.join()
        assert child.exitcode == 0
    assert killed >= 1
    resumed, undisturbed = (
        np.load(tmp_path / f"{name}.npy") for name in ("resumed", "undisturbed")
    )
    np.testing.assert_allclose(resumed, undisturbed, rtol=1e-13)
    assert np.std(resumed) > 0.01

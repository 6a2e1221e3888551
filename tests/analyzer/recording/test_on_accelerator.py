"""The recorder on the simulated accelerator: the CPU's numbers, and nothing waits."""

import copy
import functools
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import analyzer
from analyzer.recording import device, one_pass
from analyzer.storage.run import open_run


class Net(nn.Module):
    """Convolution, batch norm, an in-place ReLU used twice, an in-place residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.branch, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.pool, self.flatten, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        y = self.branch(x)
        y += x
        return self.head(self.flatten(self.pool(self.relu(y))))


@pytest.fixture
def simulation() -> ModuleType:
    from tests.support import simulated_accelerator

    return simulated_accelerator


def train(model, device, steps, before_step=lambda: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(5, 2, 6, 6, generator=generator).to(device)
        y = torch.randint(0, 3, (5,), generator=generator).to(device)
        before_step()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def test_numbers_equal_the_cpu_and_no_step_waits(tmp_path, simulation):
    torch.manual_seed(0)
    model = Net()
    on_device = copy.deepcopy(model).to(simulation.DEVICE)
    with analyzer.Recorder(model, tmp_path / "cpu", updates_every=1):
        train(model, "cpu", 4)
    waits: list[int] = []
    launches: list[int] = []

    def count():
        waits.append(simulation.waits())
        launches.append(simulation.launches())
        simulation.reset_counts()

    bare = copy.deepcopy(on_device)
    train(bare, simulation.DEVICE, 4, count)
    bare_waits, bare_launches = waits[1:], launches[1:]
    waits.clear(), launches.clear()
    with analyzer.Recorder(on_device, tmp_path / "device", updates_every=1):
        train(on_device, simulation.DEVICE, 4, count)
    assert waits[1:] == bare_waits
    added = [ours - plain for ours, plain in zip(launches[2:], bare_launches[1:], strict=True)]
    assert 0 < max(added) < 25 * 9  # nine layers and their eight parameters
    cpu, device = open_run(tmp_path / "cpu"), open_run(tmp_path / "device")
    assert simulation.DEVICE in device.manifest["device"]
    for table in ("layer_stats", "parameter_stats", "steps"):
        a, b = (
            getattr(run, table)()
            if table != "steps"
            else run.steps.drop(columns=["seconds", "time"])
            for run in (cpu, device)
        )
        assert a.shape == b.shape
        for column in a.columns:
            expected, found = (frame[column].astype(float) for frame in (a, b))
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6, err_msg=column)


def test_weights_on_the_device_are_those_of_an_unrecorded_run(tmp_path, simulation):
    torch.manual_seed(0)
    model = Net().to(simulation.DEVICE)
    bare = copy.deepcopy(model)
    with analyzer.Recorder(model, tmp_path / "run"):
        train(model, simulation.DEVICE, 3)
    train(bare, simulation.DEVICE, 3)
    for ours, plain in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours.detach().cpu(), plain.detach().cpu())


def test_splits_equal_the_cpu_and_no_step_waits(tmp_path, simulation):
    torch.manual_seed(0)
    model = Net()
    on_device = copy.deepcopy(model).to(simulation.DEVICE)
    bare = copy.deepcopy(on_device)
    with analyzer.Recorder(model, tmp_path / "cpu", splits_every=1):
        train(model, "cpu", 3)
    waits: list[int] = []

    def count():
        waits.append(simulation.waits())
        simulation.reset_counts()

    train(bare, simulation.DEVICE, 3, count)
    bare_waits = waits[1:]
    waits.clear()
    with analyzer.Recorder(on_device, tmp_path / "device", splits_every=1):
        train(on_device, simulation.DEVICE, 3, count)
    assert waits[1:] == bare_waits
    cpu, device = open_run(tmp_path / "cpu"), open_run(tmp_path / "device")
    assert device.joins.equals(cpu.joins)
    assert len(device.splits()) == 3
    values = [run.splits().to_numpy(dtype=float) for run in (cpu, device)]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4)


def test_the_kernel_reads_each_tensor_by_one_launch_and_finds_the_cpus_numbers(
    tmp_path, simulation, monkeypatch
):
    torch.manual_seed(0)
    model = Net()
    on_device = copy.deepcopy(model).to(simulation.DEVICE)
    bare = copy.deepcopy(on_device)
    launch = one_pass.launch
    monkeypatch.setattr(
        one_pass,
        "launch",
        lambda programs, *args: simulation.run_kernel(
            "one pass", functools.partial(launch, programs), *args
        ),
    )
    monkeypatch.setattr(device, "GPUS", [simulation.DEVICE])
    monkeypatch.setattr(device, "_one_pass", one_pass)
    with analyzer.Recorder(model, tmp_path / "cpu"):
        train(model, "cpu", 5)
    steps: list[tuple[int, int, int]] = []

    def count():
        kernels = simulation.counts["one pass"]
        steps.append((simulation.launches(), kernels, simulation.waits()))
        simulation.reset_counts()

    train(bare, simulation.DEVICE, 5, count)
    with analyzer.Recorder(on_device, tmp_path / "device"):
        train(on_device, simulation.DEVICE, 5, count)
    (plain, _, waits), (launches, kernels, recorded_waits) = steps[4], steps[9]
    # Seven modules are called, one of them twice: a launch for each output, for each of their
    # gradients, and for each of the eight parameters' gradients.
    calls, parameters = 8, 8
    assert 0 < kernels <= 2 * calls + parameters
    assert recorded_waits == waits
    # The rest: norms of parameters and of what clipping left, and copies to the host.
    assert launches - plain <= kernels + 12
    cpu, found = open_run(tmp_path / "cpu"), open_run(tmp_path / "device")
    for table in ("layer_stats", "parameter_stats"):
        expected, values = (getattr(run, table)() for run in (cpu, found))
        for column in expected.select_dtypes("number"):
            np.testing.assert_allclose(
                values[column].astype(float),
                expected[column].astype(float),
                rtol=2e-4,
                atol=1e-6,
                err_msg=column,
            )

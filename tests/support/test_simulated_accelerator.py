import copy
import gc
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@pytest.fixture
def device() -> ModuleType:
    # Imported here, not above: importing registers the device for all tests of the process.
    from tests.support import simulated_accelerator

    simulated_accelerator.reset_counts()
    return simulated_accelerator


class Residual(nn.Module):
    """A convolution with batch norm and in-place ReLU on the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.out = nn.ReLU(inplace=True), nn.Linear(4 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)) + x)
        return self.out(functional.max_pool2d(functional.pad(x, (4, 4, 4, 4)), 2).flatten(1))


class Attention(nn.Module):
    """A transformer's block over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, 8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out((x + mixed.transpose(1, 2).flatten(2)).mean(1))


def images() -> Tensor:
    return torch.randn(6, 4, 8, 8)


def tokens() -> Tensor:
    return torch.randint(7, (6, 5))


def trained(
    where: str, make: Callable[[], nn.Module], inputs: Callable[[], Tensor], optimizer: Any
) -> list[Tensor]:
    """Train for three steps; return the weights and buffers, on the CPU."""
    torch.manual_seed(0)
    model, x, y = make(), inputs(), torch.randint(10, (6,))
    model, x, y = model.to(where), x.to(where), y.to(where)
    stepper = optimizer(model.parameters())
    for _ in range(3):
        stepper.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        stepper.step()
    return [value.cpu() for value in model.state_dict().values()]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=True)


def adam(parameters: Any) -> torch.optim.Optimizer:
    # A large eps: the gradient of attention's key bias is zero but for rounding.
    return torch.optim.Adam(parameters, lr=0.01, eps=1e-3, foreach=True)


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize(("make", "inputs"), [(Residual, images), (Attention, tokens)])
def test_a_network_trains_to_the_weights_of_the_cpu(
    device: ModuleType, make: Any, inputs: Any, optimizer: Any
) -> None:
    torch.testing.assert_close(
        trained(device.DEVICE, make, inputs, optimizer),
        trained("cpu", make, inputs, optimizer),
        rtol=1e-5,
        atol=1e-7,
    )
    assert device.launches() > 100


def test_a_training_step_waits_for_nothing(device: ModuleType) -> None:
    model = Residual().to("simgpu")
    x, y = images().to("simgpu"), torch.randint(10, (6,)).to("simgpu")
    stepper = sgd(model.parameters())
    device.reset_counts()
    functional.cross_entropy(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    stepper.step()
    assert device.waits() == 0
    assert device.counts["aten::_foreach_add_"] == 1
    assert device.counts["aten::convolution"] == device.counts["aten::convolution_backward"] == 1


WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool((x > 1).any()),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.cpu().numpy(),
    "tolist": lambda x: x[:1].tolist(),
    "nonzero": lambda x: x.nonzero(),
    "equal": lambda x: torch.equal(x, x),
    "mask": lambda x: x[x > 1],
    "masked select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "index from the host": lambda x: x[torch.tensor([0, 2])],
    "upload": lambda x: torch.ones(3).to(x.device),
    "pageable memory": lambda x: torch.empty(4).copy_(x, non_blocking=True),
    "device": lambda x: torch.accelerator.synchronize(),
    "stream": lambda x: torch.accelerator.current_stream().synchronize(),
    "event": lambda x: torch.accelerator.current_stream().record_event().synchronize(),
}
NOT_WAITING: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).sum(),
    "view": lambda x: x.view(2, 2).t(),
    "index on the device": lambda x: x[(x > 1).long()],
    "where": lambda x: torch.where(x > 1, x, 0.0),
    "masked fill": lambda x: x.clone().index_put_((x > 1,), x[0] * 0),
    "host": lambda x: x.to("cpu", non_blocking=True),
    "page-locked memory": lambda x: torch.empty(4, pin_memory=True).copy_(x, non_blocking=True),
    "upload": lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    "query": lambda x: torch.accelerator.current_stream().record_event().query(),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_the_host_reads_is_a_wait(device: ModuleType, name: str) -> None:
    x = torch.arange(4.0).to("simgpu")
    device.reset_counts()
    WAITING[name](x)
    assert device.waits() == 1


@pytest.mark.parametrize("name", NOT_WAITING)
def test_what_stays_on_the_device_is_no_wait(device: ModuleType, name: str) -> None:
    x = torch.arange(4.0).to("simgpu")
    device.reset_counts()
    NOT_WAITING[name](x)
    assert device.waits() == 0


OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "masked select": lambda x: x[x > 1],
    "assign a mask": lambda x: x.masked_fill(x > 1, 7.0),
    "abs, which writes into an empty output": lambda x: x.abs(),
    "stack": lambda x: torch.stack([x, x.t()]),
    "norm": lambda x: torch.linalg.vector_norm(x, dtype=torch.float64),
    "sorted": lambda x: x.sort(dim=1, descending=True),
    "bits": lambda x: x.view(torch.int32),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x)),
    "slices": lambda x: x[1:, ::2].contiguous(),
    "resize": lambda x: x.clone().resize_(2, 2),
    "foreach": lambda x: torch._foreach_norm([x, 2 * x]),
    "half": lambda x: x.half() @ x.half(),
    "vmap": lambda x: torch.vmap(torch.sum)(x),
    "factories": lambda x: x + torch.ones_like(x) + torch.full((3, 3), 2.0, device=x.device),
    "transposed convolution": lambda x: functional.conv_transpose1d(x, x[:, :, None]),
    "channel statistics": lambda x: torch.std_mean(x, dim=0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_what_they_give_on_the_cpu(device: ModuleType, name: str) -> None:
    x = torch.arange(9.0).view(3, 3) - 3
    expected, found = OPERATIONS[name](x.clone()), OPERATIONS[name](x.to("simgpu"))
    found = torch.utils._pytree.tree_map(lambda value: value.cpu(), found)
    torch.testing.assert_close(found, expected)


def test_a_foreach_operator_is_one_launch(device: ModuleType) -> None:
    tensors = [torch.ones(3).to("simgpu") for _ in range(10)]
    device.reset_counts()
    torch._foreach_mul_(tensors, 2.0)
    assert (device.launches(), device.waits()) == (1, 0)
    assert [value.sum().item() for value in tensors] == [6.0] * 10


def test_mixed_devices_are_refused(device: ModuleType) -> None:
    x = torch.ones(3).to("simgpu")
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.cat([x, torch.ones(3)])
    assert torch.equal((x + torch.tensor(1.0)).cpu(), torch.full((3,), 2.0))
    with pytest.raises(TypeError, match="can't convert simgpu:0 device type tensor to numpy"):
        x.numpy()


def test_a_held_device_delivers_a_copy_when_its_event_is_over(device: ModuleType) -> None:
    x = torch.ones(3).to("simgpu")
    target, event = torch.empty(3, pin_memory=True), torch.Event(device="simgpu")
    device.reset_counts()
    with device.held():
        target.copy_(x, non_blocking=True)
        event.record()
        x.mul_(5)  # after the copy in the stream's order, so the copy does not see it
        assert not event.query()
        assert target.isnan().all()
        event.synchronize()
        assert event.query()
    assert target.tolist() == [1, 1, 1]
    assert device.counts["wait: event"] == device.waits() == 1


def test_a_held_device_delivers_at_the_end(device: ModuleType) -> None:
    event = torch.Event("simgpu")
    with device.held():
        target = torch.full((3,), 2.0).to("simgpu").to("cpu", non_blocking=True)
        event.record()
    assert target.tolist() == [2, 2, 2]
    device.reset_counts()
    assert event.query()
    event.synchronize()
    assert device.waits() == 0


def test_memory_is_pinned_where_asked(device: ModuleType) -> None:
    assert torch.empty(3, pin_memory=True).is_pinned()
    assert torch.ones(3).pin_memory().is_pinned()
    assert torch.ones(3).pin_memory().tolist() == [1, 1, 1]
    assert not torch.ones(3).is_pinned()


def test_memory_is_given_back(device: ModuleType) -> None:
    kept = torch.ones(3).to("simgpu")
    for _ in range(5000):
        kept = kept * 1
    gc.collect()
    assert len(device._memory._entries) <= 1100
    assert kept.cpu().tolist() == [1, 1, 1]


def test_models_and_tensors_can_be_copied(device: ModuleType) -> None:
    model = nn.BatchNorm1d(3).to("simgpu")
    model(torch.randn(4, 3).to("simgpu"))
    twin = copy.deepcopy(model)
    model.running_mean.add_(1)
    torch.testing.assert_close((model.running_mean - twin.running_mean).cpu(), torch.ones(3))
    leaf = torch.ones(3).to("simgpu").requires_grad_()
    (2 * leaf).sum().backward()
    assert copy.deepcopy(leaf).grad.tolist() == [2, 2, 2]


def test_autocast_and_a_gradient_scaler_work(device: ModuleType) -> None:
    model = nn.Linear(3, 2).to("simgpu")
    stepper, scaler = sgd(model.parameters()), torch.amp.GradScaler("simgpu", init_scale=4.0)
    before = model.bias.detach().cpu()
    with torch.autocast("simgpu", dtype=torch.bfloat16):
        output = model(torch.ones(5, 3).to("simgpu"))
    assert output.dtype == torch.bfloat16
    scaler.scale(output.float().sum()).backward()
    scaler.step(stepper)
    scaler.update()
    assert (before - model.bias.detach().cpu()).tolist() == pytest.approx([0.5, 0.5], rel=1e-4)
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_dropout_draws_the_same_numbers(device: ModuleType, reentrant: bool) -> None:
    x = torch.ones(100).to("simgpu").requires_grad_()
    y = checkpoint(functional.dropout, x, use_reentrant=reentrant)
    y.sum().backward()
    assert torch.equal(y.detach().cpu(), x.grad.cpu())


def test_the_device_is_found_only_where_visible(device: ModuleType) -> None:
    assert not torch.accelerator.is_available()
    with device.visible():
        assert torch.accelerator.is_available()
        assert torch.accelerator.current_accelerator() == torch.device("simgpu")
        assert torch.accelerator.device_count() == 1
    assert not torch.accelerator.is_available()


UNDISTURBED = """
import torch
from tests.support.test_simulated_accelerator import (
    Attention, Residual, adam, images, sgd, tokens, trained
)

def work():
    return trained("cpu", Residual, images, sgd) + trained("cpu", Attention, tokens, adam)

before = work()
from tests.support import simulated_accelerator
assert all(map(torch.equal, before, work()))
assert not simulated_accelerator.counts
assert torch.empty(3).device.type == "cpu" and torch.Event
"""


def test_work_on_the_cpu_is_not_disturbed() -> None:
    command = [sys.executable, "-W", "error", "-c", UNDISTURBED]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

"""Time and error of the largest Hessian eigenvalue, beside PyHessian at its default tolerance.

An MLP 64-64-32-10 on all 1,797 digits and a ResNet-20 on 256 random images: as one batch, as a list
of batches of 128, and from a DataLoader of batches of 128, which is how PyHessian takes a data set.
It stops where its estimate changes by less than 1e-3, so how many products it makes depends on its
start; the time of each of ten starts counts. PyHessian is an optional install; without it, its
power iteration is written out.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import analyzer
from analyzer.networks.zoo import zoo
from analyzer.probes import curvature

try:
    from pyhessian import hessian as pyhessian
except ImportError:
    pyhessian = None

ROUNDS = 10
Batches = list[tuple[Tensor, Tensor]] | DataLoader[tuple[Tensor, Tensor]]
loss = nn.functional.cross_entropy


def digits_mlp(epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """An MLP trained for a while on standardized digits."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return model, x, y


def resnet() -> tuple[nn.Module, Tensor, Tensor]:
    """A ResNet-20 as initialized."""
    torch.manual_seed(0)
    model = zoo("resnet20", in_channels=3, num_classes=10, image_size=16)
    return model, torch.randn(256, 3, 16, 16), torch.randint(10, (256,))


def products(model: nn.Module, batches: Batches) -> Callable[[list[Tensor]], list[Tensor]]:
    """As in PyHessian: a kept gradient graph for one batch, a new one each time for several."""
    parameters = list(model.parameters())

    def gradients(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)

    kept = gradients(*next(iter(batches))) if len(batches) == 1 else None
    total = sum(len(x) for x, _ in batches)

    def times(v: list[Tensor]) -> list[Tensor]:
        if kept is not None:
            return list(torch.autograd.grad(kept, parameters, v, retain_graph=True))
        sums = [torch.zeros_like(p) for p in parameters]
        for x, y in batches:
            product = torch.autograd.grad(gradients(x, y), parameters, v)
            sums = [a + b * (len(x) / total) for a, b in zip(sums, product, strict=True)]
        return sums

    return times


def power_iteration(model: nn.Module, batches: Batches, tolerance: float = 1e-3) -> float:
    """PyHessian's rule: stop when the eigenvalue changes by less than the tolerance."""
    model.eval()
    times = products(model, batches)
    v, previous = normalized([torch.randn_like(p) for p in model.parameters()]), None
    for _ in range(100):
        product = times(v)
        value = float(sum((a * b).sum() for a, b in zip(product, v, strict=True)))
        v = normalized(product)
        if previous is not None and abs(previous - value) / (abs(previous) + 1e-6) < tolerance:
            break
        previous = value
    return value


def normalized(v: list[Tensor]) -> list[Tensor]:
    length = float(sum((part * part).sum() for part in v)) ** 0.5
    return [part / (length + 1e-6) for part in v]


def their_value(model: nn.Module, batches: Batches) -> float:
    if pyhessian is None:
        return power_iteration(model, batches)
    first = next(iter(batches))
    data: dict[str, Any] = {"data": first} if len(batches) == 1 else {"dataloader": batches}
    if len(batches) > 1:
        # Its loader mode reads parameters that have a gradient already.
        loss(model(first[0]), first[1]).backward()
    found = pyhessian(model, loss, cuda=False, **data).eigenvalues()[0][0]
    model.zero_grad(set_to_none=True)
    return float(found)


def compare(title: str, model: nn.Module, batches: Batches) -> None:
    """Print times, errors and the ratio, rounds interleaved."""
    double = [(x.double(), y) for x, y in batches]
    exact = curvature.sharpness(model.double(), double, loss, tolerance=1e-10)
    model.float()
    seeds = count()
    actions = {
        "analyzer": lambda: analyzer.sharpness(model, batches, loss),
        "PyHessian": lambda: (torch.manual_seed(next(seeds)), their_value(model, batches))[1],
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    errors: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            start = time.perf_counter()
            value = action()
            taken[name].append(time.perf_counter() - start)
            errors[name].append(abs(value / exact - 1))
    print(f"{title}: largest eigenvalue {exact:.6f} in float64")
    for name, times in taken.items():
        mean = 1000 * statistics.mean(times)
        print(f"  {name:10} {mean:8.1f} ms   relative error up to {max(errors[name]):.1e}")
    ratio = statistics.mean(taken["analyzer"]) / statistics.mean(taken["PyHessian"])
    print(f"  ratio {ratio:.2f} (means; target 0.25)", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Using backward")
    print("PyHessian 0.1" if pyhessian else "PyHessian is not installed: its iteration, rewritten")
    for name, (model, x, y) in {
        "MLP, 5 epochs": digits_mlp(5),
        "MLP, 50 epochs": digits_mlp(50),
        "ResNet-20": resnet(),
    }.items():
        compare(f"{name}, one batch", model, [(x, y)])
        parts = list(zip(x.split(128), y.split(128), strict=True))
        compare(f"{name}, batches of 128", model, parts)
        loader = DataLoader(TensorDataset(x, y), batch_size=128)
        compare(f"{name}, DataLoader of 128", model, loader)


if __name__ == "__main__":
    main()

"""Time to find the joins of a 110-layer network, to locate them again, and to split gradients.

Splits are timed inside one recorded training: steps that are split against the others, in turn. A
tenth of the difference is what the default interval adds to a step.
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import overhead
import torch
from torch import Tensor, nn

import analyzer
from analyzer.joins.find import output_nodes, watched_forward
from analyzer.joins.graph import Walk
from analyzer.joins.plan import joins_in_graph


class Block(nn.Module):
    """A basic block of two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add shortcut and branch."""
        return torch.relu(self.shortcut(x) + self.branch(x))


def resnet110() -> nn.Module:
    widths = [16] * 19 + [32] * 18 + [64] * 18
    blocks = [Block(a, b) for a, b in pairwise(widths)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), *blocks, *head)


def milliseconds(action: Callable[[], object], times: int = 20) -> float:
    """The median time of an action."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)


def residual_mlp50() -> tuple[nn.Module, Tensor, Tensor]:
    """The MLP of the overhead benchmark has no skips: this one has 24, of two layers each."""
    from analyzer.networks.zoo import zoo

    model = zoo("mlp50-residual-pair-w256", in_channels=1, num_classes=10, image_size=16)
    return model, torch.randn(128, 1, 16, 16), torch.randint(10, (128,))


def added_by_splits(make: Callable[..., tuple[nn.Module, Tensor, Tensor]], steps: int) -> str:
    """The share of a step that splits at the default interval add."""
    torch.manual_seed(0)
    model, x, y = make()
    split, others = [], []
    with TemporaryDirectory() as folder:
        side = overhead.Side(model, x, y, None)
        recorder = analyzer.Recorder(model, Path(folder) / "run", updates_every=10**9)
        with recorder:
            for step in range(steps):
                started = time.perf_counter()
                side.step()
                if step >= 10:
                    taken = time.perf_counter() - started
                    (others if step % 10 else split).append(taken)
        joins = len(analyzer.open_run(Path(folder) / "run").joins)
    plain = statistics.median(others)
    extra = statistics.median(split) - plain
    return f"{joins:3d} joins {1e3 * extra:6.2f} ms  {100 * extra / 10 / plain:5.2f} % of a step"


def main() -> None:
    torch.set_num_threads(1)
    for name, make in (
        ("MLP", residual_mlp50),
        ("ResNet-20", overhead.resnet20),
        ("GPT", overhead.gpt6),
    ):
        print(f"splits, {name:9s} {added_by_splits(make, 400)}", flush=True)
    model, x = resnet110(), torch.randn(2, 3, 32, 32)
    plain = milliseconds(lambda: model(x), 5)
    watched = milliseconds(lambda: watched_forward(model, (x,), {}), 5)
    output, log = watched_forward(model, (x,), {})
    roots = output_nodes(output)
    nodes = len(Walk(roots).nodes)
    plan = joins_in_graph(roots, log)
    found = milliseconds(lambda: joins_in_graph(roots, log))
    located = milliseconds(lambda: plan.sites(roots))
    print(f"{len(plan.joins)} joins in {nodes} graph nodes")
    print(f"discovery        {found:6.2f} ms  ({100 * found / nodes:.2f} ms per hundred nodes)")
    print(f"location         {located:6.2f} ms  (later graphs of the same network)")
    print(f"forward, watched {watched:6.2f} ms  plain {plain:.2f} ms")


if __name__ == "__main__":
    main()

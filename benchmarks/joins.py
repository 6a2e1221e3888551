"""Time to find the joins of a 110-layer network, to locate them again, and to record them.

Splits and the residual stream are timed together inside one recorded training: the steps that have
rows in ``splits`` (the gradients taken apart, and the norms and cosine of what the forward pass
adds) against the others, in turn. A tenth of the difference is what the default interval adds to a
step, for both.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import overhead
import torch
from torch import Tensor, nn

import analyzer
from analyzer.joins.find import output_nodes, watched_forward
from analyzer.joins.graph import Walk
from analyzer.joins.plan import joins_in_graph
from analyzer.networks.zoo import zoo


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
    model = zoo("mlp50-residual-pair-w256", in_channels=1, num_classes=10, image_size=16)
    return model, torch.randn(128, 1, 16, 16), torch.randint(10, (128,))


def added_by_splits(make: Callable[..., tuple[nn.Module, Tensor, Tensor]], steps: int) -> str:
    """The share of a step that splits and stream together add at the default interval."""
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


class Block(nn.Module):
    """The least of a residual block: six nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        return x + torch.tanh(self.linear(x))


def main() -> None:
    torch.set_num_threads(1)
    for name, make in (
        ("MLP", residual_mlp50),
        ("ResNet-20", overhead.resnet20),
        ("GPT", overhead.gpt6),
    ):
        print(f"splits and stream, {name:9s} {added_by_splits(make, 400)}", flush=True)
    model = zoo("resnet110-b", in_channels=3, num_classes=10, image_size=32)
    x = torch.randn(2, 3, 32, 32)
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
    for blocks in (250, 500, 1000, 1700):
        chain = nn.Sequential(*(Block() for _ in range(blocks)))
        output, log = watched_forward(chain, (torch.randn(1, 2),), {})
        roots = output_nodes(output)
        nodes = len(Walk(roots).nodes)
        found = milliseconds(partial(joins_in_graph, roots, log), 5)
        each = f"{1e3 * found / nodes:.1f} us each"
        print(f"discovery        {found:6.2f} ms in {nodes:6,} nodes  {each}")


if __name__ == "__main__":
    main()

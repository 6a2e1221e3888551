"""What recording costs a training step: with and without the recorder, side by side.

Two equal models train in one process in alternating blocks, one bare and one recorded with
everything at every step. The ratio of block medians is taken pair by pair; printed are its median
and quartiles. A null test (no recorder on either side) comes first: read nothing into differences
that are smaller than what it shows.

    python benchmarks/overhead.py [--pairs 15] [--models mlp50,resnet20,gpt6] [--threads 1]
    python benchmarks/overhead.py --peers

With ``--peers``, step time with everything recorded, with norms only, with each tenth step, and by
``wandb.watch`` and TorchLens's ``watch`` where they are installed (`make bench-peers` does that).
"""

import argparse
import copy
import gc
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import analyzer
from analyzer.joins.calls import without_call_hooks

sys.path.insert(0, str(Path(__file__).parent.parent))

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Six blocks, width 192, vocabulary 256."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, 192), nn.Embedding(64, 192)
        self.blocks = nn.Sequential(*[Block(192, 6) for _ in range(6)])
        self.norm, self.head = nn.LayerNorm(192), nn.Linear(192, 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)


def mlp50() -> tuple[nn.Module, Tensor, Tensor]:
    layers: list[nn.Module] = []
    for _ in range(49):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    return model, torch.randn(128, 256), torch.randint(0, 10, (128,))


def resnet20() -> tuple[nn.Module, Tensor, Tensor]:
    from analyzer.networks.zoo import zoo

    model = zoo("resnet20", in_channels=3, num_classes=10, image_size=32)
    return model, torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))


def gpt6() -> tuple[nn.Module, Tensor, Tensor]:
    return GPT(), torch.randint(0, 256, (8, 64)), torch.randint(0, 256, (8, 64))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]]
MODELS = {make.__name__: make for make in (mlp50, resnet20, gpt6)}


class Operators(TorchDispatchMode):
    """Counts operators, and those after which the host waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not func.is_view and name != "aten::detach":
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> int:
        return sum(count for name, count in self.counts.items() if name in WAITS)


class Way:
    """A way to record: what begins and ends it, and what a step of it has at its end.

    Args:
        every: Period of the work, in steps: a time is the mean over one period.
    """

    def __init__(self, every: int = 1, **options: Any) -> None:
        self.every = every
        self._options = options
        self.recorder: Any = None

    def begin(self, side: "Side", run: Path) -> None:
        model = side.model
        self.recorder = analyzer.Recorder(model, run, every=self.every, **self._options)
        self.recorder.start()

    def step(self, loss: Tensor) -> None:
        pass

    def end(self) -> None:
        self.recorder.close()


class Wandb(Way):
    """Histograms of parameters and gradients at every step, offline."""

    def begin(self, side: "Side", run: Path) -> None:
        import wandb

        run.mkdir()
        self.recorder = wandb.init(
            mode="offline", dir=run, project="overhead", settings=wandb.Settings(silent=True)
        )
        self.recorder.watch(side.model, log="all", log_freq=1)

    def step(self, loss: Tensor) -> None:
        self.recorder.log({"loss": loss.item()})

    def end(self) -> None:
        self.recorder.unwatch()
        self.recorder.finish()


class TorchLens(Way):
    """Scalars of activations, parameters, gradients and updates at every step, written as JSON."""

    def begin(self, side: "Side", run: Path) -> None:
        from torchlens import trackers

        run.mkdir()
        self._step = 0
        leaves = [
            name for name, module in side.model.named_modules() if name and not [*module.children()]
        ]
        self.recorder = trackers.watch(
            side.model,
            to=trackers.JSONLSink(str(run / "watched.jsonl")),
            signals=("parameters", "gradients", "updates", "activations"),
            select=[*leaves, *(name for name, _ in side.model.named_parameters())],
            optimizer=side.optimizer,
            step=lambda: self._step,
            every=1,
            example_input=side.x,
        )

    def step(self, loss: Tensor) -> None:
        self._step += 1


WAYS: dict[str, Callable[[], Way]] = {
    "all columns": Way,
    "norms": lambda: Way(columns="norms"),
    "each tenth step": lambda: Way(every=10),
    "wandb.watch": Wandb,
    "TorchLens": TorchLens,
}


class Side:
    """One model with its optimizer, recorded or not."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, run: Path | None, way: Way | None = None
    ) -> None:
        self.model, self.x, self.y = model, x, y
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        self.way = way or Way()
        self.is_recorded = run is not None
        if run is not None:
            self.way.begin(self, run)

    @property
    def recorder(self) -> Any:
        return self.way.recorder

    def bare_block(self, seconds: float, every: int = 1) -> float:
        """As `block`, without the hooks that a recorder elsewhere in this process has set."""
        with without_call_hooks():
            return self.block(seconds, every)

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        if self.is_recorded:
            self.way.step(loss)

    def block(self, seconds: float, every: int = 1) -> float:
        """Median over a block of the mean time of `every` steps; untimed ones first."""
        for _ in range(every):
            self.step()
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 3:
            started = time.perf_counter()
            for _ in range(every):
                self.step()
            times.append((time.perf_counter() - started) / every)
        return statistics.median(times)

    def close(self) -> None:
        if self.is_recorded:
            self.way.end()


def ratios(
    make: Callable[..., Any], pairs: int, recorded: bool, folder: Path, way: Way | None = None
) -> list[float]:
    """Step time of side B over side A, a pair of neighboring blocks each, in ABBA order."""
    torch.manual_seed(0)
    model, x, y = make()
    bare = Side(copy.deepcopy(model), x, y, None)
    other = Side(model, x, y, folder / "timed" if recorded else None, way)
    every = other.way.every
    found = []
    for pair in range(pairs):
        order = (bare, other) if pair % 2 == 0 else (other, bare)
        medians = {
            id(side): side.bare_block(0.4, every) if side is bare else side.block(0.4, every)
            for side in order
        }
        found.append(medians[id(other)] / medians[id(bare)])
    other.close()
    return found


def counted(make: Callable[..., Any], run: Path | None) -> Operators:
    """Operators of one step in the middle of a training."""
    model, x, y = make()
    side = Side(model, x, y, run)
    for _ in range(2):
        side.step()
    with Operators() as operators:
        side.step()
    side.close()
    return operators


def bytes_and_memory(make: Callable[..., Any], run: Path) -> tuple[float, float]:
    """Bytes a step on disk (merged), and MiB of memory that recording adds at its peak."""
    model, x, y = make()
    side = Side(model, x, y, None)
    for _ in range(5):
        side.step()
    gc.collect()
    before = resident()
    side = Side(model, x, y, run)
    steps, peak = 40, before
    for _ in range(steps):
        side.step()
        peak = max(peak, resident())
    side.close()
    tables = ("steps", "layer_stats", "parameter_stats", "splits")
    size = sum(f.stat().st_size for table in tables for f in (run / table).glob("*.parquet"))
    return size / steps, (peak - before) / 2**20


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_launches() -> tuple[int, int, int]:
    """Launches and host waits that recording adds to a step on a simulated accelerator, layers."""
    from tests.support import simulated_accelerator as simulation

    def step_of(run: Path | None) -> tuple[int, int, int]:
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(20)])
        model.to(simulation.DEVICE)
        x, y = torch.randn(8, 16), torch.randint(0, 16, (8,))
        side = Side(model, x.to(simulation.DEVICE), y.to(simulation.DEVICE), run)
        for _ in range(2):
            side.step()
        simulation.reset_counts()
        side.step()
        counted = simulation.launches(), simulation.waits()
        layers = 0 if side.recorder is None else len(side.recorder.training.models.layers)
        side.close()
        return *counted, layers

    with tempfile.TemporaryDirectory() as folder:
        bare, recorded = step_of(None), step_of(Path(folder) / "run")
    return recorded[0] - bare[0], recorded[1] - bare[1], recorded[2]


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} [{low:.3f}-{high:.3f}]"


def peers(pairs: int, models: list[str]) -> None:
    """Print a table of step-time ratios, a row a way to record, a column a model."""
    print("| recorded | " + " | ".join(models) + " |")
    print("|---|" + "---|" * len(models))
    null = [quartiles(ratios(MODELS[name], pairs, False, Path("."))) for name in models]
    print("| nothing (null test) | " + " | ".join(null) + " |", flush=True)
    for label, way in WAYS.items():
        cells = []
        for name in models:
            with tempfile.TemporaryDirectory() as temporary:
                try:
                    found = ratios(MODELS[name], pairs, True, Path(temporary), way())
                except ImportError as error:
                    cells.append(f"{error.name} is not installed")
                    continue
            cells.append(quartiles(found))
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    told = f"torch {torch.__version__}, {options.threads} thread(s), {options.pairs} pairs"
    if options.peers:
        print(f"{told} of blocks of 0.4 s")
        peers(options.pairs, options.models.split(","))
        return
    # First, since torch counts its devices at the first backward pass of a process.
    launches, waits, layers = device_launches()
    print(
        f"simulated accelerator, {layers} layers, every second one with parameters: "
        f"{launches / layers:.1f} launches added per layer and step, {waits} host waits"
    )

    print(f"{told} of blocks of 0.4 s")
    print(
        "| model | null test | recorded | operators added | waits added | kB per 1000 steps | MiB |"
    )
    print("|---|---|---|---:|---:|---:|---:|")
    for name in options.models.split(","):
        make = MODELS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            null = ratios(make, max(4, options.pairs // 2), False, folder)
            recorded = ratios(make, options.pairs, True, folder)
            bare, with_recorder = counted(make, None), counted(make, folder / "counted")
            size, memory = bytes_and_memory(make, folder / "sized")
        added = sum(with_recorder.counts.values()) - sum(bare.counts.values())
        print(
            f"| {name} | {quartiles(null)} | {quartiles(recorded)} | {added} | "
            f"{with_recorder.waits - bare.waits} | {size:.0f} | {memory:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Bytes, files and seconds of runs of many layers, of many ranks and of many steps.

    python benchmarks/scale.py [--layers 1000,10000] [--ranks 64,1000] [--steps 100000,1000000]

Layers: a real training of a chain of linear layers of width 8, recorded and not, in turn. Ranks:
each writes its part files as a process of a launch does, one after the other. Steps: the writer
alone. All seconds are those of the processor. docs/scale.md has the table, and what follows.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import analyzer
from analyzer.storage.run import open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter, StepRecord
from benchmarks.storage import COLUMN, write

_MIB = 2**20


def on_disk(folder: Path) -> tuple[int, int]:
    """Return how many files there are, and their bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files)


def seconds_of(question: Callable[[], object]) -> float:
    start = time.process_time()
    question()
    return time.process_time() - start


def told(what: str, **values: str) -> None:
    print(f"{what:24}" + "  ".join(f"{name} {value}" for name, value in values.items()))


def questions(path: Path) -> dict[str, str]:
    """What a first look at a run takes, in a run that was not opened before."""
    start = time.process_time()
    run = open_run(path)
    last = int(run.recorded_steps()[-1])
    opened = time.process_time() - start
    profile = seconds_of(lambda: run.profile(COLUMN, last, table="layer_stats"))
    heatmap = seconds_of(lambda: run.heatmap(COLUMN, 500))
    return {
        "open": f"{opened:.2f} s",
        "profile": f"{profile:.2f} s",
        "heatmap": f"{heatmap:.2f} s",
    } | {name: f"{_of_command(name, path):.1f} s" for name in ("show", "diagnose")}


def _of_command(name: str, path: Path) -> float:
    """What a command of its own takes, from the start of Python to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "analyzer", name, str(path)]
    subprocess.run(words, stdout=subprocess.DEVNULL, check=False, cwd=Path(__file__).parents[1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def chain(layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))


def trained(layers: int, steps: int, folder: Path | None) -> tuple[float, float]:
    """Train; return the median step and the first one, in seconds."""
    model, inputs = chain(layers), torch.randn(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    times = []
    kept = nullcontext() if folder is None else analyzer.Recorder(model, folder)
    with kept:
        for _ in range(steps):
            start = time.process_time()
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            times.append(time.process_time() - start)
    return statistics.median(times), times[0]


def many_layers(layers: int, folder: Path, steps: int = 6) -> None:
    path = folder / f"layers-{layers}"
    plain, _ = trained(layers, steps, None)
    recorded, first = trained(layers, steps, path)
    files, size = on_disk(path)
    checkpoints = on_disk(path / "checkpoints")[1]
    told(
        f"{layers:,} layers",
        step=f"{1e3 * plain:.0f} ms, recorded {1e3 * recorded:.0f} ms (the first {first:.1f} s)",
        disk=f"{(size - checkpoints) / steps / layers:.0f} B a layer and step in {files} files",
        **questions(path),
    )


def many_ranks(ranks: int, folder: Path, layers: int = 60, steps: int = 50) -> None:
    path = folder / f"ranks-{ranks}"
    random = np.random.default_rng(0)
    rows = np.exp(0.1 * random.normal(size=(layers, len(STAT_COLUMNS["layer_stats"]))))
    ids = np.arange(layers, dtype=np.int32)
    start = time.process_time()
    for rank in range(ranks):
        writer = RunWriter(path, {"world_size": ranks, "data_parallel_ranks": ranks}, rank=rank)
        if rank == 0:
            writer.write_layers(
                [
                    {"layer": i, "name": f"layer{i}", "module": f"layer{i}", "call": 0}
                    | {"kind": "Linear", "depth": i, "num_parameters": 9, "output_shape": [8, 8]}
                    | {"join": None, "role": None}
                    for i in range(layers)
                ]
            )
        for step in range(steps):
            columns = {"step": step, "loss": 1.0, "seconds": 0.01, "skipped": False}
            record = StepRecord(columns, [Block("layer_stats", ids, rows)])
            writer.add(lambda record=record: record)
        writer.close("finished")
    seconds = time.process_time() - start
    files, size = on_disk(path)
    told(
        f"{ranks:,} ranks",
        written=f"{seconds / ranks * 1e3:.0f} ms a rank",
        disk=f"{size / ranks / 1024:.0f} KiB a rank in {files / ranks:.1f} files",
        **questions(path),
    )


def many_steps(steps: int, folder: Path, layers: int = 10) -> None:
    path = folder / f"steps-{steps}"
    start = time.process_time()
    write(path, layers, steps)
    seconds = time.process_time() - start
    files, size = on_disk(path)
    told(
        f"{steps:,} steps",
        written=f"{steps / seconds:,.0f} steps/s",
        disk=f"{size / steps / layers:.0f} B a layer and step, {size / _MIB:,.0f} MiB in {files}",
        **questions(path),
    )


def numbers(text: str) -> Sequence[int]:
    return [int(word) for word in text.split(",") if word]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("layers", "1000,10000"), ("ranks", "64,1000"), ("steps", "10000,100000")):
        parser.add_argument(f"--{name}", default=usual)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in (
            ("layers", many_layers),
            ("ranks", many_ranks),
            ("steps", many_steps),
        ):
            for count in numbers(getattr(options, name)):
                measure(count, Path(folder))


if __name__ == "__main__":
    main()

"""Times the questions of a screen over a long run, and what the writer costs.

    python benchmarks/storage.py [--layers 60] [--steps 100000]

Prints medians of warm repetitions in milliseconds beside their targets.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from analyzer.storage.catalog import runs_in
from analyzer.storage.run import Run, open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter, StepRecord

COLUMN = "output_gradient_norm"
OPEN_FIRST = """
import sys, time
import pandas, pyarrow.parquet
from analyzer.storage.run import open_run
start = time.perf_counter()
run = open_run(sys.argv[1])
run.layers, run.profile("output_gradient_norm", -1)
print(1000 * (time.perf_counter() - start))
"""


def write(path: Path, layers: int, steps: int) -> float:
    """Write a run through the writer; return the median cost of ``add`` in microseconds."""
    random = np.random.default_rng(0)
    ids = np.arange(layers, dtype=np.int32)
    base = np.exp(random.normal(size=(64, layers, len(STAT_COLUMNS["layer_stats"]))))
    writer = RunWriter(path, {})
    writer.write_layers([_layer(i) for i in range(layers)])
    costs = []
    for step in range(steps):
        values = base[step % 64] * (1 + step / steps)
        record = StepRecord(
            {"step": step, "loss": 1 / (1 + step)}, [Block("layer_stats", ids, values)]
        )
        start = time.perf_counter()
        writer.add(lambda record=record: record)
        costs.append(time.perf_counter() - start)
    writer.close("finished")
    return 1e6 * statistics.median(costs)


def _layer(i: int) -> dict[str, object]:
    row = {"layer": i, "name": f"layers.{i}", "module": f"layers.{i}", "call": 0, "kind": "Linear"}
    return row | {"depth": i, "num_parameters": 1, "output_shape": [8, 4]}


def median_ms(question: Callable[[int], object], repetitions: int = 15) -> float:
    """Median time of a question after one repetition that warms up."""
    times = []
    for k in range(repetitions + 1):
        start = time.perf_counter()
        question(k)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _refreshed(run: Run, question: Callable[[], object]) -> object:
    run.refresh()
    return question()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        start = time.perf_counter()
        cost = write(path, options.layers, options.steps)
        seconds = time.perf_counter() - start
        report(path, options.layers, options.steps)
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{'written at':34}{options.steps / seconds:9.0f} steps/s, {size:.0f} MiB in all")
        print(f"{'add()':34}{cost:9.2f} µs   (target 20)")
        print(f"{'memory at most, this process':34}{peak:9.0f} MiB")


def report(path: Path, layers: int, steps: int) -> None:
    """Print the time of each question."""
    run = open_run(path)
    rows: list[tuple[str, float, float]] = [
        ("profile at a step", median_ms(lambda k: run.profile(COLUMN, k * steps // 17)), 10),
        (
            "series of a layer, 1000 points",
            median_ms(lambda k: _refreshed(run, lambda: run.series(COLUMN, k % layers, 1000))),
            10,
        ),
        (
            "heatmap, 500 bins",
            median_ms(lambda _: _refreshed(run, lambda: run.heatmap(COLUMN, 500))),
            10,
        ),
        ("first open, with a profile", _first_open(path), 100),
        ("list of this folder", median_ms(lambda _: runs_in(path.parent)), 10),
    ]
    for name, milliseconds, target in rows:
        print(f"{name:34}{milliseconds:9.2f} ms   (target {target:g})")


def _first_open(path: Path) -> float:
    """Median over new processes; importing is not counted."""
    command = [sys.executable, "-c", OPEN_FIRST, str(path)]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)
    ]
    return statistics.median(float(output.stdout) for output in outputs)


if __name__ == "__main__":
    main()

"""Times the questions of a screen over a long run, and what the writer costs.

    python benchmarks/storage.py [--layers 60] [--steps 100000]

Prints medians of warm repetitions in milliseconds beside their targets.
"""

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analyzer.storage.bin_writer import TableBins
from analyzer.storage.catalog import runs_in
from analyzer.storage.parts import PartSeries
from analyzer.storage.rows import stat_rows, step_rows
from analyzer.storage.run import Run, open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter, StepRecord

COLUMN = "output_gradient_norm"
_AT_ONCE = 3_000_000  # rows
OPEN_FIRST = """
import sys, time
import pandas, pyarrow.parquet
from analyzer.storage.run import open_run
start = time.perf_counter()
run = open_run(sys.argv[1])
run.layers, run.profile("output_gradient_norm", -1)
print(1000 * (time.perf_counter() - start))
"""


def write(
    path: Path, layers: int, steps: int, decades: float = 0.0, *, shortcuts: bool = False
) -> float:
    """Write a run through the writer; return the median cost of ``add`` in microseconds.

    Args:
        path: The new folder.
        layers: Number of layers.
        steps: Number of steps.
        decades: By so many the output gradient falls from the last layer to the first.
        shortcuts: Whether every second layer ends in a join, split at each tenth step.
    """
    writer = RunWriter(path, {})
    for table, names in _static(layers, shortcuts=shortcuts).items():
        getattr(writer, f"write_{table}")(names)
    costs = []
    for record in _records(layers, steps, decades, shortcuts=shortcuts):
        start = time.perf_counter()
        writer.add(lambda record=record: record)
        costs.append(time.perf_counter() - start)
    writer.close("finished")
    return 1e6 * statistics.median(costs)


def write_long(
    path: Path, layers: int, steps: int, decades: float = 0.0, *, shortcuts: bool = False
) -> None:
    """Write a run as `write` does, in parts as large as merged ones: in a third of the time."""
    writer = RunWriter(path, {})
    for table, named in _static(layers, shortcuts=shortcuts).items():
        getattr(writer, f"write_{table}")(named)
    writer.close("finished", steps=steps, last_loss=1.0)
    parts, bins = {}, {}
    records = _records(layers, steps, decades, shortcuts=shortcuts)
    while some := list(itertools.islice(records, max(1, _AT_ONCE // layers))):
        numbered = [(int(one.step["step"]), block) for one in some for block in one.blocks]
        made = {"steps": step_rows([one.step for one in some], 0, 0, print)}
        for table in STAT_COLUMNS:
            if of_table := [pair for pair in numbered if pair[1].table == table]:
                made[table] = stat_rows(table, of_table, 0)
        for table, (rows, numbers) in made.items():
            series = parts.setdefault(table, PartSeries(path / table, 0, 0))
            series.append(rows, int(numbers.steps.min()), int(numbers.steps.max()))
            bins.setdefault(table, TableBins(path, table, 0)).add(numbers)
    for one in bins.values():
        one.finish()


def _static(layers: int, *, shortcuts: bool) -> dict[str, list[dict[str, object]]]:
    joins = [_join(i) for i in range(_num_joins(layers, shortcuts=shortcuts))]
    return {"layers": [_layer(i) for i in range(layers)], "parameters": [], "joins": joins}


def _num_joins(layers: int, *, shortcuts: bool) -> int:
    return layers // 2 - 1 if shortcuts else 0


def _records(layers: int, steps: int, decades: float, *, shortcuts: bool) -> Iterator[StepRecord]:
    """Each step of a run whose numbers repeat after 64 steps, and grow slowly."""
    random = np.random.default_rng(0)
    rows = _noise(random, layers, "layer_stats")
    names = STAT_COLUMNS["layer_stats"]
    rows[:, :, names.index(COLUMN)] *= np.logspace(-decades, 0, layers)
    for column in ("activation_num_nonfinite", "output_gradient_num_nonfinite"):
        rows[:, :, names.index(column)] = 0
    joins = _num_joins(layers, shortcuts=shortcuts)
    splits = 0.5 * _noise(random, joins, "splits")
    ids, join_ids = np.arange(layers, dtype=np.int32), np.arange(joins, dtype=np.int32)
    for step in range(steps):
        blocks = [Block("layer_stats", ids, rows[step % 64] * (1 + step / steps))]
        if joins and step % 10 == 0:
            blocks.append(Block("splits", join_ids, splits[step % 64]))
        columns = {"step": step, "loss": 2 / (1 + step / steps), "seconds": 0.01, "skipped": False}
        yield StepRecord(columns, blocks)


def _noise(random: np.random.Generator, ids: int, table: str) -> NDArray[np.float64]:
    """Statistics of 64 steps around 1, ``[steps, ids, columns]``."""
    return np.exp(0.1 * random.normal(size=(64, ids, len(STAT_COLUMNS[table]))))


def _join(i: int) -> dict[str, object]:
    names = [str(_layer(place)["name"]) for place in (2 * i + 1, 2 * i + 2)]
    row = {"join": i, "name": names[0].removesuffix(".conv"), "operation": "add"}
    lists = {"shortcut": "identity", "branch_layers": names, "shortcut_layers": []}
    return row | lists | {"branch_parameters": 200, "shortcut_parameters": 0}


def _layer(i: int) -> dict[str, object]:
    name = f"layer{1 + i // 20}.{i % 20}.conv"
    row = {"layer": i, "name": name, "module": name, "call": 0, "kind": "Conv2d", "depth": i}
    return row | {"num_parameters": 100, "output_shape": [8, 4]}


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

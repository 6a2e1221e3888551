"""Times the dashboard in headless Chromium over long and wide runs, beside its targets.

    python benchmarks/dashboard.py [--runs 5000x60 100000x60 5000x1000] [--chromium PATH]

Each size is steps x layers; a plain and a residual run of it are shown together. ``1600000x60``
takes several GB of disk and minutes to write.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter, StepRecord

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
PAIR = "?run=plain&run=residual"


def write(path: Path, steps: int, layers: int, decades: float) -> None:
    """Write a run whose output gradient falls by so many decades from last layer to first."""
    random = np.random.default_rng(0)
    names = STAT_COLUMNS["layer_stats"]
    noise = np.exp(0.1 * random.normal(size=(64, layers, len(names))))
    noise[:, :, names.index("output_gradient_norm")] *= np.logspace(-decades, 0, layers)
    for column in ("activation_num_nonfinite", "output_gradient_num_nonfinite"):
        noise[:, :, names.index(column)] = 0
    ids = np.arange(layers, dtype=np.int32)
    writer = RunWriter(path, {})
    writer.write_layers([_layer(i) for i in range(layers)])
    writer.write_parameters([])
    writer.write_joins([])
    for step in range(steps):
        block = Block("layer_stats", ids, noise[step % 64])
        columns = {"step": step, "loss": 2 / (1 + step / steps), "seconds": 0.01, "skipped": False}
        writer.add(lambda columns=columns, block=block: StepRecord(columns, [block]))
    writer.close("finished")


def _layer(i: int) -> dict[str, object]:
    name = f"layer{1 + i // 20}.{i % 20}.conv"
    row = {"layer": i, "name": name, "module": name, "call": 0, "kind": "Conv2d", "depth": i}
    return row | {"num_parameters": 100, "output_shape": [8, 4]}


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve a folder from a process of its own; give its address and its process id."""
    command = [sys.executable, "-m", "analyzer", "dashboard", str(folder), "--no-browser"]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[2].rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait()


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def first_heatmap(page: Page, url: str) -> float:
    """Return the seconds until the heatmap of a page is drawn."""
    start = time.perf_counter()
    page.goto(url)
    until(
        page,
        """() => [...document.querySelectorAll('[data-panel=score] image')].some(
            (one) => (one.getAttribute('href') || '').length > 100)""",
    )
    return time.perf_counter() - start


def until(page: Page, expression: str, seconds: float = 120) -> None:
    """Wait until a script says yes; playwright's own way to wait is refused by the CSP."""
    end = time.perf_counter() + seconds
    while not page.evaluate(expression):
        if time.perf_counter() > end:
            raise TimeoutError(f"{expression} did not become true in {seconds} s")
        page.wait_for_timeout(20)


def slider(page: Page, moves: int = 25) -> float:
    """Return the median milliseconds that a step of the slider takes, without the server."""
    until(page, "() => window.gradientflow.score !== null")
    times = []
    for k in range(moves):
        took = page.evaluate(
            """(share) => new Promise((done) => {
                const range = document.getElementById('step-range');
                window.gradientflow.lastFrame = null;
                range.value = String(Math.round(share * Number(range.max)));
                range.dispatchEvent(new Event('input'));
                const look = () => window.gradientflow.lastFrame == null
                    ? requestAnimationFrame(look) : done(window.gradientflow.lastFrame);
                look();
            })""",
            k / moves,
        )
        times.append(took)
    return statistics.median(times[1:])


def report(name: str, value: float, unit: str, target: float) -> None:
    print(f"  {name:44}{value:9.1f} {unit:4} (target {target:g})", flush=True)


def measure(browser: Any, folder: Path) -> None:
    """Print the figures of one pair of runs."""
    replies: list[tuple[float, int, str]] = []
    with served(folder) as (address, pid):
        context = browser.new_context(viewport={"width": 1360, "height": 900})
        page = context.new_page()
        page.on("requestfinished", lambda request: _keep(replies, request))
        report("first heatmap, cold", first_heatmap(page, f"{address}/score{PAIR}"), "s", 3)
        warm = [first_heatmap(page, f"{address}/score{PAIR}") for _ in range(3)]
        report("first heatmap, warm", statistics.median(warm), "s", 2)
        report("step of the slider", slider(page), "ms", 50)
        for path in ("/flow", "/compare", "/activations", "/training"):
            page.goto(f"{address}{path}{PAIR}")
            page.wait_for_timeout(4000)
        for k in range(100):
            query = f"{address}/csv/depth_profile{PAIR}&step={k * 37}"
            page.request.get(query)
        slowest, largest = max(replies), max(replies, key=lambda reply: reply[1])
        report(f"slowest callback ({slowest[2]})", slowest[0], "ms", 150)
        report("median callback", statistics.median(r[0] for r in replies), "ms", 150)
        report(f"largest reply ({largest[2]})", largest[1] / 1000, "KB", 400)
        report("memory of the server after it", memory(pid), "MiB", 400)
        context.close()


def _keep(replies: list[tuple[float, int, str]], request: Any) -> None:
    if "_dash-update-component" not in request.url:
        return
    outputs = request.post_data_json["outputs"]
    first = (outputs[0] if isinstance(outputs, list) else outputs)["id"]
    name = first["key"] if isinstance(first, dict) else first
    took = request.timing["responseStart"] - request.timing["requestStart"]
    size = int(request.response().headers.get("content-length", "0"))
    replies.append((took, size, name))


def list_of_500(browser: Any, folder: Path) -> None:
    """Print how long a folder of 500 runs takes to be listed."""
    source = folder / "one"
    write(source, 20, 10, 3.0)
    for k in range(500):
        shutil.copytree(source, folder / "many" / f"run-{k}")
    with served(folder / "many") as (address, _):
        page = browser.new_page()
        page.goto(f"{address}/score")
        page.wait_for_selector("h1")
        start = time.perf_counter()
        page.get_by_role("link", name="Runs", exact=True).click()
        page.wait_for_selector("table.runs")
        report("list of 500 runs", time.perf_counter() - start, "s", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="*", default=["5000x60", "100000x60", "5000x1000"])
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    with sync_playwright() as started, tempfile.TemporaryDirectory() as place:
        browser = started.chromium.launch(executable_path=options.chromium, args=ARGUMENTS)
        for size in options.runs:
            steps, layers = map(int, size.split("x"))
            folder = Path(place) / size
            print(f"{steps:,} steps x {layers:,} layers, two runs", flush=True)
            write(folder / "plain", steps, layers, 9.0)
            write(folder / "residual", steps, layers, 0.5)
            measure(browser, folder)
            shutil.rmtree(folder)
        print("500 runs")
        list_of_500(browser, Path(place))
        browser.close()


if __name__ == "__main__":
    main()

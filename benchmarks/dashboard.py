"""Times the dashboard in headless Chromium over long and wide runs, beside its targets.

    python benchmarks/dashboard.py [--runs 5000x60 1600000x60] [--lists 500] [--keep FOLDER]
        [--servers 1]

Each size is steps x layers; a plain and a residual run of it are shown together; each list is a
folder of that many runs. ``1600000x60`` takes 6 GB of disk and ten minutes of a processor to write:
``--keep`` uses again what was written there.

Then each page is opened ``--servers`` times *cold*, as the first one of a server that has just
started, and *warm*, each for the first time, one after the other, of a server that has shown the
list of findings before. Of each callback it prints the median and the worst time until the server
answered, and the processor time of the whole server meanwhile, which other programs do not add to.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from storage import write_long

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
PAIR = "?run=plain&run=residual"
PATHS = ("/flow", "/compare", "/shortcuts", "/activations", "/updates", "/training", "/findings")


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve a folder from a process of its own; give its address and its process id."""
    script = Path(__file__).with_name("timed_dashboard.py")
    command = [sys.executable, str(script), str(folder), "--no-browser"]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[2].rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait()


def cpu(pid: int) -> float:
    """Return the processor time of a process so far, in seconds: other work adds nothing to it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
        """() => [...document.querySelectorAll('[data-panel=overview] image')].some(
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
    until(page, "() => window.gradientflow.overview !== null")
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
    """Print one figure beside its target."""
    verdict = "holds" if value <= target else "MISSED"
    print(f"  {name:46}{value:9.1f} {unit:4} (target {target:g}: {verdict})", flush=True)


@dataclass(frozen=True)
class Reply:
    """What one callback took, in milliseconds, and how many bytes its answer has.

    ``cpu`` is the processor time of the whole server meanwhile.
    """

    name: str
    took: float
    wall: float
    cpu: float
    size: int


class Replies:
    """What the callbacks of a page took.

    Args:
        page: A page of the browser.
    """

    def __init__(self, page: Page) -> None:
        self.all: list[Reply] = []
        self._open = 0
        page.on("request", lambda request: self._count(request, 1))
        page.on("requestfailed", lambda request: self._count(request, -1))
        page.on("requestfinished", self._keep)

    def _count(self, request: Any, by: int) -> None:
        self._open += by if "_dash-update-component" in request.url else 0

    def _keep(self, request: Any) -> None:
        if "_dash-update-component" not in request.url:
            return
        self._count(request, -1)
        took = request.timing["responseStart"] - request.timing["requestStart"]
        headers, name = request.response().headers, _name(request.post_data_json["outputs"])
        times = dict(re.findall(r"(\w+);dur=([\d.]+)", headers.get("server-timing", "")))
        wall, cpu = float(times["wall"]), float(times["cpu"])
        self.all.append(Reply(name, took, wall, cpu, int(headers.get("content-length", "0"))))

    def settle(self, page: Page, quiet: float = 0.25, most: float = 30.0) -> None:
        """Wait until no callback has been under way for so many seconds."""
        since = start = time.perf_counter()
        while time.perf_counter() - since < quiet and time.perf_counter() - start < most:
            page.wait_for_timeout(20)
            if self._open > 0:
                since = time.perf_counter()


def _name(outputs: Any) -> str:
    first = (outputs[0] if isinstance(outputs, list) else outputs)["id"]
    return str(first["key"] if isinstance(first, dict) else first)


def measure(browser: Any, folder: Path) -> None:
    """Print the figures of one pair of runs."""
    with served(folder) as (address, pid):
        page = browser.new_context(viewport={"width": 1360, "height": 900}).new_page()
        replies = Replies(page)
        report("first heatmap, cold", first_heatmap(page, f"{address}/{PAIR}"), "s", 3)
        replies.settle(page)
        warm = [first_heatmap(page, f"{address}/{PAIR}") for _ in range(3)]
        report("first heatmap, warm", statistics.median(warm), "s", 2)
        report("step of the slider, median", slider(page), "ms", 50)
        for path in PATHS:
            page.goto(f"{address}{path}{PAIR}")
            page.wait_for_selector("h1")
            replies.settle(page, 1.0)
        opened, spent = len(replies.all), cpu(pid)
        interact(page, f"{address}/flow{PAIR}", replies)
        _report_replies("opening pages", replies.all[:opened])
        _report_replies("100 interactions", replies.all[opened:])
        each = 1000 * (cpu(pid) - spent) / max(1, len(replies.all) - opened)
        report("  processor time of a callback, mean", each, "ms", 150)
        report("memory of the server after them", memory(pid), "MiB", 400)
        page.context.close()


def interact(page: Page, url: str, replies: Replies, times: int = 100) -> None:
    """Choose steps, quantities and aggregates of a page, one after the other."""
    page.goto(url)
    page.wait_for_selector("h1")
    replies.settle(page, 1.0)
    choices = ("&bins=max", "&quantity=activation_norm", "&relative=1", "&smooth=90", "&bins=mean")
    for k in range(times):
        if k % 10 == 9:
            more = choices[k // 10 % len(choices)]
            script = "(search) => window.dash_clientside.set_props('search', {data: search})"
            page.evaluate(script, PAIR + more)
        else:
            script = """(share) => {
                const range = document.getElementById('step-range');
                range.value = String(Math.round(share * Number(range.max)));
                range.dispatchEvent(new Event('input'));
                range.dispatchEvent(new Event('change'));
            }"""
            page.evaluate(script, (k * 37 % 100) / 100)
        replies.settle(page, 0.1)


def each_page(browser: Any, folder: Path, servers: int) -> None:
    """Print what the callbacks of each page took, cold and warm."""
    found: dict[tuple[str, str], dict[str, list[Reply]]] = defaultdict(lambda: defaultdict(list))
    pages = ("/", *PATHS)

    def opened(address: str, path: str, state: str) -> None:
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        replies = Replies(page)
        page.goto(f"{address}{path}{PAIR}")
        page.wait_for_selector("h1")
        replies.settle(page, 1.0)
        for one in replies.all if state else ():
            found[path, one.name][state].append(one)
        page.close()

    for _ in range(servers):
        for path in pages:
            with served(folder) as (address, _pid):
                opened(address, path, "cold")
        with served(folder) as (address, _pid):
            opened(address, "/findings", "")
            for path in pages:
                opened(address, path, "warm")
    head = "  callback, ms: median/worst until the answer, in the server, its processor"
    print(f"{head:76}{'cold':>8}{'warm':>32}")
    for (path, name), states in found.items():
        columns = "".join(_times(states[state]) for state in ("cold", "warm"))
        print(f"  {path + ' ' + name:38}{columns}", flush=True)
    for state in ("cold", "warm"):
        replies = [x for one in found.values() for x in one[state]]
        if replies:
            worst = max(replies, key=lambda x: x.cpu)
            report(f"most processor time, {state} ({worst.name})", worst.cpu, "ms", 150)


def _times(replies: list[Reply]) -> str:
    if not replies:
        return f"{'-':>32}"
    columns = ([getattr(one, what) for one in replies] for what in ("took", "wall", "cpu"))
    told = (f"{statistics.median(some):.0f}/{max(some):.0f}" for some in columns)
    return f"{len(replies):5}" + "".join(f"{one:>9}" for one in told)


def _report_replies(what: str, replies: list[Reply]) -> None:
    times = sorted(one.took for one in replies)
    slowest = max(replies, key=lambda one: one.took)
    busiest, largest = (max(replies, key=lambda one: getattr(one, by)) for by in ("cpu", "size"))
    late = sum(took > 150 for took in times)
    print(
        f"  {what}: {len(times)} callbacks, median {statistics.median(times):.0f} ms, {late} late"
    )
    report(f"  slowest callback ({slowest.name})", slowest.took, "ms", 150)
    report(f"  most processor time ({busiest.name})", busiest.cpu, "ms", 150)
    report(f"  largest reply ({largest.name})", largest.size / 1000, "KB", 400)


def list_of(browser: Any, folder: Path, count: int) -> None:
    """Print how long `count` runs, half of them residual, take to be listed and judged.

    Also how long the first page takes, which has the verdict of the newest pair.
    """
    many = folder / f"many-{count}"
    if not many.exists():
        pair(folder, 20, 10)
        for k in range(count):
            kind = ("plain", "residual")[k % 2]
            shutil.copytree(folder / kind, many / f"run-{k // 2}-{kind}")
    with served(many) as (address, _):
        page = browser.new_context().new_page()
        start = time.perf_counter()
        page.goto(address)
        until(page, "() => document.querySelector('#headline .headline') !== null")
        report("first page with its verdict, cold", time.perf_counter() - start, "s", 3)
        page.context.close()
        page = browser.new_page()
        replies = Replies(page)
        page.goto(f"{address}/flow")
        page.wait_for_selector("h1")
        start = time.perf_counter()
        page.get_by_role("link", name="Runs", exact=True).click()
        # A longer list shows its newest runs.
        rows = f"document.querySelectorAll('table.runs tbody tr').length === {min(count, 500)}"
        until(page, f"() => {rows}")
        report(f"list of {count:,} runs", time.perf_counter() - start, "s", 2)
        # The list asks again every 1.5 s, for ever.
        page.wait_for_timeout(5000)
        _report_replies("the list and its next updates", replies.all)
        page.close()


def pair(folder: Path, steps: int, layers: int) -> None:
    """Write a plain and a residual run, unless they are there."""
    for name, decades in (("plain", 9.0), ("residual", 0.5)):
        if not (folder / name).exists():
            write_long(folder / name, layers, steps, decades, shortcuts=name == "residual")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = ["5000x60", "100000x60", "1600000x60", "5000x1000"]
    parser.add_argument("--runs", nargs="*", default=sizes)
    parser.add_argument("--lists", nargs="*", type=int, default=[500, 5000])
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder in which the runs stay")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    with sync_playwright() as started, tempfile.TemporaryDirectory() as place:
        browser = started.chromium.launch(executable_path=options.chromium, args=ARGUMENTS)
        folder = options.keep or Path(place)
        for size in options.runs:
            steps, layers = map(int, size.split("x"))
            pair(folder / size, steps, layers)
            busy = os.getloadavg()[0]
            print(f"{steps:,} steps x {layers:,} layers, two runs (load {busy:.1f})", flush=True)
            measure(browser, folder / size)
            each_page(browser, folder / size, options.servers)
        for count in options.lists:
            print(f"{count:,} runs")
            list_of(browser, folder / "list", count)
        browser.close()


if __name__ == "__main__":
    main()

"""Times a report of a plain and a residual run and opens it in Chromium, beside its targets.

    python benchmarks/report.py [RUN RUN] [--steps 1000 100000] [--keep FOLDER] [--chromium PATH]

Without runs it writes pairs of so many steps with every probe; ``--keep`` uses again what was
written there. Each pair is reported twice: with its first eight figures, and with all.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))
from analyzer.reports.html import write_report
from analyzer.reports.story import Section, Story, story_of
from tests.support.full_run import write_network_run

ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
FIRST = 8


def line(name: str, value: float, unit: str, target: float | None = None) -> None:
    """Print one figure, beside its target where it has one."""
    verdict = ""
    if target is not None:
        verdict = f"(target {target:g}: {'holds' if value <= target else 'MISSED'})"
    print(f"  {name:44}{value:8.2f} {unit:4}{verdict}", flush=True)


def pair(folder: Path, steps: int) -> list[Path]:
    """Return a plain and a residual run of so many steps; written where they are not there."""
    paths = [folder / f"{kind}-{steps}" for kind in ("plain", "residual")]
    for path in paths:
        if not path.exists():
            write_network_run(path, has_shortcuts=path == paths[1], steps=steps)
    return paths


def beginning(story: Story, count: int) -> Story:
    """Return a story with its first figures only."""
    return replace(story, sections=tuple(_kept(story.sections, count)))


def _kept(sections: tuple[Section, ...], count: int) -> Iterator[Section]:
    for section in sections:
        yield replace(section, figures=section.figures[:count])
        count -= min(count, len(section.figures))


def seconds_to_write(paths: list[Path], file: Path, count: int | None) -> tuple[float, float]:
    """Write a report in this process; return wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    story = story_of(paths)
    write_report(story if count is None else beginning(story, count), file)
    return time.perf_counter() - wall, time.process_time() - processor


def seconds_of_command(paths: list[Path], file: Path) -> float:
    """Run the command as a user does, imports and all."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "analyzer", "report", *map(str, paths), "-o", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def seconds_to_open(browser: Any, file: Path) -> float:
    """Return the seconds until the first figure is drawn, the median of three."""
    taken = []
    for _ in range(3):
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(f"file://{file.resolve()}")
        page.wait_for_selector(".plot[data-state=drawn]")
        taken.append(time.perf_counter() - start)
        page.close()
    return statistics.median(taken)


def measure(browser: Any, paths: list[Path], folder: Path) -> None:
    """Print the figures of one pair of runs."""
    for name, count in ((f"{FIRST} figures", FIRST), ("all figures", None)):
        file = folder / f"{name.replace(' ', '-')}.html"
        wall, processor = seconds_to_write(paths, file, count)
        is_target = count is not None
        size = file.stat().st_size / 1e6
        line(f"{name}: size", size, "MB", 2.0 if is_target else None)
        line(f"{name}: time to write", wall, "s", 10.0 if is_target else None)
        line(f"{name}: of it this processor", processor, "s")
        line(f"{name}: open to the first figure", seconds_to_open(browser, file), "s", 2.0)
    line("analyzer report, all figures", seconds_of_command(paths, file), "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--steps", nargs="+", type=int, default=[1000, 100_000])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=asked.chromium, args=ARGUMENTS)
        folder = asked.keep or Path(name)
        for steps in [None] if asked.runs else asked.steps:
            paths = asked.runs if steps is None else pair(folder, steps)
            print(" and ".join(path.name for path in paths), flush=True)
            measure(browser, paths, Path(name))
        browser.close()


if __name__ == "__main__":
    main()

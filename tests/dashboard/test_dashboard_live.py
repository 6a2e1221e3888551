import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.conftest import Visit, serving

ROOT = Path(__file__).parents[2]
Open = Callable[..., Visit]

# Writes a step at each line that it reads; "end" finishes the run.
PROGRAM = """
import sys
from pathlib import Path
from typing import Any
import numpy as np
from analyzer.storage.rows import Block, StepRecord
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import RunWriter
from tests.support.runs import layer_row

writer = RunWriter(Path(sys.argv[1]), {}, flush_seconds=0.2)
writer.write_layers([layer_row(i, f"layers.{i}") for i in range(4)])
writer.write_parameters([])
writer.write_joins([])
for step, line in enumerate(sys.stdin):
    if line.strip() == "end":
        break
    values = np.full((4, len(STAT_COLUMNS["layer_stats"])), 1.0 + step)
    block = Block("layer_stats", np.arange(4, dtype=np.int32), values)
    columns = {"step": step, "loss": 1.0 / (1 + step), "seconds": 0.1, "skipped": False}
    writer.add(lambda columns=columns, block=block: StepRecord(columns, [block]))
writer.close("finished")
"""


class Recording:
    """A run that another process records, a step whenever it is told to."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path)], cwd=ROOT, stdin=subprocess.PIPE, text=True
        )

    def steps(self, count: int) -> None:
        """Take so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n" * count)
        self.process.stdin.flush()

    def end(self) -> None:
        """Finish the run."""
        assert self.process.stdin is not None
        self.process.stdin.write("end\n")
        self.process.stdin.close()
        assert self.process.wait(timeout=30) == 0

    def kill(self) -> None:
        """End the process as the system would."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(timeout=30)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Recording]]:
    started: list[Recording] = []

    def begin() -> Recording:
        started.append(Recording(tmp_path / "runs" / "live"))
        return started[-1]

    yield begin
    for recording in started:
        recording.kill()


@pytest.mark.alone
def test_a_run_of_another_process_appears_grows_and_finishes(
    visit: Open, tmp_path: Path, start: Callable[[], Recording]
) -> None:
    with serving(tmp_path / "runs") as address:
        shown = visit(address)
        page = shown.go("/runs")
        page.wait_for_selector("text=No runs yet")
        recording = start()
        recording.steps(5)
        page.wait_for_selector("table.runs tr:has-text('live'):has-text('running')")
        page.goto(address + "/training?run=live")
        shown.settle()
        _grows(shown, recording)
        recording.end()
        page.wait_for_selector("#live-text:has-text('live: finished')")
        page.wait_for_timeout(600)
        _stops_asking(page)
        shown.assert_clean()


_POINTS = (
    "[...document.querySelectorAll('[data-panel=loss] .js-plotly-plot')]"
    ".flatMap((graph) => graph._fullData.map((one) => one.x ? one.x.length : 0))"
    ".reduce((most, one) => Math.max(most, one), 0)"
)


_RANGE = "document.querySelector('[data-panel=loss] .js-plotly-plot')._fullLayout.xaxis.range"


def _grows(shown: Visit, recording: Recording) -> None:
    """New steps are drawn within seconds, and what was zoomed to stays."""
    box = shown.page.locator("[data-panel=loss] .nsewdrag").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    shown.page.mouse.move(box["x"] + 0.2 * box["width"], middle)
    shown.page.mouse.down()
    shown.page.mouse.move(box["x"] + 0.7 * box["width"], middle, steps=5)
    shown.page.mouse.up()
    zoomed = shown.page.evaluate(_RANGE)
    recording.steps(20)
    began = time.monotonic()
    shown.until(f"{_POINTS} === 25")
    assert time.monotonic() - began < 8
    assert zoomed[1] - zoomed[0] < 3
    assert shown.page.evaluate(_RANGE) == zoomed
    shown.page.wait_for_selector("#live-text:has-text('25 steps, updated')")


def _stops_asking(page: Any) -> None:
    """A page of finished runs asks the server for nothing more."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3500)
    assert asked == []


def test_a_killed_run_is_shown_as_crashed(
    visit: Open, tmp_path: Path, start: Callable[[], Recording]
) -> None:
    recording = start()
    recording.steps(3)
    manifest = tmp_path / "runs" / "live" / "run.json"
    with serving(tmp_path / "runs") as address:
        shown = visit(address)
        page = shown.go("/runs")
        page.wait_for_selector("table.runs tr:has-text('live'):has-text('running')")
        recording.kill()
        # Half a minute passes.
        fields = json.loads(manifest.read_text())
        fields["heartbeat"] = (datetime.now(UTC) - timedelta(seconds=31)).isoformat()
        manifest.write_text(json.dumps(fields))
        page.wait_for_selector("table.runs tr:has-text('live'):has-text('crashed')")
        shown.assert_clean()

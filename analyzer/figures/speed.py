"""How long each step took."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import number
from analyzer.analysis.per_run import PerRun, RunRecord, not_recorded, read_runs
from analyzer.analysis.view import RunLabel, View
from analyzer.figures.axes import STEP
from analyzer.figures.marks import run_line
from analyzer.figures.panels import Panel
from analyzer.figures.sketch import Sketch, merged
from analyzer.figures.theme import Theme

__all__ = ["SPEED"]


@dataclass(frozen=True, eq=False)
class _StepTimes(RunRecord):
    steps: NDArray[np.int64]
    seconds: NDArray[np.float64]

    def sentence(self) -> str:
        """Return the median time of a step."""
        return f"{self.label.text}: {number(float(np.median(self.seconds)))} s per step (median)."

    def cells(self) -> Mapping[str, Any]:
        """Return one row per step."""
        return {"step": self.steps, "seconds": self.seconds}


def _step_times(view: View) -> PerRun[_StepTimes]:
    return PerRun(*read_runs(view, _read))


def _read(view: View, run: Any, label: RunLabel) -> _StepTimes:
    rows = run.read("steps", "seconds")
    known = rows.column("seconds").is_valid().to_numpy()
    if not known.any():
        raise not_recorded("seconds were", run, "wait for the first step, or record it again")
    steps, seconds = (rows.column(name).to_numpy()[known] for name in ("step", "seconds"))
    return _StepTimes(label, steps, seconds)


def _sketch(info: PerRun[_StepTimes], theme: Theme) -> Sketch:
    lines = [run_line(one.label, theme, x=one.steps, y=one.seconds) for one in info.runs]
    axes = {"xaxis": STEP, "yaxis": {"title": {"text": "seconds"}}}
    return Sketch(lines, merged(theme.layout(380), axes | {"showlegend": True}))


SPEED = Panel(
    key="speed",
    title="Time per step",
    how_to_read="Seconds that each step took. A step that takes much longer may have waited for "
    "its batch.",
    needs=("seconds",),
    info=_step_times,
    drawing=_sketch,
)

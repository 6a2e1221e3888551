"""What a study would take: from what it has run already, or from short trials of its networks."""

import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analyzer.cli.processes import PROGRAM
from analyzer.cli.session import PACKAGE_ROOT, options_text
from analyzer.errors import AnalyzerError
from analyzer.storage.run import Run, open_run
from analyzer.storage.study import Study, is_study, open_study
from analyzer.studies.plan import Plan, Point, options_of_point, refuse_foreign
from analyzer.studies.running import processors

__all__ = ["Estimate", "estimate", "joins_of"]

_TRIAL_STEPS, _MOST_TRIALS, _LAST_LINES = 10, 3, 5
_GROWING = ("steps", "layer_stats", "parameter_stats", "splits", "overview")


@dataclass(frozen=True)
class Estimate:
    """What a study would take.

    Args:
        points: Name and status of each point.
        seconds: Wall time of what is left; None where it cannot be told.
        bytes: Size of the runs that are left; None likewise.
        sentence: Both, with what they come from.
    """

    points: tuple[tuple[str, str], ...]
    seconds: float | None
    bytes: float | None
    sentence: str


def estimate(plan: Plan | None, folder: Path, workers: int | None) -> Estimate:
    """Return what is left of a study, and the time and disk that it takes.

    Raises:
        AnalyzerError: If a trial fails, with the last that it printed.
    """
    known = open_study(folder).points if is_study(folder) else ()
    states = {point.name: point.status for point in known}
    names = [point.name for point in plan.points] if plan else list(states)
    points = tuple((name, states.get(name, "waiting")) for name in dict.fromkeys([*states, *names]))
    left = [name for name, status in points if status not in ("finished", "failed")]
    at_once = workers or max(1, min(processors(), len(points)))
    ended = [p for p in known if p.status == "finished" and {"seconds", "bytes"} <= set(p.ending)]
    begin = f"{len(points)} points, {len(left)} to run"
    if not left:
        return Estimate(points, 0.0, 0.0, f"{begin}.")
    if ended:
        costs = np.array([[p.ending["seconds"], p.ending["bytes"]] for p in ended], float)
        seconds, size = costs.mean(axis=0) * len(left)
        source = f"the mean of {len(ended)} points that were run before"
    else:
        named = plan.points if plan is not None else _points_of(open_study(folder))
        chosen = [point for point in named if point.name in left]
        found = _by_trials(chosen)
        if isinstance(found, str):
            return Estimate(points, None, None, f"{begin}; {found}")
        seconds, size, source = found
    wall = seconds / at_once
    cost = f"about {_time(wall)} and {size / 2**20:,.0f} MiB, by {source}"
    text = f"{begin}, {at_once} at a time: {cost}."
    return Estimate(points, wall, size, text)


def _points_of(study: Study) -> Sequence[Point]:
    """The points that a folder names: of built-in networks, or they are refused."""
    points = study.points
    for point in points:
        refuse_foreign(study, point)
    return [Point(point.name, point.arguments, options_of_point(point)) for point in points]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _by_trials(points: Sequence[Point]) -> tuple[float, float, str] | str:
    """Seconds, bytes and their source by short trials of the smallest and the largest networks.

    Between them, by depth times width, it is interpolated. A text says why none can be.
    """
    sizes = np.array([_size(point) for point in points])
    order = np.argsort(sizes, kind="stable")
    places = sorted({int(order[0]), int(order[len(order) // 2]), int(order[-1])})
    picked = {sizes[place]: points[place] for place in places}
    at, costs, is_open = [], [], False
    for size, point in sorted(picked.items()):
        run_seconds, run_bytes, steps = _trial_cost(point)
        at.append(size)
        costs.append((run_seconds, run_bytes))
        is_open |= steps is None
    if is_open:
        seconds, size = costs[-1]
        return (
            f"a trial of {_TRIAL_STEPS} steps took {seconds:.1f} s and {size / 2**20:.1f} MiB; how "
            "many steps the script makes is not known before it has run once"
        )
    table = np.array(costs)
    seconds, size = (float(np.interp(sizes, at, table[:, k]).sum()) for k in (0, 1))
    trials = "a trial" if len(at) == 1 else f"trials of {len(at)} networks"
    return seconds, size, f"{trials}, {_TRIAL_STEPS} steps each"


def _size(point: Point) -> float:
    numbers = [point.arguments.get(name) or 1 for name in ("depth", "width")]
    return math.prod(float(one) for one in numbers if isinstance(one, int | float))


def _trial_cost(point: Point) -> tuple[float, float, int | None]:
    """Seconds and bytes of a whole point by its first steps, and its steps; None: not known."""
    with tempfile.TemporaryDirectory() as folder:
        run = _recorded(point, Path(folder) / "trial", _TRIAL_STEPS, probes=True)
        manifest = run.manifest
        seconds, probes = (float(manifest.get(k) or 0) for k in ("seconds", "probe_seconds"))
        made = max(1, len(run.recorded_steps()))
        files = [file for file in run.path.rglob("*") if file.is_file()]
        growing = sum(
            f.stat().st_size for f in files if f.relative_to(run.path).parts[0] in _GROWING
        )
        whole = sum(file.stat().st_size for file in files)
    # Of a script the loop's own number of steps says nothing.
    steps = point.record.steps if manifest.get("kind") != "script" else None
    factor = (steps or made) / made
    per_step = max(0.0, seconds - probes)
    return probes + per_step * factor, whole - growing + growing * factor, steps


def joins_of(point: Point) -> list[str]:
    """Return the names of the joins of a point's network, by a trial of one step.

    Raises:
        AnalyzerError: If it fails, or the network has no join.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = _recorded(point, Path(folder) / "trial", 1, probes=False)
        names = [str(name) for name in run.static_rows("joins").column("name").to_pylist()]
    if not names:
        raise AnalyzerError(
            f"point {point.name!r} has no join, and --shortcuts each removes one at a time; "
            "expected a network with shortcuts. Use --shortcuts on,off"
        )
    return names


def _recorded(point: Point, folder: Path, steps: int, *, probes: bool) -> Run:
    """The run of the first steps of a point, in a process of its own."""
    probe = point.record.probe if probes else ()
    options = replace(point.record, run=folder, stop_after=steps, probe=probe)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, PACKAGE_ROOT, options_text(options)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0 or not (folder / "run.json").is_file():
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        raise AnalyzerError(
            f"a trial of point {point.name!r} ended with exit code {done.returncode}: {last}"
        )
    return open_run(folder)

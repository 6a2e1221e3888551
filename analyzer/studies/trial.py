"""What a study would take: from what it has run already, or from short trials of its networks."""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analyzer.analysis.numerals import counted
from analyzer.cli.processes import PROGRAM
from analyzer.cli.session import PACKAGE_ROOT, options_text
from analyzer.errors import AnalyzerError
from analyzer.options import RecordOptions
from analyzer.storage.arrays import as_floats
from analyzer.storage.parts import write_table
from analyzer.storage.run import Run, open_run
from analyzer.storage.sealed import open_file
from analyzer.storage.study import Study, is_study, open_study
from analyzer.studies.plan import Plan, Point, options_of_point, refuse_foreign
from analyzer.studies.running import processors
from analyzer.studies.worker import with_threads

__all__ = ["Estimate", "estimate", "joins_of", "whole_size"]

_TRIAL_STEPS, _FIRST_STEPS, _LAST_LINES = 40, 10, 5
_USUAL_INTERVAL = 10
_TABLES = ("steps", "layer_stats", "parameter_stats", "splits")


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
    at_once = min(workers or processors(), max(1, len(left)))
    ended = [p for p in known if p.status == "finished" and {"seconds", "bytes"} <= set(p.ending)]
    begin = f"{len(points)} points, {len(left)} to run"
    if not left:
        return Estimate(points, 0.0, 0.0, f"{begin}.")
    named = plan.points if plan is not None else _points_of(open_study(folder))
    known_costs = [_Known(p.arguments, p.ending["seconds"], p.ending["bytes"]) for p in ended]
    chosen = [point for point in named if point.name in left]
    found = _costs(chosen, known_costs, max(1, processors() // at_once))
    if isinstance(found, str):
        return Estimate(points, None, None, f"{begin}; {found}")
    wall = found.seconds / at_once + found.start
    cost = f"about {_time(wall)} and {found.bytes / 2**20:,.0f} MiB, by {found.source}"
    text = f"{begin}, {at_once} at a time: {cost}."
    return Estimate(points, wall, found.bytes, text)


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


@dataclass(frozen=True)
class _Known:
    """Seconds and bytes of a point that was run, or of one by its trial.

    Args:
        start: Seconds before the training that are not those of each point: to import torch.
        is_open: Whether the trial was stopped before anything said how many steps there are.
    """

    arguments: Mapping[str, Any]
    seconds: float
    bytes: float
    start: float = 0.0
    is_open: bool = False

    @property
    def size(self) -> float:
        """Depth times width, each 1 where it is none."""
        numbers = [self.arguments.get(name) or 1 for name in ("depth", "width")]
        return math.prod(float(one) for one in numbers if isinstance(one, int | float))

    @property
    def is_plain(self) -> bool:
        """Whether it is without shortcuts: most probes have less to do there."""
        return self.arguments.get("shortcuts") == "off"


@dataclass(frozen=True)
class _Costs:
    """What several points take together, one after the other, and where that comes from."""

    seconds: float
    bytes: float
    start: float
    source: str


def _costs(points: Sequence[Point], known: Sequence[_Known], threads: int) -> _Costs | str:
    """What points take, by those that were run before and by short trials of others.

    Of networks with and without shortcuts apart, the smallest and the largest are tried, if they
    are beyond what was run. Between them, by depth times width, it is interpolated. A text says why
    none can be.
    """
    seconds = size = 0.0
    tried: list[_Known] = []
    for is_plain in (False, True):
        mine = [one for one in points if _like(one).is_plain == is_plain]
        if not mine:
            continue
        ran = [one for one in known if one.is_plain == is_plain]
        found = [_trial_cost(one, threads) for one in _to_try(mine, [one.size for one in ran])]
        tried += found
        for one in found:
            if one.is_open and not known:
                return (
                    f"a trial of {_TRIAL_STEPS} steps took {one.seconds:.1f} s and "
                    f"{one.bytes / 2**20:.1f} MiB; how many steps the script makes is not known "
                    "before it has run once"
                )
        usable = [one for one in found if not one.is_open] + ran or list(known)
        at = sorted({one.size for one in usable})
        table = np.array(
            [
                np.mean([[k.seconds, k.bytes] for k in usable if k.size == x], axis=0, dtype=float)
                for x in at
            ]
        )
        sizes = [_like(one).size for one in mine]
        seconds += float(np.interp(sizes, at, table[:, 0]).sum())
        size += float(np.interp(sizes, at, table[:, 1]).sum())
    parts = [f"{counted(len(known), 'point')} that ran before"] if known else []
    if tried:
        parts.append(f"{counted(len(tried), 'trial')} of {_TRIAL_STEPS} steps at most")
    start = max((one.start for one in tried), default=0.0)
    return _Costs(seconds, size, start, " and ".join(parts))


def _like(point: Point) -> _Known:
    return _Known(point.arguments, 0.0, 0.0)


def _to_try(points: Sequence[Point], known: Sequence[float]) -> list[Point]:
    """The smallest and the largest of the points that are beyond the sizes known."""
    lowest, highest = (min(known), max(known)) if known else (math.inf, -math.inf)
    beyond = [p for p in points if not lowest <= _like(p).size <= highest]
    order = sorted(beyond, key=lambda point: _like(point).size)
    return list({_like(p).size: p for p in (*order[:1], *order[-1:])}.values())


def _trial_cost(point: Point, threads: int) -> _Known:
    """Seconds and bytes of a whole point by its first steps."""
    options = point.record
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = _recorded(point, Path(folder) / "trial", _TRIAL_STEPS, probes=True, threads=threads)
        whole = time.perf_counter() - begun
        about = run.manifest
        made = len(run.recorded_steps())
        # A program that ended by itself has no more steps; the loop's number is not a script's.
        is_stopped = made >= _TRIAL_STEPS
        is_open = is_stopped and about.get("kind") == "script"
        planned = min(options.steps, options.stop_after or options.steps)
        steps = planned if is_stopped and not is_open else made
        seconds, own, probes = (
            float(about.get(f"{name}seconds") or 0) for name in ("", "recorder_", "probe_")
        )
        settled = as_floats(run.read("steps", "seconds").column("seconds"))[_FIRST_STEPS:]
        # The trial records each step.
        spared = own / max(1, made) * (1 - 1 / options.every)
        more = max(0.0, float(settled.mean()) - spared) * (steps - made) if steps > made else 0.0
        size, probes_more = whole_size(run.path, options, steps)
    total = seconds - probes + probes * probes_more + more
    is_script = about.get("kind") == "script"
    start = max(0.0, whole - seconds)
    kept = (total + start, 0.0) if is_script else (total, start)  # each has a Python of its own
    return _Known(point.arguments, kept[0], size, kept[1], is_open)


def whole_size(folder: Path, options: RecordOptions, steps: int) -> tuple[float, float]:
    """Bytes of a run of so many steps by its first ones, and how many times as many probes."""
    recorded = sum(map(options.records, range(steps)))
    times = {
        "steps": steps,
        "layer_stats": recorded,
        "parameter_stats": recorded,
        "splits": sum(map(options.splits, range(steps))),
        "checkpoints": sum(map(options.saves_weights, range(steps))) + 1,
    }
    due = {plan.name: sum(map(plan.is_due, range(steps))) + 1 for plan in options.plans}
    size, measured, expected = 0.0, 0, 0
    for place in folder.iterdir():
        files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
        here = float(sum(file.stat().st_size for file in files))
        if place.name in _TABLES and files:
            here = _table_size(files, times[place.name])
        elif place.name == "checkpoints" and files:
            here *= times[place.name] / len(files)
        elif place.name == "probes":
            here = 0.0
            for probe in place.iterdir():
                mine = [file.stat().st_size for file in probe.iterdir()]
                measured, expected = measured + len(mine), expected + due[probe.name]
                here += sum(mine) / max(1, len(mine)) * due[probe.name]
        size += here
    return size, expected / measured if measured else 1.0


def _table_size(files: Sequence[Path], steps: int) -> float:
    """Bytes of a table with rows of so many steps, by what the later half of these adds to it.

    A short file is mostly what any file has, however many rows it holds.
    """
    size = sum(file.stat().st_size for file in files)
    rows = pa.concat_tables([_read(file) for file in files])
    made = pc.unique(rows.column("step")).sort()
    if len(made) < 2:
        return size * max(1, steps)
    first = rows.filter(pc.less(rows.column("step"), made[len(made) // 2]))
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for table in (first, rows):
            write_table(Path(folder) / "table.parquet", table)
            sizes.append((Path(folder) / "table.parquet").stat().st_size)
    added = (sizes[1] - sizes[0]) / (len(made) - len(made) // 2)
    return size + added * (steps - len(made))


def _read(file: Path) -> pa.Table:
    with open_file(file) as opened:
        return opened.read()


def joins_of(point: Point) -> list[str]:
    """Return the names of the joins of a point's network, by a trial of one step.

    Raises:
        AnalyzerError: If it fails, or the network has no join.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = _recorded(point, Path(folder) / "trial", 1, probes=False, threads=processors())
        names = [str(name) for name in run.static_rows("joins").column("name").to_pylist()]
    if not names:
        raise AnalyzerError(
            f"point {point.name!r} has no join, and --shortcuts each removes one at a time; "
            "expected a network with shortcuts. Use --shortcuts on,off"
        )
    return names


def _recorded(point: Point, folder: Path, steps: int, *, probes: bool, threads: int) -> Run:
    """The run of the first steps of a point, each recorded, in a process of its own."""
    record = point.record
    given: dict[str, Any] = {
        "stop_after": min(steps, record.stop_after or steps),
        "probe": record.probe if probes else (),
        "every": 1,
        "splits_every": min(record.splits_every, _USUAL_INTERVAL),
        "updates_every": min(record.updates_every, _USUAL_INTERVAL),
    }
    options = replace(record, run=folder, **given)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, PACKAGE_ROOT, options_text(options)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
        env=with_threads(threads),
    )
    if done.returncode != 0 or not (folder / "run.json").is_file():
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        raise AnalyzerError(
            f"a trial of point {point.name!r} ended with exit code {done.returncode}: {last}"
        )
    return open_run(folder)

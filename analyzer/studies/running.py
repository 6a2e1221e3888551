"""Runs what a study has not run yet, in worker processes; whatever dies, nothing is run twice."""

import contextlib
import fcntl
import math
import os
import re
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from analyzer.analysis.study import summary_table
from analyzer.cli.session import options_text
from analyzer.errors import AnalyzerError
from analyzer.launch import url_of
from analyzer.options import ZOO
from analyzer.storage.parts import write_table
from analyzer.storage.run_json import read_manifest, status_of
from analyzer.storage.study import (
    PLAN,
    SUMMARY,
    Study,
    StudyPoint,
    is_study,
    open_study,
    refuse_linked,
    write_json,
)
from analyzer.storage.uploading import Upload
from analyzer.studies.plan import Plan, merged, options_of_point, refuse_foreign
from analyzer.studies.worker import LATE, Ended, Workers

__all__ = ["Runner", "held", "processors", "run_study"]

_MOST_DEATHS = 3
_LAST_LETTERS = 1_500
_PATIENCE_SECONDS, _POLL_SECONDS = 30.0, 0.1


class Runner(Protocol):
    """What runs points: worker processes of this machine, or a Ray cluster."""

    capacity: int
    """How many it takes at a time."""

    def start(self, name: str, options: str, log: Path, *, is_script: bool) -> None:
        """Start a point by its options, a text of `options_text`."""

    def ended(self, seconds: float) -> list[Ended]:
        """Return which points have ended; wait for one no longer than some seconds."""

    def close(self) -> None:
        """End whatever runs."""


@contextlib.contextmanager
def held(folder: Path, patience: float = _PATIENCE_SECONDS) -> Iterator[int]:
    """Hold a study, so that no two processes run its points; give the file that is locked.

    Workers inherit the file: after their parent was killed the next one waits until they are gone,
    some seconds at most. With infinite patience it waits for whoever holds it.

    Raises:
        AnalyzerError: If another process holds it.
        SchemaError: If the folder holds a link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_linked(folder)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            raise AnalyzerError(
                f"'{folder / 'lock'}' is no file; expected the lock of a study. Take it away."
            )
        until = time.monotonic() + patience
        while not _locked(lock):
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
            if (_lives(holder) and patience < math.inf) or time.monotonic() > until:
                raise AnalyzerError(
                    f"study '{folder}' is being run by {holder or 'another process'}; two would "
                    "run the same points. Wait for its end, or end it."
                )
            time.sleep(_POLL_SECONDS)
        os.truncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield lock
        os.truncate(lock, 0)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        # Not lockf: what is forked holds this one too.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(holder: str) -> bool:
    """Whether the process that wrote its name into a lock is there, as far as can be known."""
    words = holder.split()
    if len(words) != 4 or not re.fullmatch("[0-9]{1,9}", words[1]):
        return False
    if words[3] != socket.gethostname():
        return True
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run_study(
    plan: Plan | None,
    folder: Path,
    *,
    workers: int | None = None,
    threads: int | None = None,
    retry: bool = False,
    limit: float | None = None,
    runner: Callable[[int], Runner] | None = None,
    on_change: Callable[[Study, Sequence[str]], object] = lambda study, running: None,
) -> Study:
    """Run every point of a study that has not been run, and write its summary.

    Args:
        plan: The points; those that the folder has stay as they are, others are added to it. None
            for those of the folder, which then are of built-in networks.
        folder: The study, or its URL; made where it is not there.
        workers: Points that are run at a time; None for one for each processor.
        threads: Threads of each; None for the processors divided among them.
        retry: Whether points that failed are run again; their runs are kept in ``failed/``.
        limit: Seconds after which a point is ended, and failed; of processes of this machine.
        runner: Makes what runs the points from the file that it is to hold open; None for
            processes of this machine.
        on_change: Called with the study and the names of the points that run, after each change.

    Returns:
        The study, every point finished or failed; of a file only the points of the plan: others
        stay as they are, since a folder may come from anybody.

    Raises:
        AnalyzerError: If another process runs it, or the plan contradicts the folder.
        SchemaError: If the folder's plan cannot be read, or it holds a link.
    """
    with _here(folder) as folder, held(folder) as lock:
        study = _planned(plan, folder)
        points = _asked(plan, study)
        for point in points:
            _prepare(study, point, retry=retry)
        number = workers or max(1, min(processors(), len(points)))
        made = runner or (lambda file: Workers(number, threads or _threads(number), file, limit))
        running = made(lock)
        try:
            _run_all(study, {point.name for point in points}, running, on_change, lock)
        finally:
            running.close()
        write_table(folder / SUMMARY, summary_table(study))
        return study


@contextlib.contextmanager
def _here(folder: Path) -> Iterator[Path]:
    """The folder of a study; of one at a URL its copy, which is copied there while it is run."""
    url = url_of(folder)
    if url is None:
        yield Path(os.path.abspath(folder))
        return
    upload = Upload(url, continues=True)
    upload.start()
    try:
        yield upload.folder
    finally:
        if (problem := upload.close()) is not None:
            print(f"analyzer: {problem}", file=sys.stderr)


def processors() -> int:
    """Return how many processors this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _threads(workers: int) -> int:
    return max(1, processors() // workers)


def _planned(plan: Plan | None, folder: Path) -> Study:
    """The study with its plan on disk, the points that are new added."""
    known = open_study(folder) if is_study(folder) else None
    if plan is not None:
        here = plan.as_json()
        if known is not None:
            if known.target != plan.target:
                raise AnalyzerError(
                    f"study '{folder.name}' is of {known.target}, and {plan.target} was given; "
                    "expected one target for a study. Give another --study."
                )
            left = merged(known.points, plan)
            old = [{"name": p.name, "arguments": p.arguments, "record": p.record} for p in left]
            here["points"] = [*old, *here["points"]]
            for name, some in known.axes.items():
                mine = here["axes"].setdefault(name, [])
                mine += [value for value in some if value not in mine]
        if known is None or here["points"] != _plain_points(known):
            write_json(folder / PLAN, here)
    return open_study(folder)


def _asked(plan: Plan | None, study: Study) -> list[StudyPoint]:
    """The points to be run; a folder may come from anybody, and no code that it names is run."""
    named = {point.name for point in plan.points} if plan is not None else set()
    if plan is not None and not plan.target.startswith(ZOO):
        return [point for point in study.points if point.name in named]
    for point in study.points:
        if point.name not in named:
            refuse_foreign(study, point)
    return list(study.points)


def _plain_points(study: Study) -> list[dict[str, Any]]:
    return [{"name": p.name, "arguments": p.arguments, "record": p.record} for p in study.points]


def _prepare(study: Study, point: StudyPoint, *, retry: bool) -> None:
    """Take away what a process that died left of a point, and set aside what failed."""
    said = study.path / "points" / f"{point.name}.json"
    if point.status == "failed" and retry:
        for k in range(10_000):
            aside = study.path / "failed" / f"{point.name}-{k}"
            if not aside.exists():
                break
        aside.mkdir(parents=True)
        for found in (said, study.path / "logs" / f"{point.name}.txt", point.path):
            if found.exists():
                os.replace(found, aside / ("run" if found == point.path else found.name))
    elif point.status in ("waiting", "running"):
        shutil.rmtree(point.path, ignore_errors=True)
    elif not point.ending:  # this process's parent died before it could write it
        _note(study, point, None, float(read_manifest(point.path).get("seconds") or 0.0), 0)


def _run_all(
    study: Study,
    names: set[str],
    runner: Runner,
    on_change: Callable[[Study, Sequence[str]], object],
    lock: int,
) -> None:
    """Run points until each has ended; one whose process was killed is run again."""
    (study.path / "logs").mkdir(exist_ok=True)
    (study.path / "runs").mkdir(exist_ok=True)
    waiting = [p for p in study.points if p.name in names and p.status in ("running", "waiting")]
    points = {point.name: point for point in waiting}
    begun: dict[str, float] = {}
    deaths: dict[str, int] = {}
    on_change(study, ())
    while waiting or begun:
        while waiting and len(begun) < runner.capacity:
            point = waiting.pop(0)
            shutil.rmtree(point.path, ignore_errors=True)
            options = replace(options_of_point(point), run=point.path)
            log = study.path / "logs" / f"{point.name}.txt"
            runner.start(point.name, options_text(options), log, is_script=study.is_script)
            begun[point.name] = time.monotonic()
            on_change(study, tuple(begun))
        ended = runner.ended(1.0)
        _check_place(study, lock)
        for name, code in ended:
            seconds = time.monotonic() - begun.pop(name)
            point = points[name]
            died = code is None or code == -signal.SIGKILL
            if died and _run_status(point) != "finished":
                deaths[name] = deaths.get(name, 0) + 1
                if deaths[name] < _MOST_DEATHS:
                    waiting.insert(0, point)
                    continue
            _note(study, point, code, seconds, deaths.get(name, 0))
            on_change(study, tuple(begun))


def _check_place(study: Study, lock: int) -> None:
    """Refuse to go on where the folder is another one by now: points would be in neither."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(lock), (study.path / "lock").stat()):
            return
    raise AnalyzerError(
        f"study '{study.path}' was moved or removed while it ran; expected it to stay. Give the "
        "command again with --study and the folder where it is now"
    )


def _run_status(point: StudyPoint) -> str:
    """Return how the manifest of a point's run says that it ended."""
    try:
        return status_of(read_manifest(point.path))
    except AnalyzerError:
        return "none"


def _note(study: Study, point: StudyPoint, code: int | None, seconds: float, deaths: int) -> None:
    """Write how a point has ended."""
    error = None
    if _run_status(point) == "finished" and code in (0, None, -signal.SIGKILL, LATE):
        ending = "finished"
    else:
        ending, error = "failed", _why(study, point, code, seconds, deaths)
    sizes = (file.stat().st_size for file in point.path.rglob("*") if file.is_file())
    said = {"status": ending, "exit_code": code, "error": error, "deaths": deaths}
    more = {"seconds": round(seconds, 3), "bytes": sum(sizes)}
    write_json(study.path / "points" / f"{point.name}.json", said | more)


def _why(study: Study, point: StudyPoint, code: int | None, seconds: float, deaths: int) -> str:
    """Why a point failed: what its run says, or the last that it printed."""
    if deaths >= _MOST_DEATHS:
        return f"its process was killed {deaths} times (signal 9); too little memory does that"
    if code == LATE:
        return f"it was ended after {seconds:.0f} s by --time-limit; give it more, or mend it"
    with contextlib.suppress(AnalyzerError):
        if (said := read_manifest(point.path).get("error")) is not None:
            return str(said)[:_LAST_LETTERS]
    lines: list[str] = []
    with contextlib.suppress(OSError):
        log = study.path / "logs" / f"{point.name}.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1][:_LAST_LETTERS].removeprefix("analyzer: ") if lines else "it printed nothing"
    return f"exit code {code}: {last}"

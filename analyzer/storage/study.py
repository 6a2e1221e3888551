"""A study as a folder: its plan, how each of its points stands, their runs and the summary.

- ``plan.json``: target, axes, and for each point its name, arguments and options of recording;
- ``runs/<name>/``: the recorded run of a point;
- ``points/<name>.json``: how a point ended, written once it has;
- ``logs/<name>.txt``: what it printed;
- ``summary.parquet``: a row for each point.

Nothing else is state: a point that has no ending and no finished run is still to be run, whatever
happened to the processes that once ran it.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.errors import AnalyzerError, NotRecordedError, RunNotFoundError, SchemaError
from analyzer.storage.arrays import frame
from analyzer.storage.limits import LIMITS
from analyzer.storage.parts import READ_FAILURES, reason_of, replace_file
from analyzer.storage.remote import local
from analyzer.storage.run import Run, open_run
from analyzer.storage.run_json import read_manifest, status_of
from analyzer.storage.sealed import open_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MOST_POINTS",
    "PLAN",
    "PLAN_VERSION",
    "STATES",
    "SUMMARY",
    "Study",
    "StudyPoint",
    "is_study",
    "open_study",
    "read_json",
    "refuse_linked",
    "shown_points",
    "study_named",
    "study_of",
    "write_json",
]

PLAN, SUMMARY = "plan.json", "summary.parquet"
PLAN_VERSION = 1
STATES = ("finished", "failed", "running", "waiting")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,119}")
MOST_POINTS = 100_000
"""How many points a study can have."""
_MOST_TEXT, _MOST_INT = 2_000, 2**63 - 1
# Folders of a study, and of what they hold links would be followed when it is run or read.
_FOLDERS = ("runs", "points", "logs", "failed", "locks")


@dataclass(frozen=True)
class StudyPoint:
    """One point of a study.

    Args:
        name: Its name, and that of its run.
        arguments: What tells it from the others: depth, shortcuts, seed, …
        record: The options of its recording that are not at their default.
        path: Folder of its run.
        ending: What ``points/<name>.json`` says; empty until it has ended.
    """

    name: str
    arguments: Mapping[str, Any]
    record: Mapping[str, Any]
    path: Path
    ending: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """Return finished, failed, running or waiting."""
        said = self.ending.get("status")
        if said in ("finished", "failed"):
            return str(said)
        try:
            found = status_of(read_manifest(self.path, with_ranks=False))
        except AnalyzerError:
            return "waiting"
        # Its process may have died between its end and the word about it.
        return found if found in ("finished", "running") else "waiting"

    @property
    def error(self) -> str | None:
        """Why it failed; None where it did not."""
        said = self.ending.get("error")
        return str(said)[:_MOST_TEXT] if self.status == "failed" and said else None


def open_study(folder: str | Path) -> "Study":
    """Open a study, complete or not, in a folder or at a URL.

    Raises:
        RunNotFoundError: If the folder holds no plan.
        SchemaError: If the plan is damaged or of a newer version.
    """
    return Study(local(folder))


def is_study(folder: str | Path) -> bool:
    """Return whether a folder, or a URL, holds a plan."""
    try:
        return (local(folder, may_be_empty=True) / PLAN).is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def refuse_linked(folder: Path) -> None:
    """Refuse a study that holds a link: what is written through one lands outside of it.

    Raises:
        SchemaError: If it, or one of its folders, holds one.
    """
    for place in (folder, *(folder / name for name in _FOLDERS)):
        found = place if place != folder and place.is_symlink() else None
        if found is None and place.is_dir():
            with os.scandir(place) as entries:
                found = next((Path(e.path) for e in entries if e.is_symlink()), None)
        if found is not None:
            raise SchemaError(
                f"study '{folder}' holds a link, {str(found.relative_to(folder))!r}; expected "
                "files of its own. Replace the link by what it leads to."
            )


def study_named(name: str | Path, runs_dir: str | Path) -> Path | None:
    """Return the folder of a study: that folder, else a name under ``runs_dir``; None for none."""
    return next(filter(is_study, (Path(name), Path(runs_dir) / name)), None)


def study_of(run: Run) -> "Study":
    """Return the study of which a run is a point.

    Raises:
        NotRecordedError: If it is none.
    """
    folder = run.path.resolve().parent
    if folder.name == "runs" and is_study(folder.parent):
        found = open_study(folder.parent)
        if any(point.name == run.path.resolve().name for point in found.points):
            return found
    raise NotRecordedError(
        f"run '{run.name}' is no point of a study; make one with `analyzer study --depths 8,20,56`"
    )


def shown_points(study: "Study") -> list[Path]:
    """Return the runs that stand for a study: all seeds of its deepest finished networks.

    Of those with and without shortcuts, where both are there; of other arguments the first values.

    Raises:
        NotRecordedError: If no point is finished.
    """
    finished = [point for point in study.points if point.status == "finished"]
    if not finished:
        raise NotRecordedError(
            f"no point of study '{study.path.name}' is finished; run it with `analyzer study "
            f"--study {study.path}`"
        )
    deepest = max(_number(point.arguments.get("depth")) for point in finished)
    chosen = [p for p in finished if _number(p.arguments.get("depth")) == deepest]
    for name in study.axes:
        if name not in ("depth", "seed", "shortcuts"):
            first = chosen[0].arguments.get(name)
            chosen = [point for point in chosen if point.arguments.get(name) == first]
    kinds = dict.fromkeys(point.arguments.get("shortcuts") for point in chosen)
    kept = [kind for kind in ("on", "off") if kind in kinds] or list(kinds)[:2]
    return [point.path for point in chosen if point.arguments.get("shortcuts") in kept]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


class Study:
    """A study: what was planned, and what has come of it by now.

    Args:
        path: Its folder.

    Attributes:
        target: ``zoo:FAMILY``, a model file or a script.
        axes: What varies, with its values.
        is_script: Whether the target trains by itself.

    Raises:
        RunNotFoundError: If the folder holds no plan.
        SchemaError: If the plan is damaged or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not is_study(path):
            raise RunNotFoundError(
                f"no study at '{path}': expected a folder with {PLAN}; `analyzer study --study "
                f"{path} --depths 8,20` makes one"
            )
        self._plan = _checked_plan(path)
        self.target = str(self._plan["target"])
        self.is_script = self._plan.get("is_script") is True
        self.axes: dict[str, list[Any]] = dict(self._plan["axes"])

    def __repr__(self) -> str:
        return f"<Study {self.path.name!r}, {len(self._plan['points'])} points of {self.target}>"

    @property
    def points(self) -> tuple[StudyPoint, ...]:
        """Every point as it stands now, in the order of the plan.

        Raises:
            SchemaError: If the study holds a link.
        """
        refuse_linked(self.path)
        return tuple(
            StudyPoint(
                one["name"],
                one["arguments"],
                one["record"],
                self.path / "runs" / one["name"],
                _ending(self.path / "points" / f"{one['name']}.json"),
            )
            for one in self._plan["points"]
        )

    def run(self, name: str) -> Run:
        """Open the run of a point.

        Raises:
            RunNotFoundError: If there is no such point, or it has no run.
            SchemaError: If the study holds a link, or the run cannot be read.
        """
        refuse_linked(self.path)
        names = [one["name"] for one in self._plan["points"]]
        if name not in names:
            raise RunNotFoundError(
                f"no point {name!r} in study '{self.path}'; expected one of {', '.join(names[:8])}"
            )
        return open_run(self.path / "runs" / name)

    def summary(self) -> "pd.DataFrame":
        """Return one row for each point: its arguments, how it ended, and its numbers.

        Raises:
            NotRecordedError: If no summary was written, or it cannot be read.
        """
        try:
            with open_file(self.path / SUMMARY) as file:
                return frame(file.read())
        except READ_FAILURES as error:
            why = "is not there yet" if isinstance(error, FileNotFoundError) else reason_of(error)
            raise NotRecordedError(
                f"the summary of study '{self.path.name}' {why}; write it with "
                f"`analyzer study --study {self.path}`"
            ) from error


def _checked_plan(folder: Path) -> dict[str, Any]:
    """The plan, its fields of their types: the folder may come from anybody."""
    plan = read_json(folder / PLAN)
    version = plan.get("schema_version")
    if type(version) is int and version > PLAN_VERSION:
        raise SchemaError(
            f"study '{folder}' has schema version {version}; this analyzer reads 1 to "
            f"{PLAN_VERSION}. Upgrade analyzer."
        )
    points = plan.get("points")
    is_whole = (
        version == PLAN_VERSION
        and isinstance(plan.get("target"), str)
        and _is_axes(plan.get("axes"))
        and _is_text(plan["target"])
        and isinstance(points, list)
        and 1 <= len(points) <= MOST_POINTS
        and all(map(_is_point, points))
        and len({one["name"] for one in points}) == len(points)
    )
    if not is_whole:
        raise SchemaError(
            f"study '{folder}' cannot be read: {PLAN} is damaged; expected a target, axes and "
            "points with a name each. Restore the file, or plan the study again elsewhere."
        )
    return plan


def _is_axes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_text(name) and isinstance(some, list) and all(map(_is_scalar, some))
        for name, some in value.items()
    )


def _is_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return _is_text(value)
    return value is None or (isinstance(value, int) and abs(value) <= _MOST_INT)


def _is_text(value: str) -> bool:
    """Whether a text can be kept in a table: not too long, without halves of letters."""
    try:
        return len(value) <= _MOST_TEXT and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def _is_point(one: Any) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(one.get("name"), str)
        and _NAME.fullmatch(one["name"]) is not None
        and isinstance(one.get("arguments"), dict)
        and all(map(_is_text, one["arguments"]))
        and all(map(_is_scalar, one["arguments"].values()))
        and isinstance(one.get("record"), dict)
    )


def _ending(path: Path) -> dict[str, Any]:
    """How a point has ended, without what is of another type."""
    found = read_json(path)
    texts = {k: found[k] for k in ("status", "error") if isinstance(found.get(k), str)}
    numbers = {
        k: found[k]
        for k in ("seconds", "bytes", "exit_code", "deaths")
        if isinstance(found.get(k), int | float) and _is_scalar(found[k])
    }
    if "error" in texts and not _is_text(texts["error"]):
        texts["error"] = texts["error"].encode(errors="replace").decode()[:_MOST_TEXT]
    return texts | numbers


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a small file; empty where there is none, or it is damaged."""
    try:
        if path.is_symlink() or not path.is_file():  # a pipe would never end
            return {}
        LIMITS.check("manifest_mib", path.stat().st_size / 2**20 / 16, "a sixteenth of it takes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as a file that appears whole."""
    text = json.dumps(value, indent=1, ensure_ascii=True, default=str) + "\n"
    replace_file(path, lambda hidden: hidden.write_text(text, encoding="utf-8"))

"""Finds runs and reads what they say of themselves: names, folders, and ``run.json``."""

import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from analyzer.errors import (
    AnalyzerError,
    RunExistsError,
    RunNotFoundError,
    SchemaError,
    TooLargeError,
    TooMuchError,
)
from analyzer.launch import RANKS, create_once, url_of
from analyzer.storage.limits import LIMITS, LISTED, stricter
from analyzer.storage.notes import NO_NOTES, Notes, read_notes
from analyzer.storage.parts import Part, listing, replace_file
from analyzer.storage.remote import local
from analyzer.storage.run_json import age_seconds, losses, read_manifest, status_of
from analyzer.storage.selection import nearest
from analyzer.texts import escaped, shown_name

__all__ = [
    "RunSummary",
    "claim_folder",
    "make_folder",
    "refuse_links",
    "resolve_run",
    "resolve_runs",
    "runs_in",
    "write_manifest",
]

# What a list shows of a manifest; the rest of it is not worth keeping.
_MOST_TOLD = 1_000
_SHOWN = ("status", "heartbeat", "created", "steps", "num_layers", "num_joins", "last_loss")
_MOST_LOGGED = 32
# What tells which runs belong together.
_TOLD = ("argv", "seed", "twin", "twin_of", "skip_scale")


@dataclass(frozen=True)
class RunSummary:
    """One run as a list shows it.

    Args:
        status: running, finished, failed, interrupted, crashed or unknown; ``broken`` where it
            cannot be read.
        steps: Recorded steps; here as below, None where it is not known.
        loss: Loss of the last recorded step; NaN where it was NaN.
        created: When it began, as an ISO time.
        age: Seconds since it began.
        problem: Why it cannot be read; None for a run that can.
        incomplete: What it lacks of what was recorded, in sentences.
        told: Of its manifest what tells which runs belong together: ``argv``, ``seed``, names of
            its ``twin`` and of the run ``twin_of`` it is, ``skip_scale``.
        logged: Last value of each number that its training logged.
        notes: What the owner of its folder says of it.
    """

    name: str
    path: Path
    status: str
    steps: int | None = None
    layers: int | None = None
    joins: int | None = None
    loss: float | None = None
    created: str | None = None
    age: float | None = None
    problem: str | None = None
    incomplete: tuple[str, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict, compare=False)
    logged: Mapping[str, float] = field(default_factory=dict, compare=False)
    notes: Notes = NO_NOTES

    def completed(self, open_run: Callable[[Path], Any]) -> "RunSummary":
        """Return the summary with what its manifest does not say read from the tables.

        A run that is running or crashed has no counts in its manifest. One that turns out to be
        damaged is ``broken``.
        """
        if self.problem is not None or None not in (self.steps, self.layers, self.joins, self.loss):
            return self
        try:
            with stricter(**LISTED):
                run = open_run(self.path)
                recorded, loss = run.recorded_steps(), self.loss
                if loss is None and len(recorded):
                    loss = run.read("steps", "loss", steps=int(recorded[-1]))["loss"][0].as_py()
                layers, joins = (run.static_rows(name).num_rows for name in ("layers", "joins"))
            return replace(
                self,
                steps=len(recorded) if self.steps is None else self.steps,
                layers=layers if self.layers is None else self.layers,
                joins=joins if self.joins is None else self.joins,
                loss=loss,
            )
        except TooMuchError:  # it can be read, but not for a list
            return self
        except (AnalyzerError, OSError, ValueError) as error:
            return replace(self, status="broken", problem=str(error))


def runs_in(folder: str | Path) -> list[RunSummary]:
    """Return the runs directly in a folder, the newest first.

    Only ``run.json`` and file names are read, about 0.2 ms a run, and a manifest only again when
    it has changed. A run that cannot be read is in the list with its reason; a folder without
    ``run.json`` is not a run. Links that lead out of the folder are not
    followed; a folder that does not exist has no runs.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    inside = [e.path for e in entries if not e.is_symlink() or _stays_inside(e, folder)]
    runs = [_summary(Path(path)) for path in inside if os.path.lexists(f"{path}/run.json")]
    return sorted(runs, key=lambda run: (run.created or "", run.name), reverse=True)


def _stays_inside(entry: os.DirEntry[str], folder: str | Path) -> bool:
    return Path(folder).resolve() in Path(entry.path).resolve().parents


def _summary(path: Path) -> RunSummary:
    try:
        # As text: to join paths takes longer than to ask the disk, and lists have thousands.
        found = os.lstat(f"{path}/run.json")
        ranks = f"{path}/{RANKS}"
        changed = os.stat(ranks).st_mtime_ns if os.path.isdir(ranks) else 0
        manifest = _shown(path, found.st_ino, found.st_mtime_ns, found.st_size, changed)
    except (AnalyzerError, OSError) as error:
        return RunSummary(shown_name(path), path, "broken", problem=str(error))
    age = age_seconds(manifest["created"])
    return RunSummary(
        name=shown_name(path),
        path=path,
        status=status_of(manifest),
        steps=_steps(path, manifest),
        layers=_count(manifest.get("num_layers")),
        joins=_count(manifest.get("num_joins")),
        loss=None if manifest["last_loss"] is None else float(manifest["last_loss"]),
        created=None if age is None else manifest["created"],
        age=age,
        incomplete=manifest["incomplete"],
        told={name: manifest[name] for name in _TOLD},
        logged=manifest["logged"],
        notes=read_notes(path),
    )


# More than a folder has as a rule: one run too many, and each listing would read all again.
@lru_cache(maxsize=32_768)
def _shown(
    path: Path, _inode: int, _changed: int, _size: int, _ranks_changed: int
) -> Mapping[str, Any]:
    """What a list shows of a manifest, which is read again when its file is another."""
    manifest = read_manifest(path)
    shown = {name: manifest.get(name) for name in (*_SHOWN, *_TOLD)}
    logged = (manifest.get("last_logged") or {}).items()
    some = {str(name)[:_MOST_TOLD]: float(x) for name, x in logged if x is not None}
    named = dict(itertools.islice(some.items(), _MOST_LOGGED))
    return shown | {"incomplete": tuple(losses(manifest)), "logged": named}


def _steps(path: Path, manifest: Mapping[str, Any]) -> int | None:
    """Steps as the manifest has them; the files know better where a run is not at its end."""
    if manifest.get("status") != "running":
        return _count(manifest.get("steps"))
    try:
        parts = [*filter(None, map(Part.from_name, listing(path / "steps")))]
    except TooLargeError:
        return None
    return max((part.last + 1 for part in parts), default=0)


def _count(value: int | None) -> int | None:
    return value if value is not None and value >= 0 else None


def resolve_run(name: str | Path, runs_dir: str | Path | None = None) -> Path:
    """Return the folder of a run.

    Args:
        name: A folder or a URL; else a name under ``runs_dir``; else ``latest``, the run begun
            last.
        runs_dir: Folder of runs; None for ``$ANALYZER_RUNS``, else ``runs``.

    Raises:
        RunNotFoundError: With what was looked for, where, and the nearest names.
    """
    if url_of(name) is not None:
        return local(name)
    folder = local(runs_dir or os.environ.get("ANALYZER_RUNS") or "runs")
    for path in (Path(name), folder / name):
        if str(name) and _is_run(path):
            return path
    known = runs_in(folder)
    for run in known:
        if run.name == str(name):  # as lists show it, bytes that are not UTF-8 escaped
            return run.path
    if str(name) == "latest":
        readable = [run for run in known if run.problem is None]
        if readable:
            return readable[0].path
        raise RunNotFoundError(
            f"no latest run: '{folder}' holds no run; record one with `analyzer record train.py`, "
            "or name the folder of runs with --runs-dir"
        )
    if len(str(name)) > _MOST_TOLD:
        raise RunNotFoundError(f"no run '{str(name)[:_MOST_TOLD]}…': the name is too long for one")
    raise RunNotFoundError(
        f"no run '{name}': neither that folder nor '{folder / name}' holds a run.json; "
        f"{_hint(str(name), [*(run.name for run in known), 'latest'], folder)}"
    )


def resolve_runs(names: str, runs_dir: str | Path | None = None) -> list[Path]:
    """Return the folders of a run, or of several whose names are joined by commas.

    Raises:
        RunNotFoundError: As `resolve_run`.
    """
    try:
        return [resolve_run(names, runs_dir)]  # the name of one may hold a comma
    except RunNotFoundError:
        if "," not in names:
            raise
    return [resolve_run(name, runs_dir) for name in names.split(",") if name]


def refuse_links(run: Path, most: int | None = None, what: str = "run") -> None:
    """Refuse a run that borrows files by links, which may lead anywhere on this machine.

    Args:
        run: Folder of the run.
        most: Files in it that are looked at; None for ten folders as full as one may be.
        what: What the folder is, where it is none.

    Raises:
        SchemaError: If it holds a link, or more files than that.
    """
    waiting, left = [run], 10 * LIMITS.files if most is None else most
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                left -= 1
                if entry.is_symlink() or left < 0:
                    held = f"a link, '{escaped(entry.name, 'line')[:120]}'" if left >= 0 else "many"
                    raise SchemaError(
                        f"{what} '{shown_name(run)}' holds {held}; expected files of its own. "
                        + _INSTEAD[left >= 0]
                    )
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


_INSTEAD = (
    "If you trust it, set files in [tool.analyzer.limits].",
    "Replace the link by what it leads to.",
)


def _is_run(path: Path) -> bool:
    try:
        return (path / "run.json").is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def _hint(name: str, known: list[str], folder: Path) -> str:
    """Which of the known names, the last of which stands for the newest, are nearest to one."""
    if len(known) < 2:
        return f"'{folder}' holds no run: record one with `analyzer record train.py`"
    return (
        f"of {len(known) - 1} runs in '{folder}' {nearest(name, known)}; `analyzer runs` lists all"
    )


def write_manifest(path: Path, fields: Mapping[str, Any]) -> None:
    """Write ``run.json``, or the file of a rank, with the time of now as its heartbeat."""
    text = _text(fields)
    replace_file(path, lambda hidden: hidden.write_text(text, encoding="utf-8"))


def make_folder(folder: Path) -> None:
    """Make a run folder; an empty one will do.

    Raises:
        RunExistsError: If it holds something.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir() or any(folder.iterdir()):
            raise _taken(folder) from None


def claim_folder(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write the first ``run.json``: of several processes at the same instant, exactly one can.

    Raises:
        RunExistsError: If the folder is another's by now.
    """
    if not create_once(folder / "run.json", _text(fields)):
        raise _taken(folder)


def _taken(folder: Path) -> RunExistsError:
    return RunExistsError(
        f"run folder '{folder}' exists and holds something; a run is never overwritten: "
        "name another folder, or resume that run with --resume"
    )


def _text(fields: Mapping[str, Any]) -> str:
    beating = {**fields, "heartbeat": datetime.now(UTC).isoformat()}
    return json.dumps(beating, indent=1, ensure_ascii=True, default=str) + "\n"

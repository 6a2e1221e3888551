"""Finds runs and reads what they say of themselves: names, folders, and ``run.json``."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from analyzer.errors import AnalyzerError, RunExistsError, RunNotFoundError, SchemaError
from analyzer.launch import RANKS, create_once
from analyzer.storage.parts import Part, listing, replace_file
from analyzer.storage.schema import READABLE_VERSIONS
from analyzer.storage.selection import nearest

__all__ = [
    "CRASHED_AFTER_SECONDS",
    "RunSummary",
    "age_seconds",
    "check_version",
    "claim_folder",
    "losses",
    "make_folder",
    "read_manifest",
    "resolve_run",
    "runs_in",
    "status_of",
    "write_manifest",
]

CRASHED_AFTER_SECONDS = 30.0
_STATUSES = ("running", "finished", "failed", "interrupted")
_MOST_BYTES = 64 * 2**20
_MOST_NAMED = 3
_RANK = re.compile(r"a(\d{1,5})\.r(\d{1,5})\.json")
# What a reader gets of what each rank says of itself.
_OF_RANK = (
    *("rank", "attempt", "status", "error", "heartbeat", "steps", "lost_steps", "storage_error"),
    "elements",
)
# What a list shows of a manifest; the rest of it is not worth keeping.
_SHOWN = (
    *("status", "heartbeat", "created", "steps", "num_layers", "num_joins", "last_loss"),
    *("storage_error", "lost_steps", "damaged", "ranks"),
)


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

    def completed(self, open_run: Callable[[Path], Any]) -> "RunSummary":
        """Return the summary with what its manifest does not say read from the tables.

        A run that is running or crashed has no counts in its manifest. One that turns out to be
        damaged is ``broken``.
        """
        if self.problem is not None or None not in (self.steps, self.layers, self.joins, self.loss):
            return self
        try:
            run = open_run(self.path)
            recorded, loss = run.recorded_steps(), self.loss
            if loss is None and len(recorded):
                loss = run.read("steps", "loss", steps=int(recorded[-1]))["loss"][0].as_py()
            return replace(
                self,
                steps=len(recorded) if self.steps is None else self.steps,
                layers=len(run.layers) if self.layers is None else self.layers,
                joins=len(run.joins) if self.joins is None else self.joins,
                loss=loss,
            )
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
    inside = [Path(e.path) for e in entries if not e.is_symlink() or _stays_inside(e, folder)]
    runs = [_summary(path) for path in inside if os.path.lexists(path / "run.json")]
    return sorted(runs, key=lambda run: (run.created or "", run.name), reverse=True)


def _stays_inside(entry: os.DirEntry[str], folder: str | Path) -> bool:
    return Path(folder).resolve() in Path(entry.path).resolve().parents


def _summary(path: Path) -> RunSummary:
    try:
        found = os.lstat(path / "run.json")
        ranks = path / RANKS
        changed = ranks.stat().st_mtime_ns if ranks.is_dir() else 0
        manifest = _shown(path, found.st_ino, found.st_mtime_ns, found.st_size, changed)
    except (AnalyzerError, OSError) as error:
        return RunSummary(path.name, path, "broken", problem=str(error))
    created = manifest.get("created")
    return RunSummary(
        name=path.name,
        path=path,
        status=status_of(manifest),
        steps=_steps(path, manifest),
        layers=_count(manifest.get("num_layers")),
        joins=_count(manifest.get("num_joins")),
        loss=_loss(manifest.get("last_loss")),
        created=created if isinstance(created, str) else None,
        age=age_seconds(created),
        incomplete=tuple(losses(manifest)),
    )


@lru_cache(maxsize=4096)
def _shown(
    path: Path, _inode: int, _changed: int, _size: int, _ranks_changed: int
) -> Mapping[str, Any]:
    """What a list shows of a manifest, which is read again when its file is another."""
    manifest = read_manifest(path)
    return {name: manifest.get(name) for name in _SHOWN}


def _steps(path: Path, manifest: Mapping[str, Any]) -> int | None:
    """Steps as the manifest has them; the files know better where a run is not at its end."""
    if manifest.get("status") != "running":
        return _count(manifest.get("steps"))
    parts = filter(None, map(Part.from_name, listing(path / "steps")))
    return max((part.last + 1 for part in parts), default=0)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _loss(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def resolve_run(name: str | Path, runs_dir: str | Path | None = None) -> Path:
    """Return the folder of a run.

    Args:
        name: A folder; else a name under ``runs_dir``; else ``latest``, the run begun last.
        runs_dir: Folder of runs; None for ``$ANALYZER_RUNS``, else ``runs``.

    Raises:
        RunNotFoundError: With what was looked for, where, and the nearest names.
    """
    folder = Path(runs_dir or os.environ.get("ANALYZER_RUNS") or "runs")
    for path in (Path(name), folder / name):
        if str(name) and (path / "run.json").is_file():
            return path
    known = runs_in(folder)
    if str(name) == "latest":
        readable = [run for run in known if run.problem is None]
        if readable:
            return readable[0].path
        raise RunNotFoundError(
            f"no latest run: '{folder}' holds no run; record one with `analyzer record train.py`, "
            "or name the folder of runs with --runs-dir"
        )
    raise RunNotFoundError(
        f"no run '{name}': neither that folder nor '{folder / name}' holds a run.json; "
        f"{_hint(str(name), [run.name for run in known], folder)}"
    )


def _hint(name: str, known: list[str], folder: Path) -> str:
    if not known:
        return f"'{folder}' holds no run: record one with `analyzer record train.py`"
    return f"of {len(known)} runs in '{folder}' {nearest(name, known)}; `analyzer runs` lists all"


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


def read_manifest(folder: Path, *, with_ranks: bool = True) -> dict[str, Any]:
    """Return the manifest of a run.

    Every value in it is data: no path that it names is ever opened.

    Args:
        folder: Folder of the run.
        with_ranks: Whether what other ranks say of themselves is added.

    Raises:
        RunNotFoundError: If the folder holds no run.
        SchemaError: If ``run.json`` is damaged, foreign, or of a version that cannot be read.
    """
    path = folder / "run.json"
    if not folder.is_dir():
        raise RunNotFoundError(
            f"no run at '{folder}': the folder does not exist; `analyzer runs` lists the runs"
        )
    if path.is_symlink() or not path.is_file():
        raise RunNotFoundError(
            f"no run at '{folder}': expected a file run.json in it; "
            "`analyzer record` makes a run folder"
        )
    manifest = _parsed(folder, path)
    check_version(folder, manifest.get("schema_version"))
    return _with_ranks(folder, manifest) if with_ranks else manifest


def _with_ranks(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the field ``ranks``, and what was written and what went wrong on the others."""
    found = []
    for name in listing(folder / RANKS):
        if match := _RANK.fullmatch(name):
            own = _read_rank(folder / RANKS / name)
            found.append({**own, "attempt": int(match[1]), "rank": int(match[2])})
    if not found:
        return manifest
    found.sort(key=lambda one: (one["attempt"], one["rank"]))
    flushes: dict[str, dict[str, Any]] = {}
    for one in (*found, manifest):
        written = one.get("flushes")
        for table, counts in written.items() if isinstance(written, dict) else ():
            flushes.setdefault(table, {}).update(counts if isinstance(counts, dict) else {})
    manifest["flushes"] = flushes
    newest = [one for one in found if one["attempt"] == found[-1]["attempt"]]
    notes = manifest.get("not_recorded")
    notes = list(notes) if isinstance(notes, list) else []
    for one in newest:
        said = one.get("not_recorded")
        said = said if isinstance(said, list) else []
        notes += [f"rank {one['rank']}: {text}" for text in said if text not in notes]
    if notes:
        manifest["not_recorded"] = notes
    manifest["ranks"] = [{name: one.get(name) for name in _OF_RANK} for one in found]
    failed = next((one for one in newest if status_of(one) in ("failed", "crashed")), None)
    if failed is not None and manifest.get("status") in ("finished", "interrupted"):
        manifest["status"] = "failed"
        manifest["error"] = f"rank {failed['rank']}: {failed.get('error') or 'it was killed'}"
    return manifest


def _read_rank(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.parent, path)
    except SchemaError:
        return {}


def _parsed(folder: Path, path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("larger than 64 MiB")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError(f"a JSON {type(manifest).__name__}, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"run '{folder}' cannot be read: {path.name} is damaged ({error}); "
            "restore the file, or record the run again"
        ) from error
    return manifest


def check_version(folder: Path | str, found: Any) -> None:
    """Raise SchemaError for a schema version that this analyzer does not read."""
    if type(found) is int and found in READABLE_VERSIONS:
        return
    first, last = READABLE_VERSIONS.start, READABLE_VERSIONS.stop - 1
    if type(found) is int and found > last:
        remedy = "Upgrade analyzer, or record the run again."
    else:
        remedy = "It was not written by this program, or it is damaged; record the run again."
    raise SchemaError(
        f"run '{folder}' has schema version {found!r}; this analyzer reads {first} to {last}. "
        f"{remedy}"
    )


def age_seconds(moment: Any) -> float | None:
    """Return the seconds since an ISO time; None for anything else."""
    if not isinstance(moment, str):
        return None
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds()


def status_of(manifest: Mapping[str, Any]) -> str:
    """Return running, finished, failed, interrupted or unknown; crashed where the heart stopped."""
    status = manifest.get("status")
    if status == "running":
        age = age_seconds(manifest.get("heartbeat"))
        return "crashed" if age is None or age > CRASHED_AFTER_SECONDS else "running"
    return status if isinstance(status, str) and status in _STATUSES else "unknown"


def losses(manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each kind of loss that a manifest tells of; none for a whole run."""
    found = []
    steps, lost = _positive(manifest.get("steps")), _positive(manifest.get("lost_steps"))
    reason = manifest.get("storage_error")
    if lost:
        why = f": {reason}" if reason else ""
        found.append(f"{steps} of {steps + lost} steps are on disk, {lost} were lost{why}")
    elif reason:
        found.append(f"not all was written: {reason}")
    damaged = manifest.get("damaged")
    if isinstance(damaged, list) and damaged:
        named = "; ".join(map(str, damaged[:_MOST_NAMED]))
        more = f"; and {len(damaged) - _MOST_NAMED} more" if len(damaged) > _MOST_NAMED else ""
        count = "1 file is" if len(damaged) == 1 else f"{len(damaged)} files are"
        found.append(f"{count} damaged or missing: {named}{more}")
    ranks = manifest.get("ranks")
    for rank in ranks if isinstance(ranks, list) else ():
        number, attempt = rank.get("rank"), rank.get("attempt")
        place = f"rank {number}, attempt {attempt}" if attempt else f"rank {number}"
        found += [f"{place}: {text}" for text in losses(rank) if number or attempt]
    return found


def _positive(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0

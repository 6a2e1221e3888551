"""``run.json``: written whole, read with suspicion, since a run folder may come from anywhere."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analyzer.errors import RunNotFoundError, SchemaError
from analyzer.storage.parts import replace_file
from analyzer.storage.schema import READABLE_VERSIONS

__all__ = [
    "CRASHED_AFTER_SECONDS",
    "age_seconds",
    "check_version",
    "read_manifest",
    "status_of",
    "write_manifest",
]

CRASHED_AFTER_SECONDS = 30.0
_STATUSES = ("running", "finished", "failed", "interrupted")
_MOST_BYTES = 64 * 2**20


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write ``run.json`` with the time of now as its heartbeat.

    Raises:
        OSError: If the disk refuses.
    """
    beating = {**fields, "heartbeat": datetime.now(UTC).isoformat()}
    text = json.dumps(beating, indent=1, ensure_ascii=True, default=str)
    replace_file(
        folder / "run.json", lambda hidden: hidden.write_text(text + "\n", encoding="utf-8")
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run.

    Every value in it is data: no path that it names is ever opened.

    Raises:
        RunNotFoundError: If there is no run at this place.
        SchemaError: If ``run.json`` is damaged, foreign, or of a version that cannot be read.
    """
    path = folder / "run.json"
    if not folder.is_dir():
        raise RunNotFoundError(
            f"no run at '{folder}': there is no such folder; "
            "`analyzer runs` lists the runs that there are"
        )
    if path.is_symlink() or not path.is_file():
        raise RunNotFoundError(
            f"no run at '{folder}': expected a file run.json in it; "
            "`analyzer record` makes a run folder"
        )
    manifest = _parsed(folder, path)
    check_version(folder, manifest.get("schema_version"))
    return manifest


def _parsed(folder: Path, path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("larger than 64 MiB")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError(f"a JSON {type(manifest).__name__}, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"run '{folder}' cannot be read: run.json is damaged ({error}); "
            "restore the file, or record the run again"
        ) from error
    return manifest


def check_version(folder: Path | str, found: Any) -> None:
    """Refuse a schema version that this analyzer does not read.

    Raises:
        SchemaError: With the versions that it reads.
    """
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
    """Return running, finished, failed or interrupted; crashed where the heart of a run stopped.

    Returns:
        One of those words; ``unknown`` for any other status.
    """
    status = manifest.get("status")
    if status == "running":
        age = age_seconds(manifest.get("heartbeat"))
        return "crashed" if age is None or age > CRASHED_AFTER_SECONDS else "running"
    return status if isinstance(status, str) and status in _STATUSES else "unknown"

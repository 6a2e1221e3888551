"""``run.json`` of a run that is being recorded: claimed once, beating, room kept for its end."""

import contextlib
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analyzer.errors import SchemaError
from analyzer.storage.catalog import claim_folder, make_folder, read_manifest, write_manifest
from analyzer.storage.schema import SCHEMA_VERSION

__all__ = ["LiveManifest"]

_HEARTBEAT_SECONDS = 5.0
_UNFINISHED_SECONDS = 60.0
# Kept on disk for the last words: a full disk then still takes a `run.json` and its successor.
_RESERVE_BYTES = 64 * 2**10


class LiveManifest:
    """The manifest of a run while it is recorded; only rank 0 writes it.

    Args:
        folder: Folder of the run.
        fields: Its first content.
        rank: Number of the process.
        attempt: Number of its restart.

    Attributes:
        fields: Its content; a change is written at the next beat after `touch`.
        steps_before: What it said in an earlier attempt.
        lost_before: Likewise, of steps that were lost.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Any], rank: int, attempt: int) -> None:
        self.fields: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **fields}
        self.steps_before = self.lost_before = 0
        self._folder, self._rank, self._attempt = folder, rank, attempt
        self._reserve = folder / ".reserve.tmp"
        self._is_made = False
        self._last_beat = time.monotonic()

    def begin(self) -> None:
        """Take the folder and write the first ``run.json``.

        Raises:
            RunExistsError: If the folder is somebody else's.
        """
        self.fields["status"] = "running"
        if self._rank == 0 and self._attempt == 0:
            self.fields.setdefault("created", datetime.now(UTC).isoformat())
            if not self._is_made:
                make_folder(self._folder)
                self._is_made = True
            claim_folder(self._folder, self.fields)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._rank == 0:
                self._resume()
        if self._rank == 0:
            self._keep_reserve()

    def _resume(self) -> None:
        """Keep the fields of the earlier attempts."""
        path = self._folder / "run.json"
        if path.exists():
            fresh = {"error": None, "storage_error": None}
            try:
                self.fields = {**read_manifest(self._folder), **fresh, **self.fields}
                self.steps_before = int(self.fields.get("steps") or 0)
                self.lost_before = int(self.fields.get("lost_steps") or 0)
            except SchemaError as error:
                path.rename(self._folder / "run.json.damaged")
                self.fields["damaged"] = [f"run.json: {error}"]
            # Those of other ranks are young.
            for hidden in self._folder.rglob(".*.tmp"):
                if time.time() - hidden.stat().st_mtime > _UNFINISHED_SECONDS:
                    hidden.unlink(missing_ok=True)
        self.fields.setdefault("created", datetime.now(UTC).isoformat())
        write_manifest(self._folder, self.fields)

    def touch(self) -> None:
        """Let the next beat be due at once."""
        self._last_beat = -math.inf

    def is_due(self) -> bool:
        """Whether it is time to write it again."""
        return self._rank == 0 and time.monotonic() - self._last_beat >= _HEARTBEAT_SECONDS

    def write(self) -> None:
        """Write it with the heartbeat of now, on a full disk in the room that was kept for it."""
        self._last_beat = time.monotonic()
        try:
            write_manifest(self._folder, self.fields)
        except OSError:
            self._reserve.unlink(missing_ok=True)
            write_manifest(self._folder, self.fields)
            self._keep_reserve()

    def end(self) -> None:
        """Give back the room."""
        with contextlib.suppress(OSError):
            self._reserve.unlink()

    def _keep_reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(bytes(_RESERVE_BYTES))

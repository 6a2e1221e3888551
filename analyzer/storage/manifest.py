"""``run.json`` of a run that is being recorded: claimed once, beating, room kept for its end."""

import contextlib
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analyzer.errors import SchemaError
from analyzer.launch import Rank
from analyzer.storage.catalog import claim_folder, make_folder, read_manifest, write_manifest
from analyzer.storage.schema import SCHEMA_VERSION

__all__ = ["LiveManifest"]

_HEARTBEAT_SECONDS = 5.0
_UNFINISHED_SECONDS = 60.0
# Kept on disk for the last words: a full disk then still takes a `run.json` and its successor.
_RESERVE_BYTES = 64 * 2**10


class LiveManifest:
    """The manifest of a run while it is recorded.

    Of several ranks one writes ``run.json``, and each a file of its own under ``ranks/``.

    Args:
        folder: Folder of the run.
        fields: Its first content.
        rank: What this process is in the run.

    Attributes:
        fields: Its content; a change is written at the next beat after `touch`.
        steps_before: What it said in an earlier attempt.
        lost_before: Likewise, of steps that were lost.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Any], rank: Rank) -> None:
        self.fields: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **fields}
        if rank.attempt:
            self.fields["attempt"] = rank.attempt
        if rank.is_one_of_many:
            self.fields["world_size"] = rank.world_size
        self.steps_before = self.lost_before = 0
        self._folder, self._rank = folder, rank
        self._reserve = folder / ".reserve.tmp"
        self._is_made = self._has_led = False
        self._last_beat = time.monotonic()

    @property
    def is_written(self) -> bool:
        """Whether this process writes one at all."""
        return self._rank.number == 0 or self._rank.is_one_of_many

    def begin(self) -> None:
        """Take the folder and write the first ``run.json``.

        Raises:
            RunExistsError: If the folder is somebody else's.
        """
        rank = self._rank
        self.fields["status"] = "running"
        self.fields.setdefault("created", datetime.now(UTC).isoformat())
        if rank.number == 0 and rank.attempt == 0 and not rank.is_one_of_many:
            if not self._is_made:
                make_folder(self._folder)
                self._is_made = True
            claim_folder(self._folder, self.fields)
            self._has_led = True
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write_own()
            if rank.has_led:
                self._lead()
        if self._has_led:
            self._keep_reserve()

    def _lead(self) -> None:
        """Write ``run.json`` from now on, if that is for this rank to do."""
        if not self._has_led and self._rank.leads():
            self._resume()
            self._has_led = True

    def _write_own(self) -> None:
        if self._rank.is_one_of_many:
            write_manifest(self._rank.file("json"), self.fields)

    def _resume(self) -> None:
        """Keep the fields of the earlier attempts."""
        path = self._folder / "run.json"
        if path.exists():
            fresh = {"error": None, "storage_error": None}
            try:
                before = read_manifest(self._folder, with_ranks=False)
                began = {"created": before["created"]} if "created" in before else {}
                self.fields = {**before, **fresh, **self.fields, **began}
                self.steps_before = int(self.fields.get("steps") or 0)
                self.lost_before = int(self.fields.get("lost_steps") or 0)
            except SchemaError as error:
                path.rename(self._folder / "run.json.damaged")
                self.fields["damaged"] = [f"run.json: {error}"]
            # Those of other ranks are young.
            for hidden in self._folder.rglob(".*.tmp"):
                if time.time() - hidden.stat().st_mtime > _UNFINISHED_SECONDS:
                    hidden.unlink(missing_ok=True)
        write_manifest(path, self.fields)

    def touch(self) -> None:
        """Let the next beat be due at once."""
        self._last_beat = -math.inf

    def is_due(self) -> bool:
        """Whether it is time to write it again."""
        return self.is_written and time.monotonic() - self._last_beat >= _HEARTBEAT_SECONDS

    def write(self) -> None:
        """Write it with the heartbeat of now, on a full disk in the room that was kept for it."""
        self._last_beat = time.monotonic()
        self._write_own()
        if self._rank.has_led:
            self._lead()
        if not self._has_led:
            return
        path = self._folder / "run.json"
        try:
            write_manifest(path, self.fields)
        except OSError:
            self._reserve.unlink(missing_ok=True)
            write_manifest(path, self.fields)
            self._keep_reserve()

    def end(self) -> None:
        """Give back the room."""
        with contextlib.suppress(OSError):
            self._reserve.unlink()

    def _keep_reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(bytes(_RESERVE_BYTES))

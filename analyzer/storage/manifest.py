"""``run.json`` of a run that is being recorded: claimed once, beating, room kept for its end."""

import contextlib
import math
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import Any, ClassVar

from analyzer.errors import RunExistsError, SchemaError
from analyzer.launch import Rank
from analyzer.storage.arrays import plain
from analyzer.storage.catalog import claim_folder, make_folder, write_manifest
from analyzer.storage.parts import replace_file
from analyzer.storage.run_json import read_manifest, status_of
from analyzer.storage.schema import SCHEMA_VERSION, is_logged

__all__ = ["LiveManifest"]

_HEARTBEAT_SECONDS = 5.0
_UNFINISHED_SECONDS = 60.0
# Kept on disk for the last words: a full disk then still takes a `run.json` and its successor.
_RESERVE_BYTES = 64 * 2**10
_MOST_LOGGED = 32


class _Hold:
    """Holds a run folder while this process records into it; the system ends it with the process.

    A process that was killed a second ago has left a heartbeat, but holds nothing any more.
    """

    _held: ClassVar[dict[Path, tuple[int, int]]] = {}

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / ".hold"

    def take(self, *, is_resumed: bool) -> None:
        """Hold the folder.

        Raises:
            RunExistsError: If another process, or another recorder of this one, holds it.
        """
        pid, descriptor = self._held.get(self._folder, (0, -1))
        is_new = not self._path.exists()
        is_taken = pid == os.getpid()
        if not is_taken:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            is_taken = not _locked(descriptor)
        if is_resumed and not is_taken and is_new:  # recorded where files cannot be held
            with contextlib.suppress(SchemaError):
                is_taken = status_of(read_manifest(self._folder)) == "running"
        if is_taken:
            if pid != os.getpid():
                os.close(descriptor)
                if is_new:
                    self._path.unlink(missing_ok=True)
            raise RunExistsError(
                f"run '{self._folder}' is still being recorded; wait for its end, or end it, "
                "before you resume it"
            )
        self._held[self._folder] = os.getpid(), descriptor

    def leave(self) -> None:
        """Hold it no more."""
        pid, descriptor = self._held.get(self._folder, (0, -1))
        if pid == os.getpid():
            del self._held[self._folder]
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Whether a file is locked for this process by now; True also where no file can be."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        # Not flock: a forked process, such as one that loads data, would hold it too.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


class LiveManifest:
    """The manifest of a run while it is recorded.

    Of several ranks one writes ``run.json``, and each a file of its own under ``ranks/``.

    Args:
        folder: Folder of the run.
        fields: Its first content.
        rank: What this process is in the run.

    Attributes:
        fields: Its content; a change is written at the next beat after `touch`.
        lost_before: Steps that were lost in earlier attempts.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Any], rank: Rank) -> None:
        self.fields: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **fields}
        if rank.attempt:
            self.fields["attempt"] = rank.attempt
        if rank.is_one_of_many:
            self.fields["world_size"] = rank.world_size
        self.lost_before = 0
        self._former: bytes | None = None
        self._hold = _Hold(folder)
        self._own_files: set[str] = set()
        self._folder, self._rank = folder, rank
        self._reserve = folder / ".reserve.tmp"
        self._is_made = self._has_led = False
        self._last_beat = monotonic()

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
            with contextlib.suppress(OSError, RunExistsError):
                self._hold.take(is_resumed=False)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            if rank.has_led and not rank.is_one_of_many:
                self._hold.take(is_resumed=True)
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
            self._former = path.read_bytes()
            fresh = {"error": None, "storage_error": None}
            try:
                before = read_manifest(self._folder, with_ranks=False)
                began = {"created": before["created"]} if "created" in before else {}
                self.fields = {**before, **fresh, **self.fields, **began}
                self.lost_before = int(self.fields.get("lost_steps") or 0)
            except SchemaError as error:
                path.rename(self._folder / "run.json.damaged")
                self.fields["damaged"] = [f"run.json: {error}"]
            # Those of other ranks are young.
            for hidden in self._folder.rglob(".*.tmp"):
                if time() - hidden.stat().st_mtime > _UNFINISHED_SECONDS:
                    hidden.unlink(missing_ok=True)
        write_manifest(path, self.fields)

    def note_step(self, row: Mapping[str, Any]) -> None:
        """Keep what a list of runs shows of a step: its number, loss, and what was logged."""
        self.fields["steps"] = max(int(row["step"]) + 1, self.fields.get("steps") or 0)
        self.fields["last_loss"] = plain(row.get("loss"))
        for name in filter(is_logged, row):
            value, known = plain(row[name]), self.fields.setdefault("last_logged", {})
            if type(value) in (int, float) and (name in known or len(known) < _MOST_LOGGED):
                known[name] = float(value)

    def touch(self) -> None:
        """Let the next beat be due at once."""
        self._last_beat = -math.inf

    def is_due(self) -> bool:
        """Whether it is time to write it again."""
        return self.is_written and monotonic() - self._last_beat >= _HEARTBEAT_SECONDS

    def write(self) -> None:
        """Write it with the heartbeat of now, on a full disk in the room that was kept for it."""
        self._last_beat = monotonic()
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

    def keep_earlier(self, place: str) -> None:
        """Give a probe or checkpoint of an earlier attempt another name beside the new one."""
        path = self._folder / place
        is_table = path.parent == self._folder
        if not self._rank.attempt or is_table or place in self._own_files:
            return
        self._own_files.add(place)
        kept = path.with_name(f"attempt-{self._rank.attempt - 1}-{path.name}")
        if path.exists() and not kept.exists():
            try:
                os.link(path, kept)
            except OSError:
                shutil.copyfile(path, kept)

    def withdraw(self) -> None:
        """Put back what it said before this attempt, which has nothing to add."""
        if self._former is not None:
            former = self._former
            replace_file(self._folder / "run.json", lambda hidden: hidden.write_bytes(former))
        self.end()

    def end(self) -> None:
        """Give back the room, and the folder."""
        with contextlib.suppress(OSError):
            self._reserve.unlink()
        self._hold.leave()

    def _keep_reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(bytes(_RESERVE_BYTES))

"""Writes a run while it is recorded: a bounded queue, one background thread, whole files only."""

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from analyzer.errors import RunExistsError
from analyzer.launch import Rank, rank_in
from analyzer.storage.folder import RunFolder
from analyzer.storage.forking import Unforked
from analyzer.storage.parts import reason_of, replace_file, write_table
from analyzer.storage.rows import Block, StepRecord, probe_table
from analyzer.storage.uploading import ended_in

__all__ = ["Block", "RunWriter", "StepRecord"]

# The thread looks at the queue this often instead of being woken by each step: a wake-up costs
# the training a switch of threads. Only this many waiting steps wake it: with more of them, their
# objects would let garbage be collected.
_POLL_SECONDS = 0.05
_MANY_STEPS = 16
# So long the training waits in all for a thread that stands still, and for its last words.
_PATIENCE_SECONDS = 8.0
_LAST_SECONDS = 2.0
# A shorter stop is the ordinary work of a busy disk.
_SHORT_SECONDS = 0.5


def _print_warning(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


class RunWriter:
    """One process's writer of one run.

    ``add`` and the ``write_`` methods return at once; a thread makes the rows and writes them. When
    the disk refuses, rows wait for a while; when it refuses for good, the training continues: one
    warning, later rows are dropped, and what was written stays readable. When it does not answer,
    the training waits ten seconds in all, and steps are dropped until it does. A forked child has
    no thread, and writes nothing.

    Args:
        path: Folder of the run; must not hold anything yet, unless ``rank`` or ``attempt`` is > 0,
            or this process has joined it.
        manifest: First content of ``run.json``.
        rank: Number of this process, unless it has joined the folder as one of several.
        attempt: Number of this restart; likewise.
        flush_seconds: Rows are written at this age.
        flush_steps: Rows are written when there are those of that many steps.
        queue_steps: Most steps that wait for the thread; ``add`` waits when there are more.
        warn: Receives the one line about a failure.

    Attributes:
        path: Folder of the run.
        failed: Why steps were lost, or nothing more is written; None while all is well.
        rank: What this process is in the run.

    Raises:
        RunExistsError: If the folder holds something already.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        *,
        rank: int | Rank = 0,
        attempt: int = 0,
        flush_seconds: float = 1.5,
        flush_steps: int = 200,
        queue_steps: int = 512,
        warn: Callable[[str], None] = _print_warning,
    ) -> None:
        self.path = Path(path)
        self.failed: str | None = None
        self._warn = warn
        self._has_warned = False
        self._complaint: BaseException | None = None
        self._most_waiting = queue_steps
        flush = (flush_seconds, flush_steps)
        self.rank = rank if isinstance(rank, Rank) else rank_in(self.path, rank, attempt)
        self._folder = RunFolder(self.path, manifest, self.rank, flush, self._warn_once)
        self._waiting: deque[Callable[[], object]] = deque()
        self._unforked = Unforked()
        self._pid = os.getpid()
        self._wake, self._room, self._begun = (threading.Event() for _ in range(3))
        self._is_closed = self._is_ending = self._has_failed = self._withdraws = False
        self._num_added = self._num_dropped = self._num_taken = 0
        # Seconds that the training still waits for a thread that stands still, and where it stood
        # when they were over.
        self._patience = _PATIENCE_SECONDS
        self._stood_at: tuple[int, ...] | None = None
        self._last_fields: dict[str, Any] = {}
        self._taken_by_another: RunExistsError | None = None
        self._thread = threading.Thread(target=self._run, name="analyzer-writer", daemon=True)
        self._thread.start()
        if not self._begun.wait(_PATIENCE_SECONDS):
            self._patience = 0.0
        if self._taken_by_another is not None:
            raise self._taken_by_another

    @property
    def written_steps(self) -> int:
        """Steps that are whole on disk."""
        return self._folder.written_steps

    @property
    def lost_steps(self) -> int:
        """Steps that were recorded and will not be on disk; after the end, all that are not."""
        if self._is_closed:
            return self._num_added - self.written_steps
        return self._num_dropped

    def add(self, make: Callable[[], StepRecord]) -> None:
        """Queue one step; ``make`` runs on the writer's thread, where it may wait for a device."""
        if self._takes_nothing:
            return
        self._num_added += 1
        if self._has_failed or not self._has_room():
            self._num_dropped += 1
            return
        self._waiting.append(make)
        if len(self._waiting) % _MANY_STEPS == 0:
            self._wake.set()

    def write_layers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of layers; it replaces the one before."""
        self._put(lambda: self._folder.write_static("layers", rows))

    def write_parameters(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of parameters; it replaces the one before."""
        self._put(lambda: self._folder.write_static("parameters", rows))

    def write_joins(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of joins; it replaces the one before."""
        self._put(lambda: self._folder.write_static("joins", rows))

    def write_edges(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of the data flow between layers; it replaces the one before."""
        self._put(lambda: self._folder.write_static("edges", rows))

    def write_probe(
        self,
        name: str,
        step: int,
        columns: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Queue the table of one probe at one step: sequences of equal length, by column.

        The metadata are kept in the file beside it. A name is letters, digits, ``_`` and ``-``.
        """
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"probe is named {name!r}; expected letters, digits, _ and -")
        place = f"probes/{name}/step-{step:012d}.parquet"
        self._put_file(
            place,
            lambda: write_table(
                self.path / place, probe_table(name, columns, metadata or {}), place
            ),
        )

    def write_checkpoint(self, step: int, save: Callable[[Path], object]) -> None:
        """Queue a checkpoint; ``save`` writes the weights to a path, on the writer's thread."""
        self.write_file(f"checkpoints/step-{step:012d}.safetensors", save)

    def write_file(self, place: str, write: Callable[[Path], object]) -> None:
        """Queue a file at a place in the run; ``write`` writes it to a path, on the thread."""
        self._put_file(place, lambda: replace_file(self.path / place, write))

    def update_manifest(self, **fields: Any) -> None:
        """Queue a change of fields of ``run.json``."""
        self._put(lambda: self._folder.update(fields))

    def close(self, status: str, error: str | None = None, **fields: Any) -> None:
        """Write what waits, merge the parts and say how the run ended; a later call waits for it.

        A run of which the recorder itself lost something is ``failed``, not ``finished``.

        Args:
            status: ``finished``, ``failed`` or ``interrupted``.
            error: What went wrong, if anything.
            fields: More fields of ``run.json``.
        """
        if os.getpid() != self._pid:
            return
        if not self._is_closed:  # else a signal came while the first call was under way
            self._last_fields = {**fields, "status": status, "error": error}
            self._is_closed = self._is_ending = True
            self._wake.set()
        pulse, since = self._pulse(), monotonic()
        limit = _LAST_SECONDS + max(0.0, self._patience)
        while self._thread.is_alive():
            self._thread.join(_POLL_SECONDS)
            now, found = monotonic(), self._pulse()
            if found != pulse:
                pulse, since = found, now
            elif now - since > limit:
                self._fail(f"the disk did not answer for {now - since:.0f} s")
                break
        if (problem := ended_in(self.path)) is not None:
            self._warn(problem)

    def withdraw(self) -> None:
        """End an attempt that added no step: the run is left as it was before."""
        self._withdraws = True
        self.close("finished")

    # --- the queue ---------------------------------------------------------------------------

    @property
    def _takes_nothing(self) -> bool:
        """Whether the run is closed, or this is a forked process without its thread."""
        return os.getpid() != self._pid or self._is_closed

    def _put(self, work: Callable[[], object]) -> None:
        """Queue something small."""
        if not self._takes_nothing:
            self._has_room()
            self._waiting.append(work)

    def _put_file(self, place: str, write: Callable[[], object]) -> None:
        if self._takes_nothing or (self.rank.is_one_of_many and not self.rank.leads()):
            return
        if self._has_failed or not self._has_room():
            why = self.failed if self._has_failed else "the disk did not answer"
            self._folder.damaged[place] = f"not written, {why}"
            return
        self._waiting.append(lambda: self._folder.write_file(place, write))

    def _has_room(self) -> bool:
        """Wait while the thread gets on; for one that stands still, for some seconds in all."""
        if len(self._waiting) < self._most_waiting:
            return True
        pulse, since = self._pulse(), monotonic()
        while len(self._waiting) >= self._most_waiting and self._thread.is_alive():
            if pulse == self._stood_at:
                return False
            self._room.clear()
            self._wake.set()
            self._room.wait(_POLL_SECONDS)
            now, found = monotonic(), self._pulse()
            stood = now - since
            if found != pulse:
                if stood > _SHORT_SECONDS:
                    self._patience -= stood
                pulse, since = found, now
            elif stood > max(_POLL_SECONDS, self._patience):
                self._patience -= stood
                self._stood_at = pulse
                self._warn_once(
                    f"cannot write run '{self.path}' (the disk did not answer for {stood:.0f} s); "
                    "the training continues, steps are lost until it answers"
                )
                return False
        return self._thread.is_alive()

    def _pulse(self) -> tuple[int, ...]:
        """What changes whenever the thread gets on: pieces of work, and bytes read or written."""
        try:
            with open(f"/proc/self/task/{self._thread.native_id}/io", encoding="ascii") as file:
                moved = [int(line.split()[1]) for line in file.readlines()[:2]]
        except (OSError, ValueError, IndexError):
            moved = []
        return (self._num_taken, self._folder.pulse, *moved)

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        """Work until the end; steps that were queued before it are all taken."""
        self._attempt_to(self._begin)
        self._begun.set()
        if self._taken_by_another is not None:
            return
        while True:
            is_ending = self._is_ending
            while self._waiting:
                work = self._waiting.popleft()
                self._num_taken += 1
                self._room.set()
                if not self._has_failed:
                    self._attempt_to(self._do, work)
                    self._attempt_to(self._folder.work)
            if is_ending:
                break
            self._attempt_to(self._folder.beat if self._has_failed else self._folder.work)
            self._wake.wait(_POLL_SECONDS)
            self._wake.clear()
        self._end()
        if self._complaint is not None:
            raise self._complaint

    def _begin(self) -> None:
        try:
            self._folder.begin()
        except RunExistsError as error:
            self._taken_by_another = error
        except OSError:
            pass  # the folder tries again

    def _end(self) -> None:
        if self._withdraws:
            return self._attempt_to(self._folder.withdraw)
        had_failed, self._has_failed = self._has_failed, False
        self._attempt_to(self._folder.finish)
        lost = self.lost_steps
        if self.failed is not None and not lost and not self._has_failed:
            self.failed = None  # all that waited was written after all
        elif self._num_dropped and self.failed is None:
            self.failed = "the disk did not answer for some time"
        self._has_failed |= had_failed
        if self.failed is not None or had_failed:
            self._last_fields["storage_error"] = self.failed
        self._attempt_to(lambda: self._folder.end(self._last_fields, lost))

    def _do(self, work: Callable[[], object]) -> None:
        """Do what was queued; what makes a step waits as it is, for many may wait."""
        done = work()
        if isinstance(done, StepRecord):
            self._folder.take(done)

    def _attempt_to(self, work: Callable[..., object], *given: Any) -> None:
        """Do one piece of work; what goes wrong with it never reaches the training."""
        try:
            with self._unforked:
                work(*given)
        except (OSError, MemoryError, RunExistsError) as error:
            reason = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
            self._has_failed = True
            self._fail(reason)
            self._folder.give_up(reason)
        except Exception as error:
            self._folder.fail(reason_of(error))

    def _fail(self, reason: str) -> None:
        if self.failed is None:
            self.failed = reason
            self._say(
                f"cannot write run '{self.path}' ({reason}); the training continues, nothing "
                "more is recorded, what was written stays readable: free the disk or name another "
                "folder for the next run"
            )

    def _warn_once(self, message: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._say(message)

    def _say(self, message: str) -> None:
        """Hand on a sentence; one who refuses it must not stop the thread, but is heard."""
        try:
            self._warn(message)
        except Exception as error:
            self._complaint = error

"""Writes a run while it is recorded: a bounded queue, one background thread, whole files only."""

import contextlib
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from analyzer.errors import RunExistsError
from analyzer.storage.arrays import plain
from analyzer.storage.bin_writer import BinWriter
from analyzer.storage.bins import Numbers
from analyzer.storage.catalog import read_manifest, write_manifest
from analyzer.storage.parts import PartSeries, replace_file, write_table
from analyzer.storage.rows import Block, StepRecord, probe_table, stat_rows, static_table, step_rows
from analyzer.storage.schema import SCHEMA_VERSION, STAT_COLUMNS, STEP_TABLES
from analyzer.storage.tables import StepTable

__all__ = ["Block", "RunWriter", "StepRecord"]

_HEARTBEAT_SECONDS = 5.0
_SAVE_SECONDS = 10.0
_UNFINISHED_SECONDS = 60.0
# Rows of a network of thousands of layers are written before they are as old or as many as
# the limits say, so that memory does not grow with the network.
_MOST_BYTES = 8 * 2**20
# The thread looks at the queue this often instead of being woken by each step: a wake-up costs
# the training a switch of threads.
_POLL_SECONDS = 0.05


def _print_warning(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


class RunWriter:
    """One process's writer of one run.

    ``add`` and the ``write_`` methods return at once; a thread makes the rows and writes them. When
    the disk refuses, the training continues: one warning, later rows are dropped, and what was
    written stays readable. A forked child has no thread, and writes nothing.

    Args:
        path: Folder of the run; must not hold anything yet, unless ``rank`` or ``attempt`` is > 0.
        manifest: First content of ``run.json``.
        rank: Number of this process.
        attempt: Number of this restart.
        flush_seconds: Rows are written at this age.
        flush_steps: Rows are written when there are those of that many steps.
        queue_steps: Most steps that wait for the thread; ``add`` waits when there are more.
        warn: Receives the one line about a failure.

    Attributes:
        path: Folder of the run.
        failed: Why nothing more is written; None while all is well.

    Raises:
        RunExistsError: If the folder holds something already.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        *,
        rank: int = 0,
        attempt: int = 0,
        flush_seconds: float = 1.5,
        flush_steps: int = 200,
        queue_steps: int = 512,
        warn: Callable[[str], None] = _print_warning,
    ) -> None:
        self.path = Path(path)
        self.failed: str | None = None
        self._rank, self._attempt, self._warn = rank, attempt, warn
        self._most_waiting = queue_steps
        self._has_warned = False
        flush = (flush_seconds, flush_steps)
        self._folder = _Folder(self.path, manifest, (rank, attempt), flush, self._warn_once)
        self._waiting: deque[Callable[[], object]] = deque()
        self._pid = os.getpid()
        self._wake, self._room = threading.Event(), threading.Event()
        self._is_closed = self._is_ending = False
        self._attempt_to(self._begin)
        self._thread = threading.Thread(target=self._run, name="analyzer-writer", daemon=True)
        self._thread.start()

    def _begin(self) -> None:
        is_first = self._rank == 0 and self._attempt == 0
        if is_first and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunExistsError(
                f"run folder '{self.path}' exists and holds something; a run is never overwritten: "
                "name another folder, or resume that run with --resume"
            )
        self._folder.begin()

    def add(self, make: Callable[[], StepRecord]) -> None:
        """Queue one step; ``make`` runs on the writer's thread, where it may wait for a device."""
        self._put(lambda: self._folder.take(make()))

    def write_layers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of layers; it replaces the one before."""
        self._put(lambda: self._folder.write_static("layers", rows))

    def write_parameters(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of parameters; it replaces the one before."""
        self._put(lambda: self._folder.write_static("parameters", rows))

    def write_joins(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of joins; it replaces the one before."""
        self._put(lambda: self._folder.write_static("joins", rows))

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
        target = self.path / "probes" / name / f"step-{step:012d}.parquet"
        self._put(lambda: write_table(target, probe_table(name, columns, metadata or {})))

    def write_checkpoint(self, step: int, save: Callable[[Path], object]) -> None:
        """Queue a checkpoint; ``save`` writes the weights to a path, on the writer's thread."""
        target = self.path / "checkpoints" / f"step-{step:012d}.safetensors"
        self._put(lambda: replace_file(target, save))

    def update_manifest(self, **fields: Any) -> None:
        """Queue a change of fields of ``run.json``."""
        self._put(lambda: self._folder.update(fields))

    def close(self, status: str, error: str | None = None, **fields: Any) -> None:
        """Write what waits, merge the parts and say how the run ended; later calls do nothing.

        Args:
            status: ``finished``, ``failed`` or ``interrupted``.
            error: What went wrong, if anything.
            fields: More fields of ``run.json``.
        """
        if os.getpid() != self._pid or self._is_closed:
            return
        last = {**fields, "status": status, "error": error}
        self._put(lambda: self._folder.finish(last))
        self._is_closed = self._is_ending = True
        self._wake.set()
        self._thread.join()
        if self.failed is not None:
            with contextlib.suppress(OSError):
                self._folder.update({**last, "storage_error": self.failed})

    def _put(self, work: Callable[[], object]) -> None:
        if os.getpid() != self._pid or self._is_closed:
            return
        while len(self._waiting) >= self._most_waiting and self._thread.is_alive():
            self._room.clear()
            self._wake.set()
            self._room.wait(_POLL_SECONDS)
        self._waiting.append(work)

    def _run(self) -> None:
        """Work until the end; steps that were queued before it are all taken."""
        while True:
            is_ending = self._is_ending
            while self._waiting:
                work = self._waiting.popleft()
                self._room.set()
                self._attempt_to(work)
                self._attempt_to(self._folder.work)
            if is_ending:
                return
            self._attempt_to(self._folder.work)
            self._wake.wait(_POLL_SECONDS)
            self._wake.clear()

    def _attempt_to(self, work: Callable[[], object]) -> None:
        """Do one piece of work; what goes wrong with it never reaches the training."""
        if self.failed is not None:
            return
        try:
            work()
        except RunExistsError:
            raise
        except (OSError, MemoryError) as error:
            self.failed = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
            self._warn(
                f"cannot write run '{self.path}' ({self.failed}); the training continues, nothing "
                "more is recorded, what was written stays readable: free the disk or name another "
                "folder for the next run"
            )
        except Exception as error:
            self._warn_once(
                f"a part of run '{self.path}' was not recorded ({type(error).__name__}: {error}); "
                "everything else was recorded"
            )

    def _warn_once(self, message: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warn(message)


class _Folder:
    """What the thread of a writer does to a run folder: rows gather, and become files.

    ``writer`` is its rank and attempt, rows are written after the seconds or steps of ``flush``.
    Only rank 0 writes ``run.json``, static tables and bins.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        writer: tuple[int, int],
        flush: tuple[float, int],
        warn: Callable[[str], None],
    ) -> None:
        self.path, self._warn = path, warn
        self._rank, self._attempt = writer
        self._flush_seconds, self._flush_steps = flush
        self._fields: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **manifest}
        self._steps: list[Mapping[str, Any]] = []
        self._blocks: dict[str, list[tuple[int, Block]]] = {table: [] for table in STAT_COLUMNS}
        self._num_bytes = 0
        self._oldest = 0.0
        self._series = {table: PartSeries(path / table, *writer) for table in STEP_TABLES}
        self._bins_of: dict[str, BinWriter] = {}
        self._last_save = self._last_heartbeat = time.monotonic()

    def begin(self) -> None:
        """Write the first ``run.json``; a later attempt keeps the fields of the earlier ones."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._rank != 0:
            return
        if self._attempt > 0 and (self.path / "run.json").exists():
            fresh = {"error": None, "storage_error": None}
            self._fields = {**read_manifest(self.path), **fresh, **self._fields}
            self._remove_unfinished()
        self._fields.setdefault("created", datetime.now(UTC).isoformat())
        self._fields["status"] = "running"
        self.beat()

    def _remove_unfinished(self) -> None:
        """Remove files that a killed attempt left half written; those of other ranks are young."""
        for hidden in self.path.rglob(".*.tmp"):
            if time.time() - hidden.stat().st_mtime > _UNFINISHED_SECONDS:
                hidden.unlink(missing_ok=True)

    def beat(self) -> None:
        """Write ``run.json`` with the heartbeat of now."""
        self._last_heartbeat = time.monotonic()
        if self._rank == 0:
            write_manifest(self.path, self._fields)

    def update(self, fields: Mapping[str, Any]) -> None:
        """Change fields of ``run.json``."""
        self._fields.update(fields)
        self.beat()

    def take(self, record: StepRecord) -> None:
        """Gather the rows of one step; none of them if a block has the wrong shape."""
        for block in record.blocks:
            _check(block)
        if not self._steps:
            self._oldest = time.monotonic()
        step = int(record.step["step"])
        self._steps.append(record.step)
        for block in record.blocks:
            if len(block.ids):
                self._blocks[block.table].append((step, block))
                self._num_bytes += block.num_bytes
        self._fields["steps"] = max(step + 1, self._fields.get("steps") or 0)
        self._fields["last_loss"] = plain(record.step.get("loss"))

    def write_static(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the table of layers, parameters or joins over the one before."""
        if self._rank == 0:
            self._fields[f"num_{table}"] = len(rows)
            write_table(self.path / f"{table}.parquet", static_table(table, rows))

    def work(self) -> None:
        """Do what is due: write rows, merge a few parts, beat."""
        now = time.monotonic()
        if self._steps and (
            now - self._oldest >= self._flush_seconds
            or len(self._steps) >= self._flush_steps
            or self._num_bytes >= _MOST_BYTES
        ):
            self.flush()
            for series in self._series.values():
                series.advance()
        if now - self._last_save >= _SAVE_SECONDS:
            self._last_save = now
            for bins in self._bins_of.values():
                bins.save()
        if now - self._last_heartbeat >= _HEARTBEAT_SECONDS:
            self.beat()

    def flush(self) -> None:
        """Write the rows that were gathered, ``steps`` last.

        So a step that can be seen in ``steps`` is whole in the other tables.
        """
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        blocks, self._blocks = self._blocks, {table: [] for table in STAT_COLUMNS}
        self._num_bytes = 0
        for table, some in blocks.items():
            if some:
                self._append(table, *stat_rows(table, some, self._rank))
        self._append("steps", *step_rows(steps, self._rank, self._attempt, self._warn))

    def _append(self, table: str, rows: pa.Table, numbers: Numbers) -> None:
        first, last = int(numbers.steps.min()), int(numbers.steps.max())
        self._series[table].append(rows, first, last)
        if self._rank == 0:
            bins = self._bins_of.get(table) or self._begin_bins(table, first)
            bins.add(numbers)

    def _begin_bins(self, table: str, first: int) -> BinWriter:
        """Return new bins, or those of earlier attempts up to the first step of this one."""
        bins = BinWriter(self.path / "overview" / table, table)
        self._bins_of[table] = bins
        if self._attempt > 0:
            reached = bins.recover(first)
            source = StepTable(self.path, table, self._warn)
            for numbers in source.numbers(reached, first - 1, rank=0):
                bins.add(numbers)
        return bins

    def finish(self, fields: Mapping[str, Any]) -> None:
        """Write what is left, merge it, and say in ``run.json`` how the run ended."""
        self.flush()
        # A long run takes long to merge, and is not crashed meanwhile: it beats in between.
        for bins in self._bins_of.values():
            bins.finish()
            self.beat()
        for series in self._series.values():
            series.finish()
            self.beat()
        self.update(fields)


def _check(block: Block) -> None:
    expected = (len(block.ids), len(STAT_COLUMNS[block.table]))
    if block.values.shape != expected:
        raise ValueError(f"values of {block.table} are {block.values.shape}, expected {expected}")
    if block.present is not None and block.present.shape != expected:
        raise ValueError(f"present of {block.table} is {block.present.shape}, expected {expected}")

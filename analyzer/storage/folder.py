"""What the thread of a writer does to a run folder: rows gather, and become files."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pyarrow as pa

from analyzer.errors import RunExistsError
from analyzer.launch import RANKS, Rank
from analyzer.storage.arrays import plain
from analyzer.storage.bin_writer import TableBins
from analyzer.storage.bins import Numbers
from analyzer.storage.manifest import LiveManifest
from analyzer.storage.parts import PartSeries, reason_of, write_table
from analyzer.storage.rows import Block, StepRecord, stat_rows, static_table, step_rows
from analyzer.storage.schema import EDGES, STAT_COLUMNS, STEP_TABLES
from analyzer.storage.static_table import StaticTable
from analyzer.storage.tables import StepTable

__all__ = ["RunFolder"]

_SAVE_SECONDS = 10.0
# Rows of a network of thousands of layers are written before they are as old or as many as
# the limits say, so that memory does not grow with the network.
_MOST_BYTES = 8 * 2**20
# A disk that refuses is asked again so often, for so long, and while no more rows wait than that.
_RETRY_SECONDS = 0.25
_PATIENCE_SECONDS = 10.0
_MOST_WAITING_BYTES = 64 * 2**20
_LAST_TRIES = (0.0, 0.1, 0.4)
_MOST_ERRORS = 20


@dataclass(frozen=True)
class _Flush:
    """Rows of some steps on their way to disk, ``steps`` last; what is written is taken out."""

    tables: deque[tuple[str, pa.Table, Numbers]]
    first: int
    last: int
    num_steps: int
    num_bytes: int
    loss: Any


class RunFolder:
    """A run folder, as the thread of its writer works on it.

    Of several ranks one writes ``run.json``, the static tables at the top, and probes; each has
    static tables of its own under ``ranks/``, since its calls may come in another order. A method
    that raises an OSError has been patient: the disk refuses for good. Errors of the recorder cost
    what they are about.

    Args:
        path: Folder of the run.
        manifest: First content of ``run.json``.
        rank: What this process is in the run.
        flush: Rows are written after that many seconds or steps.
        warn: Receives a sentence about a part that was not recorded.

    Attributes:
        written_steps: Steps that are whole on disk.
        damaged: Why files were damaged, or not written, by their place in the run.
        errors: What the recorder itself did wrong; the first few.
        pulse: Grows with each piece of work.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        rank: Rank,
        flush: tuple[float, int],
        warn: Callable[[str], None],
    ) -> None:
        self.path, self._warn = path, warn
        self.written_steps = self.pulse = 0
        self.damaged: dict[str, str] = {}
        self.errors: list[str] = []
        self._rank, writer = rank, (rank.number, rank.attempt)
        self._flush_seconds, self._flush_steps = flush
        self._manifest = LiveManifest(path, manifest, rank)
        self._has_begun = False
        self._names_before: dict[str, list[str]] = {}
        self._steps: list[Mapping[str, Any]] = []
        self._blocks: dict[str, list[tuple[int, Block]]] = {table: [] for table in STAT_COLUMNS}
        self._num_bytes = self._num_errors = 0
        self._oldest = self._next_try = 0.0
        self._last_loss = None  # of the last step that is whole on disk
        self._flushes: deque[_Flush] = deque()
        # What writes each file that waits, and since when the disk has refused it.
        self._files: dict[str, tuple[Callable[[], object], float | None]] = {}
        self._static: dict[str, Callable[[], object]] = {}
        self._refused_since: float | None = None
        self._series = {table: PartSeries(path / table, *writer) for table in STEP_TABLES}
        self._bins_of: dict[str, TableBins] = {}
        self._last_save = monotonic()

    # --- what is given to it -----------------------------------------------------------------

    def begin(self) -> None:
        """Take the folder and write the first ``run.json``; again until it has gone well once.

        Raises:
            RunExistsError: If the folder is somebody else's.
        """
        if self._has_begun:
            return
        self._manifest.begin()
        self._has_begun = True

    def update(self, fields: Mapping[str, Any]) -> None:
        """Change fields of ``run.json``."""
        self._manifest.fields.update(fields)
        self._manifest.touch()

    def give_up(self, reason: str) -> None:
        """Say in ``run.json`` that nothing more is recorded."""
        self.update({"storage_error": reason})
        self.beat()

    def fail(self, what: str) -> None:
        """Note that the recorder did something wrong: the run does not end as finished."""
        self._num_errors += 1
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append(what)
        self._warn(
            f"a part of run '{self.path}' was not recorded ({what}); everything else was recorded"
        )

    def take(self, record: StepRecord) -> None:
        """Gather the rows of one step; none of them if a block has the wrong shape."""
        for block in record.blocks:
            block.check()
        if not self._steps:
            self._oldest = monotonic()
        step = int(record.step["step"])
        self._steps.append(record.step)
        for block in record.blocks:
            if len(block.ids):
                self._blocks[block.table].append((step, block))
                self._num_bytes += block.num_bytes
        self._manifest.note_step(record.step)

    def write_static(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the table of layers, parameters or joins over the one before."""
        if not self._manifest.is_written:
            return
        self._manifest.fields[f"num_{table}"] = len(rows)
        place, whole = f"{table}.parquet", static_table(table, rows)
        if not self._rank.leads() or not self._continues(table, rows):
            place = f"{RANKS}/{self._rank.file(place).name}"
        self._static[place] = lambda: write_table(self.path / place, whole, place)
        self.write_file(place, self._static[place])

    def _continues(self, table: str, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a later attempt gives what the earlier ones knew the same ids."""
        if not self._rank.attempt or table == EDGES:  # whose ids are those of layers
            return not self._rank.attempt or "layers.parquet" in self._static
        if table not in self._names_before:
            before = StaticTable(self.path, table, lambda _: None).at_the_top()
            self._names_before[table] = before.column("name").to_pylist()
        before = self._names_before[table]
        return [row["name"] for row in rows[: len(before)]] == before

    def write_file(self, place: str, write: Callable[[], object]) -> None:
        """Write a file; where the disk refuses, again and again for a while, unless replaced."""
        self._files[place] = (write, None)

    # --- what is due -------------------------------------------------------------------------

    def work(self) -> None:
        """Do what is due: write rows, merge a few parts, beat.

        Raises:
            OSError: If the disk refuses to take rows for good.
        """
        self.pulse += 1
        now = monotonic()
        is_due = bool(self._steps) and (
            now - self._oldest >= self._flush_seconds
            or len(self._steps) >= self._flush_steps
            or self._num_bytes >= _MOST_BYTES
        )
        if is_due:
            self._gather()
        if (self._flushes or self._files or not self._has_begun) and now >= self._next_try:
            self._write_waiting(now, _PATIENCE_SECONDS)
        if is_due and not self._flushes:
            for series in self._series.values():
                series.advance()
        if now - self._last_save >= _SAVE_SECONDS:
            self._last_save = now
            for bins in self._bins_of.values():
                bins.save()
        self.beat()

    def beat(self) -> None:
        """Write ``run.json`` with the heartbeat of now, where it is due."""
        if self._has_begun and self._manifest.is_due():
            with contextlib.suppress(OSError):  # the next one comes
                self._write_manifest()

    def _write_manifest(self) -> None:
        fields, damaged = self._manifest.fields, dict(self.damaged)
        flushes = dict(fields.get("flushes") or {})
        for table, series in self._series.items():
            damaged.update(series.damaged)
            if series.num_flushes:
                rank = self._rank
                counts = {f"{rank.number}.{rank.attempt}": series.num_flushes}
                flushes[table] = {**flushes.get(table, {}), **counts}
        fields["flushes"] = flushes
        if damaged:
            lines = [f"{place}: {reason}" for place, reason in damaged.items()]
            fields["damaged"] = list(dict.fromkeys([*(fields.get("damaged") or []), *lines]))
        self._manifest.write()

    def _gather(self) -> None:
        """Make tables of the rows that were gathered.

        ``steps`` is written last, so a step that can be seen there is whole in the other tables.
        """
        if not self._steps:
            return
        numbers = [int(row["step"]) for row in self._steps]
        first, last, count = min(numbers), max(numbers), len(numbers)
        tables: deque[tuple[str, pa.Table, Numbers]] = deque()
        table = "steps"
        try:
            for table, some in self._blocks.items():
                if some:
                    tables.append((table, *stat_rows(table, some, self._rank.number)))
            table, who = "steps", (self._rank.number, self._rank.attempt)
            tables.append((table, *step_rows(self._steps, *who, self._warn)))
            size = sum(rows.nbytes + taken.values.nbytes for _, rows, taken in tables)
            loss = plain(self._steps[-1].get("loss"))
            self._flushes.append(_Flush(tables, first, last, count, size, loss))
        except MemoryError:
            raise
        except Exception as error:
            self._fail_at(table, first, last, error)
        self._steps, self._num_bytes = [], 0
        self._blocks = {table: [] for table in STAT_COLUMNS}

    def _fail_at(self, table: str, first: int, last: int, error: Exception) -> None:
        self.fail(f"{table} of steps {first} to {last}: {reason_of(error)}")

    def _write_waiting(self, now: float, patience: float) -> None:
        """Write what waits; keep it where the disk refuses, as long as there is hope."""
        try:
            self.begin()
            self._write_files(now, patience)
            while self._flushes:
                self._write_flush(self._flushes[0])
                self._flushes.popleft()
        except (OSError, MemoryError):
            self._next_try = now + _RETRY_SECONDS
            self._refused_since = self._refused_since or now
            is_late = now - self._refused_since >= patience
            if is_late or sum(f.num_bytes for f in self._flushes) > _MOST_WAITING_BYTES:
                raise
        else:
            self._refused_since = None

    def _write_files(self, now: float, patience: float) -> None:
        for place, (write, since) in list(self._files.items()):
            del self._files[place]
            try:
                self._manifest.keep_earlier(place)
                write()
                self.pulse += 1
            except Exception as error:
                since = since or now
                if not _is_of_disk(error):
                    self.fail(f"{place}: {reason_of(error)}")
                elif now - since >= patience:
                    self.damaged[place] = f"not written, {reason_of(error)}"
                else:
                    self._files[place] = (write, since)
                    self._next_try = now + _RETRY_SECONDS

    def _write_flush(self, flush: _Flush) -> None:
        while flush.tables:
            table, rows, numbers = flush.tables[0]
            first, last = int(numbers.steps.min()), int(numbers.steps.max())
            try:
                self._series[table].append(rows, first, last)
            except (OSError, MemoryError):
                raise
            except Exception as error:
                self._fail_at(table, flush.first, flush.last, error)
                return  # none of its steps is whole
            flush.tables.popleft()
            self.pulse += 1
            if self._rank.has_led and not self._rank.is_one_of_many:
                self._table_bins(table).add(numbers)
        self.written_steps += flush.num_steps
        self._last_loss = flush.loss

    def _table_bins(self, table: str) -> TableBins:
        if table not in self._bins_of:
            self._bins_of[table] = TableBins(self.path, table, self._rank.attempt)
        return self._bins_of[table]

    # --- the end -----------------------------------------------------------------------------

    def finish(self) -> None:
        """Write what is left and merge it.

        Raises:
            OSError: If the disk refuses still.
        """
        self._gather()
        for place in self._static:  # somebody may have removed the folder
            if not (self.path / place).exists():
                self.write_file(place, self._static[place])
        refusal = self._last_tries()
        for bins in self._bins_of.values():
            bins.finish()
            self._go_on()
        for table, series in self._series.items():
            self._merge(table, series)
        if refusal is not None:
            raise refusal

    def _go_on(self) -> None:
        """A long run takes long to merge, and is not crashed meanwhile: it beats in between."""
        self.pulse += 1
        self.beat()

    def _merge(self, table: str, series: PartSeries) -> None:
        for _ in _LAST_TRIES:
            try:
                return series.finish(self._go_on)
            except OSError:
                continue  # every row is in a part all the same
            except Exception as error:
                return self.fail(f"merging {table}: {reason_of(error)}")

    def _last_tries(self) -> Exception | None:
        for place, seconds in enumerate(_LAST_TRIES):
            sleep(seconds)
            try:
                self._write_waiting(monotonic(), math.inf if place + 1 < len(_LAST_TRIES) else 0.0)
            except (OSError, MemoryError, RunExistsError) as error:
                return error
            if not self._flushes and not self._files and self._has_begun:
                break
        return None

    def end(self, fields: Mapping[str, Any], lost_steps: int) -> None:
        """Say in ``run.json`` how the run ended.

        Raises:
            OSError: If it cannot be written.
        """
        found = self._manifest.fields
        found.update(fields)
        if self.errors and found.get("status") == "finished":
            more = f", and {self._num_errors - 1} more" if self._num_errors > 1 else ""
            found["status"] = "failed"
            found["error"] = f"not all was recorded: {self.errors[0]}{more}"
        if lost_steps:
            found["lost_steps"] = self._manifest.lost_before + lost_steps
            # Those on disk. An attempt may have gone over the steps of an earlier one again.
            table = StepTable(self.path, "steps", lambda _: None)
            found["steps"] = len(table.steps()) if self._rank.attempt else self.written_steps
            found["last_loss"] = self._last_loss
        if not self._manifest.is_written:
            return
        self._rank.leads()  # where there is no rank 0
        for seconds in _LAST_TRIES:
            sleep(seconds)
            try:
                self.begin()
                self._write_manifest()
                break
            except OSError:
                if seconds == _LAST_TRIES[-1]:
                    raise
        self._manifest.end()

    def withdraw(self) -> None:
        """Leave the run as it was before this attempt, which has nothing to add."""
        self._manifest.withdraw()


def _is_of_disk(error: Exception) -> bool:
    # What safetensors raises is no OSError, but quotes one.
    return isinstance(error, OSError | MemoryError) or "os error" in str(error)

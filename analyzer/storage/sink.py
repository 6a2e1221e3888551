"""The folder side of a writer: rows gather in memory, and become parts, bins and a manifest."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analyzer.storage.columns import plain
from analyzer.storage.compaction import PartSeries
from analyzer.storage.manifest import read_manifest, write_manifest
from analyzer.storage.overview import Overview
from analyzer.storage.parts import write_table
from analyzer.storage.records import Block, Rows, StepRecord, stat_rows, static_table, step_rows
from analyzer.storage.schema import SCHEMA_VERSION, STAT_COLUMNS, STEP_TABLES
from analyzer.storage.tables import StepTable

__all__ = ["Sink"]

_HEARTBEAT_SECONDS = 5.0
_OVERVIEW_SECONDS = 10.0
_UNFINISHED_SECONDS = 60.0
# Rows of a network of thousands of layers are written before they are as old or as many as
# the limits say, so that memory does not grow with the network.
_MOST_BYTES = 8 * 2**20


class Sink:
    """Everything that the thread of a writer does to a run folder; not safe for several threads.

    Args:
        path: Folder of the run.
        manifest: Content of ``run.json``.
        rank: Number of this process; only rank 0 writes ``run.json``, static tables and overview.
        attempt: Number of this restart.
        flush_seconds: Write at least this often.
        flush_steps: Write after this many steps.
        warn: Receives a line about a value that could not be kept.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        *,
        rank: int,
        attempt: int,
        flush_seconds: float,
        flush_steps: int,
        warn: Callable[[str], None],
    ) -> None:
        self.path = path
        self._rank, self._attempt, self._warn = rank, attempt, warn
        self._flush_seconds, self._flush_steps = flush_seconds, flush_steps
        self._fields: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **manifest}
        self._steps: list[Mapping[str, Any]] = []
        self._blocks: dict[str, list[tuple[int, Block]]] = {table: [] for table in STAT_COLUMNS}
        self._num_bytes = 0
        self._oldest = 0.0
        self._series = {table: PartSeries(path / table, rank, attempt) for table in STEP_TABLES}
        self._overviews: dict[str, Overview] = {}
        self._last_save = self._last_heartbeat = time.monotonic()

    def begin(self) -> None:
        """Write the first ``run.json``; a later attempt keeps the fields of the earlier ones.

        Raises:
            OSError: If the disk refuses.
        """
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
        """Gather the rows of one step.

        Raises:
            ValueError: If a block has another shape than its table; nothing is gathered then.
        """
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
            whole = static_table(table, rows)
            write_table(self.path / f"{table}.parquet", whole)

    def work(self) -> None:
        """Do what is due: write rows, go on with merging, beat."""
        now = time.monotonic()
        if self._steps and (
            now - self._oldest >= self._flush_seconds
            or len(self._steps) >= self._flush_steps
            or self._num_bytes >= _MOST_BYTES
        ):
            self.flush()
            for series in self._series.values():
                series.advance()
        if now - self._last_save >= _OVERVIEW_SECONDS:
            self._last_save = now
            for overview in self._overviews.values():
                overview.save()
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
                self._append(table, stat_rows(table, some, self._rank))
        self._append("steps", step_rows(steps, self._rank, self._attempt, self._warn))

    def _append(self, table: str, rows: Rows) -> None:
        first, last = int(rows.steps.min()), int(rows.steps.max())
        self._series[table].append(rows.table, first, last)
        if self._rank == 0:
            overview = self._overviews.get(table) or self._begin_overview(table, first)
            overview.add(rows.columns, rows.steps, rows.ids, rows.values, rows.present)

    def _begin_overview(self, table: str, first: int) -> Overview:
        """Return a new overview, or that of earlier attempts up to the first step of this one."""
        overview = Overview(self.path / "overview" / table, table)
        self._overviews[table] = overview
        if self._attempt > 0:
            reached = overview.recover(first)
            source = StepTable(self.path, table, self._warn)
            for rows in source.numbers(reached, first - 1, rank=0):
                overview.add(*rows)
        return overview

    def finish(self, fields: Mapping[str, Any]) -> None:
        """Write what is left, merge it, and say in ``run.json`` how the run ended."""
        self.flush()
        # A long run takes long to merge, and is not crashed meanwhile: it beats in between.
        for overview in self._overviews.values():
            overview.finish()
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

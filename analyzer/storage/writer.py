"""Writes a run while it goes on: a bounded queue, one background thread, whole files only."""

import contextlib
import json
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.errors import RunExistsError
from analyzer.storage import parts
from analyzer.storage.overview import Overview
from analyzer.storage.schema import (
    SCHEMA_VERSION,
    STAT_COLUMNS,
    STEP_TABLES,
    TABLES,
    key_column,
)

__all__ = ["Block", "RunWriter", "StepRecord"]

_HEARTBEAT_SECONDS = 5.0
_POLL_SECONDS = 0.2
_MERGE_PARTS = 50
# The overview is written again when it grew by this part of itself; readers scan the rest.
_OVERVIEW_GROWTH = 0.02
_OVERVIEW_STEPS = ("loss", "learning_rate", "gradient_norm", "clip_factor", "seconds")


@dataclass(frozen=True)
class Block:
    """Rows of one table of statistics for one step.

    Args:
        table: ``layer_stats``, ``parameter_stats`` or ``splits``.
        ids: Layer, parameter or join of each row, ``[rows]``.
        values: The table's statistics in the order of the schema, ``[rows, columns]``.
        present: False for null; None where nothing is null. NaN is a value.
    """

    table: str
    ids: NDArray[np.int32]
    values: NDArray[np.float64]
    present: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class StepRecord:
    """Everything that one step adds to a run.

    Args:
        step: Columns of ``steps``, ``time`` in microseconds since 1970, and what was logged.
        blocks: Rows of the other tables.
    """

    step: Mapping[str, Any]
    blocks: Sequence[Block] = field(default_factory=list)


def _print_warning(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


class RunWriter:
    """One process's writer of one run.

    ``add`` and the ``write_`` methods return at once; a thread makes the rows and writes them. When
    the disk refuses, the training goes on: one warning, later rows are dropped, and what was
    written stays readable.

    Args:
        path: Folder of the run; must not hold anything yet, unless ``rank`` or ``attempt`` is > 0.
        manifest: First content of ``run.json``.
        rank: Number of this process.
        attempt: Number of this restart.
        flush_seconds: Write at least this often.
        flush_steps: Write after this many steps.
        queue_steps: Most steps that wait for the thread; ``add`` waits when there are more.
        warn: Receives the one line about a failure.

    Raises:
        RunExistsError: If the folder holds something already.
        OSError: If the folder cannot be made.
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
        self._rank, self._attempt = rank, attempt
        if rank == 0 and attempt == 0 and self.path.exists() and any(self.path.iterdir()):
            raise RunExistsError(
                f"run folder '{path}' exists; a run is never overwritten: name another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._flush_seconds, self._flush_steps = flush_seconds, flush_steps
        self._most_waiting = queue_steps
        self._warn = warn
        self._manifest = {"schema_version": SCHEMA_VERSION, **manifest, "status": "running"}
        self._waiting: deque[Callable[[], None]] = deque()
        self._steps: list[Mapping[str, Any]] = []
        self._blocks: dict[str, list[tuple[int, Block]]] = {table: [] for table in STAT_COLUMNS}
        self._num_parts = dict.fromkeys(STEP_TABLES, 0)
        self._overviews = {table: Overview(names) for table, names in STAT_COLUMNS.items()}
        self._overviews["steps"] = Overview(_OVERVIEW_STEPS)
        self._overview_bins = dict.fromkeys(self._overviews, 0)
        self._last_flush = self._last_heartbeat = time.monotonic()
        self._pid = os.getpid()
        self._wake, self._room, self._ending = (threading.Event() for _ in range(3))
        self._lock = threading.Lock()
        self._save_manifest()
        self._thread = threading.Thread(target=self._work, name="analyzer-writer", daemon=True)
        self._thread.start()

    # --- called by the training --------------------------------------------------------------

    def add(self, make: Callable[[], StepRecord]) -> None:
        """Queue one step; ``make`` runs on the writer's thread."""
        self._put(lambda: self._take(make()))

    def write_layers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of layers; it replaces the one before."""
        self._put(lambda: self._write_static("layers", rows))

    def write_parameters(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of parameters; it replaces the one before."""
        self._put(lambda: self._write_static("parameters", rows))

    def write_joins(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue the table of joins; it replaces the one before."""
        self._put(lambda: self._write_static("joins", rows))

    def write_probe(
        self,
        name: str,
        step: int,
        columns: Mapping[str, Sequence[Any] | NDArray[Any]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Queue the table of one probe at one step."""
        target = self.path / "probes" / name / f"step-{step:012d}.parquet"

        def write() -> None:
            table = pa.table({key: pa.array(value) for key, value in columns.items()})
            parts.write_table(target, table.replace_schema_metadata(dict(metadata or {})))

        self._put(write)

    def write_checkpoint(self, step: int, save: Callable[[Path], object]) -> None:
        """Queue a checkpoint; ``save`` writes it to the path that it gets, on the thread."""
        target = self.path / "checkpoints" / f"step-{step:012d}.safetensors"
        self._put(lambda: parts.replace_file(target, save))

    def update_manifest(self, **fields: Any) -> None:
        """Queue new fields of ``run.json``."""

        def update() -> None:
            self._manifest.update(fields)
            self._save_manifest()

        self._put(update)

    def close(self, status: str, error: str | None = None, **fields: Any) -> None:
        """Write what waits, merge the parts, say how the run ended; later calls do nothing."""
        if os.getpid() != self._pid or self._ending.is_set():
            return

        def finish() -> None:
            self._manifest.update(fields, status=status, error=error)
            self._flush()
            self._write_overviews()
            for table in STEP_TABLES:
                parts.merge(self.path / table, self._rank, self._attempt)
            self._save_manifest()

        self._put(finish)
        self._ending.set()
        self._wake.set()
        self._thread.join()

    def _put(self, work: Callable[[], None]) -> None:
        if os.getpid() != self._pid or self._ending.is_set():
            return  # a forked child has no writer thread, and no business in this folder
        while len(self._waiting) >= self._most_waiting and self._thread.is_alive():
            self._room.clear()
            self._wake.set()
            self._room.wait(0.1)
        self._waiting.append(work)
        if len(self._waiting) >= self._most_waiting // 4:
            self._wake.set()

    # --- the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            ending = self._ending.is_set()
            self._wake.wait(_POLL_SECONDS)
            self._wake.clear()
            while self._waiting:
                self._attempt_to(self._waiting.popleft())
                self._room.set()
                self._attempt_to(self._flush_if_due)
            self._attempt_to(self._flush_if_due)
            if ending and not self._waiting:
                return

    def _attempt_to(self, work: Callable[[], None]) -> None:
        try:
            if self.failed is None:
                work()
        except OSError as error:
            self.failed = f"{type(error).__name__}: {error.strerror or error}"
            self._warn(
                f"cannot write the run ({error.strerror or error}); the training goes on, nothing "
                "more is recorded, what was written stays readable"
            )
            with contextlib.suppress(OSError):
                self._manifest["error"] = self.failed
                self._save_manifest()
        except Exception as error:
            self._warn(f"a part of the run was not recorded ({type(error).__name__}: {error})")

    def _take(self, record: StepRecord) -> None:
        self._steps.append(record.step)
        for block in record.blocks:
            self._blocks[block.table].append((int(record.step["step"]), block))

    def _flush_if_due(self) -> None:
        now = time.monotonic()
        if self._steps:
            if len(self._steps) >= self._flush_steps or (
                now - self._last_flush >= self._flush_seconds
            ):
                self._flush()
        else:
            self._last_flush = now
        if now - self._last_heartbeat >= _HEARTBEAT_SECONDS:
            self._save_manifest()

    def _flush(self) -> None:
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        for table, rows in self._blocks.items():
            if rows:
                self._blocks[table] = []
                self._write_blocks(table, rows)
        # Last, so that a step that can be seen in `steps` is whole in the other tables.
        self._write_steps(steps)
        self._last_flush = time.monotonic()
        for table, overview in self._overviews.items():
            grown = len(overview) - self._overview_bins[table]
            if grown < 0 or grown > max(1, _OVERVIEW_GROWTH * len(overview)):
                self._write_overview(table)
        for table, count in self._num_parts.items():
            if count >= _MERGE_PARTS:
                parts.merge(self.path / table, self._rank, self._attempt)
                self._num_parts[table] = 1

    def _write_blocks(self, table: str, rows: list[tuple[int, Block]]) -> None:
        schema = TABLES[table]
        ids = np.concatenate([block.ids for _, block in rows]).astype(np.int32)
        values = np.concatenate([block.values for _, block in rows])
        present = None
        if any(block.present is not None for _, block in rows):
            present = np.concatenate(
                [
                    np.ones(block.values.shape, bool) if block.present is None else block.present
                    for _, block in rows
                ]
            )
        steps = np.repeat(
            np.array([step for step, _ in rows], dtype=np.int64), [len(b.ids) for _, b in rows]
        )
        columns = [
            pa.array(steps),
            pa.array(np.full(len(ids), self._rank, dtype=np.int16)),
            pa.array(ids),
        ]
        for place, name in enumerate(STAT_COLUMNS[table]):
            mask = None if present is None else ~present[:, place]
            columns.append(_column(values[:, place], mask, schema.field(name).type))
        self._write_part(table, pa.Table.from_arrays(columns, schema=schema), steps)
        if self._rank == 0:
            self._overviews[table].add(steps, ids, values, present)

    def _write_steps(self, records: Sequence[Mapping[str, Any]]) -> None:
        schema = TABLES["steps"]
        names = list(dict.fromkeys(name for record in records for name in record))
        rows = [{**record, "rank": self._rank, "attempt": self._attempt} for record in records]
        fields, columns = [], []
        for field_ in schema:
            fields.append(field_)
            columns.append(pa.array([row.get(field_.name) for row in rows], field_.type))
        for name in names:
            if name not in schema.names:
                values = pa.array([row.get(name) for row in rows])
                fields.append(
                    pa.field(
                        name,
                        values.type,
                        metadata={"unit": "", "description": "Logged by the training."},
                    )
                )
                columns.append(values)
        steps = np.array([row["step"] for row in rows], dtype=np.int64)
        full = pa.schema(fields, metadata=schema.metadata)
        self._write_part("steps", pa.Table.from_arrays(columns, schema=full), steps)
        if self._rank == 0:
            numbers = np.array(
                [[_number(row.get(name)) for name in _OVERVIEW_STEPS] for row in rows]
            )
            known = np.array(
                [[row.get(name) is not None for name in _OVERVIEW_STEPS] for row in rows]
            )
            self._overviews["steps"].add(steps, np.zeros(len(rows), np.int32), numbers, known)

    def _write_part(self, table: str, rows: pa.Table, steps: NDArray[np.int64]) -> None:
        first, last = int(steps.min()), int(steps.max())
        parts.write_part(self.path / table, rows, first, last, self._rank, self._attempt)
        self._num_parts[table] += 1

    def _write_static(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._rank == 0:
            whole = pa.Table.from_pylist(list(rows), schema=TABLES[table])
            parts.write_table(self.path / f"{table}.parquet", whole)

    def _write_overview(self, table: str) -> None:
        overview = self._overviews[table]
        if self._rank == 0 and len(overview):
            parts.write_table(self.path / "overview" / f"{table}.parquet", overview.table())
            self._overview_bins[table] = len(overview)

    def _write_overviews(self) -> None:
        for table in self._overviews:
            self._write_overview(table)

    def _save_manifest(self) -> None:
        if self._rank != 0:
            return
        self._last_heartbeat = time.monotonic()
        self._manifest["heartbeat"] = datetime.now(UTC).isoformat()
        text = json.dumps(self._manifest, indent=1, ensure_ascii=False, default=str)
        parts.replace_file(
            self.path / "run.json", lambda hidden: hidden.write_text(text + "\n", encoding="utf-8")
        )


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _column(
    values: NDArray[np.float64], mask: NDArray[np.bool_] | None, type_: pa.DataType
) -> pa.Array:
    """One column of its type: null where the mask says so, NaN kept as a value."""
    if pa.types.is_integer(type_):
        kept = values if mask is None else np.where(mask, 0, values)
        return pa.array(kept.astype(np.int64), mask=mask).cast(type_)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf there
        return pa.array(values.astype(type_.to_pandas_dtype()), mask=mask)

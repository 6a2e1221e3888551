"""A run of any length in a constant number of bins.

A file ``overview/<table>/<start>-<end>.w<width>.parquet`` holds the bins of the steps from
``start`` to before ``end``, ``width`` steps a bin. When there would be more than 1024 bins,
neighbors are merged and the width doubles, so that a long run has 512 to 1024. A file whose steps
lie inside another's is not read. Steps that no file holds are read from the table itself. The bins
hold the rows of a process that is alone in its run. A table has no bins while reading its rows
costs no more.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.storage.arrays import conform, unified
from analyzer.storage.bin_file import COUNTS, Chunk, bins_from, chunks_in, table_from
from analyzer.storage.bins import Bins, Numbers, concatenated, rebinned, single
from analyzer.storage.parts import READ_FAILURES, replace_file, write_table
from analyzer.storage.schema import key_column
from analyzer.storage.sealed import encoding, open_file, placed, seal
from analyzer.storage.tables import StepTable

__all__ = ["MAX_BINS", "BinWriter", "TableBins"]

MAX_BINS = 1024
# Rows of one file: small enough to hold two of them in memory with a thousand layers.
_CHUNK_ROWS = 8_192
# Rows of a row group of the last file. What a reader does for each of them, and for each column in
# it, takes as long as to unpack 8,192 rows.
_GROUP_ROWS = 32_768
# Rows that are binned at once: the arrays for it are ten times as large as the rows.
_SLICE_ROWS = 8_192
# This many rows are read and binned in the time that opening and reading the bins takes, which are
# larger than the rows themselves until there are some thousand steps.
LEAST_ROWS = 100_000


class BinWriter:
    """The growing bins of one table: old ones on disk, only the newest in memory."""

    def __init__(self, folder: Path, table: str) -> None:
        self.width = 1
        self._folder, self._table, self._key = folder, table, key_column(table)
        self._chunk_bins = 0
        self._chunks: list[Chunk] = []
        # Bins that no file holds for good, the newest last; only that one still changes.
        self._tail: list[Bins] = []
        self._tail_start = self._end = 0
        self._saved_tail: Chunk | None = None

    def add(self, numbers: Numbers) -> None:
        """Add rows, whose steps do not lie before those of an earlier call."""
        for first in range(0, len(numbers.steps), _SLICE_ROWS):
            part = numbers.part(slice(first, first + _SLICE_ROWS))
            self.absorb(single(part), int(part.steps.max()) + 1)

    def absorb(self, bins: Bins, end: int) -> None:
        """Add bins that hold the steps to before ``end``."""
        self._chunk_bins = self._chunk_bins or _chunk_bins(bins)
        self._end = max(self._end, end)
        while (self._end - 1) // self.width >= MAX_BINS:
            self._double()
        self._extend_tail(rebinned(bins[bins.start >= self._tail_start], self.width))
        span = self._chunk_bins * self.width
        while self._end - self._tail_start > span:
            self._close_chunk(Chunk(self._tail_start, self._tail_start + span, self.width))

    def _extend_tail(self, bins: Bins) -> None:
        """Add bins of the present width; those that continue the newest bin join it."""
        if not len(bins):
            return
        grown = rebinned(concatenated([*self._tail[-1:], bins]), self.width)
        is_open = grown.start == grown.start[-1]
        self._tail[-1:] = [piece for piece in (grown[~is_open], grown[is_open]) if len(piece)]

    def _close_chunk(self, chunk: Chunk) -> None:
        """Move the oldest bins of the tail to disk."""
        tail = concatenated(self._tail)
        inside = tail.start < chunk.end
        self._write(chunk, tail[inside])
        self._tail, self._tail_start = [], chunk.end
        self._extend_tail(tail[~inside])
        self._chunks.append(chunk)

    def _write(self, chunk: Chunk, bins: Bins) -> None:
        write_table(self._folder / chunk.name, table_from(self._table, bins), self._place(chunk))

    def _place(self, chunk: Chunk) -> str:
        return f"{self._folder.name}/{chunk.name}"

    def _read(self, chunk: Chunk) -> Bins:
        with open_file(self._folder / chunk.name) as file:
            return bins_from(file.read(use_threads=False), self._key)

    def _remove(self, chunk: Chunk) -> None:
        (self._folder / chunk.name).unlink(missing_ok=True)

    def _double(self) -> None:
        """Double the width: pairs of files become one file, a file without partner goes back."""
        self.width *= 2
        chunks, self._chunks = self._chunks, []
        for left, right in zip(chunks[0::2], chunks[1::2], strict=False):
            merged = Chunk(left.start, right.end, self.width)
            both = concatenated([self._read(left), self._read(right)])
            self._write(merged, rebinned(both, self.width))
            self._chunks.append(merged)
            self._remove(left)
            self._remove(right)
        tail, self._tail = self._tail, []
        if len(chunks) % 2:
            tail.insert(0, self._read(chunks[-1]))
            self._remove(chunks[-1])
            self._tail_start = chunks[-1].start
        if tail:
            self._extend_tail(rebinned(concatenated(tail), self.width))

    def save(self) -> None:
        """Write the bins that are still growing, so that a reader has little to scan."""
        if not self._tail:
            return
        chunk = Chunk(self._tail_start, self._end, self.width)
        if chunk == self._saved_tail:
            return
        before, self._saved_tail = self._saved_tail, chunk
        self._write(chunk, concatenated(self._tail))
        if before is not None and before not in self._chunks:
            self._remove(before)

    def finish(self) -> None:
        """Write everything into one file."""
        self.save()
        chunks = [*self._chunks, *([self._saved_tail] if self._saved_tail else [])]
        if len(chunks) < 2:
            return
        whole = Chunk(chunks[0].start, max(chunk.end for chunk in chunks), self.width)
        replace_file(self._folder / whole.name, lambda hidden: self._copy(chunks, hidden, whole))
        for chunk in chunks:
            if chunk != whole:
                self._remove(chunk)

    def _copy(self, chunks: Sequence[Chunk], target: Path, whole: Chunk) -> None:
        """Copy files into one, several in a row group."""
        paths = [self._folder / chunk.name for chunk in chunks]
        schema = placed(unified(pq.read_schema(path) for path in paths), self._place(whole))
        counts = [name for name in schema.names if name.endswith(COUNTS)]
        with pq.ParquetWriter(
            target, schema, **encoding(schema, bounded=counts, is_quick=True)
        ) as writer:
            waiting: list[pa.Table] = []
            for path in paths:
                with open_file(path) as file:
                    waiting.append(conform(file.read(use_threads=False), schema))
                if sum(rows.num_rows for rows in waiting) >= _GROUP_ROWS or path == paths[-1]:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
        seal(target)

    def recover(self, before: int) -> int:
        """Take over what an earlier attempt left before the first step of this one.

        Returns the first step that is not taken over; rows from it to ``before`` are missing.
        """
        chunks = chunks_in(self._folder)
        self.width = max((chunk.width for chunk in chunks), default=1)
        cut = before // self.width * self.width
        # Open first, then remove: what an earlier attempt wrote past `before` must not be
        # shown beside this one, and an open file can be read to its end.
        files = [open_file(self._folder / chunk.name) for chunk in chunks]
        for chunk in chunks:
            self._remove(chunk)
        reached = 0
        for chunk, file in zip(chunks, files, strict=True):
            if chunk.start == reached:
                reached = min(chunk.end, cut)
                for bins in _groups(file, self._key):
                    self._take(rebinned(bins[bins.start < cut], self.width))
            file.close()
        return self._end_at(min(reached, cut))

    def _take(self, bins: Bins) -> None:
        if len(bins):
            self.absorb(bins, int(bins.start.max()) + 1)

    def _end_at(self, step: int) -> int:
        self._end = max(step, self._tail_start)
        return self._end


def _groups(file: pq.ParquetFile, key: str | None) -> Iterator[Bins]:
    for group in range(file.num_row_groups):
        yield bins_from(file.read_row_group(group), key)


def _chunk_bins(bins: Bins) -> int:
    """Bins of one file: a power of two, so that files fit together when the width doubles."""
    num_ids = max(1, len(np.unique(bins.ids)))
    wanted = max(8, min(128, _CHUNK_ROWS // num_ids))
    return 1 << (wanted.bit_length() - 1)


class TableBins:
    """Keeps the bins of one table of a run beside its rows, which are on disk already.

    Bins follow from rows: what goes wrong with them costs nothing. They are then made again at the
    end, and until then readers take from the rows what no bin holds.

    Args:
        run: Folder of the run.
        table: Name of the table.
        attempt: Number of this restart; bins of earlier ones are taken over.
    """

    def __init__(self, run: Path, table: str, attempt: int) -> None:
        self._folder = run / "overview" / table
        self._run, self._table, self._attempt = run, table, attempt
        self._bins: BinWriter | None = None
        self._num_rows = self._last = -1
        self._is_stale = False

    def add(self, numbers: Numbers) -> None:
        """Add rows that were written, whose steps do not lie before those of an earlier call."""
        if self._num_rows < 0:
            self._num_rows = 0
            if self._attempt > 0:
                self._attempt_to(lambda: self._take_over(numbers))
        self._num_rows += len(numbers.steps)
        self._last = max(self._last, int(numbers.steps.max()))
        if self._bins is not None:
            self._attempt_to(lambda: self._add(numbers))
        elif self._num_rows > LEAST_ROWS and not self._is_stale:
            self._attempt_to(lambda: self._begin(0, self._last))

    def _add(self, numbers: Numbers) -> None:
        assert self._bins is not None
        self._bins.add(numbers)

    def save(self) -> None:
        """Write the bins that are still growing, so that a reader has little to scan."""
        if self._bins is not None:
            self._attempt_to(self._bins.save)

    def finish(self) -> None:
        """Write everything into one file; from the rows where something went wrong before."""
        if self._bins is not None:
            self._attempt_to(self._bins.finish)
        if self._is_stale:
            self._is_stale = False
            self._attempt_to(self._make_again)

    def _attempt_to(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (*READ_FAILURES, MemoryError):
            self._bins, self._is_stale = None, True

    def _clear(self) -> None:
        for chunk in chunks_in(self._folder):
            (self._folder / chunk.name).unlink(missing_ok=True)

    def _make_again(self) -> None:
        self._clear()
        if self._num_rows > LEAST_ROWS:
            self._begin(0, self._last)
            assert self._bins is not None
            self._bins.finish()

    def _begin(self, first: int, last: int) -> None:
        """Make bins of the rows on disk, from one step to another."""
        bins = self._bins or BinWriter(self._folder, self._table)
        for numbers in self._rows().numbers(first, last, rank=0):
            bins.add(numbers)
        self._bins = bins

    def _take_over(self, numbers: Numbers) -> None:
        """Continue what earlier attempts left before the first step of this one."""
        first = int(numbers.steps.min())
        self._num_rows = self._rows().num_rows(rank=0) - len(numbers.steps)
        if not chunks_in(self._folder):
            return
        try:
            bins = BinWriter(self._folder, self._table)
            reached = bins.recover(first)
        except READ_FAILURES:
            # What they wrote past the first step must not be shown beside this attempt.
            self._clear()
            bins, reached = BinWriter(self._folder, self._table), 0
        self._bins = bins
        self._begin(reached, first - 1)

    def _rows(self) -> StepTable:
        return StepTable(self._run, self._table, lambda sentence: None)

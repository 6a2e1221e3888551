"""A run of any length in a constant number of bins.

A file ``overview/<table>/<start>-<end>.w<width>.parquet`` holds the bins of the steps from
``start`` to before ``end``, ``width`` steps a bin. When there would be more than 1024 bins,
neighbors are merged and the width doubles, so that a long run has 512 to 1024. A file whose steps
lie inside another's is not read. Steps that no file holds are read from the table itself. The bins
hold the rows of rank 0 as they were recorded.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analyzer.storage.arrays import as_array, as_numpy, conform, is_present, unified
from analyzer.storage.bins import Bins, concatenated, rebinned, single
from analyzer.storage.parts import encoding, listing, replace_file, write_table
from analyzer.storage.schema import TABLES, key_column

__all__ = ["MAX_BINS", "NUMBERS", "BinWriter", "Chunk", "bins_from", "chunks_in"]

MAX_BINS = 1024
# Rows of one file: small enough to hold two of them in memory with a thousand layers.
_CHUNK_ROWS = 8_192
# Rows that are binned at once: the arrays for it are ten times as large as the rows.
_SLICE_ROWS = 8_192
NUMBERS = ("min", "mean", "max", "num_finite", "num_nonfinite")
"""What a file holds of each column; its columns are ``<column>_<number>``."""

_NAME = re.compile(r"(\d{12,18})-(\d{12,18})\.w(\d{1,18})\.parquet")


@dataclass(frozen=True, order=True)
class Chunk:
    """One file of bins.

    Args:
        start: First step that it holds.
        end: Step after the last one.
        width: Steps per bin.
    """

    start: int
    end: int
    width: int

    @property
    def name(self) -> str:
        """The file name."""
        return f"{self.start:012d}-{self.end:012d}.w{self.width}.parquet"


def chunks_in(folder: Path) -> list[Chunk]:
    """Return the files of bins, by first step; they do not overlap."""
    found = []
    # A link may lead out of the run: the folder of all bins must be a plain one, too.
    for name in () if folder.parent.is_symlink() else listing(folder):
        match = _NAME.fullmatch(name)
        if match and int(match[3]) > 0:
            found.append(Chunk(*map(int, match.groups())))
    kept: list[Chunk] = []
    for chunk in sorted(found, key=lambda c: (c.start, -c.end, -c.width)):
        if not kept or chunk.end > kept[-1].end:
            kept.append(chunk)
    return kept


def _table_from(table: str, bins: Bins) -> pa.Table:
    """The columns of a file: start, id, rows, then five for each column of the table."""
    schema, key = TABLES[table], key_column(table)
    arrays: dict[str, Any] = {"start": bins.start}
    if key is not None:
        arrays[key] = bins.ids
    arrays["num_rows"] = bins.num_rows
    for place, name in enumerate(bins.columns):
        single_precision = name in schema.names and schema.field(name).type == pa.float32()
        kinds = [np.float32 if single_precision else np.float64] * 3 + [np.int32] * 2
        sources = (bins.low, bins.mean, bins.high, bins.finite, bins.nonfinite)
        for suffix, source, kind in zip(NUMBERS, sources, kinds, strict=True):
            arrays[f"{name}_{suffix}"] = source[:, place].astype(kind)
    return pa.table({name: as_array(values) for name, values in arrays.items()})


def bins_from(table: pa.Table, key: str | None) -> Bins:
    """Return the bins of the rows of a file, whose ids stand in the column ``key``, if any."""
    ending = f"_{NUMBERS[-1]}"
    columns = [n.removesuffix(ending) for n in table.column_names if n.endswith(ending)]
    start = as_numpy(table.column("start")).astype(np.int64, copy=False)
    ids = np.zeros(len(start), dtype=np.int32)
    if key is not None:
        ids = as_numpy(table.column(key)).astype(np.int32, copy=False)
    shape = (len(start), len(columns))
    low, mean, high = (np.empty(shape) for _ in range(3))
    finite, nonfinite = (np.empty(shape, dtype=np.int64) for _ in range(2))
    for place, name in enumerate(columns):
        for target, suffix in zip((low, mean, high, finite, nonfinite), NUMBERS, strict=True):
            # Null in the rows of a file that was written before the column was first logged.
            column = table.column(f"{name}_{suffix}")
            target[:, place] = as_numpy(column)
            if column.null_count:
                target[~is_present(column), place] = np.nan if target.dtype == np.float64 else 0
    num_rows = as_numpy(table.column("num_rows")).astype(np.int64, copy=False)
    return Bins(tuple(columns), start, ids, num_rows, low, mean, high, finite, nonfinite)


class BinWriter:
    """The growing bins of one table: old ones on disk, only the newest in memory.

    Args:
        folder: Folder of its files.
        table: Name of the table.
    """

    def __init__(self, folder: Path, table: str) -> None:
        self.width = 1
        self._folder, self._table, self._key = folder, table, key_column(table)
        self._chunk_bins = 0
        self._chunks: list[Chunk] = []
        # Bins that no file holds for good, the newest last; only that one still changes.
        self._tail: list[Bins] = []
        self._tail_start = self._end = 0
        self._saved_tail: Chunk | None = None

    def add(
        self,
        columns: Sequence[str],
        steps: NDArray[np.int64],
        ids: NDArray[np.int32],
        values: NDArray[np.float64],
        present: NDArray[np.bool_] | None,
    ) -> None:
        """Add rows, whose steps do not lie before those of an earlier call.

        Arguments are those of `analyzer.storage.bins.single`.

        Raises:
            OSError: If the disk refuses.
        """
        for first in range(0, len(steps), _SLICE_ROWS):
            rows = slice(first, first + _SLICE_ROWS)
            known = None if present is None else present[rows]
            bins = single(columns, steps[rows], ids[rows], values[rows], known)
            self.absorb(bins, int(steps[rows].max()) + 1)

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
        write_table(self._folder / chunk.name, _table_from(self._table, bins))

    def _read(self, chunk: Chunk) -> Bins:
        return bins_from(
            pq.ParquetFile(self._folder / chunk.name).read(use_threads=False), self._key
        )

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
        """Write the bins that are still growing, so that a reader has little to scan.

        Raises:
            OSError: If the disk refuses.
        """
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
        """Write everything into one file.

        Raises:
            OSError: If the disk refuses.
        """
        self.save()
        chunks = [*self._chunks, *([self._saved_tail] if self._saved_tail else [])]
        chunks = [chunk for chunk in chunks if (self._folder / chunk.name).exists()]
        if len(chunks) < 2:
            return
        whole = Chunk(chunks[0].start, max(chunk.end for chunk in chunks), self.width)
        replace_file(self._folder / whole.name, lambda hidden: self._copy(chunks, hidden))
        for chunk in chunks:
            if chunk != whole:
                self._remove(chunk)

    def _copy(self, chunks: Sequence[Chunk], target: Path) -> None:
        """Copy files into one, a row group each."""
        paths = [self._folder / chunk.name for chunk in chunks]
        schema = unified(pq.read_schema(path) for path in paths)
        with pq.ParquetWriter(target, schema, **encoding(schema)) as writer:
            for path in paths:
                writer.write_table(conform(pq.ParquetFile(path).read(use_threads=False), schema))

    def recover(self, before: int) -> int:
        """Take over what an earlier attempt left, as far as it lies before a step.

        Args:
            before: First step of this attempt.

        Returns:
            The first step that is not taken over; rows from it to ``before`` are still missing.
        """
        chunks = chunks_in(self._folder)
        self.width = max((chunk.width for chunk in chunks), default=1)
        cut = before // self.width * self.width
        # Open first, then remove: what an earlier attempt wrote past `before` must not be
        # shown beside this one, and an open file can be read to its end.
        files = [pq.ParquetFile(self._folder / chunk.name) for chunk in chunks]
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

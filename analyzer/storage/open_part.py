"""A part file that is open: its footer is checked and parsed once for all who ask."""

from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cachetools import LRUCache
from numpy.typing import NDArray

from analyzer.storage.arrays import is_plain
from analyzer.storage.column_chunks import group_bounds
from analyzer.storage.sealed import opened

__all__ = ["OpenPart", "open_part"]

# Columns of row groups whose places are kept: those of two tables of a thousand ranks and more.
_MOST_CHUNKS, _MOST_OPEN = 100_000, 256


class OpenPart:
    """A part file with its footer parsed: where it belongs, and where its steps lie.

    Of many parts the last ones stay open; another is opened again when it is read.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: If it is damaged.
    """

    def __init__(self, path: Path, identity: "_Identity | None" = None) -> None:
        self._path, self._identity = path, identity or _identity(path)
        # A file that is kept open would keep the bytes of what was read of it last.
        file, self.place, footer = opened(path, pre_buffer=False)
        # What a training logs is plain; nothing else has a place in a table.
        fields = list(file.schema_arrow)
        self.schema = pa.schema([field for field in fields if is_plain(field.type)])
        if not any(one.name == "step" and pa.types.is_integer(one.type) for one in fields):
            raise ValueError("it has no column 'step' of whole numbers")
        self._footer = footer
        self._bounds: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self.num_rows = file.metadata.num_rows
        groups = range(file.num_row_groups)
        self._rows_of_groups = [file.metadata.row_group(group).num_rows for group in groups]
        self.num_chunks = file.num_row_groups * file.metadata.num_columns
        self._again, self._file = file.opener(), file

    @property
    def bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first and the last steps of the row groups; all steps where one does not say them.

        They are looked for when first asked for: most parts are found and never read.
        """
        with _lock:
            if self._bounds is None:
                bounds = group_bounds(self._footer, "step", len(self._rows_of_groups))
                pairs = [known or (0, 2**62) for known in bounds]
                low, high = np.array(pairs, np.int64).reshape(-1, 2).T
                self._bounds, self._footer = (low, high), b""
            return self._bounds

    @property
    def file(self) -> pq.ParquetFile:
        """The file, open.

        Raises:
            FileNotFoundError: If another one has its name by now, or it was changed.
        """
        found = self._file
        if found is None:
            found = self._again(pa.OSFile(str(self._path), "rb"))
            if _identity(self._path) != self._identity:
                raise FileNotFoundError(f"{self._path.name} was changed meanwhile")
            self._file = found
            _keep_open(self)
        return found

    def spans(self) -> list[tuple[int, int]] | None:
        """Return the first and last steps of the row groups, if each step of them has one row.

        None where a group has more or fewer rows than that.
        """
        firsts, lasts = (ends.tolist() for ends in self.bounds)
        counts = [high - low + 1 for low, high in zip(firsts, lasts, strict=True)]
        known = counts == self._rows_of_groups
        return list(zip(firsts, lasts, strict=True)) if known else None

    def close(self) -> None:
        """Close the file, once nobody reads it any more, until it is asked for again."""
        self._file = None


class _LastOpen(LRUCache[OpenPart, None]):
    """The parts that were opened last; one that leaves is closed."""

    def popitem(self) -> tuple[OpenPart, None]:
        left = super().popitem()
        left[0].close()
        return left


_Identity = tuple[int, int, int]
_open = _LastOpen(_MOST_OPEN)
_parsed: "LRUCache[tuple[Path, _Identity], OpenPart]" = LRUCache(
    _MOST_CHUNKS, getsizeof=lambda part: min(part.num_chunks, _MOST_CHUNKS)
)
_lock = Lock()


def _identity(path: Path) -> _Identity:
    """What tells a file from one that is written over it, or has its name later."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _keep_open(part: OpenPart) -> None:
    with _lock:
        _open[part] = None


def open_part(path: Path) -> OpenPart:
    """Return a part; a file that was changed is looked at again."""
    key = (path, _identity(path))
    with _lock:
        found: OpenPart | None = _parsed.get(key)
    if found is None:
        found = OpenPart(path, key[1])
        _keep_open(found)
        with _lock:
            _parsed[key] = found
    return found

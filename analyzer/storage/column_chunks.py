"""What a footer says of its columns, read so that no content of it ends the process.

What Arrow throws in ``RowGroupMetaData.column``, for a footer that contradicts itself, is caught by
nobody: the process ends. A reader that is to fetch all columns looks at the same in C++, where it
is caught, before it asks for the first byte. ``statistics`` does so, too, for a bound of too few
bytes, and nothing in Arrow looks at these otherwise; they are read here.
"""

import io
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.errors import TooLargeError
from analyzer.storage.thrift import read_struct

__all__ = ["check_chunks", "group_bounds"]

# Fields of a column's metadata, and of the statistics in it: now, and in old files.
_PATH, _STATISTICS = 3, 12
_BOUNDS, _NULLS = ((6, 5), (2, 1)), 3
# Of a longer text the length takes several bytes.
_MOST_LETTERS = 127


class _NoBytes(io.RawIOBase):
    """A file of a size that has nothing to read, and knows whether somebody asked.

    It raises nothing: Arrow would keep the error, and with it all frames and what they hold.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self._at = size, 0
        self.was_asked = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, self._size)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        self.was_asked = True
        return b""

    def readinto(self, buffer: Any) -> int:
        self.was_asked = True
        return 0


def check_chunks(metadata: pq.FileMetaData, size: int) -> None:
    """Refuse a footer whose columns cannot be looked at; no byte of the file is read.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: If it is damaged.
    """
    reader, source = pq.ParquetReader(), _NoBytes(size)
    reader.open(pa.PythonFile(source, "r"), metadata=metadata, pre_buffer=True)
    groups, columns = range(metadata.num_row_groups), range(metadata.num_columns)
    try:
        reader.read_row_groups(list(groups), column_indices=list(columns), use_threads=False)
    except (OSError, ValueError, pa.ArrowException):
        # Whoever asks for the bytes of columns has accepted what the footer says of them.
        if not source.was_asked:
            raise


def group_bounds(footer: bytes, name: str, count: int) -> list[tuple[int, int] | None]:
    """Return the smallest and the largest value of a column of whole numbers in each row group.

    None where some are null, and where the footer does not say it, or in a way that no writer uses.

    Args:
        footer: The bytes of the footer.
        name: Name of the column.
        count: How many row groups there are.
    """
    text = name.encode()
    if len(text) > _MOST_LETTERS:
        return [None] * count
    # A list of one text, in the field after that of the encodings.
    path = re.compile(re.escape(b"\x19\x18" + bytes([len(text)]) + text))
    places = [found.end() for found in path.finditer(footer)]
    return [_bounds(footer, at) for at in places] if len(places) == count else [None] * count


def _bounds(footer: bytes, at: int) -> tuple[int, int] | None:
    try:
        _, found = read_struct(footer, at, number=_PATH, last=_STATISTICS)
    except (IndexError, TooLargeError):
        return None
    if found.get((_STATISTICS, _NULLS), 0) != 0:
        return None
    for fields in _BOUNDS:
        low, high = (found.get((_STATISTICS, field), b"") for field in fields)
        if isinstance(low, bytes) and isinstance(high, bytes) and len(low) == len(high) in (4, 8):
            return _whole(low), _whole(high)
    return None


def _whole(value: bytes) -> int:
    return int.from_bytes(value, "little", signed=True)

"""A part file that is open: its footer is checked and parsed once for all who ask."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from analyzer.storage.arrays import is_plain
from analyzer.storage.column_chunks import group_bounds
from analyzer.storage.sealed import opened

__all__ = ["OpenPart", "open_part"]


class OpenPart:
    """A part file with its footer parsed: where it belongs, and where its steps lie.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: If it is damaged.
    """

    def __init__(self, path: Path) -> None:
        # A file that is kept open would keep the bytes of what was read of it last.
        self.file, self.place, footer = opened(path, pre_buffer=False)
        # What a training logs is plain; nothing else has a place in a table.
        self.schema = pa.schema([f for f in self.file.schema_arrow if is_plain(f.type)])
        place = self.file.schema_arrow.get_field_index("step")
        if place < 0 or not pa.types.is_integer(self.file.schema_arrow.field(place).type):
            raise ValueError("it has no column 'step' of whole numbers")
        bounds = group_bounds(footer, "step", self.file.num_row_groups)
        pairs = [known or (0, 2**62) for known in bounds]
        self.low, self.high = np.array(pairs, np.int64).reshape(-1, 2).T
        self.num_rows = self.file.metadata.num_rows


@lru_cache(maxsize=256)
def _opened(path: Path, _inode: int, _changed: int, _size: int) -> OpenPart:
    return OpenPart(path)


def open_part(path: Path) -> OpenPart:
    """Return an open part; the last ones stay open, and a file that was changed is opened again."""
    stat = path.stat()
    return _opened(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)

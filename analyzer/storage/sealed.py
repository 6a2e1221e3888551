"""Parquet files that say where they belong, and whether a byte of them has changed.

Each page has a checksum. That of the footer, and that of all pages of a small file, stand between
the last page and the footer, where no other reader looks; so does no reader of ours for a file that
has none, which an earlier version wrote. Under ``place`` the metadata name the file as it lies in
the run: ``steps/000000000000-000000000199.r0.a0.p0-0.parquet``.
"""

import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.storage.limits import LIMITS, checked_file

__all__ = ["encoding", "open_file", "opened", "place_of", "placed", "seal"]

_MARK = b"GFlowS1\n"
_SEAL = struct.Struct("<8sII")
_TAIL = struct.Struct("<I4s")
# A larger file has mostly pages, whose own checksums are verified as they are read.
_SMALL_BYTES = 4 << 20


def encoding(
    schema: pa.Schema,
    ids: Sequence[str] = ("layer", "parameter", "join"),
    bounded: Sequence[str] = (),
    *,
    is_quick: bool = False,
) -> dict[str, object]:
    """Return the options that measured best: a dictionary for ids alone, floats split by byte.

    Only ``step`` and ``start`` get statistics, by which a reader skips row groups, and what is
    ``bounded``. What ``is_quick`` is read in two thirds of the time, and is a twentieth larger.
    """
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    return {
        **({"compression": "lz4"} if is_quick else {"compression": "zstd", "compression_level": 1}),
        "use_dictionary": [name for name in ids if name in schema.names] or False,
        "use_byte_stream_split": floats or False,
        "write_statistics": [n for n in schema.names if n in ("step", "start", *bounded)] or False,
        "write_page_checksum": True,
    }


def placed(schema: pa.Schema, place: str) -> pa.Schema:
    """Return a schema whose file will say that it belongs to this place of the run."""
    return schema.with_metadata({**(schema.metadata or {}), b"place": place.encode()})


def seal(path: Path) -> None:
    """Add the checksums to a file with a place that was written whole."""
    with path.open("r+b") as file:
        start, footer = _footer(file)
        file.seek(0)
        pages = zlib.crc32(file.read(start)) if start <= _SMALL_BYTES else 0
        file.seek(start)
        file.write(_SEAL.pack(_MARK, pages, zlib.crc32(footer)) + footer)


def _footer(file: BinaryIO) -> tuple[int, bytes]:
    """Where the footer begins, and all bytes from there."""
    size = file.seek(0, 2)
    if size < _TAIL.size:
        raise ValueError(f"it has {size} bytes")
    file.seek(size - _TAIL.size)
    length, magic = _TAIL.unpack(file.read(_TAIL.size))
    start = size - _TAIL.size - length
    if magic != b"PAR1" or start < 4:
        raise ValueError("its end is missing")
    LIMITS.check("footer_mib", length / 2**20, "its footer takes")
    file.seek(start)
    return start, file.read()


def opened(path: Path, **options: Any) -> tuple[pq.ParquetFile, str | None, bytes]:
    """Open a file that is whole; return it, where it belongs, and its footer.

    The place is None for a file of an earlier version.

    Bytes of large files are verified as they are read. What is returned is what was checked, even
    if another file has taken the name meanwhile.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: If it is damaged.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is a folder, a pipe or a device")  # a pipe would never open
    source = pa.OSFile(str(path), "rb")
    start, footer = _footer(source)
    end = start - _SEAL.size
    source.seek(max(0, end))
    mark, pages, whole = _SEAL.unpack(source.read(_SEAL.size)) if end >= 4 else (b"", 0, 0)
    if mark == _MARK:
        if zlib.crc32(footer) != whole:
            raise ValueError("its footer does not match its checksum")
        if end <= _SMALL_BYTES:
            source.seek(0)
            if zlib.crc32(source.read(end)) != pages:
                raise ValueError("its pages do not match their checksum")
    file = checked_file(source, page_checksum_verification=True, **options)
    found = (file.metadata.metadata or {}).get(b"place")
    if (found is not None) != (mark == _MARK):
        raise ValueError("its seal is missing")
    return file, None if found is None else found.decode(), footer


def place_of(path: Path) -> str | None:
    """Return where a file that is whole belongs; see `opened`."""
    return opened(path)[1]


def open_file(path: Path, **options: Any) -> pq.ParquetFile:
    """Open a file that is whole, and lies where it belongs; see `opened`.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: If it is damaged, or another file has its name.
    """
    return open_with_footer(path, **options)[0]


def open_with_footer(path: Path, **options: Any) -> tuple[pq.ParquetFile, bytes]:
    """Open a file as `open_file` does; return it and its footer."""
    file, place, footer = opened(path, **options)
    if place is not None and not f"/{path.as_posix()}".endswith(f"/{place}"):
        raise ValueError(f"it is {place!r} under another name")
    return file, footer

"""What the headers of a file's pages say, before a page is unpacked: the decoder believes them."""

import struct
from typing import Any

from analyzer.errors import TooLargeError
from analyzer.storage.thrift import read_struct

__all__ = ["check_pages"]

_MIB = 1 << 20
_HEADER_BYTES = 128
# The fields in which the header describes a page of rows, of either version.
_DATA_PAGES = (5, 8)


def check_pages(source: Any, chunk: Any, end: int) -> None:
    """Refuse a column whose pages take more, once unpacked, than the footer says of them."""
    at = chunk.data_page_offset
    if chunk.dictionary_page_offset is not None:
        at = min(at, chunk.dictionary_page_offset)
    last = at + chunk.total_compressed_size
    if not 0 <= at <= last <= end:
        raise TooLargeError("a column lies outside of it")
    left, values = chunk.total_uncompressed_size, chunk.num_values
    while at < last:
        length, unpacked, packed, count = _page_header(source, at)
        left, values = left - unpacked, values - count
        if min(packed, unpacked, count, left, values) < 0:
            raise TooLargeError(
                f"the pages of column {chunk.path_in_schema[:80]!r} take more than its footer says"
            )
        at += length + packed


def _page_header(source: Any, at: int) -> tuple[int, int, int, int]:
    """Return the length of the header at a place; of its page the sizes, unpacked and packed, and
    how many values it holds.
    """
    size = _HEADER_BYTES
    while True:
        source.seek(at)
        data = source.read(size)
        try:
            end, numbers = read_struct(data, 0)
            counts = [numbers.get((kind, 1), 0) for kind in _DATA_PAGES]
            if any(isinstance(x, bytes) for x in (numbers[2], numbers[3], *counts)):
                raise TooLargeError("the header of a page holds bytes in place of a number")
            return end, numbers[2], numbers[3], sum(counts)
        except (IndexError, KeyError, struct.error) as error:
            if len(data) < size or size > _MIB:
                raise TooLargeError("the header of a page cannot be read") from error
            size *= 8

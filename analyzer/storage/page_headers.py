"""What the headers of a file's pages say, before a page is unpacked: the decoder believes them.

They are written in the compact protocol of Thrift; of it, what such a header may hold is read.
"""

import struct
from typing import Any

from analyzer.errors import TooLargeError

__all__ = ["check_pages"]

_MIB = 1 << 20
_MOST_DEPTH = 8
_HEADER_BYTES = 128


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
            end, numbers = _struct(data, 0)
            count = sum(numbers.get((kind, 1), 0) for kind in _DATA_PAGES)
            return end, numbers[2], numbers[3], count
        except (IndexError, KeyError, struct.error) as error:
            if len(data) < size or size > _MIB:
                raise TooLargeError("the header of a page cannot be read") from error
            size *= 8


# The fields in which the header describes a page of rows, of either version.
_DATA_PAGES = (5, 8)


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[int, dict[Any, int]]:
    """Read a struct: the place after it, and its whole numbers by the number of their field.

    A number in a struct in it has the numbers of both fields.
    """
    found: dict[Any, int] = {}
    number = 0
    while True:
        head, at = data[at], at + 1
        if head == 0:
            return at, found
        if depth > _MOST_DEPTH:
            raise TooLargeError("the header of a page is nested too deep")
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            at, number = _number(data, at)
        if kind in (1, 2):  # true and false have no value of their own
            continue
        if kind in (3, 4, 5, 6):
            at, found[number] = (at + 1, data[at]) if kind == 3 else _number(data, at)
        elif kind == 12:
            at, inner = _struct(data, at, depth + 1)
            found |= {(number, name): value for name, value in inner.items()}
        else:
            at = _skip(data, at, kind)


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return at, (value >> 1) ^ -(value & 1)
        if shift > 63:
            raise TooLargeError("the header of a page cannot be read")


def _skip(data: bytes, at: int, kind: int) -> int:
    """The place after a number of 8 bytes or a text."""
    if kind == 7:
        return at + 8
    if kind == 8:
        at, twice = _number(data, at)
        length = (twice << 1) ^ (twice >> 63)  # lengths are not in zigzag
        if not 0 <= length <= _MIB:
            raise TooLargeError("the header of a page cannot be read")
        if at + length > len(data):
            raise IndexError
        return at + length
    raise TooLargeError("the header of a page cannot be read")

"""Structs in the compact protocol of Thrift, as far as the headers of Parquet files need it."""

from typing import Any

from analyzer.errors import TooLargeError

__all__ = ["read_struct"]

_MIB = 1 << 20
_MOST_DEPTH = 8


def read_struct(
    data: bytes, at: int, depth: int = 0, *, number: int = 0, last: int = 1 << 15
) -> tuple[int, dict[Any, Any]]:
    """Read a struct: the place after it, and its whole numbers and bytes by their field.

    What is in a struct in it has the numbers of both fields.

    Args:
        data: The bytes.
        at: Where it begins, or where in it the field after ``number`` does.
        depth: In how many others it is.
        number: The field that was read before.
        last: Number of the field that is enough: later ones are not read.

    Raises:
        IndexError: If it is longer than the bytes.
        TooLargeError: If something else is there.
    """
    found: dict[Any, Any] = {}
    while number < last:
        head, at = data[at], at + 1
        if head == 0:
            return at, found
        if depth > _MOST_DEPTH:
            raise TooLargeError("it is nested too deep")
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
            at, inner = read_struct(data, at, depth + 1)
            found |= {(number, name): value for name, value in inner.items()}
        elif kind == 8:
            at, found[number] = _bytes(data, at)
        elif kind == 7:
            at += 8
        else:
            raise TooLargeError("it holds what cannot be read")
    return at, found


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return at, (value >> 1) ^ -(value & 1)
        if shift > 63:
            raise TooLargeError("it holds what cannot be read")


def _bytes(data: bytes, at: int) -> tuple[int, bytes]:
    at, twice = _number(data, at)
    length = (twice << 1) ^ (twice >> 63)  # lengths are not in zigzag
    if not 0 <= length <= _MIB:
        raise TooLargeError("it holds what cannot be read")
    if at + length > len(data):
        raise IndexError
    return at + length, data[at : at + length]

"""What a file may take before it is read: a run folder may come from anybody.

A file of 10 kB can hold one name of 100 MB, and one of 4 MB rows that fill 24 GB. What it would
take is known from its footer, from the headers of its pages, which the decoder believes, and, for
text, from the lengths of its dictionary.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analyzer.errors import AnalyzerError

__all__ = ["LIMITS", "Limits", "TooLargeError", "checked_file", "set_limits"]

_MIB = 1 << 20
# Rows that are all zero take a seven hundredth of their memory.
_MOST_RATIO, _ALWAYS_MIB = 1000, 64
_MOST_DEPTH = 8
_MOST_CHUNKS = 200_000
_HEADER_BYTES = 128


@dataclass
class Limits:
    """The most that is read of one file, as ``[tool.analyzer.limits]`` may set it.

    Attributes:
        columns: Columns of it.
        files: Files of one folder.
        footer_mib: Size of its description.
        manifest_mib: Size of ``run.json``.
        unpacked_mib: Memory that its rows take.
        text_mib: Text of one column of a row group.
        name_length: Characters of a name.
    """

    columns: int = 10_000
    files: int = 20_000
    footer_mib: int = 16
    manifest_mib: int = 4
    unpacked_mib: int = 4096
    text_mib: int = 64
    name_length: int = 65_536

    def check(self, name: str, found: float, what: str) -> None:
        """Raise TooLargeError where a file has more than the limit of that name."""
        most = getattr(self, name)
        if found > most:
            raise TooLargeError(
                f"{what} {found:,.0f}{' MiB' if name.endswith('mib') else ''}, expected at most "
                f"{most:,}; if you trust it, set {name} in [tool.analyzer.limits]"
            )


class TooLargeError(AnalyzerError, ValueError):
    """A file would take more than it may, or other than it says."""


LIMITS = Limits()


def set_limits(given: dict[str, Any]) -> None:
    """Set limits; raise ValueError for a name or value that is none."""
    names = [field.name for field in fields(Limits)]
    for name, value in given.items():
        if name not in names or type(value) is not int or value <= 0:
            raise ValueError(f"{name} = {value!r}; expected a whole number for {', '.join(names)}")
        setattr(LIMITS, name, value)


def checked_file(source: Any, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file that takes no more than it may; what is read of it is checked as well.

    Raises:
        TooLargeError: If it would, with the limit and how to raise it.
    """
    size = source.size()
    file = pq.ParquetFile(source, thrift_string_size_limit=LIMITS.footer_mib * _MIB, **options)
    metadata = file.metadata
    LIMITS.check("columns", metadata.num_columns, "its columns number")
    schema = file.schema_arrow
    names = [field.name for field in schema]
    if len(set(names)) < len(names):
        raise ValueError(f"it has column {max(names, key=names.count)[:80]!r} several times")
    LIMITS.check("name_length", max(map(len, names), default=0), "the name of a column has")
    if metadata.num_columns * metadata.num_row_groups > _MOST_CHUNKS:
        raise TooLargeError(f"it has {metadata.num_row_groups:,} row groups")
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    columns = [file.schema.column(place) for place in range(metadata.num_columns)]
    texts = [place for place, one in enumerate(columns) if one.physical_type == "BYTE_ARRAY"]
    if any(one.path.count(".") > _MOST_DEPTH for one in columns):
        raise TooLargeError(f"its columns are nested more than {_MOST_DEPTH} deep")
    num_rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    unpacked = _memory_of(schema) * num_rows / _MIB
    for group in groups:
        for place in texts:
            text = group.column(place).total_uncompressed_size / _MIB
            LIMITS.check("text_mib", text, "the text of one of its columns takes")
            unpacked += text
    LIMITS.check("unpacked_mib", unpacked, "its rows take")
    if unpacked > _ALWAYS_MIB and unpacked * _MIB > size * _MOST_RATIO:
        raise TooLargeError(
            f"its rows take {unpacked:,.0f} MiB, more than {_MOST_RATIO:,} times its own size"
        )
    as_dictionary = [columns[place].path for place in texts]
    return _Checked(source, size, metadata=metadata, read_dictionary=as_dictionary, **options)


def _memory_of(schema: pa.Schema) -> float:
    """Bytes that a row takes, without its text: 1 for a truth value, 8 for what is nested."""
    types = (field.type for field in schema)
    return sum(
        max(type_.bit_width / 8, 1) if pa.types.is_primitive(type_) else 8 for type_ in types
    )


class _Checked(pq.ParquetFile):  # type: ignore[misc]
    """Looks at the headers of the pages before it reads them, and at texts before it repeats them.

    Each text is read once, as a dictionary, and written out only where that is not too long.
    """

    def __init__(self, source: Any, size: int, **options: Any) -> None:
        super().__init__(source, **options)
        self._pages, self._size = source, size
        self._seen: set[tuple[int, int]] = set()
        self._paths = [self.schema.column(place).path for place in range(len(self.schema))]
        # Arrow does not put lists of dictionaries together.
        self._has_lists = any("." in path for path in options["read_dictionary"])

    def read(self, columns: Any = None, **options: Any) -> pa.Table:
        if self._has_lists:
            return self.read_row_groups(range(self.num_row_groups), columns, **options)
        self._look(range(self.num_row_groups), columns)
        return _spelled_out(super().read(columns, **options))

    def read_row_groups(self, row_groups: Any, columns: Any = None, **options: Any) -> pa.Table:
        self._look(row_groups, columns)
        groups = list(row_groups)
        sets = [[group] for group in groups] if self._has_lists else [groups]
        parts = [super(_Checked, self).read_row_groups(s, columns, **options) for s in sets]
        return pa.concat_tables(map(_spelled_out, parts or [super().read(columns, **options)]))

    def read_row_group(self, i: int, columns: Any = None, **options: Any) -> pa.Table:
        return self.read_row_groups([i], columns, **options)

    def iter_batches(
        self, batch_size: int = 65536, row_groups: Any = None, columns: Any = None, **options: Any
    ) -> Iterator[pa.RecordBatch]:
        groups = range(self.num_row_groups) if row_groups is None else row_groups
        self._look(groups, columns)
        sets = [[group] for group in groups] if self._has_lists else [list(groups)]
        for some in sets:
            for batch in super().iter_batches(batch_size, some, columns, **options):
                yield from _spelled_out(pa.Table.from_batches([batch])).to_batches() or [batch]

    @property
    def schema_arrow(self) -> pa.Schema:
        found = super().schema_arrow
        for place, field in enumerate(found):
            found = found.set(place, field.with_type(_spelled(field.type)))
        return found

    def _look(self, groups: Iterable[int], columns: Sequence[str] | None) -> None:
        names = None if columns is None else set(columns)
        places = [
            place
            for place, path in enumerate(self._paths)
            if names is None or path in names or path.partition(".")[0] in names
        ]
        for group in groups:
            for place in places:
                if (group, place) in self._seen:
                    continue
                chunk = self.metadata.row_group(group).column(place)
                if chunk.num_values:
                    _check_pages(self._pages, chunk, self._size)
                self._seen.add((group, place))


def _spelled(type_: pa.DataType) -> pa.DataType:
    """A type with text in place of dictionaries of text."""
    if pa.types.is_dictionary(type_):
        return type_.value_type
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_spelled(type_.value_type)))
    return type_


def _spelled_out(rows: pa.Table) -> pa.Table:
    for place, field in enumerate(rows.schema):
        wanted = _spelled(field.type)
        if wanted == field.type:
            continue
        for chunk in rows.column(place).chunks:
            _check_text(chunk)
        rows = rows.set_column(place, field.with_type(wanted), rows.column(place).cast(wanted))
    return rows


def _check_text(column: pa.Array) -> None:
    """Refuse text that is too long, or that repeats too often."""
    while pa.types.is_list(column.type):
        column = column.flatten()
    column.dictionary.validate(full=True)  # that it is UTF-8
    lengths = pc.binary_length(column.dictionary)
    LIMITS.check("name_length", pc.max(lengths).as_py() or 0, "a name in it has characters:")
    whole = pc.sum(pc.take(lengths, column.indices).cast(pa.int64())).as_py() or 0
    LIMITS.check("text_mib", whole / _MIB, "the text of one of its columns takes")


# --- headers of pages: the compact protocol of Thrift ----------------------------------------


def _check_pages(source: Any, chunk: Any, end: int) -> None:
    """Refuse a column whose pages take more, once unpacked, than the footer says of them."""
    at = chunk.data_page_offset
    if chunk.dictionary_page_offset is not None:
        at = min(at, chunk.dictionary_page_offset)
    last = at + chunk.total_compressed_size
    if not 0 <= at <= last <= end:
        raise TooLargeError("a column lies outside of it")
    left = chunk.total_uncompressed_size
    while at < last:
        length, unpacked, packed = _page_header(source, at)
        left -= unpacked
        if packed < 0 or unpacked < 0 or left < 0:
            raise TooLargeError(
                f"the pages of column {chunk.path_in_schema[:80]!r} take more than its footer says"
            )
        at += length + packed


def _page_header(source: Any, at: int) -> tuple[int, int, int]:
    """Return the length of the header at a place, and the sizes of its page unpacked and packed."""
    size = _HEADER_BYTES
    while True:
        source.seek(at)
        data = source.read(size)
        try:
            end, numbers = _struct(data, 0)
            return end, numbers[2], numbers[3]
        except (IndexError, KeyError, struct.error) as error:
            if len(data) < size or size > _MIB:
                raise TooLargeError("the header of a page cannot be read") from error
            size *= 8


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[int, dict[int, int]]:
    """Read a struct: the place after it, and its whole numbers by the number of their field."""
    found: dict[int, int] = {}
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
        else:
            at = _skip(data, at, kind, depth)


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


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    """The place after a number of 8 bytes, a text, or a struct."""
    if kind == 7:
        return at + 8
    if kind == 12:
        return _struct(data, at, depth + 1)[0]
    if kind == 8:
        at, twice = _number(data, at)
        length = (twice << 1) ^ (twice >> 63)  # lengths are not in zigzag
        if not 0 <= length <= _MIB:
            raise TooLargeError("the header of a page cannot be read")
        if at + length > len(data):
            raise IndexError
        return at + length
    raise TooLargeError("the header of a page cannot be read")

"""What a file may take before it is read: a run folder may come from anybody.

A file of 10 kB can hold one name of 100 MB, and one of 4 MB rows that fill 24 GB. What it would
take is known from its footer, from the headers of its pages, which the decoder believes, and, for
text, from the lengths of its dictionary. What many such files take together is counted as they are
read.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analyzer.errors import TooLargeError, TooMuchError
from analyzer.storage.column_chunks import check_chunks
from analyzer.storage.page_headers import check_pages

__all__ = [
    "LIMITS",
    "LISTED",
    "Limits",
    "Total",
    "checked_file",
    "set_limits",
    "stricter",
]

_MIB = 1 << 20
# Rows that are all zero take a seven hundredth of their memory.
_MOST_RATIO, _ALWAYS_MIB = 1000, 64
_MOST_DEPTH = 8
# Of what a question reads, it keeps a part.
_MOST_READ = 4
_MOST_CHUNKS = 200_000


@dataclass
class Limits:
    """The most that is read of one file or table, as ``[tool.analyzer.limits]`` may set it.

    Attributes:
        columns: Columns of it.
        copied_mib: What is copied of a URL at a time.
        files: Files of one folder.
        footer_mib: Size of its description.
        manifest_mib: Size of ``run.json``.
        names: Rows of a table of layers, parameters or joins.
        total_mib: Memory that the rows take which one question reads of all files of a table.
        unpacked_mib: Memory that its rows take.
        text_mib: Text of one column of a row group.
        name_length: Characters of a name.
    """

    columns: int = 10_000
    copied_mib: int = 16_384
    files: int = 20_000
    footer_mib: int = 16
    manifest_mib: int = 4
    names: int = 200_000
    total_mib: int = 2048
    unpacked_mib: int = 4096
    text_mib: int = 64
    name_length: int = 65_536

    def check(self, name: str, found: float, what: str) -> None:
        """Raise TooLargeError where a file has more than the limit of that name."""
        most = min(getattr(self, name), _stricter.get().get(name, math.inf))
        if found > most:
            raise TooLargeError(
                f"{what} {found:,.0f}{' MiB' if name.endswith('mib') else ''}, expected at most "
                f"{most:,}; if you trust it, set {name} in [tool.analyzer.limits]"
            )


LIMITS = Limits()
_NONE: Mapping[str, float] = {}
_stricter: ContextVar[Mapping[str, float]] = ContextVar("stricter", default=_NONE)


LISTED = {"total_mib": 24, "files": 1_000}
"""What one run among many in a list may take."""


@contextmanager
def stricter(**most: float) -> Iterator[None]:
    """Read less meanwhile, as a list of many runs has to: limits by their names."""
    token = _stricter.set(most)
    try:
        yield
    finally:
        _stricter.reset(token)


class Total:
    """Counts the memory that one question takes of many files, each of which may be read.

    Args:
        what: What is read, as a sentence begins.
    """

    def __init__(self, what: str) -> None:
        self._what, self._taken, self._read = what, 0.0, 0.0

    def check(self, more: float) -> None:
        """Refuse a question that would read ``more`` further bytes, where that is too much.

        Most of what is read may be dropped at once; but that takes time, too.

        Raises:
            TooMuchError: If that is more than it may, with the limit and how to raise it.
        """
        self._read += more
        most = max(self._taken + more, self._read / _MOST_READ)
        try:
            LIMITS.check("total_mib", most / _MIB, f"{self._what} take")
        except TooLargeError as error:
            raise TooMuchError(f"{error}, or ask for fewer columns or steps") from None

    def kept(self, rows: pa.Table) -> pa.Table:
        """Return rows that were read and are kept."""
        self._taken += rows.nbytes
        self.check(0)
        return rows


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
    reader = pq.ParquetReader()
    reader.open(source, thrift_string_size_limit=LIMITS.footer_mib * _MIB, **options)
    metadata = reader.metadata
    LIMITS.check("columns", metadata.num_columns, "its columns number")
    names = [field.name for field in reader.schema_arrow]
    if len(set(names)) < len(names):
        raise ValueError(f"it has column {max(names, key=names.count)[:80]!r} several times")
    LIMITS.check("name_length", max(map(len, names), default=0), "the name of a column has")
    if metadata.num_columns * metadata.num_row_groups > _MOST_CHUNKS:
        raise TooLargeError(f"it has {metadata.num_row_groups:,} row groups")
    check_chunks(metadata, size)
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    columns = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    texts = [place for place, one in enumerate(columns) if one.physical_type == "BYTE_ARRAY"]
    if any(one.path.count(".") > _MOST_DEPTH for one in columns):
        raise TooLargeError(f"its columns are nested more than {_MOST_DEPTH} deep")
    unpacked = sum(
        width * group.column(place).num_values
        for place, width in enumerate(map(_width_of, columns))
        for group in groups
    )
    for group in groups:
        for place in texts:
            text = group.column(place).total_uncompressed_size / _MIB
            LIMITS.check("text_mib", text, "the text of one of its columns takes")
            unpacked += text * _MIB
    _check_unpacked(unpacked, size)
    as_dictionary = [columns[place].path for place in texts]
    return _Checked(source, size, metadata=metadata, read_dictionary=as_dictionary, **options)


_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "BYTE_ARRAY": 8}


def _width_of(column: Any) -> float:
    """Bytes that a value of a column takes, of text its place alone; it may have any width."""
    return float(max(_WIDTHS.get(column.physical_type, 8), column.length))


def _check_unpacked(unpacked: float, size: int) -> None:
    """Refuse rows that take so much memory, or so much more than their file of this size."""
    LIMITS.check("unpacked_mib", unpacked / _MIB, "its rows take")
    if unpacked > _ALWAYS_MIB * _MIB and unpacked > size * _MOST_RATIO:
        raise TooLargeError(
            f"its rows take {unpacked / _MIB:,.0f} MiB, more than {_MOST_RATIO:,} times its size"
        )


class _Checked(pq.ParquetFile):  # type: ignore[misc]
    """Looks at the headers of the pages before it reads them, and at texts before it repeats them.

    Each text is read once, as a dictionary, and written out only where that is not too long.
    Threads take turns: Arrow's reader of a file is not made for several at once.
    """

    def __init__(self, source: Any, size: int, **options: Any) -> None:
        super().__init__(source, **options)
        self._options = {name: value for name, value in options.items() if name != "metadata"}
        self._pages, self._size, self._turn = source, size, threading.RLock()
        self._seen: set[tuple[int, int]] = set()
        self._paths = [self.schema.column(place).path for place in range(len(self.schema))]
        # Arrow does not put lists of dictionaries together.
        self._has_lists = any("." in path for path in options["read_dictionary"])

    def opener(self) -> Callable[[Any], "_Checked"]:
        """Return what opens a source of the same bytes once this file is closed.

        Nothing of it that was looked at is looked at twice.
        """
        size, metadata, options, seen = self._size, self.metadata, self._options, self._seen

        def again(source: Any) -> _Checked:
            found = _Checked(source, size, metadata=metadata, **options)
            found._seen = seen
            return found

        return again

    def memory_of(self, groups: Iterable[int], columns: Sequence[str] | None = None) -> float:
        """Return the bytes that columns of row groups take, of text its places alone."""
        looked = [self.metadata.row_group(group) for group in groups]
        sizes = (
            _width_of(self.schema.column(place)) * group.column(place).num_values
            for place in self._places(columns)
            for group in looked
        )
        return float(sum(sizes))

    def read(self, columns: Any = None, **options: Any) -> pa.Table:
        if self._has_lists:
            return self.read_row_groups(range(self.num_row_groups), columns, **options)
        with self._turn:
            self._look(range(self.num_row_groups), columns)
            (whole,) = self._spelled_out([super().read(columns, **options)])
        return whole

    def read_row_groups(self, row_groups: Any, columns: Any = None, **options: Any) -> pa.Table:
        groups = list(row_groups)
        sets = [[group] for group in groups] if self._has_lists and groups else [groups]
        read = super().read_row_groups
        with self._turn:
            self._look(groups, columns)
            return pa.concat_tables(self._spelled_out(read(s, columns, **options) for s in sets))

    def read_row_group(self, i: int, columns: Any = None, **options: Any) -> pa.Table:
        return self.read_row_groups([i], columns, **options)

    def iter_batches(
        self, batch_size: int = 65536, row_groups: Any = None, columns: Any = None, **options: Any
    ) -> Iterator[pa.RecordBatch]:
        groups = range(self.num_row_groups) if row_groups is None else row_groups
        with self._turn:
            self._look(groups, columns)
        sets = [[group] for group in groups] if self._has_lists else [list(groups)]
        for some in sets:
            batches = super().iter_batches(batch_size, some, columns, **options)
            while True:
                with self._turn:
                    batch = next(batches, None)
                if batch is None:
                    break
                (rows,) = self._spelled_out([pa.Table.from_batches([batch])])
                yield from rows.to_batches() or [batch]

    @property
    def schema_arrow(self) -> pa.Schema:
        found = super().schema_arrow
        # At once: a schema that is changed field by field is copied as often.
        fields = [field.with_type(_spelled(field.type)) for field in found]
        return pa.schema(fields, found.metadata)

    def _spelled_out(self, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Tables with text in place of dictionaries, unless it takes too much in all of them."""
        text = 0
        for rows in parts:
            for place, field in enumerate(rows.schema):
                wanted = _spelled(field.type)
                if wanted == field.type:
                    continue
                text += sum(map(_text_in, rows.column(place).chunks))
                _check_unpacked(text, self._size)
                rows = rows.set_column(
                    place, field.with_type(wanted), rows.column(place).cast(wanted)
                )
            yield rows

    def _places(self, columns: Sequence[str] | None) -> list[int]:
        names = None if columns is None else set(columns)
        return [
            place
            for place, path in enumerate(self._paths)
            if names is None or path in names or path.partition(".")[0] in names
        ]

    def _look(self, groups: Iterable[int], columns: Sequence[str] | None) -> None:
        places = self._places(columns)
        for group in groups:
            for place in places:
                if (group, place) in self._seen:
                    continue
                chunk = self.metadata.row_group(group).column(place)
                if chunk.num_values:
                    check_pages(self._pages, chunk, self._size)
                self._seen.add((group, place))


def _spelled(type_: pa.DataType) -> pa.DataType:
    """A type with text in place of dictionaries of text."""
    if pa.types.is_dictionary(type_):
        return type_.value_type
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_spelled(type_.value_type)))
    return type_


def _text_in(column: pa.Array) -> int:
    """Bytes of the texts of a column, however often each is repeated; refuse one too long."""
    while pa.types.is_list(column.type):
        column = column.flatten()
    column.dictionary.validate(full=True)  # that it is UTF-8
    lengths = pc.binary_length(column.dictionary)
    LIMITS.check("name_length", pc.max(lengths).as_py() or 0, "a name in it has characters:")
    whole = pc.sum(pc.take(lengths, column.indices).cast(pa.int64())).as_py() or 0
    LIMITS.check("text_mib", whole / _MIB, "the text of one of its columns takes")
    return int(whole)

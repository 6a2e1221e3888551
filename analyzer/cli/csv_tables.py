"""Arrow tables as CSV text: full precision, null told from NaN, nothing that a spreadsheet runs."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["csv_lines", "named", "write_csv"]

# A spreadsheet takes a cell that starts like this for a formula (OWASP: CSV injection).
_FORMULA = r"^[=+\-@\t\r]"
_NEEDS_QUOTES = '[",\r\n]'


def write_csv(path: Path, batches: Iterable[pa.Table]) -> int:
    """Write tables of the same columns as one CSV file with a header, one in memory at a time.

    Args:
        path: The file; its folder must exist.
        batches: Rows, in order; the first has the columns, and may have no rows.

    Returns:
        The number of rows written.
    """
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for place, batch in enumerate(batches):
            if not place:
                file.write(",".join(_text(pa.array(batch.column_names)).to_pylist()) + "\n")
            file.writelines(line + "\n" for line in csv_lines(batch))
            rows += batch.num_rows
    return rows


def csv_lines(table: pa.Table) -> list[str]:
    """Return the rows as CSV lines without line ends.

    Floats have the fewest digits that read back as the same number of their own width; NaN is
    ``NaN``, infinities are ``inf`` and ``-inf``, null is an empty cell, lists are JSON. Text that
    starts with ``=``, ``+``, ``-`` or ``@`` gets an apostrophe in front.
    """
    cells = [_cells(_whole(column)) for column in table.columns]
    if not cells:
        return []
    lines: list[str] = pc.binary_join_element_wise(*cells, ",").to_pylist()
    return lines


def named(table: pa.Table, key: str, names: Mapping[int, str]) -> pa.Table:
    """Return the rows with a column ``<key>_name`` after their id; null where it has no name."""
    ids = pa.array(list(names), pa.int64())
    found = pc.index_in(_whole(table[key]).cast(pa.int64()), value_set=ids)
    values = pc.take(pa.array(list(names.values()), pa.string()), found)
    return table.add_column(table.column_names.index(key) + 1, f"{key}_name", values)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def _cells(column: pa.Array) -> pa.Array:
    """One column as text without nulls, quoted where CSV needs it."""
    for holds, as_text in _KINDS:
        if holds(column.type):
            return pc.fill_null(as_text(column), "")
    return pc.fill_null(pc.cast(column, pa.string()), "")


def _numbers(column: pa.Array) -> pa.Array:
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    # Arrow writes the shortest text that reads back as the same number, and "nan".
    return pc.if_else(pc.is_nan(column), "NaN", pc.cast(column, pa.string()))


def _text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = pc.cast(column, pa.string())
    is_formula = pc.match_substring_regex(text, _FORMULA)
    text = pc.if_else(is_formula, pc.binary_join_element_wise("'", text, ""), text)
    doubled = pc.replace_substring(text, '"', '""')
    quoted = pc.binary_join_element_wise('"', doubled, '"', "")
    return pc.if_else(pc.match_substring_regex(text, _NEEDS_QUOTES), quoted, text)


def _nested(column: pa.Array) -> pa.Array:
    values = [None if v is None else json.dumps(v, default=str) for v in column.to_pylist()]
    return _text(pa.array(values, pa.string()))


def _is_text(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
        or pa.types.is_dictionary(type_)
    )


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type_))


_KINDS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], Any]], ...] = (
    (_is_number, _numbers),
    (_is_text, _text),
    (pa.types.is_nested, _nested),
)

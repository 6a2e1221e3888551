"""All tables of a run as CSV files, streamed, with names beside ids.

Numbers keep full precision, null is told from NaN, and nothing runs in a spreadsheet.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analyzer.storage.reading import StaticTable, probe_rows
from analyzer.storage.run import Run
from analyzer.storage.schema import STATIC_TABLES, STEP_TABLES

__all__ = ["csv_lines", "export_csv"]

_BATCH_ROWS = 100_000
_TABLE_OF = {"layer": "layers", "parameter": "parameters", "join": "joins"}
# A spreadsheet takes a cell that starts like this for a formula (OWASP: CSV injection).
_FORMULA = r"^[=+\-@\t\r]"
_NEEDS_QUOTES = '[",\r\n]'
Names = Mapping[str, Mapping[int, str]]


def export_csv(run: Run, folder: Path) -> Iterator[tuple[str, int]]:
    """Write every table of a run, one after the other, ranks pooled.

    A column ``layer_name``, ``parameter_name`` or ``join_name`` follows each id that refers to
    another table.

    Args:
        run: An opened run.
        folder: Where to write; made where it does not exist.

    Yields:
        The file's path in the folder and its number of rows, after each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    static = {t: StaticTable(run.path, t, run.warnings.append).read() for t in STATIC_TABLES}
    names = {key: _names(static[table], key) for key, table in _TABLE_OF.items()}
    for table, rows in static.items():
        others = {key: names[key] for key in names if _TABLE_OF[key] != table}
        yield f"{table}.csv", _write(folder / f"{table}.csv", [rows], others)
    for table in STEP_TABLES:
        empty = run.read(table, steps=[])
        size = max(1, _BATCH_ROWS // max(1, *(rows.num_rows for rows in static.values())))
        # The empty one first, so that a table without rows has its columns.
        batches = itertools.chain([empty], run.batches(table, size))
        yield f"{table}.csv", _write(folder / f"{table}.csv", batches, names)
    for probe in run.probes:
        (folder / "probes").mkdir(exist_ok=True)
        rows = probe_rows(run.path / "probes" / probe, run.warnings.append)
        file = f"probes/{probe}.csv"
        yield file, _write(folder / file, [rows], names)


def _names(rows: pa.Table, key: str) -> dict[int, str]:
    ids, names = rows.column(key).to_pylist(), rows.column("name").to_pylist()
    return dict(zip(ids, names, strict=True))


def _write(path: Path, batches: Iterable[pa.Table], names: Names) -> int:
    """Write batches of the same columns, one in memory at a time; return the number of rows.

    The first has the columns, and may have no rows.
    """
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for place, batch in enumerate(batches):
            batch = _with_names(batch, names)
            if not place:
                file.write(",".join(_text(pa.array(batch.column_names)).to_pylist()) + "\n")
            file.writelines(line + "\n" for line in csv_lines(batch))
            rows += batch.num_rows
    return rows


def _with_names(batch: pa.Table, names: Names) -> pa.Table:
    """The rows with a column ``<key>_name`` after each id that refers to another table."""
    for key, of_key in names.items():
        if key in batch.column_names and f"{key}_name" not in batch.column_names:
            ids = pa.array(list(of_key), pa.int64())
            found = pc.index_in(_whole(batch[key]).cast(pa.int64()), value_set=ids)
            values = pc.take(pa.array(list(of_key.values()), pa.string()), found)
            batch = batch.add_column(batch.column_names.index(key) + 1, f"{key}_name", values)
    return batch


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

"""``analyzer export``: all tables of a run as CSV files, streamed, with names beside ids.

Numbers keep full precision, null is told from NaN, and nothing runs in a spreadsheet.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.cli import RunName, RunsDir, not_built
from analyzer.errors import AnalyzerError

if TYPE_CHECKING:
    import pyarrow as pa

    from analyzer.storage.run import Run

__all__ = ["export"]

_EXPORTS = ("csv", "tensorboard")
_BATCH_ROWS = 100_000
_TABLE_OF = {"layer": "layers", "parameter": "parameters", "join": "joins"}
# A spreadsheet takes a cell that starts like this for a formula (OWASP: CSV injection).
_FORMULA = r"^[=+\-@\t\r]"
_NEEDS_QUOTES = '[",\r\n]'
Names = Mapping[str, Mapping[int, str]]


def export(
    run: RunName,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="A new or empty folder.")
    ],
    format_: Annotated[
        str, typer.Option("--format", metavar="csv|tensorboard", help="What to write.")
    ] = "csv",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write the tables of a run: one CSV file each, every number in full precision.

    Missing values are empty cells; NaN, inf and -inf are written as such. Text that a spreadsheet
    would take for a formula gets an apostrophe in front.

    \b
    Example:
        analyzer export latest --format csv -o tables
    """  # noqa: D301 -- click reads the control character
    if format_ not in _EXPORTS:
        raise AnalyzerError(
            f"--format is {format_!r}; expected one of {', '.join(_EXPORTS)}. Try --format csv."
        )
    if format_ == "tensorboard":
        raise not_built("export --format tensorboard")

    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    opened = open_run(resolve_run(run, runs_dir))
    if output.exists() and not output.is_dir():
        raise AnalyzerError(
            f"-o '{output}' is a file; expected a new or empty folder. Name another one."
        )
    if output.is_dir() and any(output.iterdir()):
        raise AnalyzerError(
            f"-o '{output}' holds files already; expected a new or empty folder, since nothing is "
            "overwritten. Name another one."
        )
    for name, rows in _export_csv(opened, output):
        typer.echo(f"{output / name}: {rows:,} rows")


def _export_csv(run: "Run", folder: Path) -> Iterator[tuple[str, int]]:
    """Write every table of a run, ranks pooled; yield the name and number of rows of each file.

    A column ``layer_name``, ``parameter_name`` or ``join_name`` follows each id that refers to
    another table.
    """
    from analyzer.storage.reading import StaticTable, probe_rows
    from analyzer.storage.schema import STATIC_TABLES, STEP_TABLES

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


def _names(rows: "pa.Table", key: str) -> dict[int, str]:
    ids, names = rows.column(key).to_pylist(), rows.column("name").to_pylist()
    return dict(zip(ids, names, strict=True))


def _write(path: Path, batches: Iterable["pa.Table"], names: Names) -> int:
    """Write batches of the same columns, one in memory at a time; return the number of rows.

    The first has the columns, and may have no rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for place, batch in enumerate(batches):
            batch = _with_names(batch, names)
            if not place:
                file.write(",".join(_quoted(pa.array(batch.column_names)).to_pylist()) + "\n")
            cells = [_cells(column.combine_chunks()) for column in batch.columns]
            lines = pc.binary_join_element_wise(*cells, ",").to_pylist() if cells else []
            file.writelines(line + "\n" for line in lines)
            rows += batch.num_rows
    return rows


def _with_names(batch: "pa.Table", names: Names) -> "pa.Table":
    """The rows with a column ``<key>_name`` after each id that refers to another table."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for key, of_key in names.items():
        if key in batch.column_names and f"{key}_name" not in batch.column_names:
            ids = pa.array(list(of_key), pa.int64())
            found = pc.index_in(batch[key].combine_chunks().cast(pa.int64()), value_set=ids)
            values = pc.take(pa.array(list(of_key.values()), pa.string()), found)
            batch = batch.add_column(batch.column_names.index(key) + 1, f"{key}_name", values)
    return batch


def _cells(column: "pa.Array") -> "pa.Array":
    """One column as text without nulls, quoted where CSV needs it.

    Floats have the fewest digits that read back as the same number of their own width; NaN is
    ``NaN``, infinities are ``inf`` and ``-inf``, null is an empty cell, lists are JSON.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type):
        values = [None if v is None else json.dumps(v, default=str) for v in column.to_pylist()]
        column = pa.array(values, pa.string())
    text = pc.cast(column, pa.string())
    if pa.types.is_floating(column.type):
        # Arrow writes the shortest text that reads back as the same number, and "nan".
        text = pc.if_else(pc.is_nan(column), "NaN", text)
    elif column.type in (pa.string(), pa.large_string(), pa.string_view()):
        text = _quoted(text)
    return pc.fill_null(text, "")


def _quoted(text: "pa.Array") -> "pa.Array":
    """Text in quotes where CSV needs them; what a spreadsheet would run gets an apostrophe."""
    import pyarrow.compute as pc

    is_formula = pc.match_substring_regex(text, _FORMULA)
    text = pc.if_else(is_formula, pc.binary_join_element_wise("'", text, ""), text)
    doubled = pc.replace_substring(text, '"', '""')
    quoted = pc.binary_join_element_wise('"', doubled, '"', "")
    return pc.if_else(pc.match_substring_regex(text, _NEEDS_QUOTES), quoted, text)

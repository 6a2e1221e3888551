"""``analyzer export``: all tables of a run as CSV files, or its numbers as events of TensorBoard.

Both are streamed. In CSV numbers keep full precision, null is told from NaN, names stand beside
ids, and nothing runs in a spreadsheet.
"""

import functools
import itertools
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyzer.cli import RunName, RunsDir
from analyzer.errors import AnalyzerError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from analyzer.storage.run import Run

__all__ = ["export", "name_the_twin", "write_the_lesson"]

_EXPORTS = ("csv", "tensorboard")
# The polynomial of CRC-32C, bits reversed, and what a masked one has added.
_CASTAGNOLI = 0x82F63B78
_MASK = 0xA282EAD8
_BATCH_ROWS = 100_000
_TABLE_OF = {"layer": "layers", "parameter": "parameters", "join": "joins"}
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

    With --format tensorboard, the numbers of every step, layer, parameter and join, and what the
    training logged, as the scalars of one event file.

    \b
    Example:
        analyzer export latest --format csv -o tables
        analyzer export latest --format tensorboard -o events
    """  # noqa: D301 -- click reads the control character
    if format_ not in _EXPORTS:
        raise AnalyzerError(
            f"--format is {format_!r}; expected one of {', '.join(_EXPORTS)}. Try --format csv."
        )
    from analyzer.cli.terminal import writing
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    opened = open_run(resolve_run(run, runs_dir))
    if output.is_dir() and any(output.iterdir()):
        raise AnalyzerError(
            f"-o '{output}' holds files already; expected a new or empty folder, since nothing is "
            "overwritten. Name another one."
        )
    write, what = (_export_csv, "rows") if format_ == "csv" else (_export_events, "scalars")
    with writing("-o", output, is_folder=True):
        for name, count in write(opened, output):
            typer.echo(f"{output / name}: {count:,} {what}")


def _export_csv(run: "Run", folder: Path) -> Iterator[tuple[str, int]]:
    """Write every table of a run, ranks pooled; yield the name and number of rows of each file.

    A column ``layer_name``, ``parameter_name`` or ``join_name`` follows each id that refers to
    another table.
    """
    from analyzer.storage.reading import probe_rows
    from analyzer.storage.schema import EDGES, STATIC_TABLES, STEP_TABLES

    folder.mkdir(parents=True, exist_ok=True)
    static = {table: run.static_rows(table) for table in STATIC_TABLES}
    names = {key: _names(static[table], key) for key, table in _TABLE_OF.items()}
    for table, rows in static.items():
        others = {key: names[key] for key in names if _TABLE_OF[key] != table}
        yield f"{table}.csv", _write(folder / f"{table}.csv", [rows], others)
    layers = {-1: "input", **names["layer"]}
    ends: Names = {"source": layers, "target": layers}
    yield "edges.csv", _write(folder / "edges.csv", [run.static_rows(EDGES)], ends)
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
    """Text as cells; the few different ones that a column has are written once."""
    import pyarrow as pa

    from analyzer.texts import escaped

    coded = text.dictionary_encode()
    cells = [escaped(value, "csv") for value in coded.dictionary.to_pylist()]
    return pa.array(cells, pa.string()).take(coded.indices)


# --- TensorBoard -----------------------------------------------------------------------------


def _export_events(run: "Run", folder: Path) -> Iterator[tuple[str, int]]:
    """Write the numbers of a run as one event file; yield its name and how many they are.

    Tags are ``steps/<column>`` and ``<table>.<column>/<layer, parameter or join>``, values float32,
    times those at which the steps ended. The format is a sequence of records of `tensorflow.Event`
    messages (tensorflow/core/util/event.proto), each with its length and masked CRC-32C.
    """
    import pyarrow.compute as pc

    from analyzer.storage.schema import STEP_TABLES

    folder.mkdir(parents=True, exist_ok=True)
    rows = run.read("steps", "time")
    # One that is later than the last year has no whole number of microseconds as a float.
    seconds = pc.divide(pc.cast(pc.cast(rows["time"], "int64"), "float64", safe=False), 1e6)
    moments = dict(zip(rows["step"].to_pylist(), seconds.to_pylist(), strict=True))
    began = next(filter(None, moments.values()), 0.0)
    path, count = folder / f"events.out.tfevents.{began:010.0f}.analyzer", 0
    with path.open("wb") as file:
        file.writelines(_records([_event(began, 0, b"\x1a\x0dbrain.Event:2")]))
        most = max(run.static_rows(table).num_rows for table in _TABLE_OF.values())
        for table in STEP_TABLES:
            for batch in run.batches(table, max(1, _BATCH_ROWS // max(1, most))):
                events = []
                for step, values in _summaries(run, table, batch):
                    summary = b"".join(values)
                    events.append(_event(moments.get(step) or began, step, _field(5, summary)))
                    count += len(values)
                file.writelines(_records(events))
    yield path.name, count


def _summaries(run: "Run", table: str, rows: "pa.Table") -> Iterator[tuple[int, list[bytes]]]:
    """Yield each step of some rows of a table with its scalars as parts of a Summary message."""
    import numpy as np

    from analyzer.storage.arrays import as_floats, as_numpy, is_number, is_present
    from analyzer.storage.schema import key_column

    key = key_column(table)
    steps, names = as_numpy(rows["step"]), {0: ""}
    ids = np.zeros(len(steps), np.int64) if key is None else as_numpy(rows[key])
    if key is not None:
        static = run.static_rows(_TABLE_OF[key])
        names = {id_: f"/{name}" for id_, name in _names(static, key).items()}
    left_out = ("step", "rank", "attempt", key)
    columns = [f.name for f in rows.schema if is_number(f.type) and f.name not in left_out]
    with np.errstate(over="ignore"):
        cells = [as_floats(rows[name]).astype("<f4").tobytes() for name in columns]
    present = [is_present(rows[name]) for name in columns]
    prefix = "steps/" if key is None else f"{table}."

    @functools.cache
    def head(column: str, id_: int) -> bytes:
        """A scalar up to its value: its length, its tag, and the type of the value."""
        tag = _field(1, f"{prefix}{column}{names.get(id_, f'/{id_}')}".encode())
        return b"\x0a" + _varint(len(tag) + 5) + tag + b"\x15"

    if not len(steps):  # all of them were left out
        return
    firsts = np.flatnonzero(np.append(True, steps[1:] != steps[:-1]))[: len(steps)]
    for first, last in zip(firsts, [*firsts[1:], len(steps)], strict=True):
        yield (
            int(steps[first]),
            [
                head(name, int(ids[row])) + values[4 * row : 4 * row + 4]
                for name, values, known in zip(columns, cells, present, strict=True)
                for row in range(first, last)
                if known[row]
            ],
        )


def _event(moment: float, step: int, what: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", moment) + b"\x10" + _varint(step) + what


def _field(number: int, content: bytes) -> bytes:
    """A field of a message that has a length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """A whole number in groups of 7 bits, the lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _records(events: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the records of a file: length, its checksum, the event, its checksum."""
    lengths = [struct.pack("<Q", len(event)) for event in events]
    for parts in zip(lengths, _checksums(lengths), events, _checksums(events), strict=True):
        yield b"".join(parts)


def name_the_twin(paths: list[Path]) -> None:
    """Say so where the plain twin of a single run is beside it."""
    if len(paths) != 1:
        return
    from analyzer.storage.run_json import read_manifest
    from analyzer.texts import escaped

    name, told = paths[0].resolve().name, str(read_manifest(paths[0]).get("twin") or "")
    twins = [Path(told).name or f"{name}-plain"]
    if name.endswith("-residual"):
        twins.append(f"{name.removesuffix('-residual')}-plain")
    for twin in (paths[0].parent / twin for twin in twins):
        if (twin / "run.json").is_file():
            said = f"Its plain twin is beside it: analyzer report {twin} {paths[0]}"
            typer.echo(escaped(said, "line"))
            return


def write_the_lesson(output: Path | None, runs: Sequence[str]) -> None:
    """Write the lesson on shortcuts as one file, ``lesson.html`` unless another is named.

    Raises:
        AnalyzerError: If runs were named, or the file cannot be written.
    """
    from analyzer.cli.terminal import writing
    from analyzer.lesson.page import write_lesson

    if runs:
        raise AnalyzerError(
            f"--lesson was asked for together with the run {runs[0]!r}; the lesson has data of its "
            "own. Leave out one of them."
        )
    target = output or Path("lesson.html")
    if target.is_dir():
        raise AnalyzerError(f"-o '{target}' is a folder; expected a file to write.")
    with writing("-o", target, is_folder=False):
        write_lesson(target)
    typer.echo(
        f"{target}: the lesson, {target.stat().st_size / 2**20:.1f} MiB; open it in a browser"
    )


def _checksums(texts: Sequence[bytes]) -> list[bytes]:
    """Return the masked CRC-32C of each text; those of one length are computed side by side."""
    import numpy as np

    table = _crc_table()
    by_length: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(place)
    found: list[bytes] = [b""] * len(texts)
    for length, places in by_length.items():
        joined = np.frombuffer(b"".join(texts[place] for place in places), np.uint8)
        crc = np.full(len(places), 0xFFFFFFFF, np.uint32)
        for column in joined.reshape(len(places), length).T:
            crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
        crc = ~crc
        masked = ((crc >> 15) | (crc << 17)) + np.uint32(_MASK)
        for place, value in zip(places, masked.astype("<u4"), strict=True):
            found[place] = value.tobytes()
    return found


@functools.cache
def _crc_table() -> "NDArray[Any]":
    """The CRC-32C of each byte."""
    import numpy as np

    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(_CASTAGNOLI), crc >> 1)
    return crc

"""Files that would take more than they may are named and left out, before they are unpacked."""

import io
import json
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyzer.cli import main
from analyzer.errors import AnalyzerError, SchemaError, TooLargeError, TooMuchError
from analyzer.storage import limits, page_headers
from analyzer.storage.limits import LIMITS, Limits, checked_file, set_limits, stricter
from analyzer.storage.run import open_run
from analyzer.storage.schema import TABLES
from tests.support.bombs import BOMBS, write_bomb
from tests.support.runs import layer_row, write_run

ROOT = Path(__file__).parents[3]


def _slow(bomb: str) -> tuple[Any, ...]:
    """Those that take seconds to make are left to `make test-all`."""
    return (pytest.mark.slow,) if bomb in ("rows", "ranks", "text", "uncounted", "parts") else ()


PART = "000000000000-000000000003.r0.a0.p0-0.parquet"


def opened(table: pa.Table, **options: object) -> pq.ParquetFile:
    """A table as a file that is opened as one of a run is."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return checked_file(pa.BufferReader(sink.getvalue()))


def many_rows(path: Path, rows: int) -> None:
    """A small file of equal rows of ``layer_stats``."""
    schema, size = TABLES["layer_stats"], 2_000_000
    columns = [
        pa.Array.from_buffers(
            f.type, size, [None, pa.py_buffer(bytes(size * f.type.bit_width // 8))]
        )
        for f in schema
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(rows // size):
            writer.write_table(table, row_group_size=size)


def named(path: Path, names: list[str]) -> None:
    """A table of layers with these names."""
    rows = [layer_row(place, name) for place, name in enumerate(names)]
    write_run(path, [1.0], [[1.0] * len(names)], layers=rows)


def test_what_a_project_writes_is_read_as_ever(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array(range(5), pa.int32()),
            "name": ["a", None, "", "größe", "x" * 10_000],
            "lists": pa.array([["u", "v"], [], None, ["u"], ["w", None]]),
            "number": [0.5, None, float("nan"), 1.0, 2.0],
            "is": [True, False, None, True, True],
        }
    )
    for size in (2, 5):
        file = opened(table, row_group_size=size)
        assert file.schema_arrow.equals(table.schema)
        expected = table.to_pydict()
        expected["number"][2] = None
        for found in (
            file.read(),
            file.read_row_groups(range(file.num_row_groups)),
            pa.concat_tables([file.read_row_group(g) for g in range(file.num_row_groups)]),
            pa.Table.from_batches(file.iter_batches(3)),
        ):
            assert found.schema.equals(table.schema)
            rows = found.to_pydict()
            assert rows["number"].pop(2) != rows["number"][1]  # NaN
            assert {**rows, "number": rows["number"]} == {
                **expected,
                "number": [v for place, v in enumerate(expected["number"]) if place != 2],
            }
        assert file.read(columns=["lists"]).to_pydict() == {"lists": expected["lists"]}
    assert opened(table.slice(0, 0)).read().schema.equals(table.schema)


def test_rows_that_fill_the_memory_are_left_out_with_the_limit(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1.0] * 4, [[1.0, 2.0]] * 4)
    (bomb,) = (run / "layer_stats").glob("*.parquet")
    many_rows(bomb, 20_000_000)
    assert bomb.stat().st_size < 2_000_000
    found = open_run(run)
    assert len(found.layer_stats()) == 0 and len(found.steps) == 4
    (warning,) = [w for w in found.warnings if "layer_stats" in w or bomb.name in w]
    assert "its rows take" in warning


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        pytest.param(["x" * 100_000_000], "text_mib", marks=pytest.mark.slow),
        (["x" * 100_000], "name_length"),
        ([f"{'x' * 60_000}"] * 2_000, "text_mib"),
    ],
    ids=["one of 100 MB", "too long", "repeated"],
)
def test_names_that_fill_the_memory_are_left_out(tmp_path: Path, names, reason) -> None:
    named(tmp_path / "run", ["a"])
    rows = pq.read_table(tmp_path / "run" / "layers.parquet")
    column = rows.schema.get_field_index("name")
    many = pa.concat_tables([rows] * len(names)).set_column(column, "name", pa.array(names))
    many = many.replace_schema_metadata(None)  # a file that another program wrote
    pq.write_table(many, tmp_path / "run" / "layers.parquet", compression="zstd")
    found = open_run(tmp_path / "run")
    assert len(found.layers) == 0
    told = found.warnings
    assert any(f"set {reason} in [tool.analyzer.limits]" in w for w in told), told


def test_pages_that_are_larger_than_the_footer_says_are_not_unpacked() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [0.0] * 100_000}), sink, compression="zstd", use_dictionary=False)
    data = sink.getvalue()
    file = pq.ParquetFile(pa.BufferReader(data))
    true = file.metadata.row_group(0).column(0)
    names = ("num_values", "data_page_offset", "dictionary_page_offset", "total_compressed_size")
    fields = {name: getattr(true, name) for name in (*names, "path_in_schema")}

    def check(**changed: int) -> None:
        said = {"total_uncompressed_size": true.total_uncompressed_size, **fields, **changed}
        page_headers.check_pages(pa.BufferReader(data), SimpleNamespace(**said), len(data))

    check()
    for changed in (
        {"total_uncompressed_size": 799_999},
        {"total_compressed_size": len(data)},
        {"data_page_offset": -1},
        {"data_page_offset": len(data) - 8},
    ):
        with pytest.raises(TooLargeError):
            check(**changed)


def test_a_footer_may_not_fill_the_memory_either(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1.0], [[1.0]])
    path = run / "layers.parquet"
    with path.open("r+b") as file:
        file.truncate(200 << 20)
        file.seek(-8, 2)
        file.write(struct.pack("<I4s", 100 << 20, b"PAR1"))
    found = open_run(run)
    assert len(found.layers) == 0
    assert any("footer_mib" in warning for warning in found.warnings)


def test_limits_are_set_in_the_project(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(limits, "LIMITS", Limits())
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "run", [1.0], [[1.0]], layers=[layer_row(0, "x" * 300)])
    project = tmp_path / "pyproject.toml"
    for text, reason in (
        ("nosuch = 5", "expected a whole number for columns, copied_mib, files, footer_mib"),
        ("name_length = 0", "name_length = 0; expected a whole number"),
        ('name_length = "a"', "name_length = 'a'; expected"),
    ):
        project.write_text(f"[tool.analyzer.limits]\n{text}\n")
        assert main(["show", "run"]) == 2
        assert reason in capsys.readouterr().err
    project.write_text("[tool.analyzer.limits]\nname_length = 200\n")
    main(["show", "run"])
    assert len(open_run(tmp_path / "runs" / "run").layers) == 0
    set_limits({"name_length": 300})
    assert len(open_run(tmp_path / "runs" / "run").layers) == 1
    assert LIMITS is not limits.LIMITS


# The process as the system sees it: what its parent had once does not count.
BESIDE = """
import sys, time
from analyzer.dashboard.library import Library
from analyzer.dashboard.run_list import run_table
from analyzer.cli import main

def cost():
    peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
    return int(peak) / 1024, time.process_time()

def command(folder):
    main(["runs", folder])

def page(folder):
    library = Library([folder])
    run_table(library)
    while library._judging.thread is not None:
        time.sleep(0.02)
    words = {run.id: library.word(run.summary.path, None) for run in library.listing()}
    assert words["good"] == sys.argv[3], words

command(sys.argv[1]), page(sys.argv[1])
for look in (command, page):
    before = cost()
    look(sys.argv[2])
    print(*(after - first for after, first in zip(cost(), before)))
"""


@pytest.mark.parametrize("name", [pytest.param(n, marks=_slow(n)) for n in BOMBS])
def test_a_bomb_beside_a_good_run_costs_little(name: str, tmp_path: Path) -> None:
    """It keeps to the limit of each file; a list takes 200 MiB and 1 s more, the good one shows."""
    for folder in ("alone", "beside"):
        write_run(tmp_path / folder / "good", [1.0] * 4, [[1.0, 2.0]] * 4)
    write_bomb(tmp_path / "beside", name)
    paths = (str(tmp_path / "alone"), str(tmp_path / "beside"))
    command = [sys.executable, "-c", BESIDE, *paths, "dead_units"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dead_units" in done.stdout
    printed = [line.split() for line in done.stdout.splitlines()]
    costs = [tuple(map(float, words)) for words in printed if len(words) == 2 and "." in words[0]]
    assert len(costs) == 2 and all(mib <= 200 and seconds <= 1 for mib, seconds in costs), costs


def repeated(table: pa.Table, groups: int) -> bytes:
    """A file that holds a table so many times."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(table)
    return sink.getvalue()


MANY = 2_000_000
LONG_LIST = pa.ListArray.from_arrays(pa.array([0, MANY], pa.int32()), pa.array([7] * MANY))
WIDE = pa.Array.from_buffers(pa.binary(100_000), 200, [None, pa.py_buffer(bytes(20_000_000))])


@pytest.mark.parametrize(
    ("column", "groups"),
    [(LONG_LIST, 5), (WIDE, 4), (pa.array(["x" * 60_000] * 500), 3)],
    ids=["one row with a list of millions", "cells of 100 kB", "text repeated in each row group"],
)
def test_what_few_rows_take_is_seen_before_they_are_unpacked(column: pa.Array, groups: int) -> None:
    data = repeated(pa.table({"a": column}), groups)
    assert len(data) < 10_000
    with pytest.raises(TooLargeError, match="more than 1,000 times its size"):
        checked_file(pa.BufferReader(data)).read()
    whole = checked_file(pa.BufferReader(repeated(pa.table({"a": column.slice(0, 0)}), 1)))
    assert whole.read().num_rows == 0


def test_a_page_has_no_more_values_than_the_footer_says() -> None:
    data = repeated(pa.table({"a": pa.array([7] * 1000)}), 1)
    true = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(0)
    names = ("data_page_offset", "dictionary_page_offset", "total_compressed_size")
    said = {name: getattr(true, name) for name in (*names, "total_uncompressed_size")}
    for count, is_right in ((1000, True), (999, False)):
        chunk = SimpleNamespace(**said, num_values=count, path_in_schema="a")
        if is_right:
            page_headers.check_pages(pa.BufferReader(data), chunk, len(data))
        else:
            with pytest.raises(TooLargeError, match="column 'a' take more"):
                page_headers.check_pages(pa.BufferReader(data), chunk, len(data))


def test_many_files_together_are_refused_in_one_sentence(tmp_path: Path, monkeypatch) -> None:
    run = write_run(tmp_path / "run", [1.0] * 4, [[1.0, 2.0]] * 4)
    (first,) = (run / "layer_stats").glob("*.parquet")
    rows = pq.read_table(first).replace_schema_metadata(None)
    ids = pa.array(range(2000), pa.int32())
    table = pa.concat_tables([rows.slice(0, 1)] * 2000)
    for flush in range(9):
        steps = pa.array([flush] * 2000, pa.int64())
        one = table.set_column(0, "step", steps)
        one = one.set_column(one.schema.get_field_index("layer"), "layer", ids)
        part = f"{flush:012d}-{flush:012d}.r0.a0.p{flush}-{flush}.parquet"
        pq.write_table(one, run / "layer_stats" / part)
    first.unlink()
    folder = run / "probes" / "paths"
    folder.mkdir(parents=True)
    for step in range(40):
        cells = {"length": pa.array(range(2000), pa.int32()), "share": [0.5] * 2000}
        pq.write_table(pa.table(cells), folder / f"step-{step:012d}.parquet")
    assert len(open_run(run).layer_stats()) == 18_000
    monkeypatch.setattr(LIMITS, "total_mib", 1)
    found = open_run(run)
    for question in (found.layer_stats, lambda: found.probe("paths")):
        with pytest.raises(TooMuchError) as raised:
            question()
        told = str(raised.value)
        assert told.startswith("the rows of ") and told.count(". ") == 0
        assert "set total_mib in [tool.analyzer.limits]" in told and "fewer columns" in told
    # What is dropped at once does not count, nor does what is not asked for.
    assert len(found.layer_stats(steps=3)) == 2000
    assert len(found.layer_stats("activation_norm", layers=1)) == 9
    assert found.warnings == []


def test_damaged_parts_are_found_in_one_go(tmp_path: Path, monkeypatch) -> None:
    """Each of them once made the whole question be asked again."""
    run = write_run(tmp_path / "run", [1.0] * 4, [[1.0, 2.0]] * 4)
    (first,) = (run / "layer_stats").glob("*.parquet")
    twice = pa.concat_tables([pq.read_table(first).replace_schema_metadata(None)] * 2)
    for flush in range(1, 30):
        name = first.name.replace("p0-0", f"p{flush}-{flush}")
        pq.write_table(twice, first.with_name(name))
    found, looks = open_run(run), []
    finder = found._rows.tables["layer_stats"]._finder
    find = finder.find
    monkeypatch.setattr(finder, "find", lambda: looks.append(1) or find())
    assert len(found.layer_stats()) == 8
    assert len(looks) == 2 and len(found.warnings) == 29


def test_a_list_reads_less_of_each_run(tmp_path: Path) -> None:
    named(tmp_path / "run", [f"layer{k}" for k in range(30)])
    with stricter(names=20):
        found = open_run(tmp_path / "run")
        assert len(found.layers) == 0 and "set names in" in found.warnings[0]
    assert len(open_run(tmp_path / "run").layers) == 30


def test_values_of_a_manifest_are_counted_before_they_are_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(LIMITS, "manifest_mib", 1)
    run = write_run(tmp_path / "run", [1.0], [[1.0]])
    text = (run / "run.json").read_text().rstrip()[:-1]
    (run / "run.json").write_text(f'{text}, "damaged": [{"[]," * 160_000}[]]}}')
    with pytest.raises(SchemaError, match=r"what it lists takes 2 MiB.*set manifest_mib"):
        open_run(run)
    (run / "run.json").write_text(text + "}")
    (run / "ranks").mkdir()
    for rank in range(4):
        elements = dict.fromkeys(map(str, range(100_000)), 1)
        (run / "ranks" / f"a0.r{rank}.json").write_text(json.dumps({"elements": elements}))
    with pytest.raises(AnalyzerError, match="what its ranks list takes"):
        open_run(run)


def test_threads_take_turns_at_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's reader of a file crashes now and then where two threads are in it."""
    inside, most = [], []
    of_arrow = pq.ParquetFile.read_row_groups

    def watched(*args: Any, **options: Any) -> pa.Table:
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.002)
        rows = of_arrow(*args, **options)
        inside.pop()
        return rows

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", watched)
    table = pa.table({"step": list(range(100)), "name": [f"layer {k % 7}" for k in range(100)]})
    file = opened(table, row_group_size=10)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda k: file.read_row_groups([k % 10, 0], ["name"]), range(20)))
    assert max(most) == 1
    names = table.column("name").to_pylist()
    for k, rows in enumerate(read):
        start = 10 * (k % 10)
        assert rows.column("name").to_pylist() == names[start : start + 10] + names[:10]

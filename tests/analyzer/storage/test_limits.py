"""Files that would take more than they may are named and left out, before they are unpacked."""

import io
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.cli import main
from analyzer.errors import TooLargeError
from analyzer.storage import limits, page_headers
from analyzer.storage.limits import LIMITS, Limits, checked_file, set_limits
from analyzer.storage.parts import READ_FAILURES
from analyzer.storage.run import open_run
from analyzer.storage.schema import TABLES
from tests.support.runs import layer_row, write_run

ROOT = Path(__file__).parents[3]
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
        (["x" * 100_000_000], "text_mib"),
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


@given(st.data())
def test_no_change_of_bytes_ends_the_reader_in_another_way(data: st.DataObject) -> None:
    sink = io.BytesIO()
    table = pa.table({"a": [0.5] * 300, "n": ["x", "yy", None] * 100})
    pq.write_table(table, sink, compression=data.draw(st.sampled_from(["zstd", "none"])))
    content = bytearray(sink.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        checked_file(pa.BufferReader(bytes(content))).read()
    except (*READ_FAILURES, UnicodeDecodeError):
        pass


def test_limits_are_set_in_the_project(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(limits, "LIMITS", Limits())
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "run", [1.0], [[1.0]], layers=[layer_row(0, "x" * 300)])
    project = tmp_path / "pyproject.toml"
    for text, reason in (
        ("nosuch = 5", "expected a whole number for columns, files, footer_mib"),
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


BESIDE = """
import resource, sys, time
from analyzer.dashboard.library import Library
from analyzer.cli import main
Library([sys.argv[1] + "/good"]).listing()
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
main(["runs", sys.argv[1]])
listed = Library([sys.argv[1]]).listing()
print(len(listed), time.perf_counter() - began)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs_beside_good_runs_cost_little(tmp_path: Path) -> None:
    for name in ("good", "rows", "names"):
        write_run(tmp_path / name, [1.0] * 4, [[1.0, 2.0]] * 4)
    (bomb,) = (tmp_path / "rows" / "layer_stats").glob("*.parquet")
    many_rows(bomb, 20_000_000)
    rows = pq.read_table(tmp_path / "names" / "layers.parquet")
    column = rows.schema.get_field_index("name")
    long = pa.concat_tables([rows] * 14).set_column(column, "name", pa.array(["x" * 10**8] * 28))
    pq.write_table(long, tmp_path / "names" / "layers.parquet", compression="zstd")
    command = [sys.executable, "-c", BESIDE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, last, memory = done.stdout.splitlines()
    assert last.split()[0] == "3"
    assert int(memory) < 200 * 1024  # KiB

import os
import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.storage import parts
from analyzer.storage.parts import (
    FAN_IN,
    Part,
    PartSeries,
    current_parts,
    replace_file,
    write_table,
)

numbers = st.integers(0, 10**9)


@given(*[numbers] * 6)
def test_a_name_says_what_its_part_is(a: int, r: int, f: int, g: int, s: int, t: int) -> None:
    part = Part(a % 1000, r % 1000, f, g, s, t)
    assert Part.from_name(part.name) == part


@pytest.mark.parametrize("name", ["run.json", ".12-3.tmp", "0-1.r0.a0.p0-0.parquet", "x.parquet"])
def test_a_foreign_name_is_no_part(name: str) -> None:
    assert Part.from_name(name) is None


def touch(folder: Path, *flushes: tuple[int, int]) -> None:
    folder.mkdir(exist_ok=True)
    for first, last in flushes:
        (folder / Part(0, 0, first, last, first, last).name).touch()


def test_a_merged_part_hides_those_inside_it(tmp_path: Path) -> None:
    touch(tmp_path, (0, 9), (3, 3), (0, 4), (10, 10), (11, 11))
    found = [(part.first_flush, part.last_flush) for part in current_parts(tmp_path)]
    assert found == [(0, 9), (10, 10), (11, 11)]


def test_parts_of_another_rank_or_attempt_are_not_hidden(tmp_path: Path) -> None:
    touch(tmp_path, (0, 9))
    for part in (Part(0, 1, 3, 3, 3, 3), Part(1, 0, 3, 3, 3, 3)):
        (tmp_path / part.name).touch()
    assert len(current_parts(tmp_path)) == 3


def test_links_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path / "secret", (0, 0))
    (tmp_path / "steps").mkdir()
    name = Part(0, 0, 0, 0, 0, 0).name
    (tmp_path / "steps" / name).symlink_to(tmp_path / "secret" / name)
    (tmp_path / "linked").symlink_to(tmp_path / "secret")
    assert current_parts(tmp_path / "steps") == current_parts(tmp_path / "linked") == []


def test_a_scan_that_a_merge_disturbed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = iter([{"old-2"}, {"merged"}, {"merged"}])
    monkeypatch.setattr(parts, "_scan", lambda _: frozenset(next(scans)))
    assert parts.listing(tmp_path) == {"merged"}


def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(tmp_path / "layers.parquet", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_seen_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "steps" / Part(0, 0, 0, 0, 0, 0).name

    def write(path: Path) -> None:
        path.write_text("half")
        assert current_parts(target.parent) == []
        path.write_text("whole")

    replace_file(target, write)
    assert target.read_text() == "whole"


def rows_of(folder: Path) -> list[int]:
    tables = [pa.parquet.read_table(folder / p.name) for p in current_parts(folder)]
    return [x for table in tables for x in table.column("step").to_pylist()]


def test_a_link_that_waits_where_a_file_is_written_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_serial", iter([7]))
    mine, folder = tmp_path / "mine", tmp_path / "run"
    mine.write_text("mine")
    folder.mkdir()
    (folder / f".{os.getpid()}-7.tmp").symlink_to(mine)
    replace_file(folder / "notes.json", lambda hidden: hidden.write_text("{}"))
    assert mine.read_text() == "mine" and (folder / "notes.json").read_text() == "{}"
    assert not (folder / "notes.json").is_symlink()


@pytest.mark.no_cover
def test_merging_keeps_every_row_in_order_at_every_moment(tmp_path: Path) -> None:
    series = PartSeries(tmp_path, 0, 0)
    sizes = random.Random(0)
    total = 0
    for _ in range(3 * FAN_IN + 7):
        count = sizes.randint(1, 9)
        rows = pa.table({"step": list(range(total, total + count))})
        series.append(rows, total, total + count - 1)
        total += count
        series.advance()
        assert rows_of(tmp_path) == list(range(total))
    assert len(current_parts(tmp_path)) < FAN_IN + 10
    series.finish()
    assert rows_of(tmp_path) == list(range(total))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_merge_widens_columns_that_changed_their_type(tmp_path: Path) -> None:
    series = PartSeries(tmp_path, 0, 0)
    for step, value in enumerate([True, 2, 2.5, None]):
        series.append(pa.table({"step": [step], "logged": [value]}), step, step)
    series.finish()
    (part,) = current_parts(tmp_path)
    logged = pa.parquet.read_table(tmp_path / part.name).column("logged")
    assert logged.to_pylist() == [1.0, 2.0, 2.5, None]


def test_a_merge_that_was_killed_before_it_removed_anything_changes_no_row(tmp_path: Path) -> None:
    for flush in range(4):
        write_table(
            tmp_path / Part(0, 0, flush, flush, flush, flush).name, pa.table({"step": [flush]})
        )
    write_table(tmp_path / Part(0, 0, 0, 2, 0, 2).name, pa.table({"step": [0, 1, 2]}))
    (tmp_path / ".half.tmp").write_text("PAR1")
    assert rows_of(tmp_path) == [0, 1, 2, 3]


def test_ids_are_a_dictionary_and_floats_are_split_by_byte(tmp_path: Path) -> None:
    table = pa.table({"step": [1, 2], "layer": pa.array([0, 1], pa.int32()), "norm": [0.5, 2.0]})
    write_table(tmp_path / "x.parquet", table)
    group = pa.parquet.read_metadata(tmp_path / "x.parquet").row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(3)}
    assert "RLE_DICTIONARY" in encodings["layer"]
    assert "BYTE_STREAM_SPLIT" in encodings["norm"]
    assert "RLE_DICTIONARY" not in encodings["step"]
    assert {group.column(i).compression for i in range(3)} == {"ZSTD"}

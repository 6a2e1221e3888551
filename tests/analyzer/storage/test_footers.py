"""No byte of a file ends the process that reads it, and bounds of steps are those of the file."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.storage import open_part as open_parts
from analyzer.storage.limits import checked_file
from analyzer.storage.open_part import OpenPart, open_part
from analyzer.storage.parts import READ_FAILURES
from analyzer.storage.sealed import encoding, opened

ROOT = Path(__file__).parents[3]


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


# Arrow ends the process at some of these: another one has to try them.
FLIPPED = """
import sys
from pathlib import Path
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from analyzer.storage.open_part import OpenPart
from analyzer.storage.parts import READ_FAILURES
from analyzer.storage.sealed import encoding

path = Path(sys.argv[1])
table = pa.table({"step": np.arange(300), "a": [0.5] * 300, "n": ["x", "yy", None] * 100})
options = encoding(table.schema, ["n"]) if sys.argv[2] == "own" else {}
pq.write_table(table, path, **options)
content = path.read_bytes()
start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
whole = 0
for place in range(start, len(content)):
    for bit in range(8):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            part = OpenPart(path)
            part.file.read_row_groups(range(part.file.num_row_groups))
            whole += 1
        except (*READ_FAILURES, UnicodeDecodeError):
            pass
print(whole, 8 * (len(content) - start))
"""


@pytest.mark.parametrize("writer", ["own", "another"])
def test_no_bit_of_a_footer_ends_the_process(writer: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FLIPPED, str(tmp_path / "part.parquet"), writer]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[:400]
    whole, tried = map(int, done.stdout.split())
    # Most bits matter; the file as it is opens, or these would all be refused for another reason.
    assert 0 < whole < tried / 2


def test_a_part_that_nobody_holds_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"step": [3, 4], "a": [0.5, 1.5]}), path)
    open_files = Path("/proc/self/fd")
    before = len([*open_files.iterdir()])
    for _ in range(40):
        OpenPart(path)
    assert len([*open_files.iterdir()]) < before + 5


def test_of_many_parts_few_stay_open_and_none_is_looked_at_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_parts, "_open", open_parts._LastOpen(3))
    looked: list[Path] = []

    def seen(path: Path, **options: bool) -> Any:
        looked.append(path)
        return opened(path, **options)

    monkeypatch.setattr(open_parts, "opened", seen)
    paths = [tmp_path / f"{number}.parquet" for number in range(10)]
    for number, path in enumerate(paths):
        pq.write_table(pa.table({"step": [number], "a": [0.5]}), path)
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        found = [open_part(path).file.read(["step"]).column(0).to_pylist() for path in paths]
        assert found == [[number] for number in range(10)]
        assert len([*Path("/proc/self/fd").iterdir()]) <= before + 3
    assert looked == paths
    # A part that is written over while it is closed is not taken for what it was.
    part = open_part(paths[0])
    part.close()
    pq.write_table(pa.table({"step": [7, 8], "a": [0.5, 1.5]}), paths[0])
    with pytest.raises(FileNotFoundError, match="was changed meanwhile"):
        part.file.read()
    assert open_part(paths[0]).file.read(["step"]).column(0).to_pylist() == [7, 8]


@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("writer", ["own", "another"])
def test_the_bounds_of_steps_are_those_that_arrow_reads(
    writer: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "part.parquet"
    steps = pa.array([7, 3, 900, 2**31 - 1, -1, 12, 5], kind)
    nested = pa.array([{"step": 1000, "b": 1}] * 7)
    table = pa.table({"more": nested, "step": steps, "a": [0.5] * 7})
    pq.write_table(
        table, path, row_group_size=2, **(encoding(table.schema) if writer == "own" else {})
    )
    part = OpenPart(path)
    groups = [part.file.metadata.row_group(group) for group in range(4)]
    known = [group.column(2).statistics for group in groups]
    low, high = part.bounds
    assert low.tolist() == [one.min for one in known] == [3, 900, -1, 5]
    assert high.tolist() == [one.max for one in known] == [7, 2**31 - 1, 12, 5]
    # What a writer leaves out is not known, and every row group is looked at.
    pq.write_table(table, path, row_group_size=2, write_statistics=False)
    assert OpenPart(path).bounds[0].tolist() == [0] * 4

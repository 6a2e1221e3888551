from pathlib import Path

import numpy as np
import pytest

from analyzer.storage import bin_file, bin_writer
from analyzer.storage.bin_file import NUMBERS, chunks_in, opened
from analyzer.storage.run import Run, open_run
from tests.analyzer.storage.storage_rows import block, record, value, written

LAST = ["activation_mean", "activation_std"]


def keep(monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    monkeypatch.setattr(bin_file, "_kept", bin_file._room(most_bytes))


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, 1 << 20)
    monkeypatch.setattr(bin_writer, "LEAST_ROWS", 0)


def wide(tmp_path: Path, steps: int = 10) -> Run:
    """A run of four layers."""
    return open_run(
        written(tmp_path / "run", [record(s, block("layer_stats", s, 4)) for s in range(steps)])
    )


def test_of_wide_overviews_only_the_last_columns_are_kept_and_all_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = wide(tmp_path)
    # Three numbers of two columns of 40 values, 4 bytes each, and their counts, all the same.
    keep(monkeypatch, 2 * (3 * 160) + 16)
    for _ in range(2):
        for place, column in enumerate(("activation_norm", *LAST)):
            found = run.heatmap(column).mean[3]
            assert found.tolist() == [value(step, 3, place) for step in range(10)]
    kept = {(column, number) for _, _, column, number in bin_file._kept}
    numbers = ("min", "mean", "max")
    assert {one for one in kept if one[1] in numbers} == {(c, n) for c in LAST for n in numbers}


def test_one_number_is_kept_however_wide_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = wide(tmp_path, 1)
    keep(monkeypatch, 1)
    assert run.heatmap("activation_norm").ids.tolist() == [0, 1, 2, 3]
    assert len(list(bin_file._kept)) == 1


def test_only_the_number_that_is_shown_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, plain = [], bin_file.BinFile._read

    def noted(self: bin_file.BinFile, name: str, *, is_count: bool) -> object:
        read.append(name)
        return plain(self, name, is_count=is_count)

    run = wide(tmp_path)
    monkeypatch.setattr(bin_file.BinFile, "_read", noted)
    for _ in range(2):
        found = run.grid("activation_std", "max", table="layer_stats")
        assert found.values[2].tolist() == [value(step, 2, 2) for step in range(10)]
        assert not found.num_nonfinite.any() and found.num_nonfinite.shape == (4, 10)
    assert read == ["activation_std_max", "activation_std_num_nonfinite"]


@pytest.mark.parametrize("most", [3, 10])
def test_a_grid_is_its_number_of_the_heatmap(tmp_path: Path, most: int) -> None:
    run = wide(tmp_path)
    whole = run.heatmap("activation_norm", most)
    for number in ("min", "mean", "max"):
        found = run.grid("activation_norm", number, most)
        np.testing.assert_array_equal(found.values, getattr(whole, number))
        np.testing.assert_array_equal(found.num_nonfinite, whole.num_nonfinite)
        assert found.steps.tolist() == whole.steps.tolist() == list(range(0, 10, whole.width))
        assert (found.width, found.ids.tolist()) == (whole.width, [0, 1, 2, 3])
    assert whole.width == {3: 4, 10: 1}[most]


def test_a_file_holds_the_same_read_as_a_grid_or_as_rows(tmp_path: Path) -> None:
    run = wide(tmp_path)
    folder = run.path / "overview" / "layer_stats"
    file = opened(folder, *chunks_in(folder), "layer")
    bins, beside = file.bins("activation_std"), file.beside("activation_std", slice(1, 3))
    assert bins.ids.tolist() == 10 * [0, 1, 2, 3]
    for name in ("low", "mean", "high", "finite", "nonfinite"):
        rows = getattr(bins, name).reshape(10, 4)
        assert getattr(beside, name).tolist() == rows[:, 1:3].tolist(), name
    assert beside.start.tolist() == bins.start[::4].tolist() == list(range(10))
    assert beside.num_rows.tolist() == bins.num_rows[::4].tolist() == [1] * 10


def test_a_column_that_a_file_lacks_has_no_value(tmp_path: Path) -> None:
    run = wide(tmp_path)
    folder = run.path / "overview" / "layer_stats"
    file = opened(folder, *chunks_in(folder), "layer")
    lacking = [file.cells("no_such_column", number) for number in NUMBERS]
    assert all(cells.shape == (10, 4) for cells in lacking)
    assert all(np.isnan(cells).all() for cells in lacking[:3])
    assert not any(cells.any() for cells in lacking[3:])


def test_a_grid_of_a_file_that_breaks_off_is_that_of_the_rows(tmp_path: Path) -> None:
    run = wide(tmp_path)
    (file,) = (run.path / "overview" / "layer_stats").iterdir()
    data = bytearray(file.read_bytes())
    # The footer is whole, what stands before it is not.
    data[4 : len(data) // 3] = b"x" * (len(data) // 3 - 4)
    file.write_bytes(data)
    found = open_run(run.path).grid("activation_norm", "max")
    assert found.values[3].tolist() == [value(step, 3, 0) for step in range(10)]


def test_a_number_is_the_same_read_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bin_file, "_ROWS_AT_ONCE", 7)
    rows = [record(s, **({"accuracy": s / 10} if s >= 6 else {})) for s in range(10)]
    run = open_run(written(tmp_path / "late", rows, flush_steps=3))
    found = run.series("accuracy").mean
    assert np.isnan(found[:6]).all() and found[6:].tolist() == [0.6, 0.7, 0.8, 0.9]
    whole = wide(tmp_path).heatmap("activation_norm")
    assert whole.steps.tolist() == list(range(10))
    assert whole.max[3].tolist() == [value(step, 3, 0) for step in range(10)]

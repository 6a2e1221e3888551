import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.storage import bin_file, bin_writer
from analyzer.storage.bin_file import BinFile, chunks_in
from analyzer.storage.bin_writer import MAX_BINS, BinWriter
from analyzer.storage.bins import Numbers, concatenated, rebinned, single
from analyzer.storage.run import open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, StepRecord
from tests.analyzer.storage.storage_rows import block, record, written

NAMES = ("join_gradient_norm", "shortcut_gradient_norm")


@pytest.fixture(autouse=True)
def bins_of_any_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows a run has, here it has bins."""
    monkeypatch.setattr(bin_writer, "LEAST_ROWS", 0)


def slow_twin(rows: list[tuple[int, int, float | None]], width: int) -> dict[tuple[int, int], Any]:
    """Bins of (step, id, value) rows, one value at a time; None is null."""
    cells: dict[tuple[int, int], list[float]] = {}
    for step, id_, value in rows:
        cell = cells.setdefault((step // width * width, id_), [])
        if value is not None:
            cell.append(value)
    result = {}
    for key, values in cells.items():
        finite = [v for v in values if math.isfinite(v)]
        numbers = [f(finite) if finite else math.nan for f in (min, np.mean, max)]
        result[key] = (*numbers, len(values) - len(finite))
    return result


def noisy_rows(steps: int, ids: int) -> list[tuple[int, int, float | None]]:
    """Random rows with a NaN, an infinity and a null here and there."""
    random = np.random.default_rng(0)
    odd = {0: math.nan, 1: math.inf, 2: -math.inf, 3: None}
    draws = random.integers(0, 40, (steps, ids))
    values = random.normal(size=(steps, ids))
    return [
        (s, i, odd.get(int(draws[s, i]), float(values[s, i])))
        for s in range(steps)
        for i in range(ids)
    ]


NUM_SPLITS = len(STAT_COLUMNS["splits"])


def split_record(step: int, values: list[float | None]) -> StepRecord:
    """A step with these values in every column of `splits`."""
    column = np.array([[math.nan if v is None else v for v in values]] * NUM_SPLITS).T
    present = np.array([[v is not None for v in values]] * NUM_SPLITS).T
    return record(step, Block("splits", np.arange(len(values), dtype=np.int32), column, present))


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bins and short files, so that some thousand steps double the width several times."""
    monkeypatch.setattr(bin_writer, "MAX_BINS", 32)
    monkeypatch.setattr(bin_writer, "_CHUNK_ROWS", 24)


@pytest.mark.parametrize("steps", [1, 31, 32, 33, 500, 1021])
@pytest.mark.parametrize("status", ["finished", None])
def test_a_heatmap_is_that_of_the_raw_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, status: str | None
) -> None:
    small(monkeypatch)
    rows = noisy_rows(steps, 3)
    records = [split_record(s, [v for _, _, v in rows[3 * s : 3 * s + 3]]) for s in range(steps)]
    path = written(tmp_path / "a", records, flush_steps=7)
    if status is None:  # as it was before the end: whatever lies on disk must not matter
        for chunk in chunks_in(path / "overview" / "splits")[1:]:
            (path / "overview" / "splits" / chunk.name).unlink()
    seen = open_run(path).heatmap("cosine", 32)
    twin = slow_twin(rows, seen.width)
    for place, start in enumerate(seen.steps.tolist()):
        for row, id_ in enumerate(seen.ids.tolist()):
            expected = twin[start, id_]
            found = [a[row, place] for a in (seen.min, seen.mean, seen.max, seen.num_nonfinite)]
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert len(seen.steps) * len(seen.ids) == len(twin)


def test_width_doubles_and_the_number_of_bins_stays(tmp_path: Path) -> None:
    overview = BinWriter(tmp_path, "splits")
    for step in range(0, 100_000, 500):
        steps = np.arange(step, step + 500)
        overview.add(Numbers(NAMES, steps, np.zeros(500, np.int32), np.ones((500, 2)), None))
    overview.finish()
    (chunk,) = chunks_in(tmp_path)
    assert (chunk.start, chunk.end, chunk.width) == (0, 100_000, 128)
    assert MAX_BINS / 2 <= 100_000 / chunk.width <= MAX_BINS


@pytest.mark.parametrize("most", [0, 10**9])
def test_several_series_at_once_are_the_same_as_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    small(monkeypatch)
    monkeypatch.setattr(bin_file, "_MANY_ROWS", most)
    monkeypatch.setattr(bin_file, "_ROWS_AT_ONCE", 7)
    rows = noisy_rows(500, 5)
    records = [split_record(s, [v for _, _, v in rows[5 * s : 5 * s + 5]]) for s in range(500)]
    path = written(tmp_path / "a", records)
    ids = [4, 1, 3]
    for points in (1000, 10):
        together = open_run(path).several_series("cosine", ids, points)
        for found, id_ in zip(together, ids, strict=True):
            alone = open_run(path).series("cosine", id_, points)
            assert found.width == alone.width
            for name in ("steps", "min", "mean", "max", "num_nonfinite"):
                np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))


def test_what_all_rows_count_alike_is_read_from_the_footer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count that differs in one row, and one that some rows lack, are read from the rows."""
    small(monkeypatch)
    monkeypatch.setattr(bin_writer, "_GROUP_ROWS", 50)
    late, odd = "cosine", "join_gradient_norm"
    folder = tmp_path / "splits"
    overview, ids = BinWriter(folder, "splits"), np.arange(3, dtype=np.int32)
    for step in range(100):
        columns = (*NAMES, late) if step >= 40 else NAMES
        values = np.ones((3, len(columns)))
        values[1, 0] = np.nan if step == 70 else 1.0
        overview.add(Numbers(columns, np.full(3, step), ids, values, None))
    overview.finish()
    (chunk,) = chunks_in(folder)
    read: list[str] = []
    numbers = BinFile._numbers

    def seen(self: BinFile, name: str, *, is_count: bool) -> Any:
        read.append(name)
        return numbers(self, name, is_count=is_count)

    monkeypatch.setattr(BinFile, "_numbers", seen)
    file = BinFile(folder / chunk.name, 0, chunk.width, "join")
    assert file._file.num_row_groups == 2  # of 75 rows
    del read[:]
    assert (file.part(NAMES[1], "num_finite") == 4).all()
    assert (file.part(NAMES[1], "num_nonfinite") == 0).all()
    assert not read
    assert sorted(set(file.part(odd, "num_finite").tolist())) == [3, 4]
    assert file.part(odd, "num_nonfinite").sum() == 1
    assert (file.part(late, "num_finite") == np.repeat([0, 4], [30, 45])).all()
    assert read == [f"{odd}_num_finite", f"{odd}_num_nonfinite", f"{late}_num_finite"]


@pytest.mark.no_cover
def test_memory_and_files_do_not_grow_with_the_run(tmp_path: Path) -> None:
    overview = BinWriter(tmp_path, "splits")
    ids, sizes = np.arange(1000, dtype=np.int32), []
    for step in range(3000):
        overview.add(Numbers(NAMES, np.full(1000, step), ids, np.ones((1000, 2)), None))
        sizes.append((sum(len(b) for b in overview._tail), len(list(tmp_path.iterdir()))))
    assert max(rows for rows, _ in sizes) <= 2 * bin_writer._CHUNK_ROWS
    assert max(files for _, files in sizes) <= MAX_BINS / 8 + 1


def test_a_view_of_a_running_run_holds_its_newest_step(tmp_path: Path) -> None:
    overview = BinWriter(tmp_path / "a" / "overview" / "splits", "splits")
    written(tmp_path / "a", [record(s, block("splits", s, 2)) for s in range(300)])
    (only,) = chunks_in(tmp_path / "a" / "overview" / "splits")
    (tmp_path / "a" / "overview" / "splits" / only.name).unlink()
    for s in range(200):
        rows = block("splits", s, 2)
        overview.add(Numbers(NAMES, np.full(2, s), rows.ids, rows.values[:, :2], None))
    overview.save()
    seen = open_run(tmp_path / "a").series(NAMES[1], 1)
    assert seen.steps.tolist() == list(range(300))
    assert seen.mean.tolist() == [s * 100 + 11.0 for s in range(300)]


def test_an_unreadable_file_is_replaced_by_the_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [record(s, block("splits", s, 2)) for s in range(50)])
    (file,) = (path / "overview" / "splits").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    run = open_run(path)
    assert run.series("cosine", 0).mean.tolist() == [s * 100 + 4.0 for s in range(50)]
    assert len(run.warnings) == 1
    assert file.name in run.warnings[0]


def test_a_series_has_at_most_the_points_that_were_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [record(s) for s in range(900)])
    seen = open_run(path).series("loss", max_points=100)
    assert (len(seen.steps), seen.width) == (57, 16)
    assert seen.mean[1] == pytest.approx(np.mean(np.arange(16, 32) + 0.5))
    assert (seen.min[1], seen.max[1]) == (16.5, 31.5)


def test_a_column_that_was_logged_late_is_in_the_overview(tmp_path: Path) -> None:
    records = [record(s, **({"accuracy": s / 100} if s >= 60 else {})) for s in range(100)]
    path = written(tmp_path / "a", records, flush_steps=10)
    seen = open_run(path).series("accuracy")
    assert np.isnan(seen.mean[:60]).all()
    assert seen.mean[60:].tolist() == [s / 100 for s in range(60, 100)]
    assert seen.num_nonfinite.sum() == 0


def test_a_mean_of_huge_values_does_not_overflow() -> None:
    bins = single(
        Numbers(("x",), np.arange(4), np.zeros(4, np.int32), np.full((4, 1), 1.5e308), None)
    )
    assert rebinned(bins, 4).mean[0, 0] == pytest.approx(1.5e308)


@given(st.lists(st.floats(), min_size=1, max_size=40), st.integers(0, 39))
def test_bins_of_bins_are_bins_of_the_rows(values: list[float], cut: int) -> None:
    steps, ids = np.arange(len(values)), np.zeros(len(values), np.int32)
    rows = single(Numbers(("x",), steps, ids, np.array(values)[:, None] / 4, None))
    pieces = [rebinned(rows[:cut], 4), rebinned(rows[cut:], 4)]
    twice, once = rebinned(concatenated(pieces), 8), rebinned(rows, 8)
    for name in ("start", "low", "high", "finite", "nonfinite", "num_rows"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(once, name))
    # Where large values cancel, what is left of the small ones is the rounding of a sum.
    sizes = [abs(value) / 4 for value in values if math.isfinite(value)]
    rounding = max(sizes, default=0.0) * 2**-52 * len(values)
    np.testing.assert_allclose(twice.mean, once.mean, rtol=1e-9, atol=rounding + 1e-300)


@pytest.mark.parametrize("resumed_at", [1, 97, 128, 300])
def test_a_later_attempt_goes_on_with_the_overview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed_at: int
) -> None:
    small(monkeypatch)
    path = tmp_path / "a"
    written(path, [split_record(s, [float(s), 1.0]) for s in range(300)], flush_steps=20)
    later = range(resumed_at, 400)
    records = [split_record(s, [-float(s), 1.0]) for s in later]
    written(path, records, flush_steps=20, attempt=1)
    expected = [(s, 0, float(s) if s < resumed_at else -float(s)) for s in range(400)]
    seen = open_run(path).series("cosine", 0, max_points=32)
    twin = slow_twin([(s, i, v) for s, i, v in expected], seen.width)
    found = zip(seen.min, seen.mean, seen.max, seen.num_nonfinite, strict=True)
    for start, cell in zip(seen.steps.tolist(), found, strict=True):
        np.testing.assert_allclose(cell, twin[start, 0])
    assert len(seen.steps) == len(twin)

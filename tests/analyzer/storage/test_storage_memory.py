from pathlib import Path

import pytest

from analyzer.storage import views
from analyzer.storage.run import open_run
from tests.analyzer.storage.storage_rows import block, record, value, written


def test_of_wide_overviews_only_the_last_columns_are_kept_and_all_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_MOST_ROWS", 90)
    monkeypatch.setattr(views, "_kept", {})
    rows = [record(step, block("layer_stats", step, 4)) for step in range(10)]
    run = open_run(written(tmp_path / "run", rows))
    for _ in range(2):
        for place, column in enumerate(("activation_norm", "activation_mean", "activation_std")):
            found = run.heatmap(column).mean[3]
            assert found.tolist() == [value(step, 3, place) for step in range(10)]
    kept = [column for _, _, column in views._kept]
    assert kept == ["activation_mean", "activation_std"]
    assert list(run._views["layer_stats"]._bins) == kept


def test_one_column_is_kept_however_wide_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_MOST_ROWS", 1)
    run = open_run(written(tmp_path / "run", [record(0, block("layer_stats", 0, 4))]))
    assert run.heatmap("activation_norm").ids.tolist() == [0, 1, 2, 3]
    assert list(run._views["layer_stats"]._bins) == ["activation_norm"]

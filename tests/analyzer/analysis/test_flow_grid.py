from pathlib import Path

import numpy as np
import pytest

from analyzer.analysis.flow_grid import (
    NONFINITE,
    ZERO,
    GridColumn,
    flow_grid,
    grid_difference,
    update_grid,
)
from analyzer.analysis.view import RunLabel, View
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run, open_run
from tests.support.full_run import write_empty_run, write_full_pair, write_network_run
from tests.support.runs import write_run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Run, ...]:
    return tuple(map(open_run, write_full_pair(tmp_path)))


def test_the_grid_holds_the_recorded_values_by_depth(pair: tuple[Run, ...]) -> None:
    column = flow_grid(View(pair)).runs[1]
    rows = (
        pair[1]
        .layer_stats("output_gradient_norm")
        .pivot(index="layer", columns="step", values="output_gradient_norm")
    )
    assert column.values == pytest.approx(rows.loc[column.ids].to_numpy())
    assert column.steps.tolist() == list(range(60))


def test_all_runs_share_one_range(pair: tuple[Run, ...]) -> None:
    grid = flow_grid(View(pair))
    norms = [r.layer_stats("output_gradient_norm")["output_gradient_norm"] for r in pair]
    # Whole decades, so that colors do not move with each new row.
    assert grid.low == np.floor(np.log10(min(n.min() for n in norms)))
    assert grid.high == np.ceil(np.log10(max(c.values.max() for c in grid.runs)))
    assert "spans 6.65 decades" in grid.caption


def test_a_healthy_run_does_not_fill_the_range_alone(pair: tuple[Run, ...]) -> None:
    grid = flow_grid(View(pair[1:]))
    assert grid.high - grid.low == pytest.approx(6)


def test_zero_and_nonfinite_cells_are_marked(tmp_path: Path) -> None:
    norms = [[0.0, 1.0], [1.0, np.nan], [np.inf, 0.5]]
    grid = flow_grid(View((open_run(write_run(tmp_path / "a", [1.0, 1.0, 1.0], norms)),)))
    assert grid.runs[0].marks.tolist() == [[ZERO, 0, NONFINITE], [0, NONFINITE, 0]]
    assert "NaN or infinite from step 1 on, first in 1 row" in grid.caption


@pytest.mark.parametrize("aggregate", ["median", "mean", "min", "max"])
def test_bins_of_a_long_run_show_the_aggregate(tmp_path: Path, aggregate: str) -> None:
    values = np.random.default_rng(1).lognormal(size=(1000, 1))
    run = open_run(write_run(tmp_path / "a", [1.0] * 1000, values.tolist()))
    column = flow_grid(View((run,), aggregate=aggregate)).runs[0]
    size = -(-1000 // len(column.steps))
    expected = [getattr(np, aggregate)(values[k : k + size]) for k in range(0, 1000, size)]
    assert len(column.steps) <= 480 and column.width == size
    assert column.values[0] == pytest.approx(expected)


def test_a_thousand_layers_are_put_together_for_a_screen(tmp_path: Path) -> None:
    path = write_network_run(tmp_path / "deep", has_shortcuts=False, blocks=500, steps=4)
    column = flow_grid(View((open_run(path),))).runs[0]
    assert 120 <= len(column.names) <= 240
    assert column.names[0] == "stem … layer1.1.fc2"
    shown = np.isfinite(column.log10[:, 0])
    assert (np.diff(column.log10[shown, 0]) > 0).all()
    # 0.4⁵⁰⁰ is a number, 0.4¹⁰⁰⁰ is not.
    assert shown.any() and (column.marks[~shown, 0] == ZERO).all()


def test_relative_values_are_over_the_deepest_layer(pair: tuple[Run, ...]) -> None:
    column = flow_grid(View(pair, relative=True)).runs[0]
    assert column.values[-1] == pytest.approx(np.ones(60))
    assert column.values[0, 0] < 1e-6


def test_there_is_no_ratio_to_a_deepest_layer_of_zero(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "a", [1.0, 1.0], [[1.0, 0.0], [1.0, 2.0]]))
    column = flow_grid(View((run,), relative=True)).runs[0]
    assert np.isnan(column.values[:, 0]).all() and column.values[:, 1].tolist() == [0.5, 1]
    assert np.isnan(grid_difference(View((run, run), relative=True)).values[:, 0]).all()


def test_the_table_holds_every_cell(pair: tuple[Run, ...]) -> None:
    table = flow_grid(View(pair)).table()
    assert len(table) == (18 + 19) * 60
    row = table[(table["run"] == "plain") & (table["layer"] == "head") & (table["step"] == 0)]
    assert row["output_gradient_norm"].item() == pytest.approx(0.1 * (1 + 0.1 * np.sin(33)))


def test_the_difference_is_the_ratio_of_the_second_run_to_the_first(pair: tuple[Run, ...]) -> None:
    found = grid_difference(View(pair))
    columns = flow_grid(View(pair)).runs
    first = columns[1].log10[0] - columns[0].log10[0]
    assert found.values[0] == pytest.approx(first)
    assert found.positions[[0, -1]].tolist() == [0, 1]
    assert found.reach == pytest.approx(np.nanmax(np.abs(found.values)))
    assert "at relative depth 0" in found.caption and "times the value of plain" in found.caption


def test_a_difference_needs_two_runs(pair: tuple[Run, ...]) -> None:
    with pytest.raises(NotRecordedError, match="a difference of 1 run; expected 2"):
        grid_difference(View(pair[:1]))


def test_update_ratios_are_update_over_norm_where_measured(pair: tuple[Run, ...]) -> None:
    grid = update_grid(View(pair))
    rows = pair[1].parameter_stats(["update_norm", "norm"], steps=40)
    expected = rows["update_norm"] / rows["norm"]
    column = grid.runs[1]
    at = column.steps.tolist().index(40)
    assert column.values[:, at] == pytest.approx(expected[column.ids].to_numpy())
    assert column.steps.tolist() == [s for s in range(60) if s % 10 in (0, 9)]


def test_a_run_without_steps_says_what_is_missing(tmp_path: Path) -> None:
    view = View((open_run(write_empty_run(tmp_path / "none")),))
    with pytest.raises(
        NotRecordedError, match="output_gradient_norm was not recorded in run 'none'"
    ):
        flow_grid(view)


def test_a_caption_of_bins_says_how_many_steps_they_are_of() -> None:
    one = {"ids": np.arange(2, dtype=np.int32), "names": ("a", "b"), "positions": np.arange(2.0)}
    values = np.array([[1e-3, 1.0], [1.0, 1.0]])
    cells = {"values": values, "marks": np.zeros((2, 2), np.uint8)}
    for width, words in ((1, "and steps."), (2, "and steps (in bins of 2 steps).")):
        column = GridColumn(
            RunLabel("run", False, 0),
            "output_gradient_norm",
            steps=np.array([0, width]),
            width=width,
            **one,
            **cells,
        )
        assert column.sentence().endswith(f"spans 3 decades over layers {words}")

from pathlib import Path

import numpy as np
import pytest

from analyzer.analysis import overview as module
from analyzer.analysis.bands import band
from analyzer.analysis.gradient_flow import depth_profile, profile_gain
from analyzer.analysis.overview import Overview, loss_spike, overview
from analyzer.analysis.view import View, stage_borders
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run, open_run
from tests.support.full_run import share_of, write_empty_run, write_full_pair, write_network_run
from tests.support.runs import write_run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Run, ...]:
    return tuple(map(open_run, write_full_pair(tmp_path)))


@pytest.fixture
def both(pair: tuple[Run, ...]) -> Overview:
    return overview(View(pair, step=30, quantity="activation_std"))


def test_the_titles_state_the_outcome(both: Overview) -> None:
    assert [column.title for column in both.runs] == [
        "loss 2.30 after 60 steps",
        "loss 0.519 after 60 steps",
    ]


def test_the_notes_state_gain_and_share(both: Overview) -> None:
    # 0.4 per two units of depth; the shares rise by 0.2 over 59 steps.
    assert both.runs[0].gain.gain == pytest.approx(0.4**0.5, rel=0.01)
    assert "falls 6.58 decades" in both.runs[0].note
    median = np.median([share_of(join, 30, 60) for join in range(8)])
    assert f"shortcuts carry {100 * median:.0f} % of the gradient" in both.runs[1].note


def test_rows_one_and_two_are_of_the_chosen_step(pair: tuple[Run, ...], both: Overview) -> None:
    column = both.runs[0]
    rows = pair[0].layer_stats("output_gradient_norm", steps=30).set_index("layer")
    assert column.profile == pytest.approx(
        rows.loc[column.grid.ids, "output_gradient_norm"].to_numpy()
    )
    assert column.step == both.runs[1].arcs.step == 30


def test_the_gain_of_every_step_is_the_fit_of_that_step(
    pair: tuple[Run, ...], both: Overview
) -> None:
    column = both.runs[0]
    fits = [profile_gain(depth_profile(pair[0], step)).gain for step in (0, 17, 59)]
    assert column.gains[[0, 17, 59]] == pytest.approx(fits)
    path = write_network_run(pair[0].path.parent / "nan", has_shortcuts=True, steps=4, nan_from=2)
    gains = overview(View((open_run(path),))).runs[0].gains
    assert np.isnan(gains).tolist() == [False, False, True, True]


def test_ranges_are_shared(both: Overview) -> None:
    assert both.depth == (0, 33)
    assert both.loss_range == pytest.approx((0.44, 2.30))
    assert both.high - both.low > 6


def test_the_shares_over_time_are_those_of_the_splits(
    pair: tuple[Run, ...], both: Overview
) -> None:
    column = both.runs[1]
    splits = pair[1].splits(columns="shortcut_share")
    expected = splits.pivot(index="step", columns="join", values="shortcut_share")
    assert column.shares == pytest.approx(expected.to_numpy())
    assert column.share_steps.tolist() == expected.index.tolist()


def test_a_thousand_layers_become_a_band(tmp_path: Path) -> None:
    deep = open_run(write_network_run(tmp_path / "deep", has_shortcuts=True, blocks=500, steps=3))
    column = overview(View((deep,))).runs[0]
    assert len(column.grid.positions) <= 240
    assert len(column.arcs.joins) <= 112 and column.arcs.size == 5
    assert column.shares.shape == (1, len(column.arcs.joins))


def test_a_loss_that_breaks_is_the_outcome(tmp_path: Path) -> None:
    path = write_network_run(tmp_path / "nan", has_shortcuts=True, steps=9, nan_from=5)
    column = overview(View((open_run(path),))).runs[0]
    assert column.title == "loss not finite from step 5 on"
    assert column.note.startswith("no gain can be fitted")
    assert column.loss.num_nonfinite.sum() == 4


@pytest.mark.parametrize(
    ("change", "spike"),
    [
        ({}, None),
        ({40: 3.0}, (40, 3.0)),
        ({40: 3.0, 41: 2.5}, (40, 3.0)),
        # What stays up has not come back, and a small bump is noise.
        (dict.fromkeys(range(40, 60), 3.0), None),
        ({40: 1.1}, None),
        ({40: float("nan")}, None),
    ],
)
def test_a_loss_that_rises_and_comes_back_is_a_spike(
    change: dict[int, float], spike: tuple[int, float] | None
) -> None:
    losses = np.linspace(2.0, 0.2, 60)
    losses[list(change)] = list(change.values())
    assert loss_spike(band(range(60), losses, 500)) == spike


def test_the_outcome_names_the_spike(tmp_path: Path) -> None:
    losses = [1.0] * 40
    losses[25] = 5.0
    run = open_run(write_run(tmp_path / "net", losses, [[1.0, 1.0]] * 40))
    assert overview(View((run,))).runs[0].outcome == "1 (spike: 5 at step 25)"


def test_stages_begin_where_the_first_part_of_the_names_changes() -> None:
    names = ("stem", "layer1.0.a", "layer1.1.a", "layer2.0.a", "head")
    assert stage_borders(names, np.arange(5.0)) == (
        (0.0, "stem"),
        (1.0, "layer1"),
        (3.0, "layer2"),
        (4.0, "head"),
    )
    nested = ("net.a.0", "net.a.1", "net.b.0", "net.c.0")
    assert [name for _, name in stage_borders(nested, np.arange(4.0))] == [
        "net.a",
        "net.b",
        "net.c",
    ]


def test_a_run_that_lacks_gradients_is_left_out_and_named(
    pair: tuple[Run, ...], tmp_path: Path
) -> None:
    empty = open_run(write_empty_run(tmp_path / "empty"))
    found = overview(View((pair[0], empty)))
    assert len(found.runs) == 1 and found.caption.endswith("Not recorded in empty.")
    with pytest.raises(NotRecordedError, match="layer_stats were not recorded in run 'empty'"):
        overview(View((empty,)))


def test_the_table_holds_the_profile(both: Overview) -> None:
    table = both.table()
    assert len(table) == 18 + 19
    assert table["output_gradient_norm"].min() == both.runs[0].profile.min()


def test_another_step_reads_no_grid_again_and_shows_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = [[0.1 + 0.01 * step, 1.0, 10.0] for step in range(20)]
    path = write_run(tmp_path / "a", [1.0] * 20, norms)
    kept, calls, plain = open_run(path), [], module.grid_column
    monkeypatch.setattr(
        module, "grid_column", lambda *a, **k: calls.append(a[0].relative) or plain(*a, **k)
    )
    found = [overview(View((kept,), step=step)).runs[0] for step in (19, 3)]
    assert calls == [False]
    for column, step in zip(found, (19, 3), strict=True):
        alone = overview(View((open_run(path),), step=step)).runs[0]
        assert column.profile.tolist() == alone.profile.tolist() == norms[step]
        assert np.array_equal(column.grid.values, alone.grid.values)
        assert np.array_equal(column.gains, alone.gains)
        assert np.array_equal(column.shares, alone.shares, equal_nan=True)
    relative = overview(View((kept,), step=3, relative=True)).runs[0]
    assert relative.profile[-1] == 1.0 and relative.grid.values[-1].tolist() == [1.0] * 20

from pathlib import Path

import numpy as np
import pytest

from analyzer.analysis.shortcuts import join_arcs, nesting, share_level
from analyzer.storage.run import open_run
from tests.support.full_run import share_of, write_full_pair, write_network_run
from tests.support.runs import layer_row, write_run


def test_an_arc_reaches_from_the_layer_before_the_branch_to_its_last(tmp_path: Path) -> None:
    arcs = join_arcs(open_run(write_full_pair(tmp_path)[1]), None)
    assert arcs.starts.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert arcs.ends.tolist() == [4, 8, 12, 16, 20, 24, 28, 32]
    assert arcs.shortcuts.count("projection") == 1
    assert arcs.shares == pytest.approx([share_of(join, 59, 60) for join in range(8)])
    assert arcs.step == 59


def test_shares_are_those_of_the_nearest_split(tmp_path: Path) -> None:
    arcs = join_arcs(open_run(write_full_pair(tmp_path)[1]), 33)
    assert arcs.step == 30
    assert arcs.median_share == pytest.approx(np.median([share_of(j, 30, 60) for j in range(8)]))


def test_an_arc_stands_over_those_that_it_holds() -> None:
    starts, ends = np.array([0.0, 0, 2, 0, 5]), np.array([2.0, 4, 4, 9, 7])
    assert nesting(starts, ends).tolist() == [1, 2, 1, 3, 1]


def test_levels_of_shares() -> None:
    shares = np.array([-0.3, 0.0, 0.2, 0.71, 1.4, np.nan])
    assert share_level(shares).tolist() == [0, 0, 1, 3, 4, -1]


def test_many_arcs_become_a_band_of_medians(tmp_path: Path) -> None:
    path = write_network_run(tmp_path / "deep", has_shortcuts=True, blocks=300, steps=2)
    arcs = join_arcs(open_run(path), 0)
    band = arcs.thinned(64)
    assert (arcs.size, band.size, len(band.joins)) == (1, 5, 60)
    assert (band.starts[1], band.ends[1]) == (arcs.starts[5], arcs.ends[9])
    assert band.shares == pytest.approx(np.full(60, 0.6))
    assert band.names[0] == "layer1.0 … layer1.4"


def test_joins_whose_layers_are_unknown_are_counted_and_splits_may_be_missing(
    tmp_path: Path,
) -> None:
    branches = [["layers.0"], ["gone"]]
    joins = [
        {
            "join": k,
            "name": f"block{k}",
            "operation": "add",
            "shortcut": "identity",
            "branch_layers": branch,
            "shortcut_layers": [],
        }
        for k, branch in enumerate(branches)
    ]
    layers = [layer_row(0, "layers.0")]
    run = open_run(write_run(tmp_path / "a", [1.0], [[1.0]], layers=layers, joins=joins))
    arcs = join_arcs(run, None)
    assert (arcs.names, arcs.step) == (("block0",), None)
    assert np.isnan(arcs.shares).all() and np.isnan(arcs.median_share)

import re
import time
from pathlib import Path

import numpy as np
import pytest

from analyzer.analysis.view import View, matching, nearest_step, row_set, run_labels
from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.storage.run import open_run
from tests.support.full_run import write_full_pair, write_network_run
from tests.support.runs import write_run


def test_names_that_contain_a_match_are_chosen() -> None:
    names = ["layer1.0.fc1", "layer1.0.relu1", "head"]
    assert matching(r"fc\d|head", names).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("layer[", "expected a regular expression"),
        (r"(a)\1", "back references"),
        ("(?=a)", "look-around"),
        ("x" * 1_001, "with 1001 characters"),
    ],
)
def test_a_pattern_that_is_wrong_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(AnalyzerError, match=reason):
        matching(pattern, ["a" * 50])


def test_a_pattern_finds_what_python_finds() -> None:
    names = ["layer1.0.conv1", "layer2.0.conv1", "fc", "LAYER1"]
    for pattern in ("", "layer1", r"^layer\d\.0", "conv1$|fc", "(?i)layer1"):
        expected = [re.search(pattern, name) is not None for name in names]
        assert matching(pattern, names).tolist() == expected


def test_a_catastrophic_pattern_is_as_quick_as_any() -> None:
    began = time.perf_counter()
    assert not matching("(a+)+$", ["a" * 5000 + "!"] * 50).any()
    assert not matching(".*.*.*.*.*.*x", ["a" * 5000] * 50).any()
    assert time.perf_counter() - began < 5


def test_the_nearest_step_is_the_earlier_of_two() -> None:
    steps = np.array([0, 10, 20])
    assert [nearest_step(steps, s) for s in (None, -5, 5, 6, 99)] == [20, 0, 0, 10, 20]
    assert nearest_step(steps[:0], 3) is None


def test_runs_with_and_without_shortcuts_have_styles_of_their_own(tmp_path: Path) -> None:
    plain, residual = map(open_run, write_full_pair(tmp_path))
    cut = open_run(write_network_run(tmp_path / "cut", has_shortcuts=True, steps=1, skip_scale=0))
    labels = run_labels([plain, residual, cut, residual])
    # By name, so that the order in which runs are chosen changes no color.
    assert [label.style for label in labels] == [3, 0, 1, 2]
    assert [label.text for label in labels] == ["plain", "residual", "cut", "residual (2)"]


def test_layers_with_parameters_are_shown_by_depth_unless_a_pattern_says_more(
    tmp_path: Path,
) -> None:
    run = open_run(write_full_pair(tmp_path)[1])
    rows = row_set(run, "output_gradient_norm")
    owns = run.layers.set_index("layer")["num_parameters"] > 0
    assert owns[rows.ids].all() and len(rows.ids) == 19
    assert (np.diff(rows.positions) > 0).all()
    assert [rows.names[0], rows.names[-1]] == ["stem", "head"]
    assert set(row_set(run, "activation_mean", "relu1").names) == {
        f"layer{stage}.{block}.relu1" for stage in (1, 2) for block in range(4)
    }


def test_layers_of_one_depth_stand_side_by_side_within_it(tmp_path: Path) -> None:
    rows = row_set(open_run(write_full_pair(tmp_path)[1]), "output_gradient_norm")
    pair = [
        k for k, name in enumerate(rows.names) if name in ("layer2.0.fc1", "layer2.0.downsample")
    ]
    assert rows.positions[pair].tolist() == pytest.approx([16.8, 17.2])


def test_parameters_stand_at_the_depth_of_their_layer(tmp_path: Path) -> None:
    rows = row_set(open_run(write_full_pair(tmp_path)[0]), "update_norm", r"layer1\.0")
    assert rows.table == "parameter_stats"
    assert rows.positions.round().tolist() == [1, 1, 3, 3]


def test_an_unknown_quantity_or_layer_is_named(tmp_path: Path) -> None:
    run = open_run(write_full_pair(tmp_path)[0])
    with pytest.raises(NotRecordedError, match="quantity 'shortcut_share' is not a statistic"):
        row_set(run, "shortcut_share")
    with pytest.raises(AnalyzerError, match="layers is 'conv'; none of 34 names matches"):
        row_set(run, "output_gradient_norm", "conv")


def test_an_unknown_aggregate_is_refused() -> None:
    with pytest.raises(ValueError, match="aggregate is 'sum'; expected one of median, mean"):
        View((), aggregate="sum")


def test_a_run_has_one_color_in_whatever_order_runs_are_chosen(tmp_path: Path) -> None:
    runs = [open_run(write_run(tmp_path / name, [1.0], [[1.0]])) for name in ("b", "a", "c")]
    colors = {label.text: label.style for label in run_labels(runs)}
    assert colors == {label.text: label.style for label in run_labels(runs[::-1])}
    assert len(set(colors.values())) == 3

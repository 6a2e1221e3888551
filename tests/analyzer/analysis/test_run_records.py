import math
from pathlib import Path

import pytest

from analyzer.analysis.evidence import first_nonfinite
from analyzer.analysis.gradient_flow import depth_profile, profile_gain
from analyzer.analysis.profiles import dead_unit_profiles, num_units
from analyzer.analysis.training import run_training
from analyzer.analysis.view import View
from analyzer.storage.run import open_run
from tests.support.runs import layer_row, write_run


def test_a_profile_of_a_run_tells_null_from_nan(tmp_path: Path) -> None:
    layers = [layer_row(i, f"l{i}", num_parameters=0 if i == 2 else 5) for i in range(4)]
    path = write_run(tmp_path / "r", [1.0], [[None, math.nan, 0.5, 1.0]], layers=layers)
    seen = depth_profile(open_run(path), 0)
    assert seen.measured.tolist() == [False, True, True, True]
    assert seen.is_nonfinite.tolist() == [False, True, False, False]
    assert seen.has_parameters.tolist() == [True, True, False, True]
    assert seen.depths.tolist() == [0, 1, 2, 3]
    assert seen.names == ["l0", "l1", "l2", "l3"]
    assert not depth_profile(open_run(path), 7).measured.any()


def test_the_gain_of_a_recorded_chain_is_its_factor(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", [1.0], [[0.8 ** (49 - k) for k in range(50)]])
    assert profile_gain(depth_profile(open_run(path), 0)).gain == pytest.approx(0.8, rel=1e-12)


def test_the_training_of_a_run_keeps_nan_and_leaves_null_out(tmp_path: Path) -> None:
    losses = [None, 3.0, math.nan, 1.0]
    seen = run_training(open_run(write_run(tmp_path / "r", losses, [[1.0]] * 4)))
    assert (seen.num_steps, seen.num_losses, seen.first_loss, seen.last_loss) == (4, 3, 3.0, 1.0)
    assert (seen.nonfinite_step, seen.best_step, seen.seconds) == (2, 3, 2.0)


def test_the_first_nan_going_backward_is_that_of_the_last_layer(tmp_path: Path) -> None:
    norms = [[1.0] * 4, [math.nan, math.inf, 1.0, 1.0], [math.nan] * 4]
    seen = first_nonfinite(open_run(write_run(tmp_path / "r", [1.0] * 3, norms)))
    assert seen is not None
    assert (seen.step, seen.layer, seen.name, seen.what) == (1, 1, "layers.1", "output gradient")
    finite = write_run(tmp_path / "s", [1.0], [[1.0, 0.0, None]])
    assert first_nonfinite(open_run(finite)) is None


def test_dead_units_are_counted_against_the_units_of_the_layer(tmp_path: Path) -> None:
    layers = [layer_row(0, "conv", "Conv2d", output_shape=[8, 14, 5, 5])]
    run = open_run(write_run(tmp_path / "r", [1.0], [[1.0]], layers=layers))
    (found,) = dead_unit_profiles(View((run,), step=0)).runs
    assert found.names == ("conv",)
    assert [found.values[key].tolist() for key in ("num_dead", "dead_share")] == [[7], [0.5]]


@pytest.mark.parametrize(
    ("kind", "shape", "units"),
    [
        ("Linear", [8, 5], 5),
        ("Linear", [8, 10, 5], 5),
        ("Conv1d", [8, 3, 100], 3),
        ("ReLU", [8, 16, 4, 4], 16),
        ("Linear", [8], None),
        ("LSTM", None, None),
    ],
)
def test_units_are_channels_of_images_and_features_else(
    kind: str, shape: list[int] | None, units: int | None
) -> None:
    assert num_units(kind, shape) == units

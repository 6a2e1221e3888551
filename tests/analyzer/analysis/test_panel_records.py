"""The records behind the panels, against the tables that they were read from."""

from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.analysis.layer_probes import (
    attribution_shares,
    block_spectra,
    probe_by_layer,
    shattering_curves,
)
from analyzer.analysis.network_probes import (
    join_lesions,
    landscapes,
    path_lengths,
    trajectories,
)
from analyzer.analysis.profiles import (
    activation_profiles,
    dead_unit_profiles,
    layer_series,
    profile_curves,
    profile_overlay,
)
from analyzer.analysis.shortcuts import shortcut_strip, split_series
from analyzer.analysis.training import (
    gradient_norm_curves,
    learning_rate_curves,
    loss_curves,
    noise_curves,
)
from analyzer.analysis.view import View
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run, open_run
from analyzer.storage.writer import RunWriter
from tests.support.full_run import share_of, write_empty_run, write_full_pair, write_network_run
from tests.support.runs import layer_row, write_run


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    return tuple(map(open_run, write_full_pair(tmp_path_factory.mktemp("pair"))))


def probed(path: Path, name: str, columns: dict[str, Any], **notes: str) -> Run:
    """A run that holds one probe."""
    writer = RunWriter(path, {})
    writer.write_probe(name, 0, columns, notes)
    writer.close("finished")
    return open_run(path)


def test_profiles_state_the_gain_of_the_step(pair: tuple[Run, ...]) -> None:
    found = profile_curves(View(pair, step=0))
    assert "plain, step 0: gain 0.63" in found.caption
    assert found.runs[0].values["output_gradient_norm"][-1] == pytest.approx(
        0.1 * (1 + 0.1 * np.sin(33))
    )


def test_profiles_of_another_quantity_state_its_reach(pair: tuple[Run, ...]) -> None:
    caption = profile_curves(View(pair[:1], quantity="activation_std")).caption
    assert caption == "plain, step 59: activation std reaches from 0.515 (head) to 1 (stem)."


def test_an_overlay_runs_from_0_to_1_in_every_run(pair: tuple[Run, ...]) -> None:
    for curve in profile_overlay(View(pair, relative=True)).runs:
        assert curve.positions[[0, -1]].tolist() == [0, 1]
        assert curve.values["output_gradient_norm"][-1] == 1


def test_series_are_of_layers_from_the_first_to_the_last(pair: tuple[Run, ...]) -> None:
    found = layer_series(View(pair))
    assert found.runs[0].names[0] == "stem" and found.runs[0].names[-1] == "head"
    stem = pair[0].layer_stats("output_gradient_norm", layers="stem")["output_gradient_norm"]
    assert found.runs[0].bands[0].middle == pytest.approx(stem.to_numpy())
    assert layer_series(View(pair, layers="head")).runs[0].names == ("head",)


def test_the_strip_names_the_least_and_the_most(pair: tuple[Run, ...]) -> None:
    found = shortcut_strip(View(pair, step=0))
    assert len(found.runs) == 1 and "8 joins carry 60 % of the gradient" in found.caption
    assert found.caption.endswith("Not recorded in plain.")


def test_splits_over_time_are_medians_over_joins(pair: tuple[Run, ...]) -> None:
    run = split_series(View(pair)).runs[0]
    shares = np.array([[share_of(j, int(s), 60) for j in range(8)] for s in run.steps])
    assert run.median == pytest.approx(np.median(shares, axis=1))
    assert run.low == pytest.approx(shares.min(axis=1))
    assert run.high == pytest.approx(shares.max(axis=1))
    assert len(run.names) == 8


def test_the_effective_path_length_is_that_of_the_closed_form(pair: tuple[Run, ...]) -> None:
    # Branches that multiply by 1/2: Σ k C(8,k)/2ᵏ / Σ C(8,k)/2ᵏ = 8 · ½ / (1 + ½).
    run = path_lengths(View(pair)).runs[0]
    assert run.effective_length == pytest.approx(8 / 3)
    assert run.num_paths.tolist() == [comb(8, k) for k in range(9)]
    assert path_lengths(View(pair, step=3)).runs[0].effective_length == pytest.approx(8 * 0.8 / 1.8)


def test_lesions_are_in_forward_order(pair: tuple[Run, ...]) -> None:
    found = join_lesions(View(pair))
    assert found.runs[0].values["loss_change"] == pytest.approx([0.5 / (1 + k) for k in range(8)])
    assert found.runs[0].names[0] == "layer1.0"
    assert "by 0.113 (median), by 0.5 at most (layer1.0)" in found.caption


def test_spectra_state_the_condition_number_of_the_network(pair: tuple[Run, ...]) -> None:
    found = block_spectra(View(pair))
    assert "a condition number of 1.2·10⁷" in found.caption
    assert found.runs[0].names[-1] == "network"
    assert (found.low, found.high) == (1e-7, 1.5)


def test_correlations_stand_beside_the_curves_that_the_probe_noted(pair: tuple[Run, ...]) -> None:
    curve = shattering_curves(View(pair)).runs[0]
    assert curve.values["correlation"][[0, -1]] == pytest.approx([0.8**17, 1])
    assert curve.references["plain, 1/2ᴸ"][:2] == pytest.approx([0.5**17, 0.5**16])


@pytest.mark.parametrize("name", ["output_gradient_norm", "activation_norm"])
def test_a_profile_goes_along_depth_whatever_the_order_of_calls(tmp_path: Path, name: str) -> None:
    layers = [layer_row(k, f"l{k}", depth=depth) for k, depth in enumerate((2, 0, 3, 1))]
    run = open_run(write_run(tmp_path / "run", [1.0], [[2.0, 0.5, 3.0, 1.0]], layers=layers))
    (found,) = profile_curves(View((run,), quantity=name)).runs
    assert found.names == ("l1", "l3", "l0", "l2")
    by_layer = dict(zip(*(array.tolist() for array in run.profile(name, 0)), strict=True))
    assert found.values[name].tolist() == [by_layer[layer] for layer in (1, 3, 0, 2)]


def test_any_probe_by_layer_is_read_along_depth(pair: tuple[Run, ...]) -> None:
    found = probe_by_layer("shattering", "correlation")(View(pair))
    assert found.runs[0].names[0] == "stem" and found.runs[0].names[-1] == "head"
    assert found.runs[0].values["correlation"][[0, -1]] == pytest.approx([0.8**17, 1])
    assert found.runs[0].sentence().startswith("plain, step 59: correlation goes from 0.0225 at")
    assert list(found.table()) == ["run", "step", "layer", "depth", "correlation"]


@pytest.mark.parametrize("stored", ["", "[", '{"plain": [1]}', '{"plain": "a"}'])
def test_curves_that_do_not_fit_are_left_out(tmp_path: Path, stored: str) -> None:
    path = write_network_run(tmp_path / "a", has_shortcuts=False, steps=1, probes=False)
    writer = RunWriter(path, {}, attempt=1)
    columns = {"layer": [0, 33], "name": ["stem", "head"], "correlation": [0.1, 1.0]}
    writer.write_probe("shattering", 0, columns, {"references": stored})
    writer.close("finished")
    curve = shattering_curves(View((open_run(path),))).runs[0]
    assert curve.names == ("stem", "head") and not curve.references


def test_activations_hold_mean_and_spread_of_every_layer(pair: tuple[Run, ...]) -> None:
    profile = activation_profiles(View(pair)).runs[0]
    assert len(profile.names) == 34
    assert profile.values["activation_std"][0] == 1
    assert profile.values["activation_mean"][2] == pytest.approx(0.2)


def test_dead_units_are_counted_over_layers(pair: tuple[Run, ...]) -> None:
    found = dead_unit_profiles(View(pair))
    dead = pair[0].layer_stats("activation_num_dead", steps=59)["activation_num_dead"]
    assert found.runs[0].values["num_dead"].sum() == dead.sum()
    assert found.runs[0].values["dead_share"].max() == dead.max() / 16


def test_the_loss_is_stated_first_and_last(pair: tuple[Run, ...]) -> None:
    found = loss_curves(View(pair))
    assert found.runs[1].band.middle[[0, -1]] == pytest.approx([2.3, 0.44])
    assert "residual: loss 2.30 at step 0, 0.519 after 60 steps." in found.caption


def test_a_loss_that_breaks_is_marked_not_dropped(tmp_path: Path) -> None:
    path = write_network_run(tmp_path / "a", has_shortcuts=True, steps=8, nan_from=6, probes=False)
    found = loss_curves(View((open_run(path),)))
    assert "NaN or infinite from step 6 on" in found.caption
    assert found.runs[0].band.num_nonfinite.tolist() == [0] * 6 + [1, 1]


def test_a_learning_rate_that_changes_is_stated_twice(pair: tuple[Run, ...]) -> None:
    caption = learning_rate_curves(View(pair[:1])).caption
    assert caption == "plain: learning rate 0.02 at step 0, 0.002 at step 59."


def test_the_norm_after_clipping_is_what_the_optimizer_received(pair: tuple[Run, ...]) -> None:
    found = gradient_norm_curves(View(pair[:1]))
    before, after = (curve.band.middle for curve in found.runs)
    assert after == pytest.approx(np.minimum(before, 2.5))
    share = np.mean(3 + np.sin(np.arange(60)) > 2.5)
    assert f"clipped in {100 * share:.0f} % of 60 steps" in found.caption


def test_the_noise_scale_is_shown_at_its_probes(pair: tuple[Run, ...]) -> None:
    band = noise_curves(View(pair[:1])).runs[0].band
    assert (band.steps.tolist(), band.middle.tolist()) == ([0, 59], [40, 99])


def test_a_landscape_is_the_grid_that_was_evaluated(pair: tuple[Run, ...]) -> None:
    found = landscapes(View(pair))
    run = found.runs[1]
    alpha, beta = np.meshgrid(run.alphas, run.betas)
    assert run.losses == pytest.approx(0.44 + 4 * (alpha**2 + 0.5 * beta**2))
    assert run.center == pytest.approx(0.44)
    assert found.is_log and found.low == pytest.approx(np.log10(0.44))
    assert found.shown(run) == pytest.approx(np.log10(run.losses))


@pytest.mark.parametrize("beta", [None, 0.0])
def test_a_line_keeps_infinities_and_interpolated_points(
    tmp_path: Path, beta: float | None
) -> None:
    columns = {
        "alpha": [1.0, -1.0, 0.0, 0.5],
        "beta": [beta] * 4,
        "loss": [np.inf, 2.0, 1.0, 7.0],
        "evaluated": [True, True, True, False],
    }
    found = landscapes(View((probed(tmp_path / "a", "landscape", columns),)))
    run = found.runs[0]
    assert len(run.betas) == 0 and run.center == 1
    assert run.losses.tolist() == [[2, 1, 7, np.inf]]
    assert run.evaluated.tolist() == [[True, True, False, True]] and run.num_nonfinite == 1
    assert "25 % of the points are interpolated or missing; 1 point is not finite" in found.caption


def test_a_trajectory_is_read_where_the_probe_noted_one(
    pair: tuple[Run, ...], tmp_path: Path
) -> None:
    path = trajectories(View(pair)).runs[0].trajectory
    assert path is not None and path.steps.tolist() == [0, 30, 59]
    assert path.residuals.tolist() == [0.21, 0.34, 0] and path.explained == 0.87
    point = {"alpha": [0.0], "beta": [0.0], "loss": [1.0], "evaluated": [True]}
    run = probed(tmp_path / "a", "landscape", point, trajectory="[[1, 2]]")
    with pytest.raises(NotRecordedError, match=r"'a'; record .*then `analyzer probe a "):
        trajectories(View((run,)))


def test_attribution_shares_are_per_checkpoint(pair: tuple[Run, ...]) -> None:
    found = attribution_shares(View(pair))
    run = found.runs[0]
    assert run.steps.tolist() == [0, 59] and run.names[0] == "stem"
    assert run.shares.sum(axis=1) == pytest.approx([1, 1])
    assert "the largest share of the conductance is that of stem" in found.caption


@pytest.mark.parametrize(
    ("info", "remedy"),
    [
        (path_lengths, r"measure it with `analyzer probe empty paths --replay`"),
        (join_lesions, r"measure it with `analyzer probe empty lesion --replay`"),
        (block_spectra, r"measure it with `analyzer probe empty jacobian --replay`"),
        (shattering_curves, r"measure it with `analyzer probe empty shattering --replay`"),
        (noise_curves, r"measure it with `analyzer probe empty noise --replay`"),
        (landscapes, r"measure it with `analyzer probe empty landscape --replay`"),
        (attribution_shares, r"measure it with `analyzer probe empty attribution --replay`"),
        (split_series, "add `--splits-every 10`"),
    ],
)
def test_what_was_not_recorded_comes_with_its_remedy(
    info: Callable[[View], Any], remedy: str, tmp_path: Path
) -> None:
    view = View((open_run(write_empty_run(tmp_path / "empty")),))
    with pytest.raises(NotRecordedError, match=f"not recorded in run 'empty'.*{remedy}"):
        info(view)


@pytest.mark.parametrize(
    ("info", "name", "columns"),
    [
        (path_lengths, "paths", ("length", "num_paths", "gradient_norm", "share")),
        (join_lesions, "lesion", ("join", "name", "loss", "loss_change", "accuracy")),
        (block_spectra, "jacobian", ("name", "rank_order", "singular_value")),
        (shattering_curves, "shattering", ("layer", "name", "correlation")),
        (noise_curves, "noise", ("gradient_noise_scale", "signal_norm", "noise_trace")),
        (landscapes, "landscape", ("alpha", "beta", "loss", "evaluated")),
        (
            attribution_shares,
            "attribution",
            ("layer", "name", "method", "attribution", "share"),
        ),
    ],
)
def test_a_probe_that_found_nothing_to_measure_is_said(
    info: Callable[[View], Any], name: str, columns: tuple[str, ...], tmp_path: Path
) -> None:
    run = probed(tmp_path / "none", name, {column: [] for column in columns})
    assert not len(run.probe(name))
    with pytest.raises(NotRecordedError, match=f"numbers of probe {name} were not recorded"):
        info(View((run,)))


def test_layers_that_the_run_does_not_know_have_no_correlation_but_a_share(tmp_path: Path) -> None:
    layers = {"layer": [None, None], "name": ["0", "2"]}
    run = probed(tmp_path / "one", "shattering", layers | {"correlation": [0.5, 0.25]})
    with pytest.raises(NotRecordedError, match="not recorded in run 'one'"):
        shattering_curves(View((run,)))
    shares = {"method": ["conductance"] * 2, "attribution": [3.0, 1.0], "share": [0.75, 0.25]}
    found = attribution_shares(View((probed(tmp_path / "two", "attribution", layers | shares),)))
    assert found.runs[0].names == ("0", "2")
    assert found.runs[0].shares.tolist() == [[0.75, 0.25]]

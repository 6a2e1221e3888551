import base64
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.analysis.numerals import decades_fallen
from analyzer.analysis.overview import Overview, overview
from analyzer.analysis.per_run import probe_rows_at
from analyzer.analysis.probe_numbers import counterfactual, fallen_without_shortcuts
from analyzer.analysis.trunk import trunk
from analyzer.analysis.view import View
from analyzer.figures.catalog import panel
from analyzer.figures.overview import overview_sketch
from analyzer.figures.overview_frames import overview_frames
from analyzer.figures.theme import LIGHT
from analyzer.storage.run import Run, open_run
from tests.support.full_run import write_full_pair, write_network_run


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    return tuple(map(open_run, write_full_pair(tmp_path_factory.mktemp("pair"))))


@pytest.fixture
def info(pair: tuple[Run, ...]) -> Overview:
    return overview(View(pair, step=30))


def without_at(run: Run, step: int) -> float:
    """Decades that the gradient falls without shortcuts at the probed step nearest to one."""
    return fallen_without_shortcuts(run, probe_rows_at(run, "counterfactual", step)[1])


def numbers(packed: dict[str, Any]) -> Any:
    """What a browser makes of packed numbers."""
    whole = np.frombuffer(base64.b64decode(packed["bdata"]), "<i2").astype(float)
    return (packed["offset"] + packed["scale"] * whole).reshape(packed["shape"])


def test_all_rows_but_the_loss_share_one_axis_of_depth_and_both_profiles_one_plot(
    info: Overview,
) -> None:
    figure = panel("overview").draw(info, LIGHT)
    assert {trace.xaxis for trace in figure.data if trace.xaxis} == {"x", "x2"}
    assert "depth" in figure.layout.xaxis.title.text and figure.layout.xaxis2.title.text == "step"
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [trace.coloraxis for trace in heat] == ["coloraxis"] * 2
    profiles = [figure.data[run["profile_trace"]] for run in overview_frames(info)["runs"]]
    assert {(one.xaxis, one.yaxis) for one in profiles} == {("x", "y2")}


def test_each_row_says_what_it_shows_with_its_numbers(
    pair: tuple[Run, ...], info: Overview
) -> None:
    texts = [note.text for note in panel("overview").draw(info, LIGHT).layout.annotations]
    words = [re.sub(r"<[^>]+>", "", text) for text in texts]
    share = f"median {100 * info.runs[1].arcs.median_share:.0f} % of the gradient at step 30;"
    assert words[0].startswith(f"shortcuts of residual: {share} thin 0 to 20 %")
    assert words[0].endswith("dotted: not an identity")
    assert words[1].startswith("gradient of layer outputs at step 30: — plain — residual")
    probed = info.runs[1].without_step
    fallen = decades_fallen(without_at(pair[1], 30))
    assert words[1].endswith(f"┈ without shortcuts (weights of step {probed}, {fallen}) ╌ fit")
    kept = ["plain: all recorded steps (drag the line)", "residual: all recorded steps"]
    assert words[2:4] == kept
    assert words[4].startswith("loss: plain 2.30 residual ")


def test_the_profile_without_shortcuts_is_what_the_probe_measured(
    pair: tuple[Run, ...], info: Overview
) -> None:
    rows = pair[1].probe("counterfactual")
    column = info.runs[1]
    rows = rows[(rows["step"] == column.without_step) & (rows["skip_scale"] == 0)]
    expected = rows[~rows["rescaled"].astype(bool)].set_index("layer")["output_gradient_norm"]
    assert column.without.tolist() == expected.reindex(column.grid.ids).tolist()
    assert len(info.runs[0].without) == 0
    figure = panel("overview").draw(info, LIGHT)
    (drawn,) = [one for one in figure.data if "without its shortcuts" in (one.name or "")]
    assert np.asarray(drawn.y).tolist() == column.without.tolist()
    low = 10 ** figure.layout.yaxis2.range[0]
    assert low <= np.nanmin(column.without)
    # Its number is that of the claim about the same weights, first to deepest layer with weights.
    assert without_at(pair[1], 0) == counterfactual(pair[1]).other
    layers = pair[1].layers
    owners = layers[(layers["num_parameters"] > 0) & (layers["role"] != "shortcut")]["layer"]
    norms = expected.reindex([one for one in owners if one in expected.index])
    assert column.without_fallen == pytest.approx(np.log10(norms.iloc[-1] / norms.iloc[0]))


def test_a_narrow_page_gets_the_same_traces_under_more_lines_of_words(info: Overview) -> None:
    wide, narrow = panel("overview").draw(info, LIGHT), panel("overview").narrow
    assert narrow is not None
    figure = narrow(info, LIGHT).figure()
    assert [trace.type for trace in figure.data] == [
        trace["type"] for trace in overview_sketch(info, LIGHT).traces
    ]
    texts = [note.text for note in figure.layout.annotations]
    lines = [line for text in texts for line in text.split("<br>")]
    longest = max(len(re.sub(r"<[^>]+>", "", line)) for line in lines)
    assert longest <= 52 and figure.layout.height > wide.layout.height
    assert figure.layout.coloraxis.colorbar.orientation == "h"


def test_cells_that_are_not_finite_are_marked_in_a_color_of_their_own(tmp_path: Path) -> None:
    path = write_network_run(tmp_path / "nan", has_shortcuts=False, steps=6, nan_from=3)
    figure = panel("overview").draw(overview(View((open_run(path),))), LIGHT)
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    assert np.isfinite(heat[1].z).any(axis=1).tolist() == [False] * 3 + [True] * 3
    assert heat[1].colorscale[0][1] == LIGHT.mark
    texts = [re.sub(r"<[^>]+>", "", note.text) for note in figure.layout.annotations]
    assert (
        "nan: all recorded steps (drag the line) ■ NaN or infinite ○ first in head, step 3" in texts
    )
    assert any("at step 5: — nan (NaN or infinite)" in text for text in texts)
    lines = [trace for trace in figure.data if trace.type == "scatter"]
    assert {trace.showlegend for trace in lines} == {False}
    # The line across the profile and the ticks over the loss are in the legend, in their color.
    said = [note.text for note in figure.layout.annotations if LIGHT.mark in note.text]
    own = f'<span style="color:{LIGHT.mark}">'
    assert any(text.endswith(f"{own}┆ head, first not finite</span>") for text in said)
    assert any(
        text.startswith("<b>loss</b>") and text.endswith(f"{own}| NaN or infinite</span>")
        for text in said
    )


def test_the_layer_that_broke_first_is_marked_at_its_depth_and_step(tmp_path: Path) -> None:
    path = write_network_run(tmp_path / "nan", has_shortcuts=True, steps=6, nan_from=3)
    run = open_run(path)
    figure = panel("overview").draw(overview(View((run,))), LIGHT)
    said = "first NaN or infinite: output gradient of head, step 3<extra></extra>"
    line, ring = (one for one in figure.data if one.hovertemplate == said)
    depth = float(run.layers.set_index("name").loc["head", "depth"])
    assert (list(ring.x), list(ring.y), ring.yaxis) == ([depth], [3], "y3")
    assert (list(line.x), line.yaxis) == ([depth] * 2, "y2")


def test_the_fit_falls_as_far_as_the_diagnosis_says(pair: tuple[Run, ...]) -> None:
    figure = panel("overview").draw(overview(View(pair, step=30)), LIGHT)
    lines = [one for one in figure.data if (one.name or "").endswith("fit along depth")]
    # That of a network with shortcuts is fitted to sums at joins, which the rows do not show.
    (line,) = lines
    low, high = np.log10(line.y)
    assert line.name.startswith(pair[0].name)
    assert high - low == pytest.approx(trunk(pair[0], 30).decades_fallen)
    assert (line.line.dash, line.line.width) == ("dash", 1)


def test_a_run_has_the_same_colors_by_itself_as_beside_another(pair: tuple[Run, ...]) -> None:
    both, alone = (
        panel("overview").draw(overview(View(runs)), LIGHT).layout.coloraxis
        for runs in (pair, pair[1:])
    )
    assert (both.cmin, both.cmax) == (alone.cmin, alone.cmax)
    assert both.cmax - both.cmin >= 6


def test_frames_hold_the_profile_of_every_step(pair: tuple[Run, ...], info: Overview) -> None:
    run = overview_frames(info)["runs"][0]
    norms = numbers(run["norms"])
    rows = (
        pair[0]
        .layer_stats("output_gradient_norm")
        .pivot(index="step", columns="layer", values="output_gradient_norm")
    )
    expected = np.log10(rows[info.runs[0].grid.ids].to_numpy())
    assert norms == pytest.approx(expected, abs=1e-3)
    assert run["steps"] == list(range(60)) and run["layers"][0] == "stem"


def test_frames_point_at_the_traces_that_a_step_changes(info: Overview) -> None:
    figure, frames = panel("overview").draw(info, LIGHT), overview_frames(info)
    for column, run in zip(info.runs, frames["runs"], strict=True):
        drawn = figure.data[run["profile_trace"]]
        assert np.asarray(drawn.y).tolist() == column.profile.tolist()
        assert figure.data[run["mark_trace"]].mode == "markers"
        assert figure.data[run["handle_trace"]].y[0] == 30
        names = [figure.data[k].name for k in run["arc_traces"]]
        assert names[4:5] == (["80 % and more"] if len(column.arcs.joins) else [])
        assert "at step 30" in figure.layout.annotations[run["step_words"]].text
        white, dark, below = (figure.layout.shapes[k] for k in run["step_shapes"])
        assert (white.y0, dark.y0, below.x0) == (30, 30, 30)


def test_a_browser_that_follows_the_frames_draws_the_same_arcs(pair: tuple[Run, ...]) -> None:
    """Arcs put together from the frames at step 30 equal those drawn by the server."""
    info = overview(View(pair, step=30))
    run, levels = overview_frames(info)["runs"][1], overview_frames(info)["levels"]
    shares = run["shares"][run["share_steps"].index(30)]
    drawn = panel("overview").draw(info, LIGHT)
    for level in range(5):
        x: list[Any] = [None]
        for arc, share in zip(run["arcs"], shares, strict=True):
            if arc["is_identity"] and sum(share >= bound for bound in levels) == level:
                x += [*arc["x"], None]
        assert list(drawn.data[run["arc_traces"][level]].x) == x


def test_frames_of_a_broken_run_are_json_with_marks(tmp_path: Path) -> None:
    path = write_network_run(tmp_path / "nan", has_shortcuts=True, steps=6, nan_from=3)
    frames = overview_frames(overview(View((open_run(path),))))
    json.dumps(frames, allow_nan=False)
    packed = frames["runs"][0]["norms"]
    whole = np.frombuffer(base64.b64decode(packed["bdata"]), "<i2").reshape(packed["shape"])
    assert (whole[3:] == frames["nonfinite"]).all()
    assert (np.abs(whole[:3]) < 32_700).all()


@pytest.mark.no_cover
def test_figure_and_frames_of_two_deep_runs_fit_a_reply(tmp_path: Path) -> None:
    first = tmp_path / "a"
    write_network_run(first, has_shortcuts=True, blocks=500, steps=400, probes=False)
    paths = [first, shutil.copytree(first, tmp_path / "b")]
    info = overview(View(tuple(map(open_run, paths))))
    assert len(panel("overview").draw(info, LIGHT).to_json()) < 400_000
    assert len(json.dumps(overview_frames(info))) < 200_000


def test_names_of_layers_do_not_overlap_on_a_phone(info: Overview) -> None:
    drawn = overview_sketch(info, LIGHT, is_narrow=True).layout["xaxis"]
    low, high = drawn["range"]
    # Of 390 pixels what is left beside the axis, and half of a letter of 11 pixels.
    scale = 290 / (high - low)
    names = list(zip(drawn["tickvals"], drawn["ticktext"], strict=True))
    for (at, name), (then, other) in pairwise(names):
        assert (then - at) * scale > 3 * (len(name) + len(other)), (name, other)
    assert names[0][1] == "stem" and names[-1][1] == "head"

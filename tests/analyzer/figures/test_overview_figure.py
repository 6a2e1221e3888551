import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.analysis.overview import Overview, overview
from analyzer.analysis.view import View
from analyzer.figures.catalog import panel
from analyzer.figures.overview import overview_frames
from analyzer.figures.theme import LIGHT
from analyzer.storage.run import Run, open_run
from tests.support.full_run import write_full_pair, write_network_run


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    return tuple(map(open_run, write_full_pair(tmp_path_factory.mktemp("pair"))))


@pytest.fixture
def info(pair: tuple[Run, ...]) -> Overview:
    return overview(View(pair, step=30))


def numbers(packed: dict[str, Any]) -> Any:
    """What a browser makes of packed numbers."""
    whole = np.frombuffer(base64.b64decode(packed["bdata"]), "<i2").astype(float)
    return (packed["offset"] + packed["scale"] * whole).reshape(packed["shape"])


def test_rows_one_to_three_of_a_run_share_the_axis_of_depth(info: Overview) -> None:
    figure = panel("overview").draw(info, LIGHT)
    assert {trace.xaxis for trace in figure.data if trace.xaxis} == {"x", "x2", "x3", "x4"}
    depth = {a for a in ("xaxis", "xaxis3") if "depth" in figure.layout[a].title.text}
    assert depth == {"xaxis", "xaxis3"}
    assert figure.layout.xaxis.range == figure.layout.xaxis3.range
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [trace.coloraxis for trace in heat] == ["coloraxis"] * 2


def test_outcomes_and_numbers_are_written_into_the_figure(info: Overview) -> None:
    texts = [note.text for note in panel("overview").draw(info, LIGHT).layout.annotations]
    assert "<b>plain</b>  loss 2.30 after 60 steps" in texts
    assert any("‖∂L/∂y‖ falls 6.58 decades" in text for text in texts)
    assert "no joins: no shortcut carries gradient" in texts


def test_the_levels_of_the_arcs_stand_once_in_the_legend(info: Overview) -> None:
    names = [trace.name for trace in panel("overview").draw(info, LIGHT).data if trace.showlegend]
    assert names == ["0 to 20 %", "20 to 40 %", "40 to 60 %", "60 to 80 %", "80 % and more"]


def test_cells_that_are_not_finite_are_marked_in_a_color_of_their_own(tmp_path: Path) -> None:
    path = write_network_run(tmp_path / "nan", has_shortcuts=False, steps=6, nan_from=3)
    figure = panel("overview").draw(overview(View((open_run(path),))), LIGHT)
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    assert np.isfinite(heat[1].z).any(axis=1).tolist() == [False] * 3 + [True] * 3
    assert heat[1].colorscale[0][1] == LIGHT.mark
    assert "NaN or infinite" in [trace.name for trace in figure.data if trace.showlegend]


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
        behind = [figure.data[k] for k in run["behind_traces"]]
        assert [np.asarray(t.y).tolist() for t in behind] == [column.profile.tolist()]
        assert figure.data[run["mark_trace"]].mode == "markers"
        assert [figure.data[k].name for k in run["arc_traces"]][4] == "80 % and more"
        note = figure.layout.annotations[run["note_annotation"]].text
        assert (
            note.startswith("gain ") and "step 30" in figure.layout[run["profile_axis"]].title.text
        )
        row3, row4 = (figure.layout.shapes[k] for k in run["step_shapes"])
        assert (row3.y0, row4.x0) == (30, 30)


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


def test_figure_and_frames_of_two_deep_runs_fit_a_reply(tmp_path: Path) -> None:
    paths = [
        write_network_run(tmp_path / name, has_shortcuts=True, blocks=500, steps=400, probes=False)
        for name in ("a", "b")
    ]
    info = overview(View(tuple(map(open_run, paths))))
    assert len(panel("overview").draw(info, LIGHT).to_json()) < 400_000
    assert len(json.dumps(overview_frames(info))) < 200_000

import math
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from analyzer.analysis.clock import step_places
from analyzer.analysis.gradient_flow import depth_profile, profile_gain
from analyzer.analysis.network_probes import PathSpectrum
from analyzer.analysis.per_run import AlongDepth, PerRun
from analyzer.analysis.view import TIMES, RunLabel, View
from analyzer.figures.axes import depth_ticks, name_ticks, value_axis
from analyzer.figures.catalog import PANELS, panel
from analyzer.figures.landscape import contour_levels
from analyzer.figures.marks import depth_lines, edge_marks, with_rugs
from analyzer.figures.panels import Panel
from analyzer.figures.probes import path_figure
from analyzer.figures.sketch import Sketch
from analyzer.figures.theme import LIGHT, decade_step
from analyzer.storage.run import Run, open_run
from analyzer.storage.writer import RunWriter
from tests.support.full_run import write_full_pair, write_network_run
from tests.support.runs import write_run


def spectrum(name: str, counts: list[int]) -> PathSpectrum:
    """Paths with one unit of gradient at each length."""
    paths = np.array(counts, float)
    share = np.full(len(counts), 1 / len(counts))
    lengths = np.arange(len(counts))
    effective = float((lengths * share).sum())
    label = RunLabel(name, True, 0)
    return PathSpectrum(label, 9, lengths, paths, share, share, paths / paths.sum(), effective)


@pytest.mark.parametrize(
    ("decades", "step"), [(3, 1), (7.5, 2), (13, 3), (28, 5), (60, 10), (265, 50), (0.5, 1)]
)
def test_decades_between_ticks_are_round_numbers(decades: float, step: int) -> None:
    assert decade_step(decades) == step


def test_a_value_without_a_height_is_a_tick_at_the_edge_and_a_gap_in_the_line() -> None:
    values = np.array([1e-9, math.nan, 1e5, 0.0, math.inf, -math.inf])
    label = RunLabel("r", True, 0)
    names = ("0", "1", "2", "3", "4", "5")
    curve = AlongDepth(label, 0, names, np.arange(6.0), {"v": values}, "")
    line, rug = depth_lines(curve, "v", LIGHT, is_log=True)
    assert np.isfinite(line["y"]).tolist() == [True, False, True, False, False, False]
    figure = with_rugs(Sketch([line, rug], LIGHT.layout())).figure()
    drawn = next(trace for trace in figure.data if trace.meta)
    assert (list(drawn.x), list(drawn.y)) == ([1, 3, 4, 5], [1, 0, 1, 0])
    # An axis of its own: no value of the plot's axis, and the same place whatever the zoom.
    assert drawn.yaxis == "y101" and figure.layout.yaxis101.overlaying == "y"
    assert figure.layout.yaxis101.range == (0, 1) and figure.layout.yaxis101.fixedrange
    assert [t.name for t in figure.data if t.showlegend] == ["NaN or infinite", "exactly zero"]
    assert [text.split(": ")[0] for text in drawn.text] == ["1", "3", "4", "5"]


def test_the_rug_of_a_row_lies_over_that_row() -> None:
    figure = make_subplots(2, 1)
    marks = edge_marks([3], np.array([math.nan]), LIGHT, is_log=False)
    figure.add_trace(go.Scatter(marks), row=2, col=1)
    with_rugs(figure)
    assert figure.data[0].yaxis == "y201"
    assert figure.layout.yaxis201.domain == figure.layout.yaxis2.domain


def test_names_of_layers_are_text_at_places_whatever_they_are() -> None:
    names = ["0", "2", "10", "x" * 100 + "a" + "x" * 99, "x" * 100 + "b" + "x" * 99, "dup", "dup"]
    axis = depth_ticks(names, np.arange(7.0))
    assert axis["ticktext"][:3] == ["0", "2", "10"] and len(set(axis["ticktext"])) == 7
    assert axis["tickvals"] == pytest.approx(range(7), abs=0.01)
    said = axis["labelalias"]
    assert [said[f"{k}.000"] for k in range(3)] == ["0", "2", "10"]
    assert len(said) == len(set(said.values())) == 7


@pytest.mark.parametrize("key", ["gradient_heatmap", "update_ratio", "overview"])
def test_in_every_heatmap_depth_runs_along_x_and_the_hover_says_a_plain_number(
    key: str, tmp_path: Path
) -> None:
    run = open_run(write_network_run(tmp_path / "run", has_shortcuts=True, blocks=2, steps=21))
    info = panel(key).info(View((run,)))
    column = info.runs[0].grid if key == "overview" else info.runs[0]
    figure = panel(key).draw(info, LIGHT)
    (heat,) = [trace for trace in figure.data if trace.type == "heatmap"]
    assert np.array_equal(heat.x, column.positions) and np.array_equal(heat.y, column.steps)
    known = np.isfinite(column.values.T)
    assert heat.customdata[known] == pytest.approx(column.values.T[known])
    assert 10 ** heat.z[known] == pytest.approx(column.values.T[known], rel=1e-5)
    assert heat.hovertemplate.startswith("%{x}<br>step %{y:,d}: %{customdata:.3g}")
    names = figure.layout.xaxis.labelalias
    assert [names[f"{at:.3f}".replace("-", "−")] for at in heat.x] == list(column.names)
    assert figure.layout.coloraxis.cmax - figure.layout.coloraxis.cmin >= 6


def test_a_difference_has_the_colors_of_its_two_runs_and_marks_what_has_none(
    tmp_path: Path,
) -> None:
    norms = [[1.0, 1e-2, 1.0], [1.0, 1e-2, math.nan]]
    paths = [write_run(tmp_path / name, [1.0, 1.0], norms) for name in ("a", "b")]
    write_run(tmp_path / "c", [1.0, 1.0], [[0.0, 1.0, 1.0]] * 2)
    for runs in ((paths[0], paths[1]), (paths[1], paths[0]), (paths[0], tmp_path / "c")):
        view = View(tuple(map(open_run, runs)))
        info = panel("heatmap_difference").info(view)
        figure = panel("heatmap_difference").draw(info, LIGHT)
        scale = [color for _, color in figure.layout.coloraxis.colorscale]
        assert [scale[0], scale[-1]] == [LIGHT.style(label.style).color for label in info.runs]
        assert np.array_equal(figure.data[0].x, info.positions)
        planes = [np.isfinite(trace.z) for trace in figure.data[1:] if trace.type == "heatmap"]
        assert np.array_equal(np.logical_or.reduce(planes), np.isnan(info.values).T)
        named = {trace.name for trace in figure.data if trace.showlegend}
        assert named == {"NaN or infinite"} | ({"exactly zero"} if runs[1].name == "c" else set())


def test_within_two_decades_ticks_are_words_of_one_two_and_five() -> None:
    axis = value_axis("x", is_log=True, low=0.01, high=0.6)
    assert axis["ticktext"] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]
    assert axis["tickvals"] == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])


def test_names_that_do_not_all_fit_are_shown_at_equal_distances() -> None:
    ticks = name_ticks([f"layer{k}" for k in range(33)], 20)
    assert set(np.diff(ticks["tickvals"])) == {2}
    assert ticks["ticktext"][:2] == ["layer0", "layer2"]
    assert name_ticks(["a", "b"], 20)["ticktext"] == ["a", "b"]


@pytest.mark.parametrize(("low", "high"), [(0.44, 15.8), (-0.36, 1.2), (2.29, 2.31), (0, 1940)])
def test_contour_lines_lie_at_round_numbers(low: float, high: float) -> None:
    start, size = contour_levels(low, high)
    digits = size / 10 ** math.floor(math.log10(size) + 1e-9)
    assert round(digits, 6) in (1, 2, 5)
    assert start / size == pytest.approx(round(start / size))
    assert 5 <= (high - low) / size <= 18
    assert low <= start < low + size


def test_a_run_without_joins_leaves_the_place_to_those_that_have_some() -> None:
    plain, residual = spectrum("plain", [1]), spectrum("residual", [1, 2, 1])
    figure = path_figure(PerRun((plain, residual), ()), LIGHT)
    bars, paths, effective = figure.data
    assert list(bars.x) == [0, 1, 2]
    assert [words.text for words in figure.layout.annotations] == ["residual"]
    assert figure.layout.yaxis.title.text == "share"
    tallest = max(np.nanmax(bars.y), np.nanmax(paths.y))
    assert tallest < figure.layout.yaxis.range[1] < 1.2 * tallest < 1
    # The line is as high as the pane, and named in the legend: words on the bars hide them.
    assert effective.name == "effective length" and effective.hovertemplate.startswith(
        "effective length 1<"
    )
    assert list(effective.x) == [1.0, 1.0]
    assert list(effective.y) == [0, figure.layout.yaxis.range[1]]


def test_without_any_joins_there_is_a_sentence() -> None:
    figure = path_figure(PerRun((spectrum("plain", [1]),), ()), LIGHT)
    assert not any(trace.visible for trace in figure.data)
    words = [words.text for words in figure.layout.annotations]
    assert "no joins: a single path carries all of the gradient" in words
    assert figure.layout.yaxis.visible is False


def test_a_landscape_along_one_direction_is_a_line(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {})
    for write in (writer.write_layers, writer.write_parameters, writer.write_joins):
        write([])
    alphas = [-1.0, 0.0, 1.0]
    points = {"alpha": alphas, "beta": [0.0] * 3, "loss": [3.0, 1.0, 2.5], "evaluated": [True] * 3}
    writer.write_probe("landscape", 0, points)
    writer.close("finished")
    shown = panel("landscape_contour")
    figure = shown.draw(shown.info(View((open_run(tmp_path / "a"),))), LIGHT)
    (line,) = [trace for trace in figure.data if trace.type == "scatter" and trace.x is not None]
    assert (list(line.x), list(line.y)) == (alphas, [3.0, 1.0, 2.5])
    assert "α" in figure.layout.xaxis.title.text


ALONG = [one for one in PANELS if "over" in one.reads]


@pytest.fixture(scope="module")
def along_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    return tuple(map(open_run, write_full_pair(tmp_path_factory.mktemp("along"))))


@pytest.mark.parametrize("drawn", ALONG, ids=lambda one: one.key)
@pytest.mark.parametrize("over", TIMES)
def test_a_logarithmic_axis_shows_every_step_that_a_linear_one_does(
    along_pair: tuple[Run, ...], drawn: Panel, over: str
) -> None:
    straight, bent = (
        drawn.draw(drawn.info(View(along_pair, over=over, log_x=log)), LIGHT)
        for log in (False, True)
    )
    letter = "y" if any(one.type == "heatmap" for one in bent.data) else "x"
    axis, shift = bent.layout[f"{letter}axis"], bent.layout.meta["shift"]
    assert axis.type == "log"
    low, high = (10.0**end for end in axis.range)
    for line, moved in zip(straight.data, bent.data, strict=True):
        before, after = (
            np.array([np.nan if at is None else at for at in one[letter]], float)
            for one in (line, moved)
        )
        known = np.isfinite(before)
        assert after[known] == pytest.approx(before[known] + shift)
        assert ((after[known] >= low) & (after[known] <= high)).all()
    # Ticks say what was there before.
    said = [float(text.replace(",", "")) for text in axis.ticktext]
    assert said == pytest.approx([at - shift for at in axis.tickvals])
    assert over != "step" or (said[0] == 0 and shift == 1)


@pytest.mark.parametrize("drawn", ALONG, ids=lambda one: one.key)
@pytest.mark.parametrize("over", ["epoch", "time"])
def test_a_browser_knows_where_each_step_is(
    along_pair: tuple[Run, ...], drawn: Panel, over: str
) -> None:
    figure = drawn.draw(drawn.info(View(along_pair, over=over)), LIGHT)
    assert figure.layout.meta["steps"]
    for axis, places in figure.layout.meta["steps"].items():
        steps = np.array(places["step"], np.int64)
        expected = [
            one.tolist() for run in along_pair if (one := step_places(run, over, steps)) is not None
        ]
        assert places["at"] in expected, axis


def test_the_profile_has_the_line_that_its_gain_is_of(along_pair: tuple[Run, ...]) -> None:
    drawn = panel("depth_profile")
    figure = drawn.draw(drawn.info(View(along_pair)), LIGHT)
    lines = [one for one in figure.data if (one.name or "").endswith(": fit")]
    for run, line in zip(along_pair, lines, strict=True):
        fit = profile_gain(depth_profile(run, 59))
        ends = np.log10([line.y[0], line.y[-1]])
        assert ends[0] - ends[1] == pytest.approx(fit.log10_total)
        assert (line.line.dash, line.line.width) == ("dash", 1)

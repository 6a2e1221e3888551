import math
from pathlib import Path

import numpy as np
import pytest

from analyzer.analysis.network_probes import PathSpectrum
from analyzer.analysis.per_run import PerRun
from analyzer.analysis.view import RunLabel, View
from analyzer.figures.axes import name_ticks, value_axis
from analyzer.figures.catalog import panel
from analyzer.figures.landscape import contour_levels
from analyzer.figures.marks import edge_marks
from analyzer.figures.probes import path_figure
from analyzer.figures.theme import LIGHT, decade_step
from analyzer.storage.run import open_run
from analyzer.storage.writer import RunWriter


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


@pytest.mark.parametrize("high", [-0.837, 3.2, 17.29, -41.003])
def test_marks_stand_within_a_logarithmic_axis_whatever_its_edge(high: float) -> None:
    bounds = (10.0 ** (high - 2), 10.0**high)
    marks = edge_marks([0, 1], np.array([math.nan, 0.0]), bounds, LIGHT, is_log=True)
    top, bottom = (math.log10(y) for y in marks["y"])
    assert high - 1e-6 < top < high
    assert high - 2 < bottom < high - 2 + 1e-6


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


def test_a_run_without_joins_has_a_sentence_where_others_have_bars() -> None:
    info = PerRun((spectrum("plain", [1]), spectrum("residual", [1, 2, 1])), ())
    figure = path_figure(info, LIGHT)
    bars = [trace for trace in figure.data if trace.type == "bar" and trace.visible is not False]
    assert [list(trace.x) for trace in bars] == [[0, 1, 2]]
    words = [words.text for words in figure.layout.annotations]
    assert "no joins: a single path carries all of the gradient" in words
    assert any("effective length 1<br>4 paths" in text for text in words)
    assert figure.layout.yaxis2.title.text == "share"
    tallest = max(np.nanmax(trace.y) for trace in figure.data if trace.visible is not False)
    assert tallest < figure.layout.yaxis2.range[1] < 1.2 * tallest < 1


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

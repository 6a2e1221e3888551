import math

import numpy as np
import pytest

from analyzer.cli.chart import depth_chart, shared_decades, side_by_side, sparkline
from analyzer.cli.terminal import printable, prints_unicode


def rows_of(chart: str, character: str) -> list[int]:
    return [i for i, line in enumerate(chart.split("\n")) if character in line]


def test_a_fall_of_nine_decades_runs_from_corner_to_corner() -> None:
    chart = depth_chart(range(10), 10.0 ** np.arange(-9, 1), width=60, height=10, unicode=False)
    lines = chart.split("\n")
    assert lines[0].startswith("  1e0+") or lines[0].startswith(" 1e0+")
    columns = [line.index("=") for line in lines[:10]]
    assert columns == sorted(columns, reverse=True)
    assert lines[-1].strip().startswith("input, depth 0")
    assert lines[-1].endswith("output, depth 9")


@pytest.mark.parametrize("count", [1, 10, 100, 1000, 5000])
@pytest.mark.parametrize("width", [24, 80, 140])
def test_a_chart_fits_its_width_whatever_the_number_of_layers(count: int, width: int) -> None:
    norms = np.exp(np.random.default_rng(0).normal(size=count) * 9)
    chart = depth_chart(range(count), norms, width=width)
    assert max(len(line) for line in chart.split("\n")[:-1]) <= width
    assert "●" in chart or "━" in chart


def test_layers_of_one_column_are_a_range_with_their_median() -> None:
    chart = depth_chart([0, 0, 0, 1], [1e-4, 1.0, 1e4, 1.0], width=24, height=9, unicode=False)
    assert rows_of(chart, ":") == [0, 1, 2, 3, 5, 6, 7, 8]
    assert chart.split("\n")[4].count("=") > 7


def test_zero_and_nonfinite_norms_are_marks_and_hide_no_finite_one() -> None:
    chart = depth_chart(range(4), [0.0, 1.0, math.nan, math.inf], width=40)
    assert chart.count("✕") == 2
    assert chart.count("∅") == 1
    assert rows_of(chart, "✕") < rows_of(chart, "━") < rows_of(chart, "∅")


def test_a_chart_of_only_nan_has_marks_and_claims_no_scale() -> None:
    chart = depth_chart(range(3), [math.nan] * 3)
    assert chart.count("✕") == 3
    assert "10" not in chart


def test_a_chart_without_layers_is_a_sentence() -> None:
    assert depth_chart([], [], title="t") == "t\nno layer with an output gradient to draw"


@pytest.mark.parametrize("decades", [1, 3, 30, 300])
def test_ticks_stay_readable_over_any_range(decades: int) -> None:
    chart = depth_chart([0, 1], [10.0**-decades, 1.0], unicode=False)
    ticks = [line.split("+")[0] for line in chart.split("\n") if "1e" in line]
    assert 2 <= len(ticks) <= 7
    assert all(float(tick) > 0 for tick in ticks)


def test_plain_charts_are_ascii() -> None:
    chart = depth_chart(range(50), [0, math.nan, *range(1, 49)], unicode=False, title="t")
    assert chart.isascii()
    assert sparkline([1, 2, math.nan], unicode=False).isascii()


def test_twins_can_share_one_axis() -> None:
    limits = shared_decades([1e-6, 0.0, math.nan], [30.0])
    assert limits == (-6, 2)
    left = depth_chart([0, 1], [1e-6, 1e-6], decades=limits)
    right = depth_chart([0, 1], [30.0, 30.0], decades=limits)
    assert rows_of(left, "━") > rows_of(right, "━")
    assert shared_decades([0.0]) == (0, 1)


def test_charts_side_by_side_end_on_one_line() -> None:
    lines = side_by_side("a\nbb\nc", "層\nd", gap=2).split("\n")
    assert lines == ["a", "bb  層", "c   d"]


def test_a_sparkline_follows_the_series_and_marks_nan() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([1, math.nan, 2]) == "▁✕█"
    assert sparkline([3, 3]) == "▁▁"
    assert len(sparkline(range(1000), 40)) == 40
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("layer[red]", "layer[red]"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("two\nlines", "two\\nlines"),
        ("\u202eevil", "\\u202eevil"),
        ("層.é", "層.é"),
    ],
)
def test_hostile_names_become_text(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_a_long_name_keeps_both_ends() -> None:
    shown = printable("first." + "x" * 300 + ".last", 40)
    assert len(shown) <= 40
    assert shown.startswith("first.")
    assert shown.endswith(".last")


def test_an_encoding_without_chart_characters_is_told() -> None:
    assert prints_unicode("utf-8")
    assert not prints_unicode("latin-1")
    assert not prints_unicode("ascii")
    assert not prints_unicode("no such encoding")

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from analyzer.figures import narrow


def stacked(figure: go.Figure) -> go.Figure:
    return go.Figure(narrow.stacked(figure.to_dict()))


def panes(count: int) -> go.Figure:
    """Panes side by side, each with a title."""
    figure = make_subplots(1, count, subplot_titles=[f"pane {k}" for k in range(count)])
    figure.update_layout(height=400, margin={"t": 50, "b": 50})
    for k in range(count):
        figure.add_trace(go.Scatter(x=[0, 1], y=[0, k]), row=1, col=k + 1)
    return figure


def test_one_pane_is_left_as_it_is() -> None:
    figure = panes(1)
    before = figure.to_plotly_json()
    assert stacked(figure).to_plotly_json() == before


@pytest.mark.parametrize("count", [2, 3])
def test_panes_stand_one_above_the_other_in_the_full_width(count: int) -> None:
    layout = stacked(panes(count)).layout
    names = ["", *(str(k) for k in range(2, count + 1))]
    assert all(tuple(layout[f"xaxis{name}"].domain) == (0, 1) for name in names)
    spans = [tuple(layout[f"yaxis{name}"].domain) for name in names]
    assert spans[0][1] == pytest.approx(1) and spans[-1][0] == pytest.approx(0)
    assert all(above[0] > below[1] for above, below in pairwise(spans))
    sizes = [high - low for low, high in spans]
    assert sizes == pytest.approx([sizes[0]] * count)


def test_the_title_of_a_pane_goes_with_it() -> None:
    layout = stacked(panes(2)).layout
    tops = [layout.yaxis.domain[1], layout.yaxis2.domain[1]]
    assert [words.y for words in layout.annotations] == pytest.approx(tops)
    assert [words.x for words in layout.annotations] == pytest.approx([0.5, 0.5])


def test_a_stacked_figure_is_taller_by_its_panes() -> None:
    assert stacked(panes(2)).layout.height == 100 + 2 * 0.9 * 300 + 80


def test_the_color_bar_lies_above_the_panes_and_the_legend_below_them() -> None:
    figure = panes(2)
    figure.update_layout(coloraxis={"colorscale": "Cividis"}, legend={"x": 0, "y": -0.2})
    figure = stacked(figure)
    bar, legend = figure.layout.coloraxis.colorbar, figure.layout.legend
    assert (bar.orientation, bar.yref, bar.yanchor) == ("h", "container", "top")
    assert figure.layout.margin.t == 50 + 64
    assert (legend.yref, legend.y, legend.yanchor) == (None, -0.2, None)
    figure = panes(2)
    figure.update_traces(name="a run", showlegend=True)
    figure.update_layout(legend={"x": 0, "y": -0.2, "orientation": "h"})
    figure = stacked(figure)
    legend = figure.layout.legend
    assert (legend.yref, legend.y, legend.yanchor) == ("container", 0, "bottom")
    assert figure.layout.margin.b == 56 + 24


def test_legends_of_panes_become_one_with_a_group_a_pane() -> None:
    figure = panes(2)
    figure.update_layout(legend={"y": -0.2}, legend2={"y": -0.2})
    for name, trace in zip(("legend", "legend2"), figure.data, strict=True):
        trace.update(name="layer", showlegend=True, legend=name)
    figure = stacked(figure)
    assert [trace.legend for trace in figure.data] == ["legend", "legend"]
    titles = [trace.legendgrouptitle.text for trace in figure.data]
    assert titles == ["pane 0", "pane 1"]


def test_two_scenes_share_the_height_though_a_theme_gave_them_axes() -> None:
    specs = [[{"type": "scene"}] * 2]
    figure = make_subplots(1, 2, specs=specs)
    figure.layout.xaxis.showgrid = figure.layout.yaxis.showgrid = True
    figure.update_layout(height=500)
    figure = stacked(figure)
    low, high = figure.layout.scene.domain.y
    assert high - low > 0.45 and figure.layout.scene.domain.x == (0, 1)


@pytest.mark.parametrize(("path", "key"), [("/", "overview"), ("/flow", "gradient_heatmap")])
def test_a_window_that_becomes_narrow_and_wide_again_has_the_margins_of_one_that_was(
    visit: Callable[..., Any], path: str, key: str
) -> None:
    full = f"document.querySelector('[data-panel={key}] .js-plotly-plot')._fullLayout"
    sizes = f"(({{l, r, t, b}}) => [l, r, t, b])({full}._size)"
    shown = visit()
    page = shown.go(path + "?run=plain&run=residual")
    shown.settle()
    shown.until(f"{full}._size.r > 100")
    wide = page.evaluate(sizes)
    for width, way in ((390, "h"), (1280, "v")):
        page.set_viewport_size({"width": width, "height": 900})
        shown.until(f"{full}.coloraxis.colorbar.orientation === '{way}'")
        page.wait_for_timeout(600)
        left, right, top, bottom = page.evaluate(sizes)
        assert max(left, right, top, bottom) < 150
        assert page.evaluate(f"{full}._size.h") > 200
    assert [left, right, top, bottom] == pytest.approx(wide, abs=2)
    shown.assert_clean()

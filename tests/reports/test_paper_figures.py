import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from plotly.subplots import make_subplots

from analyzer.errors import AnalyzerError
from analyzer.reports.groups import LAYOUTS
from analyzer.reports.paper import (
    WIDTHS,
    drawn_figure,
    figure_bytes,
    formats_in,
    paper_style,
    width_in_inches,
    write_figures,
)
from analyzer.reports.paper_traces import DRAWERS, plain_text
from analyzer.reports.story import Story, story_of
from analyzer.texts import escaped
from tests.support.full_run import write_network_run
from tests.support.runs import layer_row, write_run


def profile(*, log: bool = True) -> go.Figure:
    """Two runs along depth, told apart by dash and marker."""
    figure = go.Figure()
    for name, dash, marker, base in (
        ("plain", "solid", "circle", 0.4),
        ("residual", "dash", "square", 0.9),
    ):
        y = base ** np.arange(10.0)[::-1]
        line = {"dash": dash, "color": "#0072B2"}
        figure.add_scatter(
            x=np.arange(10), y=y, name=name, mode="lines+markers", line=line, marker_symbol=marker
        )
    figure.update_yaxes(type="log" if log else "linear", title="‖∂L/∂y‖₂")
    return figure


def lines_of(figure: go.Figure) -> list[np.ndarray]:
    with paper_style():
        return [
            line.get_xydata() for axes in drawn_figure(figure).axes for line in axes.get_lines()
        ]


def test_lines_on_paper_are_the_numbers_of_the_figure() -> None:
    figure = profile()
    for line, trace in zip(lines_of(figure), figure.data, strict=True):
        assert line.tolist() == np.column_stack([trace.x, trace.y]).tolist()


def test_without_color_lines_differ_by_dash_and_marker() -> None:
    with paper_style():
        drawn = drawn_figure(profile())
    (axes,) = drawn.axes
    assert len({str(line.get_linestyle()) for line in axes.get_lines()}) == 2
    markers = {len(points.get_paths()[0].vertices) for points in axes.collections}
    assert len(markers) == 2
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["plain", "residual"]


def test_a_heatmap_on_paper_has_the_cells_and_the_range_of_the_figure() -> None:
    z = np.array([[1.0, 2.0, np.nan], [4.0, 5.0, 6.0]])
    with paper_style():
        look = {"zmin": 0, "zmax": 10, "colorscale": "Cividis"}
        drawn = drawn_figure(go.Figure(go.Heatmap(x=[0, 1, 2], y=[0, 1], z=z, **look)))
    (cells,) = drawn.axes[0].collections
    array = cells.get_array()
    assert array.mask.tolist() == np.isnan(z).tolist()
    assert array.compressed().tolist() == [1, 2, 4, 5, 6]
    assert (cells.norm.vmin, cells.norm.vmax) == (0, 10)
    assert drawn.axes[0].get_xlim() == (-0.5, 2.5)


def test_panes_keep_their_places_and_shared_ranges() -> None:
    figure = make_subplots(2, 2, shared_yaxes=True, subplot_titles=["a", "b &lt;i&gt;", "c", "d"])
    for row, column, top in ((1, 1, 1.0), (1, 2, 9.0), (2, 1, 3.0), (2, 2, 2.0)):
        figure.add_scatter(x=[0, 1], y=[0, top], row=row, col=column)
    with paper_style():
        drawn = drawn_figure(figure)
        drawn.canvas.draw()
    boxes = [axes.get_position() for axes in drawn.axes]
    assert boxes[0].x1 < boxes[1].x0 and boxes[2].y1 < boxes[0].y0
    assert drawn.axes[0].get_ylim() == drawn.axes[1].get_ylim()
    assert [axes.get_title() for axes in drawn.axes] == ["a", "b <i>", "c", "d"]


def test_a_long_title_is_broken_to_the_width_of_its_pane() -> None:
    figure = make_subplots(1, 2, subplot_titles=["a long name of a run, and its loss"] * 2)
    figure.add_scatter(x=[0, 1], y=[0, 1], row=1, col=1)
    figure.add_scatter(x=[0, 1], y=[0, 1], row=1, col=2)
    with paper_style():
        drawn = drawn_figure(figure, 3.25)
        drawn.canvas.draw()
    left, right = (axes.title.get_window_extent() for axes in drawn.axes)
    assert "\n" in drawn.axes[0].get_title() and left.x1 < right.x0


def test_a_surface_is_made_of_vectors() -> None:
    grid = np.linspace(-1, 1, 21)
    z = np.add.outer(grid**2, grid**2)
    figure = go.Figure(go.Surface(x=grid, y=grid, z=z, coloraxis="coloraxis"))
    figure.update_layout(coloraxis={"colorscale": "Cividis", "cmin": 0, "cmax": 2})
    svg = figure_bytes(figure, "svg")
    assert b"<image" not in svg.replace(b"<image", b"", 1)  # the color bar is one
    assert svg.count(b"<path") > 400


def test_an_unknown_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="trace of type 'pie'; expected one of bar, contour"):
        figure_bytes(go.Figure(go.Pie(values=[1])), "pdf")
    with pytest.raises(ValueError, match="shape of type 'rect'; expected line"):
        figure_bytes(profile().add_vrect(0, 1), "pdf")
    with pytest.raises(ValueError, match="format is 'eps'; expected one of pdf, svg, png"):
        figure_bytes(profile(), "eps")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a<br><b>bold</b> <span style='x'>y</span>", "a\nbold y"),
        ("&lt;b&gt; &amp; <script>", "<b> & <script>"),
        ("costs $5 or $x^2$", r"costs \$5 or \$x^2\$"),
        (None, ""),
    ],
)
def test_only_the_markup_of_plotly_is_taken_out_of_words(text: str | None, expected: str) -> None:
    assert plain_text(text) == expected


@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_equal_figures_are_equal_files(kind: str) -> None:
    first, second = (figure_bytes(profile(), kind) for _ in range(2))
    assert first == second
    other = figure_bytes(profile(log=False), kind)
    assert other != first


def test_the_style_of_the_user_does_not_leak_in_or_out(tmp_path: Path) -> None:
    before = figure_bytes(profile(), "svg")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert figure_bytes(profile(), "svg") == before
        assert mpl.rcParams["font.size"] == 30
    style = tmp_path / "big.mplstyle"
    style.write_text("font.size: 20\naxes.labelsize: 20\n")
    assert figure_bytes(profile(), "svg", style=style) != before


@pytest.mark.parametrize("text", ["font.size: huge", None])
def test_a_style_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "s.mplstyle"
    if text:
        path.write_text(text)
    expected = r"--style '.*s\.mplstyle' cannot be read \(.*expected a matplotlib style file"
    with pytest.raises(AnalyzerError, match=expected), paper_style(file=path):
        pass


@pytest.mark.parametrize(
    ("text", "inches"),
    [("3.25in", 3.25), ("ICML", 3.25), ("neurips", 5.5), ("84mm", 84 / 25.4), ("8cm", 8 / 2.54)],
)
def test_a_width_is_a_venue_or_a_length(text: str, inches: float) -> None:
    assert width_in_inches(text) == pytest.approx(inches)


@pytest.mark.parametrize("text", ["wide", "0.2in", "300in", "3.25", ""])
def test_another_width_is_refused(text: str) -> None:
    with pytest.raises(AnalyzerError, match=f"--width is '{text}'; expected acl, cvpr, icml"):
        width_in_inches(text)


def test_formats_are_a_list_without_repetition() -> None:
    assert formats_in("pdf, SVG,pdf") == ("pdf", "svg")
    with pytest.raises(AnalyzerError, match="--format is 'pdf,eps'; expected some of pdf, svg"):
        formats_in("pdf,eps")


@pytest.mark.parametrize("venue", WIDTHS)
def test_a_figure_is_as_wide_as_its_venue(venue: str) -> None:
    svg = figure_bytes(profile(), "svg", width_in_inches(venue)).decode()
    found = re.search(r'width="([\d.]+)pt"', svg)
    assert found is not None and float(found[1]) == pytest.approx(72 * WIDTHS[venue], abs=0.01)


def texts(figure: Figure) -> list[tuple[str, Any]]:
    """Each text that is seen in a figure of matplotlib, with its box."""
    figure.canvas.draw()
    found = [(text, text.get_window_extent()) for text in figure.findobj(Text)]
    hidden: set[Text] = set()
    for axes in figure.axes:
        for axis in axes._axis_map.values():
            seen = {t for tick in axis._update_ticks() for t in (tick.label1, tick.label2)}
            every = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            labels = {t for tick in every for t in (tick.label1, tick.label2)}
            hidden |= labels - seen if axis.get_visible() else labels | {axis.label}
    seen = [(text, box) for text, box in found if text.get_visible() and text not in hidden]
    return [(text.get_text(), box) for text, box in seen if text.get_text().strip()]


def overlapping(a: Any, b: Any) -> bool:
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


@pytest.fixture(scope="module")
def awkward(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A pair beside a run with names that are long, alike or numbers, and values of every kind."""
    path = tmp_path_factory.mktemp("awkward") / "a-run-with-quite-a-long-name-of-its-own"
    names = ["0", "2", "10", "n." * 98 + "tail", "dup", "dup"]
    layers = [layer_row(k, name) for k, name in enumerate(names)]
    norms = [[10.0**-k for k in range(6)] for _ in range(8)]
    norms[3][2], norms[4][1], norms[5][0] = np.nan, 0.0, np.inf
    return story_of([*folders, write_run(path, [2.0] * 8, norms, layers=layers)])


@pytest.fixture(scope="module")
def stories(
    story: Story, awkward: Story, seeds: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Story]:
    """Stories of every kind and of every layout, by name."""
    folder = tmp_path_factory.mktemp("broke") / "broke"
    write_network_run(folder, has_shortcuts=True, steps=20, nan_from=9)
    laid_out = {layout: story_of(seeds, layout=layout) for layout in LAYOUTS}
    return {"a pair": story, "awkward": awkward, "one that broke": story_of([folder])} | laid_out


@pytest.mark.slow
@pytest.mark.parametrize("venue", WIDTHS)
@pytest.mark.parametrize("which", ["a pair", "awkward", "one that broke", *LAYOUTS])
def test_at_every_width_no_words_overlap_or_leave_the_page_and_rows_can_be_read(
    stories: dict[str, Story], venue: str, which: str
) -> None:
    for figure in stories[which].figures:
        assert_legible(figure, venue)


@pytest.mark.parametrize("venue", ["acl", pytest.param("neurips", marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", ["overview", "gradient_heatmap", "update_ratio", "shattering"])
def test_words_of_the_densest_figures_fit_the_narrowest_and_the_widest_page(
    story: Story, key: str, venue: str
) -> None:
    assert_legible(next(figure for figure in story.figures if figure.key == key), venue)


def assert_legible(figure: Any, venue: str) -> None:
    with paper_style():
        drawn = drawn_figure(figure.drawn, WIDTHS[venue])
        boxes = texts(drawn)
    width, height = drawn.bbox.width, drawn.bbox.height
    for place, (text, box) in enumerate(boxes):
        assert box.x0 > -1 and box.x1 < width + 1, (figure.key, text)
        assert box.y0 > -1 and box.y1 < height + 1, (figure.key, text)
        for other, beside in boxes[:place]:
            assert not overlapping(box, beside), (figure.key, text, other)
        # A sentence is what the caption is for.
        assert len(text.split()) <= 8 and not text.endswith("."), (figure.key, text)
    bars = [axes for axes in drawn.axes if axes.get_label() == "<colorbar>"]
    inches = [axes.get_position().height * drawn.get_figheight() for axes in drawn.axes]
    assert min(h for axes, h in zip(drawn.axes, inches, strict=True) if axes not in bars) >= 0.6


def test_in_gray_cells_without_a_color_are_hatched_and_lines_have_dashes_and_markers(
    awkward: Story,
) -> None:
    (figure,) = [one for one in awkward.figures if one.key == "overview"]
    with paper_style():
        drawn = drawn_figure(figure.drawn, 3.03)
    hatches = {patch.get_hatch() for axes in drawn.axes for patch in axes.patches}
    assert len(hatches - {None}) == 2
    lines = [t for t in figure.drawn.data if t.type == "scatter" and "lines" in t.mode]
    runs = [line for line in lines if line.showlegend is not False]
    assert len({(t.line.dash, t.marker.symbol) for t in runs}) == len(runs) == 3
    # Darkness alone tells small from large: it rises along the whole scale of the heatmaps.
    bar = next(axes for axes in drawn.axes if axes.get_label() == "<colorbar>")
    colors = bar._colorbar.cmap(np.linspace(0, 1, 64))[:, :3]
    assert (np.diff(colors @ [0.2126, 0.7152, 0.0722]) > 0).all()


@pytest.mark.no_cover
def test_every_panel_has_a_static_figure_with_ink_in_it(
    story: Story, static_figures: dict[str, str]
) -> None:
    for figure in story.figures:
        assert {trace.type for trace in figure.drawn.data} <= set(DRAWERS)
        svg = static_figures[figure.key]
        assert len(svg) > 4_000, figure.key
        assert not re.search(r"nan(?=[ \",])", svg), figure.key


def test_figures_are_written_with_the_numbers_behind_them(story: Story, tmp_path: Path) -> None:
    written = write_figures(story, tmp_path, formats=("svg",))
    keys = [figure.key for figure in story.figures]
    assert [path.name for path in written] == [f"{key}.svg" for key in keys]
    for figure in story.figures:
        words = (tmp_path / f"{figure.key}.tex").read_text()
        assert rf"\includegraphics{{{figure.key}}}" in words
        assert escaped(f"{figure.caption} {figure.how_to_read}", "latex") in words
        rows = list(csv.reader(io.StringIO((tmp_path / f"{figure.key}.csv").read_text())))
        assert rows[0] == [str(name) for name in figure.table.columns]
        assert len(rows) - 1 == len(figure.table) > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdffonts") is None, reason="pdffonts is not installed")
def test_fonts_are_embedded_and_none_is_type_3(story: Story, tmp_path: Path) -> None:
    for path in write_figures(story, tmp_path):
        done = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True)
        fonts = done.stdout.splitlines()[2:]
        assert fonts, path.name
        for line in fonts:
            assert "TrueType" in line and "Type 3" not in line
            assert line.split()[-5] == "yes", line

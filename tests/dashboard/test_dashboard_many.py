"""Many runs and the choices of axes: lines, means, zoom, pinned layers; the address holds all."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analyzer.dashboard.library import Library
from analyzer.dashboard.run_list import run_table
from analyzer.storage.run_json import read_manifest
from tests.dashboard.conftest import Visit, serving
from tests.dashboard.test_dashboard_pages import violations
from tests.support.runs import write_run

RATES, SEEDS, STEPS = ("0.1", "0.5"), (0, 1, 2), 40
NAMES = [f"lr{rate}-{seed}" for rate in RATES for seed in SEEDS]
ALL = "?" + "&".join(f"run={name}" for name in NAMES)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rates with three seeds each; all log an accuracy, those of one rate an error too."""
    folder = tmp_path_factory.mktemp("sweep")
    for rate in RATES:
        for seed in SEEDS:
            more = [
                {"epoch": t // 10, "accuracy": (seed + t) / 50, "same": 7.0} for t in range(STEPS)
            ]
            if rate == "0.5":
                more[-1]["error"] = 0.25
            losses = [float(rate) + seed + 3.0 / (t + 1) for t in range(STEPS)]
            argv = ["train.py", "--lr", rate, "--seed", str(seed), "--depth", "8"]
            norms = [[10.0 ** (k - t % 3) for k in range(4)] for t in range(STEPS)]
            write_run(folder / f"lr{rate}-{seed}", losses, norms, argv=argv, more=more)
    return folder


@pytest.fixture(scope="module")
def url(sweep: Path) -> Iterator[str]:
    with serving(sweep) as served:
        yield served


def table(sweep: Path, *columns: str) -> dict[str, Any]:
    parts = run_table(Library([sweep]), columns=columns)
    (store,) = [part for part in parts if getattr(part, "id", "") == "run-rows"]
    found: dict[str, Any] = store.data
    return found


def column(data: dict[str, Any], name: str) -> dict[str, str]:
    at = data["columns"].index(name) - 3
    return {row["run"]: row["cells"][at] for row in data["rows"]}


def test_what_was_logged_is_a_column_where_it_differs(sweep: Path) -> None:
    assert read_manifest(sweep / "lr0.1-1")["last_logged"] == {"accuracy": 0.8, "same": 7.0}
    data = table(sweep)
    assert data["columns"][9:] == ["lr", "seed", "last accuracy", "last error"]
    assert column(data, "last accuracy") == {
        f"lr{rate}-{seed}": f"{(seed + 39) / 50:.4g}" for rate in RATES for seed in SEEDS
    }
    assert set(column(data, "last error").values()) == {"–", "0.25"}
    assert {"last accuracy", "lr", "seed", "last error"} < set(data["numbers"])


def test_columns_that_are_chosen_are_shown_and_no_others(sweep: Path) -> None:
    data = table(sweep, "depth", "last same", "nosuch")
    assert data["columns"][9:] == ["depth", "last same"]
    assert set(column(data, "last same").values()) == {"7"}


def lines(visit: Visit, panel: str = "loss") -> list[str]:
    """Names of the lines of a figure that stand in its legend."""
    found: list[str] = visit.page.evaluate(
        f"""[...document.querySelector('[data-panel={panel}] .js-plotly-plot')._fullData]
            .filter((one) => one.showlegend && one.mode !== 'markers').map((one) => one.name)"""
    )
    return found


def ranges(visit: Visit) -> dict[str, list[float]]:
    """Ranges of the axis along steps of every figure."""
    found: dict[str, list[float]] = visit.page.evaluate(
        """Object.fromEntries([...document.querySelectorAll('[data-panel]')].flatMap((card) => {
          const graph = card.querySelector('.js-plotly-plot');
          return graph && graph._fullLayout && graph._fullLayout.xaxis && graph.data.length
            ? [[card.dataset.panel, graph._fullLayout.xaxis.range.map(Number)]] : [];
        }))"""
    )
    return found


_BEYOND = """(width) => [...document.querySelectorAll('#content *')].filter((one) => {
  if (!one.checkVisibility()) return false;  // in details that are closed
  const place = one.getBoundingClientRect();
  if (!place.width || !place.height || place.right <= width + 1) return false;
  for (let at = one.parentElement; at; at = at.parentElement)
    if (getComputedStyle(at).overflowX !== 'visible') return false;
  return true;
}).map((one) => one.outerHTML.slice(0, 160))"""


def assert_fits(visit: Visit) -> None:
    """Nothing is wider than the page, nor serious to axe, on a laptop, a tablet and a phone.

    What is wider stands in a frame that scrolls.
    """
    for width, scheme in ((1440, "light"), (1024, "dark"), (390, "light")):
        visit.page.emulate_media(color_scheme=scheme)
        visit.page.set_viewport_size({"width": width, "height": 900})
        visit.page.wait_for_timeout(200)
        visit.settle()
        # Figures take the new width one after the other.
        visit.until(f"document.documentElement.scrollWidth <= {width}")
        assert visit.page.evaluate(_BEYOND, width) == []
        assert violations(visit.page) == []


def test_six_runs_are_marked_overlaid_and_grouped(visit: Callable[..., Visit], url: str) -> None:
    there = visit(url, viewport={"width": 1440, "height": 900})
    page = there.go("/runs")
    there.until("() => document.querySelectorAll('#run-table tbody tr').length === 6")
    assert_fits(there)
    for name in NAMES:
        page.get_by_role("checkbox", name=f"compare {name}").check()
    page.get_by_role("button", name="Overlay 6 marked runs").click()
    there.until("() => document.querySelector('#content h1').textContent === 'Training'")
    there.settle()
    assert sorted(lines(there)) == sorted(NAMES)
    page.get_by_role("textbox", name="Lines are means of runs by").click()
    page.get_by_role("option", name="lr", exact=True).click()
    there.until("() => location.search.includes('group=lr')")
    there.until(
        "() => document.querySelector('[data-panel=loss] .caption').textContent.includes('mean')"
    )
    assert lines(there) == ["lr 0.1 (3 runs)", "lr 0.5 (3 runs)"]
    assert_fits(there)
    there.assert_clean()


def test_axes_smoothing_and_zoom_stand_in_the_address(
    visit: Callable[..., Visit], url: str
) -> None:
    there = visit(url, viewport={"width": 1440, "height": 900})
    page = there.go("/training" + ALL)
    there.settle()
    for said, part in (("epoch", "x=epoch"), ("log", "y=log")):
        page.get_by_text(said, exact=True).last.click()
        there.until(f"() => location.search.includes('{part}')")
    page.get_by_role("slider", name="smoothing in percent").press("End")
    there.until("() => location.search.includes('smooth=99')")
    axis = "document.querySelector('[data-panel=loss] .js-plotly-plot')._fullLayout"
    there.until(f"() => {axis}.xaxis.title.text === 'epoch' && {axis}.yaxis.type === 'log'")
    logged = axis.replace("loss", "logged")  # each figure is drawn by an answer of its own
    there.until(f"() => {logged}.xaxis.title.text === 'epoch' && {logged}.yaxis.type === 'log'")
    there.settle()
    low, high = ranges(there)["logged"]
    # A reader draws a frame around a part of one figure; the others follow.
    page.locator("[data-panel=logged]").scroll_into_view_if_needed()
    for _ in range(3):  # a figure that is drawn meanwhile lets go of the mouse
        plot = page.locator("[data-panel=logged] .nsewdrag").first.bounding_box()
        page.mouse.move(plot["x"] + plot["width"] * 0.25, plot["y"] + plot["height"] / 2)
        page.mouse.down()
        page.mouse.move(plot["x"] + plot["width"] * 0.5, plot["y"] + plot["height"] / 2, steps=5)
        page.mouse.up()
        page.wait_for_timeout(1000)
        if "zoom-epoch=" in page.url:
            break
    there.until("() => location.search.includes('zoom-epoch=')")
    there.until(f"() => {axis}.xaxis.range[0] > 0.5")
    found = ranges(there)
    assert found["loss"] == pytest.approx(found["logged"], rel=1e-3)
    expected = [low + part * (high - low) for part in (0.25, 0.5)]
    assert found["logged"] == pytest.approx(expected, abs=0.02 * (high - low))
    # An address says it all: another visit shows the same, also on a phone.
    again = visit(url, viewport={"width": 390, "height": 900})
    again.go(page.url.removeprefix(url))
    again.settle()
    again.until(f"() => {axis}.xaxis.range[0] > 0.5")
    assert ranges(again)["loss"] == pytest.approx(found["loss"], rel=1e-3)
    page.locator("[data-panel=loss]").scroll_into_view_if_needed()
    plot = page.locator("[data-panel=loss] .nsewdrag").first.bounding_box()
    page.mouse.dblclick(plot["x"] + plot["width"] / 2, plot["y"] + plot["height"] / 2)
    there.until("() => !location.search.includes('zoom')")
    there.until(f"() => {axis}.xaxis.range[1] > 3")
    logged = axis.replace("loss", "logged")
    there.until(f"() => {logged}.xaxis.range[1] > 3")
    assert_fits(there)
    there.assert_clean()
    again.assert_clean()


def test_pinned_layers_are_always_drawn(visit: Callable[..., Visit], url: str) -> None:
    there = visit(url, viewport={"width": 1440, "height": 900})
    page = there.go("/flow?run=lr0.1-0&pin=layers.1")
    there.settle()
    there.until(
        "() => document.querySelector('[data-panel=layer_series] .caption').textContent"
        ".includes('layers.1')"
    )
    assert lines(there, "layer_series") == ["layers.1"]
    page.get_by_role("textbox", name="Pinned layers").click()
    page.get_by_role("option", name="layers.3", exact=True).click()
    there.until("() => location.search.includes('pin=layers.3')")
    graph = "document.querySelector('[data-panel=layer_series] .js-plotly-plot')"
    there.until(f"() => {graph}._fullData.filter((one) => one.showlegend).length === 2")
    assert lines(there, "layer_series") == ["layers.1", "layers.3"]
    there.assert_clean()


def shown_few(visit: Visit) -> tuple[list[str], list[str]]:
    """Titles of the panes of the heatmap, with their colors."""
    notes = visit.page.evaluate(
        """document.querySelector('[data-panel=gradient_heatmap] .js-plotly-plot')
            .layout.annotations.map((one) => [one.text, one.font.color])"""
    )
    return [text for text, _ in notes], [color for _, color in notes]


def test_figures_of_few_runs_say_which_they_show_and_let_a_reader_choose(
    visit: Callable[..., Visit], url: str
) -> None:
    there = visit(url, viewport={"width": 1440, "height": 900})
    page = there.go("/flow" + ALL)
    there.settle()
    caption = "document.querySelector('[data-panel=gradient_heatmap] .caption').textContent"
    assert f"Shown are {', '.join(NAMES[:3])}, of 6 chosen runs." in page.evaluate(caption)
    assert shown_few(there)[0] == NAMES[:3]
    page.get_by_role("textbox", name="Figures of 3 runs show").click()
    for name in (NAMES[1], NAMES[5]):
        page.get_by_role("option", name=name, exact=True).click()
    there.until(f"() => location.search.includes('few={NAMES[5]}')")
    there.until(f"() => {caption}.includes('Shown are {NAMES[1]}, {NAMES[5]}, of 6')")
    titles, colors = shown_few(there)
    assert titles == [NAMES[1], NAMES[5]]
    # A run has one color in all figures, also where others are left out.
    of_lines = page.evaluate(
        """Object.fromEntries([...document.querySelector('[data-panel=depth_profile]'
            + ' .js-plotly-plot')._fullData].map((one) => [one.name, one.line?.color]))"""
    )
    assert colors == [of_lines[name] for name in titles]
    assert sorted(lines(there, "depth_profile")) == sorted(NAMES)
    assert violations(page) == []
    # The first page tells and shows the same runs.
    page.get_by_role("link", name="Overview").click()
    there.until("() => document.querySelector('#readings .card') !== null")
    about = f"About {NAMES[1]}, {NAMES[5]}, of 6 chosen runs."
    assert page.locator("#headline .count").text_content() == about
    page.get_by_role("textbox", name="Figures of 3 runs show").click()
    page.get_by_role("option", name=NAMES[3], exact=True).click()
    there.until("() => document.querySelectorAll('#readings .card .of').length === 9")
    there.assert_clean()


def test_the_network_of_any_chosen_run_is_shown(visit: Callable[..., Visit], url: str) -> None:
    there = visit(url, viewport={"width": 1440, "height": 900})
    page = there.go("/network?run=lr0.1-0&run=lr0.5-2")
    said = "() => document.querySelector('#network-caption').textContent"
    there.until(f"{said}.startsWith('lr0.1-0, step 39')")
    page.get_by_role("textbox", name="Run", exact=True).click()
    page.get_by_role("option", name="lr0.5-2", exact=True).click()
    there.until(f"{said}.startsWith('lr0.5-2, step 39')")
    there.until("() => location.search.includes('of=lr0.5-2')")
    there.assert_clean()


def marked(visit: Visit, panel: str) -> dict[str, float]:
    """How far along the axis of its steps the chosen step is marked in a figure, from 0 to 1."""
    found: dict[str, float] = visit.page.evaluate(
        f"""(() => {{
          const card = document.querySelector('[data-panel={panel}]');
          const full = card.querySelector('.js-plotly-plot')._fullLayout;
          const line = card.querySelector('.step-line.chosen');
          if (!line) return {{}};
          const style = line.style, [top, left] = [parseFloat(style.top), parseFloat(style.left)];
          return style.width === '0px'
            ? {{x: (left - full.xaxis._offset) / full.xaxis._length}}
            : {{y: 1 - (top - full.yaxis._offset) / full.yaxis._length}}; }})()"""
    )
    return found


@pytest.mark.parametrize(
    ("query", "part"),
    [
        # Forty steps are four epochs of ten; a logarithm of the step and 1 has a place for step 0.
        ("x=epoch&step=20", 20 / 39),
        ("logx=1&step=0", 0.0),
        pytest.param("x=epoch&logx=1&step=0", 0.0, marks=pytest.mark.slow),
    ],
)
def test_heatmaps_and_lines_have_one_axis_with_the_step_marked(
    visit: Callable[..., Visit], url: str, query: str, part: float
) -> None:
    there = visit(url, viewport={"width": 1440, "height": 900})
    page = there.go(f"/flow?run=lr0.1-0&run=lr0.5-0&{query}")
    there.settle()
    there.until("() => document.querySelectorAll('.step-line.chosen').length >= 4")
    across, up = marked(there, "layer_series"), marked(there, "gradient_heatmap")
    assert across["x"] == pytest.approx(part, abs=0.06)
    assert up["y"] == pytest.approx(part, abs=0.06)
    # The lowest row of the heatmap is step 0, by name and by click.
    page.locator("[data-panel=gradient_heatmap]").scroll_into_view_if_needed()
    plot = page.locator("[data-panel=gradient_heatmap] .nsewdrag").first.bounding_box()
    at = plot["x"] + plot["width"] / 2, plot["y"] + plot["height"] - 4
    page.mouse.move(*at, steps=3)
    there.until(
        "() => /step 0( \\(|:)/.test(document.querySelector('.hoverlayer .hovertext')?.textContent)"
    )
    page.mouse.click(*at)
    there.until("() => location.search.includes('step=0')")
    there.assert_clean()

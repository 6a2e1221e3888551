"""The report in Chromium: nothing refused, nothing asked for, nothing blank in print."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.reports.html import write_report
from analyzer.reports.story import Story, story_of
from analyzer.vocabulary.methods import SOURCES
from tests.support.full_run import write_network_run
from tests.support.runs import layer_row, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]

ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def browser(engine: Any) -> Iterator[Any]:
    """A Chromium without a window, that draws in three dimensions."""
    opened = engine.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, page: str) -> Path:
    """The report of the pair as a file."""
    path = tmp_path_factory.mktemp("browser") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def draw_all(tab: Any) -> list[str]:
    """Scroll through the page until every figure is drawn; return what became of each."""
    states = "[...document.querySelectorAll('.plot')].map((plot) => plot.dataset.state || '')"
    for _ in range(20):
        for figure in tab.locator("figure").all():
            figure.scroll_into_view_if_needed()
            tab.wait_for_timeout(150)
        if all(tab.evaluate(states)):
            break
    found: list[str] = tab.evaluate(states)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_and_nothing_is_refused(
    browser: Any, file: Path, story: Story, scheme: str
) -> None:
    tab = browser.new_page(color_scheme=scheme)
    asked: list[str] = []
    errors: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    start = time.perf_counter()
    tab.goto(f"file://{file}")
    tab.wait_for_selector(".plot[data-state=drawn]")
    # Two seconds on a quiet machine; this one may be shared.
    assert time.perf_counter() - start < 10
    assert draw_all(tab) == ["drawn"] * len(list(story.figures))
    assert errors == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [f"file://{file}"]
    tab.close()


def test_on_a_phone_captions_of_tables_have_the_width_of_the_page(browser: Any, file: Path) -> None:
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.goto(f"file://{file}")
    seen = "one.getClientRects().length && one.closest('.wide')"
    widths = tab.evaluate(
        f"[...document.querySelectorAll('caption')].filter((one) => {seen})"
        ".map((one) => one.getBoundingClientRect().width)"
    )
    assert widths and min(widths) > 250
    tab.close()


def test_the_data_of_a_figure_can_be_saved(browser: Any, file: Path, story: Story) -> None:
    tab = browser.new_page()
    tab.goto(f"file://{file}")
    tab.wait_for_selector("button.csv:not([hidden])", state="attached")
    tab.locator("details summary").first.click()
    with tab.expect_download() as download:
        tab.locator("button.csv").first.click()
    first = next(iter(story.figures))
    assert download.value.suggested_filename == f"{first.key}.csv"
    assert len(Path(download.value.path()).read_text().splitlines()) == len(first.table) + 1
    tab.close()


def test_without_scripts_every_figure_is_its_static_figure(
    browser: Any, file: Path, story: Story
) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"file://{file}")
    images = tab.locator("img.static")
    assert images.count() == len(list(story.figures))
    assert all(image.is_visible() for image in images.all())
    context.close()


@pytest.mark.parametrize("drawn", [False, True])
def test_no_figure_is_blank_in_print(browser: Any, file: Path, story: Story, drawn: bool) -> None:
    tab = browser.new_page()
    tab.goto(f"file://{file}")
    if drawn:
        draw_all(tab)
    check_print(tab, story)
    tab.close()


def check_print(tab: Any, story: Story) -> None:
    """Every figure of a report is there in print, with marks inside of its axes."""
    tab.emulate_media(media="print")
    pictures = tab.locator("img.static")
    assert pictures.count() == len(list(story.figures)) > 0
    for place, figure in enumerate(story.figures):
        pixels = pixels_of(pictures.nth(place).screenshot())
        ink = (pixels < 250).any(axis=2)
        assert 0.005 < ink.mean() < 0.9, figure.key
        # Marks in the middle, or in color below the legend: not only axes at the border.
        height, width = ink.shape
        is_colored = np.ptp(pixels.astype(int), axis=2) > 60
        middle = ink[height // 5 : -height // 5, width // 5 : -width // 5]
        assert middle.any() or is_colored[height // 12 :].any(), figure.key


def pixels_of(png: bytes) -> "np.ndarray[Any, Any]":
    import io

    from matplotlib.image import imread

    return (imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(np.uint8)


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext is not installed")
def test_the_printed_report_has_every_caption(
    browser: Any, file: Path, story: Story, tmp_path: Path
) -> None:
    tab = browser.new_page()
    tab.goto(f"file://{file}")
    tab.pdf(path=str(tmp_path / "r.pdf"), format="A4")
    done = subprocess.run(
        ["pdftotext", "-layout", tmp_path / "r.pdf", "-"], capture_output=True, check=True
    )
    text = "".join(done.stdout.decode().split())
    # BibTeX is for a computer: on paper stand the sources in words.
    assert "@inproceedings{" not in text and "@article{" not in text
    keys = {key for method in story.methods for key in method.sources}
    assert keys and all("".join(SOURCES[key].text.split()) in text for key in keys)
    for figure in story.figures:
        assert "".join(figure.title.split()) in text
        assert "".join(figure.caption.split())[:60] in text
    tab.close()


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="pdftoppm is not installed")
@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_no_printed_page_but_the_last_is_half_empty(
    browser: Any, file: Path, tmp_path: Path, paper: str
) -> None:
    tab = browser.new_page()
    tab.goto(f"file://{file}")
    tab.pdf(path=str(tmp_path / "r.pdf"), format=paper)
    tab.close()
    subprocess.run(["pdftoppm", "-r", "20", "-png", tmp_path / "r.pdf", tmp_path / "p"], check=True)
    pages = [pixels_of(one.read_bytes()) for one in sorted(tmp_path.glob("p-*.png"))]
    ends = [np.flatnonzero((one.min(axis=2) < 200).any(axis=1))[-1] / len(one) for one in pages]
    assert len(ends) > 5 and min(ends[:-1]) > 0.55


def one_run(folder: Path) -> list[Path]:
    """A residual net without probes."""
    return [write_network_run(folder / "one", has_shortcuts=True, steps=20, probes=False)]


def gradients_only(folder: Path) -> list[Path]:
    """A run with output gradients and nothing else."""
    layers = [layer_row(i, f"fc{i}", output_shape=[8, 16]) for i in range(4)]
    return [write_run(folder / "g", [1.0] * 9, [[0.1, 0.2, 0.4, 0.8]] * 9, layers=layers)]


def not_finite(folder: Path) -> list[Path]:
    """A run whose loss and gradients are NaN from its middle on."""
    return [write_network_run(folder / "n", has_shortcuts=True, steps=20, nan_from=9, probes=False)]


def crashed(folder: Path) -> list[Path]:
    """A run whose process was killed."""
    (path,) = one_run(folder)
    manifest = json.loads((path / "run.json").read_text())
    manifest |= {"status": "running", "heartbeat": "2020-01-01T00:00:00+00:00"}
    (path / "run.json").write_text(json.dumps(manifest))
    return [path]


@pytest.mark.parametrize("kind", [one_run, gradients_only, not_finite, crashed])
def test_every_kind_of_run_is_drawn_and_printed(browser: Any, tmp_path: Path, kind: Any) -> None:
    check_all(browser, kind(tmp_path), tmp_path)


def test_three_seeds_of_two_nets_are_drawn_and_printed(
    browser: Any, tmp_path: Path, seeds: list[Path]
) -> None:
    check_all(browser, seeds, tmp_path)


def check_all(browser: Any, paths: list[Path], folder: Path) -> None:
    """Every figure of a report of these runs is drawn, without an error, and prints."""
    story = story_of(paths)
    write_report(story, folder / "r.html")
    tab = browser.new_page()
    errors: list[str] = []
    tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    tab.goto(f"file://{folder / 'r.html'}")
    assert draw_all(tab) == ["drawn"] * len(list(story.figures))
    assert errors == []
    check_print(tab, story)
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, file: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = browser.new_page(color_scheme=scheme)
    tab.goto(f"file://{file}")
    tab.wait_for_selector(".plot[data-state=drawn]")
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = axe.Axe().run(tab).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    tab.close()

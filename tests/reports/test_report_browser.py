"""The report in Chromium: nothing refused, nothing asked for, nothing blank in print."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports.story import Story

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]

ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
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


def test_without_scripts_every_figure_is_its_twin(browser: Any, file: Path, story: Story) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"file://{file}")
    twins = tab.locator("img.twin")
    assert twins.count() == len(list(story.figures))
    assert all(twin.is_visible() for twin in twins.all())
    context.close()


@pytest.mark.parametrize("drawn", [False, True])
def test_no_figure_is_blank_in_print(browser: Any, file: Path, story: Story, drawn: bool) -> None:
    tab = browser.new_page()
    tab.goto(f"file://{file}")
    if drawn:
        draw_all(tab)
    tab.emulate_media(media="print")
    pictures = tab.locator("img.twin")
    assert pictures.count() == len(list(story.figures))
    for place, figure in enumerate(story.figures):
        pixels = pixels_of(pictures.nth(place).screenshot())
        ink = (pixels < 250).any(axis=2)
        assert 0.005 < ink.mean() < 0.9, figure.key
        # Marks in the middle, not only axes at the border.
        height, width = ink.shape
        assert ink[height // 5 : -height // 5, width // 5 : -width // 5].any(), figure.key
    tab.close()


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
    for figure in story.figures:
        assert "".join(figure.title.split()) in text
        assert "".join(figure.caption.split())[:60] in text
    tab.close()

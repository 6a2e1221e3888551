import re
from collections.abc import Callable
from typing import Any

import pytest

from analyzer.figures.catalog import PAGES
from tests.dashboard.conftest import Visit

PAIR = "?run=plain&run=residual"
Open = Callable[..., Visit]
PATHS = [page.path for page in PAGES]
SHOWN = {page.path: page.shown for page in PAGES}


def violations(page: Any) -> list[Any]:
    """Return what axe finds serious or worse, with the first elements concerned."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    return [
        (one["id"], [node["html"][:160] for node in one["nodes"]][:3])
        for one in axe.Axe().run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]


# Each page is opened by tests/dashboard/test_dashboard_saving.py; these have every kind of card.
_OFTEN = ("/", "/runs", "/network", "/training", "/study")


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=() if p in _OFTEN else pytest.mark.slow) for p in PATHS]
)
def test_every_page_works_in_light_and_dark_on_desktop_and_phone(visit: Open, path: str) -> None:
    shown = visit()
    page = shown.go(path + PAIR)
    shown.settle()
    keys = page.locator("[data-panel]").evaluate_all("all => all.map((one) => one.dataset.panel)")
    assert keys == [panel.key for panel in SHOWN[path]]
    assert page.locator("[data-panel] .message").all_text_contents() == []
    shown.until("document.title.endsWith('– Gradient flow')")
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(300)
    shown.settle()
    # Figures take the new width one after the other.
    shown.until("document.documentElement.scrollWidth <= 390", seconds=10)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", ground)[:3])) < 150
    assert violations(page) == []
    shown.assert_clean()


def test_heatmaps_are_not_blank(visit: Open) -> None:
    for path, panel, count in (("/", "overview", 2), ("/flow", "gradient_heatmap", 2)):
        shown = visit()
        page = shown.go(path + PAIR)
        shown.settle()
        sizes = page.evaluate(
            f"""[...document.querySelectorAll('[data-panel={panel}] image')].map(
                (image) => (image.getAttribute('href') || '').length)"""
        )
        assert len(sizes) >= count and min(sizes) > 100


def test_the_list_leads_to_the_overview_of_a_run(visit: Open) -> None:
    shown = visit()
    page = shown.go("/runs")
    row = page.locator("tr", has_text="residual")
    assert "finished" in row.text_content() and "60" in row.text_content()
    row.get_by_role("link", name="residual").click()
    page.wait_for_url("**/?run=residual")
    page.wait_for_selector("[data-panel=overview]")
    page.go_back()
    page.wait_for_selector("table.runs")
    shown.assert_clean()


def test_the_list_says_what_is_worst_about_each_run(visit: Open) -> None:
    shown = visit()
    page = shown.go("/runs")
    shown.until(
        """() => [...document.querySelectorAll('table.runs tr')].some(
            (row) => row.textContent.includes('plain') && row.textContent.includes('vanishing'))"""
    )
    assert "healthy" in page.locator("tr", has_text="residual").text_content()


def test_marked_runs_are_compared(visit: Open) -> None:
    shown = visit()
    page = shown.go("/runs")
    button = page.get_by_role("button", name="Compare marked runs")
    assert button.is_disabled()
    for name in ("plain", "residual"):
        page.get_by_role("checkbox", name=f"compare {name}", exact=True).check()
    page.get_by_role("button", name="Compare 2 marked runs").click()
    page.wait_for_url("**/compare?run=plain&run=residual")
    shown.assert_clean()


def test_the_filter_leaves_the_runs_that_have_all_words(visit: Open) -> None:
    shown = visit()
    page = shown.go("/runs")
    page.get_by_label("Filter by name").fill("finished RESID")
    shown.until("document.querySelectorAll('table.runs tbody tr').length === 1")
    page.get_by_label("Filter by name").fill("nosuch")
    page.wait_for_selector("text=None of")


def test_the_run_picker_changes_what_the_page_shows(visit: Open) -> None:
    shown = visit()
    page = shown.go("/training?run=plain")
    shown.settle()
    page.get_by_role("textbox", name="runs shown").click()
    page.get_by_role("option", name="residual").click()
    page.wait_for_url("**/training?run=plain&run=residual")
    shown.settle()
    shown.assert_clean()


def test_a_question_mark_lists_the_shortcuts_and_g_goes_places(visit: Open) -> None:
    shown = visit()
    page = shown.go("/" + PAIR)
    shown.settle()
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    assert "one step back" in page.get_by_role("dialog").text_content()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    page.keyboard.press("g")
    page.keyboard.press("f")
    page.wait_for_url("**/flow" + PAIR)
    page.wait_for_selector("[data-panel=gradient_heatmap]")
    shown.assert_clean()


def test_on_a_phone_the_pages_are_behind_a_button(visit: Open) -> None:
    shown = visit(viewport={"width": 390, "height": 800})
    page = shown.go("/training" + PAIR)
    link = page.get_by_role("link", name="Shortcuts")
    assert not link.is_visible() or link.bounding_box()["x"] < 0
    page.get_by_role("button", name="pages").click()
    page.wait_for_timeout(400)
    link.click()
    page.wait_for_selector("h1:has-text('Shortcuts')")
    shown.assert_clean()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/flow", "No run is chosen"),
        ("/?run=nosuch", "no run 'nosuch'"),
        ("/nosuch", "There is no page '/nosuch'"),
        pytest.param("/?run=empty", "not recorded", marks=pytest.mark.slow),
        ("/?run=newer", "schema version 99"),
        ("/landscape?run=single", "analyzer probe single landscape"),
        ("/flow?run=plain&layers=(", "regular expression"),
        ("/flow?run=plain&layers=(a%2B)%2B%24", "layers"),
        pytest.param("/flow?run=plain&layers=zzz", "none of", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_there_is_said_with_what_to_do(visit: Open, path: str, words: str) -> None:
    shown = visit()
    page = shown.go(path)
    page.wait_for_selector(f'.message:has-text("{words}")')
    shown.assert_clean()


def test_runs_that_cannot_be_read_are_listed_with_the_reason(visit: Open) -> None:
    page = visit().go("/runs")
    text = page.locator("#run-list").text_content()
    assert "torn" in text and "newer" in text and "cannot be read" in text


def often(*paths: str, slow: tuple[str, ...]) -> list[Any]:
    """Paths, of which some are left to `make test-all`."""
    return [*paths, *(pytest.param(path, marks=pytest.mark.slow) for path in slow)]


@pytest.mark.parametrize("path", often("/", "/flow", slow=("/training", "/findings")))
def test_a_run_with_a_corrupt_table_is_shown_as_far_as_it_goes(visit: Open, path: str) -> None:
    shown = visit()
    shown.go(path + "?run=corrupt")
    shown.settle()
    shown.assert_clean()


@pytest.mark.parametrize("path", often("/runs", "/flow", slow=("/", "/activations", "/findings")))
def test_hostile_names_are_text(visit: Open, path: str) -> None:
    from urllib.parse import quote

    from tests.dashboard.conftest import HOSTILE

    shown = visit()
    page = shown.go(path + "?run=" + quote(HOSTILE.replace("/", "")))
    shown.settle()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    shown.assert_clean()

import csv
import io
from collections.abc import Callable

import pytest

from analyzer.figures.catalog import PAGES
from analyzer.figures.panels import Page
from tests.dashboard.conftest import Visit

PAIR = "?run=plain&run=residual"
Open = Callable[..., Visit]


# Every kind of figure is on one of these pages.
_OFTEN = ("overview", "surface")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(page, id=page.key, marks=() if page.key in _OFTEN else pytest.mark.slow)
        for page in PAGES
        if page.panels
    ],
)
def test_every_figure_is_saved_as_data_and_as_a_picture(visit: Open, place: Page) -> None:
    shown = visit()
    for count, panel in enumerate(place.shown):
        if count % 3 == 0:  # Chromium asks before the eleventh download of a page
            shown.go(place.path + PAIR)
            shown.settle()
        for kind in ("csv", "svg", "png"):
            button = f"save {panel.title} as {kind.upper()}"
            with shown.page.expect_download() as download:
                shown.page.get_by_role("button", name=button, exact=True).click()
            assert download.value.suggested_filename == f"{panel.key}.{kind}"
            data = download.value.path().read_bytes()
            if kind == "csv":
                rows = list(csv.reader(io.StringIO(data.decode())))
                assert rows[0][0].startswith(("run", "relative")) or len(rows[0]) > 1
                assert len(rows) > 1
            else:
                assert data.startswith(b"<svg" if kind == "svg" else b"\x89PNG")
                assert len(data) > 5_000
    shown.assert_clean()


def test_g_and_a_letter_go_to_each_page_which_draws_its_figures_of_the_same_runs(
    visit: Open,
) -> None:
    shown = visit()
    page = shown.go("/findings" + PAIR)
    for place in PAGES:
        if not place.letter:
            continue
        page.keyboard.press("g")
        page.keyboard.press(place.letter)
        page.wait_for_url(f"**{place.path}{PAIR}")
        shown.until(f"document.title.startsWith({place.title!r})")
        shown.settle()
        cards = page.locator("[data-panel]")
        keys = cards.evaluate_all("all => all.map((one) => one.dataset.panel)")
        assert keys == [panel.key for panel in place.shown]
        assert cards.locator(".message").all_text_contents() == []
        shown.assert_clean()

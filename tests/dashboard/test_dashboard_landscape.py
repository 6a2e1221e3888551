from collections.abc import Callable
from typing import Any

import pytest

from tests.dashboard.conftest import Visit

PAIR = "?run=plain&run=residual"
Open = Callable[..., Visit]
DESKTOP: dict[str, Any] = {}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
ON_PHONE = [
    pytest.param(PHONE, id="phone dark"),
    pytest.param(DESKTOP, id="desktop light", marks=pytest.mark.slow),
]
ON_DESKTOP = [
    pytest.param(DESKTOP, id="desktop light"),
    pytest.param(PHONE, id="phone dark", marks=pytest.mark.slow),
]


def opened(visit: Open, path: str, look: dict[str, Any]) -> Visit:
    """Open a page in a look and wait for its figures."""
    shown = visit(**look)
    shown.go(path)
    shown.settle()
    return shown


def caption(key: str) -> str:
    """The sentence of a card, in the language of the page."""
    return f"document.querySelector('[data-panel={key}] .caption').textContent"


@pytest.mark.parametrize(
    ("path", "look"),
    [
        pytest.param("/landscape", DESKTOP, id="landscape, desktop light"),
        pytest.param("/surface", PHONE, id="surface, phone dark"),
        pytest.param("/landscape", PHONE, id="landscape, phone dark", marks=pytest.mark.slow),
        pytest.param("/surface", DESKTOP, id="surface, desktop light", marks=pytest.mark.slow),
    ],
)
def test_the_slider_of_a_landscape_has_a_place_for_each_checkpoint(
    visit: Open, path: str, look: dict[str, Any]
) -> None:
    shown = opened(visit, path + PAIR, look)
    key = "landscape_contour" if path == "/landscape" else "landscape_surface"
    assert "step 59: the loss is 2.30" in shown.page.evaluate(caption(key))
    shown.page.locator("#step-range").wait_for()
    # The runs have 60 steps, and landscapes of the first and the last of them.
    assert shown.page.locator("#step-range").get_attribute("max") == "1"
    assert shown.page.locator("#step-slider label").text_content() == "checkpoint at step"
    shown.page.keyboard.press("ArrowLeft")
    shown.page.wait_for_url(f"**{path}{PAIR}&step=0")
    shown.until(f"{caption(key)}.includes('step 0: the loss is 2.30')")
    # A checkpoint after the last step is said to be of the final weights.
    steps = "{steps: [0, 60], label: 'checkpoint at step', final: 60}"
    shown.page.evaluate(f"window.dash_clientside.gradientflow.steps({steps}, null)")
    shown.page.keyboard.press("End")
    shown.until("document.querySelector('#step-output').textContent === '60 (final weights)'")
    shown.assert_clean()


@pytest.mark.parametrize("look", ON_PHONE)
def test_the_path_of_the_training_is_drawn_over_the_contours(
    visit: Open, look: dict[str, Any]
) -> None:
    shown = opened(visit, "/landscape" + PAIR, look)
    path = """[...document.querySelector('[data-panel=trajectory] .js-plotly-plot')._fullData]
        .filter((one) => one.type === 'scatter' && one.x.length === 3)
        .map((one) => Array.from(one.x))"""
    assert shown.page.evaluate(path) == [[-0.8, -0.4, 0.0]] * 2
    shown.assert_clean()


@pytest.mark.parametrize("look", ON_DESKTOP)
def test_two_runs_are_compared_on_heatmaps_in_one_color_range(
    visit: Open, look: dict[str, Any]
) -> None:
    shown = opened(visit, "/compare" + PAIR, look)
    heat = """[...document.querySelector('[data-panel=gradient_heatmap] .js-plotly-plot')._fullData]
        .filter((one) => one.coloraxis).map((one) => [one.name, one.coloraxis])"""
    assert shown.page.evaluate(heat) == [["plain", "coloraxis"], ["residual", "coloraxis"]]
    shown.assert_clean()


@pytest.mark.parametrize("look", ON_PHONE)
def test_smoothed_series_have_their_raw_line_behind(visit: Open, look: dict[str, Any]) -> None:
    shown = opened(visit, "/training?run=residual", look)
    lines = "document.querySelector('[data-panel=loss] .js-plotly-plot')._fullData.length"
    before = shown.page.evaluate(lines)
    shown.page.get_by_role("slider", name="smoothing in percent").press("End")
    shown.page.wait_for_url("**smooth=99")
    shown.until(f"{lines} === {before + 1}")
    shown.assert_clean()


def test_the_head_and_its_buttons_fit_on_a_phone(visit: Open) -> None:
    shown = opened(visit, "/training" + PAIR, PHONE)
    right = """[...document.querySelectorAll('.head > *')]
        .map((one) => one.getBoundingClientRect().right)"""
    assert max(shown.page.evaluate(right)) <= 390
    text = shown.page.locator("#live-text")
    assert text.is_visible() and "residual: finished" in str(text.text_content())


def test_with_room_the_profile_stands_beside_the_heatmap(visit: Open) -> None:
    shown = opened(visit, "/flow" + PAIR, {"viewport": {"width": 1600, "height": 900}})
    tops = """['gradient_heatmap', 'depth_profile'].map((key) =>
        document.querySelector(`[data-panel=${key}]`).getBoundingClientRect().top)"""
    heatmap, profile = shown.page.evaluate(tops)
    assert heatmap == profile

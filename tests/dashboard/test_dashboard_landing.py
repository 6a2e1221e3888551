"""The first page: what it opens, what it says, and that all of it is on the first screen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analyzer.analysis.landing import landing
from analyzer.dashboard.layout import POLL_MILLISECONDS
from analyzer.storage.run import open_run
from tests.dashboard.conftest import Visit, serving
from tests.dashboard.test_dashboard_pages import PAIR, often, violations
from tests.support.full_run import write_full_pair
from tests.support.runs import write_run

Open = Callable[..., Visit]
ANSWERED = "document.querySelector('#readings .card') !== null"


def answered(shown: Visit, path: str) -> Any:
    page = shown.go(path)
    shown.settle()
    shown.until(ANSWERED)
    return page


def test_it_opens_the_newest_pair_and_says_so_in_the_address(visit: Open, tmp_path: Path) -> None:
    write_full_pair(tmp_path)
    write_run(tmp_path / "later", [1.0], [[1.0]])
    with serving(tmp_path) as address:
        shown = visit(address)
        page = answered(shown, "/")
        assert page.evaluate("location.search") == PAIR
        assert page.locator(".headline").text_content().startswith("plain is sick: ")
        page.get_by_role("link", name="Training").click()
        page.wait_for_url("**/training" + PAIR)
        page.get_by_role("link", name="Runs", exact=True).click()
        page.wait_for_selector("table.runs")
        shown.assert_clean()


def test_it_says_what_the_analysis_says_with_three_numbers_of_each_run(
    visit: Open, runs_dir: Path
) -> None:
    shown = visit()
    page = answered(shown, "/" + PAIR)
    found = landing([open_run(runs_dir / name) for name in ("plain", "residual")])
    assert page.locator(".headline").text_content() == found.sentence
    assert page.locator(".cause").text_content() == found.cause
    evidence = page.locator(".evidence").text_content().lower()
    assert all(f"{what}: {word} ({why.lower()})" in evidence for what, word, why in found.evidence)
    values = page.locator("#readings .value").all_text_contents()
    assert values == [text for one in found.readings for _, _, text in one.values]
    assert len(values) == 6
    questions = page.locator(".question h2").all_text_contents()
    assert questions == [claim.question for claim in found.questions]
    badges = page.locator(".question .badge").all_text_contents()
    assert badges == [claim.answer for claim in found.questions]
    said = [one.lower() for one in page.locator(".question summary").all_text_contents()]
    assert said == [one.short.lower() for one in found.questions if one.short]
    # The ends of the trunk, and terms, say what they are.
    marks = "[...document.querySelectorAll('.headline abbr')]"
    meaning = page.evaluate(f"{marks}.map((one) => [one.textContent, one.title])")
    assert dict(meaning) | {"decades": ""} == {
        "head": "The last one.",
        "stem": "The first layer with parameters.",
        "decades": "",
    }
    shown.assert_clean()


@pytest.mark.parametrize(
    "query", often(PAIR, "?run=diverged", slow=("?run=residual", "?run=plain"))
)
def test_all_of_it_is_on_the_first_screen_of_a_laptop(visit: Open, query: str) -> None:
    shown = visit(viewport={"width": 1440, "height": 900})
    page = answered(shown, "/" + query)
    shown.until("document.querySelector('.picture .js-plotly-plot .main-svg') !== null")
    places = [".headline", ".cause", ".evidence", "#readings", ".picture .js-plotly-plot"]
    # Measured in one call: the page may redraw them between two calls.
    boxes = f"""{places}.map((place) => document.querySelector(place)?.getBoundingClientRect())
      .map((box) => box && [box.top, box.bottom, box.height])"""
    shown.until(f"{boxes}.every((box) => box && box[2] > 0)")
    for place, (top, bottom, _) in zip(places, page.evaluate(boxes), strict=True):
        assert top >= 56 and bottom <= 900, place
    # Those that were not measured, too, each with the command that measures it.
    assert page.locator(".question").count() == 3 or query == "?run=plain"
    assert page.evaluate("document.documentElement.scrollHeight") <= 900
    assert page.locator("#step-slider").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440
    shown.assert_clean()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "light"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                *((1440, "light"), (1440, "dark"), (1024, "light"), (1024, "dark")),
                (390, "dark"),
            )
        ),
    ],
)
def test_nothing_of_it_is_wider_than_the_page_or_hard_to_read(
    visit: Open, width: int, scheme: str
) -> None:
    shown = visit(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for query in (PAIR, "?run=diverged"):
        page = answered(shown, "/" + query)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Words over a row end before the picture does.
        ends = page.evaluate(
            """() => { const card = document.querySelector('.picture .card');
            const right = card.getBoundingClientRect().right;
            return [...document.querySelectorAll('.picture .annotation')].map(
                (one) => right - one.getBoundingClientRect().right); }"""
        )
        assert ends and min(ends) >= 0
        assert violations(page) == []
    shown.assert_clean()


def test_what_to_do_next_is_one_command_and_its_button_copies_that(visit: Open) -> None:
    shown = visit(viewport={"width": 390, "height": 844})
    for query in (PAIR, "?run=residual", "?run=diverged"):
        page = answered(shown, "/" + query)
        assert page.locator("#headline .copy").count() == 1
        line = page.locator("#headline .next")
        command = line.locator("code").text_content()
        assert command.startswith("analyzer record ")
        assert line.locator(".copy").get_attribute("data-copy") == command
        assert ("Nothing to mend. " in line.text_content()) == (query == "?run=residual")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_on_a_phone_every_chosen_run_is_named_in_full_view(visit: Open) -> None:
    shown = visit(viewport={"width": 390, "height": 844})
    page = answered(shown, "/" + PAIR)
    field = page.locator(".run-picker .mantine-MultiSelect-input").bounding_box()
    for pill in page.locator(".run-picker .mantine-MultiSelect-pill").all():
        box = pill.bounding_box()
        assert box["x"] >= field["x"] and box["x"] + box["width"] <= field["x"] + field["width"]


def test_of_a_single_run_it_says_what_its_shortcuts_do(visit: Open) -> None:
    page = answered(visit(), "/?run=residual")
    assert page.locator(".cause").text_content().startswith("What the shortcuts do: ")
    names = page.locator("#readings .card").first.locator(".of").all_text_contents()
    assert names == ["residual"]


def test_of_a_run_that_is_not_finite_it_says_since_when_and_where(visit: Open) -> None:
    shown = visit()
    page = answered(shown, "/?run=diverged")
    sentence = page.locator(".headline").text_content()
    since, _, where = sentence.partition(", ")
    assert since == "diverged is sick: NaN or infinite from step 30 on"
    assert where == "first in the loss, then in the output gradient of head."
    assert "What to do: " in page.locator(".cause").text_content()
    # It opens at the last step that is finite, on every page; the last one is a click away.
    page.wait_for_url("**/?run=diverged&step=29")
    shown.until("document.querySelector('#step-output').textContent === '29 (last finite)'")
    # It is offered where another one is shown.
    assert not page.get_by_text("show step 29").is_visible()
    page.locator("#step-last").click()
    page.wait_for_url("**/?run=diverged&step=59")
    assert page.locator("#step-output").text_content() == "59 (last)"
    page.get_by_role("link", name="show step 29").click()
    page.wait_for_url("**/?run=diverged&step=29")
    page.get_by_text("show step 29").wait_for(state="hidden")
    page.goto(f"{shown.address}/flow?run=diverged")
    page.wait_for_url("**/flow?run=diverged&step=29")


def test_an_empty_folder_is_one_sentence_and_the_first_run_appears_by_itself(
    visit: Open, tmp_path: Path
) -> None:
    with serving(tmp_path) as address:
        shown = visit(address)
        page = shown.go("/")
        page.wait_for_selector("text=No runs yet")
        assert "analyzer record train.py" in page.locator("#content").text_content()
        write_run(tmp_path / "first", [1.0, 0.5], [[1.0, 1.0]] * 2)
        page.wait_for_url("**/?run=first")
        shown.until("document.querySelector('.headline') !== null")
        assert "first is not sick" in page.locator(".headline").text_content()
        shown.assert_clean()


def test_a_run_that_is_asked_for_before_it_is_there_appears_by_itself(
    visit: Open, tmp_path: Path
) -> None:
    with serving(tmp_path) as address:
        shown = visit(address)
        page = shown.go("/flow?run=later")
        page.wait_for_selector("text=no run 'later'")
        write_run(tmp_path / "later", [1.0, 0.5], [[1.0, 1.0]] * 2)
        page.locator(".js-plotly-plot").first.wait_for()
        assert page.get_by_text("no run 'later'").count() == 0
        shown.assert_clean()


def test_a_folder_whose_run_cannot_be_read_is_not_asked_for_again_and_again(
    visit: Open, tmp_path: Path
) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text('{"schema_version": 1, ')
    with serving(tmp_path) as address:
        shown = visit(address)
        loads: list[str] = []
        shown.page.on("load", lambda one: loads.append(one.url))
        page = shown.go("/")
        page.wait_for_selector("text=No runs yet")
        page.wait_for_timeout(POLL_MILLISECONDS * 2)
        assert len(loads) == 1
        shown.assert_clean()


@pytest.mark.parametrize("run", often("empty", "single", slow=("corrupt",)))
def test_a_run_that_holds_little_is_answered_too(visit: Open, run: str) -> None:
    shown = visit()
    page = shown.go(f"/?run={run}")
    shown.settle()
    shown.until("document.querySelector('.headline, #headline .message') !== null")
    assert page.locator("#content").text_content()
    shown.assert_clean()


def test_a_step_that_is_dragged_moves_words_and_handle_without_the_server(visit: Open) -> None:
    shown = visit()
    page = answered(shown, "/" + PAIR)
    shown.until("() => window.gradientflow.overview !== null")
    page.evaluate("window.gradientflow.showStep(12)")
    graph = "document.querySelector('[data-panel=overview] .js-plotly-plot')"
    shown.until(f"{graph}.dataset.step === '12'")
    words = page.locator(".picture .annotation").all_text_contents()
    assert any("at step 12:" in text for text in words)
    shown.assert_clean()

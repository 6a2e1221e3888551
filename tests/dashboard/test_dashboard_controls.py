import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analyzer.analysis.numerals import number
from analyzer.analysis.verdict import verdict
from analyzer.storage.run import open_run
from tests.dashboard.conftest import Visit
from tests.support.runs import layer_row, write_run

PAIR = "?run=plain&run=residual"
Open = Callable[..., Visit]


def graph(key: str) -> str:
    """The figure of a card, in the language of the page."""
    return f"document.querySelector('[data-panel={key}] .js-plotly-plot')"


def opened(visit: Open, path: str) -> Visit:
    """Open a page and wait for its figures."""
    shown = visit()
    shown.go(path)
    shown.settle()
    return shown


def requests(shown: Visit) -> list[str]:
    """Return a list to which every figure that the server draws from now on is added."""
    asked: list[str] = []

    def keep(request: Any) -> None:
        if "_dash-update" in request.url:
            asked.append(request.post_data_json["output"])

    shown.page.on("request", keep)
    return asked


def test_the_slider_moves_the_overview_without_the_server_and_then_stays_in_the_address(
    visit: Open,
) -> None:
    shown = opened(visit, "/" + PAIR)
    shown.until("() => window.gradientflow.overview !== null")
    shown.until("document.querySelector('#readings .card') !== null")  # it comes by itself
    asked = requests(shown)
    slide = """(at) => {
        const range = document.getElementById('step-range');
        range.value = String(at);
        range.dispatchEvent(new Event('input'));
    }"""
    shown.page.evaluate(slide, 12)
    shown.until(f"{graph('overview')}.dataset.step === '12'")
    paths = shown.page.locator(".overview-cover path").count()
    assert paths > 30 and asked == []
    # The address follows a moment later, or at once where the slider is let go.
    shown.page.evaluate("document.getElementById('step-range').dispatchEvent(new Event('change'))")
    shown.page.wait_for_url("**/" + PAIR + "&step=12")
    shown.until(f"{graph('overview')}.layout.shapes[0].y0 === 12")
    shown.until("!document.querySelector('.overview-cover')")
    assert shown.page.evaluate("window.gradientflow.lastFrame") < 50
    shown.assert_clean()


def test_the_step_is_dragged_in_the_third_row(visit: Open) -> None:
    shown = opened(visit, "/" + PAIR)
    shown.until("document.querySelector('#readings .card') !== null")
    place = shown.page.evaluate(
        f"""() => {{
            {graph("overview")}.scrollIntoView();
            const box = {graph("overview")}.getBoundingClientRect();
            const full = {graph("overview")}._fullLayout;
            const x = full.xaxis, y = full.yaxis3;
            return {{x: box.left + x._offset + 40, y: box.top + y._offset,
                     low: y.d2p(10), high: y.d2p(40)}};
        }}"""
    )
    shown.page.mouse.move(place["x"], place["y"] + place["high"])
    shown.page.mouse.down()
    shown.page.mouse.move(place["x"], place["y"] + place["low"], steps=4)
    shown.page.mouse.up()
    shown.page.wait_for_url("**&step=10")
    shown.assert_clean()


def test_arrow_keys_move_the_step_and_end_goes_back_to_the_last(visit: Open) -> None:
    shown = opened(visit, "/shortcuts?run=residual")
    for _ in range(3):
        shown.page.keyboard.press("ArrowLeft")
    shown.page.wait_for_url("**&step=56")
    shown.until(
        "document.querySelector('[data-panel=shortcut_strip] .caption')"
        ".textContent.includes('step 5')"
    )
    shown.page.keyboard.press("End")
    shown.page.wait_for_url("**/shortcuts?run=residual")
    shown.assert_clean()


def test_the_profile_follows_the_cursor_over_the_heatmap(visit: Open) -> None:
    shown = opened(visit, "/flow" + PAIR)
    asked = requests(shown)
    first = f"{graph('depth_profile')}._fullData[0].y[0]"
    before = shown.page.evaluate(first)
    hover = """window.gradientflow.preview('gradient_heatmap', 0)"""
    shown.page.evaluate(hover)
    shown.until(f"{graph('depth_profile')}.dataset.step === '0'")
    assert shown.page.evaluate(first) != before and asked == []
    z = f"{graph('gradient_heatmap')}._fullData[0].z[0][0]"
    assert shown.page.evaluate(first) == pytest.approx(10 ** shown.page.evaluate(z), rel=1e-5)


def test_a_click_in_the_heatmap_opens_that_layer_at_that_step(visit: Open) -> None:
    shown = opened(visit, "/flow" + PAIR)
    place = shown.page.evaluate(
        f"""() => {{
            const box = {graph("gradient_heatmap")}.getBoundingClientRect();
            const full = {graph("gradient_heatmap")}._fullLayout;
            return {{x: box.left + full.xaxis._offset + full.xaxis.d2p(0),
                     y: box.top + full.yaxis._offset + full.yaxis.d2p(30)}};
        }}"""
    )
    shown.page.mouse.move(place["x"], place["y"])
    shown.page.wait_for_selector("[data-panel=layer_series] .step-line.hovered")
    shown.page.mouse.click(place["x"], place["y"])
    shown.page.wait_for_url("**step=30&layer=stem")
    shown.until(
        f"""{graph("layer_series")}._fullData.filter((one) => one.showlegend)
            .every((one) => one.name === 'stem')"""
    )
    shown.assert_clean()


def test_each_cell_of_a_heatmap_is_said_and_labeled_by_the_name_of_its_layer(
    visit: Open, runs_dir: Path
) -> None:
    names = ["0", "2", "10", "1", "y" * 200, "3", "3"]
    layers = [layer_row(k, name) for k, name in enumerate(names)]
    norms = [[10.0 ** (k - 9) for k in range(7)]] * 8
    write_run(runs_dir / "numeric", [1.0] * 8, norms, layers=layers)
    shown = opened(visit, "/flow?run=numeric")
    texts = """() => {
        const graph = document.querySelector('[data-panel=gradient_heatmap] .js-plotly-plot');
        return [...graph.querySelectorAll('.xtick text')].map((one) => one.textContent);
    }"""
    ticks = shown.page.evaluate(texts)
    assert ticks[:4] == names[:4] and len(set(ticks)) == 7
    for k, name in enumerate(names[:4]):
        place = shown.page.evaluate(
            f"""() => {{
                const graph = {graph("gradient_heatmap")}, full = graph._fullLayout;
                const box = graph.getBoundingClientRect();
                const tick = [...graph.querySelectorAll('.xtick text')][{k}];
                const seen = tick.getBoundingClientRect();
                return {{x: box.left + full.xaxis._offset + full.xaxis.d2p({k}),
                         y: box.top + full.yaxis._offset + full.yaxis.d2p(5),
                         cell: full.xaxis.d2p(1) - full.xaxis.d2p(0),
                         tick: (seen.left + seen.right) / 2}};
            }}"""
        )
        # Where text is turned, its box is not centered at its cell; it is of no other cell.
        assert abs(place["x"] - place["tick"]) < place["cell"] / 4
        shown.page.mouse.move(place["x"], place["y"])
        hovered = (
            "[...document.querySelectorAll('.hoverlayer .hovertext')].map((o) => o.textContent)"
        )
        shown.until(f"({hovered}).some((text) => text.startsWith('numeric{name}step 5: '))")
        text = next(t for t in shown.page.evaluate(hovered) if t.startswith(f"numeric{name}"))
        value = text.split("step 5: ")[1].replace("−", "-")
        assert float(value) == pytest.approx(10.0 ** (k - 9), rel=5e-3)
    shown.assert_clean()


def test_controls_stand_in_the_address_and_survive_a_reload(visit: Open) -> None:
    shown = opened(visit, "/flow" + PAIR)
    page = shown.page
    page.get_by_label("Layers (regular expression)").fill("fc1$")
    page.wait_for_url("**layers=fc1%24")
    page.get_by_text("relative to last layer").click()
    page.get_by_role("slider", name="smoothing in percent").press("End")
    page.get_by_text("max", exact=True).click()
    page.wait_for_url("**bins=max**")
    shown.until("location.search.includes('smooth=99') && location.search.includes('relative=1')")
    page.get_by_role("textbox", name="Quantity").click()
    page.get_by_role("option", name="activation std").click()
    page.wait_for_url("**quantity=activation_std**")
    address = page.url
    page.reload()
    shown.settle()
    assert page.url == address
    names = page.evaluate(f"Object.values({graph('gradient_heatmap')}.layout.xaxis.labelalias)")
    assert names and all(name.endswith("fc1") for name in names)
    assert page.get_by_label("Layers (regular expression)").input_value() == "fc1$"
    shown.assert_clean()


def test_the_block_picker_writes_the_pattern(visit: Open) -> None:
    shown = opened(visit, "/flow?run=residual")
    shown.page.get_by_role("textbox", name="Block").click()
    shown.page.get_by_role("option", name="layer2.1", exact=True).click()
    shown.page.wait_for_url("**layers=%5Elayer2%5C.1%5C.")
    shown.until(
        f"""Object.values({graph("gradient_heatmap")}.layout.xaxis.labelalias).every((name) =>
            name.startsWith('layer2.1.'))"""
    )
    shown.assert_clean()


def test_back_returns_to_the_state_that_was_left(visit: Open) -> None:
    shown = opened(visit, "/flow" + PAIR)
    shown.page.get_by_label("Layers (regular expression)").fill("stem|head")
    shown.page.wait_for_url("**layers=stem%7Chead")
    left = shown.page.url
    shown.page.get_by_role("link", name="Training").click()
    shown.page.wait_for_selector("[data-panel=loss]")
    assert shown.page.url.endswith("/training" + left.partition("/flow")[2])
    shown.page.go_back()
    shown.page.wait_for_selector("[data-panel=gradient_heatmap]")
    shown.settle()
    assert shown.page.url == left
    assert shown.page.get_by_label("Layers (regular expression)").input_value() == "stem|head"
    shown.assert_clean()


@pytest.mark.parametrize(
    ("kind", "start"), [("csv", b"run,"), ("svg", b"<svg"), ("png", b"\x89PNG")]
)
def test_a_figure_is_saved(visit: Open, kind: str, start: bytes) -> None:
    shown = opened(visit, "/training" + PAIR)
    with shown.page.expect_download() as download:
        shown.page.get_by_role("button", name=f"save Loss as {kind.upper()}").click()
    assert download.value.suggested_filename == f"loss.{kind}"
    data = download.value.path().read_bytes()
    assert data.startswith(start)
    if kind == "csv":
        assert len(data.splitlines()) == 121
    shown.assert_clean()


def test_the_numbers_behind_a_figure_are_a_table_in_the_page(visit: Open) -> None:
    shown = opened(visit, "/flow?run=plain")
    card = shown.page.locator("[data-panel=depth_profile]")
    card.locator("summary").click()
    card.get_by_role("button", name="Show the numbers").click()
    card.locator("table").wait_for()
    assert "stem" in card.locator("table").text_content()
    shown.assert_clean()


def test_no_button_leads_to_a_cloud(visit: Open) -> None:
    shown = opened(visit, "/training?run=plain")
    titles = shown.page.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map((one) => one.dataset.title || '')"
    )
    assert titles and not [one for one in titles if "loud" in one or "hare" in one]


def test_a_finding_leads_to_its_evidence(visit: Open) -> None:
    shown = visit()
    page = shown.go("/findings?run=plain")
    page.get_by_role("link", name="show the evidence").first.click()
    page.wait_for_selector("[data-panel=gradient_heatmap]")
    shown.settle()
    assert "step=0" in page.url
    shown.assert_clean()


def test_a_claim_leads_to_the_figure_that_shows_it(visit: Open) -> None:
    shown = opened(visit, "/compare" + PAIR)
    shown.until("document.querySelector('#verdict').textContent.includes('Vanishing gradients')")
    card = shown.page.locator(".claim-cards .card", has_text="Do short paths carry the gradient")
    link = card.get_by_role("link", name="show me")
    link.click()
    shown.page.wait_for_selector("[data-panel=path_spectrum]")
    assert "/shortcuts" + PAIR in shown.page.url
    assert shown.page.url.endswith("&step=59#title-path_spectrum")
    shown.assert_clean()


def test_compare_lists_what_differs_above_the_verdict_and_each_claim_as_a_card(
    visit: Open, runs_dir: Path
) -> None:
    shown = opened(visit, "/compare" + PAIR)
    shown.until("document.querySelectorAll('.claim-cards .card').length > 0")
    found = verdict(*(open_run(runs_dir / name) for name in ("plain", "residual")))
    heads = shown.page.locator("#verdict h2").all_text_contents()
    assert heads == ["What differs besides the shortcuts", "Verdict"]
    assert shown.page.locator(".differing dt").count() == len(found.differences)
    cards = shown.page.locator(".claim-cards .card")
    assert cards.locator("h3").all_text_contents() == [one.question for one in found.claims]
    assert cards.locator(".badge").all_text_contents() == [one.answer for one in found.claims]
    (at,) = [k for k, one in enumerate(found.claims) if one.key == "training_loss"]
    values = [number(found.claims[at].plain or 0.0), number(found.claims[at].residual or 0.0)]
    assert cards.nth(at).locator(".value").all_text_contents() == values
    assert found.claims[at].compared in cards.nth(at).text_content()
    # The verdict is a few short sentences; all of it, and of each answer, is a click away.
    short = shown.page.locator("#verdict .in-short li")
    assert 3 <= short.count() <= 4 and max(map(len, short.all_text_contents())) < 250
    whole = shown.page.locator("#verdict details")
    assert not whole.locator("p").first.is_visible()
    whole.locator("summary").click()
    assert whole.locator("p").all_text_contents() == [*filter(None, (*found.parts, found.note))]
    said = cards.nth(at).get_by_text(found.claims[at].finding)
    assert not said.is_visible()
    cards.nth(at).locator("summary").click()
    assert said.is_visible()
    shown.assert_clean()


def test_replies_stay_small(visit: Open) -> None:
    sizes: dict[str, int] = {}
    shown = visit()

    def keep(response: Any) -> None:
        if "_dash-update" in response.url:
            name = json.dumps(response.request.post_data_json["outputs"])[:120]
            sizes[name] = int(response.headers.get("content-length", 0))

    shown.page.on("response", keep)
    for path in ("/", "/flow", "/landscape"):
        shown.go(path + PAIR)
        shown.settle()
    assert sizes and max(sizes.values()) < 400_000

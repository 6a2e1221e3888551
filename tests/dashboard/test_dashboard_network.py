"""The page of the network in a browser: nodes, clicks that choose, open and close, the address."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from analyzer.dashboard.app import create_app

_READY = "() => document.querySelector('#network-place[data-nodes]') !== null"
_MANY = """() => {
  const graph = document.querySelector('#network-graph');
  return graph && graph._cyreg && graph._cyreg.cy.nodes().length > 8;
}"""
_NODES = """() => document.querySelector('#network-graph')._cyreg.cy.nodes().map(
  (node) => [node.id(), node.classes().join(' '), node.data('color')])"""


def nodes(page: Any) -> dict[str, tuple[str, str]]:
    return {key: (classes, color) for key, classes, color in page.evaluate(_NODES)}


def click(page: Any, key: str) -> None:
    """Click on a node where it stands on the page."""
    at = page.evaluate(
        """(key) => {
          const cy = document.querySelector('#network-graph')._cyreg.cy;
          const node = cy.getElementById(key), box = cy.container().getBoundingClientRect();
          const at = node.renderedPosition();
          cy.container().closest('.network-frame').scrollIntoView({ block: 'center' });
          const moved = cy.container().getBoundingClientRect();
          return { x: moved.left + at.x, y: moved.top + at.y };
        }""",
        key,
    )
    page.mouse.click(at["x"], at["y"])


# On a wide screen the other tests here open and choose.
@pytest.mark.parametrize("width", [pytest.param(1440, marks=pytest.mark.slow), 390])
def test_the_network_opens_closes_and_chooses(visit: Callable[..., Any], width: int) -> None:
    there = visit(viewport={"width": width, "height": 900})
    page = there.go("/network?run=residual&close=layer1&close=layer2")
    direction = "LR" if width > 800 else "TB"
    there.until(f"() => document.querySelector('#network-place[data-direction={direction}]')")
    there.until(_READY)
    found = nodes(page)
    assert list(found) == ["input", "stem", "layer1", "layer2", "head"]
    assert all("closed" in classes for classes, _ in found.values())
    assert "layers in 5 nodes" in page.text_content("#network-caption")

    click(page, "layer1")
    there.until("() => location.search.includes('layers=')")
    assert page.input_value('input[id*="layers"]') == r"^layer1(?:[.#]|$)"
    there.until("() => document.querySelector('#network-graph')._cyreg.cy.nodes('.marked').length")
    link = page.locator('a[href^="/flow"]').first.get_attribute("href")
    assert "layers=%5Elayer1" in link

    click(page, "layer1")
    there.until("() => location.search.includes('open=layer1')")
    there.until(_MANY)
    assert "open" in nodes(page)["layer1"][0]
    # Wide enough to be read, whatever the width: the frame scrolls, the page does not.
    there.until(_READY)
    assert page.evaluate("() => document.querySelector('#network-graph')._cyreg.cy.zoom()") >= 0.8
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    there.assert_clean()


def test_a_click_hits_what_is_under_it_though_the_page_has_grown_above(
    visit: Callable[..., Any],
) -> None:
    there = visit(viewport={"width": 1440, "height": 900})
    page = there.go("/network?run=residual&close=layer1&close=layer2")
    there.until(_READY)
    page.evaluate("() => { document.querySelector('#content').style.paddingTop = '150px'; }")
    click(page, "layer1")
    there.until("() => location.search.includes('layers=')")
    assert page.input_value('input[id*="layers"]') == r"^layer1(?:[.#]|$)"
    there.assert_clean()


def test_without_a_mouse_the_table_does_what_clicks_do(visit: Callable[..., Any]) -> None:
    there = visit(viewport={"width": 1440, "height": 900})
    page = there.go("/network?run=residual&close=layer1")
    there.until(_READY)
    page.locator("summary").first.click()
    page.get_by_role("button", name="open layer1", exact=True).press("Enter")
    there.until("() => location.search.includes('open=layer1')")
    page.get_by_role("button", name="show layer1 alone", exact=True).press("Enter")
    there.until("() => location.search.includes('layers=')")
    # An address says it all: another visit shows the same.
    other = visit(viewport={"width": 1440, "height": 900})
    again = other.go(page.url.removeprefix(there.address))
    other.until(_READY)
    there.until("() => document.querySelector('#network-graph')._cyreg.cy.nodes('.marked').length")
    assert nodes(again) == nodes(page)
    there.assert_clean()


def test_colors_follow_the_step_and_the_quantity(visit: Callable[..., Any]) -> None:
    there = visit(viewport={"width": 1440, "height": 900})
    page = there.go("/network?run=diverged&step=10")
    there.until(_READY)
    before = nodes(page)
    there.go("/network?run=diverged&step=50")
    there.until(_READY)
    there.until("() => document.querySelector('#network-caption').textContent.includes('step 50')")
    assert before.keys() == nodes(page).keys()
    assert before["stem"] != nodes(page)["stem"]
    assert "not finite in" in page.text_content("#network-caption")
    there.assert_clean()


def test_a_reply_is_small(runs_dir: Any) -> None:
    client = create_app(runs_dir).server.test_client()
    body = {
        "output": "..network.data...network-caption.children...network-note.children..."
        "network-legend.children...network-table.children..",
        "outputs": [
            {"id": name, "property": prop}
            for name, prop in (
                ("network", "data"),
                ("network-caption", "children"),
                ("network-note", "children"),
                ("network-legend", "children"),
                ("network-table", "children"),
            )
        ],
        "inputs": [
            {"id": "search", "property": "data", "value": "?run=residual"},
            {"id": "step", "property": "data", "value": None},
            {"id": "revision", "property": "data", "value": ""},
            {"id": "scheme", "property": "data", "value": "light"},
            {"id": "narrow", "property": "data", "value": False},
        ],
        "changedPropIds": ["search.data"],
    }
    reply = client.post("/_dash-update-component", data=json.dumps(body), headers=_JSON)
    assert reply.status_code == 200
    assert len(reply.data) < 100_000


_JSON = {"Content-Type": "application/json", "Host": "127.0.0.1"}

"""Small pictures in the cards of Compare, and the list of findings over all runs."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from analyzer.analysis.findings import RULES, findings
from analyzer.analysis.verdict import verdict
from analyzer.dashboard import compare
from analyzer.dashboard.address import Address, context, parse
from analyzer.dashboard.finding_list import alerts, evidence_at
from analyzer.dashboard.library import Library, revision
from analyzer.dashboard.thumbnail import SIZE, thumbnail
from analyzer.figures.catalog import PANELS, page_of, panel
from analyzer.figures.sketch import Sketch, scatter
from analyzer.figures.theme import DARK, LIGHT
from analyzer.storage.run import open_run
from tests.dashboard.conftest import Visit
from tests.dashboard.test_dashboard_pages import PAIR
from tests.support.full_run import write_full_pair, write_network_run

Open = Callable[..., Visit]


def drawn(*traces: Any, **layout: Any) -> list[ElementTree.Element]:
    """The marks of a figure, without the frame of its plot."""
    return [*ElementTree.fromstring(thumbnail(Sketch(list(traces), layout).to_dict()))][1:]


def points(path: str) -> list[list[tuple[float, float]]]:
    pairs = [re.findall(r"([\d.]+),([\d.]+)", part) for part in path.split("M")[1:]]
    return [[(float(x), float(y)) for x, y in some] for some in pairs]


def test_a_line_is_where_its_numbers_are_and_ends_where_there_is_none() -> None:
    line = scatter(x=np.arange(5.0), y=np.array([1, 10, np.nan, 1000, 10000]), mode="lines")
    (path,) = drawn(line | {"line": {"color": "#123456"}}, yaxis={"type": "log"})
    first, second = points(path.attrib["d"])
    width, height = SIZE
    # A logarithmic axis of four decades: a quarter of the height each.
    left, right, top, bottom = first[0][0], second[1][0], second[1][1], first[0][1]
    assert (left + right, top + bottom) == pytest.approx((width, height))
    steps = [left + k * (right - left) / 4 for k in (0, 1, 3, 4)]
    heights = [bottom + k * (top - bottom) / 4 for k in (0, 1, 3, 4)]
    known = [place for some in (first, second) for place in some]
    assert [x for x, _ in known] == pytest.approx(steps, abs=0.06)
    assert [y for _, y in known] == pytest.approx(heights, abs=0.06)
    assert path.attrib["stroke"] == "#123456"


def test_cells_have_their_colors_and_what_is_no_number_none() -> None:
    heat = {"type": "heatmap", "z": np.array([[0.0, 1.0], [np.nan, 0.0]], np.float32)}
    heat |= {"x": np.arange(2.0), "y": np.arange(2.0), "coloraxis": "coloraxis"}
    scale = {"colorscale": [[0, "#000000"], [1, "#ffffff"]], "cmin": 0, "cmax": 1}
    cells = drawn(heat, coloraxis=scale)
    assert [cell.attrib["fill"] for cell in cells] == ["#000000", "#ffffff", "#000000"]
    low, right, high = ([float(cell.attrib[key]) for key in ("x", "y")] for cell in cells)
    # The first row of numbers is the lowest of the picture.
    assert low[0] < right[0] == high[0] and low[1] == right[1] > high[1]


def test_bars_begin_at_nothing_whichever_way_they_lie() -> None:
    tall, small = drawn({"type": "bar", "x": ["a", "b"], "y": np.array([4.0, 1.0])})
    assert float(tall.attrib["height"]) == pytest.approx(4 * float(small.attrib["height"]), abs=0.3)
    flat = {"type": "bar", "orientation": "h", "y": ["a", "b"], "x": np.array([4.0, 1.0])}
    long, short = drawn(flat)
    assert float(long.attrib["width"]) == pytest.approx(4 * float(short.attrib["width"]), abs=0.3)


def test_a_color_cannot_be_markup_and_nothing_is_an_empty_picture() -> None:
    text = 'red"/><script>'
    (path,) = drawn(scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": text}))
    assert path.attrib["stroke"] == text
    assert ElementTree.fromstring(thumbnail({"data": [], "layout": {}})).tag.endswith("svg")


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_figure_of_a_claim_is_drawn_in_a_few_kilobytes(tmp_path: Path, theme: Any) -> None:
    from analyzer.analysis.view import View

    pair = tuple(map(open_run, write_full_pair(tmp_path)))
    keys = {claim.panel for claim in verdict(*pair).claims if claim.status != "not measured"}
    assert len(keys) > 5
    for key in keys:
        made = panel(key).made(panel(key).info(View(pair)), theme)
        picture = thumbnail(made.to_dict())
        marks = [*ElementTree.fromstring(picture)]
        assert len(marks) > 1 and len(picture) < 60_000, key


def test_a_claim_has_a_picture_that_leads_to_its_step_and_figure(
    visit: Open, runs_dir: Path
) -> None:
    shown = visit()
    page = shown.go("/compare" + PAIR)
    shown.until("document.querySelectorAll('.claim-cards .card').length > 0")
    found = verdict(*(open_run(runs_dir / name) for name in ("plain", "residual")))
    measured = [one for one in found.claims if one.status != "not measured"]
    shown.until(
        f"(() => {{ const all = [...document.querySelectorAll('.show-me img')];"
        f"return all.length === {len(measured)} && all.every((one) => one.naturalWidth > 0); }})()"
    )
    claim = next(one for one in measured if one.panel == "shattering")
    cards = page.locator(".claim-cards .card", has_text=claim.question)
    assert cards.locator(".show-me").text_content().endswith(f", step {claim.steps[0]:,}")
    cards.locator(".show-me img").click()
    page.wait_for_selector("[data-panel=shattering]")
    assert f"step={claim.steps[0]}#title-shattering" in page.url
    shown.until("document.querySelector('.card.pointed')?.dataset.panel === 'shattering'")
    shown.assert_clean()


def judged(folder: Path) -> Library:
    """A library that has looked at every run."""
    library = Library([folder])
    listed = library.listing()
    end = time.monotonic() + 30
    while None in [library.word(run.summary.path, revision(run.summary.path)) for run in listed]:
        assert time.monotonic() < end
        time.sleep(0.02)
    return library


def test_alerts_name_each_kind_once_with_its_runs_the_worst_first(tmp_path: Path) -> None:
    write_full_pair(tmp_path)
    write_network_run(tmp_path / "plain-2", has_shortcuts=False, probes=False)
    write_network_run(tmp_path / "diverged", has_shortcuts=True, probes=False, nan_from=30)
    library = judged(tmp_path)
    listed = library.listing()
    (shown,) = alerts(library, listed)
    found = {run.id: findings(open_run(run.summary.path)) for run in listed}
    kinds = {(one.severity, one.code) for some in found.values() for one in some}
    alarming = {kind for kind in kinds if kind[0] != "note"}
    rows = shown.children[1].children
    said = [row.children[1].children[0].children for row in rows]
    assert len(said) == len(alarming) and set(said) == {code for _, code in alarming}
    severities = [row.children[0].children for row in rows]
    assert severities == sorted(severities, key=["severe", "warning"].index)
    for row in rows:
        code = row.children[1].children[0].children
        links = [one for one in row.children[1].children if getattr(one, "href", None)]
        names = {name for name, some in found.items() if code in {one.code for one in some}}
        assert {one.children for one in links} == names
        for link in links:
            (finding,) = [one for one in found[link.children] if one.code == code]
            address, _, place = link.href.partition("#")
            asked = parse(address.partition("?")[2])
            assert asked == Address(
                (link.children,), step=finding.steps[0], chosen=finding.layers[:1]
            )
            key = next(rule.panel for rule in RULES if rule.code == code)
            assert place == f"title-{key}" and address.startswith(page_of(key).path)
    assert "Findings in " in shown.children[0].children


def test_without_anything_alarming_there_is_no_list(tmp_path: Path) -> None:
    write_network_run(tmp_path / "fine", has_shortcuts=True, probes=False)
    library = judged(tmp_path)
    severities = {one.severity for one in findings(open_run(tmp_path / "fine"))}
    assert severities <= {"note"} and alerts(library, library.listing()) == []


def test_every_finding_leads_to_a_panel_of_a_page(tmp_path: Path) -> None:
    run = write_network_run(tmp_path / "plain", has_shortcuts=False, probes=False)
    for one in findings(open_run(run)):
        href = evidence_at(Address(("plain",)), one)
        assert href.rpartition("#title-")[2] in {each.key for each in PANELS}


def test_a_question_asked_of_several_moments_says_of_which_and_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_full_pair(tmp_path)
    pair = [open_run(tmp_path / name) for name in ("plain", "residual")]
    found = verdict(*pair)
    (vanishing,) = [one for one in found.claims if one.key == "vanishing"]
    median = replace(
        vanishing,
        key="vanishing_median",
        when="median over steps 0 to 40",
        steps=(0, 20, 40),
    )
    both = replace(found, claims=(*found.claims, median))
    monkeypatch.setattr(compare, "verdict", lambda *runs: both)
    shown = context(Library([tmp_path]), parse("?run=plain&run=residual"))
    while (made := compare.verdict_of(shown)) is None:
        time.sleep(0.02)
    cards = made[1][1].children
    heads = [card.children[0].children[0].children for card in cards]
    said = ["".join(getattr(part, "children", part) for part in head) for head in heads]
    assert len(set(said)) == len(said)
    for claim, words in zip(both.claims, said, strict=True):
        asked = claim.question == vanishing.question
        assert words == claim.question + (f" ({claim.when})" if asked else "")
    # The picture of a median is that of a step in the middle, not of the first.
    links = [str(card.children[-1]) for card in cards]
    assert "step=20" in links[-1]
    assert f"step={vanishing.steps[0]}" in links[found.claims.index(vanishing)]

"""The table of runs: sorted by any column, with the arguments that differ, quick for thousands."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analyzer.dashboard.library import Library
from analyzer.dashboard.run_list import run_table
from tests.dashboard.conftest import serving
from tests.support.runs import write_run
from tests.support.timing import undisturbed

RATES = {"a": "0.1", "b": "0.003", "c": "0.02"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one script, which differ in one argument and in a flag."""
    folder = tmp_path_factory.mktemp("sweep")
    for place, (name, rate) in enumerate(RATES.items()):
        argv = ["train.py", "--lr", rate, "--depth=20", *(["--fast"] if name == "c" else [])]
        write_run(folder / name, [3.0 - place] * 3, [[1.0, 2.0]] * 3, argv=argv)
    return folder


def table_of(runs: Path) -> dict[str, Any]:
    parts = [part for part in run_table(Library([runs])) if getattr(part, "id", "") == "run-rows"]
    found: dict[str, Any] = parts[0].data
    return found


def test_arguments_are_columns_where_they_differ(sweep: Path) -> None:
    data = table_of(sweep)
    assert data["columns"][-2:] == ["lr", "fast"] or data["columns"][-2:] == ["fast", "lr"]
    at = data["columns"].index("lr") - 3
    assert {row["name"]: row["cells"][at] for row in data["rows"]} == RATES
    assert {row["name"]: row["ordered"][at] for row in data["rows"]} == {
        name: float(rate) for name, rate in RATES.items()
    }
    fast = data["columns"].index("fast") - 3
    assert {row["name"]: row["cells"][fast] for row in data["rows"]} == {
        "a": "–", "b": "–", "c": "yes",
    }  # fmt: skip


@pytest.mark.parametrize("width", [1440, 390])
def test_a_click_sorts_and_the_address_holds_it(
    visit: Callable[..., Any], sweep: Path, width: int
) -> None:
    with serving(sweep) as url:
        there = visit(url, viewport={"width": width, "height": 900})
        page = there.go("/runs")
        there.until("() => document.querySelectorAll('#run-table tbody tr').length === 3")

        def names() -> list[str]:
            found: list[str] = page.locator("#run-table tbody th").all_text_contents()
            return found

        head = page.get_by_role("button", name="lr", exact=True)
        head.click()
        assert names() == ["b", "c", "a"]
        assert page.locator('th[aria-sort="ascending"]').text_content().startswith("lr")
        page.get_by_role("button", name="lr ↑").click()
        assert names() == ["a", "c", "b"]
        assert "sort=-lr" in page.url
        again = visit(url, viewport={"width": width, "height": 900})
        page = again.go("/runs?sort=-last+loss")
        again.until("() => document.querySelectorAll('#run-table tbody tr').length === 3")
        assert names() == ["a", "b", "c"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        there.assert_clean()


def test_the_address_follows_the_step_while_it_is_dragged(visit: Callable[..., Any]) -> None:
    there = visit(viewport={"width": 1440, "height": 900})
    page = there.go("/flow?run=plain")
    # Before its steps have come there is nothing to choose from.
    there.until("() => document.querySelector('#step-output')?.textContent.includes('(last)')")
    page.evaluate(
        """() => {
          const range = document.querySelector('#step-range');
          range.value = '7';
          range.dispatchEvent(new Event('input', { bubbles: true }));
        }"""
    )
    there.until("() => location.search.includes('step=')", seconds=5)
    there.assert_clean()


@pytest.mark.alone
def test_five_thousand_runs_are_listed_in_two_seconds(tmp_path: Path) -> None:
    made = write_run(tmp_path / "first", [1.0], [[1.0]], argv=["train.py", "--lr", "1"])
    manifest = json.loads((made / "run.json").read_text())
    for place in range(5_000):
        folder = tmp_path / f"run-{place}"
        folder.mkdir()
        argv = ["train.py", "--lr", str(place)]
        (folder / "run.json").write_text(json.dumps(manifest | {"argv": argv}))
    library = Library([tmp_path])
    with undisturbed():
        began = time.process_time()
        shown = run_table(library)
        first = time.process_time() - began
    assert "5,001 runs" in shown[0].children
    assert first < 2
    with undisturbed():
        began = time.process_time()
        library.listing()
        second = time.process_time() - began
    # Nothing has changed: no manifest is read again.
    assert second < max(0.6, 0.6 * first)

"""States that a reader brings about: each fits every width, and axe finds nothing serious in it."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.dashboard.conftest import HOSTILE, Visit, serving
from tests.dashboard.test_dashboard_many import assert_fits
from tests.support.full_run import write_full_pair
from tests.support.hostile_studies import write_study
from tests.support.runs import write_run

PAIR = "?run=plain&run=residual"
Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a pair, a run with tags, and pages that write them."""
    folder = tmp_path_factory.mktemp("edited")
    write_full_pair(folder)
    write_run(folder / "tagged", [1.0, 0.5], [[1.0, 2.0]] * 2, argv=["t.py", "--lr", "1"])
    (folder / "tagged" / "notes.json").write_text('{"tags": ["baseline"], "text": "as in 1"}')
    with serving(folder, edit=True) as url:
        yield url


@pytest.fixture(scope="module")
def of_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("study")
    with serving(write_study(folder / "s", folder / "outside")) as url:
        yield url


def slow(*given: Any) -> Any:
    return pytest.param(*given, marks=pytest.mark.slow)


def alerts_are_there(there: Visit) -> None:
    there.until("() => document.querySelector('#run-list').textContent.includes('vanishing')")


def notes_are_open(there: Visit) -> None:
    there.page.get_by_text("Tags and notes of tagged").click()
    there.page.get_by_role("textbox", name="Notes", exact=True).fill("a longer note " * 20)
    there.page.get_by_role("button", name="save tags and notes of tagged").click()
    there.until("() => document.body.textContent.includes('Saved in notes.json.')")


def help_is_open(there: Visit) -> None:
    there.page.keyboard.press("?")
    there.page.get_by_role("dialog").wait_for()


def choices_are_open(there: Visit) -> None:
    there.page.get_by_role("textbox", name="runs shown").click()
    there.page.get_by_role("option").first.wait_for()


def a_node_is_chosen(there: Visit) -> None:
    there.until("() => document.querySelector('#network-caption').textContent.includes('step')")


def nothing(there: Visit) -> None:
    """The page as it is opened."""


@pytest.mark.parametrize(
    ("where", "path", "come"),
    [
        ("edited", "/runs", alerts_are_there),
        ("edited", "/findings?run=tagged", notes_are_open),
        slow("of_study", "/study", nothing),
        slow("of_study", "/runs", nothing),
        slow("edited", "/" + PAIR, help_is_open),
        slow("edited", "/training" + PAIR, choices_are_open),
        slow("edited", "/compare" + PAIR, nothing),
        slow("edited", "/flow" + PAIR + "&pin=stem&pin=head&layers=block", nothing),
        slow("edited", "/flow?run=plain&layers=zzz", nothing),
        slow("edited", "/network?run=residual&layer=stem", a_node_is_chosen),
        slow("edited", "/nosuch", nothing),
        slow(None, "/?run=nosuch", nothing),
        slow(None, "/?run=newer", nothing),
        slow(None, "/?run=torn", nothing),
        slow(None, "/?run=empty", nothing),
        slow(None, "/?run=diverged", nothing),
        slow(None, "/training?run=diverged", nothing),
        slow(None, "/flow?run=corrupt", nothing),
        slow(None, "/runs", alerts_are_there),
        slow(None, "/flow?run=" + quote(HOSTILE.replace("/", "")), nothing),
        slow(None, "/network?run=" + quote(HOSTILE.replace("/", "")), nothing),
    ],
)
def test_a_state_fits_every_width_and_has_nothing_serious(
    visit: Open,
    request: pytest.FixtureRequest,
    address: str,
    where: str | None,
    path: str,
    come: Callable[[Visit], None],
) -> None:
    there = visit(
        request.getfixturevalue(where) if where else address,
        viewport={"width": 1440, "height": 900},
    )
    there.go(path)
    there.settle()
    come(there)
    assert_fits(there)
    there.assert_clean()

"""Tags and notes: written only where that was asked for, only by a page of this server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from analyzer.dashboard.address import context, parse
from analyzer.dashboard.app import create_app
from analyzer.dashboard.library import Library
from analyzer.dashboard.notes import header
from analyzer.dashboard.run_list import run_table
from analyzer.dashboard.security import MOST_BYTES
from analyzer.storage.notes import read_notes, write_notes
from tests.dashboard.conftest import HOSTILE, serving
from tests.support.runs import write_run

HOST = {"Host": "127.0.0.1:8050"}
OWN = HOST | {"Origin": "http://127.0.0.1:8050"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "good", [1.0, 0.5], [[1.0, 2.0]] * 2)
    return tmp_path / "runs"


def save(client: FlaskClient, run: str, tags: Any, text: Any, **how: Any) -> Any:
    """Ask for what the button of the form asks for."""

    def of(kind: str) -> dict[str, str]:
        return {"key": run, "type": kind}

    def named(kind: str) -> str:
        return json.dumps(of(kind), separators=(",", ":"), sort_keys=True)

    spec = client.get("/_dash-dependencies", headers=HOST).get_json()
    known = [one["output"] for one in spec if "notes-saved" in one["output"]]
    body = {
        "output": known[0] if known else f"{named('notes')}.children",
        "outputs": [{"id": of(k), "property": "children"} for k in ("notes-saved", "notes")],
        "inputs": [{"id": of("notes-save"), "property": "n_clicks", "value": 1}],
        "state": [
            {"id": of("notes-tags"), "property": "value", "value": tags},
            {"id": of("notes-text"), "property": "value", "value": text},
            {"id": of("notes"), "property": "id", "value": of("notes")},
        ],
        "changedPropIds": [f"{named('notes-save')}.n_clicks"],
    }
    sent: dict[str, Any] = {"json": body, "headers": OWN} | how
    if "data" in sent:
        sent["data"] = json.dumps(sent.pop("json"))
    return client.post("/_dash-update-component", **sent)


def test_a_page_of_this_server_writes_what_it_was_told(folder: Path) -> None:
    client = create_app(folder, edit=True).server.test_client()
    answer = save(client, "good", ["baseline"], "as in the paper")
    assert answer.status_code == 200 and "Saved in notes.json" in answer.text
    found = read_notes(folder / "good")
    assert (found.tags, found.text) == (("baseline",), "as in the paper")


def test_without_being_asked_for_nothing_writes(folder: Path) -> None:
    client = create_app(folder).server.test_client()
    assert save(client, "good", ["x"], "").status_code >= 400
    assert not (folder / "good" / "notes.json").exists()


@pytest.mark.parametrize(
    "how",
    [
        {"headers": HOST},
        {"headers": HOST | {"Origin": "null"}},
        {"headers": HOST | {"Origin": "http://evil.example"}},
        {"headers": HOST | {"Origin": "http://127.0.0.1:9999"}},
        {"headers": OWN | {"Host": "evil.example"}},
        {"headers": OWN | {"Sec-Fetch-Site": "cross-site"}},
        {"headers": OWN, "data": True, "content_type": "text/plain"},
        {"headers": OWN, "data": True, "content_type": "application/x-www-form-urlencoded"},
    ],
)
def test_any_other_request_writes_nothing(folder: Path, how: dict[str, Any]) -> None:
    client = create_app(folder, edit=True).server.test_client()
    assert save(client, "good", ["x"], "", **how).status_code in (400, 403)
    assert not (folder / "good" / "notes.json").exists()


@pytest.mark.parametrize("run", ["../good", "nosuch", "", "good/../good"])
def test_no_name_leads_out_of_the_listing(folder: Path, run: str) -> None:
    write_run(folder.parent / "good", [1.0], [[1.0]])
    client = create_app(folder, edit=True).server.test_client()
    assert save(client, run, ["x"], "").status_code == 404
    assert [*folder.parent.rglob("notes.json")] == []


def test_what_is_too_long_is_said_and_not_written(folder: Path) -> None:
    client = create_app(folder, edit=True).server.test_client()
    answer = save(client, "good", ["x" * 50], "")
    assert answer.status_code == 200 and "Not saved: a tag is" in answer.text
    assert not (folder / "good" / "notes.json").exists()


TEXTS = {
    "markup": ([HOSTILE[:40], "</script>"], f"<script>window.hacked=1</script>{HOSTILE}"),
    "formula": (["=1+1", "@SUM(A1)"], "=cmd|' /C calc'!A0\r=2"),
    "control": (["\x1b[2J", "a\0b", "\u202egpj"], "\x1b]52;c;cm0=\x07\x9b31m\r\n\x85"),
    "halves": (["\ud800", "\udfff"], "\ud800 and \udc00"),
    "ours": (["__proto__", "constructor"], "{{7*7}} %{customdata} $$x$$"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_any_text_is_kept_and_shown_as_text(folder: Path, kind: str) -> None:
    tags, text = TEXTS[kind]
    client = create_app(folder, edit=True).server.test_client()
    answer = save(client, "good", tags, text)
    assert answer.status_code == 200 and "Saved in notes.json" in answer.text
    found = read_notes(folder / "good")
    assert (found.tags, found.text) == (tuple(tags), text.strip())
    (folder / "good" / "notes.json").read_bytes().decode("ascii")
    library = Library([folder], may_write=True)
    seen = context(library, parse("?run=good"))
    for shown in (
        answer.text,
        str(run_table(library)),
        str(header(seen)[0].children[0].children[0]),
    ):
        shown.encode()
        assert not {"\x1b", "\x9b", "\u202e", "\0", "\x85"} & {*shown}


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ([f"tag {k}" for k in range(10_000)], ""),
        (["x"], "y" * 900_000),
        ({"a": 1}, ""),
        ([["x"]], ""),
        ([None], ""),
        (["x"], ["a"]),
        (["x"], {"a": "b"}),
        (7, ""),
    ],
)
def test_what_is_no_note_is_not_written(folder: Path, tags: Any, text: Any) -> None:
    client = create_app(folder, edit=True).server.test_client()
    answer = save(client, "good", tags, text)
    assert answer.status_code == 200 and "Not saved: " in answer.text and len(answer.text) < 2_000
    assert not (folder / "good" / "notes.json").exists()


def test_a_body_that_is_too_large_writes_nothing(folder: Path) -> None:
    client = create_app(folder, edit=True).server.test_client()
    assert save(client, "good", ["x"], "y" * MOST_BYTES).status_code in (400, 413)
    assert not (folder / "good" / "notes.json").exists()


def test_nothing_is_written_through_a_link(folder: Path) -> None:
    """Neither one in place of the file, nor a run that lies elsewhere, nor one with links in it."""
    secret = folder.parent / "secret.json"
    secret.write_text("mine")
    elsewhere = write_run(folder.parent / "elsewhere", [1.0], [[1.0]])
    (folder / "linked").symlink_to(elsewhere)
    (folder / "good" / "notes.json").symlink_to(secret)
    client = create_app(folder, edit=True).server.test_client()
    assert save(client, "linked", ["x"], "").status_code == 404
    assert save(client, "good", ["x"], "").status_code == 200
    assert secret.read_text() == "mine" and not (elsewhere / "notes.json").exists()
    assert not (folder / "good" / "notes.json").is_symlink()
    # Where the folder is replaced by a link after the page was opened.
    (folder / "good").rename(folder.parent / "kept")
    (folder / "good").symlink_to(elsewhere)
    assert save(client, "good", ["y"], "").status_code == 404
    assert not (elsewhere / "notes.json").exists()


def test_the_list_shows_and_finds_tags(folder: Path) -> None:
    write_run(folder / "other", [1.0], [[1.0]])
    write_notes(folder / "good", ["baseline", HOSTILE[:40]], "a\nnote")
    library = Library([folder])

    def rows(wanted: str) -> dict[str, Any]:
        (store,) = [p for p in run_table(library, wanted) if getattr(p, "id", "") == "run-rows"]
        assert store.data["columns"][-2:] == ["tags", "notes"]
        return {row["run"]: row["cells"][-2:] for row in store.data["rows"]}

    assert rows("")["good"] == [f"baseline, {HOSTILE[:40]}", "a note"]
    assert rows("")["other"] == ["", ""]
    assert [*rows("baseline")] == ["good"]


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("edited")
    write_run(folder / "good", [1.0, 0.5], [[1.0, 2.0]] * 2)
    with serving(folder, edit=True) as url:
        yield url


@pytest.mark.parametrize("width", [1440, 390])
def test_a_reader_tags_a_run_and_finds_it_in_the_list(
    visit: Callable[..., Any], edited: str, width: int
) -> None:
    there = visit(edited, viewport={"width": width, "height": 900})
    page = there.go("/training?run=good")
    page.get_by_text("Tags and notes of good").click()
    page.get_by_role("textbox", name="Tags", exact=True).fill(f"w{width}")
    page.get_by_role("textbox", name="Tags", exact=True).press("Enter")
    page.get_by_role("textbox", name="Notes", exact=True).fill(HOSTILE)
    page.get_by_role("button", name="save tags and notes of good").click()
    there.until("() => document.body.textContent.includes('Saved in notes.json.')")
    shown = "[...document.querySelectorAll('.notes .tag')].map((one) => one.textContent)"
    there.until(f"() => {shown}.includes('w{width}')")
    assert page.evaluate("window.hacked") is None
    page = there.go(f"/runs?find=w{width}")
    there.until("() => document.querySelectorAll('#run-table tbody tr').length === 1")
    assert HOSTILE[:20] in page.text_content("#run-table")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    there.assert_clean()

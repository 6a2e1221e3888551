import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest

from analyzer.analysis.numerals import age_text
from analyzer.dashboard.address import Address, context, parse, query
from analyzer.dashboard.cache import Cache
from analyzer.dashboard.components import explained, lacking
from analyzer.dashboard.controls import blocks
from analyzer.dashboard.drawing import shown, step_choices
from analyzer.dashboard.layout import page_content
from analyzer.dashboard.library import Library, pulse
from analyzer.dashboard.run_list import run_table
from analyzer.dashboard.server import ssh_line, take_port
from analyzer.errors import AnalyzerError, RunNotFoundError
from analyzer.figures.catalog import PAGES
from analyzer.figures.panels import Page
from analyzer.vocabulary import GLOSSARY
from tests.support.runs import write_run


def test_an_address_survives_its_own_query_string() -> None:
    address = Address(
        runs=("a b", "ü&="),
        step=12,
        quantity="gradient_norm",
        layers=r"^layer1\.",
        aggregate="max",
        relative=True,
        smooth=99,
        over="epoch",
        log_x=True,
        scale="log",
        few=("one", "b~2"),
        group="all but the seed",
        chosen=("fc", "x#1"),
        pinned=("a&b",),
        opened=("layer1",),
        closed=("layer2", "layer3"),
        find="lr 0.1",
        columns=("lr", "last accuracy"),
        run_of="ü&=",
        kept=(("sort", "-lr"), ("zoom-epoch", "1,2")),
    )
    usual = Address()
    assert [
        f.name for f in fields(Address) if getattr(address, f.name) == getattr(usual, f.name)
    ] == []
    assert parse(query(address)) == address
    assert query(Address()) == ""
    assert query(Address(runs=("mine",), step=0)) == "?run=mine&step=0"


@pytest.mark.parametrize(
    "search",
    [
        *("?step=-1", "?step=1e3", "?step=٣", "?quantity=A;B", "?bins=sum", "?relative=yes"),
        *("?x=days", "?y=cubic", "?logx=yes", "?smooth=-3", "?smooth=0.5", "?zoom-width=1", "?%zz"),
    ],
)
def test_what_is_malformed_in_an_address_is_not_given(search: str) -> None:
    assert parse(search) == Address()


def test_an_address_keeps_a_bounded_number_of_runs_and_layers() -> None:
    search = "&".join(f"run={k}&layer={k}" for k in range(500))
    address = parse(search)
    assert len(address.runs) == 32 and len(address.chosen) == 24


def test_runs_of_two_folders_with_one_name_have_two_ids(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_run(tmp_path / folder / "same", [1.0], [[1.0]])
    library = Library([tmp_path / "one", tmp_path / "two"])
    assert sorted(run.id for run in library.listing()) == ["same", "same~2"]
    assert library.open("same").path != library.open("same~2").path


def test_a_single_run_can_be_a_source(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1.0], [[1.0]])
    write_run(tmp_path / "b", [1.0], [[1.0]])
    assert [run.id for run in Library([tmp_path / "a"]).listing()] == ["a"]


def test_a_run_is_opened_once_until_it_changes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [1.0], [[1.0]])
    library = Library([tmp_path])
    first = library.open("a")
    assert library.open("a") is first
    (path / "run.json").write_text((path / "run.json").read_text() + "\n")
    assert library.open("a") is not first


def test_a_missing_run_is_named_with_the_place_that_was_searched(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match=f"no run 'x' in '{re.escape(str(tmp_path))}'"):
        Library([tmp_path]).open("x")


def test_a_folder_that_is_not_there_yet_has_no_runs_and_then_has(tmp_path: Path) -> None:
    library = Library([tmp_path / "later"])
    assert library.listing() == []
    write_run(tmp_path / "later" / "a", [1.0], [[1.0]])
    assert [run.id for run in library.listing()] == ["a"]


def test_the_pulse_changes_with_the_run_and_with_nothing_else(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [1.0], [[1.0]])
    library = Library([tmp_path])
    first = pulse(library, ["a"])
    assert first == pulse(library, ["a"]) and first.is_over and first.text == "a: finished"
    (path / "probes" / "paths").mkdir(parents=True)
    assert pulse(library, ["a"]).mark != first.mark


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1.0], [[1.0]])
    library = Library([tmp_path])
    before = pulse(library, ["a", "b"])
    assert not before.is_over
    assert pulse(library, ["b"]) == pulse(library, ["c"])  # the steps of others change nothing
    write_run(tmp_path / "b", [1.0], [[1.0]])
    after = pulse(Library([tmp_path]), ["a", "b"])
    assert after.is_over and after.mark != before.mark


def test_a_running_run_says_how_old_its_last_rows_are(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1.0] * 3, [[1.0]] * 3, status=None)
    beat = pulse(Library([tmp_path]), ["a"])
    assert not beat.is_over
    assert re.fullmatch(r"a: running, 3 steps, updated \d+ s ago", beat.text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0 s"), (59, "59 s"), (7300, "2 h"), (1e6, "11 d")]
)
def test_an_age_is_rounded_down_to_its_largest_unit(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_blocks_are_what_stands_before_a_dot() -> None:
    names = ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1#1"]
    assert blocks(names) == ["layer1", "layer1.0", "layer1.1"]


def test_a_taken_port_is_refused_and_without_a_wish_the_next_is_taken() -> None:
    first = take_port()
    try:
        with pytest.raises(AnalyzerError, match=rf"cannot listen at 127.0.0.1, port {first.port}"):
            take_port(port=first.port)
        second = take_port()
        assert second.port > first.port >= 8050
        second.socket.close()
    finally:
        first.socket.close()


def test_over_ssh_the_line_forwards_the_port() -> None:
    assert ssh_line(8050, {}) is None
    over = {"SSH_CONNECTION": "10.0.0.9 50000 10.0.0.1 22"}
    assert ssh_line(8051, over) == "ssh -N -L 8051:127.0.0.1:8051 10.0.0.1"


def test_a_record_is_computed_once_for_two_who_ask_at_a_time() -> None:
    calls: list[int] = []

    def info() -> str:
        calls.append(1)
        time.sleep(0.2)
        return f"record {len(calls)}"

    cache = Cache(records=8)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: cache.get("records", "overview", info), range(4)))
    assert found == ["record 1"] * 4 and len(calls) == 1
    assert cache.get("records", "another", info) == "record 2"


def test_what_cannot_be_computed_is_asked_for_again() -> None:
    cache = Cache(records=8)

    def fails() -> None:
        raise AnalyzerError("not yet")

    with pytest.raises(AnalyzerError, match="not yet"):
        cache.get("records", "overview", fails)
    assert cache.get("records", "overview", lambda: 7) == 7


def test_a_kind_keeps_its_last_values_and_no_others() -> None:
    cache = Cache(records=2, figures=2)
    for key in range(3):
        cache.put("records", key, key)
    cache.put("figures", 0, "mine")
    assert [cache.peek("records", key) for key in range(3)] == [None, 1, 2]
    assert cache.peek("figures", 0) == "mine" and cache.count("records") == 2


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("Does a step stay below the edge of stability?", "edge of stability"),
        ("The sharpness is 3.", "sharpness"),
        ("Loss of all lesions.", "lesion"),
        ("Is the Jacobian of the network better conditioned?", "Jacobian"),
        ("its condition number is 5", "condition number"),
    ],
)
def test_words_that_a_newcomer_does_not_know_say_what_they_are(text: str, term: str) -> None:
    (mark,) = [part for part in explained(text) if not isinstance(part, str)]
    assert mark.children in (term, f"{term}s") and mark.title == GLOSSARY[term]


def test_terms_say_what_they_mean_where_they_come_first() -> None:
    # A name that is a part of another word is not meant.
    text = "deep-0 is sick: its gradient falls from 12 to 0."
    marks = [one for one in explained(text, {"0": "the first"}) if not isinstance(one, str)]
    assert [(one.children, one.title) for one in marks] == [("0", "the first")]
    parts = explained("An arc per join; the shortcut share of joins, decades wide.")
    terms = {part.children: part.title for part in parts if not isinstance(part, str)}
    assert list(terms) == ["join", "shortcut share", "decades"]
    assert terms["decades"] == GLOSSARY["decade"]
    text = "".join(part if isinstance(part, str) else part.children for part in parts)
    assert text == "An arc per join; the shortcut share of joins, decades wide."


def test_a_long_list_shows_the_newest_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.dashboard.run_list._MOST_ROWS", 50)
    for number in range(60):
        write_run(tmp_path / f"run-{number}", [1.0], [[1.0]])
    library = Library([tmp_path])
    head, rows, *_ = run_table(library)
    assert head.children == "60 runs, the newest 50 of them here: filter for the others"
    assert [row["run"] for row in rows.data["rows"]] == [f"run-{k}" for k in range(59, 9, -1)]
    (found, *_) = run_table(library, "run-7")
    assert found.children == "1 of 60 runs"


def failed_run(path: Path) -> Path:
    return write_run(path, [1.0, 0.5], [[1.0, 2.0]] * 2, status="failed", error="OOM at step 2")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.key)
def test_every_page_says_that_a_run_failed_or_is_damaged(page: Page, tmp_path: Path) -> None:
    failed_run(tmp_path / "failed")
    damaged = write_run(tmp_path / "damaged", [1.0] * 3, [[1.0, 2.0]] * 3)
    for part in damaged.glob("layer_stats/*.parquet"):
        part.write_bytes(part.read_bytes()[:40])
    write_run(tmp_path / "sound", [1.0] * 3, [[1.0, 2.0]] * 3)
    library = Library([tmp_path])
    for name, words in (("failed", "OOM at step 2"), ("damaged", "cannot be read"), ("sound", "")):
        seen = context(library, Address((name,)))
        text = str(page_content(page, page.path, seen))
        assert words in text
        assert ("cannot be read" in text) == (name == "damaged")


def test_what_was_not_measured_is_one_line_with_one_command_to_copy(tmp_path: Path) -> None:
    write_run(tmp_path / "mine", [1.0, 0.5], [[1.0, 2.0]] * 2)
    seen = context(Library([tmp_path]), Address(("mine",)))
    for key, probe in (("lesion", "lesion"), ("path_spectrum", "paths"), ("jacobian", "jacobian")):
        line = lacking(shown(key, seen, "light").problem)
        parts = [
            part.to_plotly_json()["props"] for part in line.children if not isinstance(part, str)
        ]
        (command,) = [props["data-copy"] for props in parts if "data-copy" in props]
        assert command == f"analyzer probe mine {probe} --replay"
        assert [props["children"] for props in parts if "data-copy" not in props] == [command]


def test_the_slider_knows_which_step_stands_for_the_final_weights(runs_dir: Path) -> None:
    library = Library([runs_dir])
    seen = context(library, parse("?run=plain&run=residual"))
    found = step_choices(seen, "/landscape")
    assert found is not None and found["final"] == 60 == found["steps"][-1] + 1

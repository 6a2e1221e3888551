"""A stranger's run folder, opened by every command and on every page, is read and nothing else."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from analyzer.analysis.network import network
from analyzer.analysis.network_view import network_view
from analyzer.cli import COMMANDS, main
from analyzer.dashboard.address import Address, context, parse, query
from analyzer.dashboard.app import create_app
from analyzer.dashboard.drawing import recorded, shown, step_choices
from analyzer.dashboard.finding_list import finding_list
from analyzer.dashboard.library import Library
from analyzer.dashboard.notes import header
from analyzer.dashboard.run_list import run_table
from analyzer.dashboard.server import LESSON, Server
from analyzer.dashboard.study_page import study_cards
from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.figures.catalog import PAGES, PANELS
from analyzer.figures.csv_text import csv_text
from analyzer.storage.pairs import arguments
from analyzer.storage.run_json import FIELDS, read_manifest
from tests.dashboard.conftest import Visit, serving
from tests.support.hostile import ATTACKS, MARKUP, write_attack
from tests.support.runs import write_run

# Of each kind one that once came through; the others take longer.
SAMPLE = {
    *("folder_not_utf8", "folder_lines", "names_not_utf8", "names_formula", "manifest_types"),
    *("manifest_surrogates", "manifest_pipe", "table_nulls", "steps_span", "columns_logged"),
    *("probe_types", "names_deep", "names_of_ours", "edges_cyclic"),
    *("notes_escapes", "arguments_hostile", "overview_types", "noted_lists"),
}
EACH = [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in ATTACKS]
_FORBIDDEN = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile"),
    *("pickle.find_class", "socket.connect", "webbrowser.open"),
}
_watched: list[tuple[Path, list[str]]] = []


def _audit(event: str, details: tuple[Any, ...]) -> None:
    """Note what a process does that a reader of run folders never needs to do."""
    if not _watched:
        return
    folder, seen = _watched[-1]
    if event in _FORBIDDEN:
        seen.append(f"{event} {details}"[:300])
    elif event in ("exec", "compile"):
        name = getattr(details[0], "co_filename", None) or details[-1]
        if str(folder) in str(name):
            seen.append(f"{event} of {name}")
    elif event == "open" and isinstance(details[0], str | bytes):
        path, flags = os.fsdecode(details[0]), details[2] or 0
        is_written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if path == "/etc/passwd" or (is_written and path.startswith(str(folder))):
            seen.append(f"open of {path}")


sys.addaudithook(_audit)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Fail where something is executed, loaded as code, sent, or written into the folder."""
    seen: list[str] = []
    _watched.append((folder, seen))
    try:
        yield
    finally:
        _watched.pop()
    assert seen == []
    assert not Path("/tmp/analyzer-owned").exists()


def _state(folder: Path) -> dict[bytes, int]:
    names = [os.fsencode(os.path.join(place, n)) for place, _, ns in os.walk(folder) for n in ns]
    return {name: os.lstat(name).st_mtime_ns for name in names}


def _query(run_id: str) -> str:
    return "?" + urlencode({"run": run_id})


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"compile of .*evil"), watched(tmp_path):
        exec(compile("1", str(tmp_path / "evil.py"), "exec"))
    with pytest.raises(AssertionError, match=r"os\.system"), watched(tmp_path):
        os.system("true")
    with pytest.raises(AssertionError, match="open of"), watched(tmp_path):
        (tmp_path / "x").write_text("")


def _commands(run: str, good: str, joined: str, out: Path) -> dict[str, list[list[str]]]:
    """What follows each command that may be given a stranger's folder, by its name."""
    folder = os.path.dirname(run)
    return {
        "record": [["--run", run, "--steps", "1", "zoo:mlp4"]],
        "runs": [[folder], [folder, "--json"], [folder, "--quick"]],
        "show": [[run], [run, "--step", "first", "--layers", "0"]],
        "diagnose": [[run], [run, "--json"]],
        "compare": [[good, run], [run, joined, "--json"]],
        "explain": [[good, run], [run, joined], [run], [run, "--json"]],
        "probe": [[run, "paths"], [run, "landscape", "--replay"]],
        "study": [["--study", run, "--dry-run"], ["--study", run]],
        "diverge": [[good, run], [run, run], [good, good, "--repeat", run, "--json"]],
        "reproduce": [["yang2019", "--scale", "tiny", "--out", run, "--quiet"]],
        "dashboard": [[run, folder, "--port", "0", "--no-browser"]],
        "report": [[run, "--lesson"]],
        "export": [
            [run, "-o", str(out / "csv")],
            [run, "-o", str(out / "events"), "--format", "tensorboard"],
        ],
    }


def test_each_command_of_the_command_line_is_given_a_hostile_folder() -> None:
    # The demo makes runs of its own, and takes no folder of anybody.
    assert {*_commands("r", "g", "j", Path("out")), "demo"} == {*COMMANDS}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return a good run without joins and one with a join."""
    folder = tmp_path_factory.mktemp("good")
    join = {"join": 0, "name": "j", "operation": "add", "shortcut": "identity"}
    join |= {"branch_layers": ["layers.0"], "shortcut_layers": []}
    join |= {"branch_parameters": 20, "shortcut_parameters": 0}
    runs = [
        write_run(folder / name, [1.0, 0.5, 0.3, 0.2], [[1.0, 2.0, 3.0]] * 4, joins=joins)
        for name, joins in (("good", []), ("joined", [join]))
    ]
    return str(runs[0]), str(runs[1])


@pytest.mark.no_cover
@pytest.mark.parametrize("name", EACH)
def test_every_command_only_reads_a_hostile_folder(
    name: str, others, tmp_path, monkeypatch, capsys
) -> None:
    run = write_attack(tmp_path / "runs", name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Server, "serve_forever", _ended_at_once(Server.serve_forever))
    before = _state(tmp_path / "runs")
    given = _commands(str(run), *others, tmp_path / "out")
    for words in [[command, *rest] for command, some in given.items() for rest in some]:
        with watched(tmp_path / "runs"):
            code = main(words)
        printed = capsys.readouterr()
        assert code in (0, 1, 2), words
        _assert_text(printed, words)
        assert printed.err.count("\n") <= 1
        if words[0] == "runs" and "--json" not in words:
            assert printed.out.count("\n") > 2  # it is there, or why it cannot be read
    assert _state(tmp_path / "runs") == before


def _ended_at_once(serve_forever: Any) -> Any:
    """What serves until it is told to end, and is told so before."""

    def serve(server: Any) -> None:
        server._is_over = True
        serve_forever(server)

    return serve


def _assert_text(printed: Any, words: list[str]) -> None:
    """Nothing that a terminal would obey, and no traceback."""
    for text in (printed.out, printed.err):
        assert all(c.isprintable() or c in "\n\u00a0\u202f" for c in text), words
        assert "Traceback" not in text and len(text) < 500_000, words
        text.encode()


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_report_of_a_hostile_folder_only_reads_it(
    name: str, tmp_path, monkeypatch, capsys
) -> None:
    run = write_attack(tmp_path / "runs", name)
    monkeypatch.chdir(tmp_path)
    before = _state(tmp_path / "runs")
    out = [["-o", "r.html"], ["-o", "s.html", "--anonymous"]]
    for words in (*out, ["-o", "t.html", "--figures", "figures", "--tables", "tables"]):
        with watched(tmp_path / "runs"):
            assert main(["report", str(run), *words]) in (0, 2)
        _assert_text(capsys.readouterr(), words)
    assert _state(tmp_path / "runs") == before


def _everything(library: Library, run_id: str) -> Iterator[object]:
    """All that the pages show of a run, alone and in a group with a good one."""
    seen = context(library, parse(_query(run_id)))
    yield seen.problems
    if not seen.runs:
        return
    yield step_choices(seen, "/")
    yield finding_list(seen)
    yield header(seen)
    yield study_cards(seen, "light")
    told = arguments(library.find(run_id).summary.told)
    for name in [*told, MARKUP][:4]:
        asked = [("run", run_id), ("run", "good"), ("group", name), ("column", name)]
        both = context(library, parse(urlencode(asked, errors="surrogatepass")))
        yield run_table(library, "", both.address.columns)
        for key in ("loss", "logged", "layer_series"):
            yield shown(key, both, "dark", narrow=True)
    with suppress(NotRecordedError):
        whole = network(seen.runs[0])
        yield network_view(whole, seen.view(), whole.boxes, ())
    for panel in PANELS:
        yield shown(panel.key, seen, "light", narrow=False)
        try:
            yield csv_text(recorded(panel.key, seen).table())
        except AnalyzerError as error:
            yield str(error)


@pytest.mark.no_cover
@pytest.mark.parametrize("name", EACH)
def test_every_page_only_reads_a_hostile_folder(name: str, tmp_path: Path) -> None:
    write_attack(tmp_path / "runs", name)
    write_run(tmp_path / "runs" / "good", [1.0] * 3, [[1.0, 2.0]] * 3)
    before = _state(tmp_path / "runs")
    library = Library([tmp_path / "runs"], may_write=True)
    client = create_app(tmp_path / "runs", edit=True).server.test_client()
    with watched(tmp_path / "runs"):
        listed = library.listing()
        assert len(listed) >= 2 and run_table(library)
        for one in listed:
            for part in _everything(library, one.id):
                str(part).encode()
            for panel in PANELS[:3]:
                path = f"/csv/{panel.key}{_query(one.id)}"
                answer = client.get(path, headers={"Host": "127.0.0.1"})
                assert answer.status_code in (200, 404)
    assert _state(tmp_path / "runs") == before


# Those that a browser could be misled by; the others differ in what is read, not in what is shown.
SHOWN = ("names_markup", "names_remote", "manifest_markup", "folder_not_utf8", "columns_logged")
SHOWN += ("notes_markup", "arguments_hostile")


def _hostile_address(*runs: str) -> str:
    """An address each part of which is markup, as far as it is text."""
    texts = {str: MARKUP, tuple[str, ...]: (MARKUP, "=1+1")}
    fields = dataclasses.fields(Address)
    given = {one.name: texts[one.type] for one in fields if one.type in texts}
    return query(Address(**given | {"runs": runs, "step": 10**14, "smooth": 10**6}))


def _visited(browser: Any, folder: Path, paths: list[str]) -> None:
    opened = browser.new_context(viewport={"width": 1280, "height": 900})
    with serving(folder, edit=True) as address:
        visit = Visit(opened.new_page(), address)
        for path in paths:
            if path == LESSON:
                visit.page.goto(address + path)
                visit.page.wait_for_selector("html[data-ready]")
            else:
                visit.go(path)
                visit.settle()
            if path.startswith("/network"):
                visit.until("document.querySelector('#network-caption, #content .message')")
            assert not visit.page.evaluate("() => window.hacked"), path
            assert (path, visit.errors, visit.foreign) == (path, [], [])
    opened.close()


def test_a_browser_that_opens_hostile_runs_runs_nothing(browser, tmp_path: Path) -> None:
    for name in SHOWN:
        write_attack(tmp_path, name)
    ids = [listed.id for listed in Library([tmp_path]).listing()]
    more = [f"/training{_hostile_address(ids[0], 'good')}"]
    _visited(browser, tmp_path, ["/runs", LESSON, *(f"/{_query(one)}" for one in ids[:2]), *more])


# Each reads other parts of an address: pinned layers, opened modules, groups of runs.
_ASKED = ("/flow", "/network", "/training")


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_browser_on_every_page_of_a_hostile_run_runs_nothing(
    name: str,
    browser,
    tmp_path: Path,
) -> None:
    run = write_attack(tmp_path, name)
    write_run(tmp_path / "good", [1.0] * 3, [[1.0, 2.0]] * 3)
    (listed,) = [one for one in Library([tmp_path]).listing() if one.summary.path == run]
    is_read = listed.summary.problem is None
    pages = [f"{page.path}{_query(listed.id)}" for page in PAGES if is_read]
    both = "/compare?" + urlencode([("run", "good"), ("run", listed.id)])
    asked = _hostile_address("good", listed.id)
    pages += [both, *(f"{path}{asked}" for path in _ASKED)] if is_read else []
    _visited(browser, tmp_path, ["/", "/runs", f"/runs{asked}", *pages])


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_type_is_left_out_and_named(field: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1.0], [[1.0]])
    said = json.loads((run / "run.json").read_text())
    for value in ([[5]], {"a": {"b": []}}, "x" * 3000, 10**300, True, -1.5):
        (run / "run.json").write_text(json.dumps(said | {field: value}))
        if field == "schema_version":
            with pytest.raises(AnalyzerError, match="schema version"):
                read_manifest(run)
            continue
        found = read_manifest(run)
        named = [line for line in found.get("damaged") or [] if f"run.json: {field} is " in line]
        assert (found.get(field) == value) is not bool(named) or field == "damaged"
        assert all(len(line) < 300 for line in named)


def test_a_name_as_the_list_shows_it_finds_its_run(tmp_path: Path, capsys) -> None:
    write_attack(tmp_path, "folder_not_utf8")
    assert main(["runs", str(tmp_path), "--quick"]) == 0
    assert r"folder_not_utf8\xff\xfe" in capsys.readouterr().out
    assert main(["show", r"folder_not_utf8\xff\xfe", "--runs-dir", str(tmp_path)]) == 0

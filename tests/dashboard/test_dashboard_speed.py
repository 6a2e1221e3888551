"""What keeps a request short: answers from threads, and figures that are drawn once."""

import gc
import itertools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from analyzer.dashboard import drawing, landing
from analyzer.dashboard.address import Context, context, parse
from analyzer.dashboard.app import create_app
from analyzer.dashboard.cache import Line
from analyzer.dashboard.drawing import shown_steps
from analyzer.dashboard.library import Library
from analyzer.dashboard.server import warm_up
from analyzer.dashboard.warming import Warmer
from analyzer.errors import AnalyzerError
from analyzer.storage.catalog import runs_in
from analyzer.storage.run import Run, open_run
from analyzer.storage.schema import STAT_COLUMNS
from tests.support.requests import route
from tests.support.runs import write_run

FEW = [[1.0, 2.0]] * 3


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(write_run(tmp_path / "runs" / "a", [1.0, 0.5, 0.2], FEW))


@pytest.fixture
def seen(run: Run) -> Context:
    return context(Library([run.path.parent]), parse("?run=a"))


def later(library: Library, what: str, runs: tuple[Run, ...], find: Any) -> Any:
    """Ask until there is an answer."""
    end = time.perf_counter() + 10
    while (found := library.answer(what, runs, find)) is None and time.perf_counter() < end:
        time.sleep(0.01)
    return found


def test_a_request_does_not_wait_for_a_long_answer_and_then_has_it(run: Run) -> None:
    done, calls = threading.Event(), []

    def find() -> str:
        calls.append(1)
        done.wait(10)
        return "vanishing"

    library = Library([])
    assert library.answer("findings", (run,), find) is None
    assert library.answer("findings", (run,), find) is None
    done.set()
    assert later(library, "findings", (run,), find) == "vanishing"
    assert len(calls) == 1


def test_a_run_that_grows_faster_than_it_is_judged_shows_the_answer_before(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [1.0, 0.5], FEW[:2])
    library = Library([tmp_path])
    first, second = open_run(path), open_run(path)  # the same run, before and after it has grown
    assert later(library, "landing", (first,), lambda: "old") == "old"
    library.was_behind()
    hold = threading.Event()

    def find() -> str:
        hold.wait(10)
        return "new"

    seen = Context(library, parse("?run=a"), (second,), (), ("a",))
    assert library.answer("landing", (second,), find) == "old"
    # The page keeps asking.
    assert not seen.is_settled("old")
    hold.set()
    assert library.answer("landing", (second,), find, patience=10) == "new"
    assert seen.is_settled("new") and not seen.is_settled(None)
    # Of another run nothing is told before it is known.
    other = open_run(write_run(tmp_path / "b", [1.0], FEW[:1]))
    hold.clear()
    assert library.answer("landing", (other,), find) is None
    hold.set()


def test_the_first_page_of_a_run_that_grows_shows_the_verdict_before(
    tmp_path: Path, monkeypatch: Any
) -> None:
    path, hold = write_run(tmp_path / "a", [1.0, 0.5], FEW[:2]), threading.Event()
    library, judge = Library([tmp_path]), landing.landing
    monkeypatch.setattr(
        landing, "landing", lambda runs: (runs[0] is first or hold.wait(10)) and judge(runs)
    )
    first, second = open_run(path), open_run(path)  # the same run, before and after it has grown
    before, after = (
        Context(library, parse("?run=a"), (one,), (), ("a",)) for one in (first, second)
    )
    while (told := landing.answer_of(before)) is None:
        time.sleep(0.01)
    library.was_behind()
    shown = landing.answer_of(after)
    hold.set()
    assert shown is not None and str(shown) == str(told) and not after.is_settled(shown)


def test_a_short_answer_is_there_at_once(run: Run) -> None:
    library = Library([])
    assert library.answer("findings", (run,), lambda: 7, patience=10) == 7
    assert library.answer("verdict", (run,), lambda: 8, patience=10) == 8


def test_a_long_answer_begins_once_the_figures_of_the_page_are_there(
    seen: Context, monkeypatch: Any
) -> None:
    hold, order = threading.Event(), []

    def shown(key: str, *_: Any, **__: Any) -> None:
        hold.wait(10)
        order.append(key)

    monkeypatch.setattr("analyzer.dashboard.warming.shown", shown)
    monkeypatch.setattr("analyzer.dashboard.library._FIGURE_SECONDS", 10.0)
    monkeypatch.setattr("analyzer.dashboard.library._FEW_ROWS", 5)
    warmer = Warmer(seen.library)
    monkeypatch.setattr("analyzer.dashboard.warming._FIRST_SECONDS", 0.1)
    seen.library.drawn.clear()
    warmer.draw_first()
    find = lambda: order.append("verdict") or "sick"  # noqa: E731
    assert seen.library.answer("landing", seen.runs, find) is None
    assert order == []
    hold.set()
    assert later(seen.library, "landing", seen.runs, find) == "sick"
    assert order == ["overview", "verdict"]


@pytest.mark.parametrize("runs", [1, 2])
def test_an_answer_about_short_runs_waits_for_no_figure(
    run: Run, monkeypatch: Any, runs: int
) -> None:
    monkeypatch.setattr("analyzer.dashboard.library._FIGURE_SECONDS", 5.0)
    monkeypatch.setattr("analyzer.dashboard.library._FEW_ROWS", 6)  # three steps of two layers
    library = Library([])
    library.drawn.clear()
    asked, began = (run, open_run(run.path))[:runs], time.perf_counter()
    assert later(library, "findings", asked, lambda: "none") == "none"
    assert (time.perf_counter() - began < 4) == (runs == 1)


def test_runs_of_a_list_are_judged_between_answers(run: Run, monkeypatch: Any) -> None:
    judged: list[Path] = []

    def word(path: Path) -> tuple[str, tuple[()]]:
        judged.append(path)
        return "none", ()

    monkeypatch.setattr("analyzer.dashboard.library._judged", word)
    monkeypatch.setattr("analyzer.dashboard.library._LONGEST_REST", 30.0)
    library = Library([run.path.parent])
    library.begin_answer()
    assert library.word(run.path, 1) is None
    time.sleep(0.2)
    assert judged == []
    library.end_answer()
    end = time.perf_counter() + 10
    while library.word(run.path, 1) is None and time.perf_counter() < end:
        time.sleep(0.01)
    assert library.word(run.path, 1) == "none"


def test_a_long_answer_does_not_wait_for_figures_without_end(run: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr("analyzer.dashboard.library._FIGURE_SECONDS", 0.1)
    monkeypatch.setattr("analyzer.dashboard.library._FEW_ROWS", 5)
    library = Library([])
    library.drawn.clear()
    assert later(library, "findings", (run,), lambda: "none") == "none"


def test_long_answers_wait_for_the_browser_that_asked_for_a_page(
    seen: Context, monkeypatch: Any
) -> None:
    monkeypatch.setattr("analyzer.dashboard.warming.shown", lambda *_, **__: None)
    monkeypatch.setattr("analyzer.dashboard.warming._FIRST_SECONDS", 10.0)
    seen.library.drawn.clear()
    warmer = Warmer(seen.library)
    # Of the page that is drawn ahead, before any browser asks, the thread says that it is there.
    warmer.draw_first()
    assert seen.library.drawn.is_set()
    warmer.ask("/", "?run=a")
    while warmer.line.thread is not None:
        time.sleep(0.01)
    assert not seen.library.drawn.is_set()


def test_a_browser_says_with_its_first_tick_that_its_figures_are_drawn(
    run: Run, monkeypatch: Any
) -> None:
    drawn = []

    def answer_of(context: Context) -> None:
        drawn.append(context.library.drawn.is_set())

    def ask(count: int | None) -> int:
        inputs = [("revision", "data", ""), ("headline-soon", "n_intervals", count)]
        places = [*((x, "children") for x in ("headline", "readings", "questions"))]
        places.append(("headline-soon", "disabled"))
        body = {
            "output": f"..{'...'.join(f'{name}.{prop}' for name, prop in places)}..",
            "outputs": [{"id": name, "property": prop} for name, prop in places],
            "inputs": [{"id": i, "property": p, "value": value} for i, p, value in inputs],
            "state": [{"id": "search", "property": "data", "value": "?run=a"}],
            "changedPropIds": ["headline-soon.n_intervals"],
        }
        host = {"Host": "127.0.0.1"}
        return client.post("/_dash-update-component", json=body, headers=host).status_code

    monkeypatch.setattr("analyzer.dashboard.landing.answer_of", answer_of)
    kept = Library([run.path.parent])
    monkeypatch.setattr("analyzer.dashboard.app.Library", lambda *_, **__: kept)
    client = create_app(run.path.parent).server.test_client()
    kept.drawn.clear()
    assert [ask(None), ask(0), ask(1)] == [200] * 3
    assert drawn == [False, False, True]


def test_the_first_page_is_drawn_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "a", [1.0], [[1.0]])
    asked, done, drawn = threading.Event(), threading.Event(), []
    kept = sys.getswitchinterval()

    def shown(key: str, seen: Context, *_: Any, **__: Any) -> None:
        drawn.append((key, [run.name for run in seen.runs]))
        asked.set()

    monkeypatch.setattr("analyzer.dashboard.warming.shown", shown)
    server = create_app(tmp_path).server
    try:
        warm_up(server)
        assert sys.getswitchinterval() < 0.001
        assert asked.wait(20) and drawn == [("overview", ["a"])]
        # What was loaded is not looked through for garbage in the middle of an answer.
        assert gc.get_freeze_count() > 50_000
    finally:
        sys.setswitchinterval(kept)
        gc.unfreeze()
    late = Warmer(Library([tmp_path]))
    monkeypatch.setattr(late.line, "put", lambda *_: done.set())
    late.ask("/findings", "")
    late.draw_first()
    assert not done.is_set()


def test_a_job_begun_by_a_daemon_ends_before_the_program() -> None:
    line, hold = Line("jobs"), threading.Event()
    asks = threading.Thread(target=lambda: line.put("job", hold.wait), daemon=True)
    asks.start()
    asks.join()
    assert line.thread is not None and not line.thread.daemon
    hold.set()


def test_an_answer_looks_at_the_folders_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    def counted(folder: Path) -> Any:
        looks.append(threading.current_thread().name)
        return runs_in(folder)

    monkeypatch.setattr("analyzer.dashboard.library.runs_in", counted)
    client = create_app(run.path.parent).server.test_client()
    for name in ("b", "c"):
        write_run(run.path.with_name(name), [1.0], [[1.0]])
        looks.clear()
        assert f'"run":"{name}"' in route(client, "", "/runs").text.replace(" ", "")
        # The thread that draws ahead may look as well.
        assert looks.count(threading.current_thread().name) == 1


def test_all_threads_open_the_same_run(run: Run, monkeypatch: Any) -> None:
    def slow(path: Path) -> Run:
        time.sleep(0.2)
        return open_run(path)

    monkeypatch.setattr("analyzer.dashboard.library.open_run", slow)
    library = Library([run.path.parent])
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(library.open, ["a"] * 4))
    assert len(set(map(id, opened))) == 1


def test_a_long_listing_is_used_for_a_second_and_a_short_one_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "a", [1.0], [[1.0]])
    library, spent, clock = Library([tmp_path]), itertools.count(), itertools.count()
    assert [run.id for run in library.listing()] == ["a"]
    write_run(tmp_path / "b", [1.0], [[1.0]])
    # Looking takes a second of the processor from now on, and each question comes a second later.
    monkeypatch.setattr(time, "thread_time", lambda: float(next(spent)))
    monkeypatch.setattr(time, "monotonic", lambda: 1e9 + next(clock))
    assert len(library.listing()) == 2
    write_run(tmp_path / "c", [1.0], [[1.0]])
    found = [len(library.listing()) for _ in range(8)]
    assert found == [2] * 4 + [3] * 4


def test_what_goes_wrong_is_raised_where_it_was_asked(run: Run) -> None:
    def find() -> None:
        raise AnalyzerError("no such layer")

    with pytest.raises(AnalyzerError, match="no such layer"):
        Library([]).answer("findings", (run,), find, patience=10)


def test_a_run_that_has_changed_since_is_not_looked_through(run: Run) -> None:
    hold, found = threading.Event(), []
    newer, newest = open_run(run.path), open_run(run.path)
    library = Library([])
    library.answer("findings", (run,), lambda: hold.wait(10))
    library.answer("findings", (newer,), lambda: found.append("newer"))
    library.answer("findings", (newest,), lambda: found.append("newest") or "newest")
    hold.set()
    assert later(library, "findings", (newest,), lambda: "again") == "newest"
    assert found == ["newest"]


def test_a_figure_is_drawn_once_for_the_same_question(
    seen: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, plain = [], drawing.drawn
    monkeypatch.setattr(
        drawing, "drawn", lambda *a, **k: drawn.append((a[0], a[2])) or plain(*a, **k)
    )
    first = drawing.shown("loss", seen, "light")
    assert drawing.shown("loss", seen, "light") is first
    assert first.figure is not None and first.figure["data"] and first.height > 100
    drawing.shown("loss", seen, "dark")
    assert drawn == [("loss", "light"), ("loss", "dark")]


def test_what_cannot_be_drawn_says_why_and_is_not_kept(seen: Context) -> None:
    found = drawing.shown("landscape_contour", seen, "light")
    assert found.figure is None and "probe landscape" in found.problem and not found.is_bad
    assert drawing.shown("landscape_contour", seen, "light") is not found


def test_a_pattern_that_is_refused_is_a_sentence(seen: Context) -> None:
    wrong = context(seen.library, parse("?run=a&layers=(("))
    assert "layers is '(('" in drawing.shown("gradient_heatmap", wrong, "light").problem


def test_asking_for_a_page_draws_its_figures(seen: Context, monkeypatch: Any) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("analyzer.dashboard.warming.shown", lambda key, *_, **__: drawn.append(key))
    warmer = Warmer(seen.library)
    for path, search in (("/flow", ""), ("/findings", "?run=a"), ("/flow", "?run=%00")):
        warmer.ask(path, search)
    warmer.ask("/flow", "?run=a")
    end = time.perf_counter() + 10
    while len(drawn) < 3 and time.perf_counter() < end:
        time.sleep(0.01)
    assert drawn == ["gradient_heatmap", "depth_profile", "layer_series"]


@pytest.mark.parametrize(("most", "expected"), [(1_000, STAT_COLUMNS["layer_stats"]), (1, ())])
def test_what_a_reader_may_choose_next_is_read_ahead_of_small_runs(
    seen: Context, monkeypatch: Any, most: int, expected: tuple[str, ...]
) -> None:
    read: list[str] = []
    monkeypatch.setattr("analyzer.dashboard.warming._READ_SECONDS", 0.0)
    monkeypatch.setattr("analyzer.dashboard.warming._MOST_COLUMNS", most)
    mine = seen.runs[0].path

    def heatmap(run: Run, column: str, *_: Any, **__: Any) -> None:
        # A thread of an earlier test may still be at its own run.
        if run.path == mine:
            read.append(column)

    monkeypatch.setattr(Run, "heatmap", heatmap)
    monkeypatch.setattr("analyzer.dashboard.warming.shown", lambda *_, **__: None)
    warmer = Warmer(seen.library)
    warmer.ask("/flow", "?run=a")
    thread = warmer.line.thread
    assert thread is not None
    thread.join(20)
    assert tuple(read) == expected


def test_the_list_draws_the_overviews_of_the_newest_runs(tmp_path: Path, monkeypatch: Any) -> None:
    for number in range(5):
        write_run(tmp_path / f"run-{number}", [1.0], [[1.0]])
    drawn: list[tuple[str, str]] = []
    monkeypatch.setattr("analyzer.dashboard.warming._LIST_SECONDS", 0.0)
    monkeypatch.setattr(
        "analyzer.dashboard.warming.shown",
        lambda key, seen, *_, **__: drawn.append((key, seen.runs[0].name)),
    )
    Warmer(Library([tmp_path])).ask("/runs", "")
    end = time.perf_counter() + 10
    while len(drawn) < 3 and time.perf_counter() < end:
        time.sleep(0.01)
    assert drawn == [("overview", f"run-{k}") for k in (4, 3, 2)]


def test_the_page_itself_starts_the_drawing(run: Run, monkeypatch: Any) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(Warmer, "ask", lambda _self, path, search: asked.append((path, search)))
    client = create_app(run.path.parent).server.test_client()
    client.get("/?run=a&step=1", headers={"Host": "localhost"})
    client.get("/csv/loss", headers={"Host": "localhost"})
    assert asked == [("/", "?run=a&step=1")]


def test_a_slider_has_the_first_and_the_last_of_many_steps(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "long", [1.0] * 5000, [[1.0]] * 5000)
    steps = shown_steps(context(Library([tmp_path / "runs"]), parse("?run=long")))
    assert (steps[0], steps[-1], len(steps)) == (0, 4999, 500)
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 12


def test_a_panel_is_drawn_again_only_for_what_it_reads(runs_dir: Path) -> None:
    library = Library([runs_dir])

    def record(key: str, search: str) -> Any:
        return drawing.recorded(key, context(library, parse(f"?run=plain&run=residual{search}")))

    assert record("gradient_heatmap", "") is record("gradient_heatmap", "&step=1&smooth=90")
    assert record("gradient_heatmap", "") is not record("gradient_heatmap", "&bins=max")
    assert record("layer_series", "") is not record("layer_series", "&layer=stem")
    assert record("depth_profile", "") is record("depth_profile", "&layer=stem")

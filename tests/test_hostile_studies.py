"""A stranger's study, continued, reported and shown, runs nothing, writes nowhere else."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyzer.cli import main
from analyzer.dashboard.address import context, parse
from analyzer.dashboard.library import Library
from analyzer.dashboard.study_page import study_cards
from analyzer.storage.study import PLAN, write_json
from analyzer.studies.plan import product
from analyzer.studies.published import COLUMNS
from analyzer.studies.reproduce import experiment
from analyzer.studies.running import Ended, run_study
from tests.dashboard.conftest import Visit, serving
from tests.support.hostile_studies import STUDIES, write_study


def _contents(folder: Path) -> dict[str, str]:
    return {
        os.path.relpath(os.path.join(place, name), folder): Path(place, name).read_text("latin-1")
        for place, _, names in os.walk(folder)
        for name in names
    }


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a program is started."""

    def refused(*words: Any, **_: Any) -> None:
        raise AssertionError(f"a process was started: {words}")

    monkeypatch.setattr("subprocess.Popen", refused)


# Of each kind one; the others take longer.
_OFTEN = ("link_runs", "link_of_a_finished_run", "link_lock", "program_among_networks", "module")
_OFTEN += (
    "network_of_terabytes",
    "plan_markup",
    "endings_of_other_types",
    "summary_of_other_types",
)


@pytest.fixture(
    params=[pytest.param(n, marks=() if n in _OFTEN else pytest.mark.slow) for n in STUDIES]
)
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_study(tmp_path / "s", tmp_path / "outside", request.param)


def _said(capsys: pytest.CaptureFixture[str], words: list[str]) -> int:
    code = main(words)
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert all(c.isprintable() or c in "\n\u00a0\u202f" for c in text), words
        assert "Traceback" not in text and len(text) < 100_000
    assert printed.err.count("\n") <= 1 and (code != 2 or printed.err), words
    return code


@pytest.mark.no_cover
def test_a_strangers_study_is_only_read(
    study: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, no_process: None
) -> None:
    monkeypatch.chdir(tmp_path)
    before = _contents(tmp_path / "outside")
    name = str(study)
    run = str(study / "runs" / "depth4-on-seed0")
    for words in (
        ["study", "--study", name, "--dry-run"],
        ["study", "--study", name, "--quiet"],
        ["study", "--study", name, "--quiet", "--depths", "4", "--model", "zoo:mlp"],
        ["report", name, "-o", "r.html"],
        ["report", run, "-o", "s.html"],
        ["runs", str(study / "runs")],
    ):
        assert _said(capsys, words) in (0, 1, 2), words
    assert _contents(tmp_path / "outside") == before
    assert not Path("/tmp/analyzer-owned").exists()


def test_of_a_study_of_a_file_only_the_points_are_run_that_the_command_names(
    tmp_path: Path, no_process: None
) -> None:
    """Others would have the arguments that the folder gives them."""
    whole = product("mine.py", grid={"--lr": [0.1, 0.2]}, is_script=True)
    named = product("mine.py", grid={"--lr": [0.1]}, is_script=True)
    write_json(tmp_path / "s" / PLAN, whole.as_json())
    runner = Noting()
    study = run_study(named, tmp_path / "s", runner=lambda _: runner)
    assert runner.started == [point.name for point in named.points]
    states = {point.arguments["lr"]: point.status for point in study.points}
    assert states == {0.1: "failed", 0.2: "waiting"}


class Noting:
    """Notes what is to be run, and runs nothing."""

    capacity = 1

    def __init__(self) -> None:
        self.started: list[str] = []
        self._left: list[Ended] = []

    def start(self, name: str, options: str, log: Path, *, is_script: bool) -> None:
        self.started.append(name)
        self._left.append((name, 1))

    def ended(self, seconds: float) -> list[Ended]:
        found, self._left = self._left, []
        return found

    def close(self) -> None:
        pass


@pytest.mark.no_cover
def test_the_page_of_a_strangers_study_only_reads_it(study: Path, tmp_path: Path) -> None:
    before = _contents(tmp_path / "outside")
    library = Library([study / "runs"])
    for listed in library.listing():
        for scheme in ("light", "dark"):
            seen = context(library, parse(f"?run={listed.id}"))
            text = str(study_cards(seen, scheme))
            text.encode()
            assert "\x1b" not in text and "evil.example" not in text
    assert _contents(tmp_path / "outside") == before


# Those that a browser could be misled by.
SHOWN = ("plan_markup", "plan_texts", "summary_with_markup", "endings_with_escapes")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == SHOWN[2] else pytest.mark.slow) for n in SHOWN]
)
def test_a_browser_on_the_page_of_a_strangers_study_runs_nothing(
    name: str, browser: Any, tmp_path: Path
) -> None:
    folder = write_study(tmp_path / "s", tmp_path / "outside", name)
    opened = browser.new_context(viewport={"width": 1280, "height": 900})
    with serving(folder / "runs") as address:
        visit = Visit(opened.new_page(), address)
        page = visit.go("/study?run=depth4-on-seed0")
        visit.until("document.querySelectorAll('#study .card').length > 1")
        assert not page.evaluate("() => window.hacked")
        assert page.locator("a[href*='evil.example']").count() == 0
        visit.assert_clean()
    opened.close()


def _measured(folder: Path) -> Path:
    """A folder that `reproduce` has begun: one part of it is there."""
    said = {"experiment": "yang2019", "scale": "tiny", "data": "digits"}
    write_json(folder / "plan.json", said)
    (folder / "parts").mkdir()
    return folder


def _repeated_rows(path: Path) -> None:
    schema = pa.schema([("part", pa.string()), ("value", pa.float64())], {b"experiment": b"{}"})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(pa.table([["x"] * 10**6, [0.0] * 10**6], schema=schema))


def _part_of(text: Any) -> Callable[[Path, Path], object]:
    def write(part: Path, outside: Path) -> None:
        cells = {name: ["<b>"] for name in COLUMNS}
        notes = {b"experiment": text.encode()}
        pq.write_table(pa.table(cells).replace_schema_metadata(notes), part)

    return write


MEASURED: dict[str, Callable[[Path, Path], object]] = {
    "link_of_a_part": lambda part, outside: part.symlink_to(outside / "mine.txt"),
    "link_of_the_table": lambda part, outside: (part.parents[1] / "table.md").symlink_to(outside),
    "link_of_a_temporary_file": lambda part, outside: (part.parents[1] / "plan.tmp").symlink_to(
        outside / "mine.txt"
    ),
    "pipe": lambda part, outside: os.mkfifo(part),
    "folder": lambda part, outside: part.mkdir(),
    "no_table": lambda part, outside: part.write_text("PAR1xxPAR1"),
    "rows_many": lambda part, outside: _repeated_rows(part),
    "texts": _part_of('{"seconds": "1"}'),
    "noted_deep": _part_of("[" * 100_000),
    "noted_list": _part_of("[[1, 2]]"),
    "noted_seconds": _part_of('{"seconds": [1]}'),
    "plan_deep": lambda part, outside: (part.parents[1] / "plan.json").write_text("[" * 100_000),
    "plan_list": lambda part, outside: (part.parents[1] / "plan.json").write_text("[1]"),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(n, marks=pytest.mark.slow if n == "rows_many" else ()) for n in MEASURED],
)
def test_a_strangers_measurement_is_refused_and_nothing_else_is_written(
    kind: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    folder, outside = _measured(tmp_path / "m"), tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    chosen = experiment("yang2019")
    part = next(iter(chosen.parts(chosen.settings["tiny"])))
    # Of one part, which is there already: nothing is measured.
    single = dataclasses.replace(chosen, parts=lambda _: [part])
    monkeypatch.setattr("analyzer.studies.reproduce.experiment", lambda _: single)
    MEASURED[kind](folder / "parts" / f"{part}-seed0.parquet", outside)
    words = ["reproduce", "yang2019", "--scale", "tiny", "--seeds", "1", "--quiet"]
    assert _said(capsys, [*words, "--out", str(folder)]) == 2
    assert _contents(outside) == {"mine.txt": "mine"}

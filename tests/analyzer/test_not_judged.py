"""A run of which too little is known is called healthy nowhere."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from analyzer.cli import main
from analyzer.dashboard.library import Library
from analyzer.reports.html import write_report
from analyzer.reports.story import story_of
from tests.support.runs import layer_row, write_run

LAYERS = [layer_row(i, f"layers.{i}", output_shape=[8, 64]) for i in range(3)]
ONES = [[1.0] * 3] * 4
LOSSES = [4.0, 3.0, 2.0, 1.0]


def damaged(path: Path) -> Path:
    write_run(path, LOSSES, ONES, layers=LAYERS)
    (part,) = (path / "layer_stats").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-50] + bytes(50))
    return path


def half_lost(path: Path) -> Path:
    about = {"lost_steps": 3, "steps": 4, "storage_error": "No space left on device"}
    return write_run(path, LOSSES, ONES, layers=LAYERS, **about)


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no step": (lambda path: write_run(path, [], []), "no layer was recorded"),
    "no layer": (lambda path: write_run(path, LOSSES, [[]] * 4), "no layer was recorded"),
    "no gradient": (
        lambda path: write_run(path, LOSSES, [[None] * 3] * 4, layers=LAYERS),
        "no gradient was recorded",
    ),
    "failed": (
        lambda path: write_run(
            path, LOSSES, ONES, layers=LAYERS, status="failed", error="ValueError: no data"
        ),
        "it failed (ValueError: no data)",
    ),
    "damaged": (damaged, "cannot be read"),
    "half lost": (half_lost, "No space left on device"),
}


def called(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_not_judged_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    make, why = KINDS[kind]
    run = make(tmp_path / "mine")
    (listed,) = json.loads(called(capsys, "runs", tmp_path, "--json"))
    assert listed["verdict"] == "not judged"
    (finding,) = json.loads(called(capsys, "diagnose", run, "--json"))
    assert finding["code"] == "not judged" and why in finding["sentence"]
    for command in (["runs", tmp_path], ["diagnose", run], ["show", run]):
        text = called(capsys, *command)
        assert "not judged" in text and "healthy" not in text, text


@pytest.mark.parametrize("kind", ["no layer", "failed", "damaged"])
def test_it_is_not_judged_in_the_dashboard_and_the_report(tmp_path: Path, kind: str) -> None:
    make, why = KINDS[kind]
    run = make(tmp_path / "mine")
    library = Library([str(tmp_path)])
    word = None
    while word is None:
        word = library.word(run, "mark")
    assert word == "not judged"
    write_report(story_of([run]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "not judged" in page and why in page


def test_what_a_whole_run_shows_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, status in (("done", "finished"), ("stopped", "interrupted")):
        run = write_run(tmp_path / name, LOSSES, ONES, layers=LAYERS, status=status)
        assert json.loads(called(capsys, "diagnose", run, "--json")) == []
    assert {one["verdict"] for one in json.loads(called(capsys, "runs", tmp_path, "--json"))} == {
        "healthy"
    }


@pytest.mark.parametrize(
    "conditions",
    [
        {"eval_mode": {"looks": 0, "layers": {"a": {"steps": 1, "first_step": 0, "last_step": 0}}}},
        {"gradients_kept": {"updates": 9, "of": 0}},
        {"eval_mode": {"looks": 1, "layers": {"a": None}}},
        {"inputs": [{"shape": "x"}]},
        {"loss": {"class_entropy": "x"}},
        {"without_optimizer": "x"},
        [],
    ],
)
def test_conditions_that_make_no_sense_end_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], conditions: object
) -> None:
    run = write_run(tmp_path / "mine", LOSSES, ONES, layers=LAYERS, conditions=conditions)
    found = json.loads(called(capsys, "diagnose", run, "--json"))
    assert {one["code"] for one in found} <= {"not judged"}

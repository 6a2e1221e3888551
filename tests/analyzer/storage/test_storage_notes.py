"""Tags and notes of a run: written whole, read only as what they are."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from analyzer.errors import AnalyzerError
from analyzer.storage.catalog import runs_in
from analyzer.storage.notes import NO_NOTES, read_notes, write_notes
from analyzer.storage.run import open_run
from tests.support.runs import write_run


def test_what_was_written_is_read_and_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1.0], [[1.0]])
    assert read_notes(run) == NO_NOTES
    said = write_notes(run, [" baseline ", "größe", "", "baseline"], "two\nlines \n")
    assert (said.tags, said.text) == (("baseline", "größe"), "two\nlines")
    assert read_notes(run) == said == runs_in(tmp_path)[0].notes
    assert json.loads((run / "notes.json").read_text()) == {
        "tags": ["baseline", "größe"], "text": "two\nlines",
    }  # fmt: skip
    # Nothing else of the run has changed, and no unfinished file is left.
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    assert open_run(run).status == "finished"


@pytest.mark.parametrize(
    ("tags", "text", "reason"),
    [
        (["x" * 41], "", "at most 40 characters"),
        ([str(k) for k in range(21)], "", "there are 21 tags"),
        ([5], "", "a tag is '5'"),
        ("word", "", "expected a list"),
        ([], "x" * 4_001, "4,001 characters; expected at most 4,000"),
        ([], None, "the note is 'None'"),
    ],
)
def test_what_is_too_much_is_refused_and_leaves_what_was(
    tmp_path: Path, tags: Any, text: Any, reason: str
) -> None:
    before = write_notes(tmp_path, ["kept"], "as it was")
    with pytest.raises(AnalyzerError, match=reason):
        write_notes(tmp_path, tags, text)
    assert read_notes(tmp_path) == before


HOSTILE: dict[str, Any] = {
    "no JSON": b"{",
    "a list": b"[1]",
    "deep": b"[" * 50_000,
    "long": json.dumps({"tags": [], "text": "x" * 70_000}).encode(),
    "other types": b'{"tags": {"a": 1}, "text": ""}',
    "no UTF-8": b'{"text": "\xff"}',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_strangers_file_becomes_a_sentence(tmp_path: Path, kind: str) -> None:
    run = write_run(tmp_path / "a", [1.0], [[1.0]])
    (run / "notes.json").write_bytes(HOSTILE[kind])
    found = runs_in(tmp_path)[0].notes
    assert (found.tags, found.text) == ((), "")
    assert str(found.problem).startswith("notes.json is not shown (")
    assert write_notes(run, ["mended"], "") == read_notes(run)


def test_a_link_or_a_pipe_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"tags": ["secret"], "text": ""}')
    run = write_run(tmp_path / "a", [1.0], [[1.0]])
    (run / "notes.json").symlink_to(secret)
    assert "expected a file" in str(read_notes(run).problem)
    (run / "notes.json").unlink()
    os.mkfifo(run / "notes.json")
    assert "expected a file" in str(read_notes(run).problem)
    # What is written takes its place, and does not go through it.
    write_notes(run, ["own"], "")
    assert read_notes(run).tags == ("own",) and "secret" in secret.read_text()


def test_a_disk_that_refuses_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_notes(tmp_path, ["kept"], "")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_notes(tmp_path, ["lost"], "")
    assert read_notes(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]

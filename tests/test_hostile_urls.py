"""A stranger's run at a URL: what is copied of it is files of runs, whole and not too much."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import analyzer
from analyzer.cli import main
from analyzer.errors import AnalyzerError
from analyzer.storage.limits import LIMITS
from analyzer.storage.remote import Mirror, local
from tests.support.runs import write_run


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that a URL names, with a good run in it."""
    monkeypatch.setenv("ANALYZER_CACHE", str(tmp_path / "copies"))
    return write_run(tmp_path / "bucket" / "runs" / "mine", [1.0, 0.5], [[1.0, 2.0]] * 2)


def copied(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


def test_links_and_pipes_at_a_url_are_not_followed(there: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "000000000000-000000000001.r0.a0.p1-1.parquet").write_text("secret")
    (there / "splits").symlink_to(tmp_path / "secret")
    (there / "notes.json").symlink_to("/etc/passwd")
    os.mkfifo(there / "edges.json")
    os.mkfifo(there / "steps" / "000000000002-000000000003.r0.a0.p2-2.parquet")
    place = local(there.as_uri())
    names = copied(place)
    assert "run.json" in names and not any("secret" in (place / name).read_text("latin-1")
                                           for name in names)  # fmt: skip
    assert not {"notes.json", "edges.json"} & names and not any(
        n.startswith("splits") for n in names
    )
    assert analyzer.open_run(there.as_uri()).steps["step"].tolist() == [0, 1]


class Bucket:
    """A file system of keys, as S3 has them; what it says of a file need not be true."""

    def __init__(self, keys: Mapping[str, bytes], said: Callable[[bytes], Any] = len) -> None:
        self.keys, self.said, self.sent = dict(keys), said, 0

    def invalidate_cache(self) -> None:
        pass

    def find(self, path: str, detail: bool) -> dict[str, Any]:
        return {
            key: {"size": self.said(value), "ETag": f"{len(value)}", "type": "file"}
            for key, value in self.keys.items()
        }

    def get_file(self, key: str, path: str, callback: Any) -> None:
        with open(path, "wb") as file:
            for _ in range(64):
                file.write(self.keys[key])
                self.sent += len(self.keys[key])
                callback.relative_update(len(self.keys[key]))


def mirrored(there: Path, keys: Mapping[str, bytes], **how: Any) -> Mirror:
    mirror = Mirror(there.as_uri())
    mirror._fs = Bucket({f"{there.parent}/{name}": value for name, value in keys.items()}, **how)
    return mirror


def test_a_key_below_another_one_is_no_folder(there: Path) -> None:
    keys = {"mine/run.json": b"{}", "mine/run.json/x": b"x", "mine/a/b": b"", "mine/a/b/c/d": b""}
    place = mirrored(there, keys).pull()
    assert copied(place) == {"run.json", "a/b"}


@pytest.mark.parametrize(
    "name", ["x" * 300, "x" * 201, "\ud800", "a\0b", "ü" * 101, "/".join("x" * 9 for _ in range(3))]
)
def test_a_name_that_no_file_has_here_is_left_out(there: Path, name: str) -> None:
    is_plain = len(name.encode(errors="replace")) < 100 and name.isprintable()
    place = mirrored(there, {"mine/run.json": b"{}", f"mine/{name}": b""}).pull()
    assert len(copied(place)) == 1 + is_plain


@pytest.mark.parametrize("said", [lambda _: 1, lambda _: None, lambda _: "x", lambda _: -(10**15)])
def test_what_is_sent_counts_and_not_what_was_said(
    there: Path, said: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LIMITS, "copied_mib", 1)
    mirror = mirrored(there, {"mine/run.json": bytes(2**18)}, said=said)
    with pytest.raises(AnalyzerError, match="a file that is copied has 1 MiB, expected at most 1;"):
        mirror.pull()
    assert mirror._fs.sent <= 2**21
    assert copied(mirror.base) == set()


def test_what_was_a_folder_and_is_a_file_now_is_said(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local(there.as_uri())
    parts = [*(there / "steps").iterdir()]
    for path in parts:
        path.unlink()
    (there / "steps").rmdir()
    (there / "steps").write_text("x")
    for words in (["show"], ["diagnose"], ["export", "-o", str(tmp_path / "out")]):
        assert main([words[0], there.as_uri(), *words[1:]]) in (0, 2)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and printed.err.count("\n") <= 1

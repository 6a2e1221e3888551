import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from analyzer.script import when_imported


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module ``awaited_module`` that can be imported and is not yet."""
    path = tmp_path / "awaited_module.py"
    path.write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield path
    sys.modules.pop("awaited_module", None)
    assert sys.meta_path == finders


def test_the_callback_comes_once_when_the_module_is_complete(module: Path) -> None:
    seen: list[int] = []
    when_imported("awaited_module", lambda: seen.append(sys.modules["awaited_module"].x))
    awaited = importlib.import_module("awaited_module")
    importlib.reload(awaited)
    assert seen == [1]
    assert "exec_module" not in vars(awaited.__loader__)


def test_an_imported_module_calls_back_at_once() -> None:
    seen: list[str] = []
    when_imported("sys", lambda: seen.append("sys"))
    assert seen == ["sys"]


def test_looking_for_the_module_is_not_importing_it(module: Path) -> None:
    seen: list[int] = []
    when_imported("awaited_module", lambda: seen.append(1))
    assert importlib.util.find_spec("awaited_module") is not None
    assert seen == []
    importlib.import_module("awaited_module")
    assert seen == [1]


def test_a_canceled_wait_does_not_call_back(module: Path) -> None:
    seen: list[int] = []
    when_imported("awaited_module", lambda: seen.append(1)).cancel()
    importlib.import_module("awaited_module")
    assert seen == []


def test_a_failing_import_reads_as_ever_and_a_later_one_calls_back(module: Path) -> None:
    seen: list[int] = []
    module.write_text("1 / 0\n")
    when_imported("awaited_module", lambda: seen.append(1))
    with pytest.raises(ZeroDivisionError, match="division") as caught:
        exec("import awaited_module")
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert files == [__file__, "<string>", str(module)]
    assert seen == []
    module.write_text("x = 1 # now\n")
    importlib.import_module("awaited_module")
    assert seen == [1]


def test_a_missing_module_is_missing_as_ever() -> None:
    arrival = when_imported("nosuch_module", lambda: None)
    with pytest.raises(ModuleNotFoundError, match="No module named 'nosuch_module'"):
        importlib.import_module("nosuch_module")
    arrival.cancel()

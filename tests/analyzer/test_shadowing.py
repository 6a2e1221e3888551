"""Files of the user's that are called like packages of ours: no command takes them for its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import analyzer

OURS = Path(analyzer.__file__).parents[1]
SCRIPT = """
import dashboard
import reports.mine
import torch

print(dashboard.NAME, reports.mine.NAME)
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
"""
# A mistake in a file of the user's that is imported in place of ours does not stay silent.
LOUD = 'NAME = "the user\'s"\nif __name__ != "dashboard":\n    raise SystemExit("imported")\n'
PACKAGES = {"package": True, "namespace": False}


@pytest.fixture(params=["package", pytest.param("namespace", marks=pytest.mark.slow)])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A working folder with a ``dashboard.py`` and a folder ``reports`` of the user's own."""
    (tmp_path / "dashboard.py").write_text(LOUD)
    (tmp_path / "reports").mkdir()
    if PACKAGES[request.param]:
        (tmp_path / "reports" / "__init__.py").touch()
    (tmp_path / "reports" / "mine.py").write_text('NAME = "and theirs"\n')
    for ours in ("html", "story", "app"):
        (tmp_path / "reports" / f"{ours}.py").write_text('raise SystemExit("imported")\n')
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_commands_and_a_recorded_script_each_import_their_own(folder: Path) -> None:
    plain = run(folder, "train.py")
    assert (plain.returncode, plain.stdout) == (0, "the user's and theirs\n"), plain.stderr
    recorded = run(folder, "-m", "analyzer", "record", "--run", "mine", "train.py")
    assert (recorded.returncode, recorded.stdout) == (0, plain.stdout), recorded.stderr
    assert analyzer.open_run(folder / "mine").manifest["steps"] == 3
    report = run(folder, "-m", "analyzer", "report", "mine", "-o", "mine.html")
    assert report.returncode == 0, report.stderr
    assert "<html" in (folder / "mine.html").read_text()
    server = subprocess.Popen(
        [sys.executable, "-m", "analyzer", "dashboard", "mine", "--port", "0", "--no-browser"],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with server:
        assert server.stdout is not None
        first = server.stdout.readline()
        server.terminate()
        rest = server.stdout.read()
    assert "http://127.0.0.1" in first, first + rest


def test_no_import_name_but_analyzer_is_ours() -> None:
    code = (
        "import analyzer, sys, importlib.util\n"
        "found = [importlib.util.find_spec(name) for name in ('dashboard', 'reports')]\n"
        "print([spec.origin for spec in found if spec is not None])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr

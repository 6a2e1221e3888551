import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from analyzer.cli import main
from analyzer.dashboard.library import Library, source_named
from analyzer.errors import RunNotFoundError
from tests.support.hostile_studies import write_study
from tests.support.runs import write_run

ROOT = Path(__file__).parents[2]


def start(tmp_path: Path, *options: str, **environ: str) -> subprocess.Popen[str]:
    """Start the command without a screen and without an SSH session."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("DISPLAY", "SSH_CONNECTION", "SSH_TTY")
    }
    return subprocess.Popen(
        [sys.executable, "-m", "analyzer", "dashboard", *options],
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that the command prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def stop(process: subprocess.Popen[str]) -> tuple[int, str]:
    """End the command by Ctrl-C; return its exit code and what it wrote to stderr."""
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, errors


def test_the_command_serves_and_ends_at_an_interrupt(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "mine", [1.0], [[1.0]])
    process = start(tmp_path, "--port", "0", "--no-browser")
    address = line(process).split()[2]
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as answer:
        assert "Gradient flow" in answer.read().decode()
    assert stop(process) == (0, "")


def test_it_ends_at_once_whatever_its_threads_do(tmp_path: Path) -> None:
    """One that loads what figures need, or reads a table, was waited for without end."""
    write_run(tmp_path / "runs" / "mine", [1.0], [[1.0]])
    processes = [start(tmp_path, "--port", "0", "--no-browser") for _ in range(3)]
    for process in processes:
        urllib.request.urlopen(line(process).split()[2]).close()
    assert [stop(process) for process in processes] == [(0, "")] * 3


def test_over_ssh_the_command_prints_how_to_forward_the_port(tmp_path: Path) -> None:
    process = start(tmp_path, "--port", "0", SSH_CONNECTION="10.0.0.9 5 10.0.0.1 22")
    port = line(process).split()[2].rstrip("/").rpartition(":")[2]
    assert line(process) == f"from your own machine: ssh -N -L {port}:127.0.0.1:{port} 10.0.0.1\n"
    stop(process)


def test_beyond_loopback_the_command_warns_and_gives_a_token(tmp_path: Path) -> None:
    process = start(tmp_path, "--port", "0", "--host", "0.0.0.0", "--no-browser")
    assert "/?token=" in line(process)
    code, errors = stop(process)
    assert code == 0 and errors.startswith("analyzer: WARNING: listening at '0.0.0.0'")


def test_a_taken_port_is_exit_code_2(capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["dashboard", "--port", str(port), "--no-browser"]) == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard", "nosuch", "--no-browser"]) == 2
    assert "no run 'nosuch'" in capsys.readouterr().err


def test_a_study_and_a_run_are_found_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANALYZER_RUNS", raising=False)
    write_study(Path("runs", "mine"), Path("outside"))
    write_run(Path("runs", "a"), [1.0], [[1.0]])
    assert source_named("mine") == Path("runs", "mine")
    assert source_named("a") == Path("runs", "a") == source_named("latest")
    assert source_named("outside") == Path("outside")
    with pytest.raises(RunNotFoundError, match="no run 'nosuch'"):
        source_named("nosuch")
    points = {run.id for run in Library([source_named("mine")]).listing()}
    assert points == {f"depth{d}-{s}-seed0" for d in (4, 6) for s in ("on", "off")}


def test_a_notebook_shows_the_run_in_a_frame(tmp_path: Path) -> None:
    code = (
        "import analyzer, re, sys, urllib.request\n"
        "from analyzer.dashboard.notebook import show\n"
        "shown = show(analyzer.open_run('mine'))\n"
        "assert shown.url.endswith('/?run=mine'), shown.url\n"
        "assert f'src=\"{shown.url}\"' in shown._repr_html_()\n"
        "with urllib.request.urlopen(shown.url) as answer:\n"
        "    assert 'localhost:*' in answer.headers['Content-Security-Policy']\n"
        "    assert answer.headers['X-Frame-Options'] is None\n"
        "assert 'torch' not in sys.modules\n"
    )
    write_run(tmp_path / "mine", [1.0], [[1.0]])
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

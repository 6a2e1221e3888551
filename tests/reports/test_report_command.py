import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analyzer.cli import main
from tests.support.full_run import write_full_pair, write_network_run

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small runs without probes."""
    folder = tmp_path_factory.mktemp("runs")
    for name, shortcuts in (("net-plain", False), ("net", True)):
        write_network_run(
            folder / name,
            has_shortcuts=shortcuts,
            blocks=3,
            steps=4,
            probes=False,
            created=f"2026-11-2{int(shortcuts)}T00:00:00+00:00",
        )
    return folder


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_options_a_report_of_the_latest_run_is_written(
    runs_dir: Path, capsys: Output
) -> None:
    assert main(["report", "latest", "--runs-dir", str(runs_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("net-report.html: 1") and lines[0].endswith(" MiB")
    assert "<title>Gradient flow of net</title>" in Path("net-report.html").read_text()
    twin = runs_dir / "net-plain"
    assert lines[-1] == f"Its plain twin is beside it: analyzer report {twin} {runs_dir / 'net'}"


def test_a_report_of_a_pair_with_its_figures_and_tables(runs_dir: Path, capsys: Output) -> None:
    options = ["-o", "out/r.html", "--figures", "f", "--tables", "t", "--width", "ieee"]
    options += ["--format", "svg", "--runs-dir", str(runs_dir)]
    assert main(["report", "net-plain", "net", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("f: ") and lines[2] == "t: 4 tables as LaTeX, Markdown and CSV"
    assert 'width="252pt"' in Path("f/depth_profile.svg").read_text()
    assert Path("f/depth_profile.csv").is_file()
    assert "Verdict" in Path("out/r.html").read_text()
    assert {path.stem for path in Path("t").iterdir()} == {"runs", "layers-1", "layers-2", "claims"}


def test_several_seeds_may_be_joined_by_commas_and_a_twin_is_found_by_its_seed(
    runs_dir: Path, tmp_path: Path, capsys: Output
) -> None:
    for name in ("net-plain", "net"):
        shutil.copytree(runs_dir / name, tmp_path / "runs" / f"{name}-5")
    manifest = tmp_path / "runs" / "net-5" / "run.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"twin": "net-plain-5"}))
    assert main(["report", "net-plain-5,net-5", "-o", "both.html"]) == 0
    assert "<title>Gradient flow of net-plain-5 and net-5</title>" in Path("both.html").read_text()
    assert main(["report", "net-5", "-o", "one.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("runs/net-plain-5 runs/net-5")


def test_an_anonymous_report_has_no_name_in_its_name(runs_dir: Path) -> None:
    assert main(["report", "net", "--anonymous", "--runs-dir", str(runs_dir)]) == 0
    assert "Gradient flow of run 1" in Path("anonymous-report.html").read_text()
    assert not Path("net-report.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nosuch"], "no run"),
        (["net", "-o", "."], "-o '.' is a folder; expected a file to write"),
        (["net", "--width", "wide"], "--width is 'wide'; expected acl"),
        (["net", "--format", "eps"], "--format is 'eps'; expected some of pdf"),
        (["net", "--style", "nosuch"], "--style 'nosuch' cannot be read"),
        (["net", "--template", "nosuch"], "--template 'nosuch' is not a directory"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_written(
    runs_dir: Path, capsys: Output, options: list[str], message: str
) -> None:
    assert main(["report", *options, "--runs-dir", str(runs_dir)]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.slow
@pytest.mark.alone
def test_a_twin_report_is_written_within_ten_seconds(tmp_path: Path) -> None:
    paths = [str(path) for path in write_full_pair(tmp_path)]
    seconds = []
    for _ in range(2):
        # Processor time of the command with all that it imports: other work adds nothing to it.
        before = os.times().children_user
        subprocess.run([sys.executable, "-m", "analyzer", "report", *paths], check=True)
        seconds.append(os.times().children_user - before)
    assert min(seconds) < 10

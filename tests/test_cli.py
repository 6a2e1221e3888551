import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from analyzer.cli import COMMANDS, main
from analyzer.options import RecordOptions

ROOT = Path(__file__).parents[1]
Recorded = Callable[..., RecordOptions]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a script in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANALYZER_RUNS", raising=False)
    (tmp_path / "train.py").touch()
    return tmp_path


@pytest.fixture
def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Calls ``analyzer record`` and returns what it would record."""
    seen: list[RecordOptions] = []

    def record(options: RecordOptions) -> int:
        seen.append(options)
        return 7

    monkeypatch.setattr("analyzer.cli.record._record", record)

    def call(*arguments: str) -> RecordOptions:
        assert main(["record", *arguments]) == 7
        return seen[-1]

    return call


@pytest.mark.alone
def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = {"torch", "dash", "pandas", "numpy", "pyarrow", "plotly", "rich"}
    code = (
        "import sys; from analyzer.cli import main; code = main(['--help'])\n"
        f"print(code, sorted({heavy} & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        seconds.append(time.perf_counter() - start)
    assert out.endswith("0 []\n")
    assert min(seconds) < 0.5


def test_help_lists_the_commands_in_the_order_of_the_contract(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2]
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    contract = (
        "record demo runs show diagnose compare explain probe study diverge reproduce dashboard "
        "report export"
    )
    assert names == contract.split()
    assert list(COMMANDS) == contract.split()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_page_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    assert f"\n      analyzer {command} " in capsys.readouterr().out.replace(
        f"analyzer {command}\n", f"analyzer {command} \n"
    )


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"analyzer {project['version']}\n"


def test_what_follows_the_target_belongs_to_the_script(recorded: Recorded) -> None:
    options = recorded("--every", "5", "train.py", "--every", "x", "-m", "--", "--help")
    assert (options.every, options.target) == (5, "train.py")
    assert options.args == ("--every", "x", "-m", "--", "--help")


def test_a_module_swallows_the_rest(recorded: Recorded) -> None:
    options = recorded("--run", "new", "-m", "package.train", "--lr", "0.1", "-m", "x")
    assert (options.as_module, options.target) == (True, "package.train")
    assert (options.run, options.args) == (Path("new"), ("--lr", "0.1", "-m", "x"))


def test_every_option_of_a_recording_arrives(recorded: Recorded) -> None:
    options = recorded(
        *("--columns", "norms", "--layers", "conv", "--skip-layers", "bn", "--splits-every", "3"),
        *("--updates-every", "4", "--checkpoint-every", "5", "--stop-after", "6", "--seed", "7"),
        *("--quiet", "--steps", "8", "--data", "cifar10:/data", "--batch-size", "9"),
        *("--optimizer", "adam", "--lr", "0.5", "--device", "cpu", "--runs-dir", "all"),
        "zoo:resnet20",
    )
    assert options == RecordOptions(
        target="zoo:resnet20",
        columns="norms",
        layers="conv",
        skip_layers="bn",
        splits_every=3,
        updates_every=4,
        checkpoint_every=5,
        stop_after=6,
        seed=7,
        quiet=True,
        steps=8,
        data="cifar10:/data",
        batch_size=9,
        optimizer="adam",
        lr=0.5,
        device="cpu",
        runs_dir=Path("all"),
    )


def test_the_runs_folder_comes_from_the_environment(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recorded("train.py").runs_dir == Path("runs")
    monkeypatch.setenv("ANALYZER_RUNS", "elsewhere")
    assert recorded("train.py").runs_dir == Path("elsewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recrod"], "there is no command 'recrod'; did you mean 'record'?"),
        (["record"], "Missing argument 'TARGET'. See 'analyzer record --help'."),
        (["record", "--nosuch", "train.py"], "No such option: --nosuch"),
        (["record", "nosuch.py"], "script 'nosuch.py' not found"),
        (["record", "--run", "train.py", "train.py"], "run folder 'train.py' exists"),
        (["record", "--every", "0", "train.py"], "--every is 0; expected a whole number from 1"),
        (["record", "--every", "x", "train.py"], "Invalid value for '--every'"),
        (["record", "--stop-after", "-1", "train.py"], "--stop-after is -1; expected a whole"),
        (["record", "--layers", "(", "train.py"], "--layers is '('; expected a regular expression"),
        (["record", "--columns", "few", "train.py"], "--columns is 'few'; expected all or norms"),
        (["record", "--optimizer", "x", "train.py"], "--optimizer is 'x'; expected sgd or adam"),
        (["record", "--data", "mnist", "train.py"], "--data is 'mnist'; expected digits,"),
        (["record", "--lr", "nan", "train.py"], "--lr is nan; expected a finite number"),
        (["record", "--seed", "-1", "train.py"], "--seed is -1; expected a whole number from 0"),
        (["record", "zoo:plain20", "--steps", "5"], "'zoo:plain20' is followed by '--steps 5'"),
        (["record", "--resume", "nosuch", "-m", "train"], "no run 'nosuch' to resume"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_exit_code_2(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"analyzer: {message}")
    assert err.count("\n") == 1


def test_options_may_stand_in_the_environment_and_typed_ones_win(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANALYZER_OPTIONS", "--every 5 --run 'runs/a b' --columns norms")
    options = recorded("--every", "7", "train.py")
    assert (options.every, options.run, options.columns) == (7, Path("runs/a b"), "norms")


def test_what_the_environment_holds_must_be_options(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANALYZER_OPTIONS", "--run 'runs/a")
    assert main(["record", "train.py"]) == 2
    assert 'ANALYZER_OPTIONS is "--run \'runs/a" (No closing quotation)' in capsys.readouterr().err


def test_defaults_come_from_the_nearest_pyproject(
    recorded: Recorded, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pyproject.toml").write_text(
        "[tool.analyzer]\nruns-dir = 'all'\nevery = 3\n"
        "[tool.analyzer.record]\nevery = 5\nquiet = true\n[tool.analyzer.dashboard]\nport = 1\n"
    )
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner")
    options = recorded("../train.py")
    assert (options.runs_dir, options.every, options.quiet) == (Path("all"), 5, True)
    assert recorded("--every", "2", "../train.py").every == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[tool.analyzer]\nnosuch = 1",
            "[tool.analyzer] has the key 'nosuch', which is not an option",
        ),
        ("[tool.analyzer.record]\nevry = 1", "[tool.analyzer.record] has the key 'evry'"),
        ("[tool.analyzer.recrod]\nevery = 1", "[tool.analyzer.recrod] does not name a command"),
        ("[tool.analyzer.record]\nevery = 'x'", "Invalid value for '--every'"),
        ("[tool]\nanalyzer = 3", "tool.analyzer is 3; expected a table"),
        ("[tool", "pyproject.toml cannot be read"),
    ],
)
def test_a_mistake_in_pyproject_is_told(
    folder: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pyproject.toml").write_text(text)
    assert main(["record", "train.py"]) == 2
    assert message in capsys.readouterr().err
    assert main(["record", "--help"]) == 0

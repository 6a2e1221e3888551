import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from analyzer.cli import main
from tests.support.runs import layer_row, write_run

JOIN = {
    "join": 0,
    "name": "block",
    "operation": "add",
    "shortcut": "identity",
    "branch_layers": ["layers.1"],
    "shortcut_layers": [],
    "branch_parameters": 20,
    "shortcut_parameters": 0,
}
HOSTILE = ["l[red]x[/red]", "e\x1b[31m", "two\nlines", "x" * 300, "=1+1", 'quo"te,d']


def chain(layers: int, gain: float, steps: int = 1) -> list[list[float]]:
    return [[gain ** (layers - 1 - k) for k in range(layers)] for _ in range(steps)]


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_show_says_gain_loss_joins_and_every_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(
        tmp_path / "mine",
        [2.0, 1.0, 0.5],
        chain(8, 0.1, 3),
        joins=[JOIN],
        device="cpu",
        recorder_seconds=0.15,
        seconds=1.5,
        not_recorded=["weights are not saved"],
    )
    text = shown(capsys, "show", run)
    assert text.startswith("mine · finished · 3 steps in 1.5 s · recorder 0.15 s (10.0%)\ncpu\n")
    assert "warning: weights are not saved" in text
    assert "Gain 0.1 per layer going backward" in text
    assert "falls 7 decades from the" in text
    assert "Measured: 1 at layers.7, 1e-07 at layers.0; the first over the last is 1e-07." in text
    assert "2 → 0.5, best 0.5 at step 2." in text
    assert "Joins: 1 (1 identity)." in text
    assert sum(line.startswith("layers.") for line in text.split("\n")) == 8


def test_show_elsewhere_than_on_a_terminal_has_no_color_and_100_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mine", [1.0], chain(60, 0.9))
    text = shown(capsys, "show", run)
    assert "\x1b" not in text
    assert 90 <= max(len(line) for line in text.split("\n")) <= 100


def test_show_abbreviates_many_layers_and_draws_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "deep", [1.0], chain(1000, 0.99))
    text = shown(capsys, "show", run)
    assert "of 1,000 layers" in text
    assert "... 960 more" in text
    assert sum(line.startswith("layers.") for line in text.split("\n")) == 40
    assert "--layers REGEX" in text


def test_show_selects_a_step_and_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "mine", [1.0, 1.0], [[1.0, 1.0, 1.0], [4.0, 2.0, 1.0]])
    first = shown(capsys, "show", run, "--step", "0", "--layers", r"\.[12]$")
    assert "of 2 layers, step 0" in first
    assert "Gain 1 per layer" in first
    assert "layers.0 " not in first.split("layer ", 1)[1].split("Linear", 1)[1]
    assert "Gain 2 per layer" in shown(capsys, "show", run)
    assert "Gain 1 per layer" in shown(capsys, "show", run, "--step", "first")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "9"], "no layer statistics at step 9; expected one of its 2 recorded steps"),
        (["--step", "x"], "--step is 'x'; expected a step number, 'first' or 'last'"),
        (["--layers", "("], "--layers is '(', which is not a regular expression"),
        (["--layers", "zz"], "--layers 'zz' matches none of the 3 layers, such as 'layers.0'"),
    ],
)
def test_show_refuses_what_the_run_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run = write_run(tmp_path / "mine", [1.0, 1.0], chain(3, 1.0, 2))
    assert main(["show", str(run), *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_show_finds_where_nan_came_first_and_names_the_step_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan = math.nan
    norms = [[1.0] * 4, [nan, nan, 1.0, 0.0], [nan] * 4]
    text = shown(capsys, "show", write_run(tmp_path / "mine", [1.0, nan, nan], norms))
    assert "First NaN or infinite value: step 1, in the output gradient of layer layers.1." in text
    assert "--step 0" in text
    assert "✕ NaN or infinite gradient: 4 layers" in text
    assert "No gain: of 4 layers with parameters, 4 have a NaN or infinite gradient" in text
    assert "1 → NaN, best 1 at step 0; not finite from step 1" in text
    before = shown(capsys, "show", tmp_path / "mine", "--step", "1")
    assert "∅ gradient exactly zero: 1 layer (layers.3)" in before


@pytest.mark.parametrize(
    ("norms", "sentence"),
    [
        ([[None, None]], "No gradient was recorded at step 0: no backward pass reached a layer."),
        ([[2.0]], "No gain: it needs 2 layers of different depth"),
        ([[0.0, 0.0]], "No gain: the gradient is exactly zero in 2 of 2 layers with parameters."),
        ([[]], "Nothing to draw: the run holds 1 step without layer statistics."),
    ],
)
def test_show_says_why_there_is_no_gain(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    norms: list[list[float | None]],
    sentence: str,
) -> None:
    assert sentence in shown(capsys, "show", write_run(tmp_path / "mine", [1.0], norms))


def test_show_of_a_failed_and_of_a_crashed_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = write_run(tmp_path / "a", [], [], status="failed", error="ValueError: bad\nshape")
    text = shown(capsys, "show", failed)
    assert "error: ValueError: bad\\nshape" in text
    assert "the run holds no step. It failed before the first step" in text
    crashed = write_run(tmp_path / "b", [1.0], chain(3, 0.5), status="running")
    manifest = json.loads((crashed / "run.json").read_text())
    manifest["heartbeat"] = "2020-01-01T00:00:00+00:00"
    (crashed / "run.json").write_text(json.dumps(manifest))
    text = shown(capsys, "show", crashed)
    assert "crashed: it stopped without an end" in text
    assert "Gain 0.5 per layer" in text


def test_hostile_layer_names_appear_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = [layer_row(i, name) for i, name in enumerate(HOSTILE)]
    run = write_run(tmp_path / "mine", [1.0], chain(6, 1.0), layers=layers)
    text = shown(capsys, "show", run)
    assert "\x1b" not in text
    for expected in ("l[red]x[/red]", "e\\x1b[31m", "two\\nlines", "=1+1", 'quo"te,d'):
        assert f"\n{expected} " in text
    assert "xxx…xxx" in text


def test_show_is_ascii_where_stdout_is_and_loads_no_torch(tmp_path: Path) -> None:
    layers = [layer_row(0, "层"), layer_row(1, "b")]
    run = write_run(tmp_path / "mine", [1.0], [[0.0, 1.0]], layers=layers)
    code = (
        "import sys; from analyzer.cli import main; "
        "code = main(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-X", "utf8=0", "-c", code, "show", str(run)]
    done = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"\\u5c42" in done.stdout


def test_runs_lists_newest_first_with_loss_and_broken_ones_with_their_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "old", [1.0, 0.25], chain(3, 1.0, 2), created="2026-01-01T00:00:00Z")
    write_run(tmp_path / "new", [math.nan], chain(2, 1.0), created="2026-02-01T00:00:00Z")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    text = shown(capsys, "runs", tmp_path)
    rows = [line.split() for line in text.split("\n")[2:5]]
    assert rows[0][:6] == ["new", "finished", "1", "2", "0", "NaN"]
    assert rows[1][:6] == ["old", "finished", "2", "3", "0", "0.25"]
    assert rows[2][:3] == ["bad", "broken", "–"]
    assert "run.json is damaged" in text


def test_runs_as_json_is_strict_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", [math.nan], chain(2, 1.0), created="2026-02-01T00:00:00Z")
    write_run(tmp_path / "b", [0.5], chain(2, 1.0), joins=[JOIN], created="2026-01-01T00:00:00Z")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    rows = json.loads(shown(capsys, "runs", tmp_path, "--json"), parse_constant=refuse)
    assert [(r["name"], r["loss"], r["joins"]) for r in rows] == [("a", "NaN", 0), ("b", 0.5, 1)]


def test_runs_without_a_run_say_what_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANALYZER_RUNS", raising=False)
    text = shown(capsys, "runs")
    assert text.startswith("No runs: the folder 'runs' does not exist")
    assert "analyzer record train.py" in text
    Path("empty").mkdir()
    assert "the folder 'empty' holds no run" in shown(capsys, "runs", "empty")
    assert json.loads(shown(capsys, "runs", "empty", "--json")) == []


def test_export_keeps_full_precision_and_tells_null_from_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [0.1, math.nan, math.inf, None, 5e-324, 1 / 3]
    run = write_run(tmp_path / "mine", [None, math.nan], [values, values])
    shown(capsys, "export", run, "--format", "csv", "-o", tmp_path / "out")
    rows = cells(tmp_path / "out" / "layer_stats.csv")
    norms = [row["output_gradient_norm"] for row in rows]
    assert norms[1:4] == ["NaN", "inf", ""]
    assert [float(norms[i]) for i in (0, 4, 5)] == [0.1, 5e-324, 1 / 3]
    assert [row["layer_name"] for row in rows] == [f"layers.{i}" for i in range(6)] * 2
    assert [row["loss"] for row in cells(tmp_path / "out" / "steps.csv")] == ["", "NaN"]


def test_export_disarms_formulas_and_keeps_every_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [*HOSTILE, "@SUM(A1)", "-1", "+1"]
    layers = [layer_row(i, name) for i, name in enumerate(names)]
    run = write_run(tmp_path / "mine", [-1.0], chain(9, 1.0), layers=layers)
    shown(capsys, "export", run, "-o", tmp_path / "out")
    found = [row["name"] for row in cells(tmp_path / "out" / "layers.csv")]
    assert found == [f"'{name}" if name[0] in "=+-@" else name for name in names]
    assert cells(tmp_path / "out" / "steps.csv")[0]["loss"] == "-1"


def test_export_writes_every_table_with_a_header_and_probes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mine", [1.0] * 3, chain(2, 1.0, 3), joins=[JOIN])
    import pyarrow as pa
    import pyarrow.parquet as pq

    (run / "probes" / "lesion").mkdir(parents=True)
    table = pa.table({"join": pa.array([0], pa.int32()), "loss": [2.5]})
    pq.write_table(table, run / "probes" / "lesion" / "step-000000000002.parquet")
    text = shown(capsys, "export", run, "-o", tmp_path / "out")
    assert "layer_stats.csv: 6 rows" in text
    probe = cells(tmp_path / "out" / "probes" / "lesion.csv")
    measured = {"step": "2", "join": "0", "join_name": "block", "loss": "2.5"}
    assert [{name: value for name, value in row.items() if value} for row in probe] == [measured]
    names = {path.name for path in (tmp_path / "out").glob("*.csv")}
    assert names == {
        f"{table}.csv"
        for table in (
            *("layers", "parameters", "joins", "edges", "steps"),
            *("layer_stats", "parameter_stats", "splits"),
        )
    }  # fmt: skip
    header = (tmp_path / "out" / "splits.csv").read_text().strip()
    assert header.startswith("step,join,join_name,join_gradient_norm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "csv"], "holds files already; expected a new or empty folder"),
        (["--format", "tensorboard"], "holds files already; expected a new or empty folder"),
        (["--format", "xml"], "--format is 'xml'; expected one of csv, tensorboard"),
    ],
)
def test_export_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run = write_run(tmp_path / "mine", [1.0], chain(2, 1.0))
    assert main(["export", str(run), *arguments, "-o", str(run)]) == 2
    assert message in capsys.readouterr().err

import json
import math
from pathlib import Path
from typing import Any

import pytest

from analyzer.analysis.findings import THRESHOLDS
from analyzer.cli import main
from analyzer.cli.terminal import json_text
from tests.support.full_run import write_full_pair
from tests.support.runs import layer_row, write_run

JOIN = {
    "join": 0,
    "name": "block",
    "operation": "add",
    "shortcut": "identity",
    "branch_layers": ["layers.1"],
    "shortcut_layers": [],
}


def written(path: Path, gain: float, losses: list[float], layers: int = 9, **changes: Any) -> Path:
    """A run with this gain whose units are never dead."""
    rows = [layer_row(i, f"layers.{i}", output_shape=[8, 64]) for i in range(layers)]
    norms = [[gain ** (layers - 1 - k) for k in range(layers)]] * len(losses)
    return write_run(path, losses, norms, layers=rows, **changes)


def called(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == code
    return capsys.readouterr().out


def strict(text: str) -> Any:
    """JSON without the words that it does not have."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_diagnose_exits_1_and_prints_the_sentence_and_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path / "mine", 0.1, [2.0, 2.0, 2.0])
    text = called(capsys, 1, "diagnose", run)
    assert text.startswith("mine: 3 steps, finished\nFindings: 1 severe.\nsevere | vanishing: ")
    assert "it falls 8 decades from the last layer to the first" in text
    assert "Add shortcuts or normalization" in text


def test_diagnose_of_a_healthy_run_exits_0_with_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path / "mine", 1.0, [2.0, 1.0, 0.5])
    assert "Findings: none." in called(capsys, 0, "diagnose", run)
    assert strict(called(capsys, 0, "diagnose", run, "--json")) == []


def test_diagnose_as_json_has_every_field_and_a_text_for_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path / "mine", 0.1, [2.0, 2.0, 2.0])
    (finding,) = strict(called(capsys, 1, "diagnose", run, "--json"))
    assert list(finding) == [
        *("code", "severity", "layers", "steps", "value", "threshold", "sentence", "remedy")
    ]
    assert finding["value"] == pytest.approx(8.0)
    assert strict(json_text({"x": [math.nan, math.inf, -math.inf, None]})) == {
        "x": ["NaN", "inf", "-inf", None]
    }


def test_diagnose_takes_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path / "mine", 0.5, [2.0, 2.0, 2.0])
    called(capsys, 0, "diagnose", run)
    called(capsys, 1, "diagnose", run, "--threshold", "vanishing_decades=2")
    listed = called(
        capsys, 0, "diagnose", run, "--thresholds", "--threshold", "vanishing_decades=2"
    )
    assert listed.startswith("vanishing_decades = 2: ")
    assert len([line for line in listed.splitlines() if line[0] != " "]) == len(THRESHOLDS)


@pytest.mark.parametrize("given", ["nosuch=1", "vanishing_decades", "vanishing_decades=x"])
def test_diagnose_refuses_what_is_no_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    run = written(tmp_path / "mine", 1.0, [2.0])
    assert main(["diagnose", str(run), "--threshold", given]) == 2
    assert f"--threshold is '{given}'; expected NAME=VALUE" in capsys.readouterr().err


def test_a_hostile_layer_name_is_harmless_in_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = [layer_row(0, "[red]e\x1b[31m", output_shape=[8, 4]), layer_row(1, "b")]
    run = write_run(tmp_path / "mine", [1.0] * 3, [[1.0, 1.0]] * 3, layers=layers)
    text = called(capsys, 0, "diagnose", run)
    assert "[red]e\\x1b[31m" in text
    assert "\x1b" not in text


def test_show_and_runs_carry_the_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "sick", 0.1, [2.0, 2.0, 2.0], created="2026-02-01T00:00:00Z")
    written(tmp_path / "well", 1.0, [2.0, 1.0, 0.5], created="2026-01-01T00:00:00Z")
    assert "severe | vanishing: The gradient" in called(capsys, 0, "show", tmp_path / "sick")
    assert "Findings: none." in called(capsys, 0, "show", tmp_path / "well")
    rows = strict(called(capsys, 0, "runs", tmp_path, "--json"))
    assert [row["verdict"] for row in rows] == ["vanishing", "healthy"]
    assert "vanishing" in called(capsys, 0, "runs", tmp_path)
    rows = strict(called(capsys, 0, "runs", tmp_path, "--json", "--quick"))
    assert [row["verdict"] for row in rows] == [None, None]


def test_compare_puts_nets_of_any_depth_on_one_axis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = written(tmp_path / "plain", 0.1, [2.0, 2.0], layers=9)
    right = written(tmp_path / "residual", 1.0, [2.0, 0.5], layers=5, joins=[JOIN])
    compared = strict(called(capsys, 0, "compare", left, right, "--json"))
    places = [row["relative_depth"] for row in compared["profile"]]
    assert places == [k / 10 for k in range(11)]
    for row in compared["profile"]:
        assert row["left"] == pytest.approx(0.1 ** (8 * (1 - row["relative_depth"])))
        assert row["right"] == pytest.approx(1.0)
        assert row["log10_ratio"] == pytest.approx(8 * (1 - row["relative_depth"]))
    assert (compared["left"]["joins"], compared["right"]["joins"]) == (0, 1)
    assert compared["left"]["findings"] == ["vanishing"]
    assert compared["sentence"].startswith(
        "plain: gain 0.1 per layer at step 1, the output gradient falls 8 decades, final loss 2; "
    )
    text = called(capsys, 0, "compare", left, right)
    assert "gain per layer, last step" in text
    assert "findings" in text


def test_compare_leaves_places_without_a_usable_gradient_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    norms = [[0.0, math.nan, 0.01, 0.1, 1.0]]
    left = write_run(tmp_path / "a", [2.0], norms)
    right = write_run(tmp_path / "b", [2.0], [[1.0] * 5])
    compared = strict(called(capsys, 0, "compare", left, right, "--json"))
    values = [row["left"] for row in compared["profile"]]
    assert values[:5] == [None] * 5
    assert values[5] == pytest.approx(0.01)
    assert compared["sentence"].startswith("a: gain 0.1 per layer at step 0, the output gr")


def test_explain_prints_every_claim_with_its_query(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = written(tmp_path / "plain", 0.1, [2.0, 2.0])
    residual = written(tmp_path / "residual", 1.0, [2.0, 0.5], joins=[JOIN])
    text = called(capsys, 0, "explain", plain, residual)
    assert text.startswith("Vanishing gradients separate the two: without shortcuts the gradient")
    assert "yes           Does the gradient vanish without shortcuts, and not with them?" in text
    assert ">>> (plain.trunk(0).decades_fallen, residual.trunk(0).decades_fallen)\n" in text
    assert "not measured  Are the gradients of different inputs unrelated without" in text
    assert "In the queries, plain is analyzer.open_run(...) of plain, residual of residual." in text
    assert "analyzer probe plain shattering --replay" in " ".join(text.split())


def test_explain_names_what_of_a_run_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, residual = write_full_pair(tmp_path)
    damaged = sorted((residual / "probes" / "lesion").iterdir())[-1]
    damaged.write_bytes(damaged.read_bytes()[:-200])
    said = f"warning: residual: probes/lesion/{damaged.name} cannot be read and is left out"
    assert said in called(capsys, 0, "explain", plain, residual)
    assert main(["explain", str(plain), str(residual), "--json"]) == 0
    told = capsys.readouterr()
    assert said in told.err and json.loads(told.out)["sentence"]


def test_explain_as_json_takes_several_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, gain in enumerate((0.1, 0.2)):
        written(tmp_path / f"plain-{seed}", gain, [2.0, 2.0])
        written(tmp_path / f"residual-{seed}", 1.0, [2.0, math.nan], joins=[JOIN])
    names = "plain-0,plain-1", "residual-0,residual-1"
    said = strict(called(capsys, 0, "explain", *names, "--json", "--runs-dir", tmp_path))
    assert said["evidence"]["seeds"] == 2
    claims = {claim["key"]: claim for claim in said["claims"]}
    ends = claims["vanishing"]["spread"]["plain"]
    assert ends == pytest.approx([-8 * math.log10(0.2), 8.0])
    assert claims["training_loss"]["residual"] == "NaN"
    assert claims["training_loss"]["status"] == "undefined"
    assert "residual-0: its loss is not finite" in claims["training_loss"]["text"] or (
        "residual-0 is not finite from step 1 on" in claims["training_loss"]["text"]
    )


def test_explain_of_two_alike_names_both_and_proposes_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        written(tmp_path / name, 1.0, [1.0], joins=[JOIN])
    assert main(["explain", "a", "b", "--runs-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "runs 'a' and 'b' all have shortcuts" in error
    assert "analyzer compare a b" in error


def test_explain_of_one_residual_run_says_what_its_shortcuts_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path / "residual", 1.0, [2.0, 0.5], joins=[JOIN])
    text = called(capsys, 0, "explain", run)
    assert text.startswith("From the last layer to the first the gradient")
    assert "In the queries, residual is analyzer.open_run(...) of residual." in text
    assert main(["explain", str(written(tmp_path / "plain", 1.0, [2.0]))]) == 2
    assert "analyzer diagnose plain" in capsys.readouterr().err


def test_explain_refuses_unequal_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        written(tmp_path / name, 1.0, [1.0])
    assert main(["explain", "a,b", "c", "--runs-dir", str(tmp_path)]) == 2
    assert "PLAIN names 2 runs and RESIDUAL 1" in capsys.readouterr().err


def test_the_demo_ends_with_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--depth", "4", "--steps", "3", "--quiet", "--probe", "paths")
    text = called(capsys, 0, "demo", *arguments, "--runs-dir", tmp_path)
    end = text[text.index("output gradient norm") :]
    assert "without shortcuts the gradient" in end
    assert "\nyes   " in end
    assert "the effective path length is" in end
    assert "\nnot measured" in end
    assert "Look closer: analyzer explain" in end

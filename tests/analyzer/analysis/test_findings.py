import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzer
from analyzer.analysis.finding import Rule, Threshold, checked_rules, stretch
from analyzer.analysis.findings import (
    RULES,
    THRESHOLDS,
    findings,
    health,
    rules_table,
    thresholds_table,
    thresholds_with,
)
from analyzer.analysis.ratio_rules import remaining_share
from analyzer.figures.catalog import PANELS
from analyzer.storage.rows import Block, StepRecord
from analyzer.storage.run import open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import RunWriter
from tests.support.illnesses import HEALTHY, SICK, record
from tests.support.runs import TIME, layer_row, write_run

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


def codes(path: Path, **thresholds: float) -> list[str]:
    return [finding.code for finding in findings(open_run(path), thresholds)]


def chains(gains: list[float], layers: int = 7) -> list[list[float]]:
    """Norms of a chain with this gain at each step."""
    return [[gain ** (layers - 1 - k) for k in range(layers)] for gain in gains]


def wide_run(path: Path, losses: list[float], norms: list[list[float]]) -> Path:
    """A run as ``write_run`` makes it, with too many units for its dead ones to matter."""
    layers = [layer_row(i, f"layers.{i}", output_shape=[8, 64]) for i in range(len(norms[0]))]
    return write_run(path, losses, norms, layers=layers)


def add_step(
    writer: RunWriter, step: int, block: Block, *, skipped: bool, loss: float = 1.0
) -> None:
    columns = {"step": step, "loss": loss, "skipped": skipped, "time": TIME}
    record = StepRecord(columns, [block])
    writer.add(lambda: record)


def split_run(path: Path, branch: list[float], cosine: float = 0.0) -> Path:
    """A run of one join whose shortcut gradient is 1, with this branch gradient at each step."""
    writer = RunWriter(path, {})
    writer.write_layers([layer_row(0, "layers.0"), layer_row(1, "layers.1", join=0, role="branch")])
    writer.write_parameters([])
    writer.write_joins([JOIN])
    for step, b in enumerate(branch):
        values = np.array([[1.0, 1.0, b, 1.0, cosine, 1.0, 1.0, 0.5, 1.1, 0.0]])
        block = Block("splits", np.zeros(1, np.int32), values, None)
        add_step(writer, step, block, skipped=False)
    writer.close("finished")
    return path


@pytest.mark.parametrize("illness", SICK)
def test_each_sick_net_has_exactly_its_illness(tmp_path: Path, illness: str) -> None:
    run = analyzer.open_run(record(SICK[illness](), tmp_path / "run"))
    (finding,) = run.findings()
    assert finding.code == illness
    assert finding.remedy.endswith(".")
    assert finding.steps[0] <= finding.steps[1]
    assert set(finding.layers) <= {*run.layers["name"], *run.parameters["name"]}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_net_has_no_finding(tmp_path: Path, name: str) -> None:
    assert findings(open_run(record(HEALTHY[name](), tmp_path / "run"))) == []


def test_vanishing_carries_the_closed_form_of_its_number(tmp_path: Path) -> None:
    run = wide_run(tmp_path / "run", [2.0] * 4, chains([0.1] * 4))
    (finding,) = findings(open_run(run))
    assert (finding.code, finding.severity, finding.steps) == ("vanishing", "severe", (0, 3))
    assert finding.value == pytest.approx(6.0)
    assert finding.threshold == 3.0
    assert "falls 6 decades" in finding.sentence
    assert "gain 0.1 per layer" in finding.sentence


def test_a_spike_is_no_finding_and_a_long_piece_is(tmp_path: Path) -> None:
    spike = wide_run(tmp_path / "a", [1.0] * 20, chains([1.0] * 9 + [10.0] + [1.0] * 10))
    piece = wide_run(tmp_path / "b", [1.0] * 20, chains([1.0] * 9 + [10.0] * 8 + [1.0] * 3))
    assert codes(spike) == []
    (finding,) = findings(open_run(piece))
    assert (finding.code, finding.steps) == ("exploding", (9, 16))


def test_a_cliff_names_its_layer_and_a_slope_is_none(tmp_path: Path) -> None:
    # Of seven layers the fourth takes away four decades; beside it, each has a gain of 0.8.
    slope = np.array(chains([0.8])[0])
    cliff = np.where(np.arange(7) < 3, 1e-4, 1.0) * slope
    (finding,) = findings(open_run(wide_run(tmp_path / "a", [2.0] * 4, [cliff.tolist()] * 4)))
    assert (finding.code, finding.layers, finding.steps) == ("cliff", ("layers.3",), (0, 3))
    assert finding.value == pytest.approx(4 + math.log10(1 / 0.8))
    assert "falls by 4.1 decades at one layer, layers.3" in finding.sentence
    assert codes(wide_run(tmp_path / "b", [2.0] * 4, [slope.tolist()] * 4)) == []


def test_what_the_first_step_alone_shows_is_said_with_its_step_and_layer(tmp_path: Path) -> None:
    norms = chains([1.8] + [1.0] * 19, layers=9)
    (finding,) = findings(open_run(wide_run(tmp_path / "a", [2.0] * 20, norms)), LOW)
    assert (finding.code, finding.severity) == ("explodes_at_first", "warning")
    assert finding.value == pytest.approx(8 * math.log10(1.8))
    assert "At step 0 the gradient explodes" in finding.sentence
    assert "(gain 1.80 per layer). It recovers: at step 1 it grows 0 decades." in finding.sentence
    norms[0] = [1e-6 * 0.5 ** (8 - k) if k < 2 else 0.5 ** (8 - k) for k in range(9)]
    (finding,) = findings(open_run(wide_run(tmp_path / "b", [2.0] * 20, norms)), LOW)
    assert finding.code == "vanishes_at_first"
    assert "6.3 decades at layers.2 alone. It recovers: at step 1 it" in finding.sentence


LOW = {"vanishing_decades": 2.0, "exploding_decades": 2.0}


def test_thresholds_can_be_overridden_both_ways(tmp_path: Path) -> None:
    run = wide_run(tmp_path / "run", [1.0] * 4, chains([0.4] * 4))
    assert codes(run) == []
    assert codes(run, vanishing_decades=2.0) == ["vanishing"]
    assert codes(run, vanishing_decades=2.5) == []


def test_an_unknown_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="no threshold 'vanishing'; expected one of vanishing_dec"):
        thresholds_with({"vanishing": 1.0})
    with pytest.raises(ValueError, match="'sleeping_steps' is nan; expected a number"):
        thresholds_with({"sleeping_steps": math.nan})


EACH = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)


@EACH
def test_every_rule_is_whole_and_documented(rule: Rule) -> None:
    for text in (rule.seen_when, rule.value, rule.sentence, rule.remedy):
        assert text
    assert rule.reads and rule.panel in {panel.key for panel in PANELS}
    assert f"| `{rule.code}` | {rule.severity} | {rule.seen_when} |" in rules_table()
    for threshold in rule.thresholds:
        assert math.isfinite(threshold.value) and len(threshold.reason) > 15
        assert threshold is THRESHOLDS[threshold.name]
        row = f"| `{threshold.name}` | {threshold.value:g} | {threshold.reason} |"
        assert row in thresholds_table()


def test_the_tables_list_every_rule_and_threshold_once() -> None:
    assert rules_table().count("\n") == len(RULES) + 1
    assert thresholds_table().count("\n") == len(THRESHOLDS) + 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"code": "exploding"}, "another rule has this code"),
        ({"code": ""}, "no code"),
        ({"seen_when": "", "remedy": ""}, "no seen_when and no remedy"),
        ({"severity": "fatal"}, "severity 'fatal' is not one of severe, warning, note"),
        ({"hides": ("nosuch",)}, "hides 'nosuch', which is not the code of another rule"),
        ({"hides": ("vanishing",)}, "hides 'vanishing'"),
        ({"reads": {}}, "it reads nothing"),
        ({"reads": {"layers": ("nosuch",)}}, "reads layers.nosuch, which is not recorded"),
        ({"sentence": "It falls {} decades."}, "a place in its sentence has no name"),
        ({"thresholds": (Threshold("x", 1.0, ""),)}, "threshold 'x' has no finite value or no"),
        ({"thresholds": (Threshold("x", math.nan, "r" * 20),)}, "'x' has no finite value"),
        (
            {"thresholds": (Threshold("sustained_share", 0.5, "r" * 20),)},
            "threshold 'sustained_share' has a second value or reason",
        ),
    ],
)
def test_a_rule_that_is_broken_is_refused(change: dict[str, Any], complaint: str) -> None:
    others = [rule for rule in RULES if rule.code != "vanishing"]
    broken = replace(next(rule for rule in RULES if rule.code == "vanishing"), **change)
    with pytest.raises(ValueError, match=f"rule '.*': .*{complaint}"):
        checked_rules([broken, *others])


def test_the_first_nonfinite_layer_and_step_are_named(tmp_path: Path) -> None:
    nan = math.nan
    norms = [[1.0] * 3, [1.0] * 3, [nan, nan, 1.0], [nan] * 3]
    (finding,) = findings(open_run(wide_run(tmp_path / "run", [1.0, 1.0, nan, nan], norms)))
    assert (finding.code, finding.steps, finding.layers) == ("nonfinite", (2, 3), ("layers.1",))
    assert "first at step 2 in the output gradient of layer layers.1" in finding.sentence
    assert "not finite from step 2 on" in finding.sentence


def test_what_a_gradient_scaler_skipped_is_no_finding(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", {})
    writer.write_layers([layer_row(0, "a"), layer_row(1, "b")])
    writer.write_parameters([])
    for step, norm in enumerate([math.inf, math.inf, 1.0, 1.0]):
        columns = STAT_COLUMNS["layer_stats"]
        values, present = np.ones((2, len(columns))), np.ones((2, len(columns)), bool)
        values[:, columns.index("activation_num_dead")] = 0
        values[:, columns.index("activation_num_nonfinite")] = 0
        values[:, columns.index("output_gradient_norm")] = norm
        values[:, columns.index("output_gradient_num_nonfinite")] = float(math.isinf(norm))
        block = Block("layer_stats", np.arange(2, dtype=np.int32), values, present)
        add_step(writer, step, block, skipped=math.isinf(norm))
    writer.close("finished")
    assert codes(tmp_path / "run") == []


def test_a_loss_alone_that_is_not_finite_is_found(tmp_path: Path) -> None:
    run = wide_run(tmp_path / "run", [1.0, math.inf], [[1.0, 1.0]] * 2)
    (finding,) = findings(open_run(run))
    assert (finding.code, finding.layers, finding.steps) == ("nonfinite", (), (1, 1))
    assert "at step 1 in the loss" in finding.sentence


def test_gradients_that_shrink_under_a_constant_loss_are_found(tmp_path: Path) -> None:
    norms = [[10.0 ** (-step / 5)] * 3 for step in range(20)]
    (finding,) = findings(open_run(wide_run(tmp_path / "a", [2.0] * 20, norms)))
    assert finding.code == "shrinking"
    assert finding.value == pytest.approx((18 - 1) / 5)
    falling = [2.0 * 0.7**step for step in range(20)]
    assert codes(wide_run(tmp_path / "b", falling, norms)) == []


@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        ([0.0] * 12, ["sleeping_branch"]),
        ([1e-6] * 12, ["sleeping_branch"]),
        ([0.0, *(1e-6 * k for k in range(1, 12))], []),
        ([0.0] + [0.01] * 11, []),
        ([0.0] * 5, []),
    ],
    ids=["silent", "tiny", "growing", "awake", "young"],
)
def test_only_a_branch_that_never_wakes_up_is_found(
    tmp_path: Path, branch: list[float], expected: list[str]
) -> None:
    assert codes(split_run(tmp_path / "run", branch)) == expected


def stream_run(
    path: Path,
    stream: Any,
    written: Any,
    elements: Sequence[int] = (),
    losses: Sequence[float] = (),
) -> Path:
    """A run whose joins have these norms ‖s‖ and ‖b‖ at each step, ``[steps, joins]``."""
    stream, written = np.atleast_2d(stream), np.atleast_2d(written)
    count = stream.shape[1]
    sizes = elements or [16] * count
    writer = RunWriter(path, {})
    rows = [layer_row(k, f"layers.{k}", join=k, role="branch") for k in range(count)]
    writer.write_layers([row | {"output_shape": [n]} for row, n in zip(rows, sizes, strict=True)])
    writer.write_parameters([])
    names = [
        {"join": k, "name": f"block{k}", "branch_layers": [f"layers.{k}"]} for k in range(count)
    ]
    writer.write_joins([JOIN | row for row in names])
    for step, (s, b) in enumerate(zip(stream, written, strict=True)):
        ones = np.ones(count)
        values = np.column_stack([*[ones] * 4, 0 * ones, ones, s, b, np.hypot(s, b), 0 * ones])
        block = Block("splits", np.arange(count, dtype=np.int32), values, None)
        loss = losses[step] if losses else 1.0
        add_step(writer, step, block, skipped=False, loss=loss)
    writer.close("finished")
    return path


DEPTH = np.arange(1, 25, dtype=float)


@pytest.mark.parametrize(
    ("stream", "written", "elements", "is_found"),
    [
        (np.sqrt(DEPTH), np.ones(24), (), False),  # independent writes of one size
        (0.02 * np.sqrt(DEPTH), np.r_[1.0, np.full(23, 0.02)], (), False),  # a large first write
        (1.045**DEPTH, 0.3 * 1.045**DEPTH, (), False),  # as measured in GPT-2
        (2 ** (DEPTH / 2), 2 ** (DEPTH / 2), (), True),  # branches without normalization
        (2 ** (DEPTH / 2), 2 ** (DEPTH / 2), [2**k for k in range(1, 25)], False),  # larger images
        (1.3 ** DEPTH[:5], 1.3 ** DEPTH[:5], (), False),  # too few to tell
        (np.where(DEPTH < 12, 1.0, 1e3), np.ones(24), (), False),  # one block that writes much
    ],
    ids=["root", "embedding", "gpt2", "doubling", "generator", "five", "massive"],
)
def test_a_stream_that_grows_by_a_factor_is_found(
    tmp_path: Path, stream: Any, written: Any, elements: Sequence[int], is_found: bool
) -> None:
    rows = [np.tile(row, (4, 1)) for row in (stream, written)]
    found = findings(open_run(stream_run(tmp_path / "run", *rows, elements)))
    assert [one.code for one in found] == (["stream_grows"] if is_found else [])
    if is_found:
        assert found[0].value == pytest.approx(2**0.5)
        assert found[0].threshold == 1.25


def test_a_stream_that_grows_in_a_net_that_learns_is_a_note(tmp_path: Path) -> None:
    """Without normalization the variance of the stream doubles at each block (De and Smith 2020).

    A net may learn all the same: then nothing is wrong with it.
    """
    rows = [np.tile(2 ** (DEPTH / 2), (4, 1))] * 2
    for losses, severity in (([2.3, 2.3, 2.2, 2.3], "warning"), ([2.3, 1.5, 0.9, 0.5], "note")):
        run = open_run(stream_run(tmp_path / severity, *rows, losses=losses))
        (finding,) = findings(run)
        assert (finding.code, finding.severity) == ("stream_grows", severity)
        assert health([finding]) == ("healthy" if severity == "note" else "stream_grows")
        assert ("the loss falls all the same (2.30 to 0.5)" in finding.sentence) == (
            severity == "note"
        )


@pytest.mark.parametrize(
    ("written", "is_found"),
    [
        ([1.0] * 6 + [1e-5] * 4, True),
        ([1.0] * 6 + [0.0] * 4, True),
        ([1.0] * 6 + [1e-5] * 3 + [1.0], False),  # it writes again
        ([1.0] * 6 + [5e-3] * 4, False),  # little, but it writes
        ([1e-5] * 10, False),  # a scaled branch
        ([0.0] + [1e-6 * 2**k for k in range(9)], False),  # ReZero
        ([2e-4] * 6 + [1e-4] * 4, False),
    ],
    ids=["stops", "zero", "pause", "less", "scaled", "rezero", "falls"],
)
def test_a_block_that_stops_writing_is_found(
    tmp_path: Path, written: list[float], is_found: bool
) -> None:
    other = np.ones(10)
    run = stream_run(tmp_path / "run", np.ones((10, 2)), np.column_stack([other, written]))
    found = findings(open_run(run))
    assert [one.code for one in found] == (["silent_block"] if is_found else [])
    if is_found:
        assert (found[0].layers, found[0].steps) == (("layers.1",), (6, 9))
        assert found[0].value == written[-1]
        assert "block1" in found[0].sentence


def test_cancellation_carries_what_is_left(tmp_path: Path) -> None:
    run = split_run(tmp_path / "run", [1.0] * 4, cosine=-0.98)
    (finding,) = findings(open_run(run))
    assert (finding.code, finding.layers) == ("cancellation", ("layers.1",))
    assert finding.value == pytest.approx(0.1)
    assert codes(split_run(tmp_path / "b", [1.0] * 4, cosine=-0.5)) == []


def test_what_is_left_of_two_gradients_is_that_of_two_vectors() -> None:
    generator = np.random.default_rng(0)
    s, b = generator.normal(size=(2, 50, 3))
    norms = np.linalg.norm(s, axis=1), np.linalg.norm(b, axis=1)
    expected = np.linalg.norm(s + b, axis=1) / (norms[0] + norms[1])
    cosine = (s * b).sum(1) / (norms[0] * norms[1])
    assert remaining_share(*norms, cosine) == pytest.approx(expected)
    zero = remaining_share(np.array([1.0, 0.0]), np.zeros(2), np.full(2, np.nan))
    assert zero[0] == 1
    assert math.isnan(zero[1])


@pytest.mark.parametrize(
    ("sick", "expected"),
    [
        ([0, 0, 0, 0], None),
        ([1, 1, 1, 0], (10, 12)),
        ([1, 1, 0, 1], None),
        ([0, 1, 1, 1], (11, 13)),
        ([1, 1], (10, 11)),
    ],
)
def test_a_stretch_is_the_longest_piece_of_three_steps_or_more(
    sick: list[int], expected: tuple[int, int] | None
) -> None:
    assert stretch(np.array(sick, bool), np.arange(10, 10 + len(sick)), 0.25) == expected


def test_findings_are_sorted_and_health_is_the_worst(tmp_path: Path) -> None:
    norms = chains([0.1] * 4)
    norms[3] = [math.nan] * 7
    found = findings(open_run(wide_run(tmp_path / "run", [1.0] * 4, norms)))
    assert [f.code for f in found] == ["vanishing", "nonfinite"]
    assert health(found) == "vanishing"
    assert health([]) == "healthy"


def test_a_run_without_layers_is_not_judged(tmp_path: Path) -> None:
    (finding,) = findings(open_run(write_run(tmp_path / "run", [], [])))
    assert (finding.code, finding.severity) == ("not judged", "warning")
    assert finding.sentence == "This run is not judged: no layer was recorded."
    assert health([finding]) == "not judged"

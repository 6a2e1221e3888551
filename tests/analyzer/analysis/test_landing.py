import math
from dataclasses import replace
from pathlib import Path

import pytest

from analyzer.analysis.claims import judged, measured
from analyzer.analysis.evidence import last_finite_step
from analyzer.analysis.finding import Finding
from analyzer.analysis.landing import condition, landing
from analyzer.analysis.network_probes import path_lengths
from analyzer.analysis.numerals import number
from analyzer.analysis.probe_numbers import Measured
from analyzer.analysis.view import View
from analyzer.storage.run import open_run
from tests.support.full_run import write_full_pair, write_network_run
from tests.support.pairs import LAYERS, write_side
from tests.support.runs import layer_row, write_run


def sentence(tmp_path: Path, **options: object) -> str:
    return condition(write_side(tmp_path / "net", residual=False, **options)).sentence


def test_a_net_whose_gradient_falls_at_every_step_is_sick_since_the_first(tmp_path: Path) -> None:
    run = write_side(tmp_path / "net", residual=False, decades=5.0)
    found = condition(run)
    assert (found.kind, found.steps, found.is_sick) == ("vanishing", (0, 3), True)
    assert found.sentence == (
        "net is sick: its gradient falls 5 decades from head to stem, since step 0"
    )
    assert found.looked == 4


@pytest.mark.parametrize(
    ("falls", "words"),
    [
        (
            [0.0, 0.0, 3.0, 5.0],
            "falls 3 to 5 decades from head to stem, since step 2",
        ),
        (
            [5.0, 4.0, 0.0, 0.0],
            "falls 4 to 5 decades from head to stem, at first, until step 1",
        ),
        ([5.0, 0.0, 0.0, 0.0], "falls 5 decades from head to stem, at step 0 only"),
        ([0.0, 5.0, 0.0, 3.0], "at 2 of 4 checked steps, from 1 to 3"),
        ([-4.0] * 4, "grows 4 decades from head back to stem, since step 0"),
    ],
)
def test_since_when_is_said_as_it_was_measured(
    tmp_path: Path, falls: list[float], words: str
) -> None:
    assert words in sentence(tmp_path, decades=falls)


def test_just_below_the_limit_nothing_is_sick(tmp_path: Path) -> None:
    found = condition(write_side(tmp_path / "net", residual=False, decades=2.4))
    assert found.kind == "kept"
    kept = "a line fitted to its gradient changes by 2.4 decades at most (step 0; the limit is 2.5)"
    assert found.sentence == f"net is not sick, but close to it: {kept}"
    far = condition(write_side(tmp_path / "far", residual=False, decades=2.2)).sentence
    kept = "a line fitted to its gradient changes by 2.2 decades at most (step 0)"
    assert far == f"far is not sick: {kept}"
    assert "sick" in sentence(tmp_path / "more", decades=2.6)


def test_layers_whose_names_are_numbers_are_called_layers(tmp_path: Path) -> None:
    layers = [layer_row(k, str(k)) for k in range(4)]
    rows = [[1e-9, 1e-6, 1e-3, 1.0]] * 2
    run = write_run(tmp_path / "fall-0", [1.0] * 2, rows, layers=layers)
    assert "falls 9 decades from layer 3 to layer 0, since" in condition(open_run(run)).sentence
    rows = [[1.0] * 4, [1.0, 1.0, float("nan"), 1.0]]
    run = write_run(tmp_path / "nan", [1.0] * 2, rows, layers=layers)
    assert "of layer 2" in condition(open_run(run)).sentence


def test_what_is_lost_at_one_layer_is_named_with_the_layer(tmp_path: Path) -> None:
    words = sentence(tmp_path, cliff=(LAYERS - 2, 2.2), losses=[2.3, 1.0, 0.9, 0.8])
    assert "loses 2.2 decades at block3.1" in words


def test_after_a_plain_net_of_the_zoo_comes_the_same_one_with_shortcuts(tmp_path: Path) -> None:
    rows = [[1e-9, 1e-5, 1.0]] * 3
    argv = ["zoo:simple28-plain", "--width", "16"]
    said = landing((open_run(write_run(tmp_path / "plain", [1.0] * 3, rows, argv=argv)),))
    assert said.action[0].startswith("Next: record the same net with shortcuts")
    assert said.action[1] == "analyzer record zoo:simple28 --width 16"


def test_the_first_value_that_is_not_finite_comes_before_all_else(tmp_path: Path) -> None:
    nan = float("nan")
    rows = [[1e-9, 1.0], [1e-9, 1.0], [nan, nan]]
    run = write_run(
        tmp_path / "broken", [1.0, 1.0, nan], rows, layers=[layer_row(k, f"l{k}") for k in range(2)]
    )

    found = condition(open_run(run))
    assert found.sentence == (
        "broken is sick: NaN or infinite from step 2 on, first in the loss, then in the output "
        "gradient of l1"
    )
    said = landing((open_run(run),))
    counts = "counted at each of the 3 recorded steps"
    assert said.look == 1 and said.evidence[0] == ("NaN or infinity", "certain", counts)
    assert ("cause", "not tested", "nothing else was tried") in said.evidence
    # What is said to be of the steps before is of them: the gradient is 1e-9 times that of l1.
    (first, *_), against = said.readings[0].values, said.readings[0].against
    assert first[2] == "1·10⁻⁹" and against.endswith("before it broke (step 2)")
    # What is to be done next is what is advised, and one command.
    assert "What to do: " in said.cause
    assert said.action[0].startswith("Next: once that is changed, record it again")
    assert "--seed" not in said.action[1] and "--twin" not in said.action[1]


def test_an_overflow_in_a_step_that_a_scaler_skipped_is_no_sickness(tmp_path: Path) -> None:
    rows = [[float("inf")] * 2, [1.0, 1.0], [1.0, 1.0]]
    for skipped, kind in ((True, "kept"), (False, "not finite")):
        run = write_run(tmp_path / kind, [1.0] * 3, rows, more=[{"skipped": skipped}])
        assert condition(open_run(run)).kind == kind


def test_a_run_without_gradients_is_not_judged(tmp_path: Path) -> None:

    found = condition(open_run(write_run(tmp_path / "bare", [1.0], [[]])))
    assert (found.kind, found.is_sick) == ("not judged", False)


def test_of_a_pair_the_sick_one_comes_first_with_three_numbers_of_each(tmp_path: Path) -> None:
    plain = write_side(tmp_path / "plain", residual=False, decades=6.0, losses=[2.3] * 4)
    residual = write_side(tmp_path / "residual", residual=True, share=0.7)
    found = landing((residual, plain))
    assert found.sentence.startswith("plain is sick: its gradient falls 6 decades (powers of ten)")
    assert "residual is not sick: a line fitted to its gradient changes" in found.sentence
    assert found.sentence.count("powers of ten") == 1
    assert found.cause == "Cause not tested: nothing was switched off."
    assert found.evidence == (
        (
            "diagnosis",
            "measured",
            "a line through all layers at 4 of the 4 recorded steps; sick: 2.5 decades or more",
        ),
        ("cause", "not tested", "nothing else was tried"),
        ("other seeds", "not known", "1 seed"),
    )
    first, share, loss = found.readings
    shown = [(name, text) for name, _, text in first.values]
    assert shown == [("plain", "1·10⁻⁶"), ("residual", "1")]
    assert [text for *_, text in share.values] == ["no shortcuts", "70 %"]
    assert [text for *_, text in loss.values] == ["2.30", "1"]
    assert found.action[0] == "Next: measure the gradient without the shortcuts"
    assert found.action[1].startswith("analyzer probe residual counterfactual")
    # Each number says what it is over, beside those of one step and of a line through all layers.
    assert first.against.endswith("these two layers alone; 1 is the same; median over steps 0 to 3")
    assert share.against.endswith("meet; median over joins and steps 0 to 3")
    assert loss.against.startswith("mean of the last 1 step")


def test_of_a_twin_the_cause_is_shown_by_its_training(tmp_path: Path) -> None:
    twin = write_side(tmp_path / "twin", residual=True, skip_scale=0.0, decades=6.0)
    found = landing((twin, write_side(tmp_path / "residual", residual=True, share=0.7)))
    assert found.cause.startswith("Cause shown: the two differ in their shortcuts alone (a twin)")
    assert found.evidence[1] == ("cause", "shown", "a twin, trained without its shortcuts")


def test_the_cause_is_shown_where_the_shortcuts_were_taken_out(tmp_path: Path) -> None:

    plain, residual = map(open_run, write_full_pair(tmp_path))
    found = landing((plain, residual))
    where = "from the last layer to the first, at the same weights (step 0), the gradient of"
    assert found.cause.startswith(f"Cause shown: {where} residual")
    single = landing((residual,))
    assert single.cause.startswith(f"What the shortcuts do: {where} residual")
    values = {name: text for name, _, text in single.readings[0].values}
    assert set(values) == {"residual"}
    table = residual.layer_stats("output_gradient_norm").pivot(
        index="step", columns="layer", values="output_gradient_norm"
    )
    ends = table.iloc[:, 0] / table.iloc[:, -1]
    both = {name: text for name, _, text in found.readings[0].values}
    assert values["residual"] == both["residual"] == number(float(ends.median()))
    assert found.evidence[1][:2] == ("cause", "shown")
    assert single.evidence[1][:2] == ("effect of shortcuts", "measured")


def test_of_what_is_not_sick_it_says_what_can_be_done_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_side(tmp_path / "net", residual=True)
    assert not landing((run,)).conditions[0].is_sick
    words, command = landing((run,)).action
    assert words == "Nothing to mend. To learn more: measure the gradient without the shortcuts"
    assert command.startswith("analyzer probe net counterfactual")
    plain = open_run(
        write_run(tmp_path / "plain", [1.0, 0.9], [[1.0, 1.0]] * 2, argv=["train.py"], seconds=9.0)
    )
    again = "Nothing to mend. To learn more: repeat it with another seed, about 9 s"
    assert landing((plain,)).action == (again, "analyzer record --seed 1 train.py")
    warning = Finding("dead", "warning", ("l0",), (0, 0), 1.0, None, "", "")
    monkeypatch.setattr("analyzer.analysis.landing.findings", lambda _: [warning])
    words, _ = landing((plain,)).action
    assert words.startswith("Nothing severe to mend (1 warning in the findings). To learn more: ")


def test_a_net_that_ends_no_better_than_guessing_is_said_to(tmp_path: Path) -> None:
    guess = {"conditions": {"loss": {"class_entropy": 2.0}}}
    rows = [[1.0, 1.0]] * 4
    for name, loss, is_said in (("idle", 2.0, True), ("busy", 1.99, False)):
        run = open_run(write_run(tmp_path / name, [loss] * 4, rows, **guess))
        assert condition(run).sentence.endswith("no better than guessing") == is_said


def test_what_else_differs_is_said_before_the_cause(tmp_path: Path) -> None:
    plain = write_side(tmp_path / "plain", residual=False, decades=6.0, lr=0.4)
    residual = write_side(tmp_path / "residual", residual=True, lr=0.001)
    found = landing((plain, residual))
    assert found.cause.startswith("Not the shortcuts alone: ") and "learning rate" in found.cause


def test_two_of_a_kind_get_no_verdict_but_each_its_state(tmp_path: Path) -> None:
    runs = [write_side(tmp_path / name, residual=True) for name in ("a", "b")]
    found = landing(runs)
    assert found.found is None and found.questions == ()
    assert [f"{name} is not sick" in found.sentence for name in "ab"] == [True, True]
    assert "what shortcuts do is not compared here" in found.cause


def test_it_is_looked_at_where_it_was_finite_last(tmp_path: Path) -> None:
    losses = [1.0, 1.0, 1.0, math.nan]
    run = open_run(write_run(tmp_path / "net", losses, [[1.0, 1.0]] * 4))
    assert last_finite_step(run) == landing([run]).look == 2
    whole = open_run(write_run(tmp_path / "whole", [1.0] * 4, [[1.0, 1.0]] * 4))
    assert last_finite_step(whole) is landing([whole]).look is None
    at_once = open_run(write_run(tmp_path / "once", [math.nan] * 2, [[1.0, 1.0]] * 2))
    assert last_finite_step(at_once) is None


def test_a_probe_of_the_final_weights_is_said_so(tmp_path: Path) -> None:
    said = [Measured(1.0, "RUN", steps, final=60).moments for steps in ((0,), (60,), (0, 60))]
    assert said == [("step 0",), ("the final weights",), ("step 0", "the final weights")]
    plain, residual = (
        open_run(write_network_run(tmp_path / name, has_shortcuts=name == "residual"))
        for name in ("plain", "residual")
    )
    numbers = measured(residual)
    length = numbers["path_length"]
    assert isinstance(length, Measured) and length.final == len(residual.steps)
    numbers["path_length"] = replace(length, steps=(60,))
    by_key = {one.key: one for one in judged([measured(plain)], [numbers])}
    assert by_key["path_length"].when == "the final weights"
    assert "(the final weights; " in by_key["path_length"].text
    assert by_key["stream"].when == "step 0"


def test_captions_of_probes_say_that_their_weights_are_the_final_ones(tmp_path: Path) -> None:
    path = write_network_run(tmp_path / "residual", has_shortcuts=True, steps=40)
    (last,) = path_lengths(View((open_run(path),))).runs
    assert last.sentence().startswith("residual, step 39: ")
    # The same rows, said to be of the weights after the last step.
    assert replace(last, step=40).sentence().startswith("residual, final weights: ")
    assert last.label.at(40) == "at the final weights"
    assert last.label.at(39) == "at step 39"

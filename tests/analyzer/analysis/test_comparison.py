import math

import pytest

from analyzer.analysis.gradient_flow import Gain
from analyzer.analysis.sentences import DepthFacts, Trend
from analyzer.analysis.training import TrainingSummary, training_summary
from analyzer.analysis.verdict import difference

Facts = tuple[DepthFacts, TrainingSummary]


def facts(gain: float, decades: float, losses: list[float], span: float | None = None) -> Facts:
    training = training_summary(range(len(losses)), losses, [True] * len(losses), seconds=1.0)
    fit = Gain(gain, -decades, 15)
    return DepthFacts(fit, abs(decades) if span is None else span), training


def test_a_vanishing_plain_net_and_a_healthy_twin_are_told_with_numbers() -> None:
    plain, residual = facts(0.39, 13.2, [2.303, 2.301]), facts(1.1, -0.8, [2.303, 0.44])
    assert difference(plain, residual) == (
        "Vanishing gradients separate the two: without shortcuts the output gradient falls 13.2 "
        "decades from the last layer to the first (gain 0.39 per layer) and the loss stays at "
        "2.30; with them the output gradient stays within 1 decade (gain 1.10 per layer) and the "
        "loss reaches 0.44. The loss ends lower with shortcuts: 2.30 without them, 0.44 with."
    )


@pytest.mark.parametrize("final", [0.44, 1.9, 2.3])
def test_a_healthy_pair_is_never_told_to_vanish(final: float) -> None:
    sentence = difference(facts(0.97, 0.6, [2.3, final]), facts(1.02, -0.3, [2.3, 0.44]))
    start = "Not vanishing: gradient norms are healthy in both: without shortcuts the output"
    assert sentence.startswith(start) and "(gain 0.97 per layer)" in sentence
    assert not {"vanish", "falls", "explod"} & set(sentence.replace(",", "").split())
    assert ("The loss ends about as low in both" in sentence) == (final == 0.44)
    assert ("The loss ends lower with shortcuts" in sentence) == (final != 0.44)


def test_both_vanishing_is_said_of_both() -> None:
    sentence = difference(facts(0.2, 20, [2.3, 2.3]), facts(0.6, 5, [2.3, 1.0]))
    assert sentence.startswith("Gradients vanish in both, so shortcuts do not keep them from it:")
    assert "falls 20 decades" in sentence
    assert "falls 5 decades" in sentence


def test_an_exploding_net_grows() -> None:
    sentence = difference(facts(1.9, -9.7, [2.3, math.nan]), facts(1.0, 0.0, [2.3, 0.5]))
    assert "grows 9.7 decades from the last layer to the first (gain 1.90 per layer)" in sentence
    assert "the loss is not finite from step 1 on; with them" in sentence


@pytest.mark.parametrize(
    ("decades", "span", "expected"),
    [
        (2.9, 2.9, Trend.BETWEEN),
        (3.0, 3.0, Trend.VANISHING),
        (-3.0, 3.0, Trend.EXPLODING),
        (1.4, 1.5, Trend.HEALTHY),
        (0.1, 6.0, Trend.BETWEEN),
        (math.nan, math.nan, Trend.UNKNOWN),
    ],
)
def test_only_a_fall_of_three_decades_is_called_vanishing(
    decades: float, span: float, expected: Trend
) -> None:
    gain = math.nan if math.isnan(decades) else 0.9
    assert facts(gain, decades, [1.0], span)[0].trend is expected


def test_layers_that_the_fit_left_out_are_told_and_are_not_healthy() -> None:
    training = training_summary([0, 1], [2.3, 1.0], [True, True], seconds=1.0)
    run = DepthFacts(Gain(1.0, 0.0, 3, num_zero=2, num_nonfinite=1), 0.5), training
    assert run[0].trend is Trend.BETWEEN
    assert "3 usable layers, 2 with a zero gradient, 1 with a non-finite one" in difference(
        run, run
    )


def test_a_missing_gain_is_told() -> None:
    sentence = difference(facts(math.nan, math.nan, []), facts(1.0, 0.0, [2.0, 1.0]))
    assert sentence.startswith("The gain along depth was not measured in both runs: without")
    assert "without shortcuts no gain can be fitted (15 usable layers" in sentence
    assert "and no loss was recorded; with them" in sentence

import math

import pytest

from analyzer.analysis.claim_words import decades_fallen, decades_grown, with_range


@pytest.mark.parametrize(
    ("value", "spread", "words"),
    [
        (12.2, None, "falls 12.2 decades"),
        (-0.139, None, "grows 0.139 decades"),
        (5.59, (4.18, 8.0), "falls 5.59 (4.18 to 8) decades"),
        (-2.0, (-3.0, -1.0), "grows 2 (1 to 3) decades"),
        (0.1, (-0.2, 0.3), "falls 0.1 decades (from growing 0.2 to falling 0.3)"),
        (math.nan, None, "changes by NaN decades"),
    ],
)
def test_decades_are_said_by_a_verb_and_never_by_a_sign(
    value: float, spread: tuple[float, float] | None, words: str
) -> None:
    assert decades_fallen(value, spread) == words


def test_decades_grown_are_decades_fallen_turned_around() -> None:
    assert decades_grown(-1.69, None) == "falls 1.69 decades"
    assert decades_grown(2.0, (1.0, 3.0)) == "grows 2 (1 to 3) decades"


def test_a_number_without_a_value_is_nothing() -> None:
    assert with_range(None, None) == "nothing"
    assert with_range(0.5, (0.25, 0.75)) == "0.5 (0.25 to 0.75)"

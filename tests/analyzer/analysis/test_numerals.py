import math

import pytest

from analyzer.analysis.numerals import (
    counted,
    decades_fallen,
    decades_grown,
    number,
    percent,
    power,
    times_ten_to,
    with_range,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.394, "0.394"),
        (2.3, "2.30"),
        (13.0, "13"),
        (71.24, "71.2"),
        (1234.4, "1234"),
        (3.2e-13, "3.2·10⁻¹³"),
        (1e6, "1·10⁶"),
        (12_345.0, "12,345"),
        (-0.5, "−0.5"),
        (0.0, "0"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_powers_are_written_as_powers() -> None:
    assert [power(e) for e in (-13, 0, 1, 4)] == ["10⁻¹³", "1", "10", "10⁴"]


def test_a_ratio_beyond_float64_is_still_a_number() -> None:
    assert times_ten_to(-400.5) == "3.2·10⁻⁴⁰¹"
    assert times_ten_to(0.30103) == "2.00"
    assert times_ten_to(math.nan) == "NaN"


def test_small_shares_keep_a_digit() -> None:
    assert [percent(s) for s in (0.714, 0.0045, 3e-10, 0.0, -0.2, 1.25)] == [
        "71 %",
        "0.45 %",
        "3·10⁻⁸ %",
        "0 %",
        "−20 %",
        "125 %",
    ]


def test_one_is_no_plural() -> None:
    assert (counted(1, "layer"), counted(1000, "step")) == ("1 layer", "1,000 steps")


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

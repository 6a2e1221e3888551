import math

import pytest

from analyzer.analysis.numerals import (
    counted,
    decades,
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


@pytest.mark.parametrize("value", [0.996, 0.9996, 0.99996, -0.9999, 0.99513, 0.9999949])
def test_what_is_less_than_one_never_becomes_one(value: float) -> None:
    text = number(value).replace("−", "-")
    assert abs(float(text)) < 1
    assert float(text) == pytest.approx(value, rel=5e-4)
    share = float(percent(value).removesuffix(" %").replace("−", "-"))
    assert abs(share) < 100 and share == pytest.approx(100 * value, rel=5e-3)


def test_a_number_that_differs_from_one_by_rounding_is_one() -> None:
    assert number(1 - 1e-9) == "1.00"
    assert percent(1 - 1e-9) == "100 %"
    assert percent(1.0) == "100 %"


@pytest.mark.parametrize("limit", [0.1, 0.25, 0.9, 1.4, 2.5, 10.0, 1e-6, 12_345.0])
@pytest.mark.parametrize("ratio", [0.9, 0.999, 0.9997, 0.99998, 1.00003, 1.0004, 1.002, 1.1])
def test_a_number_stays_on_its_side_of_what_it_is_compared_with(limit: float, ratio: float) -> None:
    for text in (number(limit * ratio, [limit]), decades(limit * ratio, None, [limit])):
        digits, _, exponent = text.removesuffix(" decades").removesuffix(" decade").partition("·10")
        power = int(exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)
        written = float(digits.replace(",", "")) * 10.0**power
        assert (written - limit) * (ratio - 1) > 0, text
        assert written == pytest.approx(limit * ratio, rel=0.06)


def test_small_decades_are_written_like_other_small_numbers() -> None:
    assert decades(2e-5) == "2·10⁻⁵ decades"
    assert decades(0.9996) == "0.9996 decades"
    assert decades(1.0) == "1 decade"


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

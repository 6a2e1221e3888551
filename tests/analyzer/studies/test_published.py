import math
import statistics

import pandas as pd
import pytest

from analyzer.studies.published import (
    COLUMNS,
    Claim,
    Experiment,
    as_json,
    interval_of,
    markdown,
    outcomes,
    seeds_of,
    slope,
)


def _table(values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        ("all", seed, quantity, None, value)
        for quantity, column in values.items()
        for seed, value in enumerate(column)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _experiment(*claims: Claim) -> Experiment:
    return Experiment("x2020", "A thing", "Nobody (2020)", claims, "by hand.", {}, {}, list)


def _claim(low: float, high: float, number: float | None = None, only_full: str = "") -> Claim:
    return Claim("x", "x", "5", low, high, "a reason", number=number, only_full=only_full)


# The mean of 4.9, 5.0, 5.1 has the 95 % interval 5 ± 4.303 · 0.1 / √3 = 4.752 to 5.248.
@pytest.mark.parametrize(
    ("claim", "verdict", "word"),
    [
        (_claim(4.7, 5.3), "agrees", ""),
        (_claim(4.8, 5.3), "not comparable", "reaches across a bound"),
        (_claim(4.8, 5.3, number=5.0), "agrees", ""),  # 0.496 wide, within bounds 0.5 apart
        (_claim(4.8, 5.2, number=5.0), "not comparable", "reaches across"),  # wider than they are
        (_claim(5.3, 6.0), "disagrees", ""),
        (_claim(-math.inf, 4.7), "disagrees", ""),
        (_claim(4.7, 5.3, only_full="another world"), "not comparable", "another world"),
    ],
)
def test_a_verdict_follows_from_the_interval_and_the_bounds(
    claim: Claim, verdict: str, word: str
) -> None:
    (found,) = outcomes(_experiment(claim), _table({"x": [4.9, 5.0, 5.1]}), "laptop")
    assert (found.verdict, word in found.reason) == (verdict, True)
    assert found.interval == pytest.approx((4.7516, 5.2484), abs=1e-4)
    (found,) = outcomes(_experiment(claim), _table({"x": [4.9, 5.0, 5.1]}), "tiny")
    assert found.verdict == "not comparable"


def test_what_is_not_finite_is_counted_and_what_was_not_measured_is_said() -> None:
    wide = _claim(-math.inf, math.inf)
    (found,) = outcomes(_experiment(wide), _table({"x": [5.0, math.nan, math.inf]}), "laptop")
    assert (found.verdict, found.reason) == (
        "not comparable",
        "2 of 3 seeds gave no finite number",
    )
    (found,) = outcomes(_experiment(wide), _table({"y": [5.0]}), "laptop")
    assert (found.verdict, found.here) == ("not comparable", "not measured")


def test_one_seed_is_a_point_without_an_interval() -> None:
    (found,) = outcomes(_experiment(_claim(4.0, 6.0)), _table({"x": [5.0]}), "laptop")
    assert (found.verdict, found.interval, found.here) == ("agrees", None, "5 (1 seed)")


def test_a_curve_is_ordered_and_a_number_is_that_of_its_seed() -> None:
    rows = [("a", 0, "c", 3.0, 9.0), ("a", 0, "c", 2.0, 4.0), ("b", 1, "c", 1.0, 7.0)]
    rows += [("a", 0, "n", math.nan, 1.5)]
    numbers = seeds_of(pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS))
    assert numbers[0].curve("c") == [(2.0, 4.0), (3.0, 9.0)]
    assert numbers[0].curve("c", low=3) == [(3.0, 9.0)]
    assert (numbers[0]["n"], numbers[1].at("c", 1.0)) == (1.5, 7.0)
    with pytest.raises(KeyError):
        numbers[1]["n"]


def test_a_slope_and_an_interval_are_those_of_the_textbook() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert math.isnan(slope([(0, 1)]))
    values = [1.0, 2.0, 4.0, 8.0]
    low, high = interval_of(values) or (0, 0)
    assert high - low == pytest.approx(2 * 3.1824463 * statistics.stdev(values) / 2)
    assert interval_of([1.0]) is None


def test_a_disagreement_is_printed_in_every_format() -> None:
    experiment = _experiment(_claim(1.0, 2.0))
    about = {"scale": "laptop", "command": "analyzer reproduce x2020", "seconds": "3"}
    table = _table({"x": [4.9, 5.0, 5.1]})
    written = markdown(experiment, table, about)
    assert "| x | 5 | 1 to 2 | 5 (4.75 to 5.25, 3 seeds) | disagrees |" in written
    assert as_json(experiment, table, about)["claims"][0]["verdict"] == "disagrees"

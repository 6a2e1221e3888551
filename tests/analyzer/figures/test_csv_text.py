import csv
import io
import math
import re

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from analyzer.figures.csv_text import csv_text

# What a name may be made of to become a cell of its own in some reader.
ODD = st.text(st.sampled_from("=+-@＝;,\t\r\n\"'\x00\x1b aé"), max_size=12)


@given(st.lists(st.one_of(ODD, st.text(max_size=12)), min_size=1, max_size=4))
def test_no_reader_finds_a_formula(names: list[str]) -> None:
    """By the rules of spreadsheets: any of these may divide cells, quotes or not."""
    text = csv_text(pd.DataFrame({"name": names, "value": 1.5}))
    rows = list(csv.reader(io.StringIO(text)))
    assert [row[1] for row in rows] == ["value", *["1.5"] * len(names)]
    for delimiter in ",;\t":
        for row in csv.reader(io.StringIO(text), delimiter=delimiter):
            for cell in row:
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝", "\x00", "\x1b"))
    for start in re.findall(r"(?:^|[;\t\r\n])(.)", rows[1][0]):
        assert start not in "=+-@＝\x00\x1b"


def test_a_name_comes_back_without_its_apostrophes() -> None:
    assert csv_text(pd.DataFrame({"n": ["a\r=1+1", "b;@x", "c\t-1", "-", "d=1;e"]})) == (
        'n\n"a\r\'=1+1"\n"b;\'@x"\n"c\t\'-1"\n\'-\n"d=1;e"\n'
    )


def test_csv_keeps_every_digit_and_runs_no_formula() -> None:
    text = csv_text(pd.DataFrame({"n": ["=1+1", 'a,"b"', None], "v": [1 / 3, math.nan, -math.inf]}))
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[1:] == [["'=1+1", repr(1 / 3)], ['a,"b"', "NaN"], ["", "-inf"]]


def test_negative_and_whole_numbers_are_no_formula() -> None:
    table = pd.DataFrame({"=n": [-3, 4], "name": ["fc", "-x"], "value": [-0.5, 0.1 + 0.2]})
    assert csv_text(table) == "'=n,name,value\n-3,fc,-0.5\n4,'-x,0.30000000000000004\n"

import csv
import io
import math

import pandas as pd

from analyzer.figures.csv_text import csv_text


def test_csv_keeps_every_digit_and_runs_no_formula() -> None:
    text = csv_text(pd.DataFrame({"n": ["=1+1", 'a,"b"', None], "v": [1 / 3, math.nan, -math.inf]}))
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[1:] == [["'=1+1", repr(1 / 3)], ['a,"b"', "NaN"], ["", "-inf"]]


def test_negative_and_whole_numbers_are_no_formula() -> None:
    table = pd.DataFrame({"=n": [-3, 4], "name": ["fc", "-x"], "value": [-0.5, 0.1 + 0.2]})
    assert csv_text(table) == "'=n,name,value\n-3,fc,-0.5\n4,'-x,0.30000000000000004\n"

import base64
import gzip
import io
import json
import math
import re
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from analyzer.reports.html import packed, packed_figures, packed_tables, screen_figure
from analyzer.reports.paper import static_svg, svg_address
from analyzer.reports.story import Story
from analyzer.reports.tables import csv_text


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def restored(spec: dict[str, Any], arrays: list[str]) -> "np.ndarray[Any, Any]":
    """The array that a specification stands for, byte by byte."""
    planes = base64.b64decode(arrays[spec["bdata"]])
    size = int(spec["dtype"][1:])
    count = len(planes) // size
    rows = [planes[i::count] for i in range(count)]
    flat = np.frombuffer(b"".join(rows), spec["dtype"])
    return flat.reshape([int(n) for n in str(spec.get("shape", len(flat))).split(",")])


def as_json(*traces: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(go.Figure(list(traces)).to_json())
    return found


def test_arrays_come_back_to_a_millionth() -> None:
    z = np.random.default_rng(0).normal(size=(5, 7))
    made = unpacked(packed_figures({"map": as_json(go.Heatmap(z=z))}))
    spec = made["figures"]["map"]["data"][0]["z"]
    assert spec["dtype"] == "f4"
    np.testing.assert_allclose(restored(spec, made["arrays"]), z, rtol=1e-6)


@pytest.mark.parametrize("values", [[1e-60, 1e-50, 1.0], [1e300, 2.0], [2.0**30 + 1, 1 / 3e40]])
def test_numbers_that_four_bytes_cannot_hold_keep_eight(values: list[float]) -> None:
    made = unpacked(packed_figures({"f": as_json(go.Scatter(y=np.array(values)))}))
    spec = made["figures"]["f"]["data"][0]["y"]
    assert spec["dtype"] == "f8"
    assert restored(spec, made["arrays"]).tolist() == values


def test_nan_and_infinity_stay() -> None:
    values = np.array([1.0, math.nan, math.inf, -math.inf])
    made = unpacked(packed_figures({"f": as_json(go.Scatter(y=values))}))
    spec = made["figures"]["f"]["data"][0]["y"]
    np.testing.assert_array_equal(restored(spec, made["arrays"]), values)


def test_an_array_that_two_figures_draw_is_held_once() -> None:
    x = np.arange(50.0)
    figures = {"a": as_json(go.Scatter(y=x)), "b": as_json(go.Scatter(y=x), go.Scatter(y=-x))}
    assert len(unpacked(packed_figures(figures))["arrays"]) == 2


def test_tables_come_back_as_csv_with_seven_digits() -> None:
    rows = pd.DataFrame(
        {"name": ['a,"b"', "=1", None], "value": [1 / 3, math.nan, 2e-34], "n": [1, 2, 12345678]}
    )
    made = unpacked(packed_tables({"t": rows, "same": rows}))
    assert len(made["columns"]) == 3 and made["tables"]["t"] == made["tables"]["same"]
    columns = [[name, *made["columns"][place]] for name, place in made["tables"]["t"]]
    lines = [",".join(row) for row in zip(*columns, strict=True)]
    assert lines == ["name,value,n", '"a,""b""",0.3333333,1', "'=1,NaN,2", ",2e-34,12345678"]
    assert csv_text(rows).splitlines()[1] == f'"a,""b""",{1 / 3!r},1'


def test_an_empty_table_keeps_its_heading() -> None:
    rows = pd.DataFrame({"step": [], "value": []})
    made = unpacked(packed_tables({"t": rows}))
    assert made == {"columns": [[]], "tables": {"t": [["step", 0], ["value", 0]]}}
    assert csv_text(rows) == "step,value\n"


def test_equal_values_are_packed_alike() -> None:
    assert packed({"a": [1, 2]}) == packed({"a": [1, 2]}) != packed({"a": [2, 1]})


def test_a_static_figure_is_an_address_that_holds_the_whole_image(story: Story) -> None:
    for figure in story.figures:
        svg = static_svg(figure.drawn)
        address = str(svg_address(svg))
        assert not set(address) & set('"&\n#') and address.isascii()
        decoded = unquote(address.removeprefix("data:image/svg+xml,"))
        assert ElementTree.canonicalize(decoded) == ElementTree.canonicalize(svg)
        assert static_svg(figure.drawn) == svg


def test_a_static_figure_writes_words_as_text_and_powers_without_formulas() -> None:
    figure = go.Figure(go.Scatter(x=[0, 1], y=[1e-9, 1e-3], name="<c> & $b$"))
    figure.update_layout(yaxis={"type": "log", "title": {"text": "norm"}}, showlegend=True)
    texts = [node.text for node in ElementTree.fromstring(static_svg(figure)).iter() if node.text]
    assert {"10⁻⁹", "10⁻³", "norm", "<c> & $b$"} <= set(texts)


def test_a_short_path_goes_where_the_long_one_went() -> None:
    svg = static_svg(go.Figure(go.Scatter(x=[0, 1], y=[0, 1], mode="lines")))
    paths = [node.get("d") or "" for node in ElementTree.fromstring(svg).iter()]
    ends = [
        [float(n) for n in d[1:].replace("L", ",").split(",")]
        for d in paths
        if "L" in d and "z" not in d
    ]
    lines = [(c - a, b - d) for a, b, c, d in (e for e in ends if len(e) == 4)]
    # From the lower left to the upper right of axes that are some 480 by 210 points.
    assert [True for across, up in lines if across > 400 and up > 150] == [True]


def test_columns_of_equal_cells_and_other_names_are_held_once() -> None:
    rows = pd.DataFrame({"min": [0.5, 1.5], "max": [0.5, 1.5]})
    made = unpacked(packed_tables({"t": rows}))
    assert made == {"columns": [["0.5", "1.5"]], "tables": {"t": [["min", 0], ["max", 0]]}}


def test_numbers_behind_colors_are_raised_from_their_logarithms(story: Story) -> None:
    (figure,) = [one for one in story.figures if one.key == "gradient_heatmap"]
    made = screen_figure(figure)["light"]["data"]
    drawn = [trace for trace in figure.drawn.data if trace.type == "heatmap"]
    colored = [trace for trace in made if "coloraxis" in trace]
    assert colored and all(trace["customdata"] == "powers" for trace in colored)
    for trace in drawn:
        if trace.coloraxis:
            logs, plain = np.asarray(trace.z, float), np.asarray(trace.customdata, float)
            known = np.isfinite(logs)
            assert np.allclose(10.0 ** logs[known], plain[known], rtol=1e-4)


def test_a_picture_of_few_colors_is_held_with_a_table_of_them(story: Story) -> None:
    from matplotlib.image import imread

    (figure,) = [one for one in story.figures if one.key == "gradient_heatmap"]
    found = re.findall(r"base64,([\w+/=]+)", static_svg(figure.drawn))
    pictures = [base64.b64decode(one) for one in found]
    # The ninth byte after the head of a PNG says how its colors are held: 3 is by a table.
    assert pictures and all(one[25] == 3 for one in pictures)
    colors = [np.unique(imread(io.BytesIO(one)).reshape(-1, 4), axis=0) for one in pictures]
    assert 20 < max(map(len, colors)) <= 256

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

from analyzer.reports.packing import packed, packed_figures, packed_tables, screen_figure
from analyzer.reports.paper import static_svg
from analyzer.reports.story import Story
from analyzer.reports.svg import small_svg, svg_address
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


def test_a_static_figure_is_an_address_that_holds_the_whole_image(
    static_figures: dict[str, str], page: str
) -> None:
    assert len(static_figures) > 20
    for svg in static_figures.values():
        address = str(svg_address(svg))
        assert not set(address) & set('"&\n#') and address.isascii()
        decoded = unquote(address.removeprefix("data:image/svg+xml,"))
        assert ElementTree.canonicalize(decoded) == ElementTree.canonicalize(svg)
        assert f'src="{address}"' in page  # equal bytes, for the page was made by itself


def test_a_static_figure_writes_words_as_text_and_powers_without_formulas() -> None:
    figure = go.Figure(go.Scatter(x=[0, 1], y=[1e-9, 1e-3], name="<c> & $b$"))
    figure.update_layout(yaxis={"type": "log", "title": {"text": "norm"}}, showlegend=True)
    texts = [node.text for node in ElementTree.fromstring(static_svg(figure)).iter() if node.text]
    assert {"10⁻⁹", "10⁻³", "norm", "<c> & $b$"} <= set(texts)


Place = tuple[float, float]
TAKES = {"m": 1, "l": 1, "q": 2, "c": 3, "z": 0}


def walked(path: str) -> list[tuple[str, list[Place]]]:
    """Each segment of a path with its places, absolute, as SVG defines both kinds of letters."""
    parts = re.findall(r"[A-Za-z]|-?(?:\d+\.?\d*|\.\d+)", path)
    found: list[tuple[str, list[Place]]] = []
    at = start = (0.0, 0.0)
    letter = ""
    while parts:
        letter = parts.pop(0) if parts[0].isalpha() else {"m": "l", "M": "L"}.get(letter, letter)
        numbers = [float(parts.pop(0)) for _ in range(2 * TAKES[letter.lower()])]
        origin = at if letter.islower() else (0.0, 0.0)
        places = [(x + origin[0], y + origin[1]) for x, y in zip(*[iter(numbers)] * 2, strict=True)]
        at = places[-1] if places else start
        start = at if letter in "mM" else start
        found.append((letter.lower(), places))
    return found


def short(path: str) -> str:
    root = f'<svg xmlns="http://www.w3.org/2000/svg"><g><path d="{path}"/></g></svg>'
    (found,) = ElementTree.fromstring(small_svg(root))
    return found.attrib["d"]


def test_a_short_path_goes_where_the_long_one_went() -> None:
    random = np.random.default_rng(0)

    def pair() -> str:
        x, y = random.choice([30.0, 300.0]) * random.normal(size=2)
        return f"{x:.6f} {y:.6f}"

    long = f"M {pair()} "
    for _ in range(2000):
        letter = random.choice(["L", "Q", "C", "z", "M"], p=[0.7, 0.1, 0.1, 0.05, 0.05])
        long += f"{letter} {' '.join(pair() for _ in range(TAKES[letter.lower()]))} \n"
    made = short(long)
    assert len(made) < 0.6 * len(long)
    # Each place is the nearest tenth of a point: no error adds up along the path.
    for (kind, places), (same, expected) in zip(walked(made), walked(long), strict=True):
        assert kind == same
        assert np.allclose(places, expected, rtol=0, atol=0.0501)


def test_a_line_that_goes_nowhere_is_left_out_unless_it_is_the_only_one() -> None:
    assert short("M 1 2 L 6 2 L 6.01 2.02 L 6.5 1 z") == "m1,2l5,0,.5-1z"
    assert short("M 1 2 L 1 2") == "m1,2l0,0"


def test_marks_that_look_alike_say_so_once_and_keep_their_places() -> None:
    uses = "".join(
        f'<use xlink:href="#m1" x="{k}" y="2.04" style="fill: #ff0000"/>' for k in (1, 2)
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        '<metadata>when</metadata><g id="line_1"><defs><path id="m1" d="M 0 1.5 L 3 1.5"/></defs>'
        f'<g clip-path="url(#p7)">{uses}</g></g><clipPath id="p7"><rect/></clipPath></svg>'
    )
    root = ElementTree.fromstring(small_svg(svg))
    assert [one.tag.rpartition("}")[2] for one in root] == ["defs", "g", "clipPath"]
    defs, group, clip = root
    assert group.attrib["clip-path"] == f"url(#{clip.attrib['id']})"
    assert group.attrib["style"] == "fill:#f00"
    assert [use.attrib for use in group] == [
        {"href": f"#{defs[0].attrib['id']}", "x": str(k), "y": "2"} for k in (1, 2)
    ]


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

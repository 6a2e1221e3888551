"""Figures and tables as text of a page, small: what is alike is held once, colors apart."""

import gzip
import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any

import numpy as np
import pandas as pd

from analyzer.figures.csv_text import csv_cells
from analyzer.figures.theme import DARK, LIGHT

from .story import Figure

__all__ = [
    "packed",
    "packed_figures",
    "packed_tables",
    "put",
    "screen_figure",
    "what_differs",
]

Place = list[str | int]
_DIGITS = 7
_TOLERANCE = 1e-6


def packed(values: Any) -> str:
    """Return JSON values as text of a page: gzip in base64; equal values give equal text."""
    text = json.dumps(values, separators=(",", ":")).encode()
    # With a time in its head the same values would be another file every second.
    return b64encode(gzip.compress(text, compresslevel=9, mtime=0)).decode()


def packed_figures(figures: Mapping[str, Any]) -> str:
    """Return figures, by name and with arrays as plotly writes them, as text of a page.

    It is ``packed`` of ``{"figures": …, "arrays": …}``, which ``report.js`` reads. Where an array
    stood there is its place in ``arrays``: base64 of all first bytes, then all second bytes, and
    so on. Numbers of eight bytes are rounded to four where that changes none by more than a
    millionth of itself.
    """
    places: dict[str, int] = {}
    shared = _with_places(figures, places)
    return packed({"figures": shared, "arrays": list(places)})


def _with_places(value: Any, places: dict[str, int]) -> Any:
    """A value whose arrays are places in a list of all."""
    if isinstance(value, list):
        return [_with_places(item, places) for item in value]
    if not isinstance(value, Mapping):
        return value
    if not {"bdata", "dtype"} <= value.keys():
        return {key: _with_places(item, places) for key, item in value.items()}
    array = _narrowed(np.frombuffer(b64decode(value["bdata"]), value["dtype"]))
    # The first bytes of neighbors are alike, the last ones are noise: apart they compress better.
    planes = np.ascontiguousarray(array.view(np.uint8).reshape(-1, array.itemsize).T)
    place = places.setdefault(b64encode(planes.tobytes()).decode(), len(places))
    return {**value, "dtype": array.dtype.str.lstrip("<|"), "bdata": place}


def _narrowed(array: Any) -> Any:
    """The numbers in four bytes each where that is as good on a screen."""
    if array.dtype != np.float64:
        return array
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float32)
    return narrow if np.allclose(narrow, array, _TOLERANCE, 0, equal_nan=True) else array


def packed_tables(tables: Mapping[str, pd.DataFrame]) -> str:
    """Return tables, by the name of their figure, as text of a page.

    It is ``packed`` of ``{"columns": …, "tables": …}``, from which ``report.js`` makes CSV files:
    cells that differ once, in CSV with seven digits, and for each table the names of its columns
    with the places of their cells.
    """
    places: dict[tuple[str, ...], int] = {}
    held = {
        key: [
            [name, places.setdefault(tuple(cells), len(places))]
            for name, *cells in csv_cells(rows, _DIGITS)
        ]
        for key, rows in tables.items()
    }
    return packed({"columns": list(places), "tables": held})


def screen_figure(figure: Figure) -> dict[str, Any]:
    """Return a figure as JSON values.

    ``light`` is the figure on white. ``dark``, ``narrow`` and ``both`` are places in it, each with
    its value on a dark page, on a phone, and what is left on a dark phone after those two.
    """
    wide = {theme.name: figure.draw(figure.info, theme).to_dict() for theme in (LIGHT, DARK)}
    light, dark = map(_as_json, wide.values())
    narrow, both = (
        _as_json(figure.draw_narrow(figure.info, theme, wide[theme.name]))
        for theme in (LIGHT, DARK)
    )
    differing = {
        "dark": list(what_differs(light, dark)),
        "narrow": list(what_differs(light, narrow)),
    }
    shown = put(put(light, differing["dark"]), differing["narrow"])
    differing["both"] = list(what_differs(shown, both))
    for trace in light["data"]:
        if trace["type"] == "heatmap" and _are_powers(trace):
            # Numbers behind colors: the page raises ten to the logarithms that it has.
            trace["customdata"] = "powers"
    return {"light": light, **differing}


def _as_json(values: Any) -> Any:
    """The same as JSON knows it, where NaN is null."""
    from plotly.io.json import to_json_plotly

    return json.loads(to_json_plotly(values))


def put(values: Any, places: Iterable[tuple[Place, Any]]) -> Any:
    """Return a copy of JSON values with others put at their places, as ``report.js`` does."""
    made = {0: values}
    for place, value in places:
        inner: Any = made
        for key in (0, *place)[:-1]:
            inner[key] = copy(inner[key])
            inner = inner[key]
        inner[(0, *place)[-1]] = value
    return made[0]


def _are_powers(trace: Mapping[str, Any]) -> bool:
    """Whether the numbers of the cells of a heatmap are ten to the values of their colors."""
    pair: list[Any] = [trace.get("customdata"), trace.get("z")]
    if not all(isinstance(one, Mapping) and "bdata" in one for one in pair):
        return False
    plain, logs = (np.frombuffer(b64decode(one["bdata"]), one["dtype"]) for one in pair)
    # What a color cannot show has a mark and words of its own.
    known = np.isfinite(logs)
    if len(plain) != len(logs) or not known.any():
        return False
    with np.errstate(over="ignore"):
        return np.allclose(10.0 ** logs[known].astype(np.float64), plain[known], 1e-4, 0)


def what_differs(light: Any, dark: Any, *place: str | int) -> Iterator[tuple[Place, Any]]:
    """Yield the places at which two JSON values differ, each with the value of the second."""
    if isinstance(light, dict) and isinstance(dark, dict) and light.keys() <= dark.keys():
        for key, value in dark.items():
            if key in light:
                yield from what_differs(light[key], value, *place, key)
            else:
                yield [*place, key], value
    elif isinstance(light, list) and isinstance(dark, list) and len(light) == len(dark):
        for index, pair in enumerate(zip(light, dark, strict=True)):
            yield from what_differs(*pair, *place, index)
    elif light != dark:
        yield list(place), dark

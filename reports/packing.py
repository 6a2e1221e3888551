"""Makes the data of a report small: every array once, its bytes in an order that compresses."""

import gzip
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .tables import csv_cells

__all__ = ["packed", "packed_figures", "packed_tables"]

_DIGITS = 7
_TOLERANCE = 1e-6


def packed(values: Any) -> str:
    """Return JSON values as text of a page: gzip in base64; equal values give equal text."""
    text = json.dumps(values, separators=(",", ":")).encode()
    return b64encode(gzip.compress(text, compresslevel=9, mtime=0)).decode()


def packed_figures(figures: Mapping[str, Any]) -> str:
    """Return figures as text of a page, which ``report.js`` reads.

    Args:
        figures: JSON values by the name of the figure, arrays as plotly writes them.

    Returns:
        ``packed`` of ``{"figures": …, "arrays": …}``. Where an array stood there is its place in
        ``arrays``: base64 of all first bytes, then all second bytes, and so on. Numbers of eight
        bytes are rounded to four where that changes none by more than a millionth of itself.
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
    """Return tables as text of a page, from which ``report.js`` makes CSV files.

    Args:
        tables: Tables by the name of their figure.

    Returns:
        ``packed`` of ``{"columns": …, "tables": …}``: each different column once, as its cells
        in CSV with seven digits, and for each table the places of its columns.
    """
    places: dict[tuple[str, ...], int] = {}
    held = {
        key: [places.setdefault(tuple(column), len(places)) for column in csv_cells(rows, _DIGITS)]
        for key, rows in tables.items()
    }
    return packed({"columns": list(places), "tables": held})

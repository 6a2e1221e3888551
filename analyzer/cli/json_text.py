"""JSON that every parser accepts: NaN and infinities, which JSON lacks, are texts."""

import dataclasses
import json
import math
from typing import Any

import numpy as np

__all__ = ["json_text"]


def json_text(value: Any) -> str:
    """Return a value as JSON.

    Args:
        value: Dicts, lists, tuples, dataclasses, numpy numbers and arrays, and what JSON knows.

    Returns:
        Indented text; ``"NaN"``, ``"inf"`` and ``"-inf"`` for what is not finite, ``null`` for what
        was not measured.
    """
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """The value in the types of JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {str(key): _plain(cell) for key, cell in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(cell) for cell in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value

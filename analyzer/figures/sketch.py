"""A figure as plain data, as a browser takes it, without plotly's checks of every property."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

__all__ = ["Layout", "Sketch", "Trace", "axes_of", "merged", "part_of", "scatter"]

Trace = dict[str, Any]
Layout = dict[str, Any]
# What plotly.js knows arrays of.
_KINDS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4)} | {"f4", "f8"}
_SMALLER = (np.int8, np.int16, np.int32)


@dataclass(frozen=True, eq=False)
class Sketch:
    """Traces and layout of a figure.

    Plotly takes longer to check a figure than we take to compute what it shows; the dashboard
    leaves the checks to the tests. Arrays of the traces are NumPy arrays.
    """

    traces: list[Trace]
    layout: Layout

    def figure(self) -> go.Figure:
        """Return it as a plotly figure, each property checked."""
        return go.Figure({"data": self.traces, "layout": self.layout})

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it, as the method of that name of its figure does."""
        return {"data": [_encoded(one) for one in self.traces], "layout": _encoded(self.layout)}


def scatter(*parts: dict[str, Any], **more: Any) -> Trace:
    """Return a scatter trace; later parts go before earlier ones."""
    trace: Trace = {"type": "scatter"}
    for part in (*parts, more):
        trace |= part
    return trace


def part_of(trace: Any, key: str) -> Any:
    """Return a property of a trace, of a sketch or of plotly's; None where it has none."""
    return trace.get(key) if isinstance(trace, dict) else trace[key]


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return nested properties with others put over them."""
    result = dict(base)
    for key, value in more.items():
        known = result.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            value = merged(known, value)
        result[key] = value
    return result


def axes_of(layout: Layout, letter: str, more: dict[str, Any]) -> Layout:
    """Return a layout with the same properties given to all its axes ``x`` or ``y``."""
    names = [name for name in layout if name.startswith(f"{letter}axis")]
    return merged(layout, {name: more for name in names})


def _encoded(value: Any) -> Any:
    """Properties as JSON can hold them; None is left out, as plotly does."""
    if isinstance(value, dict):
        return {key: _encoded(one) for key, one in value.items() if one is not None}
    if isinstance(value, np.ndarray):
        return _array(value)
    # Lists hold numbers and words alone, or dicts.
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_encoded(one) for one in value]
    return value


def _array(values: NDArray[Any]) -> Any:
    """An array as plotly.js reads it: base64 of its bytes."""
    if values.dtype == np.int64 and values.size:
        low, high = int(values.min()), int(values.max())
        for kind in _SMALLER:
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                values = values.astype(kind)
                break
    if not values.size or values.dtype.str[1:] not in _KINDS:
        return values.tolist()
    data = base64.b64encode(values.tobytes()).decode("ascii")
    found: dict[str, Any] = {"dtype": values.dtype.str[1:], "bdata": data}
    return found if values.ndim == 1 else found | {"shape": ", ".join(map(str, values.shape))}

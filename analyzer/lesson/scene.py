"""What a figure of the lesson is made of: controls, states, lines and bars, and axes.

A figure is plain data for plotly.js, so that a page can hold all of its states and change between
them at once. Colors are names such as ``@plain``, which the page replaces by those of its look.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analyzer.lesson.tables import SOURCE

__all__ = ["Control", "Scene", "State", "Trace", "axes", "bars", "beside_loss", "control", "line"]

Trace = dict[str, Any]


@dataclass(frozen=True)
class Control:
    """What a reader can set: a slider over few places, or a choice.

    Args:
        key: Its name in the page.
        label: What stands beside it.
        values: Its places, as parts of a state's key.
        shown: What is written at each place.
        start: The first place.
        is_slider: Whether the places have an order along which to drag.
    """

    key: str
    label: str
    values: tuple[str, ...]
    shown: tuple[str, ...]
    start: int = 0
    is_slider: bool = True


@dataclass(frozen=True)
class State:
    """What one setting shows: traces, a sentence, the numbers of a diagram, a layout of its own."""

    data: tuple[Trace, ...]
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """A figure with its controls.

    Args:
        label: What it shows, for those who do not see it.
        controls: What can be set.
        states: By the values of all controls joined by ``|``.
        layout: Plotly's layout, for all states.
        source: Which data.
    """

    label: str
    controls: tuple[Control, ...]
    states: Mapping[str, State]
    layout: Mapping[str, Any]
    source: str = SOURCE


def control(key: str, label: str, values: Sequence[Any], **options: Any) -> Control:
    """Return a control whose places are shown as their values unless told otherwise."""
    shown = options.pop("shown", [str(value) for value in values])
    return Control(key, label, tuple(map(str, values)), tuple(shown), **options)


def line(x: Iterable[Any], y: Iterable[Any], name: str, color: str, **more: Any) -> Trace:
    """Return a line with markers; ``more`` replaces parts of it."""
    stroke = {"color": color, "width": 2.5, **more.pop("line", {})}
    marker = {"color": color, "size": 6}
    shape: Trace = {"type": "scatter", "mode": "lines+markers", "line": stroke, "marker": marker}
    return {**shape, "x": list(x), "y": list(y), "name": name, **more}


def axes(x: str, y: str, *, log: bool = False, low: float = 0, high: float = 0) -> Trace:
    """Axes with their titles; a logarithmic one has a range that stays while lines move."""
    axis: Trace = {"title": {"text": y}}
    if log:
        axis |= {"type": "log", "exponentformat": "power", "range": [low, high]}
        axis["dtick"] = 1 if high - low < 7 else 2 if high - low < 15 else 5
    elif high:
        axis |= {"range": [low, high]}
    return {"xaxis": {"title": {"text": x}}, "yaxis": axis}


def bars(x: Iterable[Any], y: Iterable[Any], name: str, color: str, **more: Any) -> Trace:
    """Return bars; ``more`` replaces parts of them."""
    marker = {"color": color, **more.pop("marker", {})}
    return {"type": "bar", "x": list(x), "y": list(y), "name": name, "marker": marker, **more}


def beside_loss(by_depth: Trace, loss: Trace | None = None) -> Trace:
    """Return a layout with that of a profile at the left and the losses at its right."""
    return {
        **by_depth,
        "xaxis": {**by_depth["xaxis"], "domain": [0, 0.56]},
        "xaxis2": {"title": {"text": "step"}, "domain": [0.68, 1]},
        "yaxis2": {"title": {"text": "training loss"}, "anchor": "x2", **(loss or {})},
    }

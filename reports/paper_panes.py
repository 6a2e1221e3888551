"""Lays out the axes of a plotly figure on a matplotlib figure, in the same places."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Panes", "inches_wide", "layout_axis", "panes"]

_CLOSE = 1e-6


@dataclass
class Panes:
    """The axes of one figure by plotly's names of them.

    Args:
        figure: The matplotlib figure.
        flat: Axes by their pair, such as ``("x2", "y2")``.
        scenes: Axes in space by the name of their scene.
        categories: Places of names by axis, such as ``"x2"``.
        domains: Left, right, bottom and top of each on plotly's paper; a scene is ``(name, "")``.
    """

    figure: Any
    flat: dict[tuple[str, str], Any] = field(default_factory=dict)
    scenes: dict[str, Any] = field(default_factory=dict)
    categories: dict[str, dict[str, int]] = field(default_factory=dict)
    domains: dict[tuple[str, str], tuple[float, float, float, float]] = field(default_factory=dict)

    def at(self, x: float, y: float) -> tuple[Any, float, float] | None:
        """Return the axes nearest to a place on the paper, and the place within them."""
        if not self.domains:
            return None
        key = min(self.domains, key=lambda k: _distance(self.domains[k], x, y))
        left, right, bottom, top = self.domains[key]
        axes = self.flat.get(key) or self.scenes[key[0]]
        return axes, (x - left) / (right - left), (y - bottom) / (top - bottom)

    def of(self, x: str, y: str) -> Any:
        """Return the axes of a pair of references; those of either where they never meet."""
        found = self.flat.get((x, y))
        if found is not None:
            return found
        meets = [axes for key, axes in self.flat.items() if x == key[0] or y == key[1]]
        return meets[0] if meets else None


def _distance(domain: tuple[float, float, float, float], x: float, y: float) -> float:
    left, right, bottom, top = domain
    across, along = max(left - x, 0, x - right), max(bottom - y, 0, y - top)
    # A title above a pane belongs to it, not to the pane that ends a little above.
    return across**2 + along**2 + (1e-3 if y < bottom else 0)


def layout_axis(layout: Any, name: str) -> Any:
    """Return the settings of an axis by its short name, ``x2`` for ``xaxis2``."""
    return layout[f"{name[0]}axis{name[1:]}"]


def inches_wide(axes: Any) -> float:
    """Return about how wide axes will be, before anything is laid out."""
    canvas = axes.get_figure()
    share = axes.get_subplotspec().get_position(canvas).width
    return float(canvas.get_size_inches()[0] * share)


def panes(figure: Any, canvas: Any) -> Panes:
    """Lay out the axes of a plotly figure on a matplotlib figure, in the same places.

    Args:
        figure: The plotly figure.
        canvas: The empty matplotlib figure.

    Returns:
        Its axes, with their scales set and nothing drawn.
    """
    made = Panes(canvas)
    canvas.color_axes = {
        name: figure.layout[name] for name in figure.layout if name.startswith("coloraxis")
    }
    pairs = _pairs(figure)
    places = {pair: _domain(figure.layout, *pair) for pair in pairs}
    scenes = {t.scene or "scene": None for t in figure.data if hasattr(t, "scene")}
    for scene in scenes:
        domain = figure.layout[scene].domain
        places[scene, ""] = (*(domain.x or (0, 1)), *(domain.y or (0, 1)))
    grid, columns, rows = _grid(canvas, list(places.values()))
    for pair, place in places.items():
        cell = grid[_span(rows, 1 - place[3], 1 - place[2]), _span(columns, place[0], place[1])]
        made.domains[pair] = place
        if pair[1] == "":
            made.scenes[pair[0]] = canvas.add_subplot(cell, projection="3d")
            continue
        over = layout_axis(figure.layout, pair[1]).overlaying
        below = made.flat.get((pair[0], over)) if over and over != "free" else None
        axes = below.twinx() if below is not None else canvas.add_subplot(cell)
        made.flat[pair] = axes
    _prepare(figure, made)
    return made


def _pairs(figure: Any) -> list[tuple[str, str]]:
    """The pairs of axes that traces use, in their order."""
    used = [(t.xaxis or "x", t.yaxis or "y") for t in figure.data if hasattr(t, "xaxis")]
    if not used and not any(hasattr(t, "scene") for t in figure.data):
        return [("x", "y")]
    return list(dict.fromkeys(used))


def _domain(layout: Any, x: str, y: str) -> tuple[float, float, float, float]:
    across, along = layout_axis(layout, x), layout_axis(layout, y)
    if along.overlaying:
        along = layout_axis(layout, along.overlaying)
    left, right = across.domain or (0.0, 1.0)
    bottom, top = along.domain or (0.0, 1.0)
    return float(left), float(right), float(bottom), float(top)


def _merged(edges: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Different intervals that do not overlap, in order."""
    found: list[tuple[float, float]] = []
    for low, high in sorted(set(edges), key=lambda edge: (edge[1] - edge[0], edge)):
        if all(high <= a + _CLOSE or low >= b - _CLOSE for a, b in found):
            found.append((low, high))
    return sorted(found)


def _grid(canvas: Any, places: list[tuple[float, float, float, float]]) -> tuple[Any, Any, Any]:
    columns = _merged((left, right) for left, right, _, _ in places)
    rows = _merged((1 - top, 1 - bottom) for _, _, bottom, top in places)
    grid = canvas.add_gridspec(
        len(rows),
        len(columns),
        width_ratios=[high - low for low, high in columns],
        height_ratios=[high - low for low, high in rows],
    )
    return grid, columns, rows


def _span(intervals: list[tuple[float, float]], low: float, high: float) -> slice:
    inside = [i for i, (a, b) in enumerate(intervals) if a < high - _CLOSE and b > low + _CLOSE]
    return slice(inside[0], inside[-1] + 1) if inside else slice(0, 1)


def _prepare(figure: Any, made: Panes) -> None:
    """Set scales, and collect the names that an axis shows in the order of their first use."""
    for (x, y), axes in made.flat.items():
        axes.set_xscale("log" if layout_axis(figure.layout, x).type == "log" else "linear")
        axes.set_yscale("log" if layout_axis(figure.layout, y).type == "log" else "linear")
        bars = [t for t in figure.data if t.type == "bar" and t.xaxis in (None, x)]
        mode = figure.layout.barmode or "group"
        axes.before = None
        axes.bars_of = {"mode": mode, "count": len(bars), "next": 0, "below": {}}
    for trace in figure.data:
        for letter in "xy":
            values = getattr(trace, letter, None)
            if values is None or not hasattr(trace, f"{letter}axis"):
                continue
            array = np.asarray(values)
            if array.dtype.kind in "UO" and any(isinstance(v, str) for v in array.ravel()):
                known = made.categories.setdefault(getattr(trace, f"{letter}axis") or letter, {})
                for value in array.ravel():
                    known.setdefault(str(value), len(known))

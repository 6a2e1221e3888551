"""Lays out the axes of a plotly figure on a matplotlib figure, and finishes them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from analyzer.figures.axes import layout_name

from .paper_traces import plain_text, tick_words, values_of

# Inches of axes in space that have room for more than two ticks.
_WIDE_SCENE = 2.0
__all__ = [
    "Panes",
    "axis_sides",
    "break_title",
    "finish_axes",
    "inches_wide",
    "layout_axis",
    "overshoot",
    "panes",
]

_CLOSE = 1e-6
_MOST_WORDS = 14
_INCHES_PER_LETTER, _INCHES_PER_LINE = 0.055, 0.16

# What lies beyond is drawn at the end of its axis: ticks and their distances have to be numbers.
_LARGEST = 1e300


@dataclass
class Panes:
    """The axes of one figure by plotly's names of them.

    Args:
        figure: The matplotlib figure.
        flat: Axes by their pair, such as ``("x2", "y2")``.
        scenes: Axes in space by the name of their scene.
        categories: Places of names by axis, such as ``"x2"``.
        rugs: The axes below a rug, by its pair.
        domains: Left, right, bottom and top of each on plotly's paper; a scene is ``(name, "")``.
    """

    figure: Any
    flat: dict[tuple[str, str], Any] = field(default_factory=dict)
    scenes: dict[str, Any] = field(default_factory=dict)
    categories: dict[str, dict[str, int]] = field(default_factory=dict)
    rugs: dict[tuple[str, str], Any] = field(default_factory=dict)
    domains: dict[tuple[str, str], tuple[float, float, float, float]] = field(default_factory=dict)

    def at(self, x: float, y: float) -> tuple[Any, float, float]:
        """Return the axes nearest to a place on the paper, and the place within them."""
        key = min(self.domains, key=lambda k: _distance(self.domains[k], x, y))
        left, right, bottom, top = self.domains[key]
        axes = self.flat.get(key) or self.scenes[key[0]]
        return axes, (x - left) / (right - left), (y - bottom) / (top - bottom)

    def of(self, x: str, y: str) -> Any:
        """Return the axes of a pair of references; those of either where they never meet."""
        meets = [axes for key, axes in self.flat.items() if x == key[0] or y == key[1]]
        return self.flat.get((x, y)) or next(iter(meets), None)


def _distance(domain: tuple[float, float, float, float], x: float, y: float) -> float:
    left, right, bottom, top = domain
    across, along = max(left - x, 0, x - right), max(bottom - y, 0, y - top)
    # A title above a pane belongs to it, not to the pane that ends a little above.
    return across**2 + along**2 + (1e-3 if y < bottom else 0)


def layout_axis(layout: Any, name: str) -> Any:
    """Return the settings of an axis by its short name, ``x2`` for ``xaxis2``."""
    return layout[layout_name(name)]


def inches_wide(axes: Any) -> float:
    """Return about how wide axes will be, before anything is laid out."""
    canvas = axes.get_figure()
    share = axes.get_subplotspec().get_position(canvas).width
    return float(canvas.get_size_inches()[0] * share)


def panes(figure: Any, canvas: Any) -> Panes:
    """Lay out the axes of a plotly figure on an empty matplotlib figure, in the same places.

    Their scales are set; nothing is drawn.
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
        else:
            made.flat[pair] = canvas.add_subplot(cell)
    _prepare(figure, made)
    for trace in figure.data:
        side = getattr(trace, "yaxis", None)
        if side and _is_over(figure.layout, side):
            under = (trace.xaxis or "x", layout_axis(figure.layout, side).overlaying)
            made.rugs[trace.xaxis or "x", side] = made.flat[under]
    return made


def _is_over(layout: Any, name: str) -> bool:
    """Whether an axis lies over another one: that of a rug, from 0 to 1 over the whole plot."""
    return layout_axis(layout, name).overlaying is not None


def _pairs(figure: Any) -> list[tuple[str, str]]:
    """The pairs of axes that traces use, in their order."""
    used = [
        (t.xaxis or "x", t.yaxis or "y")
        for t in figure.data
        if hasattr(t, "xaxis") and not _is_over(figure.layout, t.yaxis or "y")
    ]
    if not used and not any(hasattr(t, "scene") for t in figure.data):
        return [("x", "y")]
    return list(dict.fromkeys(used))


def _domain(layout: Any, x: str, y: str) -> tuple[float, float, float, float]:
    across, along = layout_axis(layout, x), layout_axis(layout, y)
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
    # Plotly places panes by fractions of the paper; matplotlib aligns them only within a grid.
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


def finish_axes(figure: Any, made: Panes) -> None:
    """Set titles, ranges and ticks of what is drawn."""
    for (x, y), axes in made.flat.items():
        for name, side in ((x, axes.xaxis), (y, axes.yaxis)):
            settings = layout_axis(figure.layout, name)
            _limits(axes, name[0], settings)
            other = y if name is x else x
            if settings.anchor in (None, other):
                _words(axes, side, settings, made.categories.get(name, {}))
            else:
                # Plotly writes the words of an axis that several panes share at one of them.
                side.set_tick_params(labelbottom=False, labelleft=False)
                side.set_minor_locator(NullLocator())
            _look(axes, side, settings)
    # After the limits of each, from which the common ones are made.
    _share(figure, made)
    for name, axes in made.scenes.items():
        _finish_scene(figure.layout[name], axes)


def _words(axes: Any, side: Any, settings: Any, categories: dict[str, int]) -> None:
    """Title and tick labels."""
    side.set_label_text(plain_text(settings.title.text))
    if settings.tickvals is not None:
        places = values_of(settings.tickvals, categories)
        _set_ticks(axes, side, list(places), tick_words(settings))
    elif categories:
        _set_ticks(axes, side, list(categories.values()), [plain_text(c) for c in categories])


def _set_ticks(axes: Any, side: Any, places: list[float], texts: list[str]) -> None:
    """Ticks with words, as many as can be read."""
    # Upright words are as wide as a line is high.
    most = _MOST_WORDS
    if side is axes.xaxis and _is_crowded(axes, [_short(text) for text in texts[:most]]):
        most = max(2, min(most, int(inches_wide(axes) / _INCHES_PER_LINE)))
    step = max(1, -(-len(places) // most))
    places, texts = places[::step], [_short(text) for text in texts[::step]]
    is_crowded = side is axes.xaxis and _is_crowded(axes, texts)
    if side is axes.xaxis:
        places, texts = _apart(axes, places, texts, is_upright=is_crowded)
    side.set_ticks(places, texts, minor=False)
    side.set_minor_locator(NullLocator())
    if is_crowded:
        side.set_tick_params(labelrotation=90)


def _is_crowded(axes: Any, texts: list[str]) -> bool:
    """Whether words beside each other take more than there is room for."""
    return sum(len(text) + 2 for text in texts) * _INCHES_PER_LETTER > inches_wide(axes)


def _apart(
    axes: Any, places: list[float], texts: list[str], *, is_upright: bool
) -> tuple[list[float], list[str]]:
    """Leave out words that would cover the one before."""
    low, high = axes.get_xlim()
    inches = inches_wide(axes) / (abs(high - low) or 1.0)
    kept: list[tuple[float, str]] = []
    for place, text in sorted(zip(places, texts, strict=True)):
        room = (len(text) + len(kept[-1][1]) + 2) / 2 * _INCHES_PER_LETTER if kept else 0.0
        # Layers of one depth stand beside each other.
        room = _INCHES_PER_LINE if is_upright else room
        if not kept or (place - kept[-1][0]) * inches >= room:
            kept.append((place, text))
    return [place for place, _ in kept], [text for _, text in kept]


def _short(text: str) -> str:
    return text if len(text) <= 22 else f"{text[:10]}…{text[-11:]}"


def _limits(axes: Any, letter: str, settings: Any) -> None:
    """The range of an axis; plotly gives that of a logarithmic one in decades."""
    get, put = (axes.get_xlim, axes.set_xlim) if letter == "x" else (axes.get_ylim, axes.set_ylim)
    if settings.range is not None:
        put(*(10.0**end if settings.type == "log" else end for end in settings.range))
    elif settings.rangemode == "tozero":
        low, high = get()
        put(min(low, 0), max(high, 0))
    low, high = get()
    if max(abs(low), abs(high)) > _LARGEST:
        put(*(min(max(end, -_LARGEST), _LARGEST) for end in (low, high)))


def _look(axes: Any, side: Any, settings: Any) -> None:
    """Whether the axis, its labels and its grid are seen."""
    if settings.visible is False:
        side.set_visible(False)
        ends = ("bottom", "top") if side is axes.xaxis else ("left", "right")
        for end in ends:
            axes.spines[end].set_visible(False)
        return
    if settings.showticklabels is False:
        side.set_tick_params(labelbottom=False, labelleft=False, labelright=False, length=0)
    if settings.showgrid and not axes.collections:
        axes.grid(True, axis=side.axis_name, color="#e4e4e4", linewidth=0.5)
        axes.set_axisbelow(True)


def _share(figure: Any, made: Panes) -> None:
    """Give axes that match each other one range."""
    for letter in "xy":
        groups: dict[str, list[Any]] = {}
        for pair, axes in made.flat.items():
            name = pair[0] if letter == "x" else pair[1]
            root = layout_axis(figure.layout, name).matches or name
            groups.setdefault(root, []).append(axes)
        for group in groups.values():
            ends = np.array([getattr(axes, f"get_{letter}lim")() for axes in group])
            for axes in group if len(group) > 1 else []:
                getattr(axes, f"set_{letter}lim")(ends.min(), ends.max())


def axis_sides(axes: Any) -> list[Any]:
    """Return the x and the y axis of a plot or color bar that has words; none of one in space."""
    return [] if hasattr(axes, "zaxis") else [axes.xaxis, axes.yaxis]


def break_title(side: Any) -> bool:
    """Break the title of an axis where it is longer than the axis; return whether it was."""
    text, box = side.label.get_text(), side.axes.get_window_extent()
    if not text or not side.get_visible():
        return False
    seen = side.label.get_window_extent()
    is_along = side.axis_name == "x"
    long, room = (seen.width, box.width) if is_along else (seen.height, box.height)
    if long <= room * 1.02 or "\n" in text or " " not in text:
        return False
    side.label.set_text("\n".join(wrap(text, max(len(text) // 2 + 3, 8))))
    return True


def overshoot(axes: Any) -> float:
    """Return how many inches the title of the upright axis reaches above or below the figure."""
    seen, canvas = axes.yaxis.label.get_window_extent(), axes.get_figure()
    over = max(-seen.y0, seen.y1 - canvas.bbox.height, 0.0)
    return over / canvas.dpi if axes.yaxis.label.get_text() else 0.0


def _finish_scene(scene: Any, axes: Any) -> None:
    """Titles, ranges and the point of view of axes in space."""
    width = inches_wide(axes)
    for letter in "xyz":
        settings = scene[f"{letter}axis"]
        getattr(axes, f"set_{letter}label")(plain_text(settings.title.text), labelpad=-4)
        if settings.range is not None:
            getattr(axes, f"set_{letter}lim")(*settings.range)
        if settings.tickvals is not None:
            getattr(axes, f"set_{letter}ticks")(list(settings.tickvals), tick_words(settings))
        side = getattr(axes, f"{letter}axis")
        side.set_tick_params(pad=-2, labelsize=7 if width > _WIDE_SCENE else 5)
        if settings.tickvals is None:
            _few_ticks(side, getattr(axes, f"get_{letter}lim")(), width)
        side._axinfo["grid"] |= {"linewidth": 0.4, "color": "#cccccc"}
    eye = scene.camera.eye
    if eye.x is not None:
        flat = float(np.hypot(eye.x, eye.y))
        axes.view_init(np.degrees(np.arctan2(eye.z, flat)), np.degrees(np.arctan2(eye.y, eye.x)))
    axes.set_box_aspect((1, 1, 0.8), zoom=0.92)


def _few_ticks(side: Any, ends: tuple[float, float], width: float) -> None:
    """Round ticks of an axis in space; in a small one the first and the last of them."""
    if width > _WIDE_SCENE:
        # Seen from the side they stand closer than along an axis of the page.
        side.set_major_locator(MaxNLocator(5 if width > 1.5 * _WIDE_SCENE else 2))
        return
    low, high = sorted(ends)
    inside = [at for at in MaxNLocator(4).tick_values(low, high) if low <= at <= high]
    side.set_ticks([inside[0], inside[-1]] if len(inside) > 1 else inside)

"""Finishes the axes of a twin: titles, ticks, ranges, grid, and the view of axes in space."""

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from .paper_panes import Panes, inches_wide, layout_axis
from .paper_values import values_of
from .paper_words import plain_text

__all__ = ["finish_axes"]

_MOST_WORDS = 14
_INCHES_PER_LETTER = 0.055


def finish_axes(figure: Any, made: Panes) -> None:
    """Set titles, ranges and ticks of what is drawn."""
    for (x, y), axes in made.flat.items():
        for name, side in ((x, axes.xaxis), (y, axes.yaxis)):
            settings = layout_axis(figure.layout, name)
            _limits(axes, name[0], settings)
            other = y if name is x else x
            if settings.anchor in (None, "free", other) or settings.overlaying:
                _words(axes, side, settings, made.categories.get(name, {}))
            else:
                # Plotly writes the words of an axis that several panes share at one of them.
                side.set_tick_params(labelbottom=False, labelleft=False)
                side.set_minor_locator(NullLocator())
            _look(axes, side, settings)
    _share(figure, made)
    for name, axes in made.scenes.items():
        _finish_scene(figure.layout[name], axes)


def _words(axes: Any, side: Any, settings: Any, categories: dict[str, int]) -> None:
    """Title and tick labels."""
    side.set_label_text(plain_text(settings.title.text))
    if settings.side == "right":
        side.set_label_position("right")
        side.tick_right()
    if settings.tickvals is not None:
        places = values_of(settings.tickvals, categories)
        texts = [plain_text(word) for word in (settings.ticktext or settings.tickvals)]
        _set_ticks(axes, side, list(places), texts)
    elif categories:
        _set_ticks(axes, side, list(categories.values()), [plain_text(c) for c in categories])


def _set_ticks(axes: Any, side: Any, places: list[float], texts: list[str]) -> None:
    """Ticks with words, of which only so many are shown that they can be read."""
    step = max(1, -(-len(places) // _MOST_WORDS))
    places, texts = places[::step], [_short(text) for text in texts[::step]]
    is_crowded = side is axes.xaxis and _is_crowded(axes, texts)
    if side is axes.xaxis and not is_crowded:
        places, texts = _apart(axes, places, texts)
    side.set_ticks(places, texts, minor=False)
    side.set_minor_locator(NullLocator())
    if is_crowded:
        side.set_tick_params(labelrotation=90 if len(texts) > 6 else 30)


def _is_crowded(axes: Any, texts: list[str]) -> bool:
    """Whether words beside each other take more than there is room for."""
    return sum(len(text) + 2 for text in texts) * _INCHES_PER_LETTER > inches_wide(axes)


def _apart(axes: Any, places: list[float], texts: list[str]) -> tuple[list[float], list[str]]:
    """Leave out words that would cover the one before."""
    low, high = axes.get_xlim()
    inches = inches_wide(axes) / (abs(high - low) or 1.0)
    kept: list[tuple[float, str]] = []
    for place, text in sorted(zip(places, texts, strict=True)):
        room = (len(text) + len(kept[-1][1]) + 2) / 2 * _INCHES_PER_LETTER if kept else 0.0
        if not kept or (place - kept[-1][0]) * inches >= room:
            kept.append((place, text))
    return [place for place, _ in kept], [text for _, text in kept]


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else f"{text[:10]}…{text[-11:]}"


def _limits(axes: Any, letter: str, settings: Any) -> None:
    """The range of an axis; plotly gives that of a logarithmic one in decades."""
    get, put = (axes.get_xlim, axes.set_xlim) if letter == "x" else (axes.get_ylim, axes.set_ylim)
    if settings.range is not None:
        ends = [None if end is None else float(end) for end in settings.range]
        if settings.type == "log":
            ends = [None if end is None else 10.0**end for end in ends]
        put(*ends)
    elif str(settings.autorange).startswith("reversed"):
        low, high = sorted(get())
        put(high, low)
    elif settings.rangemode == "tozero":
        low, high = get()
        put(min(low, 0), max(high, 0))


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
            falls = ends[0][0] > ends[0][1]
            low, high = ends.min(), ends.max()
            for axes in group if len(group) > 1 else []:
                getattr(axes, f"set_{letter}lim")(*((high, low) if falls else (low, high)))


def _finish_scene(scene: Any, axes: Any) -> None:
    """Titles, ranges and the point of view of axes in space."""
    is_wide = inches_wide(axes) > 2
    for letter in "xyz":
        settings = scene[f"{letter}axis"]
        getattr(axes, f"set_{letter}label")(plain_text(settings.title.text), labelpad=-4)
        if settings.range is not None:
            getattr(axes, f"set_{letter}lim")(*settings.range)
        if settings.tickvals is not None:
            texts = [plain_text(word) for word in (settings.ticktext or settings.tickvals)]
            getattr(axes, f"set_{letter}ticks")(list(settings.tickvals), texts)
        side = getattr(axes, f"{letter}axis")
        side.set_tick_params(pad=-2, labelsize=7 if is_wide else 5)
        if settings.tickvals is None:
            side.set_major_locator(MaxNLocator(5 if is_wide else 2))
        side._axinfo["grid"] |= {"linewidth": 0.4, "color": "#cccccc"}
    eye = scene.camera.eye
    if eye.x is not None:
        flat = float(np.hypot(eye.x, eye.y))
        axes.view_init(np.degrees(np.arctan2(eye.z, flat)), np.degrees(np.arctan2(eye.y, eye.x)))
    axes.set_box_aspect((1, 1, 0.8), zoom=0.92)

"""What lies over the traces of a figure: shapes, annotations, its legend and color bars."""

import re
from textwrap import wrap
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.transforms import blended_transform_factory

from .paper_axes import Panes, inches_wide, layout_axis
from .paper_traces import dashes_of, marker_of, matplotlib_color, plain_text, tick_words

__all__ = ["draw_annotations", "draw_color_bars", "draw_legend", "draw_shapes"]

_INCHES_PER_LETTER = 0.052
_TOKEN = re.compile(r"[MLHVQCZ]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_CODES = {"M": Path.MOVETO, "L": Path.LINETO, "Q": Path.CURVE3, "C": Path.CURVE4}
_NUMBERS = {"M": 2, "L": 2, "Q": 4, "C": 6}


def draw_shapes(figure: Any, made: Panes) -> None:
    """Draw the lines, rectangles and paths of the layout."""
    for shape in figure.layout.shapes:
        axes, transform = _anchored(made, shape)
        if axes is not None and shape.visible in (None, True):
            _draw_shape(shape, axes, transform)


def _anchored(made: Panes, mark: Any) -> tuple[Any, Any]:
    """The axes and the transform of a mark by its two references."""
    x, y = mark.xref or "x", mark.yref or "y"
    axes = made.of(x.partition(" ")[0], y.partition(" ")[0]) or next(iter(made.flat.values()), None)
    if axes is None:
        return None, None
    sides = [
        axes.transAxes if reference == "paper" or reference.endswith(" domain") else axes.transData
        for reference in (x, y)
    ]
    return axes, blended_transform_factory(*sides)


def _draw_shape(shape: Any, axes: Any, transform: Any) -> None:
    look = {
        "edgecolor": matplotlib_color(shape.line.color, default="#555555"),
        "linewidth": 0.5 * (1.5 if shape.line.width is None else shape.line.width),
        "linestyle": dashes_of(shape.line.dash),
        "facecolor": matplotlib_color(shape.fillcolor, default="none"),
        "alpha": shape.opacity,
        "transform": transform,
        "zorder": 0.5 if shape.layer == "below" else 2.5,
    }
    if shape.type == "path":
        axes.add_patch(PathPatch(_path(shape.path), **look))
    elif shape.type == "rect":
        size = float(shape.x1) - float(shape.x0), float(shape.y1) - float(shape.y0)
        axes.add_patch(Rectangle((shape.x0, shape.y0), *size, **look))
    else:
        look["color"] = look.pop("edgecolor")
        del look["facecolor"]
        axes.add_line(Line2D([shape.x0, shape.x1], [shape.y0, shape.y1], **look))


def _path(text: str) -> Path:
    """An SVG path with absolute commands."""
    tokens = _TOKEN.findall(text.replace(",", " "))
    points: list[tuple[float, float]] = []
    codes: list[Any] = []
    command, place = "M", 0
    while place < len(tokens):
        if tokens[place].isalpha():
            command, place = tokens[place], place + 1
        if command == "Z":
            points.append(points[0])
            codes.append(Path.CLOSEPOLY)
            continue
        count = _NUMBERS[command]
        numbers = [float(number) for number in tokens[place : place + count]]
        place += count
        points += list(zip(numbers[::2], numbers[1::2], strict=True))
        codes += [_CODES[command]] * (count // 2)
        # In SVG, pairs that follow the first one of a move are lines.
        command = "L" if command == "M" else command
    return Path(points, codes)


def draw_annotations(figure: Any, made: Panes) -> None:
    """Write the words of the layout; those above a pane are its title."""
    for note in figure.layout.annotations:
        if note.visible is False or not note.text:
            continue
        place = _on_paper(figure.layout, note)
        if place is None:
            axes, transform = _anchored(made, note)
            if axes is not None:
                _write(axes, note, note.x, note.y, transform, made.categories)
            continue
        found = made.at(*place)
        if found is None:
            made.figure.text(*place, plain_text(note.text), ha="center", va="center")
            continue
        axes, across, along = found
        is_above = along >= 0.999 and note.yanchor != "top"
        if is_above and 0 <= across <= 1:
            _title(axes, note, across)
        else:
            _write(axes, note, across, along, None)


def _on_paper(layout: Any, note: Any) -> tuple[float, float] | None:
    """The place of a note on plotly's paper, where one of its references is the paper."""
    references = (note.xref or "paper", note.yref or "paper")
    if "paper" not in references:
        return None
    place = []
    for reference, value in zip(references, (note.x, note.y), strict=True):
        if reference == "paper":
            place.append(float(value))
        elif reference.endswith(" domain"):
            low, high = layout_axis(layout, reference.partition(" ")[0]).domain or (0.0, 1.0)
            place.append(low + float(value) * (high - low))
        else:
            return None
    return place[0], place[1]


def _title(axes: Any, note: Any, across: float) -> None:
    side = {"left": "left", "right": "right"}.get(note.xanchor or "", "center")
    side = side if abs(across - 0.5) > 0.3 else "center"
    axes.set_title(_wrapped(plain_text(note.text), axes), loc=side, size=7)


def _wrapped(text: str, axes: Any) -> str:
    """A title in lines that are no longer than the pane below is wide."""
    most = max(14, int(0.9 * inches_wide(axes) / _INCHES_PER_LETTER))
    return "\n".join(part for line in text.split("\n") for part in wrap(line, most) or [""])


def _write(
    axes: Any,
    note: Any,
    x: Any,
    y: Any,
    transform: Any,
    categories: dict[str, dict[str, int]] | None = None,
) -> None:
    """Write words, with an arrow where the figure draws one; without a transform, on the axes."""
    # Places on plotly's logarithmic axes are exponents; matplotlib wants the values.
    if transform is not None:
        x = _as_drawn(axes, "x", note.xref or "x", x, categories or {})
        y = _as_drawn(axes, "y", note.yref or "y", y, categories or {})
    size = min(max((note.font.size or 12) * 0.55, 5), 8)
    shift = (0.6 * float(note.xshift or 0), 0.6 * float(note.yshift or 0))
    arrow = {"arrowstyle": "->", "linewidth": 0.5, "color": "#555555"}
    if note.showarrow is not False:
        shift = (0.6 * float(note.ax or 0), -0.6 * float(-30 if note.ay is None else note.ay))
    axes.annotate(
        _wrapped(plain_text(note.text), axes),
        (x, y),
        shift,
        xycoords=transform or "axes fraction",
        textcoords="offset points",
        arrowprops=arrow if note.showarrow is not False else None,
        ha={"left": "left", "right": "right"}.get(note.xanchor or "", "center"),
        va={"top": "top", "bottom": "bottom"}.get(note.yanchor or "", "center"),
        size=size,
        rotation=-(note.textangle or 0),
        annotation_clip=False,
        # Otherwise long words at an edge would squeeze the panes to make room for themselves.
        color="#333333",
        in_layout=False,
    )


def _as_drawn(
    axes: Any, letter: str, reference: str, value: Any, categories: dict[str, dict[str, int]]
) -> Any:
    """The place of a note on an axis: of a name, or of a number, which may be in decades."""
    if reference.endswith(("domain", "paper")):
        return value
    value = categories.get(reference, {}).get(value, value)
    is_log = getattr(axes, f"get_{letter}scale")() == "log"
    return 10.0 ** float(value) if is_log else value


def draw_legend(figure: Any, made: Panes) -> None:
    """Put one legend above everything, each name once."""
    if figure.layout.showlegend is False:
        return
    entries: dict[str, Any] = {}
    for trace in figure.data:
        is_shown = trace.type in ("scatter", "bar") and trace.visible in (None, True)
        if is_shown and trace.showlegend is not False and trace.name:
            entries.setdefault(plain_text(trace.name), _handle(trace))
    if len(entries) < 2 and figure.layout.showlegend is not True:
        return
    names = [name if len(name) < 45 else f"{name[:21]}…{name[-22:]}" for name in entries]
    if names:
        width = made.figure.get_size_inches()[0]
        most = max(1, int(width * 15 / (max(map(len, names)) + 5)))
        rows = -(-len(names) // most)
        made.figure.legend(
            list(entries.values()),
            names,
            loc="outside upper center",
            ncols=-(-len(names) // rows),
            title=plain_text(figure.layout.legend.title.text).strip() or None,
            title_fontsize=7,
        )


def _handle(trace: Any) -> Any:
    """The sample of a trace in the legend."""
    if trace.type == "bar":
        color = trace.marker.color if isinstance(trace.marker.color, str) else "#555555"
        return Patch(color=matplotlib_color(color), alpha=trace.opacity)
    mode = trace.mode or "lines"
    line, marker = trace.line, trace.marker
    own = marker.color if isinstance(marker.color, str) else None
    color = matplotlib_color((line.color if "lines" in mode else own) or own or "#555555")
    if mode == "none" or ("lines" in mode and line.width == 0 and trace.fill):
        return Patch(color=matplotlib_color(getattr(trace, "fillcolor", None), default="#cccccc"))
    return Line2D(
        [],
        [],
        color=color,
        linestyle=dashes_of(line.dash) if "lines" in mode else "none",
        marker=marker_of(marker.symbol) if "markers" in mode else None,
        alpha=trace.opacity,
    )


def draw_color_bars(figure: Any, made: Panes, drawn: list[tuple[Any, Any, Any]]) -> None:
    """Draw the color bars: one for each shared color axis, else one beside the axes of a trace.

    ``drawn`` has axes, mappable and holder of the color bar for every trace that has one.
    """
    shared: dict[str, tuple[list[Any], Any]] = {}
    for axes, mappable, holder in drawn:
        name = getattr(holder, "coloraxis", None)
        if name:
            shared.setdefault(name, ([], mappable))[0].append(axes)
        else:
            _color_bar(made, mappable, [axes], holder.colorbar)
    for name, (group, mappable) in shared.items():
        settings = figure.layout[name]
        if settings.showscale is not False:
            _color_bar(made, mappable, group, settings.colorbar)


def _color_bar(made: Panes, mappable: Any, group: list[Any], settings: Any) -> None:
    in_space = any(axes in made.scenes.values() for axes in group)
    bar = made.figure.colorbar(
        mappable,
        ax=group,
        fraction=0.05,
        pad=0.12 if in_space else 0.02,
        aspect=15 if in_space else 25,
        shrink=0.6 if in_space else 1.0,
    )
    bar.outline.set_visible(False)
    if settings.title.text:
        bar.set_label(plain_text(settings.title.text))
    if settings.tickvals is not None:
        bar.set_ticks(list(settings.tickvals), labels=tick_words(settings))

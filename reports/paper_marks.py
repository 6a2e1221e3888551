"""What lies over the traces of a figure: shapes, annotations, its legend and color bars."""

from textwrap import wrap
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import blended_transform_factory

from .paper_axes import Panes, inches_wide, layout_axis
from .paper_traces import dashes_of, marker_of, matplotlib_color, plain_text, tick_words

__all__ = ["draw_annotations", "draw_color_bars", "draw_legend", "draw_shapes"]

_INCHES_PER_LETTER = 0.052
_MOST_WORDS = 6
_LEGEND_LINE = 0.14


def draw_shapes(figure: Any, made: Panes) -> None:
    """Draw the lines of the layout."""
    for shape in figure.layout.shapes:
        if shape.type != "line":
            raise ValueError(
                f"a figure has a shape of type {shape.type!r}; expected line. "
                "Draw it in reports/paper_marks.py"
            )
        axes, transform = _anchored(made, shape)
        line = Line2D(
            [shape.x0, shape.x1],
            [shape.y0, shape.y1],
            color=matplotlib_color(shape.line.color),
            linewidth=0.5 * shape.line.width,
            linestyle=dashes_of(shape.line.dash),
            transform=transform,
            zorder=2.5,
        )
        axes.add_line(line)


def _anchored(made: Panes, mark: Any) -> tuple[Any, Any]:
    """The axes and the transform of a mark by its two references."""
    x, y = mark.xref or "x", mark.yref or "y"
    axes = made.of(x.partition(" ")[0], y.partition(" ")[0])
    sides = [
        axes.transAxes if reference == "paper" or reference.endswith(" domain") else axes.transData
        for reference in (x, y)
    ]
    return axes, blended_transform_factory(*sides)


def draw_annotations(figure: Any, made: Panes) -> None:
    """Write the words of the layout; those above a pane are its title."""
    for note in figure.layout.annotations:
        place = _on_paper(figure.layout, note)
        # A sentence belongs into the caption.
        is_sentence = len(plain_text(note.text).split()) > _MOST_WORDS
        if place is None:
            axes, transform = _anchored(made, note)
            if not is_sentence:
                _write(axes, note, note.x, note.y, transform)
            continue
        axes, across, along = made.at(*place)
        is_above = along >= 0.999 and note.yanchor != "top"
        if is_above and 0 <= across <= 1:
            _title(axes, note, across)
        elif not is_sentence:
            _write(axes, note, across, along, axes.transAxes)


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


def _write(axes: Any, note: Any, x: float, y: float, transform: Any) -> None:
    axes.annotate(
        _wrapped(plain_text(note.text), axes),
        (x, y),
        (0, 0.6 * float(note.yshift or 0)),
        xycoords=transform,
        textcoords="offset points",
        ha={"left": "left", "right": "right"}.get(note.xanchor or "", "center"),
        va={"top": "top", "bottom": "bottom"}.get(note.yanchor or "", "center"),
        size=min(max((note.font.size or 12) * 0.55, 5), 8),
        annotation_clip=False,
        # Otherwise long words at an edge would squeeze the panes to make room for themselves.
        color="#333333",
        in_layout=False,
    )


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
    width, height = made.figure.get_size_inches()
    half = min(22, int(width * 15 - 6) // 2)
    names = [n if len(n) <= 2 * half else f"{n[: half - 1]}…{n[-half:]}" for n in entries]
    if names:
        most = max(1, int(width * 15 / (max(map(len, names)) + 5)))
        rows = -(-len(names) // most)
        # Constrained layout gives up where the legend leaves no room for the plots.
        made.figure.set_size_inches(width, height + max(0, rows - 4) * _LEGEND_LINE)
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
        return Patch(color=matplotlib_color(trace.marker.color))
    mode, line, marker = trace.mode or "lines", trace.line, trace.marker
    if "lines" in mode and line.width == 0:
        return Patch(color=matplotlib_color(trace.fillcolor))
    color = matplotlib_color((line.color if "lines" in mode else None) or marker.color or "#555555")
    return Line2D(
        [],
        [],
        color=color,
        linestyle=dashes_of(line.dash) if "lines" in mode else "none",
        marker=marker_of(marker.symbol) if "markers" in mode else None,
    )


def draw_color_bars(figure: Any, made: Panes, drawn: list[tuple[str, Any, Any]]) -> None:
    """Draw the bar of each color axis; ``drawn`` has its name, axes and mappable for each trace."""
    shared: dict[str, tuple[list[Any], Any]] = {}
    for name, axes, mappable in drawn:
        shared.setdefault(name, ([], mappable))[0].append(axes)
    for name, (group, mappable) in shared.items():
        settings = figure.layout[name].colorbar
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

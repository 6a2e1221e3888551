"""Figures for a narrow screen: panes one above the other, color bar on top, legend below."""

from typing import Any

import plotly.graph_objects as go

__all__ = ["stacked"]

_Span = tuple[float, float]
_SHRUNK = 0.9
_BETWEEN = 80
# Pixels: what a phone leaves for a legend, a letter, the line before an entry, a line of entries.
_LEGEND_WIDTH, _LETTER, _SAMPLE, _LINE = 290, 7, 45, 24
_WORDS = 13
_BAR_ROOM, _TICKS_ROOM = 64, 56


def stacked(figure: go.Figure) -> go.Figure:
    """Put the panes of a figure one above the other, each in the full width.

    A pane is what shares a span along x. The color bar lies above them, the legend below.

    Args:
        figure: The figure; it is changed.
    """
    _stack(figure)
    _lay_bar(figure.layout)
    _lay_legend(figure)
    return figure


def _stack(figure: go.Figure) -> None:
    layout = figure.layout
    scenes = set(_scenes(figure))
    spans = sorted(scenes or {_span(axis) for axis in _axes(figure, "xaxis")})
    count = len(spans)
    if count < 2:
        return
    room = _taller(layout, count)
    # A figure of scenes may have axes too, on which nothing stands.
    for name in () if scenes else _names(figure, "yaxis"):
        axis = layout[name]
        place = spans.index(_span(layout[_long(axis.anchor or "x")]))
        axis.update(domain=_band(axis.domain or (0.0, 1.0), place, count, room))
        _label(axis, layout.yaxis if name != "yaxis" and not axis.title.text else None)
    for name in _names(figure, "scene"):
        place = spans.index(tuple(layout[name].domain.x))
        layout[name].domain.update(x=(0.0, 1.0), y=_band((0.0, 1.0), place, count, room))
    _move_words(figure, spans, room)
    for axis in _axes(figure, "xaxis"):
        axis.update(domain=(0.0, 1.0))


def _names(figure: go.Figure, kind: str) -> list[str]:
    """Names of the axes or scenes of a figure, in order."""
    return [name for name in figure.layout.to_plotly_json() if name.startswith(kind)]


def _axes(figure: go.Figure, kind: str) -> list[Any]:
    return [figure.layout[name] for name in _names(figure, kind)]


def _scenes(figure: go.Figure) -> list[_Span]:
    return [tuple(figure.layout[name].domain.x) for name in _names(figure, "scene")]


def _span(axis: Any) -> _Span:
    low, high = axis.domain or (0.0, 1.0)
    return float(low), float(high)


def _long(axis: str) -> str:
    return f"{axis[0]}axis{axis[1:]}"


def _taller(layout: Any, count: int) -> float:
    """Make room in height for all panes; return the part between two of them."""
    margin = (layout.margin.t or 0) + (layout.margin.b or 0)
    height = ((layout.height or 400) - margin) * count * _SHRUNK + _BETWEEN * (count - 1)
    layout.height = int(height + margin)
    return _BETWEEN / float(height)


def _band(domain: Any, place: int, count: int, room: float) -> _Span:
    """Map a span along y into the band of a pane; the first pane is on top."""
    low, high = domain
    size = (1.0 - room * (count - 1)) / count
    foot = (count - 1 - place) * (size + room)
    return foot + float(low) * size, foot + float(high) * size


def _label(axis: Any, first: Any) -> None:
    """Give an axis that leaned on its neighbor labels of its own."""
    axis.update(showticklabels=True)
    if first is not None and axis.matches == "y" and first.title.text:
        axis.update(title=first.title)


def _move_words(figure: go.Figure, spans: list[_Span], room: float) -> None:
    """Put words that stand over a pane where the pane is now."""
    count = len(spans)
    for words in figure.layout.annotations:
        words.font.size = min(words.font.size or _WORDS, _WORDS)
        if words.yref not in (None, "paper"):
            continue
        if words.xref and words.xref.endswith(" domain"):
            axis = figure.layout[_long(words.xref.partition(" ")[0])]
            place = spans.index(_span(axis))
        else:
            centers = [abs((low + high) / 2 - words.x) for low, high in spans]
            place = centers.index(min(centers))
            low, high = spans[place]
            words.x = min(1.0, max(0.0, (words.x - low) / (high - low)))
        words.y = _band((0.0, words.y), place, count, room)[1]


def _lay_bar(layout: Any) -> None:
    """Lay the color bar over the panes: beside them it would take a third of the width."""
    if layout.coloraxis.colorscale is None:
        return
    top = layout.margin.t or 0
    layout.height = (layout.height or 400) + _BAR_ROOM
    layout.margin.update(t=top + _BAR_ROOM, l=min(layout.margin.l or 0, 56), r=12)
    place = {"orientation": "h", "x": 0.5, "xanchor": "center", "len": 0.9}
    over = {"yref": "container", "y": 0.995, "yanchor": "top"}
    layout.coloraxis.colorbar.update(place | over, thickness=10, tickangle=0)
    title = layout.coloraxis.colorbar.title
    # Plotly puts the letters onto the bar otherwise.
    spaced = f"{title.text}<br><span style='font-size:3px'> </span>"
    title.update(text=spaced, side="top", font={"size": 12})


def _lay_legend(figure: go.Figure) -> None:
    """Put one legend below all panes, with room for all its lines."""
    layout = figure.layout
    names = _names(figure, "legend")
    _join_legends(figure, names)
    entries = [trace for trace in figure.data if _is_named(trace)]
    below = layout.legend.y is not None and layout.legend.y < 0.5
    if not below or not entries or layout.showlegend is False:
        return
    room = _LINE * _lines(layout.legend, [len(trace.name) for trace in entries], len(names))
    foot = layout.margin.b or 0
    layout.margin.b = room + max(_TICKS_ROOM, _rotated(figure))
    layout.height = (layout.height or 400) + layout.margin.b - foot
    layout.legend.update(yref="container", y=0.0, yanchor="bottom", x=0.0, xanchor="left")


def _is_named(trace: Any) -> bool:
    """Whether a trace stands in the legend."""
    return trace.type in ("scatter", "bar") and trace.showlegend is not False and bool(trace.name)


def _join_legends(figure: go.Figure, names: list[str]) -> None:
    """Make one legend of those that stand below each pane, with the name of the pane over each."""
    if len(names) < 2:
        return
    titles = [words.text for words in figure.layout.annotations]
    for trace in figure.data:
        at = names.index(trace.legend or "legend")
        if at < len(titles):
            trace.update(legendgroup=names[at], legendgrouptitle={"text": titles[at]})
        trace.legend = "legend"
    figure.layout.legend.update(orientation="v", groupclick="toggleitem")


def _lines(legend: Any, lengths: list[int], groups: int) -> int:
    """Lines that entries of these lengths take; each group has a title over it."""
    if legend.orientation == "v":
        return len(lengths) + groups
    lines, used = 1, _LETTER * len(legend.title.text or "")
    for length in lengths:
        width = (legend.entrywidth or _LETTER * length) + _SAMPLE
        if used and used + width > _LEGEND_WIDTH:
            lines, used = lines + 1, 0
        used += width
    return lines + bool(legend.title.text)


def _rotated(figure: go.Figure) -> int:
    """Room for slanted names under the axes."""
    slanted = any(axis.tickangle for axis in _axes(figure, "xaxis"))
    return 150 if slanted else 0

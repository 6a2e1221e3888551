"""Figures for a narrow screen: panes that stand side by side are put one above the other."""

from typing import Any

import plotly.graph_objects as go

__all__ = ["stacked"]

_Span = tuple[float, float]
_SHRUNK = 0.9
_BETWEEN = 80


def stacked(figure: go.Figure) -> go.Figure:
    """Put the panes of a figure one above the other, each in the full width.

    A pane is what shares a span along x. A figure of one pane is left as it is.

    Args:
        figure: The figure; it is changed.
    """
    layout = figure.layout
    spans = sorted({_span(axis) for axis in _axes(figure, "xaxis")} | set(_scenes(figure)))
    count = len(spans)
    if count < 2:
        return figure
    room = _taller(layout, count)
    for name in _names(figure, "yaxis"):
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
    _move_edges(layout, count, room)
    return figure


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


def _move_edges(layout: Any, count: int, room: float) -> None:
    """Keep color bar and legend as far from the panes as they were."""
    if layout.legend.y is not None:
        above = layout.legend.y > 0.5
        layout.legend.y = 1 + (layout.legend.y - 1) / count if above else layout.legend.y / count
    bar = layout.coloraxis.colorbar
    if bar.len is not None and bar.y is not None:
        bar.update(y=_band((0.0, bar.y), 0, count, room)[1], len=bar.len / count)
    elif layout.coloraxis.colorscale is not None:
        bar.update(len=1.0 / count, y=1.0, yanchor="top")

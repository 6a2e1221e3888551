"""Lays a figure out for a phone: its panes one above the other, color bar above, legend below."""

from collections.abc import Iterator
from typing import Any

from analyzer.figures.axes import layout_name
from analyzer.figures.sketch import Layout, Trace, merged

__all__ = ["stacked"]

_Span = tuple[float, float]
_SHRUNK = 0.9
_BETWEEN, _BETWEEN_SLANTED = 80, 150
_MOST_TICKS = 14
# Pixels: what a phone leaves for a legend, a letter, the line before an entry, a line of entries.
_LEGEND_WIDTH, _LETTER, _SAMPLE, _LINE = 290, 7, 45, 24
_WORDS = 13
_BAR_ROOM, _TICKS_ROOM, _SLANTED_ROOM = 64, 56, 150


def stacked(figure: dict[str, Any]) -> dict[str, Any]:
    """Return a figure, as its ``to_dict`` gives it, with its panes one above the other.

    Each has the full width. A pane is what shares a span along x. The color bar lies above them,
    the legend below.
    """
    made = _Narrow(figure)
    made.thin_names()
    made.stack()
    made.lay_bar()
    made.lay_legend()
    return {**figure, "data": made.traces, "layout": made.layout}


class _Narrow:
    """The figure while it is laid out: a copy of what changes of it."""

    def __init__(self, figure: dict[str, Any]) -> None:
        self.traces: list[Trace] = [dict(trace) for trace in figure["data"]]
        self.layout: Layout = dict(figure["layout"])

    def set(self, **more: Any) -> None:
        """Put properties over those of the layout, as deep as they are nested."""
        self.layout = merged(self.layout, more)

    def get(self, *path: str) -> Any:
        """Return a property of the layout; None where there is none."""
        value: Any = self.layout
        for key in path:
            value = (value or {}).get(key)
        return value

    def names(self, kind: str) -> list[str]:
        """Return the names of the axes, scenes or legends, in order."""
        return [name for name in self.layout if name.startswith(kind)]

    def span(self, axis: str) -> _Span:
        """Return where an axis begins and ends on the paper."""
        low, high = self.get(axis, "domain") or (0.0, 1.0)
        return float(low), float(high)

    @property
    def is_slanted(self) -> bool:
        """Whether names stand at an angle below a pane."""
        return any(self.get(axis, "tickangle") for axis in self.names("xaxis"))

    def thin_names(self) -> None:
        """Leave as many names at an axis as a phone has room for."""
        for axis in self.names("xaxis"):
            texts, places = (self.get(axis, key) for key in ("ticktext", "tickvals"))
            size = -(-len(texts if texts is not None else ()) // _MOST_TICKS)
            if size > 1 and self.get(axis, "tickangle"):
                self.set(**{axis: {"tickvals": places[::size], "ticktext": texts[::size]}})

    def stack(self) -> None:
        """Put the panes one above the other, the left one on top."""
        scenes = {tuple(self.get(name, "domain", "x")) for name in self.names("scene")}
        spans = sorted(scenes or {self.span(axis) for axis in self.names("xaxis")})
        count = len(spans)
        if count < 2:
            return
        room = self._grow(count, _BETWEEN_SLANTED if self.is_slanted else _BETWEEN)
        more: Layout = {}
        # A figure of scenes may have axes too, on which nothing stands.
        for name in () if scenes else self.names("yaxis"):
            place = spans.index(self.span(layout_name(self.get(name, "anchor") or "x")))
            # An axis that leaned on its neighbor has labels of its own now.
            more[name] = {"domain": _band(self.span(name), place, count, room)}
            more[name] |= {"showticklabels": True}
            title = self.get("yaxis", "title")
            is_bare = not self.get(name, "title", "text") and (title or {}).get("text")
            if self.get(name, "matches") == "y" and is_bare:
                more[name] |= {"title": title}
        for name in self.names("scene"):
            place = spans.index(tuple(self.get(name, "domain", "x")))
            more[name] = {"domain": {"x": [0.0, 1.0], "y": _band((0.0, 1.0), place, count, room)}}
        words = [self._moved(one, spans, room) for one in self.get("annotations") or ()]
        for axis in self.names("xaxis"):
            more[axis] = {"domain": [0.0, 1.0]}
        self.set(**more, annotations=words)

    def _grow(self, count: int, between: int) -> float:
        """Make room in height for all panes; return the part between two of them."""
        margin = (self.get("margin", "t") or 0) + (self.get("margin", "b") or 0)
        height = ((self.get("height") or 400) - margin) * count * _SHRUNK + between * (count - 1)
        self.set(height=int(height + margin))
        return between / float(height)

    def _moved(self, one: dict[str, Any], spans: list[_Span], room: float) -> dict[str, Any]:
        """Words that stand over a pane, where the pane is now."""
        font = one.get("font") or {}
        one = one | {"font": font | {"size": min(font.get("size") or _WORDS, _WORDS)}}
        if one.get("yref") not in (None, "paper"):
            return one
        across = one.get("xref") or ""
        if across.endswith(" domain"):
            place = spans.index(self.span(layout_name(across.partition(" ")[0])))
        else:
            x = one.get("x") or 0.0
            centers = [abs((low + high) / 2 - x) for low, high in spans]
            place = centers.index(min(centers))
            low, high = spans[place]
            one["x"] = min(1.0, max(0.0, (x - low) / (high - low)))
        return one | {"y": _band((0.0, one.get("y") or 0.0), place, len(spans), room)[1]}

    def lay_bar(self) -> None:
        """Lay the color bar over the panes: beside them it would take a third of the width."""
        if self.get("coloraxis", "colorscale") is None:
            return
        top, left = (self.get("margin", side) or 0 for side in "tl")
        title = self.get("coloraxis", "colorbar", "title") or {}
        # Plotly puts the letters onto the bar otherwise.
        spaced = f"{title.get('text')}<br><span style='font-size:3px'> </span>"
        bar = {"orientation": "h", "x": 0.5, "xanchor": "center", "len": 0.9, "thickness": 10}
        bar |= {"yref": "container", "y": 0.995, "yanchor": "top", "tickangle": 0}
        bar |= {"title": {"text": spaced, "side": "top", "font": {"size": 12}}}
        self.set(
            height=(self.get("height") or 400) + _BAR_ROOM,
            margin={"t": top + _BAR_ROOM, "l": min(left, 56), "r": 12},
            coloraxis={"colorbar": bar},
        )

    def lay_legend(self) -> None:
        """Put one legend below all panes, with room for all its lines."""
        names = self.names("legend")
        self._join_legends(names)
        texts = [str(trace["name"]) for trace in self._entries()]
        below = self.get("legend", "y") is not None and self.get("legend", "y") < 0.5
        if not below or not texts or self.get("showlegend") is False:
            return
        room = _LINE * self._lines([len(text) for text in texts], len(names))
        foot = room + (_SLANTED_ROOM if self.is_slanted else _TICKS_ROOM)
        place = {"yref": "container", "y": 0.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"}
        height = (self.get("height") or 400) + foot - (self.get("margin", "b") or 0)
        self.set(height=height, margin={"b": foot}, legend=place)

    def _entries(self) -> Iterator[Trace]:
        for trace in self.traces:
            is_shown = trace.get("showlegend") is not False and trace.get("name")
            if trace.get("type", "scatter") in ("scatter", "bar") and is_shown:
                yield trace

    def _join_legends(self, names: list[str]) -> None:
        """Make one legend of those below each pane, with the name of the pane over each."""
        if len(names) < 2:
            return
        titles = [words.get("text") for words in self.get("annotations") or ()]
        for trace in self.traces:
            at = names.index(trace.get("legend") or "legend")
            if at < len(titles):
                trace |= {"legendgroup": names[at], "legendgrouptitle": {"text": titles[at]}}
            trace["legend"] = "legend"
        self.set(legend={"orientation": "v", "groupclick": "toggleitem"})

    def _lines(self, lengths: list[int], groups: int) -> int:
        """Lines that entries of these lengths take; each group has a title over it."""
        legend = self.get("legend") or {}
        if legend.get("orientation") == "v":
            return len(lengths) + groups
        title = (legend.get("title") or {}).get("text") or ""
        lines, used = 1, _LETTER * len(title)
        for length in lengths:
            width = (legend.get("entrywidth") or _LETTER * length) + _SAMPLE
            if used and used + width > _LEGEND_WIDTH:
                lines, used = lines + 1, 0
            used += width
        return lines + bool(title)


def _band(domain: _Span, place: int, count: int, room: float) -> list[float]:
    """Map a span along y into the band of a pane; the first pane is on top."""
    low, high = domain
    size = (1.0 - room * (count - 1)) / count
    foot = (count - 1 - place) * (size + room)
    return [foot + low * size, foot + high * size]

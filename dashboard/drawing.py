"""Draws the card of a panel: figure and sentence, or why there is none; on a phone panes stack."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analyzer.analysis.bands import spaced_places
from analyzer.analysis.view import View, matching
from analyzer.errors import AnalyzerError
from analyzer.figures.axes import layout_name
from analyzer.figures.catalog import page_at, page_of, panel
from analyzer.figures.marks import with_rugs
from analyzer.figures.overview_frames import overview_frames
from analyzer.figures.theme import LIGHT, THEMES
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.vocabulary.probes import PROBE_NAMES

from .address import Context

__all__ = [
    "Shown",
    "drawn",
    "recorded",
    "shown",
    "shown_steps",
    "stacked",
    "step_choices",
    "view_for",
]

_MOST_STEPS = 500
_MOST_PATTERN = 1_000
_HEIGHT = 380

_Span = tuple[float, float]
_SHRUNK = 0.9
_BETWEEN, _BETWEEN_SLANTED = 80, 150
_MOST_TICKS = 14
# Pixels: what a phone leaves for a legend, a letter, the line before an entry, a line of entries.
_LEGEND_WIDTH, _LETTER, _SAMPLE, _LINE = 290, 7, 45, 24
_WORDS = 13
_BAR_ROOM, _TICKS_ROOM, _SLANTED_ROOM = 64, 56, 150


@dataclass(frozen=True)
class Shown:
    """A card as a browser is sent it; its figure is None where there is nothing to draw.

    Then ``problem`` says why; ``is_bad`` tells what is wrong from what is merely not recorded.
    """

    figure: dict[str, Any] | None
    height: int = _HEIGHT
    caption: str = ""
    problem: str = ""
    is_bad: bool = False


def view_for(key: str, context: Context) -> View:
    """Return what a panel is asked to show.

    Raises:
        AnalyzerError: If the layer pattern is not a regular expression.
    """
    address = context.address
    matching(address.layers, ())
    shown = panel(key)
    followed = (*address.pinned, *address.chosen) if shown.follows_click else ()
    of_parameters = address.quantity in STAT_COLUMNS["parameter_stats"]
    whole = context.view(layers=_pattern_of(dict.fromkeys(followed), of_parameters))
    # A panel is drawn again only for what it reads.
    runs = whole.runs[: shown.most_runs]
    return View(runs, **{name: getattr(whole, name) for name in shown.reads})


def recorded(key: str, context: Context) -> Any:
    """Return the record behind a panel.

    Raises:
        AnalyzerError: If the runs lack what it needs, or the address asks for what is not there.
    """
    view = view_for(key, context)
    cache = context.library.cache
    return cache.get("records", (key, view), lambda: panel(key).info(view))


def shown(key: str, context: Context, scheme: str, *, narrow: bool = False) -> Shown:
    """Return a card as a browser is sent it; the last few are kept, for drawing takes longest.

    What goes wrong becomes a sentence, since one bad file must not end a page. The scheme is
    ``light`` or ``dark``; where ``narrow``, panes stand one above the other.
    """
    try:
        name = (key, scheme, narrow, view_for(key, context), len(context.runs))
        found: Shown = context.library.cache.get(
            "figures", name, lambda: drawn(key, context, scheme, narrow=narrow)
        )
    except AnalyzerError as error:
        found = Shown(None, problem=str(error))
    except Exception as error:
        text = f"This figure could not be drawn ({type(error).__name__}: {str(error)[:300]})."
        found = Shown(None, problem=text, is_bad=True)
    return found


def drawn(key: str, context: Context, scheme: str, *, narrow: bool) -> Shown:
    """Draw the card of a panel, as ``shown`` says.

    Raises:
        AnalyzerError: If there is nothing to draw.
    """
    record, theme = recorded(key, context), THEMES.get(scheme, LIGHT)
    shown = panel(key)
    if narrow and shown.narrow is not None:
        figure = with_rugs(shown.narrow(record, theme))
    else:
        figure = stacked(shown.draw(record, theme)) if narrow else shown.made(record, theme)
    # Arrays become base64 here, once; plotly would make lists of them in a dict.
    sent = figure.to_dict()
    said = str(record.caption)
    if (count := len(context.runs)) > shown.most_runs:
        said += f" These are the first {shown.most_runs} of {count} chosen runs."
    return Shown(sent, sent["layout"].get("height", _HEIGHT), said)


def _pattern_of(names: Iterable[str], of_parameters: bool) -> str | None:
    """A pattern of exactly these names, as many as a pattern may be long; None without names.

    Where rows are parameters, it finds those of layers of these names, too.
    """
    kept: list[str] = []
    for name in map(re.escape, names):
        if len("|".join([*kept, name])) > _MOST_PATTERN - 20:
            break
        kept.append(name)
    last = r"(?:\.[^.]+)?" if of_parameters else ""
    return f"^(?:{'|'.join(kept)}){last}$" if kept else None


def step_choices(context: Context, path: str) -> dict[str, Any] | None:
    """Return the steps that can be chosen and, for the overview, what rows 1 and 2 show at each.

    Returns:
        ``steps`` (of a landscape those at which it was taken), what they are called (``label``),
        the chosen one ``step``, and ``overview`` where there is one; None without runs.
    """
    if not context.runs:
        return None
    found: dict[str, Any] = context.library.cache.get(
        "figures", (path, context.view()), lambda: _choices(context, path)
    )
    return found


def _choices(context: Context, path: str) -> dict[str, Any]:
    page = page_at(path)
    probe = page.probe_of(PROBE_NAMES) if page else None
    return {
        "steps": shown_steps(context) if probe is None else _probe_steps(context, probe),
        "label": "step" if probe is None else "checkpoint at step",
        "step": context.address.step,
        "overview": _overview(context) if path == page_of("overview").path else None,
    }


def shown_steps(context: Context) -> list[int]:
    """Return the recorded steps of all runs, evenly thinned to as many as a slider has places."""
    # Thinned before they are put together, since runs may have millions of steps.
    each = [run.recorded_steps() for run in context.runs]
    some = [steps[spaced_places(len(steps), 20 * _MOST_STEPS)] for steps in each]
    steps = np.unique(np.concatenate(some))
    return [int(step) for step in steps[spaced_places(len(steps), _MOST_STEPS)]]


def _probe_steps(context: Context, probe: str) -> list[int]:
    """The steps at which any run measured a probe."""
    measured = [run.probe_metadata(probe) for run in context.runs if probe in run.probes]
    return sorted(set().union(*measured))


def _overview(context: Context) -> Any:
    """What the overview shows at each step; None where it cannot be drawn."""
    try:
        return overview_frames(recorded("overview", context))
    except (AnalyzerError, KeyError):
        return None


def stacked(figure: go.Figure) -> go.Figure:
    """Put the panes of a figure one above the other, each in the full width.

    A pane is what shares a span along x. The color bar lies above them, the legend below. The
    figure itself is changed.
    """
    _thin_names(figure)
    _stack(figure)
    _lay_bar(figure.layout)
    _lay_legend(figure)
    return figure


def _stack(figure: go.Figure) -> None:
    layout = figure.layout
    scenes = {tuple(layout[name].domain.x) for name in _names(figure, "scene")}
    spans = sorted(scenes or {_span(axis) for axis in _x_axes(figure)})
    count = len(spans)
    if count < 2:
        return
    is_slanted = any(axis.tickangle for axis in _x_axes(figure))
    room = _taller(layout, count, _BETWEEN_SLANTED if is_slanted else _BETWEEN)
    # A figure of scenes may have axes too, on which nothing stands.
    for name in () if scenes else _names(figure, "yaxis"):
        axis = layout[name]
        place = spans.index(_span(layout[layout_name(axis.anchor or "x")]))
        axis.update(domain=_band(axis.domain or (0.0, 1.0), place, count, room))
        # An axis that leaned on its neighbor has labels of its own now.
        axis.update(showticklabels=True)
        if axis.matches == "y" and not axis.title.text and layout.yaxis.title.text:
            axis.update(title=layout.yaxis.title)
    for name in _names(figure, "scene"):
        place = spans.index(tuple(layout[name].domain.x))
        layout[name].domain.update(x=(0.0, 1.0), y=_band((0.0, 1.0), place, count, room))
    _move_words(figure, spans, room)
    for axis in _x_axes(figure):
        axis.update(domain=(0.0, 1.0))


def _thin_names(figure: go.Figure) -> None:
    """Leave as many names at an axis as a phone has room for."""
    for axis in _x_axes(figure):
        size = -(-len(axis.ticktext or ()) // _MOST_TICKS)
        if size > 1 and axis.tickangle:
            axis.update(tickvals=axis.tickvals[::size], ticktext=axis.ticktext[::size])


def _names(figure: go.Figure, kind: str) -> list[str]:
    """Names of the axes or scenes of a figure, in order."""
    return [name for name in figure.layout.to_plotly_json() if name.startswith(kind)]


def _x_axes(figure: go.Figure) -> list[Any]:
    return [figure.layout[name] for name in _names(figure, "xaxis")]


def _span(axis: Any) -> _Span:
    low, high = axis.domain or (0.0, 1.0)
    return float(low), float(high)


def _taller(layout: Any, count: int, between: int) -> float:
    """Make room in height for all panes; return the part between two of them."""
    margin = (layout.margin.t or 0) + (layout.margin.b or 0)
    height = ((layout.height or 400) - margin) * count * _SHRUNK + between * (count - 1)
    layout.height = int(height + margin)
    return between / float(height)


def _band(domain: Any, place: int, count: int, room: float) -> _Span:
    """Map a span along y into the band of a pane; the first pane is on top."""
    low, high = domain
    size = (1.0 - room * (count - 1)) / count
    foot = (count - 1 - place) * (size + room)
    return foot + float(low) * size, foot + float(high) * size


def _move_words(figure: go.Figure, spans: list[_Span], room: float) -> None:
    """Put words that stand over a pane where the pane is now."""
    count = len(spans)
    for words in figure.layout.annotations:
        words.font.size = min(words.font.size or _WORDS, _WORDS)
        if words.yref not in (None, "paper"):
            continue
        if words.xref and words.xref.endswith(" domain"):
            axis = figure.layout[layout_name(words.xref.partition(" ")[0])]
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
    entries = [
        trace
        for trace in figure.data
        if trace.type in ("scatter", "bar") and trace.showlegend is not False and trace.name
    ]
    below = layout.legend.y is not None and layout.legend.y < 0.5
    if not below or not entries or layout.showlegend is False:
        return
    room = _LINE * _lines(layout.legend, [len(trace.name) for trace in entries], len(names))
    foot = layout.margin.b or 0
    is_slanted = any(axis.tickangle for axis in _x_axes(figure))
    layout.margin.b = room + (_SLANTED_ROOM if is_slanted else _TICKS_ROOM)
    layout.height = (layout.height or 400) + layout.margin.b - foot
    layout.legend.update(yref="container", y=0.0, yanchor="bottom", x=0.0, xanchor="left")


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

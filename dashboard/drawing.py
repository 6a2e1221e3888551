"""Draws the card of a panel: its figure and sentence, or the reason why there is none."""

import re
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from analyzer.analysis.view import View, matching
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import panel
from analyzer.figures.sketch import Sketch
from analyzer.figures.theme import LIGHT, THEMES

from .context import Context
from .narrow import stacked

__all__ = ["Drawn", "Shown", "drawn", "recorded", "shown", "view_for"]

_MOST_PATTERN = 100
_HEIGHT = 380


@dataclass(frozen=True)
class Drawn:
    """What a card shows.

    Args:
        figure: The figure; None where there is nothing to draw.
        caption: The sentence that states the finding.
        problem: Why there is no figure; empty where there is one.
        is_bad: Whether something is wrong, rather than merely not recorded.
    """

    figure: go.Figure | Sketch | None
    caption: str
    problem: str = ""
    is_bad: bool = False


@dataclass(frozen=True)
class Shown:
    """A card as a browser is sent it.

    Args:
        figure: The figure as JSON can hold it; None where there is nothing to draw.
        height: Its height in pixels.
        caption: The sentence that states the finding.
        problem: Why there is no figure; empty where there is one.
        is_bad: Whether something is wrong, rather than merely not recorded.
    """

    figure: dict[str, Any] | None
    height: int = _HEIGHT
    caption: str = ""
    problem: str = ""
    is_bad: bool = False


class _NothingDrawnError(Exception):
    """Carries why there is no figure past the place where figures are kept."""


def view_for(key: str, context: Context) -> View:
    """Return what a panel is asked to show.

    Raises:
        AnalyzerError: If the layer pattern is no regular expression.
    """
    address = context.address
    matching(address.layers, ())
    shown = panel(key)
    whole = context.view(layers=_pattern_of(address.chosen) if shown.follows_click else None)
    # A panel is drawn again only for what it reads.
    return View(whole.runs, **{name: getattr(whole, name) for name in shown.reads})


def recorded(key: str, context: Context) -> Any:
    """Return the record behind a panel.

    Raises:
        AnalyzerError: If the runs lack what it needs, or the address asks for what is not there.
    """
    return context.library.records.get(key, view_for(key, context), panel(key).info)


def drawn(key: str, context: Context, scheme: str, *, narrow: bool = False) -> Drawn:
    """Draw a panel; what goes wrong becomes a sentence, since one bad file must not end a page.

    Args:
        key: Key of the panel.
        context: The runs and the address.
        scheme: ``light`` or ``dark``.
        narrow: Whether panes stand one above the other.
    """
    try:
        record = recorded(key, context)
        theme = THEMES.get(scheme, LIGHT)
        figure: go.Figure | Sketch
        if narrow:
            figure = stacked(panel(key).draw(record, theme))
        else:
            figure = panel(key).drawing(record, theme)
    except AnalyzerError as error:
        return Drawn(None, "", str(error))
    except Exception as error:
        text = f"This figure could not be drawn ({type(error).__name__}: {str(error)[:300]})."
        return Drawn(None, "", text, is_bad=True)
    return Drawn(figure, str(record.caption))


def shown(key: str, context: Context, scheme: str, *, narrow: bool = False) -> Shown:
    """Return a card as a browser is sent it; the last few are kept, for drawing takes longest.

    Args:
        key: Key of the panel.
        context: The runs and the address.
        scheme: ``light`` or ``dark``.
        narrow: Whether panes stand one above the other.
    """

    def make(_view: View) -> Shown:
        result = drawn(key, context, scheme, narrow=narrow)
        if result.figure is None:
            raise _NothingDrawnError(Shown(None, problem=result.problem, is_bad=result.is_bad))
        # Arrays become base64 here, once; plotly would make lists of them in a dict.
        figure = result.figure.to_dict()
        return Shown(figure, figure["layout"].get("height", _HEIGHT), result.caption)

    try:
        view = view_for(key, context)
        found: Shown = context.library.shown.get(f"{key} {scheme} {narrow}", view, make)
    except _NothingDrawnError as nothing:
        found = nothing.args[0]
    except AnalyzerError as error:
        found = Shown(None, problem=str(error))
    return found


def _pattern_of(names: tuple[str, ...]) -> str | None:
    """A pattern of exactly these names, as many as a pattern may be long; None without names."""
    kept: list[str] = []
    for name in map(re.escape, names):
        if len("|".join([*kept, name])) > _MOST_PATTERN - 6:
            break
        kept.append(name)
    return f"^(?:{'|'.join(kept)})$" if kept else None

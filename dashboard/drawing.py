"""Draws the card of a panel: its figure and sentence, or the reason why there is none."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.view import View, matching
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_at, page_of, panel
from analyzer.figures.overview import overview_frames
from analyzer.figures.theme import LIGHT, THEMES
from analyzer.vocabulary.probes import PROBE_NAMES

from .address import Context
from .narrow import stacked

__all__ = [
    "Shown",
    "drawn",
    "probe_steps",
    "recorded",
    "shown",
    "shown_steps",
    "step_choices",
    "view_for",
]

_MOST_STEPS = 500
_MOST_PATTERN = 100
_HEIGHT = 380


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


def view_for(key: str, context: Context) -> View:
    """Return what a panel is asked to show.

    Raises:
        AnalyzerError: If the layer pattern is not a regular expression.
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
    view = view_for(key, context)
    cache = context.library.cache
    return cache.get("records", (key, view), lambda: panel(key).info(view))


def shown(key: str, context: Context, scheme: str, *, narrow: bool = False) -> Shown:
    """Return a card as a browser is sent it; the last few are kept, for drawing takes longest.

    What goes wrong becomes a sentence, since one bad file must not end a page.

    Args:
        key: Key of the panel.
        context: The runs and the address.
        scheme: ``light`` or ``dark``.
        narrow: Whether panes stand one above the other.
    """
    try:
        name = (key, scheme, narrow, view_for(key, context))
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
    figure = (
        stacked(panel(key).draw(record, theme)) if narrow else panel(key).drawing(record, theme)
    )
    # Arrays become base64 here, once; plotly would make lists of them in a dict.
    sent = figure.to_dict()
    return Shown(sent, sent["layout"].get("height", _HEIGHT), str(record.caption))


def _pattern_of(names: tuple[str, ...]) -> str | None:
    """A pattern of exactly these names, as many as a pattern may be long; None without names."""
    kept: list[str] = []
    for name in map(re.escape, names):
        if len("|".join([*kept, name])) > _MOST_PATTERN - 6:
            break
        kept.append(name)
    return f"^(?:{'|'.join(kept)})$" if kept else None


def step_choices(context: Context, path: str) -> dict[str, Any] | None:
    """Return the steps that can be chosen and, for the overview, what rows 1 and 2 show at each.

    Args:
        context: The runs and the address.
        path: The page.

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
        "steps": shown_steps(context) if probe is None else probe_steps(context, probe),
        "label": "step" if probe is None else "checkpoint at step",
        "step": context.address.step,
        "overview": _overview(context) if path == page_of("overview").path else None,
    }


def shown_steps(context: Context) -> list[int]:
    """Return the recorded steps of all runs, evenly thinned to as many as a slider has places."""
    # Thinned before they are put together, since runs may have millions of steps.
    each = [_thinned(run.recorded_steps(), 20 * _MOST_STEPS) for run in context.runs]
    return [int(step) for step in _thinned(np.unique(np.concatenate(each)), _MOST_STEPS)]


def _thinned(steps: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(steps) <= most:
        return steps
    chosen: NDArray[np.int64] = steps[np.linspace(0, len(steps) - 1, most).round().astype(int)]
    return chosen


def probe_steps(context: Context, probe: str) -> list[int]:
    """Return the steps at which any run measured a probe."""
    found: set[int] = set()
    for run in context.runs:
        if probe in run.probes:
            found.update(run.probe_metadata(probe))
    return sorted(found)


def _overview(context: Context) -> Any:
    """What the overview shows at each step; None where it cannot be drawn."""
    try:
        return overview_frames(recorded("overview", context))
    except (AnalyzerError, KeyError):
        return None

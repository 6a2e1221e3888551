"""Draws the card of a panel: figure and sentence, or why there is none; on a phone panes stack."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyzer.analysis.bands import spaced_places
from analyzer.analysis.view import View, final_step, matching
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_at, page_of, panel
from analyzer.figures.overview_frames import overview_frames
from analyzer.figures.theme import LIGHT, THEMES
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.vocabulary.probes import PROBE_NAMES

from .address import Context, opening
from .library import shortened

__all__ = [
    "Shown",
    "drawn",
    "recorded",
    "shown",
    "shown_steps",
    "step_choices",
    "view_for",
]

_MOST_STEPS = 500
_MOST_PATTERN = 1_000
_HEIGHT = 380


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
    runs = context.few(shown.most_runs)
    among = () if runs == whole.runs else whole.runs
    return View(runs, among=among, **{name: getattr(whole, name) for name in shown.reads})


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
    # Arrays become base64 here, once; plotly would make lists of them in a dict.
    sent = shown.narrowed(record, theme) if narrow else shown.made(record, theme).to_dict()
    said = str(record.caption)
    if (count := len(context.runs)) > shown.most_runs:
        names = ", ".join(shortened(run.name, 40) for run in context.few(shown.most_runs))
        said += f" Shown are {names}, of {count} chosen runs."
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
        the one at which the page ``opens`` where it is not the last, the one that stands for the
        ``final`` weights, and ``overview`` where there is one; None without runs.
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
    finals = {final_step(run) for run in context.runs}
    return {
        "steps": shown_steps(context) if probe is None else _probe_steps(context, probe),
        "label": "step" if probe is None else "checkpoint at step",
        "opens": opening(context),
        "final": finals.pop() if len(finals) == 1 else None,
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

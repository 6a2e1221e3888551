"""The page of a study: its points and what they show by depth."""

import os
from pathlib import Path
from typing import Any

from dash import dcc, html

from analyzer.analysis.view import View
from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.figures.study import STUDY_PANELS
from analyzer.figures.theme import THEMES
from analyzer.storage.run import Run
from analyzer.storage.study import STATES, Study, is_study, study_of

from .address import Context
from .components import GRAPH_CONFIG, message, number_table
from .ids import Id
from .library import shortened

__all__ = ["layout", "study_cards"]

_MOST_FAILED, _MOST_LOOKED = 20, 1_000


def layout(context: Context) -> list[Any]:
    """Return the place of the page's content, which follows color scheme and width."""
    return [html.Div(study_cards(context, "light"), id=Id.STUDY)]


def study_cards(context: Context, scheme: str, *, narrow: bool = False) -> list[Any]:
    """Return what a study shows: that of the first chosen run, else of the newest.

    Where ``narrow``, panes stand one above the other.
    """
    try:
        run = _run(context)
        study = study_of(run)
    except AnalyzerError as error:
        found = [name for source in context.library.sources for name in _studies_in(source)]
        if not found:
            return [message(str(error))]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        text = f"No run that is shown is a point of a study. Here is {found[0]}{more}: show it with"
        return [message(f"{text} `analyzer dashboard {found[0]}`.", title="A study of its own")]
    return [_states(study), *(_card(panel, run, scheme, narrow) for panel in STUDY_PANELS)]


def _studies_in(source: Path) -> list[str]:
    """The studies directly in a folder, by name; few, since each is one look at the disk."""
    try:
        names = sorted(entry.name for entry in os.scandir(source) if entry.is_dir())
    except OSError:
        return []
    return [str(source / name) for name in names[:_MOST_LOOKED] if is_study(source / name)]


def _run(context: Context) -> Run:
    if context.runs:
        return context.runs[0]
    newest = context.library.newest()
    if not newest:
        raise NotRecordedError("no run is here yet; make a study with `analyzer study`")
    return context.library.open(newest[0])


def _states(study: Study) -> html.Section:
    """How many points there are, how they stand, and why some failed."""
    points = study.points
    counts = {state: sum(point.status == state for point in points) for state in STATES}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    failed = [point for point in points if point.status == "failed"][:_MOST_FAILED]
    lines = [
        html.Li(f"{shortened(point.name, 100)}: {shortened(point.error or '', 300)}")
        for point in failed
    ]
    body: list[Any] = [
        html.H2(shortened(study.path.name, 60)),
        html.P(f"{len(points)} points of {shortened(study.target, 80)}: {said}."),
    ]
    return html.Section([*body, *([html.Ul(lines)] if lines else [])], className="card wide")


def _card(panel: Any, run: Run, scheme: str, narrow: bool) -> html.Section:
    head = [html.H2(panel.title), html.P(panel.how_to_read, className="how")]
    try:
        info = panel.info(View((run,)))
    except AnalyzerError as error:
        return html.Section([*head, message(str(error))], className="card wide")
    theme = THEMES["dark" if scheme == "dark" else "light"]
    figure = panel.narrowed(info, theme) if narrow else panel.draw(info, theme)
    height = {"height": f"{figure['layout']['height']}px"}
    graph = dcc.Graph(figure=figure, config=GRAPH_CONFIG, style=height)
    numbers: list[Any] = [html.Summary("numbers"), *number_table(info.table())]
    shown: list[Any] = [*head, graph, html.P(info.caption), html.Details(numbers)]
    return html.Section(shown, className="card wide")

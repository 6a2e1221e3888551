"""The shell around every page: head, navigation, help, and the stores that callbacks share."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from analyzer.figures.catalog import PAGES, RUNS, page_of
from analyzer.figures.panels import Page
from analyzer.vocabulary import GLOSSARY

from . import compare, finding_list, landing, network, notes, run_list, study_page
from .address import MOST_RUNS, Context
from .components import attributes, explained, message, states
from .controls import cards
from .ids import Id, card
from .library import pulse
from .server import LESSON

__all__ = ["POLL_MILLISECONDS", "navigation", "page_content", "shell"]

POLL_MILLISECONDS = 1500
_LAYOUTS: dict[str, Callable[[Context], list[Any]]] = {
    "overview": landing.layout,
    "runs": run_list.layout,
    "compare": compare.layout,
    "findings": finding_list.layout,
    "network": network.layout,
    "study": study_page.layout,
}
if unlike := {page.key for page in PAGES if page.has_layout} ^ set(_LAYOUTS):
    raise ValueError(f"pages with a layout and layouts of pages differ in {sorted(unlike)}")
_LETTERS = {page.letter: page.path for page in PAGES if page.letter}
_KEYS = (
    ("?", "this list"),
    *((f"g then {page.letter}", page.title.lower()) for page in PAGES if page.letter),
    ("← →", "one step back, one step on"),
    ("Home End", "first step, last step"),
    ("/", "to the filter or the layer pattern"),
    ("Esc", "close"),
)


def shell() -> dmc.MantineProvider:
    """Return what stays while pages change."""
    navbar = dmc.AppShellNavbar(html.Div(id=Id.NAV), **attributes(aria_label="pages"), p="xs")
    waiting = [dmc.Skeleton(height=28, w=220, mb="md"), dmc.Skeleton(height=380)]
    content = html.Div([html.Div(waiting, id=Id.MAIN)], id="content", tabIndex=-1)
    return dmc.MantineProvider(
        [
            dcc.Location(id=Id.URL, refresh=False),
            *(dcc.Store(id=name) for name in (Id.SEARCH, Id.STEP, Id.REVISION, Id.LIVE, Id.SINK)),
            dcc.Store(id=Id.SCHEME, data="light"),
            dcc.Store(id=Id.NARROW, data=False),
            dcc.Interval(id=Id.POLL, interval=POLL_MILLISECONDS),
            html.A("Skip to the content", href="#content", className="skip"),
            dmc.AppShell(
                [_head(), navbar, dmc.AppShellMain(content)],
                header={"height": 56},
                navbar={"width": 190, "breakpoint": "sm", "collapsed": {"mobile": True}},
                padding="md",
                id="shell",
            ),
            html.Div(id=Id.LETTERS, hidden=True, **attributes(data_pages=json.dumps(_LETTERS))),
            _help(),
        ],
        defaultColorScheme="auto",
        theme={"primaryColor": "blue", "primaryShade": {"light": 8, "dark": 5}},
    )


def _head() -> dmc.AppShellHeader:
    burger = html.Button(
        "☰",
        id=Id.NAV_OPEN,
        className="burger",
        **attributes(aria_label="pages", aria_expanded="false"),
    )
    picker = dmc.MultiSelect(
        id=Id.RUN_PICKER,
        data=[],
        value=[],
        placeholder="choose runs",
        maxValues=MOST_RUNS,
        searchable=True,
        hidePickedOptions=True,
        className="run-picker",
        size="xs",
        comboboxProps={"zIndex": 400},
        **attributes(aria_label="runs shown"),
    )
    helper = html.Button(
        "?",
        id=Id.HELP_OPEN,
        className="plain-button",
        **attributes(aria_label="keys and words"),
    )
    return dmc.AppShellHeader(
        html.Div(
            [
                burger,
                dcc.Link("Gradient flow", href="/", className="brand"),
                picker,
                html.Span(id=Id.LIVE_TEXT, className="live", role="status"),
                helper,
            ],
            className="head",
        )
    )


def _help() -> dmc.Modal:
    keys = [
        html.Div([html.Dt([html.Kbd(key)]), html.Dd(text)], className="shortcut")
        for key, text in _KEYS
    ]
    words = [
        html.Div([html.Dt(term), html.Dd(meaning)], className="shortcut")
        for term, meaning in GLOSSARY.items()
    ]
    return dmc.Modal(
        [html.Dl(keys), html.H3("Words"), html.Dl(words)],
        id=Id.HELP,
        title="Keys and words",
        opened=False,
        closeButtonProps={"aria-label": "close"},
        # What is not open is not in the page, so that its words are not found there.
        keepMounted=False,
    )


def navigation(path: str, search: str) -> list[dmc.NavLink]:
    """Return links to all pages; their query string keeps what is chosen."""
    return [
        dmc.NavLink(
            label=page.title,
            href=page.path + search,
            id=card(Id.NAV_LINK, page.path),
            active=page.path == path,
            refresh=False,
            **{"aria-current": "page"} if page.path == path else {},
        )
        for page in PAGES
    ] + [dmc.NavLink(label="Learn", href=LESSON, id=card(Id.NAV_LINK, LESSON), refresh=True)]


def page_content(page: Page | None, path: str, context: Context) -> list[Any]:
    """Return a page: its name, what is wrong with its runs, then its own content."""
    if page is None:
        return [html.H1("No such page"), message(_unknown(path), bad=True)]
    problems = [message(text, title="A run cannot be shown", bad=True) for text in context.problems]
    head: Sequence[Any] = [html.H1(page.title), html.P(explained(page.lead), className="lead")]
    if page is page_of("overview"):
        # What is to be read first is not its name.
        head = [html.H1(page.title, className="unseen")]
    problems += states(context)
    if page is page_of("overview") and not context.address.runs:
        text = run_list.nothing(context.library)
        return [*head, _until_then(message(text, title="No runs yet"), context)]
    if (page.needs_run or page.shown) and not context.runs:
        text = "No run is chosen. Choose one in the field at the top, or on the page of runs."
        link = dcc.Link("Go to the page of runs", href=RUNS.path)
        lines = [*problems, message(text), html.P(link)]
        is_awaited = context.address.runs or not context.library.listing()
        return [*head, _until_then(lines, context)] if is_awaited else [*head, *lines]
    content = _LAYOUTS[page.key](context) if page.has_layout else cards(context, page)
    return [*head, *problems, *notes.header(context), *content]


def _until_then(content: Any, context: Context) -> html.Div:
    """What is shown until a run is there; then the browser asks for the page again."""
    mark = attributes(data_mark=pulse(context.library, context.address.runs).mark)
    return html.Div(content, id="nothing-yet", **mark)


def _unknown(path: str) -> str:
    names = ", ".join(page.path for page in PAGES)
    return f"There is no page {path[:80]!r}; the pages are {names}."

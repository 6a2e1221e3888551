"""What pages are made of: cards, messages, tables, and terms with their meaning."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from analyzer.errors import AnalyzerError
from analyzer.figures.panels import Panel
from analyzer.storage.run import Run
from analyzer.storage.run_json import losses
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.vocabulary import GLOSSARY

from .address import Context
from .ids import Id, card
from .library import shortened

__all__ = [
    "GRAPH_CONFIG",
    "LOOKING",
    "attributes",
    "copied",
    "explained",
    "lacking",
    "message",
    "number_table",
    "panel_card",
    "soon",
    "states",
    "step_control",
]

LOOKING = "Reading the runs; what they show appears here by itself."
_MILLISECONDS = 400
_MOST_ROWS, _MOST_CHARACTERS = 60, 80
_MOST_PARTS = 24
_MOST_LOOKED = 500_000
_FORMATS = (("csv", "CSV"), ("svg", "SVG"), ("png", "PNG"))
# Cards have buttons of their own for pictures, and nothing can be selected.
_NO_BUTTONS = ("toImage", "lasso2d", "select2d")
GRAPH_CONFIG: Any = {
    "displaylogo": False,
    # Nothing leaves this machine.
    "modeBarButtonsToRemove": ["sendDataToCloud", "sendChartToCloud", *_NO_BUTTONS],
    "responsive": True,
    "showTips": False,
    "plotlyServerURL": "",
}
_BLANK: dict[str, Any] = {
    "xaxis": {"visible": False},
    "yaxis": {"visible": False},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}


def attributes(**values: str) -> dict[str, Any]:
    """Return ``aria-`` and ``data-`` attributes: ``aria_label`` stands for ``aria-label``."""
    return {name.replace("_", "-"): value for name, value in values.items()}


def message(text: str, *, title: str = "", bad: bool = False) -> dmc.Alert:
    """Return a sentence that says what was looked for and what to do, shown as it is.

    It is ``bad`` where something is wrong, rather than merely not there.
    """
    return dmc.Alert(
        text,
        title=title or None,
        color="red" if bad else "gray",
        variant="outline",
        className="message",
        attributes={"root": {"role": "status"}},
    )


def copied(command: str) -> list[Any]:
    """Return a command as it is typed, and a button that copies this one."""
    copy = attributes(data_copy=command, aria_label=f"copy {command}")
    return [
        html.Code(command, className="command", title=command),
        html.Button("copy", className="plain-button copy", **copy),
    ]


def lacking(text: str, *, is_brief: bool = False) -> html.P:
    """Return one line that says what was not recorded, and the command to copy that records it.

    The command is what stands between backticks; with ``is_brief`` it stands alone.
    """
    parts = text.split("`")
    if is_brief and len(parts) > 1:
        parts = ["", parts[1], ""]
    shown: list[Any] = [html.Code(p) if k % 2 else p for k, p in enumerate(parts)]
    commands = [part for part in parts[1::2] if part.startswith("analyzer ")]
    if commands:
        # Behind its own button, which copies it.
        place = parts.index(commands[0])
        shown[place : place + 1] = copied(commands[0])
        if shown[-1] == ".":
            shown.pop()
    return html.P(shown, className="message lacking", role="status")


def states(context: Context) -> list[Any]:
    """Return a sentence for each run that did not end well, or of which files cannot be read."""
    found = []
    for run in context.runs:
        problems = context.library.cache.get("records", ("state", run), partial(_state, run))
        found += [
            message(shortened(text, 400), title=shortened(run.name, 60), bad=True)
            for text in problems
        ]
    return found


def _state(run: Run) -> list[str]:
    said = [*losses(run.manifest)]
    if run.status == "failed":
        said.insert(0, f"failed: {run.manifest.get('error') or 'the reason was not recorded'}")
    elif run.status in ("crashed", "interrupted"):
        said.insert(0, f"{run.status}: it stopped early; what was written until then is shown")
    steps, layers = (run.manifest.get(name) or 0 for name in ("steps", "num_layers"))
    looked = -1 if steps * layers > _MOST_LOOKED else None
    for table in ("steps", *STAT_COLUMNS):
        # Damage is seen where a file is read; of long runs where a figure needs it.
        if len(run.written(table)) <= _MOST_PARTS:
            with suppress(AnalyzerError):
                run.read(table, [], steps=looked)
    return [*said, *run.warnings]


def soon(name: Id, is_there: bool) -> dcc.Interval:
    """Return the clock that asks again until the answer is there.

    Each page has its own, since a callback waits for all of its outputs.
    """
    return dcc.Interval(id=name, interval=_MILLISECONDS, disabled=is_there)


def number_table(table: Any) -> list[Any]:
    """Return the first rows of a DataFrame, and how many there are."""
    head = html.Thead(html.Tr([html.Th(str(name), scope="col") for name in table.columns]))
    rows = table.head(_MOST_ROWS).itertuples(index=False, name=None)
    body = html.Tbody([html.Tr([html.Td(_text(cell)) for cell in row]) for row in rows])
    shown = min(len(table), _MOST_ROWS)
    words = f"{shown:,} of {len(table):,} rows; the CSV file has all of them."
    return [html.P(words if shown < len(table) else f"{shown:,} rows."), html.Table([head, body])]


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.6g}" if math.isfinite(cell) else str(cell)
    return str(cell)[:_MOST_CHARACTERS]


# Longer terms first, so that "shortcut share" is not found as "share".
_TERM = re.compile(
    r"\b(?:" + "|".join(sorted(GLOSSARY, key=len, reverse=True)) + r")(?:s|es)?\b", re.IGNORECASE
)


def explained(text: str, names: Mapping[str, str] | None = None) -> list[Any]:
    """Return a text whose terms of the glossary say what they mean, each where it comes first.

    So do ``names``, as they are written.
    """
    parts: list[Any] = []
    at, said = 0, set()
    known, pattern = GLOSSARY | dict(names or {}), _TERM
    if names:
        own = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        pattern = re.compile(rf"(?<![\w.-])(?:{own})(?![\w.-]*\w)|{_TERM.pattern}", re.IGNORECASE)
    for found in pattern.finditer(text):
        word = found[0] if found[0] in known else found[0].lower()
        term = word if word in known else word.removesuffix("s")
        if term in known and term not in said:
            said.add(term)
            mark = html.Abbr(found[0], title=known[term], className="term")
            parts += [text[at : found.start()], mark]
            at = found.end()
    return [*parts, text[at:]]


def step_control() -> html.Div:
    """Return the place of the slider of steps; a script of the page puts it there.

    A native slider moved without a round trip through Dash answers within a frame.
    """
    slider = html.Div(
        id=Id.STEP_SLIDER, className="step-row", role="group", **attributes(aria_label="step")
    )
    return html.Div([dcc.Store(id=Id.STEPS), slider], className="steps")


def panel_card(panel: Panel, *inside: Any) -> html.Section:
    """Return the card of a panel; its height is kept free until the figure is there.

    What is ``inside`` stands between its title and its buttons.
    """
    key = panel.key
    title = html.H2(panel.title, id=f"title-{key}")
    return html.Section(
        [
            html.Div([title, *inside, _buttons(key, panel.title)], className="card-head"),
            html.P(id=card(Id.CAPTION, key), className="caption", role="status"),
            html.Div(id=card(Id.NOTE, key)),
            dcc.Graph(
                id=card(Id.GRAPH, key),
                figure={"data": [], "layout": {"height": panel.height, **_BLANK}},
                config=GRAPH_CONFIG,
                responsive=True,
                className="graph",
                style={"height": f"{panel.height}px"},
            ),
            html.Details(
                [
                    html.Summary("How to read it; the numbers as a table"),
                    html.P(explained(panel.how_to_read)),
                    html.Button(
                        "Show the numbers",
                        id=card(Id.TABLE_OPEN, key),
                        className="plain-button",
                    ),
                    html.Div(
                        id=card(Id.TABLE, key),
                        className="numbers",
                        tabIndex=0,
                        role="region",
                        **attributes(aria_label=f"numbers of {panel.title}"),
                    ),
                ]
            ),
        ],
        className="card wide" if panel.is_wide else "card",
        **attributes(aria_labelledby=f"title-{key}", data_panel=key),
    )


def _buttons(key: str, title: str) -> dmc.Group:
    """Buttons that save the data or the picture; a script of the page does it."""
    return dmc.Group(
        [
            html.Button(
                label,
                className="save",
                title=f"save as {label}",
                **attributes(aria_label=f"save {title} as {label}", data_save=kind, data_key=key),
            )
            for kind, label in _FORMATS
        ],
        gap=4,
        className="saves",
    )

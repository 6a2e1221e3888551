"""The page of runs: sorted, with what tells them apart; choose one, or several to compare."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import dash_mantine_components as dmc
from dash import Dash, Input, Output, dcc, html

from analyzer.analysis.numerals import age_text
from analyzer.figures.catalog import page_of
from analyzer.storage.catalog import RunSummary
from analyzer.storage.pairs import arguments
from analyzer.vocabulary import GLOSSARY

from .address import Context
from .components import attributes, message
from .finding_list import alerts
from .ids import Id, card
from .library import Library, Listed, revision, shortened

__all__ = ["connect", "layout", "nothing", "run_table"]

_COLUMNS = ("compare", "run", "status", "verdict", "steps", "layers", "joins", "last loss", "age")
_NUMBERS = ("steps", "layers", "joins", "last loss", "age")
_MOST_DIFFERING, _MOST_CHOSEN, _MOST_NAMED, _MOST_CELL = 6, 24, 200, 24
_MOST_NOTE = 60
# A reply stays below 400 KB even where every name is as long as a folder's may be.
_MOST_ROWS = 500
_OVERVIEW = page_of("overview").path + "?"
_MEANINGS = {name: GLOSSARY[name.removesuffix("s")] for name in ("run", "layers", "joins")}


def layout(context: Context) -> list[Any]:
    """Return the page of runs, its table included."""
    address, library = context.address, context.library
    return [
        html.P(
            "Choose a run by its name, or mark several: two or three are compared, more are drawn "
            "as lines. A click on the head of a column sorts by it. Arguments, and the last of "
            "each number that was logged, are shown where they differ, unless columns are chosen.",
            className="lead",
        ),
        html.Div(
            [
                dmc.TextInput(
                    id=card(Id.CONTROL, "find"),
                    label="Filter by name, status, verdict or tag",
                    value=address.find,
                    debounce=200,
                    w=280,
                    autoComplete="off",
                ),
                dmc.MultiSelect(
                    id=card(Id.CONTROL, "column"),
                    label="Columns",
                    value=list(address.columns),
                    data=list(_columns(map(_given, library.listing())))[:_MOST_NAMED],
                    placeholder="" if address.columns else "those that differ",
                    searchable=True,
                    clearable=True,
                    clearButtonProps={"aria-label": "columns that differ"},
                    maxValues=_MOST_CHOSEN,
                    hidePickedOptions=True,
                    className="columns",
                    w=280,
                ),
                html.Button(
                    "Compare marked runs", id=Id.COMPARE, className="primary", disabled=True
                ),
            ],
            className="controls",
        ),
        html.Div(run_table(library, address.find, address.columns), id=Id.RUN_LIST),
    ]


def connect(app: Dash, library: Library) -> None:
    """Fill the list again for another filter, for other columns, and when a run has changed."""

    @app.callback(
        Output(Id.RUN_LIST, "children"),
        Input(card(Id.CONTROL, "find"), "value"),
        Input(card(Id.CONTROL, "column"), "value"),
        Input(Id.REVISION, "data"),
        prevent_initial_call=True,
    )
    def list_runs(wanted: str | None, columns: list[str] | None, _mark: str | None) -> Any:
        return run_table(library, wanted or "", columns or ())


def run_table(library: Library, wanted: str = "", columns: Sequence[str] = ()) -> list[Any]:
    """Return the table of the runs that a filter leaves, or what was looked for and where.

    All words of the filter must stand in name, status, verdict, tags or notes. Arguments and
    logged numbers are the ``columns``; without any, those that differ.
    """
    listed = library.listing()
    if not listed:
        return [message(nothing(library), title="No runs yet")]
    asked = wanted.lower().split()[:20]
    found = [run for run in listed if _has(library, run, asked)]
    rows = found[:_MOST_ROWS]
    if not rows:
        text = f"None of {len(listed):,} runs has '{shortened(wanted)}' in its name or status."
        return [message(text + " Empty the filter to see all.")]
    shown = [library.completed(run) for run in rows]
    words = [_verdict(library, run.summary) for run in shown]
    count = f"{len(found):,} of {len(listed):,} runs" if asked else f"{len(listed):,} runs"
    if len(found) > len(rows):
        count += f", the newest {len(rows)} of them here: filter for the others"
    head = html.P(count, className="count", role="status")
    return [head, *alerts(library, found), *_table(shown, words, columns), *_reasons(shown)]


def _has(library: Library, run: Listed, words: Sequence[str]) -> bool:
    verdict = _verdict(library, run.summary) if words else ""
    notes = run.summary.notes
    said = (run.id, run.summary.status, verdict, run.summary.problem or "", *notes.tags, notes.text)
    text = " ".join(said).lower()
    return all(word in text for word in words)


def nothing(library: Library) -> str:
    """Return where runs were looked for, and how to make one."""
    places = " and ".join(f"'{source}'" for source in library.sources)
    return (
        f"Looked in {places} for folders with a run.json in it and found none. Make a run with "
        "`analyzer record train.py`, or start the dashboard with the folder that holds the runs. "
        "A run appears here by itself."
    )


def _table(runs: Sequence[Listed], verdicts: Sequence[str], columns: Sequence[str]) -> list[Any]:
    """An empty place and what a script of the page puts there as a table."""
    given = [_given(run) for run in runs]
    known = _columns(given)
    shown = [name for name in columns if name in known][:_MOST_CHOSEN]
    for logged in () if shown else (False, True):
        differing = [
            name
            for name, is_logged in known.items()
            if is_logged is logged and len({one.get(name, ("", None))[0] for one in given}) > 1
        ]
        shown = [*shown, *differing[:_MOST_DIFFERING]]
    rows = [
        _cells(run, word, [one.get(name, ("–", None)) for name in shown])
        for run, word, one in zip(runs, verdicts, given, strict=True)
    ]
    names = [*_COLUMNS, *shown]
    numbers = [*_NUMBERS, *(name for name in shown if _is_number(name, given))]
    for name in ("tags", "notes"):
        cells = [row.pop(name) for row in rows]
        if any(cells):
            names.append(name)
            for row, text in zip(rows, cells, strict=True):
                row["cells"].append(text)
                row["ordered"].append(None)
    place = html.Div(
        id="run-table",
        className="scroll",
        tabIndex=0,
        role="region",
        **attributes(aria_label="runs"),
    )
    # Hundreds of rows as components take the browser seconds, a script hundredths of one.
    return [
        dcc.Store(
            id=Id.RUN_ROWS,
            data={"columns": names, "numbers": numbers, "meanings": _MEANINGS, "rows": rows},
        ),
        place,
    ]


_Given = Mapping[str, tuple[str, float | None]]
"""By the name of a column the text of a cell, and the number behind it."""


def _given(run: Listed) -> dict[str, tuple[str, float | None]]:
    """What a run was given as arguments, and the last of what it logged, ``last accuracy``."""
    found = {
        shortened(name, _MOST_CELL): (shortened(text, _MOST_CELL), _number(text))
        for name, text in arguments(run.summary.told).items()
    }
    logged = run.summary.logged.items()
    return found | {_logged(name): (_loss(value), _ordered(value)) for name, value in logged}


def _logged(name: str) -> str:
    return "last " + shortened(name, _MOST_CELL)


def _columns(given: Iterable[_Given]) -> dict[str, bool]:
    """The names of all columns that there could be, and whether each was logged."""
    found: dict[str, bool] = {}
    for one in given:
        for name in one:
            found.setdefault(name, name.startswith("last "))
    return found


def _is_number(name: str, given: Sequence[_Given]) -> bool:
    values = [one[name][1] for one in given if name in one]
    return any(value is not None for value in values)


def _cells(
    listed: Listed, verdict: str, more: Sequence[tuple[str, float | None]]
) -> dict[str, Any]:
    """One row: the text of each column after the first two, and what these are made of.

    What is ``ordered`` by is the number behind the text, where there is one.
    """
    run = listed.summary
    return {
        "run": listed.id,
        "name": shortened(listed.id, 60),
        "href": _OVERVIEW + urlencode({"run": listed.id}) if run.problem is None else None,
        "status": run.status,
        "cells": [
            verdict,
            *map(_count, (run.steps, run.layers, run.joins)),
            _loss(run.loss),
            "–" if run.age is None else age_text(run.age),
            *(text for text, _ in more),
        ],
        "ordered": [None, run.steps, run.layers, run.joins, _ordered(run.loss), run.age]
        + [value for _, value in more],
        "tags": ", ".join(shortened(tag) for tag in run.notes.tags),
        "notes": shortened(" ".join(run.notes.text.split()), _MOST_NOTE),
    }


def _number(text: str) -> float | None:
    try:
        return _ordered(float(text))
    except ValueError:
        return None


def _ordered(value: float | None) -> float | None:
    """A number that JSON has; what is not finite comes with what is not there."""
    return None if value is None or not math.isfinite(value) else value


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _loss(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _verdict(library: Library, run: RunSummary) -> str:
    """What is worst about a run, in a word; ``…`` while it is looked for."""
    if run.problem is not None:
        return "cannot be read, see below"
    return library.word(run.path, revision(run.path)) or "…"


def _reasons(runs: Sequence[Listed]) -> list[Any]:
    """Why each run that cannot be read cannot, and what is missing of each that can."""
    return [
        message(shortened(reason, 400), title=shortened(run.id, 60), bad=True)
        for run in runs
        for reason in (run.summary.problem, run.summary.notes.problem, *run.summary.incomplete)
        if reason is not None
    ]

"""The page of runs: choose one, or several to compare."""

import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import dash_mantine_components as dmc
from dash import dcc, html

from analyzer.analysis.numerals import age_text
from analyzer.figures.catalog import page_of
from analyzer.storage.catalog import RunSummary
from analyzer.vocabulary import GLOSSARY

from .address import Context
from .components import attributes, message
from .finding_list import alerts
from .ids import Id
from .library import Library, Listed, revision, shortened

__all__ = ["layout", "nothing", "run_table"]

_COLUMNS = ("compare", "run", "status", "steps", "layers", "joins", "last loss", "verdict", "age")
_MOST_ARGUMENTS, _MOST_CELL = 6, 24
# A reply stays below 400 KB even where every name is as long as a folder's may be.
_MOST_ROWS = 500
_OVERVIEW = page_of("overview").path + "?"
_MEANINGS = {name: GLOSSARY[name.removesuffix("s")] for name in ("run", "layers", "joins")}


def layout(context: Context) -> list[Any]:
    """Return the page of runs, its table included."""
    return [
        html.P(
            "Choose a run by its name, or mark two or three and compare them. A click on the "
            "head of a column sorts by it; arguments are shown where they differ.",
            className="lead",
        ),
        html.Div(
            [
                dmc.TextInput(
                    id=Id.RUN_FILTER,
                    label="Filter by name, status or verdict",
                    value="",
                    debounce=200,
                    w=280,
                    autoComplete="off",
                ),
                html.Button(
                    "Compare marked runs", id=Id.COMPARE, className="primary", disabled=True
                ),
            ],
            className="controls",
        ),
        html.Div(run_table(context.library), id=Id.RUN_LIST),
    ]


def run_table(library: Library, wanted: str = "") -> list[Any]:
    """Return the table of the runs that a filter leaves, or what was looked for and where.

    All words of the filter must stand in name, status or verdict.
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
    return [head, *alerts(library, found), *_table(shown, words), *_reasons(shown)]


def _has(library: Library, run: Listed, words: Sequence[str]) -> bool:
    verdict = _verdict(library, run.summary) if words else ""
    text = f"{run.id} {run.summary.status} {verdict} {run.summary.problem or ''}".lower()
    return all(word in text for word in words)


def nothing(library: Library) -> str:
    """Return where runs were looked for, and how to make one."""
    places = " and ".join(f"'{source}'" for source in library.sources)
    return (
        f"Looked in {places} for folders with a run.json in it and found none. Make a run with "
        "`analyzer record train.py`, or start the dashboard with the folder that holds the runs. "
        "A run appears here by itself."
    )


def _table(runs: Sequence[Listed], verdicts: Sequence[str]) -> list[Any]:
    """An empty place and what a script of the page puts there as a table."""
    given = [_arguments(run.summary) for run in runs]
    differing = [
        name
        for name in dict.fromkeys(name for one in given for name in one)
        if len({one.get(name) for one in given}) > 1
    ][:_MOST_ARGUMENTS]
    rows = [
        _cells(run, word, [one.get(name, "–") for name in differing])
        for run, word, one in zip(runs, verdicts, given, strict=True)
    ]
    columns = [*_COLUMNS, *differing]
    place = html.Div(
        id="run-table",
        className="scroll",
        tabIndex=0,
        role="region",
        **attributes(aria_label="runs"),
    )
    # Hundreds of rows as components take the browser seconds, a script hundredths of one.
    return [
        dcc.Store(id=Id.RUN_ROWS, data={"columns": columns, "meanings": _MEANINGS, "rows": rows}),
        place,
    ]


def _arguments(run: RunSummary) -> dict[str, str]:
    """What the command line gave to the program, by name: ``--lr 0.1``, ``--lr=0.1``, ``--fast``.

    With them the seed and the scale of the shortcuts, which the recorder may have set.
    """
    given = run.told.get("argv")
    words = [str(word) for word in given] if isinstance(given, list) else []
    found: dict[str, str] = {}
    for place, word in enumerate(words):
        if not word.startswith("--") or word == "--":
            continue
        name, is_whole, value = word.partition("=")
        after = words[place + 1] if place + 1 < len(words) else "--"
        if not is_whole:
            value = "yes" if after.startswith("--") else after
        found[shortened(name[2:], _MOST_CELL)] = shortened(value, _MOST_CELL)
    for name in ("seed", "skip_scale"):
        if run.told.get(name) is not None:
            found.setdefault(name.replace("_", "-"), shortened(str(run.told[name]), _MOST_CELL))
    return found


def _cells(listed: Listed, verdict: str, arguments: Sequence[str]) -> dict[str, Any]:
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
            *map(_count, (run.steps, run.layers, run.joins)),
            _loss(run.loss),
            verdict,
            "–" if run.age is None else age_text(run.age),
            *arguments,
        ],
        "ordered": [run.steps, run.layers, run.joins, _ordered(run.loss), None, run.age]
        + [_ordered(_number(text)) for text in arguments],
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
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
        for reason in (run.summary.problem, *run.summary.incomplete)
        if reason is not None
    ]

"""Tags and notes of the shown runs, in the head of each page; a form where they may be changed."""

from typing import Any

import dash_mantine_components as dmc
from dash import MATCH, Dash, Input, Output, State, html
from flask import abort, request

from analyzer.errors import AnalyzerError, RunNotFoundError
from analyzer.storage.notes import Notes, read_notes, write_notes
from analyzer.texts import escaped

from .address import Context
from .components import attributes
from .ids import Id, card
from .library import Library, Listed, shortened
from .security import is_same_origin

__all__ = ["connect", "header"]

# A form for each of many runs would bury the page.
_MOST_FORMS = 3


def header(context: Context) -> list[Any]:
    """Return what the owner says of each shown run; nothing where that is nothing."""
    listed = {one.id: one for one in context.library.listing()} if context.runs else {}
    found = [listed[one] for one in context.address.runs if one in listed]
    runs = [one for one in found if one.summary.problem is None]
    is_edited = context.library.may_write and len(runs) <= _MOST_FORMS
    shown: list[Any] = []
    for run in runs:
        said = _said(run.id, run.summary.notes)
        if said or is_edited:
            place = html.Div(said, id=card(Id.NOTES, run.id))
            shown.append(html.Div([place, *([_form(run)] if is_edited else [])]))
    return [html.Div(shown, className="notes")] if shown else []


def connect(app: Dash, library: Library) -> None:
    """Let a page change notes: only from a page of this server, by a request in JSON."""

    @app.callback(
        Output({"type": Id.NOTES_SAVED, "key": MATCH}, "children"),
        Output({"type": Id.NOTES, "key": MATCH}, "children"),
        Input({"type": Id.NOTES_SAVE, "key": MATCH}, "n_clicks"),
        State({"type": Id.NOTES_TAGS, "key": MATCH}, "value"),
        State({"type": Id.NOTES_TEXT, "key": MATCH}, "value"),
        State({"type": Id.NOTES, "key": MATCH}, "id"),
        prevent_initial_call=True,
    )
    def save(clicks: int | None, tags: Any, text: Any, place: dict[str, str]) -> tuple[Any, Any]:
        # A request without an Origin is no browser's; none of them may write.
        if not is_same_origin(request):
            abort(403)
        try:
            run = library.find(str(place["key"]))
        except RunNotFoundError:
            abort(404)
        said = _said(run.id, read_notes(run.summary.path))
        if not clicks:
            return "", said
        try:
            notes = write_notes(run.summary.path, tags or [], text or "")
        except (AnalyzerError, OSError) as error:
            return f"Not saved: {shortened(str(error), 300)}", said
        return "Saved in notes.json.", _said(run.id, notes)


def _said(run: str, notes: Notes) -> list[Any]:
    if notes == Notes():
        return []
    name = html.Span(shortened(run, 60), className="notes-run")
    if notes.problem is not None:
        return [name, html.Span(notes.problem)]
    tags = [html.Span(shortened(tag), className="tag") for tag in notes.tags]
    text = [html.P(escaped(notes.text, "page"))] if notes.text else []
    return [name, *tags, *text]


def _form(run: Listed) -> html.Details:
    name, notes = shortened(run.id, 60), run.summary.notes
    tags = dmc.TagsInput(
        id=card(Id.NOTES_TAGS, run.id),
        label="Tags",
        value=list(notes.tags),
        maxTags=20,
        clearable=True,
        clearButtonProps={"aria-label": "no tags"},
    )
    text = dmc.Textarea(
        id=card(Id.NOTES_TEXT, run.id),
        label="Notes",
        value=notes.text,
        # One that grew and shrank by itself would take the button away from under the pointer.
        resize="vertical",
        styles={"input": {"height": "5.5em"}},
    )
    save = html.Button(
        "Save",
        id=card(Id.NOTES_SAVE, run.id),
        className="plain-button",
        **attributes(aria_label=f"save tags and notes of {name}"),
    )
    said = html.Span(id=card(Id.NOTES_SAVED, run.id), role="status", className="notes-saved")
    head = html.Summary(f"Tags and notes of {name}")
    return html.Details([head, tags, text, html.Div([save, said])])

"""Connects the layout with what it shows, and serves the data behind a figure as CSV."""

from dataclasses import replace
from typing import Any

from dash import ALL, MATCH, ClientsideFunction, Dash, Input, Output, State, ctx, no_update
from dash.exceptions import PreventUpdate
from flask import Response, request

from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import PANELS, page_at, panel
from analyzer.figures.csv_text import csv_text

from .address import Context, context, parse, query
from .compare import verdict_of
from .components import message, number_table
from .drawing import recorded, shown, step_choices
from .finding_list import finding_list
from .ids import Id, control
from .layout import navigation, page_content
from .library import Library, pulse, shortened
from .run_list import run_table
from .warmer import Warmer

__all__ = ["connect"]

_HIDDEN = {"display": "none"}


def connect(app: Dash, library: Library) -> None:
    """Register all callbacks of an application over a library."""

    def seen(search: str | None, step: int | None = None) -> Context:
        return context(library, parse(search, step))

    warmer = Warmer(library)
    _connect_pages(app, library, warmer)
    _connect_cards(app, seen, warmer)
    _connect_live(app, library, seen)
    _connect_scripts(app)
    _connect_downloads(app, seen)


def _connect_pages(app: Dash, library: Library, warmer: Warmer) -> None:
    @app.server.before_request
    def warm() -> None:
        # The page itself is asked for a second before its figures are.
        if request.method == "GET" and page_at(request.path) is not None:
            warmer.ask(request.path, "?" + request.query_string.decode(errors="replace"))

    @app.callback(
        Output(Id.MAIN, "children"),
        Output(Id.NAV, "children"),
        Output(Id.RUN_PICKER, "data"),
        Output(Id.RUN_PICKER, "value"),
        Output(Id.SEARCH, "data"),
        Output(Id.STEP, "data"),
        Output(Id.REVISION, "data", allow_duplicate=True),
        Output(Id.LIVE_TEXT, "children", allow_duplicate=True),
        Output(Id.LIVE, "data", allow_duplicate=True),
        Input(Id.URL, "pathname"),
        Input(Id.URL, "search"),
        prevent_initial_call="initial_duplicate",
    )
    def route(path: str | None, search: str | None) -> tuple[Any, ...]:
        path = path or "/"
        warmer.ask(path, search or "")
        address = parse(search)
        chosen = context(library, address)
        page = page_at(path)
        content = page_content(page, path, chosen)
        beat = pulse(library, address.runs)
        listed = [run for run in library.listing() if run.summary.problem is None]
        options = [{"value": run.id, "label": shortened(run.id, 60)} for run in listed]
        known = {run.id for run in listed}
        whole = query(address)
        stepless = query(replace(address, step=None))
        return (
            content,
            navigation(path, whole),
            options,
            [run for run in address.runs if run in known],
            stepless,
            address.step,
            beat.mark,
            beat.text,
            {"over": beat.is_over},
        )


def _connect_cards(app: Dash, seen: Any, warmer: Warmer) -> None:
    @app.callback(
        Output({"type": Id.GRAPH, "key": MATCH}, "figure"),
        Output({"type": Id.GRAPH, "key": MATCH}, "style"),
        Output({"type": Id.CAPTION, "key": MATCH}, "children"),
        Output({"type": Id.NOTE, "key": MATCH}, "children"),
        Input(Id.SEARCH, "data"),
        Input(Id.STEP, "data"),
        Input(Id.REVISION, "data"),
        Input(Id.SCHEME, "data"),
        Input(Id.NARROW, "data"),
        State({"type": Id.GRAPH, "key": MATCH}, "id"),
    )
    def draw(
        search: str | None,
        step: int | None,
        _mark: str,
        scheme: str,
        narrow: bool,
        place: dict[str, str],
    ) -> tuple[Any, ...]:
        key = place["key"]
        if "step" not in panel(key).reads and set(ctx.triggered_prop_ids) == {f"{Id.STEP}.data"}:
            raise PreventUpdate
        chosen = seen(search, step)
        if not chosen.runs:
            raise PreventUpdate
        warmer.look = (scheme, bool(narrow))
        result = shown(key, chosen, scheme, narrow=bool(narrow))
        if result.figure is None:
            return no_update, _HIDDEN, "", message(result.problem, bad=result.is_bad)
        # What the reader zoomed to stays while rows arrive, and goes when the question changes.
        layout = result.figure["layout"] | {"uirevision": search or "all"}
        height = {"height": f"{result.height}px"}
        return result.figure | {"layout": layout}, height, result.caption, None

    @app.callback(
        Output({"type": Id.TABLE, "key": MATCH}, "children"),
        Input({"type": Id.TABLE_OPEN, "key": MATCH}, "n_clicks"),
        State(Id.SEARCH, "data"),
        State(Id.STEP, "data"),
        State({"type": Id.TABLE, "key": MATCH}, "id"),
        prevent_initial_call=True,
    )
    def tabulate(_clicks: int, search: str, step: int | None, place: dict[str, str]) -> Any:
        try:
            return number_table(recorded(place["key"], seen(search, step)).table())
        except AnalyzerError as error:
            return message(str(error))

    @app.callback(
        Output(Id.STEPS, "data"),
        Input(Id.SEARCH, "data"),
        Input(Id.REVISION, "data"),
        State(Id.URL, "pathname"),
    )
    def fill_steps(search: str | None, _mark: str, path: str | None) -> Any:
        return step_choices(seen(search), path or "/")


def _connect_live(app: Dash, library: Library, seen: Any) -> None:
    @app.callback(
        Output(Id.REVISION, "data"),
        Output(Id.LIVE_TEXT, "children"),
        Output(Id.LIVE, "data"),
        Input(Id.POLL, "n_intervals"),
        State(Id.SEARCH, "data"),
        State(Id.REVISION, "data"),
        State(Id.URL, "pathname"),
        prevent_initial_call=True,
    )
    def poll(
        _count: int, search: str | None, mark: str | None, path: str | None
    ) -> tuple[Any, ...]:
        beat = pulse(library, () if path == "/" else parse(search).runs)
        fresh = no_update if beat.mark == mark else beat.mark
        return fresh, beat.text, {"over": beat.is_over}

    @app.callback(
        Output(Id.RUN_LIST, "children"),
        Input(Id.RUN_FILTER, "value"),
        Input(Id.REVISION, "data"),
        prevent_initial_call=True,
    )
    def list_runs(wanted: str | None, _mark: str | None) -> Any:
        return run_table(library, wanted or "")

    @app.callback(
        Output(Id.FINDINGS, "children"),
        Output(Id.FINDINGS_SOON, "disabled"),
        Input(Id.REVISION, "data"),
        Input(Id.FINDINGS_SOON, "n_intervals"),
        State(Id.SEARCH, "data"),
        prevent_initial_call=True,
    )
    def find(_mark: str, _count: int, search: str | None) -> tuple[Any, bool]:
        found = finding_list(seen(search))
        return (no_update, False) if found is None else (found, True)

    @app.callback(
        Output(Id.VERDICT, "children"),
        Output(Id.CLAIMS, "children"),
        Output(Id.VERDICT_SOON, "disabled"),
        Input(Id.REVISION, "data"),
        Input(Id.VERDICT_SOON, "n_intervals"),
        State(Id.SEARCH, "data"),
        prevent_initial_call=True,
    )
    def judge(_mark: str, _count: int, search: str | None) -> tuple[Any, Any, bool]:
        found = verdict_of(seen(search))
        return (no_update, no_update, False) if found is None else (*found, True)


def _connect_scripts(app: Dash) -> None:
    """What the browser does by itself; the functions stand in ``assets``."""
    controls = {"type": Id.CONTROL, "key": ALL}
    links = {"type": Id.NAV_LINK, "key": ALL}
    later = {"prevent_initial_call": True}
    for name, more, *places in (
        ("runRows", {}, Output(Id.RUN_ROWS, "storage_type"), Input(Id.RUN_ROWS, "data")),
        (
            "control",
            later,
            Output(Id.SEARCH, "data", allow_duplicate=True),
            Input(controls, "value"),
            State(controls, "id"),
            State(Id.SEARCH, "data"),
        ),
        (
            "scheme",
            {},
            Output(Id.SCHEME, "data"),
            Output(Id.NARROW, "data"),
            Input(Id.URL, "pathname"),
            State(Id.SCHEME, "data"),
            State(Id.NARROW, "data"),
        ),
        ("pick", later, Output(Id.URL, "search"), Input(Id.RUN_PICKER, "value")),
        (
            "links",
            {},
            Output(links, "href"),
            Input(Id.SEARCH, "data"),
            Input(Id.STEP, "data"),
            State(links, "id"),
        ),
        ("steps", {}, Output(Id.SINK, "data"), Input(Id.STEPS, "data"), State(Id.STEP, "data")),
        ("live", {}, Output(Id.POLL, "disabled"), Input(Id.LIVE, "data")),
        ("block", later, Output(control("layers"), "value"), Input(Id.BLOCK, "value")),
    ):
        app.clientside_callback(ClientsideFunction("gradientflow", name), *places, **more)


def _connect_downloads(app: Dash, seen: Any) -> None:
    """Serve ``/csv/<panel>?run=…``."""

    def download(key: str) -> Response:
        if key not in {panel.key for panel in PANELS}:
            return _refusal(f"there is no figure {key[:80]!r}", 404)
        try:
            chosen = seen(request.query_string.decode(errors="replace"))
            if not chosen.runs:
                return _refusal("no run is named that can be opened; expected ?run=NAME", 404)
            table = recorded(key, chosen).table()
        except AnalyzerError as error:
            return _refusal(str(error), 404)
        headers = {"Content-Disposition": f'attachment; filename="{key}.csv"'}
        return Response(csv_text(table), mimetype="text/csv", headers=headers)

    app.server.add_url_rule("/csv/<key>", "csv", download)


def _refusal(text: str, status: int) -> Response:
    return Response(text + "\n", status, mimetype="text/plain")

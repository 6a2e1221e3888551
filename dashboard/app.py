"""The Dash application: its pages and the callbacks behind them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from dash import ALL, MATCH, ClientsideFunction, Dash, Input, Output, State, ctx, no_update
from dash.exceptions import PreventUpdate
from flask import request

from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import RUNS, page_at, panel

from . import landing, network, notes, run_list
from .address import Context, context, lead, opened, parse, query
from .compare import verdict_of
from .components import lacking, message, number_table
from .downloads import add_downloads
from .drawing import recorded, shown, step_choices
from .finding_list import finding_list
from .ids import Id, card
from .layout import navigation, page_content, shell
from .library import Library, pulse, shortened
from .security import protect
from .server import add_lesson
from .study_page import study_cards
from .warming import Warmer

__all__ = ["create_app"]

_ASSETS = Path(__file__).parent / "assets"
_PHONE = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
_SCHEMES = {"name": "color-scheme", "content": "light dark"}
_HIDDEN = {"display": "none"}
_LIST = RUNS.path


def create_app(
    runs: str | Path | Sequence[str | Path],
    *,
    hosts: Iterable[str] = (),
    port: int | None = None,
    token: str | None = None,
    frame_ancestors: str = "'none'",
    edit: bool = False,
) -> Dash:
    """Return an application over recorded runs; it reads them and changes nothing else than notes.

    Args:
        runs: A folder of runs, a run, or several of either.
        hosts: Host names beside those of loopback under which it is asked for.
        port: The port at which it is asked for; None for any.
        token: Secret of the first request, for a server that others can reach.
        frame_ancestors: CSP sources that may show it in a frame.
        edit: Whether its pages may write tags and notes of runs, the file ``notes.json`` of each.
    """
    library = Library([runs] if isinstance(runs, str | Path) else list(runs), may_write=edit)
    app = Dash(
        __name__,
        title="Gradient flow",
        update_title="",
        assets_folder=str(_ASSETS),
        index_string=(_ASSETS / "index.html").read_text(encoding="utf-8"),
        meta_tags=[_PHONE, _SCHEMES],
        suppress_callback_exceptions=True,
        add_log_handler=False,
        # The environment can switch this server on; a dashboard of local files never wants it.
        enable_mcp=False,
    )
    app.layout = shell()
    app.server.before_request(library.begin_answer)

    @app.server.teardown_request
    def end(_error: BaseException | None) -> None:
        library.end_answer()
        # Tables of long runs are large and short-lived; the pool would keep their memory for good.
        pa.default_memory_pool().release_unused()

    def seen(search: str | None, step: int | None = None) -> Context:
        return context(library, parse(search, step))

    warmer = Warmer(library)
    app.server.extensions["draw_first"] = warmer.draw_first
    _connect_pages(app, library, warmer)
    _connect_cards(app, seen, warmer)
    _connect_live(app, library, seen)
    network.connect(app, seen)
    run_list.connect(app, library)
    if edit:
        notes.connect(app, library)
    _connect_scripts(app)
    add_downloads(app.server, seen)
    add_lesson(app.server)
    protect(
        app.server,
        app.csp_hashes(),
        hosts=hosts,
        port=port,
        token=token,
        frame_ancestors=frame_ancestors,
    )
    lead(app.server, library)
    return app


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
        chosen = opened(library, path, search)
        address = chosen.address
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
            said = message(result.problem, bad=True) if result.is_bad else lacking(result.problem)
            return no_update, _HIDDEN, "", said
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
        beat = pulse(library, () if path == _LIST else parse(search).runs)
        fresh = no_update if beat.mark == mark else beat.mark
        return fresh, beat.text, {"over": beat.is_over}

    asked = [Input(one, "data") for one in (Id.SCHEME, Id.NARROW, Id.REVISION)]

    @app.callback(
        Output(Id.STUDY, "children"), *asked, State(Id.SEARCH, "data"), prevent_initial_call=True
    )
    def study(scheme: str, narrow: bool, _mark: str | None, search: str | None) -> Any:
        return study_cards(seen(search), scheme, narrow=bool(narrow))

    first = (Id.HEADLINE, Id.READINGS, Id.QUESTIONS)
    for find, clock, places in (
        (finding_list, Id.FINDINGS_SOON, (Id.FINDINGS,)),
        (landing.answer_of, Id.HEADLINE_SOON, first),
        (verdict_of, Id.VERDICT_SOON, (Id.VERDICT, Id.CLAIMS)),
    ):
        _connect_answer(app, library, seen, find, clock, places)


def _connect_answer(
    app: Dash, library: Library, seen: Any, find: Any, clock: Id, places: tuple[Id, ...]
) -> None:
    """Ask for a long answer at each tick of a clock until it is there.

    The first tick comes when the browser has drawn its figures: before, it has no time for one.
    """

    @app.callback(
        *(Output(place, "children") for place in places),
        Output(clock, "disabled"),
        Input(Id.REVISION, "data"),
        Input(clock, "n_intervals"),
        State(Id.SEARCH, "data"),
        prevent_initial_call=True,
    )
    def answer(_mark: str, count: int | None, search: str | None) -> tuple[Any, ...]:
        if count:
            library.drawn.set()
        chosen = seen(search)
        found = find(chosen)
        if found is None:
            return (*[no_update] * len(places), False)
        return (*(found if len(places) > 1 else [found]), chosen.is_settled(found))


def _connect_scripts(app: Dash) -> None:
    """What the browser does by itself; the functions are in ``assets``."""

    def script(name: str, *places: Any, is_first: bool = True) -> None:
        function = ClientsideFunction("gradientflow", name)
        app.clientside_callback(function, *places, prevent_initial_call=not is_first)

    url, search, step = Input(Id.URL, "pathname"), Input(Id.SEARCH, "data"), Input(Id.STEP, "data")
    searched, stepped = State(Id.SEARCH, "data"), State(Id.STEP, "data")
    look = (Id.SCHEME, Id.NARROW)
    controls = {"type": Id.CONTROL, "key": ALL}
    links = {"type": Id.NAV_LINK, "key": ALL}
    script("runRows", Output(Id.RUN_ROWS, "storage_type"), Input(Id.RUN_ROWS, "data"))
    script("scheme", *(Output(x, "data") for x in look), url, *(State(x, "data") for x in look))
    script("links", Output(links, "href"), search, step, State(links, "id"))
    script("network", Output(Id.NETWORK, "storage_type"), Input(Id.NETWORK, "data"))
    script("steps", Output(Id.SINK, "data"), Input(Id.STEPS, "data"), stepped)
    script("live", Output(Id.POLL, "disabled"), Input(Id.LIVE, "data"))
    script("arrived", Output(Id.SINK, "id"), Input(Id.REVISION, "data"))
    asked = Output(Id.SEARCH, "data", allow_duplicate=True)
    of_controls = (Input(controls, "value"), State(controls, "id"), searched)
    script("control", asked, *of_controls, is_first=False)
    picked = (Output(Id.URL, "search"), Input(Id.RUN_PICKER, "value"))
    script("pick", *picked, is_first=False)
    blocks = (Output(card(Id.CONTROL, "layers"), "value"), Input(Id.BLOCK, "value"))
    script("block", *blocks, is_first=False)

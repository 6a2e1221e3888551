"""The page of the network: nested modules and the data flow between them, in colors."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dash import Dash, Input, Output, dcc, html

from analyzer.analysis.network import Box, network
from analyzer.analysis.network_view import NetworkView, network_view
from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.view import matching
from analyzer.errors import AnalyzerError
from analyzer.figures.theme import LIGHT, THEMES, Theme, log_ticks
from analyzer.vocabulary import quantity

from .address import Context
from .components import attributes, lacking, message, step_control
from .controls import controls
from .ids import Id
from .library import shortened

try:
    import dash_cytoscape
except ModuleNotFoundError:
    dash_cytoscape = None
else:
    # Loaded by the one page that needs it: one megabyte and a half for two layouts of a library.
    dash_cytoscape._js_dist = [
        {
            "relative_package_path": "dash_cytoscape_extra.min.js",
            "namespace": "dash_cytoscape",
            "dynamic": True,
        }
    ]

__all__ = ["connect", "layout"]

_MISSING = "The network is drawn by a library that is not installed: `pip install dash-cytoscape`."
_MOST_LABEL, _MOST_ROWS = 28, 200
_LETTER, _PADDING = 7.2, 18
_MOST_PATTERN = 200


def layout(context: Context) -> list[Any]:
    """Return the page: what is colored, the step, the network, and its nodes as a table."""
    if dash_cytoscape is None:
        return [message(_MISSING)]
    frame = {"className": "network", "role": "img", **attributes(aria_label="the network")}
    region = {"role": "region", "tabIndex": 0, **attributes(aria_label="network, to be scrolled")}
    scrolled = {"className": "network-frame", **region}
    figure = html.Section(
        [
            html.P(id=Id.NETWORK_CAPTION, className="caption", role="status"),
            html.Div(id=Id.NETWORK_NOTE),
            html.Div(id=Id.NETWORK_LEGEND),
            html.Div(html.Div(html.Div(id=Id.NETWORK_PLACE), **frame), **scrolled),
            html.Details(
                [
                    html.Summary("How to read it; its nodes as a table"),
                    html.P(
                        "Boxes are modules, in the order of the data flow. A closed one has the "
                        "median of its layers as its color. A circle is a join, the arc that leads "
                        "to it the shortcut, colored by its share of the gradient. A click chooses "
                        "a node, and the other pages show its layers alone; another click opens a "
                        "closed box, or closes an open one."
                    ),
                    html.Div(
                        id=Id.NETWORK_TABLE,
                        className="numbers",
                        tabIndex=0,
                        role="region",
                        **attributes(aria_label="nodes of the network"),
                    ),
                ],
            ),
        ],
        className="card wide",
        **attributes(data_graph="network", aria_label="network"),
    )
    shown = controls(context, "single", "quantity", "layers")
    return [shown, step_control(), dcc.Store(id=Id.NETWORK), figure]


def connect(app: Dash, seen: Callable[..., Context]) -> None:
    """Draw the network of what an address asks for."""

    @app.callback(
        Output(Id.NETWORK, "data"),
        Output(Id.NETWORK_CAPTION, "children"),
        Output(Id.NETWORK_NOTE, "children"),
        Output(Id.NETWORK_LEGEND, "children"),
        Output(Id.NETWORK_TABLE, "children"),
        Input(Id.SEARCH, "data"),
        Input(Id.STEP, "data"),
        Input(Id.REVISION, "data"),
        Input(Id.SCHEME, "data"),
        Input(Id.NARROW, "data"),
    )
    def draw(
        search: str | None, step: int | None, _mark: str, scheme: str, narrow: bool
    ) -> tuple[Any, ...]:
        chosen = seen(search, step)
        if not chosen.runs:
            return None, "", None, None, None
        try:
            view = _view(chosen)
            marked = _marked(chosen, view)
        except AnalyzerError as error:
            return None, "", lacking(str(error)), None, None
        theme = THEMES.get(scheme, LIGHT)
        drawn = _drawn(view, theme, marked, narrow=bool(narrow))
        return drawn, view.caption, None, _legend(view, theme), _table(view)


def _view(context: Context) -> NetworkView:
    run, address = context.single, context.address
    whole = context.library.cache.get("records", ("network", run), lambda: network(run))
    asked = replace(context.view(), runs=(run,))
    return network_view(whole, asked, address.opened, address.closed)


def _marked(context: Context, view: NetworkView) -> set[str]:
    """The keys of what holds nothing but layers that the pattern of the address asks for."""
    if not context.address.layers:
        return set()
    rows = context.single.static_rows("layers")
    ids, names = rows.column("layer").to_pylist(), rows.column("name").to_pylist()
    found = {
        i for i, keep in zip(ids, matching(context.address.layers, names), strict=True) if keep
    }
    return {box.key for box in view.boxes if box.layers and found.issuperset(box.layers)}


def _drawn(view: NetworkView, theme: Theme, marked: set[str], *, narrow: bool) -> dict[str, Any]:
    """What the browser draws: elements, their style, and how they are laid out."""
    names = {box.key for box in view.boxes}
    nodes = [_node(box, view, theme, marked, names) for box in view.boxes]
    edges = [_edge(*edge, view, theme) for edge in view.edges]
    direction = "TB" if narrow else "LR"
    place = {"name": "dagre", "rankDir": direction, "rankSep": 26, "nodeSep": 18}
    return {
        "elements": nodes + edges,
        "stylesheet": _stylesheet(theme),
        "layout": place | {"animate": False, "fit": False},
        "label": view.caption,
    }


def _node(
    box: Box, view: NetworkView, theme: Theme, marked: set[str], names: set[str]
) -> dict[str, Any]:
    is_open, value = box.key in view.is_open, view.values.get(box.key, float("nan"))
    text = shortened(box.label, _MOST_LABEL)
    if box.children and not is_open:
        inside = sum(key in view.network.joins for key in _keys(box))
        joins = f"\n{counted(inside, 'shortcut')}" if inside else ""
        text += f"\n{counted(len(box.layers), 'layer')}{joins}"
    color, ink = _color(value, view, theme, is_broken=box.key in view.broken)
    lines = text.split("\n")
    classes = [
        box.kind,
        "open" if is_open else "closed",
        *(["marked"] if box.key in marked else []),
    ]
    data = {
        "id": box.key,
        "label": text,
        "color": color,
        "ink": ink,
        "width": max(34.0, max(map(len, lines)) * _LETTER + _PADDING),
        "height": 15.0 * len(lines) + 14,
        "pattern": _pattern(box),
        "opens": bool(box.children),
        "says": _says(box, value, view),
    }
    if box.parent is not None and box.parent.key in names:
        data["parent"] = box.parent.key
    return {"data": data, "classes": " ".join(classes)}


def _keys(box: Box) -> list[str]:
    return [box.key, *(key for child in box.children for key in _keys(child))]


def _says(box: Box, value: float, view: NetworkView) -> str:
    if box.kind == "join":
        share = view.shares.get(view.network.joins[box.key][0], float("nan"))
        return f"join {view.network.joins[box.key][0]}: its shortcuts carry {percent(share)}"
    if not box.layers:
        return "the input of the network"
    return f"{shortened(box.key, 200)}: {quantity(view.quantity).label} {number(value)}"


def _pattern(box: Box) -> str:
    """A pattern of the names of the layers in a box; empty where it would be too long."""
    if box.kind in ("layer", "module"):
        ends = r"(?:[.#]|$)" if box.kind == "module" else "$"
        pattern = f"^{_escaped(box.key.removesuffix(':'))}{ends}"
    elif box.kind == "group":
        names = "|".join(_escaped(child.key) for child in box.children)
        pattern = rf"^(?:{names})(?:[.#]|$)"
    else:
        return ""
    return pattern if len(pattern) <= _MOST_PATTERN else ""


def _escaped(name: str) -> str:
    return "".join(f"\\{c}" if c in r"\.[]{}()*+?^$|" else c for c in name)


def _edge(
    source: str, target: str, join: int | None, view: NetworkView, theme: Theme
) -> dict[str, Any]:
    data = {"id": f"{source} > {target}", "source": source, "target": target}
    is_arc = join is not None and target in view.network.joins
    if not is_arc or join is None:
        return {"data": data, "classes": "flow"}
    share = view.shares.get(join, float("nan"))
    places = len(theme.arcs)
    known = not math.isnan(share)
    color = theme.arcs[min(places - 1, int(max(0.0, share) * places))] if known else theme.faint
    return {"data": data | {"color": color}, "classes": "arc"}


def _color(value: float, view: NetworkView, theme: Theme, *, is_broken: bool) -> tuple[str, str]:
    """The color of a value, and that of letters on it."""
    if is_broken:
        return theme.mark, "#ffffff"
    if math.isnan(value):
        return theme.paper, theme.text
    if view.is_log and value <= 0:
        return theme.zero, "#ffffff"
    place = _place(value, view)
    color = theme.heat(place)
    return color, "#ffffff" if place < 0.55 else "#000000"


def _place(value: float, view: NetworkView) -> float:
    """Where a value lies between the lowest and the highest color, from 0 to 1."""
    at = math.log10(value) if view.is_log else value
    return min(1.0, max(0.0, (at - view.low) / (view.high - view.low)))


def _stylesheet(theme: Theme) -> list[dict[str, Any]]:
    letters = {"font-size": 12, "font-family": "Inter, 'Segoe UI', Arial, 'DejaVu Sans'"}
    node = letters | {
        "label": "data(label)",
        "shape": "round-rectangle",
        "width": "data(width)",
        "height": "data(height)",
        "background-color": "data(color)",
        "color": "data(ink)",
        "text-valign": "center",
        "text-halign": "center",
        "text-wrap": "wrap",
        "text-max-width": 600,
        "border-width": 1,
        "border-color": theme.faint,
    }
    around = {
        "background-opacity": 0,
        "border-style": "solid",
        "color": theme.text,
        "text-valign": "top",
        "font-weight": "bold",
        "padding": 10,
    }
    line = {"curve-style": "bezier", "target-arrow-shape": "triangle", "arrow-scale": 0.8}
    flow = {"width": 1.5, "line-color": theme.faint, "target-arrow-color": theme.faint}
    arc = {
        "curve-style": "unbundled-bezier",
        "control-point-distances": 40,
        "control-point-weights": 0.5,
        "width": 4,
        "line-color": "data(color)",
        "target-arrow-color": "data(color)",
    }
    join = {"shape": "ellipse", "width": 22, "height": 22, "border-width": 1.5}
    plain = {"background-color": theme.paper, "color": theme.text}
    return [
        {"selector": "node", "style": node},
        {"selector": "node.open", "style": around},
        {"selector": "node.join", "style": join | plain},
        {"selector": "node.input", "style": plain | {"shape": "ellipse"}},
        {"selector": "node.module.closed, node.group.closed", "style": {"border-width": 2.5}},
        {"selector": "node.marked", "style": {"border-width": 4, "border-color": theme.mark}},
        {"selector": "edge", "style": line | flow},
        {"selector": "edge.arc", "style": arc},
    ]


def _legend(view: NetworkView, theme: Theme) -> html.Div:
    """The color scale with its ticks, and that of the arcs."""
    stops = ", ".join(theme.heat(k / 8) for k in range(9))
    places, ticks = log_ticks(view.low, view.high, 5)
    if not view.is_log:
        places = [view.low + (view.high - view.low) * k / 4 for k in range(5)]
        ticks = [number(at) for at in places]
    marks = [
        html.Span(text, style={"left": f"{(at - view.low) / (view.high - view.low):.1%}"})
        for at, text in zip(places, ticks, strict=True)
        if view.low <= at <= view.high
    ]
    bar = html.Div(className="bar", style={"background": f"linear-gradient(to right, {stops})"})
    entries = [
        html.Span([html.I(style={"background": theme.zero}), "zero"]),
        html.Span([html.I(style={"background": theme.mark}), "not finite"]),
    ]
    if view.shares:
        entries += [
            html.Span([html.I(style={"background": color}), f"{k * 20} to {k * 20 + 20} %"])
            for k, color in enumerate(theme.arcs)
        ]
        entries.insert(2, html.Span("share of the shortcut:"))
    scale = html.Div([bar, html.Div(marks, className="ticks")], className="scale")
    return html.Div(
        [html.Span(quantity(view.quantity).label, className="label"), scale, *entries],
        className="network-legend",
    )


def _table(view: NetworkView) -> html.Table:
    """The nodes with what a click on them does, for those who use no mouse."""
    rows = [_row(box, view) for box in view.boxes if box.layers][:_MOST_ROWS]
    heads = ("node", "layers", quantity(view.quantity).label, "")
    head = html.Thead(html.Tr([html.Th(text, scope="col") for text in heads]))
    return html.Table([head, html.Tbody(rows)])


def _row(box: Box, view: NetworkView) -> html.Tr:
    name, is_open = shortened(box.key, 60), box.key in view.is_open
    buttons = []
    if pattern := _pattern(box):
        of = attributes(data_pattern=pattern, aria_label=f"show {name} alone")
        buttons.append(html.Button("show alone", className="plain-button", **of))
    if box.children:
        word = "close" if is_open else "open"
        of = attributes(data_node=box.key, aria_label=f"{word} {name}")
        buttons.append(html.Button(word, className="plain-button", **of))
    value = "" if is_open else number(view.values.get(box.key, float("nan")))
    cells = [html.Th(name, scope="row"), html.Td(len(box.layers)), html.Td(value)]
    return html.Tr([*cells, html.Td(buttons)])

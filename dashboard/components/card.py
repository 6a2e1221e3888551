"""The card of a panel: title, figure, caption, how to read it, and its data to take along."""

from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from analyzer.figures.panels import Panel

from ..components.attributes import attributes
from ..ids import Id, card

__all__ = ["GRAPH_CONFIG", "panel_card"]

GRAPH_CONFIG: Any = {
    "displaylogo": False,
    # Nothing leaves this machine.
    "modeBarButtonsToRemove": [
        "sendDataToCloud",
        "sendChartToCloud",
        "toImage",
        "lasso2d",
        "select2d",
    ],
    "responsive": True,
    "showTips": False,
    "plotlyServerURL": "",
}
_FORMATS = (("csv", "CSV"), ("svg", "SVG"), ("png", "PNG"))


def panel_card(panel: Panel) -> html.Section:
    """Return the card of a panel, its figure still to be drawn.

    Args:
        panel: The panel; its height is kept free until the figure is there.
    """
    key = panel.key
    return html.Section(
        [
            html.Div(
                [html.H2(panel.title, id=f"title-{key}"), _buttons(key, panel.title)],
                className="card-head",
            ),
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
                    html.P(panel.how_to_read),
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


_BLANK: dict[str, Any] = {
    "xaxis": {"visible": False},
    "yaxis": {"visible": False},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}


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

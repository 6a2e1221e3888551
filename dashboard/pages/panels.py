"""The page of a group of panels: its controls, then one card a panel."""

from typing import Any

from dash import dcc, html

from analyzer.figures.panels import Page

from ..components.card import panel_card
from ..components.controls import controls, step_slider
from ..context import Context
from ..ids import Id

__all__ = ["layout"]


def layout(context: Context, page: Page) -> list[Any]:
    """Return the controls and cards of a page.

    Args:
        context: The runs and the address.
        page: The page.
    """
    names = context.layer_names if "layers" in page.controls else []
    slider = [dcc.Store(id=Id.FRAMES), step_slider()] if page.has_steps else []
    cards = html.Div([panel_card(panel) for panel in page.shown], className="cards")
    return [controls(context.address, names, *page.controls), *slider, cards]

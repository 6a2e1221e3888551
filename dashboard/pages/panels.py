"""The page of a group of panels: its controls, then one card a panel."""

from typing import Any

from dash import dcc, html

from analyzer.figures.catalog import PANELS, Panel

from ..components.card import panel_card
from ..components.controls import controls, step_slider
from ..context import Context
from ..ids import Id

__all__ = ["layout", "panels_of"]

_CONTROLS: dict[str, tuple[str, ...]] = {
    "flow": ("quantity", "layers", "bins", "smooth", "relative"),
    "compare": ("quantity", "layers", "bins", "relative"),
    "activations": ("layers",),
    "updates": ("layers", "bins"),
    "training": ("smooth",),
}
_HEIGHTS = {"score": 860, "landscape_surface": 640, "landscape_contour": 560, "skip_strip": 420}
_NARROW = frozenset({"loss", "learning_rate", "gradient_norm", "noise_scale"})
_OWN_PAGE = {"landscape_surface": "surface"}
# Two runs are compared on their heatmaps too, which stand side by side.
_ALSO = {"compare": ("gradient_heatmap",)}
_NO_STEP = frozenset({"updates", "training", "attribution"})


def panels_of(page: str) -> list[Panel]:
    """Return the panels of a page; the surface has one of its own, since WebGL is slow to start."""
    return [
        panel
        for panel in PANELS
        if _OWN_PAGE.get(panel.key, panel.page) == page or panel.key in _ALSO.get(page, ())
    ]


def layout(context: Context, page: str) -> list[Any]:
    """Return the controls and cards of a page.

    Args:
        context: The runs and the address.
        page: Key of the page.
    """
    names = context.layer_names if "layers" in _CONTROLS.get(page, ()) else []
    shown = controls(context.address, names, *_CONTROLS.get(page, ()))
    cards = [
        panel_card(panel, height=_HEIGHTS.get(panel.key, 380), wide=panel.key not in _NARROW)
        for panel in panels_of(page)
    ]
    slider = [] if page in _NO_STEP else [dcc.Store(id=Id.FRAMES), step_slider()]
    return [shown, *slider, html.Div(cards, className="cards")]

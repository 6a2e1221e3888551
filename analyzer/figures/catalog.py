"""The catalog of panels that dashboard and reports share: words, needs, record and drawing."""

from analyzer.analysis.view import View
from analyzer.figures.panels import Panel
from analyzer.figures.probe_panels import ATTRIBUTION_PANELS, LANDSCAPE_PANELS, SKIPS_PANELS
from analyzer.figures.training_panels import (
    ACTIVATIONS_PANELS,
    COMPARE_PANELS,
    FLOW_PANELS,
    SCORE_PANELS,
    TRAINING_PANELS,
    UPDATES_PANELS,
)

__all__ = ["PAGES", "PANELS", "Panel", "View", "panel"]

PAGES = (
    "score",
    "flow",
    "compare",
    "skips",
    "activations",
    "updates",
    "training",
    "landscape",
    "attribution",
)
PANELS: tuple[Panel, ...] = (
    *SCORE_PANELS,
    *FLOW_PANELS,
    *COMPARE_PANELS,
    *SKIPS_PANELS,
    *ACTIVATIONS_PANELS,
    *UPDATES_PANELS,
    *TRAINING_PANELS,
    *LANDSCAPE_PANELS,
    *ATTRIBUTION_PANELS,
)


def panel(key: str) -> Panel:
    """Return the panel of a key.

    Raises:
        KeyError: If no panel has this key.
    """
    for one in PANELS:
        if one.key == key:
            return one
    raise KeyError(f"no panel {key!r}; expected one of {', '.join(p.key for p in PANELS)}")

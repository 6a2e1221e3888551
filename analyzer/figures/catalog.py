"""The pages and their panels, once: what dashboard and reports show follows from this list."""

from analyzer.figures import landscape, overview, probes, shortcuts, statistics, training
from analyzer.figures.panels import Page, Panel, checked
from analyzer.vocabulary.probes import PROBES

__all__ = ["PAGES", "PANELS", "RUNS", "page_at", "page_of", "panel"]

# Whatever these modules draw must be on a page.
_MODULES = (landscape, overview, probes, shortcuts, statistics, training)
_WRITTEN = [value for one in _MODULES for value in vars(one).values() if isinstance(value, Panel)]
# A probe with a number by layer needs no code here to be shown.
_BY_LAYER = probes.layer_panels(PROBES, {need for panel in _WRITTEN for need in panel.needs})

_OTHER_PROBES = Page(
    key="probes",
    lead="What other probes measured, layer by layer.",
    letter="p",
    panels=_BY_LAYER,
)
RUNS = Page(key="runs", letter="r", has_layout=True, needs_run=False)
PAGES = checked(
    (
        Page(
            key="overview",
            path="/",
            lead="Which net is sick, where, since when, and what the shortcuts carry.",
            letter="o",
            panels=(overview.OVERVIEW,),
            former=("score", "overview"),
            has_layout=True,
            needs_run=False,
        ),
        RUNS,
        Page(
            key="flow",
            title="Gradient flow",
            lead="Where the gradient goes, layer by layer and step by step.",
            letter="f",
            panels=(statistics.HEATMAP, statistics.PROFILE, statistics.SERIES),
        ),
        Page(
            key="network",
            lead="The modules of the network, in the order of the data flow, and its shortcuts.",
            letter="n",
            has_layout=True,
        ),
        Page(
            key="compare",
            lead="Two runs on one axis of depth.",
            letter="c",
            # Two runs are compared on their heatmaps too, which stand side by side.
            also=(statistics.HEATMAP,),
            panels=(statistics.OVERLAY, statistics.DIFFERENCE),
            heading="Plain against residual",
            has_layout=True,
        ),
        Page(
            key="shortcuts",
            lead="What the shortcuts carry.",
            letter="s",
            panels=(
                shortcuts.STRIP,
                shortcuts.SHARES,
                shortcuts.STREAM,
                shortcuts.STREAM_SERIES,
                probes.COUNTERFACTUAL,
                probes.PATHS,
                probes.LESION,
                probes.JACOBIAN,
                probes.SHATTERING,
                probes.FORWARD_CORRELATION,
            ),
            former=("skips",),
        ),
        Page(
            key="activations",
            lead="The forward signal along depth, and units that are dead.",
            letter="a",
            panels=(statistics.ACTIVATIONS, statistics.DEAD_UNITS),
        ),
        Page(
            key="updates",
            lead="How far each step moves each parameter.",
            letter="u",
            panels=(statistics.UPDATES,),
        ),
        Page(
            key="training",
            lead="What it means for the loss.",
            letter="t",
            panels=(
                training.LOSS,
                training.LEARNING_RATE,
                training.SHARPNESS,  # in two columns it stands under the loss
                training.GRADIENT_NORM,
                training.NOISE_SCALE,
                training.LOGGED,
            ),
        ),
        Page(
            key="landscape",
            lead="The loss around the weights, all runs on one scale.",
            letter="l",
            panels=(landscape.CONTOUR, landscape.TRAJECTORY),
            heading="Loss landscape",
        ),
        # A page of its own, since WebGL is slow to start.
        Page(
            key="surface",
            lead="The same landscape in three dimensions.",
            panels=(landscape.SURFACE,),
            heading="Loss surface",
        ),
        Page(
            key="attribution",
            lead="Which layers the output depends on.",
            panels=(probes.ATTRIBUTION,),
        ),
        *([_OTHER_PROBES] if _BY_LAYER else []),
        Page(
            key="study",
            lead="Many runs by one plan: what depth does, with shortcuts and without.",
            letter="y",
            has_layout=True,
            needs_run=False,
        ),
        Page(
            key="findings",
            lead="What looks unhealthy, with numbers.",
            letter="d",
            has_layout=True,
        ),
    ),
    _WRITTEN,
)
PANELS = tuple(panel for page in PAGES for panel in page.panels)


def panel(key: str) -> Panel:
    """Return the panel of a key.

    Raises:
        KeyError: If no panel has this key.
    """
    for one in PANELS:
        if one.key == key:
            return one
    raise KeyError(f"no panel {key!r}; expected one of {', '.join(p.key for p in PANELS)}")


def page_of(key: str) -> Page:
    """Return the page whose panel has a key.

    Raises:
        KeyError: If no panel has this key.
    """
    return next(page for page in PAGES if panel(key) in page.panels)


def page_at(path: str | None) -> Page | None:
    """Return the page at a path of the dashboard; None where there is none."""
    return next((page for page in PAGES if page.path == (path or "/")), None)

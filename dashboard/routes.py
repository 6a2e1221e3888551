"""The pages there are: path, name, and what makes their content."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .context import Context
from .pages import compare, findings, panels, runs

__all__ = ["PAGES", "Page", "page_at"]


@dataclass(frozen=True)
class Page:
    """One page.

    Args:
        path: Its path in URLs.
        title: Its name.
        lead: A sentence below the name.
        layout: Makes what stands below.
        needs_run: Whether there is nothing to show without a run.
    """

    path: str
    title: str
    lead: str
    layout: Callable[[Context], list[Any]]
    needs_run: bool = True


def _panels(key: str, title: str, lead: str) -> Page:
    return Page(f"/{key}", title, lead, partial(panels.layout, page=key))


PAGES = (
    Page("/", "Runs", "", runs.layout, needs_run=False),
    _panels(
        "score",
        "Score",
        "Depth runs along x in every row: from a skip straight down to what it does. Drag the "
        "step in the third row.",
    ),
    _panels("flow", "Gradient flow", "Where the gradient goes, layer by layer and step by step."),
    Page("/compare", "Compare", "Two runs on one axis of depth.", compare.layout),
    _panels("skips", "Skips", "What the shortcuts carry."),
    _panels("activations", "Activations", "Forward signal by depth, and units that died."),
    _panels("updates", "Updates", "How far each step moves each parameter."),
    _panels("training", "Training", "What it meant for the loss."),
    _panels("landscape", "Landscape", "The loss around the weights, twins on one scale."),
    _panels("surface", "Surface", "The same landscape in three dimensions."),
    _panels("attribution", "Attribution", "Which layers the answer rests on."),
    Page("/findings", "Findings", "What looks unhealthy, with numbers.", findings.layout),
)
_BY_PATH = {page.path: page for page in PAGES}


def page_at(path: str | None) -> Page | None:
    """Return the page at a path; None where there is none."""
    return _BY_PATH.get(path or "/")

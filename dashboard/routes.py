"""The pages of the catalog by their path, and what makes the content of each."""

from collections.abc import Callable
from typing import Any

from analyzer.figures.catalog import PAGES
from analyzer.figures.panels import Page

from .context import Context
from .pages import compare, findings, panels, runs

__all__ = ["content_of", "former_paths", "page_at"]

_LAYOUTS: dict[str, Callable[[Context], list[Any]]] = {
    "runs": runs.layout,
    "compare": compare.layout,
    "findings": findings.layout,
}
_BY_PATH = {page.path: page for page in PAGES}

if unlike := {page.key for page in PAGES if page.has_layout} ^ set(_LAYOUTS):
    raise ValueError(f"pages with a layout and layouts of pages differ in {sorted(unlike)}")


def page_at(path: str | None) -> Page | None:
    """Return the page at a path; None where there is none."""
    return _BY_PATH.get(path or "/")


def content_of(page: Page, context: Context) -> list[Any]:
    """Return what stands below the title of a page."""
    return _LAYOUTS[page.key](context) if page.has_layout else panels.layout(context, page)


def former_paths() -> dict[str, str]:
    """Return where paths that pages had once lead now."""
    return {f"/{name}": page.path for page in PAGES for name in page.former}

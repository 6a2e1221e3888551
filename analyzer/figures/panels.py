"""What a panel and a page are: a figure with all that is known of it, and what stands together."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import plotly.graph_objects as go

from analyzer.analysis.view import View
from analyzer.figures.axes import along_steps
from analyzer.figures.marks import with_rugs
from analyzer.figures.narrow import stacked
from analyzer.figures.sketch import Sketch
from analyzer.figures.theme import Theme
from analyzer.vocabulary.methods import Method

__all__ = ["CONTROLS", "MANY_RUNS", "READABLE", "Page", "Panel", "checked"]

READABLE = tuple(one.name for one in fields(View) if one.name not in ("runs", "among"))
"""What of a view a panel may read."""

CONTROLS = (
    *("quantity", "layers", "aggregate", "relative"),
    *("over", "log_x", "scale", "smooth", "group"),
)
"""What of a view a page can have a control for, in the order of the controls."""

MANY_RUNS = 24
"""How many runs are told apart as lines."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure of the catalog with its words.

    Args:
        key: Its name, as in the page's address and in file names.
        how_to_read: A sentence or two for a reader who sees it for the first time.
        needs: Tables, columns or probes without which there is nothing to draw.
        info: Reads and computes what is shown: a frozen record with ``caption`` (a sentence that
            states the finding with its number) and ``table()`` (the data behind the figure).
            Raises NotRecordedError, with the remedy, where the run lacks the data.
        drawing: Draws the record and computes nothing. Returns a plotly figure, or a sketch of one
            where plotly's checks would make a reader wait.
        narrow: The same for a narrow page; None where its panes are stacked there.
        reads: Fields of the view that change the record, out of ``READABLE``.
        has_controls: Whether its page has a control for each of them that is in ``CONTROLS``.
        follows_click: Whether it shows the layers that were clicked in a heatmap.
        method: How a paper describes it; None where that of its probe says it.
        most_runs: How many runs it can show; of more a reader chooses which.
        height: Pixels that are kept free on a page until the figure is there.
        is_wide: Whether its card takes the whole width of a page.

    Raises:
        ValueError: If it reads what a view does not have.
    """

    key: str
    title: str
    how_to_read: str
    needs: tuple[str, ...]
    info: Callable[[View], Any]
    drawing: Callable[[Any, Theme], go.Figure | Sketch]
    narrow: Callable[[Any, Theme], go.Figure | Sketch] | None = None
    reads: tuple[str, ...] = ()
    has_controls: bool = False
    follows_click: bool = False
    method: Method | None = None
    most_runs: int = 3
    height: int = 380
    is_wide: bool = True

    def __post_init__(self) -> None:
        if unknown := set(self.reads) - set(READABLE):
            raise ValueError(
                f"reads of panel {self.key!r} has {', '.join(sorted(unknown))}; expected some of "
                f"{', '.join(READABLE)}"
            )

    @property
    def controls(self) -> tuple[str, ...]:
        """What its page has controls for, in their order."""
        return tuple(name for name in CONTROLS if self.has_controls and name in self.reads)

    def made(self, info: Any, theme: Theme) -> go.Figure | Sketch:
        """Draw a record as a browser is sent it, the rugs of its plots at their edges."""
        made = self.drawing(info, theme)
        if "over" in self.reads:
            made = along_steps(made, info.over, is_log=info.is_log_x)
        return with_rugs(made)

    def narrowed(self, info: Any, theme: Theme, wide: Any = None) -> dict[str, Any]:
        """Draw a record as a narrow browser is sent it, as plain data.

        ``wide`` is what a wide one is sent, where that was made already.
        """
        if self.narrow is not None:
            return with_rugs(self.narrow(info, theme)).to_dict()
        return stacked(self.made(info, theme).to_dict() if wide is None else wide)

    def draw(self, info: Any, theme: Theme) -> go.Figure:
        """Draw a record; plotly checks each property."""
        made = self.made(info, theme)
        return made.figure() if isinstance(made, Sketch) else made


@dataclass(frozen=True, kw_only=True)
class Page:
    """Panels that stand together, or a page that the dashboard lays out itself.

    Args:
        title: Its name in the dashboard; the key, capitalized, where empty.
        lead: A sentence below the title.
        letter: The key that opens it after ``g``.
        panels: The panels whose home it is.
        also: Panels of other pages that are shown here too, above its own.
        heading: What its section of a report is called; the title where empty.
        has_layout: Whether the dashboard lays it out itself, around its panels if it has any.
        needs_run: Whether there is nothing to show without a run.
        former: Names that it had once; their addresses lead here.
        path: Its path in addresses; ``/key`` where empty.
    """

    key: str
    title: str = ""
    lead: str = ""
    letter: str = ""
    panels: tuple[Panel, ...] = ()
    also: tuple[Panel, ...] = ()
    heading: str = ""
    has_layout: bool = False
    needs_run: bool = True
    former: tuple[str, ...] = ()
    path: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path or f"/{self.key}")
        object.__setattr__(self, "title", self.title or self.key.capitalize())
        object.__setattr__(self, "heading", self.heading or self.title)

    @property
    def shown(self) -> tuple[Panel, ...]:
        """Every panel on it, from top to bottom."""
        return self.also + self.panels

    @property
    def controls(self) -> tuple[str, ...]:
        """What it has controls for, in their order."""
        asked = {name for panel in self.shown for name in panel.controls}
        return tuple(name for name in CONTROLS if name in asked)

    @property
    def has_steps(self) -> bool:
        """Whether another step changes one of its panels."""
        return any("step" in panel.reads for panel in self.shown)

    def probe_of(self, probes: Iterable[str]) -> str | None:
        """Return which of all probes sets the steps of its panels; None for recorded steps."""
        needs = {need for panel in self.shown for need in panel.needs}
        return needs.pop() if len(needs) == 1 and needs <= set(probes) else None


def checked(pages: Sequence[Page], written: Iterable[Panel]) -> tuple[Page, ...]:
    """Return pages if they and all ``written`` panels go together.

    Raises:
        ValueError: If two pages have one key, path or letter, two panels one key, a page shows
            nothing, or a panel stands on no page, or on several as their own.
    """
    homes = [panel for page in pages for panel in page.panels]
    for what, names in (
        ("page", [page.key for page in pages]),
        ("path", [page.path for page in pages] + [f"/{k}" for page in pages for k in page.former]),
        ("letter", [page.letter for page in pages if page.letter]),
        ("panel", [panel.key for panel in homes]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"{what} {twice[0]!r} is there twice; expected each once")
    for page in pages:
        if not page.shown and not page.has_layout:
            raise ValueError(f"page {page.key!r} has no panel and no layout; expected one of them")
        if borrowed := [panel.key for panel in page.also if panel not in homes]:
            raise ValueError(
                f"page {page.key!r} borrows {borrowed[0]!r}, which is on no page; expected a "
                "panel of another page"
            )
    known = {panel.key: panel for panel in homes}
    for panel in written:
        if known.get(panel.key) is not panel:
            raise ValueError(
                f"panel {panel.key!r} is on no page; expected it among the panels of one of "
                f"{', '.join(page.key for page in pages)}"
            )
    return tuple(pages)

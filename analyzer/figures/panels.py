"""What a panel is: a figure with its words, what it needs, its record and its drawing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from analyzer.analysis.view import View
from analyzer.figures.sketch import Sketch
from analyzer.figures.theme import Theme

__all__ = ["Panel"]


@dataclass(frozen=True)
class Panel:
    """One figure of the catalog with its words.

    Args:
        key: Its name, as in the page's address and in file names.
        page: The page that it stands on.
        title: What the card or section is called.
        how_to_read: A sentence or two for a reader who sees it for the first time.
        needs: Tables, columns or probes without which there is nothing to draw.
        info: Reads and computes what is shown: a frozen record with ``caption`` (a sentence that
            states the finding with its number) and ``table()`` (the data behind the figure).
            Raises NotRecordedError, with the remedy, where the run lacks the data.
        draw: Draws the record; it computes nothing.
        sketch: The same as plain data, for a reader who waits; None where that saves too little.
    """

    key: str
    page: str
    title: str
    how_to_read: str
    needs: tuple[str, ...]
    info: Callable[[View], Any]
    draw: Callable[[Any, Theme], go.Figure]
    sketch: Callable[[Any, Theme], Sketch] | None = None

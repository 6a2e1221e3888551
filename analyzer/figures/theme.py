"""Colors, fonts and axes that all figures share, in light and in dark."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go
from plotly.colors import get_colorscale, sample_colorscale

from analyzer.analysis.numerals import number, power
from analyzer.figures.sketch import Layout
from analyzer.texts import escaped

__all__ = [
    "DARK",
    "LIGHT",
    "PRINT",
    "THEMES",
    "RunStyle",
    "Theme",
    "decade_step",
    "labeled",
    "log_ticks",
    "told_apart",
]

# Okabe and Ito (2008), told apart by color-blind readers; lighter on dark for contrast. Even
# places are runs with shortcuts, odd ones runs without; in print, dash and marker tell them apart.
# The later half is for many runs; where they go around, a dash tells them apart on screen too.
_LIGHT_RUNS = (
    *("#0072B2", "#D55E00", "#009E73", "#B07400", "#8F4F9F", "#A3123A"),
    *("#3346A8", "#7A4A1E", "#4D7C0F", "#C0504D", "#00727A", "#6B6B00"),
)
_DARK_RUNS = (
    *("#5DB7F0", "#FF8A3D", "#3CCBA0", "#F0B93A", "#D79BE3", "#FF7D9C"),
    *("#9DA9FF", "#C79A6B", "#A6D36A", "#FF9E9B", "#5FD3DC", "#CFCB4E"),
)
_DASHES = ("dash", "solid", "dashdot", "dot", "longdash", "solid")
_AROUND = ("solid", "dash", "dot", "dashdot")
_MARKERS = ("square", "circle", "diamond", "triangle-up", "pentagon", "x")
_FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_MOST_LABEL = 64


@dataclass(frozen=True)
class RunStyle:
    """How the lines of one run look: dash and marker by plotly's names."""

    color: str
    dash: str
    marker: str


@dataclass(frozen=True)
class Theme:
    """The look of figures on a light or a dark page, or in print.

    Args:
        faint: Color of what stands behind: the other runs, raw series.
        paper: Background, for what must cover other marks.
        mark: Color of marks for NaN and infinite values.
        zero: Color of cells that are exactly zero.
        runs: Color of each place of the palette.
        scale: Color scale of heatmaps, from small to large.
        middle: Color of no difference, between the colors of two runs.
        lines: First and last place in ``scale`` for lines, apart from the page's own color.
        arcs: One hue from a small shortcut share to a large one.
        has_dashes: Whether runs have dashes and markers of their own beside their color.
    """

    name: str
    text: str
    faint: str
    grid: str
    paper: str
    mark: str
    zero: str
    runs: tuple[str, ...]
    scale: str
    middle: str
    lines: tuple[float, float]
    arcs: tuple[str, ...]
    has_dashes: bool = False

    def style(self, place: int) -> RunStyle:
        """Return the style of one place of the palette; places go around."""
        wrapped = place % len(self.runs)
        if not self.has_dashes:
            dash = _AROUND[place // len(self.runs) % len(_AROUND)]
            return RunStyle(self.runs[wrapped], dash, "circle")
        look = wrapped % len(_DASHES)
        return RunStyle(self.runs[wrapped], _DASHES[look], _MARKERS[look])

    def between(self, first: int, second: int) -> list[list[float | str]]:
        """Return the color scale of what a second run has more than a first: each in its color."""
        ends = (self.style(place).color for place in (first, second))
        return [[0.0, next(ends)], [0.5, self.middle], [1.0, next(ends)]]

    def figure(self, *traces: Any, height: int = 380) -> go.Figure:
        """Return a figure of these traces in this look; its width is that of the page."""
        figure = go.Figure(_blank(self, height))
        figure.add_traces(list(traces))
        return figure

    @property
    def colorscale(self) -> list[list[float | str]]:
        """The color scale of heatmaps, as places and colors."""
        return [[*one] for one in _scale(self.scale)]

    def heat(self, place: float) -> str:
        """Return the color at a place of the color scale of heatmaps, from 0 to 1."""
        return _heat(self.scale, place)

    def depth_colors(self, count: int) -> list[str]:
        """Return colors of lines from input to output."""
        first, last = self.lines
        places = [first + (last - first) * k / max(1, count - 1) for k in range(count)]
        return [self.heat(place) for place in places]

    def layout(self, height: int = 380) -> Layout:
        """Return the layout of a figure in this look; it must not be changed."""
        return _layout(self, height)

    def apply(self, figure: go.Figure, height: int) -> None:
        """Give a figure this look."""
        figure.update_layout(
            template="none",
            height=height,
            font={"family": _FONT, "size": 13, "color": self.text},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            margin={"l": 70, "r": 24, "t": 44, "b": 56},
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            hoverlabel={"font": {"family": _FONT}, "namelength": -1},
            hovermode="closest",
            # What the reader zoomed to stays when new steps arrive.
            uirevision="kept",
        )
        line = {"gridcolor": self.grid, "linecolor": self.grid, "zerolinecolor": self.grid}
        figure.update_xaxes(**line, showgrid=True, zeroline=False, automargin=True, ticks="")
        figure.update_yaxes(**line, showgrid=True, zeroline=False, automargin=True, ticks="")

    def note(self, figure: go.Figure, text: str, **place: Any) -> None:
        """Write a sentence into a figure, in its middle unless told otherwise."""
        where = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
        font = {"size": 13, "color": self.text}
        figure.add_annotation({"text": text, "font": font} | where | place)


# Plotly takes 8 ms to give a figure its look, and one to copy it.
@lru_cache(64)
def _blank(theme: Theme, height: int) -> go.Figure:
    figure = go.Figure()
    theme.apply(figure, height)
    return figure


@lru_cache(64)
def _layout(theme: Theme, height: int) -> Layout:
    layout: Layout = _blank(theme, height).to_dict()["layout"]
    return layout


# Of the light page, and of the dark one.
_LOOK: dict[str, tuple[Any, Any]] = {
    "name": ("light", "dark"),
    "text": ("#22303f", "#dce4ec"),
    "faint": ("#a9b3bd", "#66717d"),
    "grid": ("#e6eaee", "#313a44"),
    "paper": ("#ffffff", "#1a1f25"),
    "mark": ("#CC1F8A", "#FF6FC4"),
    "zero": ("#9aa3ad", "#59626c"),
    "runs": (_LIGHT_RUNS, _DARK_RUNS),
    "scale": ("Cividis", "Cividis"),
    "middle": ("#f4f4f4", "#262c33"),
    "lines": ((0.05, 0.8), (0.35, 1.0)),
    "arcs": (
        ("#b9cfe4", "#8db4d8", "#5a93c7", "#2a6faf", "#084a86"),
        ("#4a6a8c", "#5581ad", "#6aa0d4", "#94c1ec", "#cfe6fc"),
    ),
}
LIGHT, DARK = (Theme(**{key: pair[k] for key, pair in _LOOK.items()}) for k in range(2))
PRINT = replace(LIGHT, name="print", has_dashes=True)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


# A name of a color scale is looked up among all of plotly's, which takes 2 ms.
@lru_cache(maxsize=8)
def _scale(name: str) -> tuple[tuple[float | str, ...], ...]:
    return tuple(tuple(one) for one in get_colorscale(name))


@lru_cache(maxsize=4096)
def _heat(scale: str, place: float) -> str:
    (color,) = sample_colorscale([[*one] for one in _scale(scale)], [place], colortype="tuple")
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)


# Those of a thousand layers are asked for again with each figure.
@lru_cache(maxsize=16_384)
def labeled(text: str, most: int = _MOST_LABEL) -> str:
    """Return a name from a run as text that plotly shows as it is, cut in its middle if long."""
    if len(text) > most:
        half = (most - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return escaped(text, "html")


def told_apart(texts: Iterable[str]) -> list[str]:
    """Return texts with a number after each that stands there before: names that look alike cut."""
    seen: Counter[str] = Counter()
    found = []
    for text in texts:
        seen[text] += 1
        found.append(text if seen[text] == 1 else f"{text} ({seen[text]})")
    return found


def decade_step(decades: float, most: int = 6) -> int:
    """Return how many decades lie between two ticks: 1, 2, 3, 5, 10, 20, 30, 50, …."""
    sizes = (size * 10**k for k in range(5) for size in (1, 2, 3, 5))
    return next((size for size in sizes if size * most >= decades), 100_000)


def log_ticks(low: float, high: float, most: int = 6) -> tuple[Sequence[float], Sequence[str]]:
    """Return ticks of a color bar that shows decimal logarithms: about ``most`` places and texts.

    Such as ``-4`` and ``10⁻⁴``; between decades also twice and five times. Plotly has no
    logarithmic color scale and writes ``100µ`` elsewhere.
    """
    if high - low > 2.2:
        step = decade_step(high - low, most)
        decades = range(math.ceil(low / step) * step, math.floor(high) + 1, step)
        return [float(d) for d in decades], [power(d) for d in decades]
    fine = [
        d + f for d in range(int(low // 1), int(high // 1) + 2) for f in (0.0, 0.30103, 0.69897)
    ]
    shown = [place for place in fine if low <= place <= high] or [(low + high) / 2]
    return shown, [number(float(f"{10.0**place:.1g}")) for place in shown]

"""The static twin of a figure inside a report: a small image that prints, and needs no script."""

import io
import re
import warnings
from typing import Any
from urllib.parse import quote

from analyzer.analysis.numerals import power

from .paper import drawn_figure
from .paper_style import METADATA, SCREEN, paper_style

__all__ = ["svg_address", "twin_svg"]

# As wide as a page prints it, and no higher than a page has room for beside its words.
_INCHES, _MOST_HIGH = 7.2, 5.0
_MOST_CELLS = 300
_DECADE = re.compile(r"\$\\mathdefault\{(-?)(?:([\d.]+)\\times)?10\^\{(-?\d+)\}\}\$")
# A reader's machine has one of these; the first is the widest, so that words keep their room.
_FONTS = "DejaVu Sans,Verdana,Arial,sans-serif"

# What a browser does not need: where the file comes from, names of groups, rotations by nothing.
_NEEDLESS = (
    re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r' id="[\w.]+_\d+"'),
    re.compile(r' transform="rotate\(-?0(?:\.0)? [^)]*\)"'),
    re.compile(r"font-family: [^;\"]*;? ?"),
    re.compile(r"(?<=>)\s+(?=<)"),
)
_PATH = re.compile(r'(?<= d=")[^"]+')
_PLACE = re.compile(r'(?<= [xy]=")-?\d+\.\d+')
_STYLE = re.compile(r'(?<=style=")[^"]+')
_DIGITS = re.compile(r"(\.\d)\d+")
# What an address may hold as it is, but for the ampersand.
_PLAIN = "!*'();:@=+$,/?-_.~"
_TAG = re.compile(r"<[^>']*>")


def twin_svg(figure: Any, width: float = _INCHES) -> str:
    """Return the twin that a report shows in print and without scripts.

    Args:
        figure: A plotly figure of the traces in ``paper_traces.DRAWERS``.
        width: Width in inches.

    Returns:
        SVG with words as text; places in it are right to a tenth of a point. Equal figures give
        equal text.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    with paper_style(SCREEN), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        drawn = drawn_figure(figure, width, _MOST_CELLS, _MOST_HIGH)
        _write_decades(drawn)
        # The same as `savefig`, which would draw everything a second time to lay it out.
        drawn.get_layout_engine().execute(drawn)
        drawn.set_layout_engine("none")
        canvas: Any = FigureCanvasSVG(drawn)
        canvas.print_svg(buffer, metadata=METADATA["svg"])
    return _small(buffer.getvalue().decode())


def _write_decades(drawn: Any) -> None:
    """Write powers of ten as text: typesetting them as formulas takes most of the time."""
    from matplotlib.ticker import LogFormatter, LogFormatterSciNotation

    class Decades(LogFormatterSciNotation):
        """``10⁻³`` where matplotlib has a formula."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return _DECADE.sub(_as_text, super().__call__(x, pos))

    for axes in drawn.axes:
        for side in (axes.xaxis, axes.yaxis):
            if isinstance(side.get_major_formatter(), LogFormatter):
                side.set_major_formatter(Decades())
                side.set_minor_formatter(Decades(labelOnlyBase=False))


def _as_text(found: re.Match[str]) -> str:
    sign, factor, exponent = found.groups()
    return f"{sign}{f'{factor}×' if factor else ''}{power(int(exponent))}"


def _small(svg: str) -> str:
    """The same image in a quarter of the letters."""
    for needless in _NEEDLESS:
        svg = needless.sub("", svg)
    svg = _PATH.sub(lambda path: _short_path(path[0]), svg)
    svg = _PLACE.sub(lambda place: f"{float(place[0]):.1f}", svg)
    svg = _STYLE.sub(lambda style: style[0].replace(": ", ":").replace("; ", ";"), svg)
    return svg.replace("<svg ", f'<svg font-family="{_FONTS}" ', 1).strip()


def _short_path(path: str) -> str:
    """Tenths of a point, which is less than a printer shows, and no needless spaces."""
    path = _DIGITS.sub(r"\1", " ".join(path.split()))
    return re.sub(r"(?<=\d) (?=[-\d])", ",", re.sub(r" ?([A-Za-z]) ?", r"\1", path))


def svg_address(svg: str) -> str:
    """Return an image as an address within a page, without a letter that HTML must escape."""
    # Most of it is plain letters, which base64 would make a third longer.
    turned = _TAG.sub(lambda tag: tag[0].replace('"', "'"), svg)
    return f"data:image/svg+xml,{quote(turned, safe=_PLAIN)}"

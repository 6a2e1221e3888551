"""A plotly figure drawn by matplotlib: for a paper, and as the static figure of a report."""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from analyzer.analysis.numerals import power
from analyzer.errors import AnalyzerError
from analyzer.figures.csv_text import csv_text

from .paper_axes import (
    Panes,
    axis_sides,
    break_title,
    finish_axes,
    layout_axis,
    overshoot,
    panes,
)
from .paper_marks import draw_annotations, draw_color_bars, draw_legend, draw_shapes
from .paper_traces import DRAWERS, draw_rug, values_of
from .story import Story
from .svg import small_svg
from .tables import figure_text

__all__ = [
    "FORMATS",
    "WIDTHS",
    "drawn_figure",
    "figure_bytes",
    "formats_in",
    "paper_style",
    "static_svg",
    "width_in_inches",
    "write_figures",
]

WIDTHS = {"acl": 3.03, "cvpr": 3.25, "icml": 3.25, "ieee": 3.5, "neurips": 5.5}
"""Width of a column (of the text, where there is one column) in inches, by the style files."""

FORMATS = ("pdf", "svg", "png")

# No time, no host: equal figures are equal files.
_METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}
_UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(in|cm|mm|pt)")

_PAPER = Path(__file__).parent / "templates" / "paper.mplstyle"
# Over that, for the static figures of a report.
_SCREEN: dict[str, Any] = {
    "figure.dpi": 160,
    "font.family": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
}

_PIXELS_WIDE = 900
_MOST_VECTORS = 10_000
# A page of text is nine inches high, and the caption stands on it, too.
_MOST_HIGH = 7.2
_LEAST_ROW, _MOST_TRIES = 0.62, 6

# A static figure is as wide as a page prints it, and leaves room for its words below.
_STATIC_INCHES, _STATIC_MOST_HIGH = 7.2, 5.0
_STATIC_CELLS = 300
_DECADE = re.compile(r"\$\\mathdefault\{(-?)(?:([\d.]+)\\times)?10\^\{(-?\d+)\}\}\$")


def width_in_inches(text: str) -> float:
    """Return the width in inches, from 1 to 20, that a venue or a length names.

    Args:
        text: A key of ``WIDTHS``, or a length such as ``3.25in``, ``84mm``, ``8.4cm``, ``240pt``.
    """
    known = WIDTHS.get(text.strip().lower())
    if known is not None:
        return known
    length = _LENGTH.fullmatch(text.strip().lower())
    inches = float(length[1]) * _UNITS[length[2]] if length else 0.0
    if not 1 <= inches <= 20:
        venues = ", ".join(WIDTHS)
        raise AnalyzerError(
            f"--width is {text!r}; expected {venues}, or a length from 1in to 20in such as 3.25in. "
            "Try --width icml."
        )
    return inches


def formats_in(text: str) -> tuple[str, ...]:
    """Return the formats that an option names, with commas between them, each once."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise AnalyzerError(
            f"--format is {text!r}; expected some of {', '.join(FORMATS)}, with commas between "
            "them. Try --format pdf,svg."
        )
    return names


@contextmanager
def paper_style(extra: dict[str, Any] | None = None, file: Path | None = None) -> Iterator[None]:
    """Draw in the house style, whatever the user's matplotlib is set to.

    Args:
        extra: Settings over those of the house.
        file: A matplotlib style file over both.
    """
    import matplotlib as mpl

    settings = {**_settings_in(_PAPER), **(extra or {}), **(_settings_in(file) if file else {})}
    # Ticks beyond the largest number are left out by matplotlib itself.
    quiet = np.errstate(over="ignore", invalid="ignore")
    with mpl.rc_context(), warnings.catch_warnings(), quiet:
        # A letter that no font has is drawn as a box; the data beside the figure has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Two hundred panes in a column of a page do not fit; they are drawn nevertheless.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        # An axis of logarithms on which nothing is positive is drawn empty.
        warnings.filterwarnings("ignore", message="Data has no positive values")
        mpl.rcdefaults()
        for key, value in settings.items():
            mpl.rcParams[key] = value  # type: ignore[index,unused-ignore]
        yield


def _settings_in(file: Path) -> dict[str, Any]:
    """The settings of a style file; matplotlib logs some mistakes in it where it does not raise."""
    import matplotlib as mpl

    complaints: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("matplotlib")
    was, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with mpl.rc_context():
            found = mpl.rc_params_from_file(file, use_default_template=False)
        if complaints:
            raise ValueError(complaints[0])
        return {key: found[key] for key in found if key != "backend"}
    except (OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AnalyzerError(
            f"--style '{file}' cannot be read ({reason}); expected a matplotlib style file with "
            "lines such as 'font.size: 8'. Check the path and its lines."
        ) from error
    finally:
        logger.removeHandler(handler)
        logger.propagate = was


def write_figures(
    story: Story,
    folder: Path,
    *,
    width: float = 3.25,
    formats: Sequence[str] = ("pdf",),
    style: Path | None = None,
) -> list[Path]:
    r"""Write every figure of a story as ``<key>.<format>``, with its caption and the CSV behind it.

    They are ``width`` inches wide, in the house style under that of a matplotlib style file; files
    in the folder are replaced. The caption is in ``<key>.tex``, for ``\input``: what the figure
    shows, and how to read it. Returned are the figures in reading order, without these files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in story.figures:
        for kind in formats:
            path = folder / f"{figure.key}.{kind}"
            path.write_bytes(figure_bytes(figure.drawn, kind, width, style=style))
            written.append(path)
        words = figure_text(figure.key, f"{figure.caption} {figure.how_to_read}")
        (folder / f"{figure.key}.tex").write_text(words, encoding="utf-8", newline="\n")
        text = csv_text(figure.table)
        (folder / f"{figure.key}.csv").write_text(text, encoding="utf-8", newline="\n")
    return written


def figure_bytes(
    figure: Any, kind: str, width: float = 3.25, *, style: Path | None = None
) -> bytes:
    """Return a plotly figure as a file for a paper: the same numbers, as vectors.

    Nothing is read or computed again. Equal figures give equal bytes; fonts are embedded as
    TrueType; dashes and markers tell lines apart where there is no color.

    Args:
        figure: A plotly figure of the traces in ``paper_traces.DRAWERS``; another one is an error.
        kind: ``pdf``, ``svg`` or ``png``.
        width: Width in inches; the height follows from that of the figure.
        style: A matplotlib style file over the house style.
    """
    if kind not in FORMATS:
        raise ValueError(f"format is {kind!r}; expected one of {', '.join(FORMATS)}")
    buffer = io.BytesIO()
    with paper_style(file=style):
        drawn_figure(figure, width).savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()


def drawn_figure(
    figure: Any,
    width: float = 3.25,
    most_vectors: int = _MOST_VECTORS,
    most_high: float = _MOST_HIGH,
    finish: Callable[[Any], None] | None = None,
) -> Any:
    """Return the matplotlib figure of a plotly figure, ``width`` inches wide, in the style set.

    Heatmaps and surfaces of more cells than ``most_vectors`` become an image within the file; it is
    at most ``most_high`` inches high where its rows do not need more. What ``finish`` changes of it
    is laid out with the rest.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas: Any = Figure(figsize=(width, _height(figure, width, most_high)))
    FigureCanvasAgg(canvas)
    canvas.most_vectors = most_vectors
    made = panes(figure, canvas)
    drawn = [bar for trace in figure.data for bar in _draw(trace, made)]
    finish_axes(figure, made)
    draw_shapes(figure, made)
    draw_annotations(figure, made)
    draw_color_bars(figure, made, drawn)
    draw_legend(figure, made)
    if finish is not None:
        finish(canvas)
    _fit(canvas, list(made.flat.values()) + list(made.scenes.values()))
    return canvas


def _fit(canvas: Any, plots: list[Any]) -> None:
    """Break titles of axes that are longer than their axes, and make room until rows are high."""
    for _ in range(_MOST_TRIES):
        canvas.get_layout_engine().execute(canvas)
        width, height = canvas.get_size_inches()
        broken = [break_title(side) for axes in canvas.axes for side in axis_sides(axes)]
        places = [axes.get_position() for axes in plots]
        short = max(_LEAST_ROW - min(place.height for place in places) * height, 0.0)
        over = max(map(overshoot, canvas.axes))
        if not short and over < 0.01 and not any(broken):
            return
        rows = len({round(place.y0, 2) for place in places})
        canvas.set_size_inches(width, height + rows * short + 2 * over)
    canvas.get_layout_engine().execute(canvas)


def _height(figure: Any, width: float, most: float) -> float:
    """The height that keeps the proportions of a screen, at least as high as its rows need."""
    sides = {t.yaxis or "y" for t in figure.data if hasattr(t, "yaxis")}
    # Panes beside each other are one row; an axis over another one has no place of its own.
    rows = len({layout_axis(figure.layout, side).domain for side in sides})
    pixels = figure.layout.height or 450
    # A narrow column needs more height for its words than a screen of the same shape.
    share = max(pixels / _PIXELS_WIDE, 0.62 if width < 5 else 0.4)
    return float(max(min(width * share, most), min(0.9 * rows, 8.5)))


def _draw(trace: Any, made: Panes) -> list[tuple[str, Any, Any]]:
    """Draw one trace; return its color axis, its axes and what the color bar describes."""
    if trace.visible not in (None, True):
        return []
    if trace.type not in DRAWERS:
        raise ValueError(
            f"a figure has a trace of type {trace.type!r}; expected one of {', '.join(DRAWERS)}. "
            "Add a drawer to reports/paper_traces.py and the trace to reports/bundle/entry.js."
        )
    if hasattr(trace, "scene"):
        axes, x, y = made.scenes[trace.scene or "scene"], values_of(trace.x), values_of(trace.y)
    else:
        names = trace.xaxis or "x", trace.yaxis or "y"
        if names in made.rugs:
            draw_rug(made.rugs[names], trace)
            return []
        axes = made.flat[names]
        x = values_of(trace.x, made.categories.get(names[0]))
        y = values_of(trace.y, made.categories.get(names[1]))
    drawn = DRAWERS[trace.type](axes, trace, x, y)
    return [] if drawn is None else [(trace.coloraxis, axes, drawn)]


def static_svg(figure: Any) -> str:
    """Return the static figure that a report shows in print and without scripts.

    It is SVG with words as text; places in it are right to a tenth of a point. Equal figures give
    equal text.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    with paper_style(_SCREEN):
        sizes = (_STATIC_INCHES, _STATIC_CELLS, _STATIC_MOST_HIGH)
        drawn = drawn_figure(figure, *sizes, finish=_write_decades)
        # The same as `savefig`, which would lay everything out once more, and draw it for that.
        drawn.set_layout_engine("none")
        canvas: Any = FigureCanvasSVG(drawn)
        canvas.print_svg(buffer, metadata=_METADATA["svg"])
    return small_svg(buffer.getvalue().decode())


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

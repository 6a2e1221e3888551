"""What venues ask of a figure: width, type size, embedded fonts, bytes that can be made again."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analyzer.errors import AnalyzerError

__all__ = ["FORMATS", "METADATA", "WIDTHS", "paper_style", "width_in_inches"]

WIDTHS = {"acl": 3.03, "cvpr": 3.25, "icml": 3.25, "ieee": 3.5, "neurips": 5.5}
"""Width of a column (of the text, where there is one column) in inches, by the style files."""

FORMATS = ("pdf", "svg", "png")

# No time, no host: equal figures are equal files.
METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}

_UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(in|cm|mm|pt)")

_RC: dict[str, Any] = {
    "axes.edgecolor": "#555555",
    "axes.grid": False,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "axes.unicode_minus": True,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.family": ["STIXGeneral", "DejaVu Sans"],
    "font.size": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "mathtext.fontset": "stix",
    "path.simplify": True,
    # Type 3, the default, is refused by several venues.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "gradient-flow-analyzer",
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
}

SCREEN: dict[str, Any] = {
    "figure.dpi": 160,
    "font.family": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
}
"""What differs for the static twins inside a report."""


def width_in_inches(text: str) -> float:
    """Return the width that a venue or a length names.

    Args:
        text: A key of ``WIDTHS``, or a length such as ``3.25in``, ``84mm``, ``8.4cm``, ``240pt``.

    Returns:
        Inches, from 1 to 20.

    Raises:
        AnalyzerError: If it is neither.
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


@contextmanager
def paper_style(extra: dict[str, Any] | None = None, file: Path | None = None) -> Iterator[None]:
    """Draw in the house style, whatever the user's matplotlib is set to.

    Args:
        extra: Settings over those of the house.
        file: A matplotlib style file over both.

    Raises:
        AnalyzerError: If the file cannot be read as a style.
    """
    import matplotlib as mpl

    settings = {**_RC, **(extra or {}), **(_settings_in(file) if file else {})}
    with mpl.rc_context():
        mpl.rcdefaults()
        for key, value in settings.items():
            mpl.rcParams[key] = value  # type: ignore[index,unused-ignore]
        yield


def _settings_in(file: Path) -> dict[str, Any]:
    """The settings of a style file, each with its line where one is wrong."""
    import matplotlib as mpl

    try:
        with mpl.rc_context(), _complaints() as complaints:
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


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what matplotlib writes to its log about a file, where it does not raise."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("matplotlib")
    was, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = was

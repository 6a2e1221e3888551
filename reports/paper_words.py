"""Text of plotly figures as matplotlib draws it, and their colors."""

import html
import re
from typing import Any

__all__ = ["matplotlib_color", "plain_text"]

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:b|i|em|strong|span|sub|sup|u|s|a)(?:\s[^<>]*)?>", re.IGNORECASE)
_RGB = re.compile(r"rgba?\(([^)]*)\)")


def plain_text(text: Any) -> str:
    """Return the text of a plotly title without its markup, and safe from mathtext.

    Only the tags that plotly itself reads are markup; anything else is text, layer names included.
    """
    words = _TAG.sub("", _BREAK.sub("\n", str(text or "")))
    # A lone dollar is text for matplotlib, two would begin a formula.
    return html.unescape(words).replace("$", r"\$")


def matplotlib_color(color: Any, default: str = "#000000") -> Any:
    """Return a CSS color as matplotlib reads it."""
    if color is None:
        return default
    found = _RGB.fullmatch(str(color).replace(" ", ""))
    if not found:
        return "none" if str(color) == "transparent" else str(color)
    parts = [float(part) for part in found[1].split(",")]
    return (*(value / 255 for value in parts[:3]), *parts[3:4])

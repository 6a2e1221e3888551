"""A figure as the script of a report draws it: on white, with what differs on a dark page."""

import json
from collections.abc import Iterator
from typing import Any

from analyzer.figures.theme import DARK

from .story import Figure

__all__ = ["screen_figure", "what_differs"]

Path = list[str | int]


def screen_figure(figure: Figure) -> dict[str, Any]:
    """Return a figure as JSON values.

    Args:
        figure: A figure of a story.

    Returns:
        ``light``: the figure on white; ``dark``: places in it, each with its value on a dark page.
    """
    light = json.loads(figure.drawn.to_json())
    dark = json.loads(figure.draw(figure.info, DARK).to_json())
    return {"light": light, "dark": list(what_differs(light, dark))}


def what_differs(light: Any, dark: Any, at: Path | None = None) -> Iterator[tuple[Path, Any]]:
    """Yield the places at which two JSON values differ, each with the value of the second.

    Args:
        light: The first value.
        dark: The second.
        at: Where they stand.
    """
    place = at or []
    if isinstance(light, dict) and isinstance(dark, dict) and light.keys() == dark.keys():
        for key in light:
            yield from what_differs(light[key], dark[key], [*place, key])
    elif isinstance(light, list) and isinstance(dark, list) and len(light) == len(dark):
        for index, pair in enumerate(zip(light, dark, strict=True)):
            yield from what_differs(*pair, [*place, index])
    elif light != dark:
        yield place, dark

"""The commands that are named already and not built in this version: they say so and exit 2."""

from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from analyzer.cli import not_built

__all__ = ["reproduce", "study"]

_Arguments = Annotated[list[str] | None, typer.Argument(metavar="ARGS")]


def _planned(name: str, sentence: str, example: str) -> Callable[[list[str] | None], NoReturn]:
    """Return the function of one command: any arguments, and the same answer."""

    def command(arguments: _Arguments = None) -> NoReturn:
        raise not_built(name)

    command.__name__ = name
    command.__doc__ = f"{sentence} Not built yet.\n\nExample:\n    {example}\n"
    return command


study = _planned(
    "study", "Sweep depths, shortcuts and seeds.", "analyzer study --depths 8,20,56 --seeds 3"
)
reproduce = _planned(
    "reproduce",
    "Repeat a published experiment at the scale of this machine.",
    "analyzer reproduce veit2016",
)

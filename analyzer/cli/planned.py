"""The commands that are named already and not built in this version: they say so and exit 2."""

from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

import analyzer
from analyzer.errors import AnalyzerError

__all__ = [
    "compare",
    "dashboard",
    "diagnose",
    "explain",
    "not_built",
    "probe",
    "report",
    "reproduce",
    "study",
]

_Arguments = Annotated[list[str] | None, typer.Argument(metavar="ARGS")]


def not_built(what: str) -> AnalyzerError:
    """Return the error for something that this version names and does not have.

    Args:
        what: The command or option as the user typed it.

    Returns:
        The error to raise.
    """
    return AnalyzerError(
        f"'{what}' is not built yet in version {analyzer.__version__}; "
        "'analyzer --help' and 'analyzer record --help' mark what is not. Leave it out for now."
    )


def _planned(name: str, sentence: str, example: str) -> Callable[[list[str] | None], NoReturn]:
    """Return the function of one command: any arguments, and the same answer."""

    def command(arguments: _Arguments = None) -> NoReturn:
        raise not_built(name)

    command.__name__ = name
    command.__doc__ = f"{sentence} Not built yet.\n\nExample:\n    {example}\n"
    return command


diagnose = _planned("diagnose", "List the findings of a run.", "analyzer diagnose latest --json")
compare = _planned(
    "compare", "Put two runs side by side.", "analyzer compare runs/plain runs/residual"
)
explain = _planned(
    "explain",
    "Say which mechanism separates a plain and a residual run, claim by claim.",
    "analyzer explain runs/mine-plain runs/mine",
)
probe = _planned(
    "probe",
    "Run probes on the checkpoints of a finished run.",
    "analyzer probe latest paths landscape --step last",
)
study = _planned(
    "study", "Sweep depths, shortcuts and seeds.", "analyzer study --depths 8,20,56 --seeds 3"
)
reproduce = _planned(
    "reproduce",
    "Repeat a published experiment at the scale of this machine.",
    "analyzer reproduce veit2016",
)
dashboard = _planned("dashboard", "Open the dashboard.", "analyzer dashboard runs --port 8050")
report = _planned(
    "report", "Write a static report.", "analyzer report latest -o report.html --figures figures"
)

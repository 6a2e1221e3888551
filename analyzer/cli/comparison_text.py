"""Two runs side by side as text for the terminal."""

import textwrap
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyzer.analysis.run_comparison import ComparedRun, Comparison
from analyzer.cli.terminal import Signs, number, printable, signs, table_box

__all__ = ["print_comparison"]

_NAME = 40

_ROWS: tuple[tuple[str, Callable[[ComparedRun, str], str]], ...] = (
    ("status", lambda run, none: run.status),
    ("steps", lambda run, none: f"{run.steps:,}"),
    ("layers", lambda run, none: f"{run.layers:,}"),
    ("joins", lambda run, none: f"{run.joins:,}"),
    ("shortcut share, median", lambda run, none: number(run.shortcut_share, none)),
    ("gain per layer, last step", lambda run, none: number(run.gain, none)),
    ("decades fallen, last step", lambda run, none: number(run.decades_fallen, none)),
    ("first loss", lambda run, none: number(run.first_loss, none)),
    ("final loss", lambda run, none: number(run.final_loss, none)),
    ("best loss", lambda run, none: number(run.best_loss, none)),
    ("seconds", lambda run, none: number(run.seconds, none)),
    ("findings", lambda run, none: ", ".join(run.findings) or "none"),
)


def print_comparison(compared: Comparison, console: Console) -> None:
    """Print the numbers of both runs, their profiles by relative depth, and what separates them."""
    marks = signs()
    console.print(_numbers(compared, marks))
    console.print(
        f"output gradient norm {marks.norm} by relative depth (0 first layer, 1 last), steps "
        f"{compared.left.step} and {compared.right.step}",
        soft_wrap=True,
    )
    console.print(_profile(compared, marks))
    for line in textwrap.wrap(printable(compared.sentence, 1000), console.width):
        console.print(line, soft_wrap=True)


def _table(*headings: str) -> Table:
    """An empty table with these columns."""
    table = Table(box=table_box(), pad_edge=False, show_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place else "left")
    return table


def _numbers(compared: Comparison, marks: Signs) -> Table:
    """The table of numbers."""
    names = (printable(run.name, _NAME) for run in (compared.left, compared.right))
    table = _table("", *names)
    for label, cell in _ROWS:
        cells = (cell(run, marks.missing) for run in (compared.left, compared.right))
        table.add_row(*map(Text, (label, *cells)))
    return table


def _profile(compared: Comparison, marks: Signs) -> Table:
    """The table of profiles."""
    names = (printable(run.name, _NAME) for run in (compared.left, compared.right))
    table = _table("depth", *names, "decades apart")
    for row in compared.profile:
        cells = (number(value, marks.missing) for value in (row.left, row.right, row.log10_ratio))
        table.add_row(*map(Text, (f"{row.relative_depth:.1f}", *cells)))
    return table

"""``analyzer compare``: two runs side by side."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.cli import RunName, RunsDir

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from analyzer.analysis.comparison import Comparison

__all__ = ["compare"]

_NAME = 40
# What stands beside each number of the two runs: its attribute, and its words.
_NUMBERS = (
    ("shortcut_share", "shortcut share, median"),
    ("gain", "gain per layer, last step"),
    ("decades_fallen", "decades fallen, last step"),
    ("first_loss", "first loss"),
    ("final_loss", "final loss"),
    ("best_loss", "best loss"),
    ("seconds", "seconds"),
)


def compare(
    left: RunName,
    right: Annotated[str, typer.Argument(metavar="RUN", help="The other run.")],
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON; a number that is not finite is a text.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Put two runs side by side, on a depth-relative axis from the first layer to the last.

    \b
    Example:
        analyzer compare runs/mine-plain runs/mine
        analyzer compare latest runs/before --json
    """  # noqa: D301 -- click reads the control character
    from analyzer.analysis.comparison import compare_runs
    from analyzer.cli.json_text import json_text
    from analyzer.cli.terminal import console
    from analyzer.storage.catalog import resolve_run
    from analyzer.storage.run import open_run

    runs = [open_run(resolve_run(name, runs_dir)) for name in (left, right)]
    compared = compare_runs(*runs)
    if json:
        typer.echo(json_text(compared))
    else:
        _print_comparison(compared, console())


def _print_comparison(compared: "Comparison", console: "Console") -> None:
    """Print the numbers of both runs, their profiles by relative depth, and what separates them."""
    from analyzer.cli.terminal import number, printable, signs

    marks, runs = signs(), (compared.left, compared.right)
    names = [printable(run.name, _NAME) for run in runs]
    rows = [
        ["status", *(run.status for run in runs)],
        *(
            [what, *(f"{getattr(run, what):,}" for run in runs)]
            for what in ("steps", "layers", "joins")
        ),
        *(
            [words, *(number(getattr(run, key), marks.missing) for run in runs)]
            for key, words in _NUMBERS
        ),
        ["findings", *(", ".join(run.findings) or "none" for run in runs)],
    ]
    console.print(_table(["", *names], rows))
    steps = " and ".join(str(run.step) for run in runs)
    console.print(
        f"output gradient norm {marks.norm} by relative depth (0 first layer, 1 last), "
        f"steps {steps}",
        soft_wrap=True,
    )
    places = [
        [f"{row.relative_depth:.1f}"]
        + [number(value, marks.missing) for value in (row.left, row.right, row.log10_ratio)]
        for row in compared.profile
    ]
    console.print(_table(["depth", *names, "decades apart"], places))
    for line in textwrap.wrap(printable(compared.sentence, 1000), console.width):
        console.print(line, soft_wrap=True)


def _table(headings: list[str], rows: list[list[str]]) -> "Table":
    """A table whose first column has words, the others numbers."""
    from rich.table import Table
    from rich.text import Text

    from analyzer.cli.terminal import table_box

    table = Table(box=table_box(), pad_edge=False, show_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table

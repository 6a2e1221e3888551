"""What `analyzer study` reads of its options, and what it prints."""

import contextlib
import os
import re
import runpy
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from analyzer.errors import AnalyzerError
from analyzer.options import ZOO

if TYPE_CHECKING:
    from analyzer.storage.study import Study
    from analyzer.studies.coordinates import CoordinateCheck
    from analyzer.studies.plan import Plan
    from analyzer.studies.trial import Estimate

__all__ = [
    "grid_axis",
    "print_coordinate_check",
    "print_dry_run",
    "print_result",
    "progress",
    "values",
]

_MOST_LISTED = 40
# No integer of a table is.
_TOO_LARGE = 2**63


def grid_axis(text: str, *, is_script: bool) -> tuple[str, list[Any]]:
    """Return an argument and its values from ``--lr 0.1,0.01``, ``lr=0.1,0.01`` or ``lr 0.1,0.01``.

    Raises:
        AnalyzerError: If it is neither, or names no value.
    """
    from analyzer.studies.plan import plain_name

    found = re.fullmatch(r"\s*(-{0,2}[A-Za-z_][\w-]*)(?:\s*=\s*|\s+)(.+?)\s*", text)
    if found is None:
        raise AnalyzerError(
            f"--grid {shlex.quote(text)} is no argument with values; expected as in "
            '--grid "--lr 0.1,0.01"'
        )
    name = found[1]
    if is_script and not name.startswith("-"):
        name = f"--{name}"
    return name if is_script else plain_name(name), values(found[2], "--grid")


def values(text: str, option: str, kind: type = str) -> list[Any]:
    """Return the values in a list with commas, of one type or as what they read like.

    Raises:
        AnalyzerError: If one is not of the type, or there is none.
    """
    words = [word.strip() for word in text.split(",")]
    try:
        if not all(words):
            raise ValueError("an empty value")
        found = [_read(word) if kind is str else kind(word) for word in words]
        if not all(isinstance(one, str) or abs(one) < _TOO_LARGE for one in found):
            raise ValueError("one is not finite, or too large")
        return found
    except ValueError as error:
        name = {int: "whole numbers", float: "numbers"}.get(kind, "values")
        raise AnalyzerError(
            f"{option} is {text!r} ({error}); expected {name} with commas between them"
        ) from error


def _read(word: str) -> Any:
    """A number where it reads like one that a plan can hold; else the text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if abs(found := kind(word)) < _TOO_LARGE:
                return found
    return word


def print_result(done: "Study") -> int:
    """Print how many points there are, the table by depth, what failed, and what to do next."""
    from analyzer.cli.terminal import console, number, printable

    screen = console()
    points = done.points
    failed = [point for point in points if point.status == "failed"]
    waiting = sum(point.status not in ("finished", "failed") for point in points)
    rows = done.summary()
    counts = f"{len(points) - len(failed) - waiting} finished, {len(failed)} failed"
    if waiting:  # a study of a file whose folder has points that the command did not name
        counts += f", {waiting} not run: this command names them not"
    screen.print(f"{len(points)} points, {counts}", soft_wrap=True)
    names = [*done.axes, "final_loss", "error_rate", "gain", "path_length"]
    _print_table(rows, [name for name in names if name in rows], screen, number)
    for point in failed:
        screen.print(
            f"failed: {printable(point.name, 100)}: {printable(point.error or '', 300)}",
            soft_wrap=True,
        )
    if "shortcuts" in done.axes:
        odd = rows[(rows["shortcuts"] == "off") & (rows["has_shortcuts"] == True)]  # noqa: E712
        if len(odd):
            listed = printable(", ".join(odd["point"]), 300)
            text = f"planned without shortcuts, and gradients flow through some: {listed}"
            screen.print(text, soft_wrap=True)
    here = Path.cwd()
    is_below = done.path.is_relative_to(here) and done.path != here
    where = str(done.path.relative_to(here) if is_below else done.path)
    if failed:
        again = f"analyzer study --study {where} --retry"
        if not done.target.startswith(ZOO):  # no code is run because a folder names it
            again = "the same command with --retry"
        screen.print(f"Run them again: {again}", soft_wrap=True)
    if done.is_script and _seeds_change_nothing(rows, done.axes):
        text = 'the script sets its own seed, so all seeds give the same. Let it take one: --grid "'
        screen.print(f'{text}--seed 0,1"', soft_wrap=True)
    screen.print(
        f"Look closer: analyzer report {where}; analyzer dashboard {where}", soft_wrap=True
    )
    return 1 if failed else 0


def _seeds_change_nothing(rows: Any, axes: dict[str, list[Any]]) -> bool:
    """Whether points that differ in their seed alone all end at the same loss."""
    if len(axes.get("seed", ())) < 2:
        return False
    others = [name for name in axes if name != "seed"]
    known = rows[rows["final_loss"].notna()]
    groups = [part for _, part in known.groupby(others)] if others else [known]
    several = [part["final_loss"] for part in groups if len(part) > 1]
    return bool(several) and all(losses.nunique() == 1 for losses in several)


def _print_table(rows: Any, names: list[str], screen: Any, number: Any) -> None:
    """Medians over seeds, one row for each other combination of arguments."""
    from rich.table import Table
    from rich.text import Text

    from analyzer.cli.terminal import printable, table_box

    numbers = [
        name for name in names if name in ("final_loss", "error_rate", "gain", "path_length")
    ]
    keys = [name for name in names if name not in (*numbers, "seed")]
    groups = rows.groupby(keys, sort=False, dropna=False) if keys else [((), rows)]
    table = Table(box=table_box(), pad_edge=False, show_edge=False)
    for name in (*keys, "points", *numbers):
        title = Text(printable(name.replace("_", " "), 24))
        table.add_column(title, justify="right", no_wrap=True)
    for place, (key, part) in enumerate(groups):
        if place == _MOST_LISTED:
            break
        finished = part[part["status"] == "finished"]
        cells = [
            printable(f"{v:g}" if isinstance(v, float) else str(v), 24)
            for v in (key if isinstance(key, tuple) else (key,))
        ]
        cells.append(f"{len(finished)}/{len(part)}")
        cells += [
            number(float(finished[name].median())) if finished[name].notna().any() else "–"
            for name in numbers
        ]
        table.add_row(*map(Text, cells))
    screen.print(table)
    if len(groups) > _MOST_LISTED:
        screen.print(
            f"and {len(groups) - _MOST_LISTED} more rows; all stand in summary.parquet",
            soft_wrap=True,
        )


def _checked(
    path: Path, widths: Sequence[int], depths: Sequence[int | None], **options: Any
) -> "CoordinateCheck":
    """Check the ``build_model(width, depth)`` of a file; see `coordinate_check` for the options.

    The file may define ``loss``, ``batches()`` and ``build_optimizer(model)``, as a model file
    does; without ``batches`` the data are scikit-learn's digits.

    Raises:
        AnalyzerError: If it defines no ``build_model``.
    """
    from analyzer.networks.data import batches, dataset
    from analyzer.studies.coordinates import coordinate_check

    names = runpy.run_path(str(path))
    if not callable(build := names.get("build_model")):
        raise AnalyzerError(
            f"'{path}' defines no build_model; expected build_model(width, depth) for a "
            "coordinate check."
        )
    data = names["batches"]() if "batches" in names else batches(dataset("digits"), 128)
    chosen = {name: names[name] for name in ("loss", "build_optimizer") if name in names}
    return coordinate_check(build, widths, depths, data=data, **chosen, **options)


def print_coordinate_check(
    model: str | None, widths: str | None, depths: str | None, seeds: str, parametrization: str
) -> int:
    """Print how each layer grows with width, and the layer to look at."""
    if model is None or not os.path.isfile(model):
        raise AnalyzerError(
            f"--coordinate-check has the model {model!r}; expected --model FILE with a file that "
            "defines build_model(width, depth)"
        )
    (count, *more) = values(seeds, "--seeds", int)
    if more:
        raise AnalyzerError(
            f"--seeds is {seeds!r}; expected how many, as in --seeds 6, for a coordinate check"
        )
    found = _checked(
        Path(model),
        values(widths or "64,128,256,512", "--widths", int),
        values(depths, "--depths", int) if depths else (None,),
        parametrization=parametrization,
        # One seed has no spread.
        seeds=count if count > 1 else None,
    )
    typer.echo(found.markdown(), nl=False)
    return {"passes": 0, "differs": 1, "undecided": 3}[found.outcome]


@contextmanager
def progress(quiet: bool) -> Iterator[Any]:
    """A bar with the time left on a terminal; a line for each point elsewhere."""
    if quiet:
        yield lambda study, running: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("points", total=None)

            def show(study: "Study", running: Sequence[str]) -> None:
                states = [point.status for point in study.points]
                failed = states.count("failed")
                words = f"points, {failed} failed" if failed else "points"
                ended = states.count("finished") + failed
                bar.update(task, total=len(states), completed=ended, description=words)

            yield show
    else:
        yield _lines()


def _lines() -> Any:
    began = time.monotonic()
    known: set[str] = set()
    before: list[int] = []

    def show(study: "Study", running: Sequence[str]) -> None:
        points = study.points
        states = {point.name: point.status for point in points}
        ended = [name for name, one in states.items() if one in ("finished", "failed")]
        if not before:
            known.update(ended)
            before.append(len(ended))
            left = len(points) - len(ended)
            _say(f"study {study.path.name}: {len(points)} points, {left} to run")
        for name in ended:
            if name not in known:
                # Of several that ended since the last look each has its own number.
                known.add(name)
                done = len(known) - before[0]
                seconds = (time.monotonic() - began) / done * (len(points) - len(known))
                time_left = f", about {seconds:.0f} s left" if seconds else ""
                _say(f"{name} {states[name]} ({len(known)} of {len(points)}{time_left})")

    return show


def _say(text: str) -> None:
    from analyzer.texts import escaped

    print(f"analyzer: {escaped(text, 'line')}", file=sys.stderr, flush=True)


def print_dry_run(plan: "Plan | None", folder: Path, workers: int | None) -> None:
    """Print the points that would be run, and what they would take."""
    from analyzer.cli.terminal import console, printable
    from analyzer.studies.trial import estimate

    screen = console()
    found: Estimate = estimate(plan, folder, workers)
    for name, status in found.points[:_MOST_LISTED]:
        screen.print(f"{printable(name, 110)}  {status}", soft_wrap=True)
    if len(found.points) > _MOST_LISTED:
        screen.print(f"and {len(found.points) - _MOST_LISTED} more", soft_wrap=True)
    screen.print(found.sentence, soft_wrap=True)

"""The words over the rows of the overview: what each shows, and what its marks mean."""

from collections.abc import Iterator, Sequence

import numpy as np

from analyzer.analysis.numerals import decades_fallen, number, percent
from analyzer.analysis.overview import Overview, OverviewColumn
from analyzer.figures.marks import mark_legend
from analyzer.figures.theme import Theme, labeled

__all__ = ["row_words"]

# Between the lines of a row and the name of a run in it.
_MOST_NAME = 34


def row_words(info: Overview, rows: Sequence[tuple[str, int]], theme: Theme) -> Iterator[list[str]]:
    """Yield what each row shows, in parts; runs by their names, in their colors."""
    named = [f"<b>{labeled(column.label.text, _MOST_NAME)}</b>" for column in info.runs]
    names = [_in_color(*one, theme) for one in zip(info.runs, named, strict=True)]
    steps = sorted({column.step for column in info.runs})
    when = "at step " + " and ".join(f"{step:,}" for step in steps)
    for kind, run in rows:
        if kind == "network":
            arcs = info.runs[run].arcs
            share = f"median {percent(arcs.median_share)} of the gradient {when};"
            if not np.isfinite(arcs.median_share):
                share = f"share of the gradient not known {when};"
            scale = ["thin 0 to 20 %, thick 80 % or more"]
            if set(arcs.shortcuts) - {"identity"}:
                scale = [f"{scale[0]};", "dotted: not an identity"]
            yield [f"<b>shortcuts</b> of {names[run]}:", share, *scale]
        elif kind == "profile":
            yield [
                f"<b>gradient</b> of layer outputs {when}:",
                *_lines(info, theme),
            ]
        elif kind == "grid":
            kinds = mark_legend([info.runs[run].grid.marks], theme, is_log=True)
            squares = [
                f'<span style="color:{one["marker"]["color"]}">■</span> {one["name"]}'
                for one in kinds
            ]
            said = f"{names[run]}: <b>all recorded steps</b>" + ("" if run else " (drag the line)")
            yield [said, *squares, *_first_broken(info.runs[run])]
        else:
            ticks = any((column.loss.num_nonfinite > 0).any() for column in info.runs)
            mark = [_marked("| NaN or infinite", theme)] if ticks else []
            yield ["<b>loss</b>:", *_outcomes(info, names), *mark]


def _first_broken(column: OverviewColumn) -> list[str]:
    """Which layer the ring marks, and when."""
    if column.broke is None:
        return []
    name = labeled(column.broke.name, _MOST_NAME)
    return [f"○ first in <b>{name}</b>, step {column.broke.step:,}"]


def _lines(info: Overview, theme: Theme) -> Iterator[str]:
    """What the lines of the profile are, in their colors."""
    for column in info.runs:
        is_known = np.isfinite(column.profile).any()
        name = f"— <b>{labeled(column.label.text, _MOST_NAME)}</b>"
        yield _in_color(column, name, theme) + ("" if is_known else " (NaN or infinite)")
    for column in info.runs:
        if len(column.without):
            is_final = column.without_step >= column.grid.steps[-1] + column.grid.width
            when = "final weights" if is_final else f"weights of step {column.without_step:,}"
            about = [] if column.without_step == column.step else [when]
            if np.isfinite(column.without_fallen):
                about.append(decades_fallen(column.without_fallen))
            yield _in_color(column, "┈ without shortcuts", theme)
            if about:
                yield _in_color(column, f"({', '.join(about)})", theme)
    if any(column.fit for column in info.runs):
        yield "╌ fit"
    broke = [column.broke.name for column in info.runs if column.broke is not None]
    if broke:
        names = " and ".join(labeled(name, _MOST_NAME) for name in dict.fromkeys(broke))
        yield _marked(f"┆ {names}, first not finite", theme)


def _in_color(column: OverviewColumn, text: str, theme: Theme) -> str:
    return f'<span style="color:{theme.style(column.label.style).color}">{text}</span>'


def _marked(text: str, theme: Theme) -> str:
    """What a line or a tick in the color of what is not finite means."""
    return f'<span style="color:{theme.mark}">{text}</span>'


def _outcomes(info: Overview, names: Sequence[str]) -> Iterator[str]:
    for column, name in zip(info.runs, names, strict=True):
        yield f"{name} {column.outcome}"
    if np.isfinite(info.runs[0].guess):
        yield f"(guessing: {number(info.runs[0].guess)}, dotted)"

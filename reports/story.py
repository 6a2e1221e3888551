"""What a report tells of some runs, in reading order, before any file is written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyzer.analysis.evidence import opening_step
from analyzer.analysis.finding import SEVERITIES
from analyzer.analysis.findings import findings
from analyzer.analysis.numerals import counted, number, with_range
from analyzer.analysis.verdict import verdict
from analyzer.analysis.view import View, has_shortcuts
from analyzer.errors import AnalyzerError
from analyzer.figures.narrow import stacked
from analyzer.figures.sketch import Sketch
from analyzer.figures.theme import PRINT, Theme
from analyzer.storage.run import Run, open_run
from analyzer.vocabulary.methods import Method
from analyzer.vocabulary.probes import PROBES

from .groups import (
    Group,
    grouped,
    laid_out,
    pairs_of,
    representatives,
    seed_figure,
    seed_of,
    seed_spread,
)
from .paper_overview import overview_rows
from .run_facts import AnonymousRun, last_gain

__all__ = [
    "Figure",
    "Missing",
    "Section",
    "Story",
    "claim_rows",
    "lead_of",
    "note_of",
    "story_of",
    "title_of",
]


@dataclass(frozen=True)
class Figure:
    """One figure with its words and the data behind it: a panel with what it shows of the runs."""

    key: str
    title: str
    caption: str
    how_to_read: str
    info: Any
    draw: Callable[[Any, Theme], go.Figure | Sketch]
    methods: tuple[Method, ...] = ()
    draw_print: Callable[[Any, Theme], go.Figure] | None = None
    draw_narrow: Callable[[Any, Theme, Any], Any] = lambda _info, _theme, wide: stacked(wide)

    @cached_property
    def drawn(self) -> go.Figure:
        """The figure for print, its runs told apart by dashes and markers too."""
        made = (self.draw_print or self.draw)(self.info, PRINT)
        return made.figure() if isinstance(made, Sketch) else made

    @cached_property
    def table(self) -> pd.DataFrame:
        """The data behind the figure."""
        return pd.DataFrame(self.info.table())


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn: what was not recorded, and what to do to have it."""

    title: str
    reason: str


@dataclass(frozen=True)
class Section:
    """The figures of one page, and those that cannot be drawn."""

    key: str
    title: str
    figures: tuple[Figure, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class Story:
    """A report before it is a file.

    Args:
        runs: Every run, plain nets first.
        groups: The same by program.
        shown: The runs that the figures show.
        verdict: What separates plain and residual, claim by claim; None without such a pair.
    """

    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    shown: tuple[Run, ...]
    sections: tuple[Section, ...]
    verdict: Any
    findings: tuple[tuple[Run, tuple[Any, ...]], ...]
    is_anonymous: bool = False

    @property
    def figures(self) -> Iterator[Figure]:
        """Every figure in reading order."""
        for section in self.sections:
            yield from section.figures

    @property
    def methods(self) -> list[Method]:
        """The definitions that the figures and the recorded probes use, each once."""
        recorded = {name for run in self.shown for name in run.probes}
        found = [method for figure in self.figures for method in figure.methods]
        found += [probe.method for probe in PROBES if probe.name in recorded and probe.method]
        return list(dict.fromkeys(found))


def story_of(
    paths: Sequence[Path],
    *,
    anonymous: bool = False,
    layout: str | None = None,
    of_study: bool = False,
) -> Story:
    """Read runs and compute everything that a report of them says.

    Args:
        paths: Folders of runs; one named twice is read once.
        anonymous: Whether names, paths, commits and times of the runs are left out.
        layout: One of ``LAYOUTS``, which chooses the runs that the figures show; None for a run of
            each group.
        of_study: Whether the study of which the runs are points is told before them.
    """
    unique = list({path.resolve(): path for path in paths}.values())
    opened: list[Run] = [open_run(path) for path in unique]
    if anonymous:
        # Counted in the order in which they are shown, not in that of their names.
        ordered = [run for group in grouped(opened) for run in group.runs]
        opened = [AnonymousRun(run.path, f"run {i + 1}") for i, run in enumerate(ordered)]
    groups = grouped(opened)
    shown = laid_out(groups, layout) if layout else representatives(groups)
    return Story(
        runs=tuple(run for group in groups for run in group.runs),
        groups=tuple(groups),
        shown=shown,
        sections=(
            *([_study(shown)] if of_study else []),
            *_sections(shown, groups if layout in (None, "seeds") else []),
        ),
        verdict=_verdict(groups),
        findings=tuple((run, tuple(findings(run))) for run in shown),
        is_anonymous=anonymous,
    )


def _sections(shown: tuple[Run, ...], groups: list[Group]) -> Iterator[Section]:
    """The pages of the catalog in their order, then the seeds."""
    from analyzer.figures.catalog import PAGES

    view = View(shown, step=opening_step(shown))
    lacking: list[Missing] = []
    for page in PAGES:
        # With one run every panel there would say that it needs another one.
        if page.key == "compare" and len(shown) < 2:
            continue
        made = [_figure(panel, view) for panel in page.panels]
        figures = tuple(one for one in made if isinstance(one, Figure))
        missing = tuple(one for one in made if isinstance(one, Missing))
        is_pair = len(shown) == 2 and len({has_shortcuts(run) for run in shown}) == 2
        title = page.heading if page.key != "compare" or is_pair else "The runs compared"
        if figures:
            yield Section(page.key, title, figures, missing)
        else:
            lacking += missing
    if any(len(group.runs) > 1 for group in groups):
        yield Section("seeds", "Mean and spread over seeds", (_seeds(groups),), ())
    if lacking:
        yield Section("missing", "Not measured", (), tuple(lacking))


def _study(shown: tuple[Run, ...]) -> Section:
    """What the study of the runs shows by depth."""
    from analyzer.figures.study import STUDY_PANELS

    made = [_figure(panel, View(shown)) for panel in STUDY_PANELS]
    figures = tuple(one for one in made if isinstance(one, Figure))
    return Section(
        "study", "The study, by depth", figures, tuple(x for x in made if isinstance(x, Missing))
    )


def _figure(panel: Any, view: View) -> Figure | Missing:
    """A panel of the catalog, or why it cannot be drawn."""
    try:
        info = panel.info(view)
    except AnalyzerError as error:
        return Missing(panel.title, str(error))
    of_probes = [probe.method for probe in PROBES if probe.name in panel.needs]
    methods = tuple(method for method in (panel.method, *of_probes) if method)
    of_its_own = overview_rows if panel.key == "overview" else None
    words = (panel.key, panel.title, info.caption, panel.how_to_read)
    return Figure(*words, info, panel.made, methods, of_its_own, panel.narrowed)


def _seeds(groups: list[Group]) -> Figure:
    info = seed_spread(groups)
    return Figure(
        "seed_spread",
        "Gradient flow over seeds",
        info.caption,
        "Lines are geometric means over seeds at the last recorded step, bands reach from the "
        "lowest to the highest seed. Where bands do not touch, the difference is not due to "
        "the choice of seeds.",
        info,
        seed_figure,
    )


def _verdict(groups: Sequence[Group]) -> Any:
    """The verdict on a plain and a residual group, over the seeds that both have."""
    plain = [group for group in groups if not group.has_shortcuts]
    residual = [group for group in groups if group.has_shortcuts]
    if len(plain) != 1 or len(residual) != 1:
        return None
    pairs = pairs_of(plain[0], residual[0])
    if not pairs:
        return None
    return verdict([left for left, _ in pairs], [right for _, right in pairs])


def title_of(story: Story) -> str:
    """Return the title: the runs by name, or the groups where there are several seeds."""
    names = [group.label for group in story.groups]
    if len(names) > 3:
        names = [*names[:2], f"{len(names) - 2} more"]
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"Gradient flow of {joined}"


def lead_of(story: Story) -> str:
    """Return one sentence: the verdict on a pair, else the worst finding, else the gain.

    Where several runs are shown, it begins with the one that it is about.
    """
    if story.verdict is not None:
        return str(story.verdict.sentence)
    found = [(run.name, one) for run, of_run in story.findings for one in of_run]
    if found:
        # A training that broke says so in the first line, also where something else came first.
        broken = [(name, one) for name, one in found if one.code == "nonfinite"]
        name, worst = min(broken or found, key=lambda one: SEVERITIES.index(one[1].severity))
        return f"{name}: {worst.sentence}" if len(story.shown) > 1 else str(worst.sentence)
    return " ".join(_gain_words(run) for run in story.shown)


def note_of(story: Story) -> str:
    """Return which runs the figures show, where that is not all of them."""
    if len(story.shown) == len(story.runs):
        return ""
    names = ", ".join(f"{run.name} (seed {seed_of(run.manifest)})" for run in story.shown)
    return (
        f"Figures show {counted(len(story.shown), 'run')} of {len(story.runs)}: {names}. Mean and "
        "spread over seeds have a section of their own."
    )


def _gain_words(run: Run) -> str:
    gain = last_gain(run)
    if gain is None or not gain.is_defined:
        return f"No gain can be fitted to the output gradient of {run.name}."
    return (
        f"The output gradient of {run.name} changes by a factor of {number(gain.gain)} per layer "
        "on its way from output to input (its gain), at the last recorded step."
    )


def claim_rows(story: Story) -> list[dict[str, Any]]:
    """Return the claims of the verdict as text.

    A claim that no figure of the report shows has no ``panel``.
    """
    if story.verdict is None:
        return []
    keys = {figure.key for figure in story.figures}
    return [
        vars(claim)
        | {
            "question": claim.question,
            "answer": claim.answer,
            "finding": claim.finding,
            "plain": _value(claim.plain, claim.spread, "plain"),
            "residual": _value(claim.residual, claim.spread, "residual"),
            "panel": f"figure-{claim.panel}" if claim.panel in keys else "",
        }
        for claim in story.verdict.claims
    ]


def _value(value: float | None, spread: Mapping[str, Any] | None, side: str) -> str:
    """A number with its range over seeds."""
    ends = spread[side] if spread and spread["over"] == "seeds" else None
    return "–" if value is None else with_range(value, ends)

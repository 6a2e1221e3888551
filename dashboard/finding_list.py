"""Findings, the worst first, their evidence a click away: a page, and a list over all runs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from analyzer.analysis.finding import SEVERITIES, named
from analyzer.analysis.findings import RULES, Finding, findings
from analyzer.analysis.numerals import counted
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_of
from analyzer.storage.run import Run

from .address import Address, Context, query
from .components import LOOKING, message, soon
from .ids import Id
from .library import Library, Listed, shortened

__all__ = ["alerts", "evidence_at", "finding_list", "layout"]

_COLORS = {"severe": "red", "warning": "orange"}
_MOST_LAYERS = 6
_MOST_KINDS, _MOST_ALERTS = 12, 5


def layout(context: Context) -> list[Any]:
    """Return the findings of all chosen runs, or that they are looked for."""
    found = finding_list(context)
    shown = [message(LOOKING)] if found is None else found
    return [soon(Id.FINDINGS_SOON, context.is_settled(found)), html.Div(shown, id=Id.FINDINGS)]


def finding_list(context: Context) -> list[Any] | None:
    """Return a section a run; None while those of one are looked for."""
    sections = [_section(context, run) for run in context.runs]
    return None if None in sections else sections


def _section(context: Context, run: Run) -> html.Section | None:
    try:
        found = context.library.answer("findings", (run,), lambda: findings(run))
    except (AnalyzerError, OSError, ValueError, KeyError) as error:
        return html.Section(
            [html.H2(run.name), message(str(error), bad=True)], className="card wide"
        )
    if found is None:
        return None
    if not found:
        body: list[Any] = [
            message("Nothing found: gradients, units and updates of this run look healthy.")
        ]
    else:
        body = [_finding(context, one) for one in found]
    return html.Section([html.H2(run.name), *body], className="card wide")


def _finding(context: Context, one: Finding) -> html.Article:
    """One sentence with its number, its threshold, its remedy and the view that shows it."""
    low, high = one.steps
    facts = {
        "value": f"{one.value:.4g}",
        "threshold": None if one.threshold is None else f"{one.threshold:.4g}",
        "steps": f"{low:,}" if low == high else f"{low:,} to {high:,}",
        "layers": named([shortened(name, 60) for name in one.layers], _MOST_LAYERS),
    }
    terms = [html.Div([html.Dt(term), html.Dd(text)]) for term, text in facts.items() if text]
    return html.Article(
        [
            html.Div([_badge(one.severity), html.Code(one.code)], className="finding-head"),
            html.P(one.sentence, className="sentence"),
            html.Dl(terms),
            html.P([html.Strong("What to do: "), one.remedy]),
            dcc.Link("show the evidence", href=evidence_at(context.address, one)),
        ],
        className=f"finding {one.severity}",
    )


def evidence_at(address: Address, one: Finding) -> str:
    """Return where a finding is seen: the card of its panel, at its first step and layer."""
    shown = replace(address, step=one.steps[0], chosen=one.layers[:1])
    key = next(rule.panel for rule in RULES if rule.code == one.code)
    return f"{page_of(key).path}{query(shown)}#title-{key}"


def alerts(library: Library, runs: Sequence[Listed]) -> list[Any]:
    """Return what is wrong with any of the listed runs, each kind once, the worst first.

    It is what was found so far: runs are judged one after the other, and notes are no alerts.
    """
    kinds: dict[tuple[int, str], list[tuple[str, Finding]]] = {}
    for run in runs:
        for one in library.alerts(run.summary.path):
            if one.severity != "note":
                place = SEVERITIES.index(one.severity), one.code
                kinds.setdefault(place, []).append((run.id, one))
    if not kinds:
        return []
    ordered = sorted(kinds, key=lambda kind: (kind[0], -len(kinds[kind]), kind[1]))
    count = len({name for found in kinds.values() for name, _ in found})
    head = f"Findings in {count:,} of {len(runs):,} runs"
    rows = [_alert(*kinds[kind]) for kind in ordered[:_MOST_KINDS]]
    return [html.Details([html.Summary(head), html.Ul(rows)], open=True, className="card alerts")]


def _alert(*found: tuple[str, Finding]) -> html.Li:
    """One kind of finding: in which runs, with the evidence of each, and what is said of one."""
    first = found[0][1]
    shown: list[Any] = []
    for name, one in found[:_MOST_ALERTS]:
        link = dcc.Link(shortened(name, 40), href=evidence_at(Address((name,)), one))
        shown += [", " if shown else "", link]
    if len(found) > _MOST_ALERTS:
        shown.append(f" and {len(found) - _MOST_ALERTS:,} more")
    words = [html.Code(first.code), f" in {counted(len(found), 'run')}: ", *shown, ". "]
    said = html.Span(shortened(first.sentence, 220), className="said-of-one")
    return html.Li([_badge(first.severity), html.Span([*words, said])])


def _badge(severity: str) -> dmc.Badge:
    color = _COLORS.get(severity, "gray")
    return dmc.Badge(severity, color=color, variant="dot", tt="none")

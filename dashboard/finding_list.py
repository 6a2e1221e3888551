"""The page of findings: sorted by severity, each with its numbers and its evidence a click away."""

from dataclasses import replace
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from analyzer.analysis.finding import named
from analyzer.analysis.findings import RULES, Finding, findings
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_of
from analyzer.storage.run import Run

from .address import Context, query
from .components import LOOKING, message, soon
from .ids import Id
from .library import shortened

__all__ = ["finding_list", "layout"]

_COLORS = {"severe": "red", "warning": "orange"}
_MOST_LAYERS = 6


def layout(context: Context) -> list[Any]:
    """Return the findings of all chosen runs, or that they are looked for."""
    found = finding_list(context)
    shown = [message(LOOKING)] if found is None else found
    return [soon(Id.FINDINGS_SOON, found is not None), html.Div(shown, id=Id.FINDINGS)]


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
    badge = dmc.Badge(
        one.severity, color=_COLORS.get(one.severity, "gray"), variant="dot", tt="none"
    )
    terms = [html.Div([html.Dt(term), html.Dd(text)]) for term, text in facts.items() if text]
    return html.Article(
        [
            html.Div([badge, html.Code(one.code)], className="finding-head"),
            html.P(one.sentence, className="sentence"),
            html.Dl(terms),
            html.P([html.Strong("What to do: "), one.remedy]),
            dcc.Link("show the evidence", href=_evidence(context, one)),
        ],
        className=f"finding {one.severity}",
    )


def _evidence(context: Context, one: Finding) -> str:
    """The address of the view that shows a finding, at its first step and layer."""
    shown = replace(context.address, step=one.steps[0], chosen=one.layers[:1])
    key = next(rule.panel for rule in RULES if rule.code == one.code)
    return page_of(key).path + query(shown)

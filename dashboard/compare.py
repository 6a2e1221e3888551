"""The page that compares two runs: the verdict, claim by claim, above the figures."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dash import dcc, html

from analyzer.analysis.claims import Claim
from analyzer.analysis.numerals import number
from analyzer.analysis.verdict import verdict
from analyzer.analysis.view import run_labels
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_of
from analyzer.storage.run import Run

from .address import Context, query
from .components import LOOKING, attributes, cards, message, soon
from .ids import Id

__all__ = ["layout", "link_to", "plain_and_residual", "verdict_of"]

_HEAD = ("question", "without shortcuts", "with shortcuts", "source", "answer", "evidence")


def layout(context: Context) -> list[Any]:
    """Return the verdict, the comparing figures and the claims behind the verdict."""
    if len(context.runs) < 2:
        text = "Comparing needs two runs: choose a second one in the field at the top of the page."
        return [message(text), *cards(context, page_of("profile_overlay"))]
    found = verdict_of(context)
    sentence, table = found or ([message(LOOKING)], [])
    return [
        soon(Id.VERDICT_SOON, found is not None),
        html.Div(sentence, id=Id.VERDICT),
        *cards(context, page_of("profile_overlay")),
        html.Div(table, id=Id.CLAIMS),
    ]


def plain_and_residual(runs: tuple[Run, ...]) -> tuple[Run, Run] | None:
    """Return a run without shortcuts and one with; None where the runs lack one of the two."""
    labels = run_labels(runs)
    plain = [run for run, label in zip(runs, labels, strict=True) if not label.has_shortcuts]
    residual = [run for run, label in zip(runs, labels, strict=True) if label.has_shortcuts]
    return (plain[0], residual[0]) if plain and residual else None


def verdict_of(context: Context) -> tuple[list[Any], list[Any]] | None:
    """Return the sentence of the verdict on a pair and its claims; None while it is looked for."""
    pair = plain_and_residual(context.runs)
    if pair is None:
        text = (
            "A verdict needs one run without shortcuts and one with; these runs are alike in that."
        )
        return [message(text)], []
    try:
        found = context.library.answer("verdict", pair, lambda: verdict(*pair))
    except (AnalyzerError, OSError, ValueError, KeyError) as error:
        return [message(str(error), title="No verdict", bad=True)], []
    if found is None:
        return None
    words: list[Any] = [html.H2("Verdict"), html.P(found.sentence, className="sentence")]
    if found.note:
        words.append(html.P(found.note, className="lead"))
    table = _claim_table(context, found.claims)
    scroll = html.Div(
        table, className="scroll", tabIndex=0, role="region", **attributes(aria_label="claims")
    )
    return [html.Section(words, className="card wide")], [
        html.Section([html.H2("Claim by claim"), scroll], className="card wide")
    ]


def _claim_table(context: Context, rows: Sequence[Claim]) -> html.Table:
    how = html.Summary("how it is computed")
    body = [
        html.Tr(
            [
                # What gives the number in Python.
                html.Th(
                    [
                        claim.question,
                        html.P(claim.finding, className="reference"),
                        html.Details([how, html.Code(claim.query)]),
                    ],
                    scope="row",
                ),
                html.Td(_text(claim.plain), className="number"),
                html.Td(_text(claim.residual), className="number"),
                html.Td(claim.reference, className="reference"),
                html.Td(claim.answer, className="answer"),
                html.Td(link_to(context, claim)),
            ]
        )
        for claim in rows
    ]
    head = html.Thead(html.Tr([html.Th(name, scope="col") for name in _HEAD]))
    return html.Table([head, html.Tbody(body)], className="claims")


def link_to(context: Context, claim: Claim) -> Any:
    """A link to the card of its panel, at the step that it is about."""
    address = context.address
    if len(claim.steps) == 1:
        address = replace(address, step=claim.steps[0])
    href = f"{page_of(claim.panel).path}{query(address)}#title-{claim.panel}"
    return dcc.Link("show", href=href)


def _text(value: float | None) -> str:
    return "–" if value is None else number(value)

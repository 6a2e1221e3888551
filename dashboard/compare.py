"""The page that compares two runs: the verdict, claim by claim, above the figures."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dash import dcc, html

from analyzer.analysis.claims import Claim
from analyzer.analysis.numerals import number
from analyzer.analysis.verdict import Verdict, verdict, verdict_on
from analyzer.analysis.view import has_shortcuts, run_labels
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_of
from analyzer.storage.run import Run

from .address import Context, query
from .components import LOOKING, attributes, cards, message, soon
from .ids import Id
from .library import shortened

__all__ = ["headline", "headline_of", "layout", "plain_and_residual", "verdict_of"]

_HEAD = ("question", "without shortcuts", "with shortcuts", "source", "answer", "evidence")

# Of the claims, the three numbers beside the headline: of a pair, and of one residual run.
_NUMBERS = {
    "relative_gradient": "gradient at the first layer, over that at the output",
    "shortcut_share": "share of the shortcuts",
    "training_loss": "final loss",
}


def headline(context: Context) -> list[Any]:
    """Return the place of the verdict above the picture of one run or a pair."""
    found = headline_of(context)
    return [
        soon(Id.HEADLINE_SOON, found is not None),
        html.Div([message(LOOKING)] if found is None else found, id=Id.HEADLINE),
    ]


def headline_of(context: Context) -> list[Any] | None:
    """Return what is to be read first of a pair or a residual run; None while it is looked for."""
    pair = plain_and_residual(context.runs)
    try:
        if pair is not None:
            found = context.library.answer("verdict", pair, lambda: verdict(*pair))
        elif len(context.runs) == 1 and has_shortcuts(context.runs[0]):
            (run,) = context.runs
            found = context.library.answer("verdict on", (run,), lambda: verdict_on(run))
        else:
            return []
    except (AnalyzerError, OSError, ValueError, KeyError) as error:
        return [message(str(error), title="No verdict", bad=True)]
    return None if found is None else _headline(context, found)


def _headline(context: Context, found: Verdict) -> list[Any]:
    plain, residual = (side[0].name if side else "" for side in found.runs)
    rows = []
    by_key = {claim.key: claim for claim in found.claims}
    for key, words in _NUMBERS.items():
        if (claim := by_key.get(key)) is None:  # it needs both of a pair
            continue
        values = [claim.plain, claim.residual] if plain else [claim.residual]
        rows.append(
            html.Tr(
                [
                    html.Th([words, html.Span(claim.when, className="reference")], scope="row"),
                    *(html.Td(_text(value), className="number") for value in values),
                ]
            )
        )
    names = [f"without: {plain}", f"with: {residual}"] if plain else [residual]
    head = html.Tr([html.Td(), *(html.Th(shortened(name, 60), scope="col") for name in names)])
    table = html.Table([html.Thead(head), html.Tbody(rows)], className="claims")
    label = attributes(aria_label="three numbers")
    href = page_of("profile_overlay").path + query(context.address)
    more = [html.P(part) for part in (*found.parts[1:], found.note) if part]
    whole = [html.Summary("the whole verdict"), *more]
    if plain:
        whole.append(dcc.Link("claim by claim", href=href))
    content = [
        html.Div([html.P(found.headline, className="headline"), html.Details(whole)]),
        html.Div(table, className="scroll", tabIndex=0, role="region", **label),
    ]
    return [html.Section(content, className="card wide headed")]


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
                html.Td(_link(context, claim)),
            ]
        )
        for claim in rows
    ]
    head = html.Thead(html.Tr([html.Th(name, scope="col") for name in _HEAD]))
    return html.Table([head, html.Tbody(body)], className="claims")


def _link(context: Context, claim: Claim) -> Any:
    """A link to the card of its panel, at the step that it is about."""
    address = context.address
    if len(claim.steps) == 1:
        address = replace(address, step=claim.steps[0])
    href = f"{page_of(claim.panel).path}{query(address)}#title-{claim.panel}"
    return dcc.Link("show", href=href)


def _text(value: float | None) -> str:
    return "–" if value is None else number(value)

"""The first page: which net is sick, where, since when, and how far to trust it; its picture."""

from dataclasses import replace
from typing import Any

from dash import dcc, html

from analyzer.analysis.claims import Claim
from analyzer.analysis.landing import Landing, landing
from analyzer.analysis.trunk import trunk_history
from analyzer.analysis.view import run_labels
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import RUNS, page_of
from analyzer.figures.theme import DARK, LIGHT

from .address import Context, query
from .compare import about, link_to, plain_and_residual
from .components import (
    LOOKING,
    attributes,
    copied,
    explained,
    lacking,
    message,
    panel_card,
    soon,
    step_control,
)
from .controls import controls
from .ids import Id
from .library import shortened

__all__ = ["answer_of", "layout"]

_MOST_NAME = 40


def layout(context: Context) -> list[Any]:
    """Return what is to be read first, and below it the picture of the runs."""
    found = answer_of(context)
    said, readings, questions = found or ([message(LOOKING)], [], [])
    (panel,) = page_of("overview").panels
    chosen = [controls(context, "few")] if len(context.runs) > panel.most_runs else []
    return [
        *chosen,
        soon(Id.HEADLINE_SOON, context.is_settled(found)),
        html.Div(
            [
                html.Div(said, id=Id.HEADLINE, className="said"),
                html.Div(readings, id=Id.READINGS, className="readings"),
                html.Div(panel_card(panel, step_control()), className="picture"),
                html.Div(questions, id=Id.QUESTIONS, className="questions"),
            ],
            className="landing",
        ),
    ]


def answer_of(context: Context) -> tuple[list[Any], list[Any], list[Any]] | None:
    """Return sentence, numbers and questions of the runs; None while they are looked for."""
    if not context.runs:
        return [], [], []
    few = context.few(page_of("overview").panels[0].most_runs)
    pair = plain_and_residual(few)
    runs = few if len(few) < 3 else pair or few
    try:
        found = context.library.answer("landing", runs, lambda: landing(runs))
    except (AnalyzerError, OSError, ValueError, KeyError) as error:
        return [message(str(error), title="No verdict", bad=True)], [], []
    if found is None:
        return None
    said = _said(context, found)
    if pair is not None and len(context.runs) > 2:
        said.insert(0, html.P(about(context, pair), className="count"))
    elif len(runs) < len(context.runs):
        names = ", ".join(shortened(run.name, 60) for run in runs)
        text = f"About {names}, of {len(context.runs)} chosen runs."
        said.insert(0, html.P(text, className="count"))
    return said, _readings(context, found), _questions(context, found)


def _said(context: Context, found: Landing) -> list[Any]:
    """The sentence in large type; below it the cause, the evidence, and what to do next.

    The rest of the verdict is a click away.
    """
    evidence: list[Any] = ["How sure? "]
    for what, word, why in found.evidence:
        evidence += [f"{what[0].upper()}{what[1:]}: ", html.Strong(word), f" ({why}). "]
    words, command = found.action
    following = [f"{words}: ", *copied(command)] if command else [f"{words}."]
    more: list[Any] = []
    if found.found is not None:
        parts = [html.P(part) for part in (*found.found.parts, found.found.note) if part]
        more.append(html.Details([html.Summary("the whole verdict"), *parts]))
        if len(context.runs) > 1:
            href = page_of("profile_overlay").path + query(context.address)
            more.append(dcc.Link(f"all {len(found.found.claims)} questions", href=href))
    cause: list[Any] = explained(shortened(found.cause, 700))
    if found.look is not None:
        href = page_of("overview").path + query(replace(context.address, step=found.look))
        words = f"show step {found.look:,}, the last before it broke"
        # Hidden by a script of the page while that step is shown.
        link = dcc.Link(words, href=href)
        cause.append(html.Span([" ", link], **attributes(data_to_step=str(found.look))))
    return [
        html.P(explained(shortened(found.sentence, 700), _ends(context)), className="headline"),
        html.P(cause, className="cause"),
        html.Div(
            [html.P(evidence, className="evidence"), html.P(following, className="next"), *more],
            className="trust",
        ),
    ]


def _ends(context: Context) -> dict[str, str]:
    """What the layers are between which a gradient is said to fall or to grow."""
    found: dict[str, str] = {}
    for run in context.runs:
        first, last = next((one.ends for one in trunk_history(run)), ("", ""))
        found |= {first: "The first layer with parameters.", last: "The last one."}
    return {name: text for name, text in found.items() if name}


def _readings(context: Context, found: Landing) -> list[Any]:
    """A card for each number: the numbers in large type, the run of each below it."""
    # By folder: of runs that have grown the answer before is told until the new one is there.
    paths = [run.path for run in context.runs]
    styles = dict(zip(paths, run_labels(context.runs), strict=True))
    cards = []
    for reading in found.readings:
        values = []
        for name, run, value in reading.values:
            place = styles[run.path].style
            color = f"light-dark({LIGHT.style(place).color}, {DARK.style(place).color})"
            dot = html.Span(className="dot", style={"background": color})
            long = " is-text" if value[:1].isalpha() else ""
            shown = html.Span(value, className="value" + long)
            named = html.Span([dot, shortened(name, _MOST_NAME)], className="of")
            values.append(html.Div([shown, named]))
        head = html.H2(reading.title)
        foot = html.P(explained(reading.against), className="against")
        cards.append(
            html.Section([head, html.Div(values, className="values"), foot], className="card")
        )
    return cards


def _questions(context: Context, found: Landing) -> list[Any]:
    """Further questions with their answers, each with a link to its figure; ways to the rest."""
    made = [_question(context, claim) for claim in found.questions]
    search = query(context.address)
    links = [dcc.Link("findings", href="/findings" + search), dcc.Link("all runs", href=RUNS.path)]
    ways = html.P([x for link in links for x in (link, " ")], className="ways")
    return [*made, ways]


def _question(context: Context, claim: Claim) -> html.Section:
    badge = html.Span(claim.answer, className=f"badge is-{claim.status.replace(' ', '-')}")
    head = html.Div([html.H2(explained(claim.question)), badge], className="question-head")
    if claim.status == "not measured":
        # The badge says so already.
        said = lacking(claim.text.partition("? ")[2], is_brief=True)
        return html.Section([head, said], className="card question")
    text, short = claim.finding, claim.short
    if claim.status == "undefined":
        text = short = f"the number is not finite ({claim.when})"
    # In full one click away: three of them fit on the screen of a laptop.
    why = html.Details([html.Summary(_first_upper(short)), html.P(_first_upper(text))])
    said_of = html.Div([why, link_to(context, claim)], className="why")
    return html.Section([head, said_of], className="card question")


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]

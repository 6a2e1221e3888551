"""The page that compares two runs: the verdict, claim by claim, above the figures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dash import dcc, html

from analyzer.analysis.claims import ANSWERS, Claim
from analyzer.analysis.comparability import Difference
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.verdict import Verdict, verdict
from analyzer.analysis.view import run_labels
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_of, panel
from analyzer.storage.run import Run

from .address import Context, query
from .components import LOOKING, explained, lacking, message, soon
from .controls import cards
from .ids import Id
from .library import shortened
from .thumbnail import SIZE

__all__ = ["about", "layout", "link_to", "plain_and_residual", "verdict_of"]

# What the verdict tells in short: the first mechanism that separates the two, what an intervention
# shows, what the shortcuts carry, and how the losses end.
_MECHANISMS = ("cliff", "vanishing", "exploding", "conditioning", "shattering", "forward_collapse")
_TOLD = ("counterfactual", "shortcut_share", "training_loss")


def layout(context: Context) -> list[Any]:
    """Return what differs, the verdict, the claims behind it and the comparing figures."""
    if len(context.runs) < 2:
        text = "Comparing needs two runs: choose a second one in the field at the top of the page."
        return [message(text), *cards(context, page_of("profile_overlay"))]
    found = verdict_of(context)
    sentence, table = found or ([message(LOOKING)], [])
    return [
        soon(Id.VERDICT_SOON, context.is_settled(found)),
        html.Div(sentence, id=Id.VERDICT),
        html.Div(table, id=Id.CLAIMS),
        *cards(context, page_of("profile_overlay")),
    ]


def plain_and_residual(runs: tuple[Run, ...]) -> tuple[Run, Run] | None:
    """Return a run without shortcuts and one with; None where the runs lack one of the two."""
    labels = run_labels(runs)
    plain = [run for run, label in zip(runs, labels, strict=True) if not label.has_shortcuts]
    residual = [run for run, label in zip(runs, labels, strict=True) if label.has_shortcuts]
    return (plain[0], residual[0]) if plain and residual else None


def about(context: Context, pair: tuple[Run, Run]) -> str:
    """Return which two of the chosen runs a verdict is about."""
    plain, residual = (shortened(run.name, 60) for run in pair)
    others = len(context.runs) - 2
    left = f"; {counted(others, 'further run')} chosen, not judged here" if others else ""
    return f"About {plain} (without shortcuts) and {residual} (with shortcuts){left}."


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
    shown = [_differing(found.differences), _in_short(context, pair, found)]
    asked = Counter(claim.question for claim in found.claims)
    made = [_claim(context, claim, asked[claim.question] > 1) for claim in found.claims]
    return shown, [html.H2("Question by question"), html.Div(made, className="claim-cards")]


def _in_short(context: Context, pair: tuple[Run, Run], found: Verdict) -> html.Section:
    """The verdict in short sentences; the whole of it is a click away."""
    known = [one for one in found.claims if one.status in ("holds", "fails", "unclear")]
    mechanisms = [one for one in known if one.key in _MECHANISMS and one.status == "holds"]
    told = [*mechanisms[:1], *(one for one in known if one.key in _TOLD)]
    count = Counter(one.answer for one in found.claims)
    answers = ", ".join(f"{count[word]} {word}" for word in ANSWERS.values() if count[word])
    whole = [html.P(part) for part in (*found.parts, found.note) if part]
    return html.Section(
        [
            html.H2("Verdict"),
            html.P(about(context, pair), className="count"),
            html.P(f"{found.headline.partition(':')[0].rstrip('.')}.", className="sentence"),
            html.Ul([html.Li(explained(_sentence(one))) for one in told], className="in-short"),
            html.P(f"{counted(len(found.claims), 'question')}: {answers}.", className="count"),
            html.Details([html.Summary("the whole verdict"), *whole]),
        ],
        className="card wide",
    )


def _sentence(claim: Claim) -> str:
    """The numbers of a claim as a sentence, with what it is about and when."""
    about = f"{claim.key.replace('_', ' ')}: " if claim.key == "training_loss" else ""
    text = f"{about}{claim.short}"
    return f"{text[:1].upper()}{text[1:]} ({claim.when})."


def _differing(found: Sequence[Difference]) -> html.Section:
    """All that tells the two apart beside their shortcuts, the telling ones first."""
    head = html.H2("What differs besides the shortcuts")
    if not found:
        text = "Nothing that was recorded: optimizer, steps, batches, widths, depth, seeds, norms."
        return html.Section([head, html.P(text)], className="card wide")
    ordered = sorted(found, key=lambda one: not one.explains)
    items = [
        html.Div([html.Dt(one.what), html.Dd(_sides(one)), html.Dd(_meaning(one))])
        for one in ordered
    ]
    return html.Section([head, html.Dl(items, className="differing")], className="card wide")


def _sides(one: Difference) -> str:
    both = (one.plain, one.residual)
    left, right = (number(x) if isinstance(x, float) else str(x) for x in both)
    return shortened(f"{left} without, {right} with", 160)


def _meaning(one: Difference) -> str:
    return {
        "training": "can explain what follows the first update",
        "network": "can explain all that is compared",
        "start": "can explain all that is compared",
    }.get(one.explains, "explains nothing of what is compared")


def _claim(context: Context, claim: Claim, is_asked_again: bool) -> html.Section:
    """Question and answer, both numbers, what they are compared with, and the figure.

    A question that is asked of several moments is told apart by the moment.
    """
    badge = html.Span(claim.answer, className=f"badge is-{claim.status.replace(' ', '-')}")
    moment: list[Any] = [html.Span(f" ({claim.when})", className="of")] if is_asked_again else []
    head = html.Div(
        [html.H3([*explained(claim.question), *moment]), badge], className="question-head"
    )
    if claim.status == "not measured":
        said = lacking(claim.text.partition("? ")[2])
        return html.Section([head, said], className="card question")
    sides = (("without", claim.plain), ("with", claim.residual))
    values = [
        html.Div([html.Span(_text(x), className="value"), html.Span(side, className="of")])
        for side, x in sides
    ]
    more = [
        html.P(claim.finding),
        html.P(f"Source: {claim.reference}.", className="against"),
        html.P(["How it is computed: ", html.Code(claim.query)], className="against"),
    ]
    short = f"{claim.short[:1].upper()}{claim.short[1:]}" or "the answer in full"
    return html.Section(
        [
            head,
            html.Div(values, className="values"),
            html.P(f"{claim.when}: {claim.compared}", className="against"),
            html.Details([html.Summary(explained(short)), *more]),
            html.P(link_to(context, claim, _picture(context, claim)), className="show-me"),
        ],
        className="card question",
    )


def link_to(context: Context, claim: Claim, words: Any = "show") -> Any:
    """A link to the card of its panel, at the step that it is about."""
    page = page_of(claim.panel)
    return dcc.Link(words, href=f"{page.path}{_search(context, claim)}#title-{claim.panel}")


def _at_step(claim: Claim) -> int | None:
    """The step of the figure of a claim, of a median the middle one; None where it has none."""
    if not claim.steps or "step" not in panel(claim.panel).reads:
        return None
    return claim.steps[len(claim.steps) // 2 if claim.when.startswith("median over") else 0]


def _search(context: Context, claim: Claim) -> str:
    step = _at_step(claim)
    return query(context.address if step is None else replace(context.address, step=step))


def _picture(context: Context, claim: Claim) -> list[Any]:
    """The figure of a claim as a small picture, and what a click on it does."""
    address = f"/thumbnail/{claim.panel}{_search(context, claim)}&scheme="
    dark = html.Source(srcSet=f"{address}dark", media="(prefers-color-scheme: dark)")
    width, height = SIZE
    image = html.Img(src=f"{address}light", alt="", width=width, height=height)
    step = _at_step(claim)
    said = f"show me: {panel(claim.panel).title}"
    if step is not None:
        said += f", {run_labels(context.runs)[-1].moment(step)}"
    return [html.Picture([dark, image]), html.Span(said)]


def _text(value: float | None) -> str:
    return "–" if value is None else number(value)

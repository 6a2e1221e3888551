"""What separates a plain run from a residual one, in a few sentences; what shortcuts do in one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from analyzer.analysis.claims import Claim, claims
from analyzer.analysis.comparability import (
    Difference,
    differences,
    notes,
    put_right,
    size_of_batch,
)
from analyzer.analysis.evidence import became_nan
from analyzer.analysis.limits import BEYOND_THE_EDGE, LIMITS
from analyzer.analysis.numerals import number
from analyzer.analysis.view import has_shortcuts
from analyzer.errors import AnalyzerError
from analyzer.storage.run import Run

__all__ = ["Verdict", "verdict", "verdict_on"]

Claims = Mapping[str, Claim]


@dataclass(frozen=True)
class Verdict:
    """What separates a plain and a residual run, or what shortcuts do in a residual one.

    Args:
        parts: What differs besides, the mechanisms by their effect, which of them an intervention
            shows, and the losses; each with its numbers, the most important first.
        note: Which run is which, how the plain one was made, what was not seen of them.
        differences: All that tells the runs apart beside their shortcuts.
        evidence: How many ``seeds``, ``samples`` of the held batch, ``batches`` of it, ``steps``.
    """

    parts: tuple[str, ...]
    note: str
    differences: tuple[Difference, ...]
    evidence: Mapping[str, int]
    claims: tuple[Claim, ...]
    runs: tuple[Sequence[Run], Sequence[Run]] = field(default=((), ()), compare=False)

    @property
    def sentence(self) -> str:
        """The whole verdict."""
        return " ".join(self.parts)

    @property
    def headline(self) -> str:
        """What is to be read first of it."""
        return self.parts[0]

    @property
    def num_seeds(self) -> int:
        """Pairs of runs."""
        return self.evidence["seeds"]

    def as_json(self) -> dict[str, Any]:
        """Return it as `analyzer explain --json` prints it."""
        keys = ("key", "text", "status", "plain", "residual", "spread", "steps", "reference")
        return {
            "sentence": self.sentence,
            "note": self.note,
            "differences": [
                {"what": one.what, "plain": one.plain, "residual": one.residual}
                for one in self.differences
            ],
            "evidence": dict(self.evidence),
            "claims": [
                {key: getattr(one, key) for key in (*keys, "query", "panel")} for one in self.claims
            ],
        }


def verdict(plain: Run | Sequence[Run], residual: Run | Sequence[Run]) -> Verdict:
    """Say what separates plain runs from residual ones, each one run or one for each seed.

    Given in the other order they are put right, and the note says so. A mechanism is named where
    its effect exceeds what differs between seeds of one architecture, and matters; over several
    seeds numbers are medians with their range.

    Reference:
        He et al. (2015), Deep residual learning for image recognition, §4.1.

    Raises:
        ValueError: If the two sides are not of one length.
        AlikeError: If both have shortcuts that carry something, or both have none.
    """
    left = [plain] if isinstance(plain, Run) else list(plain)
    right = [residual] if isinstance(residual, Run) else list(residual)
    if len(left) != len(right) or not left:
        raise ValueError(
            f"got {len(left)} plain and {len(right)} residual runs; expected pairs. "
            "Give one plain run for each residual run"
        )
    left, right, is_swapped = put_right(left, right)
    apart = differences(left, right)
    found = claims(left, right, apart)
    if is_swapped:
        found = tuple(replace(one, query=_either_order(one.query, right)) for one in found)
    by_key = {claim.key: claim for claim in found}
    runs = [*left, *right]
    parts = [
        _not_judged(runs),
        _explaining(apart),
        became_nan(runs),
        *_mechanisms(by_key, _interventions(by_key, left[0])),
        _collapse_in_both(by_key),
        _shortcuts(by_key),
        _curvature(by_key),
        _outcome(by_key),
        _open_questions(found),
        _evidence_words(len(left)),
    ]
    note = notes(left, right, is_swapped)
    return Verdict(
        tuple(filter(None, parts)), note, apart, _evidence(left, right), found, (left, right)
    )


def _either_order(query: str, residual: Sequence[Run]) -> str:
    """The query for a user who gave the runs in the other order, and may do so once more."""
    name = "one.name" if len(residual) == 1 else "one[0].name"
    order = f"sorted((plain, residual), key=lambda one: {name} == {residual[0].name!r})"
    return f"(lambda plain, residual: {query})(*{order})" if query else ""


def verdict_on(run: Run) -> Verdict:
    """Say what the shortcuts of one residual run do, by what was measured of it alone.

    Raises:
        AnalyzerError: If it has no shortcuts that carry something.
    """
    if not has_shortcuts(run):
        raise AnalyzerError(
            f"run '{run.name}' has no shortcuts that carry something; expected a residual run. To "
            f"see what is wrong with it: analyzer diagnose {run.name}"
        )
    found = claims([run], [run], is_alone=True)
    by_key = {claim.key: claim for claim in found}
    depth = next(claim for claim in found if claim.key == "depth")
    words = "" if depth.status == "not measured" else f"{_first_upper(depth.short)} ({depth.when})."
    parts = [
        _not_judged([run]),
        became_nan([run]),
        words,
        _interventions(by_key, None),
        _shortcuts(by_key),
        _curvature(by_key),
        _open_questions(found),
        _evidence_words(1),
    ]
    note = notes([], [run])
    return Verdict(tuple(filter(None, parts)), note, (), _evidence([], [run]), found, ((), (run,)))


def _not_judged(runs: Sequence[Run]) -> str:
    """Which runs failed, or hold nothing to judge."""
    said = []
    for run in runs:
        if run.status in ("failed", "crashed"):
            error = run.manifest.get("error")
            said.append(f"{run.name} {run.status}" + (f" ({error})" if error else ""))
        elif not len(run.layer_steps()):
            said.append(f"{run.name} holds no gradient of a layer")
    return f"Not judged as a whole: {'; '.join(said)}." if said else ""


def _explaining(found: Sequence[Difference]) -> str:
    """What else can explain what follows, said before it."""
    network = [one.words for one in found if one.explains in ("network", "start")]
    training = [one.words for one in found if one.explains == "training"]
    parts = []
    if network:
        parts.append(f"{'; '.join(network)}: it can explain all that is compared")
    if training:
        words = "; ".join(training)
        parts.append(f"{words}: it can explain what follows the first update, the loss above all")
    return f"Besides the shortcuts these differ: {'. Also '.join(parts)}." if parts else ""


_HEADLINES = {
    "vanishing": "Vanishing gradients separate the two",
    "exploding": "Exploding gradients separate the two",
    "cliff": "A single layer separates the two",
    "shattering": "What separates the two",
    "conditioning": "What separates the two",
    "forward_collapse": "What separates the two",
}


_FIRST = {"cliff": 0, "vanishing": 1, "exploding": 1}


def _mechanisms(found: Claims, interventions: str) -> list[str]:
    """The mechanisms that separate the two: what an intervention shows before what is only seen.

    Norms come before the others, which follow from them, and what is lost at one layer before all:
    a fit along depth passes through it too. The others stand by their effect.
    """
    holding = sorted(
        (one for key, one in found.items() if key in _HEADLINES and one.status == "holds"),
        key=lambda one: (_FIRST.get(one.key, 2), -one.effect),
    )
    if not holding:
        return [_norms(found), _cliff_in_both(found), interventions]
    first, *others = holding
    text = f"{_HEADLINES[first.key]}: {first.short} ({first.when}{_moments(found, first.key)})."
    listed = "; ".join(f"{one.short} ({one.when}{_moments(found, one.key)})" for one in others)
    beside = f"Also seen, by their effect: {listed}." if others else ""
    norms = "" if {one.key for one in holding} & {"vanishing", "exploding"} else _norms(found)
    if norms and _is_unhealthy(found) and first.key != "cliff":
        return [norms, interventions, text, beside]
    beside = f"{beside} {norms}".strip()
    if found["counterfactual"].status == "holds" and first.key not in _FIRST:
        return [interventions, text, beside]
    is_shown = found["counterfactual"].status == "holds"
    return [text, interventions, beside] if is_shown else [text, beside, interventions]


def _moments(found: Claims, key: str) -> str:
    """The same at other moments, where it differs there."""
    others = [
        one
        for name, one in found.items()
        if name.startswith(f"{key}_") and one.status != "undefined"
    ]
    said = "; ".join(f"at {one.when} {one.brief}" for one in others).replace("at median", "median")
    first, last = found[key], found.get(f"{key}_last")
    ends = [abs(x) for x in (last.plain, last.residual) if x is not None] if last else [math.inf]
    is_well = max(ends, default=math.inf) < -LIMITS["healthy"].value and first.steps[:1] == (0,)
    word = "then it recovers: " if is_well and first.status == "holds" else ""
    return f"; {word}{said}" if said else ""


def _norms(found: Claims) -> str:
    """What the norms do along depth where they do not separate the two."""
    vanishing, exploding = found["vanishing"], found["exploding"]
    if vanishing.status in ("not measured", "undefined"):
        return ""
    worst = {}
    for one in (vanishing, exploding):
        sides = [x for x in (one.plain, one.residual) if x is not None]
        worst[one.key] = sum(x >= _UNHEALTHY for x in sides)
    for key, verb in (("vanishing", "vanish"), ("exploding", "explode")):
        if worst[key] == 2:
            one = found[key]
            return f"Gradients {verb} in both: {one.short} ({one.when}{_moments(found, key)})."
    key = max(worst, key=lambda name: worst[name])
    one = found[key]
    word = "Norms do not tell the two apart"
    if worst[key]:
        side = "plain" if (one.plain or 0.0) >= _UNHEALTHY else "residual"
        loses = f"The {side} net loses its norms"
        word = loses if key == "vanishing" else f"Gradients explode in the {side} net"
    if one.status == "unclear":
        word = "Whether norms tell the two apart is unclear"
    elif key == "vanishing" and not worst[key]:
        word = "Not vanishing"
    return f"{word}: {one.short} ({one.when}{_moments(found, key)})."


def _is_unhealthy(found: Claims) -> bool:
    """Whether one of the two, or both, loses its norms or explodes."""
    sides = [
        x for key in ("vanishing", "exploding") for x in (found[key].plain, found[key].residual)
    ]
    return any(x is not None and x >= _UNHEALTHY for x in sides)


_UNHEALTHY = LIMITS["unhealthy"].value


def _cliff_in_both(found: Claims) -> str:
    """A cliff that both have."""
    cliff = found["cliff"]
    sides = [x for x in (cliff.plain, cliff.residual) if x is not None]
    if len(sides) == 2 and max(sides) >= LIMITS["cliff"].value:
        return _with_steps(cliff)
    return ""


def _collapse_in_both(found: Claims) -> str:
    """Inputs that collapse in both: then the correlation of their gradients means nothing."""
    one = found["forward_collapse"]
    sides = [x for x in (one.plain, one.residual) if x is not None]
    if len(sides) < 2 or not min(sides) >= LIMITS["collapsed"].value:
        return ""
    text = f"activations of different inputs correlate by {number(sides[0])} without shortcuts"
    return f"Inputs collapse in both: {text}, {number(sides[1])} with them ({one.when})."


def _interventions(found: Claims, plain: Run | None) -> str:
    """What is shown to be caused by shortcuts, and what is only seen together with the loss."""
    one = found["counterfactual"]
    parts = []
    if one.status in ("holds", "fails", "unclear"):
        effect = {
            "holds": "Shown by intervention",
            "fails": "By intervention, no effect on the norms",
            "unclear": "By intervention, an unclear effect on the norms",
        }[one.status]
        parts.append(f"{effect}: {one.short} ({one.when}).")
    is_twin = plain is not None and plain.manifest.get("skip_scale") is not None
    if is_twin:
        parts.append("The plain run is a twin, so that its shortcuts alone cause what differs.")
    if not parts:
        if plain is None:
            return ""
        return (
            "No intervention was recorded (counterfactual, twin): what differs is seen together "
            "with the loss, not shown to cause it."
        )
    if plain is not None and not is_twin:
        parts.append("Everything else is only seen together with the loss.")
    return " ".join(parts)


def _shortcuts(found: Claims) -> str:
    """What the shortcuts of the residual run carry, and the branch that it cannot do without."""
    parts = []
    if found["identity_start"].status == "holds":
        parts.append(_with_steps(found["identity_start"]))
    share, paths, lesion = (found[k] for k in ("shortcut_share", "path_length", "lesion"))
    known = [one for one in (share, paths) if one.status in ("holds", "fails", "unclear")]
    if known:
        said = ", over ".join(f"{one.short} ({one.when})" for one in known)
        parts.append(f"{_first_upper(said)}.")
    if lesion.status in ("fails", "unclear"):
        parts.append(_with_steps(lesion))
    return " ".join(parts)


def _curvature(found: Claims) -> str:
    """Whether a training is at the edge of stability, or beyond it."""
    edge = found["edge_of_stability"]
    if edge.status != "holds":
        return ""
    largest = max(x for x in (edge.plain, edge.residual) if x is not None and not math.isnan(x))
    word = "At the edge of stability" if largest < BEYOND_THE_EDGE else "Beyond the edge"
    return f"{word}: {edge.short} ({edge.when})."


def _with_steps(one: Claim) -> str:
    return f"{_first_upper(one.short)} ({one.when})."


def _outcome(found: Claims) -> str:
    """How the final losses compare."""
    loss = found["training_loss"]
    if loss.status in ("not measured", "undefined") or loss.plain is None or loss.residual is None:
        return ""
    ratio = loss.plain / loss.residual if loss.residual > 0 else math.inf
    limit = 10 ** LIMITS["loss"].value
    times = f", {number(max(ratio, 1 / ratio), [limit])} times" if 0 < ratio < math.inf else ""
    word = {
        "holds": "ends lower with shortcuts",
        "unclear": "does not clearly end lower with shortcuts",
    }.get(loss.status, "does not end lower with shortcuts")
    return f"The loss {word}: {loss.short}{times} (mean of {loss.when})."


def _open_questions(found: Sequence[Claim]) -> str:
    """What is unclear, and what was not measured."""
    parts = []
    for status, word in (("unclear", "Unclear"), ("not measured", "Not measured")):
        keys = [one.key.replace("_", " ") for one in found if one.status == status]
        if keys:
            parts.append(f"{word}: {', '.join(dict.fromkeys(keys))}.")
    return " ".join(parts)


def _evidence_words(seeds: int) -> str:
    if seeds > 1:
        return f"Medians over {seeds} seeds."
    return "One seed, and one batch for the probes."


def _evidence(plain: Sequence[Run], residual: Sequence[Run]) -> dict[str, int]:
    runs = [*plain, *residual]
    return {
        "seeds": len(residual),
        "samples": min((size_of_batch(run) or 0 for run in runs), default=0),
        "batches": 1,
        "steps": min((len(run.recorded_steps()) for run in runs), default=0),
    }


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
